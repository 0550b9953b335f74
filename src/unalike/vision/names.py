"""Names of the eight classification networks of Nafi et al. 2024, table 2. Nothing is imported here."""

from __future__ import annotations

NETWORK_NAMES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "vgg19": "VGG-19",
    "alexnet": "AlexNet",
    "densenet121": "DenseNet-121",
    "mobilenet_v2": "MobileNetV2",
    "googlenet": "GoogLeNet",
}
"""torchvision's name → as papers write it."""

NETWORKS = tuple(NETWORK_NAMES)

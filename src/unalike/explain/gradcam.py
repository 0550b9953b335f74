"""Grad-CAM: where the last convolutional features speak for a class (Selvaraju et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F

from unalike.errors import InputError
from unalike.records import FloatArray, IntArray, Pixels
from unalike.utility.classifier import AT_ONCE, Classifier

LEAST_SIDE = 4  # a map with fewer cells a side shows no place; an earlier layer is taken if there is one with more
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def find_layer(classifier: Classifier, image: Pixels) -> nn.Module:
    """The module whose output is the last feature map before pooling, for images like ``image`` (channels, H, W).

    Of modules that ran once, the last to finish whose output has four dimensions, is not what a pooling module gave,
    and is at least `LEAST_SIDE` cells high and wide; if there is none, the last of those with the largest map.

    Raises `InputError` for a network without feature maps.
    """
    ran: list[tuple[nn.Module, torch.Tensor]] = []

    def note(module: nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            ran.append((module, output))

    hooks = [
        module.register_forward_hook(note)
        for module in classifier.network.modules()
        if module is not classifier.network
    ]
    try:
        classifier.predict(image[None])
    finally:
        for hook in hooks:
            hook.remove()
    pooled = {id(output) for module, output in ran if isinstance(module, _POOLING)}
    times = [id(module) for module, _ in ran]
    maps = [
        (module, min(output.shape[2:]))
        for module, output in ran
        if id(output) not in pooled and times.count(id(module)) == 1 and min(output.shape[2:]) > 1
    ]
    if not maps:
        raise InputError(f"{classifier.name} has no feature map to look at: Grad-CAM needs a convolutional network.")
    wanted = min(LEAST_SIDE, max(side for _, side in maps))
    return [module for module, side in maps if side >= wanted][-1]


def explain_by_gradcam(classifier: Classifier, images: Pixels, targets: IntArray) -> FloatArray:
    """Heat (n, H, W), not negative, of images (n, channels of the cohort, H, W) for the classes ``targets`` (n,).

    Channels of the map are weighted by the mean gradient of the class's score before softmax; what is negative is cut
    off, and the map is enlarged bilinearly to the image.
    """
    if len(images) == 0:
        return np.empty((0, *images.shape[2:]))
    classifier.network.train(False)
    explainer = LayerGradCam(classifier.logits, find_layer(classifier, images[0]))
    parts = []
    for begin in range(0, len(images), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        prepared = classifier.prepare(images[part]).requires_grad_()
        chosen = torch.from_numpy(targets[part]).to(prepared.device)
        with torch.enable_grad():
            cells = explainer.attribute(prepared, target=chosen, relu_attributions=True)
        heat = F.interpolate(cells.detach().float(), images.shape[2:], mode="bilinear", align_corners=False)
        parts.append(heat[:, 0].double().cpu().numpy())
    classifier.network.zero_grad(set_to_none=True)
    return np.concatenate(parts)

"""Networks for pictures that others designed: torchvision's, and weights files for them, read without running anything.

``imports`` makes torchvision importable, ``weights`` reads files of weights, ``networks`` builds networks by name.
"""

"""How useful synthetic images are: what is trained on them, and tested on real images, against the same on real ones.

Nothing is imported here, so that reading settings for ``--help`` does not import torch.
"""

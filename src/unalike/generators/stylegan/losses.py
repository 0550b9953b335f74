"""What the two networks are trained by: the logistic loss and two penalties.

``real`` and ``fake`` are what the discriminator says of images (B,), without bounds, the larger the more real.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

PATH_DECAY = 0.01  # share by which the mean path length follows a batch


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """E[−log σ(D(G(z)))], the non-saturating loss (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean()


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """E[−log σ(D(x))] + E[−log(1 − σ(D(G(z))))]."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1_penalty(discriminator: nn.Module, images: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
    """E‖∇D(x)‖² over real images x (B, C, H, W), a scalar that can be differentiated again.

    R1 of Mescheder, Geiger and Nowozin (2018); γ/2 times it is added to the loss of the discriminator.
    """
    images = images.detach().requires_grad_(True)
    said = discriminator(images, label)
    (gradient,) = torch.autograd.grad(said.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """‖Jᵀ_w y‖ of each image (B,), where J = ∂G/∂w, y = ``noise`` ~ N(0, I) like ``images`` (B, C, H, W).

    ``ws`` (B, layers, latent) are the styles that the images were made from; squares are averaged over layers.
    Karras et al. (2020), section 3.2; y is divided by the root of the number of pixels there, so that the length
    does not depend on the resolution.
    """
    height, width = images.shape[2:]
    said = (images * noise).sum() / math.sqrt(height * width)
    (gradient,) = torch.autograd.grad(said, ws, create_graph=True)
    # The root of 0 has no slope: styles without influence must not make the gradient NaN.
    return gradient.square().sum(dim=2).mean(dim=1).clamp(min=1e-16).sqrt()


def follow_path_length(mean: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The moving average a of the path length, one step on towards those of a batch; not differentiated."""
    return mean.lerp(lengths.detach().mean(), PATH_DECAY)

"""Random perturbations of feature maps (CCT, URPC): what an auxiliary output must not be disturbed by.

Numbers are drawn in float32 from PyTorch's generator of the tensor's device, which the trainer seeds by iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["add_feature_noise", "drop_elements", "drop_strongest"]


def uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Numbers in [0, 1) of a shape, float32, on the device of ``like``; float64 where that is."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.rand(tuple(shape), device=like.device, dtype=dtype)


def add_feature_noise(features: Tensor, strength: float = 0.3) -> Tensor:
    r"""Each feature times :math:`1 + n`, :math:`n \sim U(-s, s)`: one draw, shared by the images of the batch.

    Args:
        features: ``(B, C, *spatial)``.
        strength: :math:`s` >= 0.

    Returns:
        same shape and dtype.

    Source: CCT, section 3.2 (F-Noise), and SSL4MIS.

    Example:
        >>> noisy = add_feature_noise(torch.ones(2, 3, 8, 8))
        >>> bool((noisy - 1).abs().max() <= 0.3), torch.equal(noisy[0], noisy[1])
        (True, True)
    """
    noise = (2 * uniform(features.shape[1:], features) - 1) * strength
    return features + features * noise.to(features.dtype)


def drop_elements(features: Tensor, probability: float = 0.3) -> Tensor:
    """Each element is 0 with a probability, and divided by the rest of it otherwise; in evaluation mode as well.

    Args:
        features: ``(B, C, *spatial)``.
        probability: in [0, 1).

    Returns:
        same shape and dtype.

    Example:
        >>> sorted(set(drop_elements(torch.ones(1, 4, 8, 8), 0.5).flatten().tolist()))
        [0.0, 2.0]
    """
    kept = uniform(features.shape, features) >= probability
    return features * (kept / (1 - probability)).to(features.dtype)


def drop_strongest(features: Tensor, low: float = 0.7, high: float = 0.9) -> Tensor:
    r"""Voxels with the largest mean over the channels become 0 in all channels.

    The threshold is :math:`\gamma` times the largest mean of the image, one :math:`\gamma \sim U(0.7, 0.9)` for the
    batch; voxels strictly below it stay. Where the largest mean is positive, at least its voxel goes; where it is
    negative, few or none do.

    Args:
        features: ``(B, C, *spatial)``.
        low, high: range of :math:`\gamma`.

    Returns:
        same shape and dtype.

    Source: CCT, section 3.2 (F-Drop), and SSL4MIS.

    Example:
        >>> x = torch.tensor([[[1.0, 5.0, 10.0]]])
        >>> drop_strongest(x).tolist()
        [[[1.0, 5.0, 0.0]]]
    """
    mean = features.float().mean(1, keepdim=True) if features.dtype != torch.float64 else features.mean(1, keepdim=True)
    factor = low + (high - low) * uniform((), features)
    threshold = factor * mean.flatten(1).amax(1)
    return features * (mean < threshold.reshape(-1, *[1] * (features.dim() - 1))).to(features.dtype)

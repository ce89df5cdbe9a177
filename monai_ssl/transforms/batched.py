"""Random changes of a batch that is already on the device: strong gray-value changes, and mixing of its rows.

They draw from PyTorch's generator of the tensor's device, which the trainer seeds by iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# at strength 1; half of it is what `strength=0.5`, the default, does
CONTRAST, GAMMA, BRIGHTNESS, FIELD, NOISE = 0.5, 0.6, 0.5, 0.4, 0.3
OFTEN, SELDOM = 0.8, 0.4
KNOTS = 4  # per axis of the smooth field


def _uniform(like: Tensor, low: float, high: float) -> Tensor:
    """One number per row and channel."""
    shape = (*like.shape[:2], *[1] * (like.dim() - 2))
    return torch.rand(shape, device=like.device, dtype=like.dtype) * (high - low) + low


def _some(like: Tensor, probability: float) -> Tensor:
    """For each row and channel, 1 with a probability, else 0."""
    return (_uniform(like, 0, 1) < probability).to(like.dtype)


def change_strongly(image: Tensor, strength: float = 0.5) -> Tensor:
    r"""Change contrast, gamma, brightness, illumination, sharpness and noise; every voxel stays on its place.

    Row by row and channel by channel: times :math:`1 \pm 0.5 s` about the mean, the own range to the power of
    :math:`e^{\pm 0.6 s}`, plus :math:`\pm 0.5 s`, plus Gaussian noise of a standard deviation up to :math:`0.3 s` (each
    with probability 0.8), plus a smooth random field of standard deviation :math:`0.4 s`, mixed with the mean over
    :math:`3^d` voxels (each with probability 0.4). Made for gray values of about unit variance.

    Args:
        image: ``(B, C, *spatial)`` float, two or three spatial axes; not changed in place.
        strength: :math:`s` >= 0; 0 returns the image itself.

    Returns:
        float32, the same shape.

    Raises:
        ValueError: for a negative strength.

    Example:
        >>> image = torch.rand(2, 1, 16, 16)
        >>> change_strongly(image).shape, change_strongly(image, 0.0) is image
        (torch.Size([2, 1, 16, 16]), True)
    """
    if not strength >= 0:
        raise ValueError(f"strength must be >= 0, got {strength}")
    if strength == 0:
        return image
    x = image.float()
    axes = list(range(2, x.dim()))
    mean = x.mean(axes, keepdim=True)
    x = mean + (x - mean) * (1 + _some(x, OFTEN) * _uniform(x, -CONTRAST, CONTRAST) * strength)
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    extent = (high - low).clamp_min(1e-6)
    exponent = (_some(x, OFTEN) * _uniform(x, -GAMMA, GAMMA) * strength).exp()
    x = low + extent * ((x - low) / extent).clamp(0, 1) ** exponent
    x = x + _some(x, OFTEN) * _uniform(x, -BRIGHTNESS, BRIGHTNESS) * strength
    knots = torch.randn(*x.shape[:2], *[KNOTS] * len(axes), device=x.device, dtype=x.dtype)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(axes)]
    field = nn.functional.interpolate(knots, x.shape[2:], mode=mode, align_corners=True)
    x = x + _some(x, SELDOM) * FIELD * strength * field
    x = torch.lerp(x, _box_mean(x), _some(x, SELDOM) * _uniform(x, 0.3, 1.0))
    return x + _some(x, OFTEN) * _uniform(x, 0.0, NOISE) * strength * torch.randn_like(x)


def _box_mean(x: Tensor) -> Tensor:
    """Mean over the 3 voxels per axis around each voxel that are there."""
    pool = {1: nn.functional.avg_pool1d, 2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[x.dim() - 2]
    return pool(x, 3, stride=1, padding=1, count_include_pad=False)


def cutmix(
    tensors: Sequence[Tensor], probability: float = 1.0, sides: tuple[float, float] = (0.4, 0.75)
) -> list[Tensor]:
    """Put a box of the next row into each row, the same box in all tensors.

    Args:
        tensors: each ``(B, channels, *spatial)``, equal but for the channels: images, labels, weights.
        probability: of a row to get a box.
        sides: range of the box's sides, as shares of the patch, in (0, 1]; each axis is drawn for itself.

    Returns:
        new tensors of the same dtypes; those given where there is one row.

    Raises:
        ValueError: for an option out of its range, or tensors of different shapes.

    Source: Yun et al., "CutMix", ICCV 2019; French et al., "Semi-supervised semantic segmentation needs strong, varied
        perturbations", BMVC 2020, for segmentation.

    Example:
        >>> rows = torch.arange(2.0)[:, None, None, None].expand(2, 1, 8, 8)
        >>> mixed, = cutmix([rows], sides=(0.5, 0.5))
        >>> mixed.sum((1, 2, 3)).tolist()  # a quarter of each is the other's
        [16.0, 48.0]
    """
    low, high = sides
    if not 0 <= probability <= 1 or not 0 < low <= high <= 1:
        raise ValueError(f"probability must be in [0, 1] and sides a range in (0, 1], got {probability} and {sides}")
    first = tensors[0]
    rows, spatial = len(first), first.shape[2:]
    if any(t.shape[0] != rows or t.shape[2:] != spatial for t in tensors):
        raise ValueError(f"tensors must have equal rows and spatial axes, got {[tuple(t.shape) for t in tensors]}")
    if rows < 2 or probability == 0:
        return list(tensors)
    device = first.device
    size = torch.tensor(spatial, device=device)
    side = (size * (low + (high - low) * torch.rand(rows, len(spatial), device=device))).round().clamp_min(1)
    start = (torch.rand(rows, len(spatial), device=device) * (size - side + 1)).floor()
    inside = torch.rand(rows, 1, *[1] * len(spatial), device=device) < probability
    for axis, n in enumerate(spatial):
        position = torch.arange(n, device=device)
        within = (position >= start[:, axis : axis + 1]) & (position < (start + side)[:, axis : axis + 1])
        inside = inside & within.reshape(rows, 1, *[n if a == axis else 1 for a in range(len(spatial))])
    return paste(tensors, inside, torch.arange(rows, device=device).roll(1))


def paste(tensors: Sequence[Tensor], inside: Tensor, partner: Tensor) -> list[Tensor]:
    """Replace what is inside a mask by what another row has there, in all tensors alike.

    Args:
        tensors: each ``(B, channels, *spatial)``, equal but for the channels.
        inside: ``(B, 1, *spatial)`` bool.
        partner: ``(B,)`` int64, of each row the row that it gets its inside from.

    Returns:
        new tensors of the same dtypes.

    Example:
        >>> rows, inside = torch.arange(3.0).reshape(3, 1, 1), torch.tensor([[[True]], [[False]], [[True]]])
        >>> paste([rows], inside, torch.tensor([2, 1, 0]))[0].flatten().tolist()
        [2.0, 1.0, 0.0]
    """
    return [torch.where(inside, t[partner], t) for t in tensors]

"""Cropping to a field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import Crop, InvertibleTransform, MapTransform
from nibabel.affines import voxel_sizes


class CenterCropd(MapTransform, InvertibleTransform):
    """Keep a field of view around the center of the image, given in millimeters. Needs no label, unlike the literature.

    Axes that are shorter than the field stay as they are. The inverse pads with 0, so that class probabilities become
    background outside of the field.

    Args:
        keys: items ``(C, *spatial)``, ``MetaTensor`` with affine.
        size: millimeters per axis; None keeps the axis. Axes beyond the last entry are kept.

    Raises:
        ValueError: when a size is not positive.

    Example:
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.zeros(1, 100, 100, 10), affine=torch.diag(torch.tensor([0.5, 0.5, 2.0, 1.0])))
        >>> CenterCropd("image", (30.0, 80.0, None))({"image": image})["image"].shape
        torch.Size([1, 60, 100, 10])
    """

    def __init__(self, keys: KeysCollection, size: Sequence[float | None]) -> None:
        super().__init__(keys)
        if any(entry is not None and not entry > 0 for entry in size):
            raise ValueError(f"size must be positive millimeters or None per axis, got {tuple(size)}")
        self.size = tuple(size)
        self.crop = Crop()

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        item = dict(data)
        for key in self.key_iterator(item):
            window = center_window(item[key].shape[1:], voxel_sizes(item[key].affine.numpy()), self.size)  # type: ignore[attr-defined]
            item[key] = self.crop(item[key], slices=window)
        return item

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.crop.inverse(item[key])  # type: ignore[arg-type]
        return item


def center_window(shape: Sequence[int], spacing: Sequence[float], size: Sequence[float | None]) -> tuple[slice, ...]:
    """The voxels within ``size`` mm around the center, per axis.

    Args:
        shape: voxels per axis.
        spacing: millimeters per voxel.
        size: millimeters; None, or no entry, keeps the axis.

    Example:
        >>> center_window((100, 40), (0.5, 1.0), (30.0, 80.0))
        (slice(20, 80, None), slice(0, 40, None))
    """
    window = []
    for axis, side in enumerate(shape):
        wanted = size[axis] if axis < len(size) else None
        keep = side if wanted is None else min(side, max(1, round(wanted / float(spacing[axis]))))
        start = (side - keep) // 2
        window.append(slice(start, start + keep))
    return tuple(window)

"""2D networks on volumes. Data may be images of two axes, or volumes whose last axis is the slices'."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform, Rotate

from monai_ssl.transforms.literature import rotate_flip


class DispatchByDimensiond(MapTransform, InvertibleTransform):
    """One invertible transform for images of two axes, another for volumes; which one a file needs is seen on loading.

    Args:
        keys: items ``(C, H, W)`` or ``(C, H, W, D)``, ``MetaTensor``.
        flat: array transform of an image.
        volume: array transform of a volume.

    Example:
        >>> from monai.data import MetaTensor
        >>> from monai.transforms import Resize
        >>> resize = DispatchByDimensiond("image", Resize((8, 8)), Resize((8, 8, -1)))
        >>> resize({"image": MetaTensor(torch.zeros(1, 4, 6, 5))})["image"].shape
        torch.Size([1, 8, 8, 5])
    """

    def __init__(self, keys: KeysCollection, flat: InvertibleTransform, volume: InvertibleTransform) -> None:
        MapTransform.__init__(self, keys)
        self.by_rank = {2: flat, 3: volume}

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.by_rank[item[key].ndim - 1](item[key])
        return item

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.by_rank[item[key].ndim - 1].inverse(item[key])
        return item


class RandSliceSelectd(RandomizableTransform, MapTransform):
    """One random slice along the last axis of a volume, every slice equally likely; 2D images pass unchanged.

    Slices without foreground are drawn as well: in a short-axis stack they are the ends, and a network that never met
    them segments something there.

    Args:
        keys: items ``(C, H, W, D)`` of equal spatial shape, or ``(C, H, W)``.
        allow_missing_keys: skip missing items.

    Shapes:
        ``(C, H, W, D)`` -> ``(C, H, W)``.

    Example:
        >>> RandSliceSelectd("image")({"image": torch.zeros(1, 8, 6, 5)})["image"].shape
        torch.Size([1, 8, 6])
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.slice = 0

    def randomize(self, depth: int) -> None:
        self.slice = int(self.R.randint(0, depth))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        first = item[self.first_key(item)]
        if first.ndim == 4:
            self.randomize(first.shape[-1])
            for key in self.key_iterator(item):
                # a slice has the same strides, and so the same bits later on, however the volume was laid out
                item[key] = item[key][..., self.slice].contiguous()
        return item


class RandSliceRotateFlipd(RandomizableTransform, MapTransform):
    """The augmentation of the 2D code bases: half of the slices are turned by k * 90 degrees and flipped, a quarter is
    rotated by a whole number of degrees in [-20, 20), a quarter stays as it is.

    The rotation takes the nearest pixel, in image and label, and fills with 0. (The released loaders rotate before
    they resize, this one after.)

    Args:
        keys: items ``(C, H, W)``.
        allow_missing_keys: skip missing items.

    Source: augmentation of the 2D code released with SSL4MIS, SS-Net and MC-Net.

    Example:
        >>> RandSliceRotateFlipd("image")({"image": torch.zeros(1, 8, 8)})["image"].shape
        torch.Size([1, 8, 8])
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.kind, self.k, self.axis, self.degrees = 0, 0, 0, 0

    def randomize(self, data: Any = None) -> None:
        self.kind = int(self.R.randint(0, 4))
        self.k, self.axis = int(self.R.randint(0, 4)), int(self.R.randint(0, 2))
        self.degrees = int(self.R.randint(-20, 20))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        for key in self.key_iterator(item):
            if self.kind < 2:
                item[key] = rotate_flip(item[key], self.k, self.axis)
            elif self.kind == 2:
                turn = Rotate(torch.pi * self.degrees / 180, mode="nearest", padding_mode="zeros")
                item[key] = turn(item[key]).to(item[key].dtype)
        return item

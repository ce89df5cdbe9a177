"""Slices of volumes, for 2D networks. Data may be images of two axes or volumes, whose last axis is the slices'."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform, Orientation, RandomizableTransform


class OrientSlicesd(MapTransform, InvertibleTransform):
    """``Orientationd`` for images of two and of three axes alike: two axes take the first two codes.

    Args:
        keys: items ``(C, H, W)`` or ``(C, H, W, D)``, ``MetaTensor`` with affine.
        axcodes: three codes such as ``RAS``.
    """

    def __init__(self, keys: KeysCollection, axcodes: str) -> None:
        MapTransform.__init__(self, keys)
        self.by_rank = {rank: Orientation(axcodes[:rank], labels=None) for rank in (2, 3)}

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


class RandSliced(RandomizableTransform, MapTransform):
    """One random slice along the last axis of a volume, every slice equally likely; 2D images pass unchanged.

    Slices without foreground are drawn as well: in a short-axis stack they are the ends, and a network that never met
    them segments something there.

    Args:
        keys: items ``(C, H, W, D)`` of equal spatial shape, or ``(C, H, W)``.
        allow_missing_keys: skip missing items.

    Shapes:
        ``(C, H, W, D)`` -> ``(C, H, W)``.

    Example:
        >>> import torch
        >>> RandSliced("image")({"image": torch.zeros(1, 8, 6, 5)})["image"].shape
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
                item[key] = item[key][..., self.slice]
        return item

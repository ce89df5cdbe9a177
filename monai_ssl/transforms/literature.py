"""The augmentation and padding of the UA-MT family of code bases, as MONAI transforms.

They exist to reproduce published protocols. For your own data use the ``practical`` policy of the presets: these never
show the network an image in its original orientation.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, SpatialPadd


class RandRotateFlipd(RandomizableTransform, MapTransform):
    """Rotation by k * 90 degrees in the plane of the first two axes, then a flip along one of them, ALWAYS applied.

    k is uniform in {0, 1, 2, 3}, the flipped axis uniform in {0, 1}. Only the four mirrored orientations occur: the
    identity is never produced.

    Args:
        keys: items ``(C, *spatial)``, 2D or 3D.
        allow_missing_keys: skip missing items.

    Source: augmentation of the code released with UA-MT, DTC, SS-Net, TAC and CAML.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.k, self.axis = 0, 0

    def randomize(self, data: Any = None) -> None:
        self.k = int(self.R.randint(0, 4))
        self.axis = int(self.R.randint(0, 2))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        for key in self.key_iterator(item):
            item[key] = rotate_flip(item[key], self.k, self.axis)
        return item


def rotate_flip(image: torch.Tensor, k: int, axis: int) -> torch.Tensor:
    """Rotate ``(C, *spatial)`` by ``k * 90`` degrees in the first two spatial axes, then flip spatial axis ``axis``."""
    return torch.flip(torch.rot90(image, k, (1, 2)), (axis + 1,))


class LiteraturePadd(MapTransform):
    """Zero-padding of the released loaders.

    If ANY side is <= the patch, every side gets ``max((patch - side) // 2 + 3, 0)`` voxels on both ends: for a patch of
    112, a side of 112 becomes 118, 110 becomes 118 and 113 becomes 117.

    Args:
        keys: items ``(C, *spatial)``.
        patch_size: one integer per spatial axis.
        allow_missing_keys: skip missing items.

    Source: random-crop transform of the code released with UA-MT and DTC.
    """

    def __init__(self, keys: KeysCollection, patch_size: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.patch_size = tuple(int(p) for p in patch_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            sides = item[key].shape[1:]
            if any(side <= patch for side, patch in zip(sides, self.patch_size, strict=True)):
                target = [s + 2 * max((p - s) // 2 + 3, 0) for s, p in zip(sides, self.patch_size, strict=True)]
                item = SpatialPadd(key, target, method="symmetric")(item)
        return item


class RandLiteratureCropd(RandomizableTransform, MapTransform):
    """Random crop of ``patch_size`` whose start is drawn from [0, side - patch), upper end excluded.

    Every side must exceed the patch: use :class:`LiteraturePadd` before.

    Args:
        keys: items ``(C, *spatial)`` of equal spatial shape.
        patch_size: one integer per spatial axis.
        allow_missing_keys: skip missing items.

    Raises:
        ValueError: when a side is not larger than the patch.
    """

    def __init__(self, keys: KeysCollection, patch_size: Sequence[int], allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.patch_size = tuple(int(p) for p in patch_size)
        self.start: list[int] = []

    def randomize(self, sides: Sequence[int]) -> None:
        if any(side <= patch for side, patch in zip(sides, self.patch_size, strict=True)):
            raise ValueError(
                f"every side must be larger than patch_size {self.patch_size}, got {tuple(sides)}; pad with "
                "LiteraturePadd first"
            )
        self.start = [int(self.R.randint(0, s - p)) for s, p in zip(sides, self.patch_size, strict=True)]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize(item[self.first_key(item)].shape[1:])
        window = (slice(None), *(slice(a, a + p) for a, p in zip(self.start, self.patch_size, strict=True)))
        for key in self.key_iterator(item):
            item[key] = item[key][window]
        return item

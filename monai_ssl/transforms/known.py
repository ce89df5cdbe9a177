"""Transforms that know what of a label is ignored."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import Randomizable, Transform

from monai_ssl.labels import IGNORE_LABEL


class PadUnknownd(Transform):
    """Pad image and label; beyond a scan of which parts are ignored, nobody knows anything either.

    Background there would be all that a patch without an annotated voxel teaches. Of a label without ignored voxels the
    padding is background, as the transform makes it.

    Args:
        padding: pads every key of the item.
        of_label: pads ``label`` alone, in the same way.

    Example:
        >>> import torch
        >>> from monai.transforms import SpatialPadd
        >>> label = torch.tensor([[[1, IGNORE_LABEL, 0]]])
        >>> pad = PadUnknownd(SpatialPadd(["image", "label"], (1, 5)), SpatialPadd("label", (1, 5)))
        >>> pad({"image": label, "label": label})["label"].tolist()
        [[[255, 1, 255, 0, 255]]]
    """

    def __init__(self, padding: Any, of_label: Any) -> None:
        self.padding, self.of_label = padding, of_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        label = data["label"]
        item = dict(self.padding(dict(data)))
        if bool((label == IGNORE_LABEL).any()) and item["label"].shape != label.shape:
            inside = self.of_label({"label": label * 0 + 1})["label"]
            item["label"] = item["label"].masked_fill(inside == 0, IGNORE_LABEL)
        return item


class UntilKnown(Randomizable, Transform):
    """Draw a random crop or slice again while every voxel of the label in it is ignored.

    Of a scan with few annotated slices, most places show nothing that could be learned from. Where no voxel is ignored
    the first draw stands, and the result is that of the transform itself, bit for bit.

    Args:
        transform: random; its item holds ``label``.
        tries: draws at most; then the last one stands.

    Example:
        >>> import torch
        >>> from monai_ssl.transforms import RandSliceSelectd
        >>> label = torch.full((1, 4, 4, 50), IGNORE_LABEL)
        >>> label[..., 7] = 1
        >>> draw = UntilKnown(RandSliceSelectd("label"), tries=1000)
        >>> draw({"label": label})["label"].unique().tolist()
        [1]
    """

    def __init__(self, transform: Any, tries: int = 100) -> None:
        if tries < 1:
            raise ValueError(f"tries must be >= 1, got {tries}")
        self.transform, self.tries = transform, int(tries)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> UntilKnown:
        """Seed the transform inside, as it would be by itself."""
        self.transform.set_random_state(seed, state)
        return self

    def randomize(self, data: Any = None) -> None:
        """Nothing: the transform inside draws when it is called."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for _ in range(self.tries):
            item = dict(self.transform(dict(data)))
            if not bool((item["label"] == IGNORE_LABEL).all()):
                break
        return item

"""From class probabilities on the network's grid to labels on the image's grid."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, InvertibleTransform, MapTransform
from torch import Tensor

# transforms of the image that move voxels and never mix them; cropping and padding come on top, whatever their name
_MOVES = frozenset({"Flip", "Orientation", "Rotate90"})


@dataclass
class NetworkGrid:
    """What is kept of a network's output until it is brought to the image's grid: only the labels, where they suffice.

    Attributes:
        labels: ``(1, *spatial)`` uint8, or None.
        probabilities: ``(n_classes, *spatial)`` float32, or None.
    """

    labels: Tensor | None = None
    probabilities: Tensor | None = None


class LabelsOnImageGridd(MapTransform):
    """Inverts the preprocessing and takes the class with the highest probability AFTER it, on the grid of the file.

    Where the preprocessing only turned, cropped or padded the image, labels are taken before, slab by slab where the
    output comes in slabs (:meth:`gather`): the result is the same, and the volume of probabilities is never held.

    Args:
        preprocessing: the very object that prepared the image.
        key: class probabilities ``(n_classes, *spatial)``, or what :meth:`gather` made of them; replaced by the labels.
        image_key: the prepared image, which knows what was done to it.
        probabilities: also put the probabilities, on the image's grid, under ``prob``.

    Shapes:
        ``pred``: labels ``(1, *spatial)`` uint8, with the image's affine; ``prob``: ``(n_classes, *spatial)`` float32.

    Example:
        >>> from monai.transforms import Compose, Flipd
        >>> preprocessing = Compose([Flipd("image", 0)])
        >>> item = preprocessing({"image": MetaTensor(torch.rand(1, 2, 3))})
        >>> item["pred"] = torch.tensor([[[0.9, 0.9, 0.9], [0.2, 0.2, 0.2]], [[0.1, 0.1, 0.1], [0.8, 0.8, 0.8]]])
        >>> LabelsOnImageGridd(preprocessing)(item)["pred"].tolist()
        [[[1, 1, 1], [0, 0, 0]]]
    """

    def __init__(
        self,
        preprocessing: InvertibleTransform,
        key: str = "pred",
        image_key: str = "image",
        probabilities: bool = False,
    ) -> None:
        super().__init__(key)
        self.preprocessing, self.key, self.image_key = preprocessing, key, image_key
        self.probabilities = probabilities

    def with_probabilities(self, probabilities: bool) -> LabelsOnImageGridd:
        """The same transform, with ``prob`` or without."""
        other = copy.copy(self)
        other.probabilities = probabilities
        return other

    def needs_probabilities(self, image: MetaTensor) -> bool:
        """Whether labels do not suffice: probabilities are asked for, or must be resampled."""
        return self.probabilities or not _only_moved(image)

    def gather(
        self, slabs: Iterable[tuple[int, Tensor]], image: MetaTensor, device: torch.device | str = "cpu"
    ) -> NetworkGrid:
        """Collect an output that comes slab by slab along the first spatial axis.

        Args:
            slabs: first index and probabilities ``(n_classes, rows, *spatial[1:])``, on any device.
            image: the prepared image ``(C, *spatial)``.
            device: where they are collected.
        """
        shape, whole = tuple(image.shape[1:]), self.needs_probabilities(image)
        result = NetworkGrid()
        for first, slab in slabs:
            rows = slice(first, first + slab.shape[1])
            if whole:
                if result.probabilities is None:
                    result.probabilities = torch.empty(len(slab), *shape, device=device)
                result.probabilities[:, rows] = slab
            else:
                if result.labels is None:
                    result.labels = torch.empty(1, *shape, dtype=torch.uint8, device=device)
                result.labels[0, rows] = slab.argmax(0).byte()
        return result

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image, found = item[self.image_key], item[self.key]
        if not isinstance(found, NetworkGrid):
            found = torch.as_tensor(found).as_subclass(Tensor)
            found = self.gather([(0, found)], image, found.device)
        if found.probabilities is None:
            item[self.key] = on_image_grid(found.labels, image, self.preprocessing, nearest=True)
        elif self.probabilities:
            item["prob"] = on_image_grid(found.probabilities, image, self.preprocessing)
            item[self.key] = _labels(item["prob"][index] for index in range(len(item["prob"])))
        else:  # one class at a time
            item[self.key] = _labels(on_image_grid(p[None], image, self.preprocessing)[0] for p in found.probabilities)
        return item


def on_image_grid(
    values: Tensor | None, image: MetaTensor, preprocessing: InvertibleTransform, nearest: bool = False
) -> MetaTensor:
    """Undo the preprocessing for values on the grid of the prepared image.

    Args:
        values: ``(channels, *spatial)``.
        image: the prepared image; only its meta data and its list of transforms are needed.
        preprocessing: the very object that prepared it.
        nearest: do not interpolate.

    Returns:
        the values on the grid of the file that was read, with its affine.
    """
    item: dict[Hashable, Any] = {"image": image, "pred": MetaTensor(values)}
    return Invertd("pred", preprocessing, orig_keys="image", nearest_interp=nearest)(item)["pred"]


def _labels(classes: Iterable[Any]) -> MetaTensor:
    """Index of the highest of some maps ``(*spatial)``, the first of equal ones; with a channel axis."""
    maps = iter(classes)
    first = next(maps)
    best = first.as_tensor()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for index, other in enumerate(maps, 1):
        values = other.as_tensor()
        higher = values > best
        labels[higher] = index
        best = torch.where(higher, values, best)
    return MetaTensor(labels[None], meta=first.meta)


def _only_moved(image: MetaTensor) -> bool:
    """Whether every transform of the image can be undone for labels as exactly as for probabilities."""
    names = [str(step.get("class")) for step in getattr(image, "applied_operations", [])]
    return all(name in _MOVES or "Crop" in name or "Pad" in name for name in names)

"""Stopping at a bad case before it can do harm, and leaving out what nobody has annotated."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils.enums import MetaKeys

from monai_ssl.data.partial import KEYS, NOTE, Annotated
from monai_ssl.data.preset import Preset
from monai_ssl.data.rules import case_findings
from monai_ssl.errors import DataError
from monai_ssl.labels import IGNORE_LABEL


class CheckCase(Transform):
    """Raise :class:`DataError` for a loaded case that does not fit its preset; pass everything else on unchanged.

    Part of every chain (training, validation, inference), right after loading: NaN or constant images, wrong number of
    channels or axes, labels of another shape or grid or with values outside the classes never reach a network.

    Args:
        preset: what the case must be.

    Raises:
        DataError: naming the file and every rule that is broken.
    """

    def __init__(self, preset: Preset) -> None:
        self.preset = preset

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image, label = item["image"], item.get("label")
        found = case_findings(
            image, label, self.preset, affine=_stated_affine(image), label_affine=_stated_affine(label)
        )
        errors = [
            f"{_name(label if finding.about == 'label' else image, finding.about)}: {finding.message}"
            for finding in found
            if finding.severity == "error"
        ]
        if errors:
            raise DataError("; ".join(errors))
        return item


class LabelWhereImageIsd(Transform):
    """Where only one of image and label states a place in space, the label lies as its image does, voxel for voxel.

    Reorientation and resampling would otherwise turn one of the two and leave the other: a picture and a NIfTI mask, or
    an array without a header and its scan. An image that states none is read so at inference, too.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image, label = item["image"], item.get("label")
        one_states = (_stated_affine(image) is None) != (_stated_affine(label) is None)
        if isinstance(image, MetaTensor) and isinstance(label, MetaTensor) and one_states:
            label.meta[MetaKeys.AFFINE] = image.affine.clone()  # the property would count the axes anew, wrongly in 2D
        return item


class MarkUnknownd(Transform):
    """Ignore what an entry says nobody has annotated; its keys are taken out of the item.

    Args:
        preset: whose classes the labels hold.
        by_class: see :meth:`Annotated.marked`. False: the label's metadata names the annotated classes instead.

    Raises:
        DataError: when the label is not as the entry says.
    """

    def __init__(self, preset: Preset, by_class: bool = True) -> None:
        self.preset, self.by_class = preset, by_class

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = {key: value for key, value in data.items() if key not in KEYS}
        annotated = Annotated.of(data)
        if annotated.whole or item.get("label") is None:
            return item
        label = item["label"]
        values = np.asarray(label.cpu()) if hasattr(label, "cpu") else np.asarray(label)
        errors = annotated.findings(values, self.preset)
        if errors:
            raise DataError(f"{_name(label, 'label')}: {errors[0].message}")
        marked = annotated.marked(values, self.preset, self.by_class)
        if marked is not values:
            item["label"] = _replaced(label, marked)
        if not self.by_class and annotated.classes is not None:
            item["label"].meta[NOTE] = ",".join(map(str, annotated.classes))
        return item


class RefuseUnknownd(Transform):
    """Raise :class:`DataError` for a label of which nothing annotated is left on the network's grid.

    Of slices that lie close together, a coarse spacing keeps some, and perhaps not those that were annotated.

    Args:
        preset: that chose the grid.
    """

    def __init__(self, preset: Preset) -> None:
        self.preset = preset

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        label = data["label"]
        if bool((label == IGNORE_LABEL).all()):
            raise DataError(f"{_name(label, 'label')}: {nothing_left(self.preset)}")
        return dict(data)


def nothing_left(preset: Preset) -> str:
    """What is wrong with a label of which nothing annotated is left on the grid of a preset."""
    keys = [key for key in ("spacing", "center_crop", "resize") if getattr(preset, key) is not None]
    told = ", ".join(f"{key} {list(getattr(preset, key))}" for key in keys) or "as stored"
    return (f"label must keep annotated voxels on the grid of the preset ({told}), got none: all of it is ignored "
            "there; annotate more slices, or correct the preset")  # fmt: skip


def _replaced(label: Any, values: np.ndarray) -> Any:
    """Other voxels with the metadata of a label."""
    voxels = torch.as_tensor(values)
    if not isinstance(label, MetaTensor):
        return voxels
    return MetaTensor(voxels, meta=label.meta, applied_operations=label.applied_operations)


def _name(volume: Any, otherwise: str) -> str:
    return Path(str(getattr(volume, "meta", {}).get("filename_or_obj", otherwise))).name


def _stated_affine(volume: Any) -> np.ndarray | None:
    """The affine of a loaded tensor, None where its file stated none (MONAI then says identity)."""
    if MetaKeys.ORIGINAL_AFFINE not in getattr(volume, "meta", {}):
        return None
    return np.asarray(volume.affine.cpu(), dtype=float)

"""Stopping at a bad case before it can do harm."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.transforms import Transform

from monai_ssl.data.rules import PresetLike, case_problems
from monai_ssl.errors import DataError


class CheckCase(Transform):
    """Raise :class:`DataError` for a loaded case that does not fit its preset; pass everything else on unchanged.

    Part of every chain (training, validation, inference), right after loading: NaN or constant images, wrong number of
    channels or axes, labels of another shape or with values outside the classes never reach a network.

    Args:
        preset: what the case must be.

    Raises:
        DataError: naming the file and every rule that is broken.
    """

    def __init__(self, preset: PresetLike) -> None:
        self.preset = preset

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        found = case_problems(item["image"], item.get("label"), self.preset)
        errors = [message for severity, message in found if severity == "error"]
        if errors:
            name = getattr(item["image"], "meta", {}).get("filename_or_obj", "image")
            raise DataError(f"{Path(str(name)).name}: {'; '.join(errors)}")
        return item

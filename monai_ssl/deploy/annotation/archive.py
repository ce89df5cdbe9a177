"""A DICOMweb archive as datastore: which of its segmentations are labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

# MONAI Label writes what annotators submit as automatic, by this name
SUBMITTED = "MONAILABEL"


def is_label(metadata: Mapping[str, Any]) -> bool:
    """Whether a DICOM SEG is somebody's annotation: at least one segment is, and none was drawn by a model alone.

    Args:
        metadata: of an instance, in DICOM's JSON form.

    Example:
        >>> segment = {"00620008": {"vr": "CS", "Value": ["AUTOMATIC"]}, "00620009": {"vr": "LO", "Value": ["dtc"]}}
        >>> is_label({"00620002": {"vr": "SQ", "Value": [segment]}})
        False
    """
    segments = metadata.get("00620002", {}).get("Value") or []
    for segment in segments:
        kind = _first(segment, "00620008").upper()
        maker = _first(segment, "00620009").upper()
        if kind == "AUTOMATIC" and maker != SUBMITTED:
            return False
    return True


def _first(element: Mapping[str, Any], tag: str) -> str:
    values = element.get(tag, {}).get("Value") or [""]
    return str(values[0])


class LabelsOnly:
    """A DICOMweb client that does not find segmentations which a model has drawn.

    Without it, the result of a prediction that is stored to the archive counts as the scan's label: the scan leaves the
    pool, and the next training takes the model's own mask for the truth.

    Args:
        client: of ``dicomweb_client``; everything but the search for segmentations is passed on.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._known: dict[str, bool] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def search_for_series(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As the client's; segmentations that are no labels are left out."""
        found = self._client.search_for_series(*args, **kwargs)
        filters = kwargs.get("search_filters") or {}
        if filters.get("Modality") != "SEG":
            return list(found)
        return [series for series in found if self._keeps(series)]

    def _keeps(self, series: Mapping[str, Any]) -> bool:
        study, uid = _first(series, "0020000D"), _first(series, "0020000E")
        if uid not in self._known:
            instances = self._client.retrieve_series_metadata(study, uid)
            self._known[uid] = all(is_label(instance) for instance in instances)
            if not self._known[uid]:
                logger.info("monai_ssl: a segmentation of the archive was drawn by a model: not a label")
        return self._known[uid]

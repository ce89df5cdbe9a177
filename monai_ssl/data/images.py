"""Which images a segmentation run goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_ssl.data.cases import IMAGE_SUFFIXES, PREDICTION_FILE, PSEUDO_LABEL_FILE, TRAINING_FILES
from monai_ssl.data.loading import load_datalist
from monai_ssl.errors import DataError
from monai_ssl.files import files_below


def images_to_segment(
    images: str | Path, datalist: str | Path | None = None, section: str = "testing"
) -> list[dict[str, Any]]:
    """Entries ``{"image": path}`` of a folder, a single file, or one list of a datalist.

    Args:
        images: a folder (searched with its subfolders, except those that hold a run, segmentations or
            pseudo-labels) or one image file.
        datalist: take ``section`` of this datalist instead; relative paths are resolved against ``images``.
        section: name of the list.

    Returns:
        the entries, sorted by path; empty when the folder does not exist, so that configs can be built without data.

    Raises:
        DataError: when a datalist is given and has no such cases.

    Example:
        >>> images_to_segment("/does/not/exist")
        []
    """
    if datalist is not None:
        cases = load_datalist(datalist, images)
        entries = [{"image": entry["image"]} for entry in cases.section(section)]
        if not entries:
            raise DataError(f"{cases.path}: '{section}' has no case; choose another --section")
        return entries
    path = Path(images).expanduser()
    if path.is_file():
        return [{"image": str(path)}]
    files = files_below(path, without=(*TRAINING_FILES, PREDICTION_FILE, PSEUDO_LABEL_FILE))
    return [{"image": str(f)} for f in sorted(files) if f.name.lower().endswith(IMAGE_SUFFIXES)]

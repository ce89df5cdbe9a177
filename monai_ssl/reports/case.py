"""What was seen of one case of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field

import nibabel as nib
import numpy as np

from monai_ssl.data.cases import Entry, image_files
from monai_ssl.data.partial import Annotated
from monai_ssl.data.preset import Preset
from monai_ssl.data.reading import read_label, read_volume
from monai_ssl.errors import DataError
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.reports.figures import largest_slice, upright

PERCENTILES = (0.5, 25.0, 50.0, 75.0, 99.5)


@dataclass
class CaseStatistics:
    """Numbers of one case; arrays only where a picture is wanted.

    Attributes:
        section, name: list of the datalist, and name of the case.
        error: why it could not be read, empty where it could.
        shape, spacing, orientation: as stored; spacing and orientation None where the format states none.
        dtype: number type of the values, after the file's own scaling.
        n_channels: of the image.
        values: percentiles 0.5, 25, 50, 75, 99.5 of the first channel.
        voxels: class -> number of voxels, None without label.
        ignored: voxels whose class nobody knows.
        classes: annotated ones, where the datalist names them.
        empty_slices: share of the slices along the last stored axis without any label.
        picture: (slice of the image, slice of the label or None, millimeters per pixel, directions of both axes).
    """

    section: str
    name: str
    error: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] | None = None
    orientation: str | None = None
    dtype: str = ""
    n_channels: int = 1
    values: tuple[float, ...] = ()
    voxels: dict[int, int] | None = None
    ignored: int = 0
    classes: tuple[int, ...] | None = None
    empty_slices: float | None = None
    picture: tuple[np.ndarray, np.ndarray | None, tuple[float, float], tuple[str, ...]] | None = field(
        default=None, repr=False
    )


def case_statistics(
    section: str, name: str, entry: Entry, picture: bool = False, preset: Preset | None = None
) -> CaseStatistics:
    """Read one case; the label of an unlabeled entry is not in the entry and never opened.

    Args:
        section, name: list of the datalist, and name of the case.
        entry: its files.
        picture: keep a slice to be drawn.
        preset: tells what the values of label files mean; None: they are classes.
    """
    found = CaseStatistics(section, name)
    try:
        volumes = [read_volume(file) for file in image_files(entry)]
        image, affine = volumes[0]
        found.shape, found.dtype = image.shape[1:], str(image.dtype)
        found.n_channels = sum(len(volume) for volume, _ in volumes)
        gray = image[0]
        found.values = tuple(float(v) for v in np.percentile(gray, PERCENTILES))
        if affine is not None:
            found.spacing = tuple(float(s) for s in nib.affines.voxel_sizes(affine)[: gray.ndim])
            if gray.ndim == 3:
                found.orientation = "".join(code or "?" for code in nib.aff2axcodes(affine))
        label = None
        if section != "unlabeled" and "label" in entry:
            meaning = () if preset is None else (preset.label_map, preset.ignore_label)
            stored, annotated = read_label(entry["label"], *meaning)[0], Annotated.of(entry)
            found.classes = annotated.classes
            if preset is not None and not annotated.whole and not annotated.findings(stored, preset):
                stored = annotated.marked(stored, preset)
            label = stored[0]
            if label.shape != gray.shape:
                raise DataError(f"label has the shape {label.shape}, the image {gray.shape}")
            values, counts = np.unique(label, return_counts=True)
            found.voxels = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
            known = np.ones(label.shape, bool)
            if preset is not None and (preset.ignore_label is not None or not annotated.whole):
                found.ignored, known = found.voxels.pop(IGNORE_LABEL, 0), label != IGNORE_LABEL
            if label.ndim == 3 and (some := known.any(axis=(0, 1))).any():
                found.empty_slices = float(np.mean(~(label.astype(bool) & known).any(axis=(0, 1))[some]))
        if picture:
            found.picture = _picture(gray, label, affine)
    except DataError as error:
        found.error = str(error)
    return found


def _picture(
    gray: np.ndarray, label: np.ndarray | None, affine: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[float, float], tuple[str, ...]]:
    """The slice with most label (else the middle one) across the axis of the thickest slices, upright in RAS."""
    if label is not None:
        label = upright(label, affine)[0]
    gray, spacing, directions = upright(gray, affine)
    steps = spacing or [1.0] * gray.ndim
    if gray.ndim == 2:
        return gray, label, (steps[0], steps[1]), ()
    axis = int(np.argmax(steps)) if max(steps) > 1.5 * min(steps) else 2
    drawn = np.zeros(gray.shape, bool) if label is None else (label != 0) & (label != IGNORE_LABEL)
    index = largest_slice([drawn], axis)
    first, second = (other for other in range(3) if other != axis)
    shown = (directions[first], directions[second]) if directions else ()
    return (
        gray.take(index, axis),
        None if label is None else label.take(index, axis),
        (steps[first], steps[second]),
        shown,
    )

"""DICOM SEG: class indices as segments that refer to the images they were drawn on."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import monai_ssl
from monai_ssl.data.preset import Preset
from monai_ssl.deploy.dicom.segments import describe_segments
from monai_ssl.dicom import Series, silent
from monai_ssl.dicom.headers import UTF_8
from monai_ssl.dicom.values import plain
from monai_ssl.errors import DataError
from monai_ssl.files import atomic_path

SEG_TYPES = ("binary", "labelmap")
# of 255: what a probability loses in a fractional segmentation
ROUNDING = 0.5 / 255 + 1e-6


def to_frames(labels: np.ndarray) -> np.ndarray:
    """Label map ``(x, y, z)`` -> ``(slices, rows, columns)``, as DICOM stores it."""
    return np.ascontiguousarray(labels.transpose(2, 1, 0).astype(np.uint8))


def derived_uid(series: Series, model: str, version: str, content: np.ndarray) -> Callable[[str], str]:
    """A function that gives the unique identifier of a purpose: the same for the same images, model and result.

    An archive that gets the same result again recognizes it; other content never has the same identifier.

    Example:
        >>> uid = derived_uid(series, "model", "1.0.0", labels)  # doctest: +SKIP
        >>> uid("SEG") == uid("SEG")  # doctest: +SKIP
        True
    """
    from pydicom.uid import generate_uid

    digest = hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()
    sources = sorted(str(dataset.SOPInstanceUID) for dataset in series.datasets)
    parts = [str(series.datasets[0].SeriesInstanceUID), *sources, model, version, str(content.shape), digest]
    return lambda purpose: str(generate_uid(entropy_srcs=[*parts, purpose]))


def now() -> dict[str, Any]:
    """Date and time of series and content, as keywords of highdicom's objects."""
    moment = datetime.datetime.now().replace(microsecond=0)
    return {"content_date": moment.date(), "content_time": moment.time(),
            "series_date": moment.date(), "series_time": moment.time()}  # fmt: skip


def write_segmentation(
    path: Path,
    labels: np.ndarray,
    series: Series,
    preset: Preset,
    model: str,
    version: str = "1.0.0",
    kind: str = "binary",
) -> Any:
    """Write a DICOM SEG (one segment per class) and read it back.

    Args:
        path: the new file.
        labels: ``(x, y, z)`` class indices on the series' grid.
        series: what was segmented.
        preset: names and codes of the classes.
        model: name of the model, noted as the algorithm.
        version: of the model.
        kind: ``binary``, which every viewer shows, or ``labelmap``, one value per voxel: smaller, for new viewers.

    Returns:
        the data set.

    Raises:
        DataError: when the written file does not hold exactly these labels.
    """
    uid = derived_uid(series, model, f"{version} {kind}", labels)
    frames = to_frames(labels)
    # a segmentation without any frame would be no DICOM object
    dataset = _write(path, frames, series, preset, model, version, kind, uid, bool(frames.any()))
    if not np.array_equal(read_segmentation(path, series), labels):
        path.unlink()
        raise DataError(f"{path}: reading the DICOM SEG back gave another mask; nothing was written")
    return dataset


def write_probabilities(
    path: Path, probabilities: np.ndarray, series: Series, preset: Preset, model: str, version: str = "1.0.0"
) -> Any:
    """Write the class probabilities as a fractional DICOM SEG (8 bits per voxel and class) and read it back.

    Args:
        path: the new file.
        probabilities: ``(classes, x, y, z)`` in [0, 1], background first.
        series, preset, model, version: as for :func:`write_segmentation`.

    Returns:
        the data set.

    Raises:
        DataError: when the written file does not hold these probabilities to half a step of 1/255.
    """
    import highdicom as hd

    uid = derived_uid(series, model, f"{version} fractional", probabilities)
    values = np.clip(probabilities[1:], 0, 1).transpose(3, 2, 1, 0).astype(np.float32)  # (z, y, x, segments)
    dataset = _write(path, np.ascontiguousarray(values), series, preset, model, version, "fractional", uid, False)
    with silent():
        stored = _pixels(hd.seg.segread(path), series, rescale_fractional=True)
    if stored.shape != values.shape or np.abs(stored - values).max() > ROUNDING:
        path.unlink()
        raise DataError(f"{path}: reading the DICOM SEG back gave other probabilities; nothing was written")
    return dataset


def _write(
    path: Path,
    frames: np.ndarray,
    series: Series,
    preset: Preset,
    model: str,
    version: str,
    kind: str,
    uid: Callable[[str], str],
    omit_empty: bool,
) -> Any:
    import highdicom as hd

    name = {"fractional": "Probabilities"}.get(kind, "Segmentation")
    options: dict[str, Any] = now()
    if kind == "fractional":
        options |= {"fractional_type": "PROBABILITY", "max_fractional_value": 255}
    with silent():
        try:
            dataset = hd.seg.Segmentation(
                source_images=series.datasets,
                pixel_array=_in_file_order(frames, series),
                segmentation_type=kind.upper(),
                segment_descriptions=describe_segments(preset, model, version, uid),
                series_instance_uid=uid("series"),
                series_number=free_series_number(series, 3 if kind == "fractional" else 1),
                sop_instance_uid=uid("instance"),
                instance_number=1,
                manufacturer="monai_ssl",
                manufacturer_model_name=plain(model),
                software_versions=monai_ssl.__version__,
                device_serial_number="0",
                series_description=plain(f"{name}: {model}"),
                content_label="PROBABILITIES" if kind == "fractional" else "SEGMENTATION",
                omit_empty_frames=omit_empty,
                specific_character_set=UTF_8,
                **options,
            )
        except Exception as error:  # its messages quote values of the headers
            raise DataError(
                f"dicom: a segmentation cannot refer to these images ({type(error).__name__} in highdicom); export the "
                "series again"
            ) from None
        organize(dataset, uid("dimensions"))
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)
    return dataset


def organize(dataset: Any, uid: str) -> None:
    """Name the organization of the frames; highdicom takes a random identifier."""
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in dataset.get(sequence, []):
            item.DimensionOrganizationUID = uid


def _in_file_order(frames: np.ndarray, series: Series) -> np.ndarray:
    """Of an enhanced series, the frames as its file has them."""
    if not series.frames:
        return frames
    ordered = np.empty_like(frames)
    ordered[series.frames] = frames
    return ordered


def free_series_number(series: Series, offset: int) -> int:
    """Not that of the images; viewers sort by it."""
    return int(series.datasets[0].get("SeriesNumber") or 0) * 100 % (2**31 - 100) + offset


def _pixels(seg: Any, series: Series, **options: Any) -> np.ndarray:
    """Frames of a segmentation in the order of the volume's slices."""
    options |= {"assert_missing_frames_are_empty": True}
    if series.frames:
        return np.asarray(
            seg.get_pixels_by_source_frame(
                series.datasets[0].SOPInstanceUID, [frame + 1 for frame in series.frames], **options
            )
        )
    return np.asarray(
        seg.get_pixels_by_source_instance([dataset.SOPInstanceUID for dataset in series.datasets], **options)
    )


def read_segmentation(path: str | Path, series: Series) -> np.ndarray:
    """The label map ``(x, y, z)`` uint8 of a DICOM SEG, on the grid of the series that it refers to."""
    import highdicom as hd

    with silent():
        frames = _pixels(hd.seg.segread(path), series, combine_segments=True, dtype=np.uint8)
    return np.ascontiguousarray(frames.transpose(2, 1, 0))

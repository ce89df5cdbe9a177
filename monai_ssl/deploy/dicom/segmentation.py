"""DICOM SEG: class indices as segments that refer to the images they were drawn on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import monai_ssl
from monai_ssl.data.dicom import Series, silent
from monai_ssl.data.preset import Preset
from monai_ssl.errors import DataError
from monai_ssl.files import atomic_path

SCHEME = "99MONAISSL"  # private; designators that begin with 99 are free for local use
ANATOMY = ("91723000", "SCT", "Anatomical Structure")


def segment_code(preset: Preset, index: int) -> tuple[str, str, str]:
    """Code of a class: the preset's, else a private one with the class's name.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> segment_code(load_preset("left_atrium"), 1)
        ('82471001', 'SCT', 'Left atrium')
    """
    return preset.codes.get(index, (f"CLASS-{index}", SCHEME, preset.labels[index][:64]))


def to_frames(labels: np.ndarray) -> np.ndarray:
    """Label map ``(x, y, z)`` -> ``(slices, rows, columns)``, as DICOM stores it."""
    return np.ascontiguousarray(labels.transpose(2, 1, 0).astype(np.uint8))


def write_segmentation(
    path: Path, labels: np.ndarray, series: Series, preset: Preset, model: str, version: str = "1.0.0"
) -> Any:
    """Write a DICOM SEG (binary, one segment per class) and read it back.

    Args:
        path: the new file.
        labels: ``(x, y, z)`` class indices on the series' grid.
        series: what was segmented.
        preset: names and codes of the classes.
        model: name of the model, noted as the algorithm.
        version: of the model.

    Returns:
        the data set.

    Raises:
        DataError: when the written file does not hold exactly these labels.
    """
    import highdicom as hd
    from pydicom.sr.coding import Code

    algorithm = hd.AlgorithmIdentificationSequence(
        name=model[:64], version=version, family=Code("113076", "DCM", "Segmentation"))  # fmt: skip
    segments = [
        hd.seg.SegmentDescription(
            segment_number=index,
            segment_label=name[:64],
            segmented_property_category=Code(*ANATOMY),
            segmented_property_type=Code(*segment_code(preset, index)),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=f"{index} {name}"[:64],
        )
        for index, name in preset.labels.items()
        if index
    ]
    frames = to_frames(labels)
    with silent():
        dataset = hd.seg.Segmentation(
            source_images=series.datasets,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=free_series_number(series, 1),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="monai_ssl",
            manufacturer_model_name=model[:64],
            software_versions=monai_ssl.__version__,
            device_serial_number="0",
            series_description=f"Segmentation: {model}"[:64],
            content_label="SEGMENTATION",
            omit_empty_frames=bool(frames.any()),  # a segmentation without any frame would be no DICOM object
        )
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)
    if not np.array_equal(read_segmentation(path, series), labels):
        path.unlink()
        raise DataError(f"{path}: reading the DICOM SEG back gave another mask; nothing was written")
    return dataset


def free_series_number(series: Series, offset: int) -> int:
    """Not that of the images; viewers sort by it."""
    return int(series.datasets[0].get("SeriesNumber") or 0) * 100 % 2**31 + offset


def read_segmentation(path: str | Path, series: Series) -> np.ndarray:
    """The label map ``(x, y, z)`` uint8 of a DICOM SEG, on the grid of the series that it refers to."""
    import highdicom as hd

    with silent():
        seg = hd.seg.segread(path)
        frames = seg.get_pixels_by_source_instance(
            [dataset.SOPInstanceUID for dataset in series.datasets],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
            dtype=np.uint8,
        )
    return np.ascontiguousarray(frames.transpose(2, 1, 0))

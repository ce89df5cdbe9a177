"""A folder that holds one DICOM series."""

from __future__ import annotations

from pathlib import Path

from monai_ssl.data.scan import Scan
from monai_ssl.dicom import read_series
from monai_ssl.errors import DataError


def shape_of(file: Path) -> tuple[int, ...]:
    """Unknown without reading every slice.

    Raises:
        DataError: always.
    """
    raise DataError(f"{file}: the size of a series is known when it is read")


def read(file: Path, label: bool = False) -> Scan:
    """
    Raises:
        DataError: when it is not exactly one complete series.
    """
    series = read_series(file, fill=False)
    return Scan(series.voxels, series.affine, notes=tuple(series.warnings))

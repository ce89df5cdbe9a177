"""One DICOM series as a volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_ssl.dicom.files import one_series, read_headers, read_pixels
from monai_ssl.dicom.grid import arrange
from monai_ssl.dicom.headers import clean_headers
from monai_ssl.dicom.patient import VALID, check_one_patient
from monai_ssl.dicom.slices import pixels, slices_of, transfer_syntax
from monai_ssl.dicom.values import require_packages, silent, word
from monai_ssl.errors import DataError

if TYPE_CHECKING:
    from monai.data import MetaTensor


@dataclass
class Series:
    """One DICOM series as a volume.

    Attributes:
        voxels: ``(columns, rows, slices)`` float32, rescaled to the unit that the header states.
        affine: (4, 4) from indices to RAS millimeters, as NIfTI files have it.
        datasets: headers with what derived objects take over, checked: one per slice, in the volume's order; of an
            enhanced series one, with its frames in the order of the file. Empty where they were not asked for.
        frames: for each slice of the volume its frame of an enhanced series, from 0; empty for others.
        files: of the slices, in the volume's order; of an enhanced series one.
        modality: as the header says, ``MR``.
        warnings: faults of the headers that were tolerated.
    """

    voxels: np.ndarray
    affine: np.ndarray
    datasets: list[Any]
    frames: list[int] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    modality: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def volume(self) -> MetaTensor:
        """Voxels and affine as MONAI's transforms take a volume in memory; shares the voxels."""
        import torch
        from monai.data import MetaTensor

        meta = {
            "original_channel_dim": "no_channel",
            "space": "RAS",
            "original_affine": self.affine.copy(),
            "spatial_shape": np.array(self.voxels.shape),
        }
        return MetaTensor(torch.from_numpy(self.voxels), affine=torch.from_numpy(self.affine), meta=meta)


def read_series(
    folder: str | Path,
    largest: bool = False,
    tolerance: float = 0.05,
    fill: bool = True,
    series_uid: str | None = None,
) -> Series:
    """Read one series of a folder: one file per slice, or one enhanced multi-frame file (MR, CT, PET).

    What a viewer can do without (SeriesNumber, PatientBirthDate, SliceThickness, ...) may be missing or empty: it is
    filled in memory and listed as a warning. The files are not changed.

    Args:
        folder: searched with its subfolders; files that are not DICOM images are ignored and counted.
        largest: of several series, take the one with most images and say so in the warnings.
        tolerance: by how much of a step the distance of two slices may differ from the others'. Beyond it, slices may
            lie a tenth of a step (or 0.06 mm, for headers that round) beside a regular grid, which is a warning.
        fill: also make the headers that derived objects need, ``datasets``.
        series_uid: SeriesInstanceUID of the one to take.

    Raises:
        DataError: for no or (without a choice) several series, damaged files, missing slices, slices of different size
            or direction, several patients or studies, a tilted gantry, color images, a single slice.

    Example:
        >>> read_series("scans/series_3").voxels.shape  # doctest: +SKIP
        (512, 512, 98)
    """
    require_packages()
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"dicom: {root} is no folder; give the folder of one series")
    headers, notes = read_headers(root)
    headers, several = one_series(root, headers, largest, series_uid)
    datasets, copies = read_pixels(root, headers)
    check_one_patient(datasets)
    slices, affine, evened = arrange(root, slices_of(datasets), tolerance)
    images, interpreted = pixels(slices)
    voxels = images.transpose(2, 1, 0)  # (slices, rows, columns) -> (x, y, z)
    clean, filled = clean_headers(slices, float(np.linalg.norm(affine[:3, 2]))) if fill else ([], [])
    enhanced = len({id(item.dataset) for item in slices}) == 1
    return Series(
        np.ascontiguousarray(voxels),
        affine,
        clean,
        [item.frame for item in slices] if enhanced else [],
        list(dict.fromkeys(item.dataset.monai_ssl_path for item in slices)),
        word(slices[0].dataset, "Modality"),
        [*notes, *several, *copies, *evened, *interpreted, *filled],
    )


def completed(series: Series) -> Iterator[Any]:
    """The files of a series as other software needs them: with what was missing filled, and what was not valid blank.

    Args:
        series: as :func:`read_series` returns it with ``fill``.

    Yields:
        a pydicom data set with pixels per file, in the order of ``files``; the files are not changed.
    """
    import pydicom

    for path, header in zip(series.files, series.datasets, strict=True):
        with silent():
            dataset = pydicom.dcmread(path, force=True)
            syntax = transfer_syntax(dataset, "dicom: a file")
            for keyword in VALID:
                if keyword in dataset and keyword not in header:
                    del dataset[keyword]
            for element in header:
                if element.VR != "SQ":  # the functional groups of an enhanced file hold more
                    dataset.add(element)
            if dataset.get("SeriesNumber") is None:
                dataset.SeriesNumber = 1
            dataset.file_meta = getattr(dataset, "file_meta", None) or pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
            dataset.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        yield dataset

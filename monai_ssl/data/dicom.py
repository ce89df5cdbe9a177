"""Reading DICOM series: one reader for prediction and for the preparation of data sets.

Nothing that identifies a patient reaches a message: attributes are named, their values are not, and files are counted.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_ssl.data.scan import LPS_TO_RAS
from monai_ssl.errors import DataError
from monai_ssl.files import files_below

if TYPE_CHECKING:
    from monai.data import MetaTensor

# attributes that every DICOM object must have, possibly empty, and that derived objects copy
TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass
class Series:
    """One DICOM series as a volume.

    Attributes:
        voxels: ``(columns, rows, slices)`` float32, rescaled to the unit that the header states.
        affine: (4, 4) from indices to RAS millimeters, as NIfTI files have it.
        datasets: the headers and pixels, in the order of the volume's slices.
        warnings: faults of the headers that were tolerated.
    """

    voxels: np.ndarray
    affine: np.ndarray
    datasets: list[Any]
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


@contextmanager
def silent() -> Iterator[None]:
    """pydicom and highdicom quote values, names among them, in warnings and log records: none of them gets out."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("pydicom", "highdicom")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)


def require_packages() -> None:
    import importlib.util

    for package in ("pydicom", "highdicom"):
        if importlib.util.find_spec(package) is None:
            raise DataError(f"{package} is not installed; pip install 'monai_ssl[dicom]'")


def read_series(folder: str | Path, largest: bool = False, tolerance: float = 0.05, fill: bool = True) -> Series:
    """Read the one series that a folder holds.

    Missing or empty attributes that a viewer can do without (SeriesNumber, PatientBirthDate, ...) are tolerated: they
    are filled with empty values in memory and listed as warnings. The files are not changed.

    Args:
        folder: searched with its subfolders; files that are not DICOM, and DICOMDIR, are ignored.
        largest: of several series, take the one with most images and say so in the warnings.
        tolerance: by how much of a step the distance of two slices may differ from the others'.
        fill: complete the headers, as objects that are derived from them need it.

    Raises:
        DataError: for no or (without ``largest``) several series, a damaged file, missing or duplicated slices, slices
            of different size or direction, a tilted gantry, color or multi-frame images, a single slice.

    Example:
        >>> read_series("scans/series_3").voxels.shape  # doctest: +SKIP
        (512, 512, 98)
    """
    require_packages()
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"dicom: {root} is no folder; give the folder of one series")
    datasets, notes = _read_files(root)
    datasets, several = _one_series(root, datasets, largest)
    _check_images(root, datasets)
    datasets, affine = _arrange(root, datasets, tolerance)
    slices = [_pixels(dataset) for dataset in datasets]
    voxels = np.stack(slices, axis=-1).swapaxes(0, 1)  # (rows, columns, slices) -> (x, y, z)
    return Series(
        np.ascontiguousarray(voxels), affine, datasets, [*notes, *several, *(_fill(datasets) if fill else [])]
    )


def _read_files(root: Path) -> tuple[list[Any], list[str]]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    found: list[Any] = []
    bare: list[Any] = []
    foreign = 0
    files = sorted(files_below(root))
    for number, path in enumerate(files, 1):
        where = f"dicom: file {number} of {len(files)} (in the order of their names)"
        try:
            with silent():
                dataset = pydicom.dcmread(path)
        except InvalidDicomError:
            foreign += 1
            continue
        except Exception as error:  # damaged files raise whatever they like
            raise DataError(f"{where} is damaged ({type(error).__name__}); export the series again") from None
        if "SOPClassUID" not in dataset or str(dataset.SOPClassUID) == DICOMDIR:
            foreign += 1
            continue
        dataset.monai_ssl_place = where  # a plain attribute: pydicom does not write it
        (found if "PixelData" in dataset else bare).append(dataset)
    if not found:
        raise DataError(f"dicom: {root} holds no DICOM image ({len(files)} other files); give the folder of a series")
    kinds = {str(dataset.SOPClassUID) for dataset in found}
    for dataset in bare:  # reports and the like have none, but images do
        if "Rows" in dataset or str(dataset.SOPClassUID) in kinds:
            raise DataError(f"{dataset.monai_ssl_place} has no pixels, it is truncated; export the series again")
    foreign += len(bare)
    notes = [f"{foreign} files that are not DICOM images were ignored"] if foreign else []
    return found, notes


def _one_series(root: Path, datasets: list[Any], largest: bool) -> tuple[list[Any], list[str]]:
    """The images of one series, and a note where it was chosen among several."""
    series: dict[str, list[Any]] = {}
    for dataset in datasets:
        series.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append(dataset)
    if "" in series:
        raise DataError(f"{series[''][0].monai_ssl_place} has no SeriesInstanceUID; export the series again")
    if len(series) == 1:
        return datasets, []
    sizes = sorted(map(len, series.values()), reverse=True)
    if largest:
        note = f"{len(series)} DICOM series in one folder (of {', '.join(map(str, sizes))} images): the largest is used"
        return max(series.values(), key=len), [note]
    raise DataError(
        f"dicom: {root} holds {len(series)} series (of {' and '.join(map(str, sizes))} images); put each into a folder "
        "of its own"
    )


def _check_images(root: Path, datasets: Sequence[Any]) -> None:
    """Every image must be one gray slice with a place in space, and be there once."""
    if len({str(dataset.SOPInstanceUID) for dataset in datasets}) < len(datasets):
        raise DataError(f"dicom: {root} holds the same image twice (equal SOPInstanceUID); remove the copies")
    for dataset in datasets:
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise DataError("dicom: multi-frame images are not read; export the series with one image per slice")
        if int(dataset.get("SamplesPerPixel") or 1) != 1:
            raise DataError("dicom: images must be gray, got color; choose the original series")
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            if not dataset.get(keyword):
                raise DataError(f"{dataset.monai_ssl_place} has no {keyword}: its place in space is unknown")


def _arrange(root: Path, datasets: list[Any], tolerance: float) -> tuple[list[Any], np.ndarray]:
    """Slices in the order of their places, and the affine (4, 4) from indices to RAS millimeters."""
    # one grid in the plane
    first = datasets[0]
    direction = np.array(first.ImageOrientationPatient, dtype=float)
    spacing = np.array(first.PixelSpacing, dtype=float)
    for dataset in datasets[1:]:
        equal = {
            "size": (dataset.Rows, dataset.Columns) == (first.Rows, first.Columns),
            "ImageOrientationPatient": np.allclose(dataset.ImageOrientationPatient, direction, atol=1e-3),
            "PixelSpacing": np.allclose(dataset.PixelSpacing, spacing, rtol=1e-3),
        }
        for what, same in equal.items():
            if not same:
                raise DataError(f"dicom: slices of {root} differ in {what}; is a localizer among them? Remove it")
    x, y = direction[:3], direction[3:]
    normal = np.cross(x, y)
    if not np.isclose(np.linalg.norm(normal), 1, atol=1e-2):
        raise DataError(
            "dicom: ImageOrientationPatient must hold two perpendicular unit vectors; export the series again"
        )
    if len(datasets) < 2:
        raise DataError(f"dicom: {root} holds 1 slice; a volume needs at least 2")

    # one step along the normal
    positions = np.array([dataset.ImagePositionPatient for dataset in datasets], dtype=float)
    order = np.argsort(positions @ normal, kind="stable")
    datasets, positions = [datasets[k] for k in order], positions[order]
    steps = np.diff(positions @ normal)
    step = float(np.median(steps))
    if steps.min() < 1e-3:
        raise DataError(
            f"dicom: {root} holds several slices at one place (phases, echoes, time points?); choose one volume of them"
        )
    if (wide := np.flatnonzero(np.abs(steps - step) > tolerance * step)).size:
        raise DataError(
            f"dicom: {root} is incomplete: slices are {step:g} mm apart, but {steps[wide[0]]:g} mm between the "
            f"slices {wide[0] + 1} and {wide[0] + 2} of {len(datasets)}; export the whole series"
        )

    # the axis of the slices, from the first to the last one: it evens out what the header rounds
    along = (positions[-1] - positions[0]) / (len(datasets) - 1)
    if np.linalg.norm(along - (along @ normal) * normal) > 0.01 * np.linalg.norm(along):
        raise DataError("dicom: slices are shifted against each other (tilted gantry); resample the series first")
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = x * spacing[1], y * spacing[0], along, positions[0]
    return datasets, LPS_TO_RAS @ lps


def _pixels(dataset: Any) -> np.ndarray:
    place = dataset.monai_ssl_place
    size = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if not dataset.file_meta.TransferSyntaxUID.is_compressed and len(dataset.PixelData) < size:
        raise DataError(f"{place} is truncated; export the series again")
    try:
        with silent():
            stored = dataset.pixel_array
    except Exception as error:  # the decoder's message may quote attributes
        raise DataError(
            f"{place} cannot be decoded ({type(error).__name__}); export the series again, uncompressed"
        ) from None
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise DataError(f"{place} must hold one gray image, got shape {stored.shape}")
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    return (stored * slope + intercept).astype(np.float32)


def _fill(datasets: list[Any]) -> list[str]:
    from pydicom.uid import generate_uid

    notes = []
    missing = [keyword for keyword in TYPE_2 if any(keyword not in dataset for dataset in datasets)]
    if any(dataset.get("SeriesNumber") is None for dataset in datasets):
        missing.append("SeriesNumber")
    if missing:
        notes.append(f"missing or empty attributes, taken as unknown: {', '.join(missing)}")
    if no_frame := any(not dataset.get("FrameOfReferenceUID") for dataset in datasets):
        notes.append("FrameOfReferenceUID is missing: the segmentation gets a new one")
    frame = generate_uid()
    for dataset in datasets:
        for keyword in TYPE_2:
            if keyword not in dataset:
                setattr(dataset, keyword, "")
        if no_frame:
            dataset.FrameOfReferenceUID = frame
    announced = datasets[0].get("ImagesInAcquisition")
    if announced and int(announced) > len(datasets):
        notes.append(
            f"the header announces {int(announced)} images but {len(datasets)} were found: outer slices may be missing"
        )
    return notes

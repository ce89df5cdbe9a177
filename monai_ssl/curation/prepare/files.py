"""Reading what data sets are distributed as, writing what training reads."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_ssl.data.reading import read_volume
from monai_ssl.errors import DataError
from monai_ssl.files import atomic_path

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def checksum(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def read_image(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """One scalar volume: voxels ``(X, Y, Z)`` in the machine's byte order, affine (4, 4) to RAS millimeters.

    NIfTI through nibabel (checksums of compressed files included), everything else (NRRD, MetaImage, ...) through
    SimpleITK.

    Raises:
        DataError: when the file is missing, truncated, not readable, or holds several frames or channels.
    """
    file = Path(path)
    if file.name.lower().endswith((".nii", ".nii.gz")):
        volume, affine = read_volume(file)
        if volume.shape[0] != 1:
            raise DataError(f"image must hold one volume, got {volume.shape[0]} (frames or channels); split the file")
        array = volume[0]
        assert affine is not None
        if array.ndim != 3:
            raise DataError(f"image must have 3 axes, got shape {array.shape}")
        return native(array), affine
    if not file.exists():
        raise DataError("file must exist, but there is none")
    image = _sitk().ReadImage(str(file)) if file.stat().st_size else None
    if image is None:
        raise DataError("file must not be empty, got 0 bytes: copy or download it again")
    return from_sitk(image)


def _sitk() -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def from_sitk(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(X, Y, Z)`` and affine to RAS of a SimpleITK image.

    Raises:
        DataError: when it is not one scalar volume.
    """
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"image must hold one value per voxel, got {image.GetNumberOfComponentsPerPixel()}")
    if image.GetDimension() != 3:
        raise DataError(f"image must have 3 axes, got shape {image.GetSize()}")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return _sitk().GetArrayFromImage(image).T, LPS_TO_RAS @ affine


def to_sitk(array: np.ndarray, affine: np.ndarray) -> Any:
    """SimpleITK image of voxels ``(X, Y, Z)`` with an affine to RAS; the inverse of :func:`from_sitk`."""
    image = _sitk().GetImageFromArray(np.ascontiguousarray(array.T))
    lps = LPS_TO_RAS @ affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in lps[:3, 3]])
    image.SetDirection([float(d) for d in (lps[:3, :3] / spacing).flatten()])
    return image


def read_dicom(folder: str | Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The largest DICOM series of a folder: voxels ``(X, Y, Z)`` in its unit (rescaled), affine to RAS, remarks.

    Slices are sorted by their position in space. Read through SimpleITK (GDCM).

    Raises:
        DataError: without a series, or when slices are missing or lie irregularly.
    """
    sitk = _sitk()
    series = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
              for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))}  # fmt: skip
    if not series:
        raise DataError("folder must hold a DICOM series, got none")
    remarks = []
    files = max(series.values(), key=len)
    if len(series) > 1:
        sizes = ", ".join(str(len(names)) for names in series.values())
        remarks.append(f"{len(series)} DICOM series in one folder (of {sizes} files): the largest is used")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise DataError(f"DICOM series must be readable, got: {_last_line(error)}") from error
    if len(files) > 1:
        key = "0020|0032"
        if not all(reader.HasMetaDataKey(i, key) for i in range(len(files))):
            raise DataError("every DICOM slice must state its position (0020,0032), and some do not")
        positions = np.array([[float(v) for v in reader.GetMetaData(i, key).split("\\")] for i in range(len(files))])
        steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        step = float(np.median(steps))
        if step <= 0 or abs(steps - step).max() > 0.02 * step:
            worst = int(abs(steps - step).argmax())
            raise DataError(
                f"DICOM slices must be evenly spaced, got {steps[worst]:.3g} mm between {Path(files[worst]).name} and "
                f"{Path(files[worst + 1]).name} where others have {step:.3g}: is a slice missing or doubled?"
            )
        if abs(image.GetSpacing()[2] - step) > 0.02 * step:  # GDCM guesses it from the first two slices or a tag
            image.SetSpacing((*image.GetSpacing()[:2], step))
    array, affine = from_sitk(image)
    return array, affine, remarks


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def read_h5(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an HDF5 file.

    Raises:
        DataError: without h5py, when the file cannot be read or lacks a key.
    """
    try:
        import h5py
    except ImportError:
        raise DataError(
            "reading .h5 files needs h5py: pip install 'monai_ssl[prepare]' (or pip install h5py)"
        ) from None
    try:
        with h5py.File(path, "r") as file:
            if missing := [key for key in keys if key not in file]:
                raise DataError(
                    f"file must hold the arrays {', '.join(keys)}, got {', '.join(file)}; lacks {missing[0]}"
                )
            return {key: native(np.asarray(file[key])) for key in keys}
    except OSError as error:
        raise DataError(f"file must be a complete HDF5 file, got: {_last_line(error)}: copy it again") from error


def native(array: np.ndarray) -> np.ndarray:
    """The same values in the machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def as_label(array: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """Label map with the classes of the data set, uint8.

    Args:
        array: values as stored, integers in any number type.
        mapping: stored value -> class.

    Raises:
        DataError: for other values.

    Example:
        >>> as_label(np.array([0.0, 255.0]), {0: 0, 255: 1})
        array([0, 1], dtype=uint8)
    """
    values = np.unique(array)
    if not np.isfinite(values).all() or not np.array_equal(values, np.round(values)):
        odd = next(v for v in values if not np.isfinite(v) or v != np.round(v))
        raise DataError(f"label must hold integers, got {odd:g}: was it interpolated, or is it an image?")
    if unknown := [int(v) for v in values if int(v) not in mapping]:
        shown = ", ".join(map(str, unknown[:5]))
        raise DataError(f"label values must be among {sorted(mapping)}, got {shown}{'...' * (len(unknown) > 5)}")
    result = np.zeros(array.shape, dtype=np.uint8)
    for value, index in mapping.items():
        if index:
            result[array == value] = index
    return result


def onto_grid(
    label: np.ndarray, label_affine: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Bring a label onto the axes of its image, where the two differ by flipped or swapped axes only.

    Args:
        label: ``(X, Y, Z)`` with its affine.
        label_affine, affine: to RAS, of label and image.
        shape: of the image.

    Returns:
        the label on the image's grid, and remarks on what was done.

    Raises:
        DataError: when the grids differ in shape, voxel size or orientation beyond that.
    """
    if label.shape == shape and np.allclose(label_affine, affine, rtol=0, atol=1e-3):
        return label, []
    start, end = nib.io_orientation(label_affine), nib.io_orientation(affine)
    codes = "".join(nib.aff2axcodes(label_affine)), "".join(nib.aff2axcodes(affine))
    change = nib.orientations.ornt_transform(start, end)
    turned = nib.orientations.apply_orientation(label, change)
    moved = label_affine @ nib.orientations.inv_ornt_aff(change, label.shape)
    if turned.shape != shape:
        raise DataError(f"label must have the shape of its image, {shape}, got {label.shape} ({codes[0]}, {codes[1]})")
    if np.allclose(moved, affine, rtol=0, atol=1e-2):
        if codes[0] == codes[1]:
            return turned, []
        return turned, [f"label stored as {codes[0]}, image as {codes[1]}: label brought onto the image's axes"]
    sizes = nib.affines.voxel_sizes(label_affine), nib.affines.voxel_sizes(affine)
    if codes[0] == codes[1] and np.allclose(*sizes, rtol=0.01):
        off = float(np.abs(moved - affine).max())
        return turned, [
            f"label and image have the same voxels but headers that differ by {off:.3g}: the image's is taken"
        ]
    raise DataError(
        f"label must lie on its image's grid, got {codes[0]} with voxels {_mm(sizes[0])} mm beside {codes[1]} with "
        f"{_mm(sizes[1])} mm: which header is right?"
    )


def _mm(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def check_image(array: np.ndarray) -> None:
    """Raise :class:`DataError` for an image without voxels, with NaN or infinite voxels, or of one value."""
    if 0 in array.shape:
        raise DataError(f"image must have voxels, got shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"image must be finite, got {int((~np.isfinite(array)).sum())} NaN or infinite voxels")
    if array.min() == array.max():
        raise DataError(f"image must show something, got {array.flat[0]:g} in every voxel")


def resampled(
    array: np.ndarray, affine: np.ndarray, spacing: Sequence[float], label: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """An image on voxels of another size, with its orientation, linear; a label nearest.

    The corner of the field of view stays: voxel centers move by half a voxel's difference.
    """
    sitk = _sitk()
    image = to_sitk(array, affine)
    old = np.array(image.GetSpacing())
    new = np.array([float(s) for s in spacing])
    if np.allclose(old, new, atol=1e-4):
        return array, affine
    size = [max(1, math.floor(n * o / s + 0.5)) for n, o, s in zip(image.GetSize(), old, new, strict=True)]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    origin = np.array(image.GetOrigin()) + direction @ ((new - old) / 2)
    method = sitk.sitkNearestNeighbor if label else sitk.sitkLinear
    fill = 0.0 if label else float(array.min())
    result = sitk.Resample(image, size, sitk.Transform(), method, origin.tolist(), new.tolist(),
                           image.GetDirection(), fill, image.GetPixelID())  # fmt: skip
    return from_sitk(result)


def cropped(array: np.ndarray, affine: np.ndarray, window: Sequence[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Part of a volume, with the affine of its first voxel."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*(float(w.start or 0) for w in window), 1.0])[:3]
    return array[tuple(window)], moved


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """``.nii.gz`` with the values as they are; the same input gives the same bytes."""
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    elif array.dtype in (np.int64, np.uint64):  # many readers have none
        array = array.astype(np.int32)
    image = nib.Nifti1Image(native(array), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)

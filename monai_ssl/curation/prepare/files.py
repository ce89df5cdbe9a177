"""Reading what data sets are distributed as, writing what training reads."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_ssl.data.formats.itk import from_sitk, to_sitk
from monai_ssl.data.reading import read_scan
from monai_ssl.errors import DataError


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

    Raises:
        DataError: when the file is missing, truncated, not readable, or holds several frames or channels.
    """
    scan = read_scan(path)
    array = scan.channel_first
    if array.shape[0] != 1:
        raise DataError(f"image must hold one volume, got {array.shape[0]} (frames or channels); split the file")
    if array.ndim != 4:
        raise DataError(f"image must have 3 axes, got shape {scan.spatial_shape}")
    if scan.affine is None:
        raise DataError("file must state its place in space, and its format has none: is it the right file?")
    return array[0], scan.affine


def _sitk() -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def read_dicom(folder: str | Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The largest DICOM series of a folder: voxels ``(X, Y, Z)`` in its unit (rescaled), affine to RAS, remarks.

    Raises:
        DataError: without a series, or when slices are missing or irregular.
    """
    from monai_ssl.dicom import read_series

    try:
        series = read_series(folder, largest=True, tolerance=0.02, fill=False)
    except DataError as error:  # manifests do not depend on where the download lies
        raise DataError(str(error).replace(str(Path(folder)), Path(folder).name)) from error
    return series.voxels, series.affine, series.warnings


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
        f"label must be on its image's grid, got {codes[0]} with voxels {_mm(sizes[0])} mm and {codes[1]} with "
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
    scan = from_sitk(result)
    assert scan.affine is not None
    return scan.voxels, scan.affine


def cropped(array: np.ndarray, affine: np.ndarray, window: Sequence[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Part of a volume, with the affine of its first voxel."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*(float(w.start or 0) for w in window), 1.0])[:3]
    return array[tuple(window)], moved

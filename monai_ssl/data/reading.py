"""Reading one file of voxels."""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_ssl.errors import DataError


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read one image file to the end, with its checksum, as MONAI's ``LoadImage`` would.

    Args:
        path: a NIfTI file, or anything that ``LoadImage`` reads.

    Returns:
        The voxels, channel first (C, X, Y[, Z]), and the affine (4, 4), None where the format has none.

    Raises:
        DataError: if the file is missing, empty, truncated, corrupt, of an unknown format, or has more than 4 axes.

    Example:
        >>> array, affine = read_volume("scan.nii.gz")  # doctest: +SKIP
    """
    file = Path(path)
    if not file.exists():
        raise DataError("file must exist, but there is none: check the path in the datalist")
    if file.is_file() and file.stat().st_size == 0:
        raise DataError("file must not be empty, got 0 bytes: copy or export it again")
    try:
        if file.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img")):
            return _read_nifti(file)
        return _read_other(file)
    except DataError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"file must be complete, but it is truncated or corrupt ({_line(error)}): copy it again"
        ) from error
    except PermissionError as error:
        raise DataError("file must be readable, but access is denied: check its permissions") from error
    except Exception as error:  # readers raise whatever they like
        text = _line(error)
        if ("Expected" in text and "bytes" in text) or "buffer is" in text or "unpack requires" in text:
            raise DataError(f"file must be complete, but it is truncated ({text}): copy it again") from error
        raise DataError(
            f"file must be an image that MONAI reads, got: {text}; convert it to NIfTI (.nii.gz)"
        ) from error


def _line(error: BaseException, limit: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _read_nifti(file: Path) -> tuple[np.ndarray, np.ndarray]:
    if file.name.lower().endswith(".nii.gz"):
        with open(file, "rb") as stream:
            if stream.read(2) != b"\x1f\x8b":
                raise DataError(
                    "file must be gzip-compressed as .nii.gz says, got other bytes: rename or export it again"
                )
        # nibabel stops at the last voxel and never sees the checksum behind it
        with gzip.open(file) as stream:
            content = stream.read()
        kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else nib.Nifti1Image
        try:
            image: Any = kind.from_bytes(content)
        except nib.filebasedimages.ImageFileError as error:
            raise DataError(f"file must be NIfTI as its name says, got: {_line(error)}; export it again") from error
    else:
        image = nib.load(file)
    shape = image.shape
    if len(shape) > 4:
        raise DataError(f"image must have at most 4 axes (x, y, z, channel), got shape {shape}: split it into files")
    array = np.asarray(image.dataobj)
    if array.dtype.fields or array.dtype.kind not in "biuf":
        raise DataError(f"image must hold real numbers, got {array.dtype}: export gray values, one file per channel")
    affine = np.asarray(image.affine, dtype=np.float64)
    return (np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]), affine


def _read_other(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    from monai.transforms import LoadImage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = LoadImage(image_only=True, dtype=None, ensure_channel_first=True)(str(file))
        except RuntimeError as error:
            reason = "no installed reader takes it" if "cannot find a suitable reader" in str(error) else _line(error)
            raise DataError(
                f"file must be an image that MONAI reads, but {reason}: is it complete? Else convert it to NIfTI"
            ) from error
    # images such as PNG state no place in space
    stated = file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy", ".npz")
    affine = np.asarray(image.affine, dtype=np.float64) if stated else None
    return np.asarray(image.cpu().numpy()), affine


def spacing_of(affine: Any, dims: int) -> list[float]:
    """Voxel size in mm from an affine, one entry per axis."""
    from nibabel.affines import voxel_sizes

    return [float(s) for s in voxel_sizes(affine)[:dims]]


def load_original(path: Any) -> Any:
    """First channel of an image file as stored, array ``(*spatial)``."""
    from monai.transforms import LoadImage

    return LoadImage(image_only=True, ensure_channel_first=True)(path)[0].numpy()

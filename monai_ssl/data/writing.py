"""Writing volumes and pictures: the one NIfTI writer."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np

from monai_ssl.files import write_bytes


def write_nifti(path: str | Path, array: np.ndarray, affine: np.ndarray, compression: int = 1) -> None:
    """Write a volume with its place in space, atomically; the same input gives the same bytes.

    Args:
        path: ``.nii.gz``, or ``.nii`` for no compression.
        array: ``(X, Y[, Z][, C])``; number types that many readers do not know become the next one that they do.
        affine: (4, 4) from indices to RAS millimeters.
        compression: 1 (fast) to 9 (small).

    Example:
        >>> write_nifti("scan.nii.gz", np.zeros((4, 4, 4), np.int16), np.eye(4))  # doctest: +SKIP
    """
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    elif array.dtype in (np.int64, np.uint64):
        array = array.astype(np.int32)
    image = nib.Nifti1Image(array.astype(array.dtype.newbyteorder("="), copy=False), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    content = image.to_bytes()
    if str(path).lower().endswith(".gz"):
        buffer = io.BytesIO()
        # neither file name nor time in the header of the compressed file
        with gzip.GzipFile(filename="", mode="wb", compresslevel=compression, fileobj=buffer, mtime=0) as stream:
            stream.write(content)
        content = buffer.getvalue()
    write_bytes(path, content)


def write_picture(path: str | Path, labels: np.ndarray) -> None:
    """Write a label map as a gray picture, atomically and without loss; the gray values are the classes.

    Args:
        path: ``.png``, ``.bmp``, ``.tif`` or ``.tiff``.
        labels: ``(X, Y)`` uint8; columns of the picture are x, rows are y, as it is read.

    Example:
        >>> write_picture("scan_seg.png", np.zeros((20, 30), np.uint8))  # doctest: +SKIP
    """
    from PIL import Image

    buffer = io.BytesIO()
    kind = {".png": "PNG", ".bmp": "BMP"}.get(Path(path).suffix.lower(), "TIFF")
    picture = Image.fromarray(np.ascontiguousarray(labels.reshape(labels.shape[:2]).T))
    picture.save(buffer, kind, **({"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}))
    write_bytes(path, buffer.getvalue())

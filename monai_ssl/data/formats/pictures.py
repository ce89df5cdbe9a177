"""PNG, JPEG, BMP and TIFF, as a viewer shows them: columns are x, rows are y."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.formats.promise import check_promise
from monai_ssl.data.scan import Scan
from monai_ssl.errors import DataError

# of these Pillow gives every value
MODES = ("1", "L", "LA", "P", "I", "I;16", "I;16B", "I;16L", "I;16N", "F", "RGB", "RGBA")
ORIENTATION = 0x0112
# gray values of fewer than 8 bits are spread over 0 to 255
SPREAD = {"L;2": 85, "L;4": 17}


def shape_of(file: Path) -> tuple[int, ...]:
    """Columns and rows."""
    from PIL import Image

    with Image.open(file) as picture:
        return picture.size


def read(file: Path, label: bool = False) -> Scan:
    """Values ``(columns, rows[, channels])``, turned as a note of the camera (EXIF) says.

    Args:
        file: the picture.
        label: values of a palette are classes, else the colors that they stand for.

    Raises:
        DataError: for several pages and for colors that would lose something.
    """
    from PIL import Image

    with Image.open(file) as picture:
        if (pages := getattr(picture, "n_frames", 1)) > 1:
            raise DataError(f"picture must have one page, got {pages}: write the volume as NIfTI (.nii.gz)")
        if picture.mode not in MODES:
            raise DataError(f"picture must be gray, RGB or RGBA, got {picture.mode}: convert it")
        # 8 is an upper bound for one value
        check_promise((*picture.size, len(picture.getbands())), 8 if picture.mode in ("I", "F") else 2)
        exact = _lossless(file, picture)
        raw = _raw_mode(picture)
        picture.load()
        array = _values(picture, label, raw) if exact is None else exact
        turn = int(picture.getexif().get(ORIENTATION, 1) or 1)
    notes: tuple[str, ...] = ()
    if turn in TURNS:
        array, notes = TURNS[turn](array), (f"picture is turned as its EXIF orientation {turn} says",)
    # rows and columns -> x and y
    return Scan(np.swapaxes(array, 0, 1), None, -1 if array.ndim == 3 else None, notes)


# of (rows, columns[, channels]), as viewers do it
TURNS: dict[int, Any] = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: np.swapaxes(array, 0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: np.swapaxes(array[::-1, ::-1], 0, 1),
    8: lambda array: np.rot90(array),
}


def _values(picture: Any, label: bool, raw: str) -> np.ndarray:
    if picture.mode == "P" and not label:
        palette = np.asarray(picture.convert("RGB"))
        gray = (palette == palette[..., :1]).all()
        return palette[..., 0] if gray else palette
    array = np.array(picture)  # PyTorch wants to write
    if label and raw in SPREAD:
        array = array // SPREAD[raw]
    return array


def _raw_mode(picture: Any) -> str:
    """How the values are stored; empty where the format does not say."""
    tiles = getattr(picture, "tile", None) or []
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _lossless(file: Path, picture: Any) -> np.ndarray | None:
    """The values where Pillow would change some (colors of 16 bits, signed bytes): by ITK, or refused."""
    bands = len(picture.getbands())
    bits, signed, whole = 8, False, True
    if picture.format == "TIFF":
        tags = picture.tag_v2
        bits = max(tags.get(258, (1,)))
        signed = 2 in tags.get(339, (1,))
        # tiles and planes: ITK reads them wrongly
        whole = 322 not in tags and tags.get(284, 1) == 1
        unsigned = bits == 32 and picture.mode == "I" and not signed
        changed = (bands > 1 and bits > 8) or (bits == 8 and signed) or unsigned
    else:
        changed = bands > 1 and ";16" in _raw_mode(picture)
        bits = 16
    if not changed:
        return None
    array = None
    if whole and bands != 2:
        import SimpleITK as sitk  # noqa: N813

        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    expected = picture.size[::-1] if bands == 1 else (*picture.size[::-1], bands)
    if array is None or array.shape != expected or array.dtype.itemsize * 8 != bits:
        raise DataError(
            f"picture must be stored plainly where its values have {bits} bits, got tiles, planes or transparency: "
            "write it as PNG or as plain TIFF"
        )
    return np.asarray(array)

"""NIfTI-1, NIfTI-2 and Analyze, packed or not, in either byte order; headers by nibabel."""

from __future__ import annotations

import gzip
import logging
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.batteryrunners import BatteryRunner
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from monai_ssl.data.formats.promise import check_promise
from monai_ssl.data.scan import AFFINE_RULE, Scan, valid_affine
from monai_ssl.errors import DataError, without_quotes

GZIP = b"\x1f\x8b"
BLOCK = 1 << 24
# to millimeters, by the code in the header; 0 says nothing
UNITS = {1: ("meters", 1000.0), 3: ("micrometers", 0.001)}


def shape_of(file: Path) -> tuple[int, ...]:
    """Shape from the header, with channels."""
    with ExitStack() as stack:
        header, _, _, _ = _open(file, stack)
        return _shape(header)[0]


def read(file: Path, label: bool = False) -> Scan:
    """Voxels, scaled as the header says, read to the end of the file with its checksum.

    Raises:
        DataError: for a header that is none, promises more than there is or has too many axes.
    """
    with ExitStack() as stack:
        header, stream, notes, (stored, packed) = _open(file, stack)
        shape, stored_shape = _shape(header)
        dtype, offset = header.get_data_dtype(), _offset(header)
        if dtype.fields or dtype.kind not in "biuf":
            raise DataError(f"image must hold real numbers, got {dtype}: export gray values, one file per channel")
        promised = check_promise(stored_shape, dtype.itemsize, stored if packed else stored - offset, packed)
        content = _voxels(stream, offset, promised)
    try:
        if "scl_slope" in header.keys() and np.isinf(header["scl_slope"]):  # noqa: SIM118  # no scale, says nibabel
            raise HeaderDataError(f"slope {header['scl_slope']}")
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(
            f"header must state a finite scale of its values, got {without_quotes(error)}: export it again"
        ) from error
    array = np.frombuffer(content, dtype).reshape(stored_shape, order="F").reshape(shape, order="F")
    array = apply_read_scaling(array, np.float64(1 if slope is None else slope), np.float64(inter or 0))
    affine = _affine(header, shape, notes, file)
    return Scan(array, affine, -1 if len(shape) == 4 else None, tuple(notes))


# ----------------------------------------------------------------------------------------------------------- the file


def _open(file: Path, stack: ExitStack) -> tuple[Any, BinaryIO, list[str], tuple[int, bool]]:
    """Header, the voxels' stream from the file's beginning, notes, bytes of their file and whether it is packed."""
    voxels = file
    if file.name.lower().endswith((".hdr", ".img")):
        file, voxels = _pair(file)
    with open(file, "rb") as plain:
        if file.name.lower().endswith(".gz") and plain.read(2) != GZIP:
            raise DataError("file must be gzip-compressed as .nii.gz says, got other bytes: rename or export it again")
    notes: list[str] = []
    stream = _stream(voxels, stack)
    block = (stream if voxels == file else _stream(file, stack)).read(nib.Nifti2Header.sizeof_hdr)
    header = _header(block, file, notes)
    stream.seek(0)
    return header, stream, notes, (voxels.stat().st_size, voxels.name.lower().endswith(".gz"))


def _stream(file: Path, stack: ExitStack) -> Any:
    return stack.enter_context(gzip.open(file) if file.name.lower().endswith(".gz") else open(file, "rb"))


def _pair(file: Path) -> tuple[Path, Path]:
    """Header and voxels of ``.hdr`` and ``.img``, whichever was named, in small or capital letters."""
    found: dict[str, Path] = {}
    for suffix in (".hdr", ".img", ".img.gz"):
        for name in (file.stem + suffix, file.stem + suffix.upper()):
            if (other := file.with_name(name)).is_file():
                found.setdefault(suffix, other)
    if ".hdr" not in found:
        raise DataError(f"file must have its header beside it, got no {file.stem}.hdr: copy both files")
    voxels = found.get(".img") or found.get(".img.gz")
    if voxels is None:
        raise DataError(f"file must have its voxels beside it, got no {file.stem}.img: copy both files")
    return found[".hdr"], voxels


def _voxels(stream: Any, offset: int, size: int) -> bytearray:
    """``size`` bytes from ``offset``; the rest is read, too, since the checksum comes last."""
    left = offset
    while left > 0:
        left -= len(_some(stream, min(left, BLOCK)))
    content = bytearray(size)
    view, at = memoryview(content), 0
    while at < size:
        block = _some(stream, min(size - at, BLOCK))
        view[at : at + len(block)] = block
        at += len(block)
    if isinstance(stream, gzip.GzipFile):
        while stream.read(BLOCK):
            pass
    return content


def _some(stream: Any, size: int) -> bytes:
    block: bytes = stream.read(size)
    if not block:
        raise EOFError("the voxels end early")
    return block


# --------------------------------------------------------------------------------------------------------- the header


def _header(block: bytes, file: Path, notes: list[str]) -> Any:
    """The header, with what nibabel knows to mend in it noted."""
    name = "Analyze or NIfTI" if file.suffix.lower() == ".hdr" else "NIfTI"
    if len(block) < nib.Nifti1Header.sizeof_hdr:
        raise DataError(f"file must be {name} as its name says, got {len(block)} bytes: copy or export it again")
    second = block[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
    kind: Any = nib.Nifti2Header if second else nib.Nifti1Header
    if not second and block[344:347] not in (b"n+1", b"ni1"):
        if file.suffix.lower() != ".hdr":
            raise DataError(f"file must be {name} as its name says, got other bytes: export it again")
        try:
            return _analyze(file).header
        except Exception as error:
            raise DataError(
                f"file must be {name} as its name says, got: {without_quotes(error)}; export it again"
            ) from error
    try:
        header = kind(block[: kind.sizeof_hdr], check=False)
        header, reports = BatteryRunner(kind._get_checks()).check_fix(header)
    except Exception as error:
        raise DataError(
            f"file must be {name} as its name says, got: {without_quotes(error)}; export it again"
        ) from error
    for report in reports:
        if report.problem_level >= 40:
            raise DataError(
                f"file must be {name} as its name says, got: {without_quotes(report.problem_msg)}; export it again"
            )
        if report.problem_level >= 30 and "pixdim[1,2,3]" in report.problem_msg:
            dims = max(int(header["dim"][0]), 1)
            if dims > 2 or "positive" in report.problem_msg:  # pictures often leave the third one out
                fixed = "1 mm is taken" if "zero" in report.problem_msg else "the absolute value is taken"
                notes.append(f"voxel sizes in the header must be positive, got others: {fixed}; is it right?")
    return header


def _shape(header: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes ``(X, Y[, Z][, C])``, and those that the header states: ITK puts channels behind an axis for time."""
    try:
        stored = tuple(int(side) for side in header.get_data_shape())
    except Exception as error:
        raise DataError(f"header must state the axes, got: {without_quotes(error)}; export it again") from error
    shape = stored
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and shape[3] == 1:
        shape = (*shape[:3], shape[4])
    if len(shape) > 4:
        raise DataError(f"image must have at most 4 axes (x, y, z, channel), got shape {shape}: split it into files")
    if len(shape) == 1:
        shape = (*shape, 1)
    return shape, stored


def _offset(header: Any) -> int:
    try:
        offset = int(header.get_data_offset())
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"header must say where the voxels begin, got: {without_quotes(error)}; export it again"
        ) from error
    if offset < 0:
        raise DataError(f"header must say where the voxels begin, got {offset}: export it again")
    return offset


@np.errstate(all="ignore")
def _affine(header: Any, shape: tuple[int, ...], notes: list[str], file: Path) -> np.ndarray:
    """The sform's affine or the qform's, as MONAI chooses, in millimeters."""
    if not isinstance(header, nib.Nifti1Header):  # Analyze: SPM keeps the affine in a .mat file beside it
        affine = np.array(_analyze(_pair(file)[0]).affine, dtype=np.float64)
        if not valid_affine(affine):
            raise DataError(AFFINE_RULE)
        return affine
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    except Exception as error:
        raise DataError(AFFINE_RULE) from error
    if header["sform_code"] != 0 and header["qform_code"] != 0:
        affine = _chosen(header, affine, shape, notes)
    if not valid_affine(affine):
        raise DataError(AFFINE_RULE)
    if (unit := int(header["xyzt_units"]) & 7) in UNITS:
        name, factor = UNITS[unit]
        affine[:3] *= factor
        notes.append(f"header states {name}: its affine is converted to millimeters")
    return affine


@np.errstate(all="ignore")  # numbers of damaged headers; what is not finite is refused
def _chosen(header: Any, affine: np.ndarray, shape: tuple[int, ...], notes: list[str]) -> np.ndarray:
    """The sform's affine, or the qform's where it alone agrees with the voxel sizes that the header states."""
    try:
        other = np.array(header.get_qform(), dtype=np.float64)
    except Exception:  # a quaternion that is none: the sform does not need it
        return affine
    dims = min(len(shape), 3)

    def agrees(matrix: np.ndarray) -> bool:
        sizes = np.sqrt((matrix[:dims, :dims] ** 2).sum(axis=0))
        return bool(np.allclose(header.get_zooms()[:dims], sizes))

    if not np.isfinite(other).all():
        return affine
    first, second = "sform", "qform"
    if not agrees(affine) and agrees(other):
        # as MONAI has it: through the number type of the header
        affine, other, first, second = other.astype(header["srow_x"].dtype).astype(np.float64), affine, second, first
    if not np.isfinite(other).all():
        if second == "sform":
            notes.append("sform in the header must be finite, got other numbers: the qform is taken; is it right?")
        return affine
    if not np.isfinite(affine).all():
        return affine
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
    corners[:, :3] *= [*(side - 1 for side in shape[:3]), 0, 0][:3]
    apart = np.linalg.norm(((affine - other) @ corners.T)[:3], axis=0).max()
    if apart > 0.5 * np.sqrt((affine[:3, :dims] ** 2).sum(axis=0)).min():
        notes.append(
            f"sform and qform in the header must agree, got places up to {apart:.3g} mm apart: the {first} is taken, "
            f"as by most readers, not the {second}; is it right?"
        )
    return affine


_ANALYZE = threading.Lock()


def _analyze(file: Path) -> Any:
    """An Analyze image by nibabel, which knows SPM's dialects; it would write what it mends to the console."""
    logger = logging.getLogger("nibabel.global")
    with _ANALYZE:
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            return nib.load(file)  # type: ignore[attr-defined]
        finally:
            logger.setLevel(level)

"""The one reader of image files: what ``check`` accepts is what training, evaluation and prediction get, to the voxel.

NIfTI and Analyze files are read by nibabel, MetaImage, NRRD and DICOM files by SimpleITK, PNG, JPEG, BMP and TIFF by
Pillow, arrays by NumPy. The reader keeps no state between files, so that threads can share it. MONAI's transforms reach
it through :class:`monai_ssl.data.monai_io.LoadImageScand`.
"""

from __future__ import annotations

import gzip
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.cases import IMAGE_SUFFIXES, split_suffix
from monai_ssl.errors import DataError, one_line

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# further from an integer than any rounding of a scale factor, nearer than any interpolation
LABEL_ROUNDING = 1e-3


@dataclass(frozen=True)
class Scan:
    """One image file as stored.

    Attributes:
        voxels: ``(X, Y[, Z])``, with channels where ``channel_axis`` says; real numbers in a type that PyTorch knows,
            in the machine's byte order.
        affine: ``(4, 4)`` from indices to RAS millimeters, None where the format states none (PNG and the like).
        channel_axis: -1 for channels last, as files store them; 0 for channels first; None without channels.
    """

    voxels: np.ndarray
    affine: np.ndarray | None
    channel_axis: int | None = None

    @property
    def channel_first(self) -> np.ndarray:
        """The voxels as ``(C, X, Y[, Z])``, a view."""
        return self.voxels[None] if self.channel_axis is None else np.moveaxis(self.voxels, self.channel_axis, 0)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return self.channel_first.shape[1:]


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read one image file to the end, with its checksum.

    Args:
        path: a file of one of the formats in :data:`monai_ssl.data.cases.IMAGE_SUFFIXES`, or what SimpleITK reads.

    Returns:
        The voxels, channel first (C, X, Y[, Z]), and the affine (4, 4), None where the format has none.

    Raises:
        DataError: if the file is missing, empty, truncated, corrupt, of an unknown format, has more than 4 axes, or
            does not hold real numbers.

    Example:
        >>> array, affine = read_volume("scan.nii.gz")  # doctest: +SKIP
    """
    scan = read_scan(path)
    return scan.channel_first, scan.affine


def read_label(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """:func:`read_volume` of a label: values that a scale factor of the file moved off an integer come back to it."""
    scan = rounded(read_scan(path))
    return scan.channel_first, scan.affine


def load_original(path: str | Path) -> np.ndarray:
    """First channel of an image file as stored, float32 ``(*spatial)``."""
    return np.asarray(read_scan(path).channel_first[0], dtype=np.float32)


def spacing_of(affine: Any, dims: int) -> list[float]:
    """Voxel size in mm from an affine, one entry per axis."""
    matrix = np.asarray(affine, dtype=float)
    return [float(size) for size in np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))[:dims]]


def rounded(scan: Scan) -> Scan:
    """The scan with integers where every value lies within rounding of one; any other scan as it is.

    Example:
        >>> rounded(Scan(np.array([[0.0, 0.99999994]]), None)).voxels
        array([[0., 1.]])
    """
    voxels = scan.voxels
    if voxels.dtype.kind != "f" or not np.isfinite(voxels).all():
        return scan
    whole = np.round(voxels)
    off = np.abs(voxels - whole).max(initial=0)
    return Scan(whole, scan.affine, scan.channel_axis) if 0 < off <= LABEL_ROUNDING else scan


def read_scan(path: str | Path) -> Scan:
    """:func:`read_volume` with the axes as stored; takes over what a :func:`handed_over` check has read already."""
    memory = _memory
    if memory is not None and (scan := memory.take(path)) is not None:
        return scan
    file = Path(path)
    if not file.exists():
        raise DataError("file must exist, but there is none: check the path in the datalist")
    if file.is_file() and file.stat().st_size == 0:
        raise DataError("file must not be empty, got 0 bytes: copy or export it again")
    try:
        scan = _format(file)(file)
    except DataError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"file must be complete, but it is truncated or corrupt ({one_line(error)}): copy it again"
        ) from error
    except PermissionError as error:
        raise DataError("file must be readable, but access is denied: check its permissions") from error
    except MemoryError:
        raise
    except Exception as error:  # readers raise whatever they like
        text = one_line(error)
        if ("Expected" in text and "bytes" in text) or "buffer is" in text or "unpack requires" in text:
            raise DataError(f"file must be complete, but it is truncated ({text}): copy it again") from error
        raise DataError(
            f"file must be an image of a known format ({', '.join(IMAGE_SUFFIXES[:5])}, ...), got: {text}; is it "
            "complete? Else convert it to NIfTI (.nii.gz)"
        ) from error
    if scan.voxels.ndim > 4:
        raise DataError(
            f"image must have at most 4 axes (x, y, z, channel), got shape {scan.voxels.shape}: split it into files"
        )
    return Scan(_real(scan.voxels), scan.affine, scan.channel_axis)


def read_channels(files: Sequence[str]) -> Scan:
    """Several files of one grid as the channels of one scan.

    Args:
        files: one file per channel (or per group of channels).

    Raises:
        DataError: for a file that cannot be read or is on another grid, naming it.
    """
    scans: list[Scan] = []
    for file in files:
        try:
            scan = read_scan(file)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        if scans and (problem := grid_difference(scan, scans[0], files[0])):
            raise DataError(f"{file}: {problem}")
        scans.append(scan)
    if len(scans) == 1:
        return scans[0]
    if all(scan.channel_axis is None for scan in scans):
        voxels = np.stack([scan.voxels for scan in scans])
    else:
        voxels = np.concatenate([scan.channel_first for scan in scans])
    return Scan(voxels, scans[0].affine, 0)


def grid_difference(scan: Scan, first: Scan, name: str) -> str:
    """Why a channel is not on the first one's grid; empty where it does."""
    if scan.spatial_shape != first.spatial_shape:
        text = f"channels must have one shape, got {scan.spatial_shape} and {first.spatial_shape} of {name}"
        return f"{text}: resample them to one grid"
    if not same_affine(scan.affine, first.affine):
        text = f"channels must be on one grid, got an affine that differs from {name}"
        return f"{text} ({affine_difference(scan.affine, first.affine)}): resample them to one grid"
    return ""


AFFINE_TOLERANCE = 1e-3


def same_affine(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Whether two affines agree within 1e-3; a format that states none agrees with every other."""
    if first is None or second is None:
        return True
    return bool(np.allclose(first, second, rtol=0, atol=AFFINE_TOLERANCE))


def affine_difference(first: np.ndarray | None, second: np.ndarray | None) -> str:
    assert first is not None
    assert second is not None
    return f"by up to {np.abs(first - second).max():.4g}"


# ---------------------------------------------------------------------------------------------------------- formats


def _format(file: Path) -> Callable[[Path], Scan]:
    suffix = (split_suffix(file.name)[1] or file.suffix).lower()
    if suffix in (".nii", ".nii.gz", ".hdr", ".img"):
        return _read_nifti
    if suffix in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"):
        return _read_picture
    if suffix in (".npy", ".npz"):
        return _read_array
    return _read_itk


def _real(array: np.ndarray) -> np.ndarray:
    """The voxels in a type that PyTorch knows, in the machine's byte order."""
    if array.dtype.fields or array.dtype.kind not in "biuf":
        raise DataError(f"image must hold real numbers, got {array.dtype}: export gray values, one file per channel")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    if array.dtype == np.uint64:
        return array.astype(np.int64 if array.size == 0 or array.max() < 2**63 else np.float64)
    return array


def _read_nifti(file: Path) -> Scan:
    import nibabel as nib

    if file.name.lower().endswith(".nii.gz"):
        with open(file, "rb") as stream:
            if stream.read(2) != b"\x1f\x8b":
                raise DataError(
                    "file must be gzip-compressed as .nii.gz says, got other bytes: rename or export it again"
                )
        # nibabel stops at the last voxel and never sees the checksum after it
        with gzip.open(file) as stream:
            content = stream.read()
        kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else nib.Nifti1Image
        try:
            image: Any = kind.from_bytes(content)
        except nib.filebasedimages.ImageFileError as error:
            raise DataError(f"file must be NIfTI as its name says, got: {one_line(error)}; export it again") from error
    else:
        image = nib.load(file)
    if len(image.shape) > 4:
        raise DataError(
            f"image must have at most 4 axes (x, y, z, channel), got shape {image.shape}: split it into files"
        )
    array = np.asarray(image.dataobj)
    return Scan(array, _nifti_affine(image), -1 if array.ndim == 4 else None)


def _nifti_affine(image: Any) -> np.ndarray:
    """The affine of a NIfTI file; the qform's, where it alone agrees with the voxel sizes that the header states."""
    if hasattr(image, "get_sform") and image.header["sform_code"] != 0 and image.header["qform_code"] != 0:
        dims = min(len(image.shape), 3)

        def agrees(affine: np.ndarray) -> bool:
            sizes = np.sqrt((affine[:dims, :dims] ** 2).sum(axis=0))
            return bool(np.allclose(image.header.get_zooms()[:dims], sizes))

        if not agrees(image.affine) and agrees(image.get_qform()):
            image.set_sform(image.get_qform())
    return np.array(image.affine, dtype=np.float64)


def _read_itk(file: Path) -> Scan:
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        # the last line of ITK's report says what is wrong, the others where in ITK it was found out
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(
            f"file must be an image of a known format ({', '.join(IMAGE_SUFFIXES[:5])}, ...), got: "
            f"{one_line(ValueError(lines[-1] if lines else 'nothing readable'))}; is it complete? Else convert it to "
            "NIfTI (.nii.gz)"
        ) from error
    return from_sitk(image)


def from_sitk(image: Any) -> Scan:
    """A SimpleITK image ``(x, y[, z][, t])`` with its place in space; vectors and frames become channels."""
    import SimpleITK as sitk  # noqa: N813

    dims, vector = image.GetDimension(), image.GetNumberOfComponentsPerPixel() > 1
    if dims == 4 and vector:
        raise DataError(f"image must have at most 4 axes (x, y, z, channel), got vectors on 4 axes {image.GetSize()}")
    stored = sitk.GetArrayFromImage(image)  # (z, y, x) or (z, y, x, component)
    axes = (*reversed(range(dims)), *([dims] if vector else []))
    array = np.ascontiguousarray(stored.transpose(axes))
    affine, space = np.eye(4), min(dims, 3)
    direction = np.array(image.GetDirection()).reshape(dims, dims)[:space, :space]
    affine[:space, :space] = direction * np.array(image.GetSpacing()[:space])
    affine[:space, 3] = image.GetOrigin()[:space]
    if vector and dims == 2:  # (x, y, c) would be taken for a volume
        array = array[:, :, None]
    return Scan(array, LPS_TO_RAS @ affine, -1 if vector or dims == 4 else None)


def _read_picture(file: Path) -> Scan:
    from PIL import Image

    with Image.open(file) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise DataError(f"picture must have one page, got {picture.n_frames}: write the volume as NIfTI (.nii.gz)")
        array = np.asarray(picture)
    # rows and columns -> x and y
    return Scan(np.swapaxes(array, 0, 1), None, -1 if array.ndim == 3 else None)


def _read_array(file: Path) -> Scan:
    content = np.load(file, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return Scan(content, None)
    with content:
        if len(content.files) != 1:
            raise DataError(f"file must hold one array, got {len(content.files)}: write one file per channel")
        return Scan(content[content.files[0]], None)


# ------------------------------------------------------------------------------------------ from one reader to the next


class ScanMemory:
    """Scans that a check has read and that the training's cache reads next, as far as they fit into a budget.

    Args:
        budget: bytes; None takes a quarter of the memory that is free.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = _free_memory() // 4 if budget is None else budget
        self._scans: dict[str, tuple[tuple[int, int], Scan]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._scans)

    def keep(self, path: str | Path, scan: Scan) -> None:
        """Remember a scan unless the budget is used up."""
        with self._lock:
            if scan.voxels.nbytes <= self.budget:
                self.budget -= scan.voxels.nbytes
                self._scans[os.path.realpath(path)] = (_stamp(path), scan)

    def take(self, path: str | Path) -> Scan | None:
        """The scan of a file, which is forgotten at once; None where there is none, or the file has changed."""
        if not self._scans:
            return None
        with self._lock:
            found = self._scans.pop(os.path.realpath(path), None)
            if found is None:
                return None
            self.budget += found[1].voxels.nbytes
        try:
            return found[1] if found[0] == _stamp(path) else None
        except OSError:
            return None


# what the reader of this process may take over; set for the time of one command
_memory: ScanMemory | None = None


@contextmanager
def handed_over(budget: int | None = None) -> Iterator[ScanMemory]:
    """A memory from which every reader of this process takes, once, what was kept in it.

    Args:
        budget: see :class:`ScanMemory`.

    Example:
        >>> with handed_over() as memory:  # doctest: +SKIP
        ...     problems = verify(cases, preset, memory=memory)
        ...     train()
    """
    global _memory
    former, _memory = _memory, ScanMemory(budget)
    try:
        yield _memory
    finally:
        _memory = former


def _stamp(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return 4 << 30

"""The one reader of image files: what ``check`` accepts is what training, evaluation and prediction get, to the voxel.

The formats are in :mod:`monai_ssl.data.formats`. The reader keeps no state between files, so that threads can share it.
MONAI's transforms reach it through :class:`monai_ssl.data.monai_io.LoadImageScand`.
"""

from __future__ import annotations

import gzip
import math
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monai_ssl.data.cases import IMAGE_SUFFIXES
from monai_ssl.data.formats import format_of
from monai_ssl.data.scan import AFFINE_RULE, Scan, grid_difference, valid_affine
from monai_ssl.errors import DataError, without_quotes
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.machine import available_memory

# further from an integer than any rounding of a scale factor, nearer than any interpolation
LABEL_ROUNDING = 1e-3


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


def read_label(
    path: str | Path, label_map: Mapping[int, int] | None = None, ignore_label: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """:func:`read_volume` of a label: values that a scale factor of the file moved off an integer come back to it.

    Args:
        path: the file.
        label_map: of the preset: stored value -> class.
        ignore_label: of the preset: stored value of voxels that become :data:`~monai_ssl.labels.IGNORE_LABEL`.
    """
    scan = with_classes(rounded(read_scan(path, label=True)), label_map, ignore_label)
    return scan.channel_first, scan.affine


@dataclass(frozen=True)
class LabelFile(os.PathLike[str]):
    """A label file and what its values mean.

    Attributes:
        path: the file.
        label_map, ignore_label: of the preset, see :func:`read_label`.
    """

    path: str
    label_map: Mapping[int, int] | None = None
    ignore_label: int | None = None

    def __fspath__(self) -> str:
        return self.path

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """:func:`read_label` of it."""
        return read_label(self.path, self.label_map, self.ignore_label)


def load_original(path: str | Path) -> np.ndarray:
    """First channel of an image file as stored, float32 ``(*spatial)``."""
    return np.asarray(read_scan(path).channel_first[0], dtype=np.float32)


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
    if not 0 < off <= LABEL_ROUNDING:
        return scan
    note = f"label values are within {off:.2g} of integers (a scale factor in the header moves them) and are rounded"
    return replace(scan, voxels=whole, notes=(*scan.notes, note))


def with_classes(scan: Scan, label_map: Mapping[int, int] | None, ignore_label: int | None = None) -> Scan:
    """A label with stored values replaced by classes; values that nothing names stay.

    Args:
        scan: of a label file.
        label_map: stored value -> class.
        ignore_label: stored value of voxels that become :data:`~monai_ssl.labels.IGNORE_LABEL`.

    Raises:
        DataError: when the file holds ``IGNORE_LABEL`` and another value is the one to be ignored.

    Example:
        >>> with_classes(Scan(np.array([[0, 255]], dtype=np.uint8), None), {255: 1}).voxels
        array([[0, 1]], dtype=uint8)
        >>> with_classes(Scan(np.array([[0, 1, -1]], dtype=np.int8), None), None, ignore_label=-1).voxels
        array([[  0,   1, 255]], dtype=int16)
    """
    targets = dict(label_map or {})
    if ignore_label is not None:
        targets[ignore_label] = IGNORE_LABEL
    if not targets:
        return scan
    stored = scan.voxels
    if ignore_label is not None and IGNORE_LABEL not in targets and (stored == IGNORE_LABEL).any():
        raise DataError(
            f"label values must be classes or the preset's ignore_label {ignore_label}, got {IGNORE_LABEL}, which "
            "stands for ignored voxels inside: name it in label_map, or as ignore_label"
        )
    voxels = stored.copy()
    for value, target in targets.items():
        where = stored == value
        if voxels.dtype.kind != "f" and where.any():  # signed bytes end at 127
            voxels = voxels.astype(np.promote_types(voxels.dtype, np.min_scalar_type(target)), copy=False)
        voxels[where] = target
    return replace(scan, voxels=voxels)


def read_scan(path: str | Path, label: bool = False) -> Scan:
    """:func:`read_volume` with the axes as stored; takes over what a :func:`handed_over` check has read already.

    Args:
        path: the file, or a folder that holds one DICOM series.
        label: it holds classes: a picture's palette is not looked up.
    """
    memory = _memory
    if memory is not None and (scan := memory.take(path)) is not None:
        return scan
    file = Path(path)
    if not file.exists():
        raise DataError("file must exist, but there is none: check the path in the datalist")
    if not file.is_file() and not file.is_dir():  # a pipe would be read for ever
        raise DataError("file must be a plain file, or the folder of a DICOM series, got something else")
    if file.is_file() and file.stat().st_size == 0:
        raise DataError("file must not be empty, got 0 bytes: copy or export it again")
    try:
        scan = format_of(file).read(file, label)
    except DataError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"file must be complete, but it is truncated or corrupt ({without_quotes(error)}): copy it again"
        ) from error
    except PermissionError as error:
        raise DataError("file must be readable, but access is denied: check its permissions") from error
    except MemoryError as error:
        raise DataError("image must fit into memory, but there is not enough: is its header right?") from error
    except Exception as error:  # readers raise whatever they like
        text = without_quotes(error)
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
    if scan.affine is not None and not valid_affine(scan.affine):
        raise DataError(AFFINE_RULE)
    return replace(scan, voxels=_real(scan.voxels))


def count_values(path: str | Path) -> int:
    """How many values the header of a file promises, without reading them; 0 where it does not tell."""
    file = Path(path)
    try:
        return math.prod(format_of(file).shape_of(file)) if file.is_file() else 0
    except Exception:  # not there, or broken: reading it says what is wrong
        return 0


def read_channels(files: Sequence[str], label: bool = False) -> Scan:
    """Several files of one grid as the channels of one scan.

    Args:
        files: one file per channel (or per group of channels).
        label: see :func:`read_scan`.

    Raises:
        DataError: for a file that cannot be read or is on another grid, naming it.
    """
    scans: list[Scan] = []
    for file in files:
        try:
            scan = read_scan(file, label)
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
    return Scan(voxels, scans[0].affine, 0, scans[0].notes)


def _real(array: np.ndarray) -> np.ndarray:
    """The voxels in a type that PyTorch knows, in the machine's byte order."""
    if array.dtype.fields or array.dtype.kind not in "biuf":
        kind = "several values per voxel" if array.dtype.fields else str(array.dtype)  # names of fields are the file's
        raise DataError(f"image must hold real numbers, got {kind}: export gray values, one file per channel")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    if array.dtype == np.uint64:
        return array.astype(np.int64 if array.size == 0 or array.max() < 2**63 else np.float64)
    return array


# ------------------------------------------------------------------------------------------ from one reader to the next


class ScanMemory:
    """Scans that a check has read and that the training's cache reads next, as far as they fit into a budget.

    Args:
        budget: bytes; None takes a quarter of the memory that is available.

    Attributes:
        held: bytes that are in it now.
    """

    def __init__(self, budget: float | None = None) -> None:
        self.budget = available_memory() // 4 if budget is None else budget
        self.held = 0
        self._scans: dict[str, tuple[tuple[int, int], Scan]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._scans)

    def keep(self, path: str | Path, scan: Scan) -> None:
        """Remember a scan unless the budget is used up."""
        with self._lock:
            if scan.voxels.nbytes <= self.budget:
                self.budget -= scan.voxels.nbytes
                self.held += scan.voxels.nbytes
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
            self.held -= found[1].voxels.nbytes
        try:
            return found[1] if found[0] == _stamp(path) else None
        except OSError:
            return None


# what the reader of this process may take over; set for the time of one command
_memory: ScanMemory | None = None


@contextmanager
def handed_over(budget: float | None = None) -> Iterator[ScanMemory]:
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


def held_bytes() -> int:
    """Bytes of memory that scans take which were read and not taken over yet."""
    return 0 if _memory is None else _memory.held

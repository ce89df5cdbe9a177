"""MetaImage, NRRD, single DICOM files and whatever else SimpleITK knows."""

from __future__ import annotations

import locale
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.cases import IMAGE_SUFFIXES
from monai_ssl.data.formats.promise import check_promise
from monai_ssl.data.scan import LPS_TO_RAS, Scan
from monai_ssl.errors import DataError, without_quotes

HEADER_LIMIT = 1 << 20
BLOCK = 1 << 24
META_TYPES = {"UCHAR": 1, "CHAR": 1, "USHORT": 2, "SHORT": 2, "UINT": 4, "INT": 4, "ULONG": 4, "LONG": 4,
              "ULONG_LONG": 8, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}  # fmt: skip
NRRD_TYPES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t",
        "ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t",
        "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double"),
}  # fmt: skip
READERS = {".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO"}
MONOCHROME1 = "MONOCHROME1"


@contextmanager
def _own_locale() -> Iterator[None]:
    """ITK's reader of .vtk leaves the whole process in the locale C, in which Python reads no UTF-8 by default."""
    former = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        if locale.setlocale(locale.LC_ALL) != former:
            locale.setlocale(locale.LC_ALL, former)


@_own_locale()
def shape_of(file: Path) -> tuple[int, ...]:
    """Shape from the header, with components last."""
    reader = _information(file)
    components = reader.GetNumberOfComponents()
    return (*reader.GetSize(), *([components] if components > 1 else []))


@_own_locale()
def read(file: Path, label: bool = False) -> Scan:
    """Voxels and place in space; vectors and frames become channels, a DICOM file of one slice has two axes.

    Raises:
        DataError: for a file that is no image, is not complete, or promises more than there is.
    """
    suffix = file.suffix.lower()
    if suffix in (".mha", ".mhd"):
        _check_metaimage(file)
    elif suffix in (".nrrd", ".nhdr"):
        _check_nrrd(file)
    information = _information(file)
    # at least one byte a value: what is smaller than the machine's memory may be tried
    check_promise((*information.GetSize(), information.GetNumberOfComponents()), 1)
    try:
        image = information.Execute()
    except RuntimeError as error:
        raise _refused(error) from error
    scan = from_sitk(image)
    if information.GetImageIO() == "GDCMImageIO" and scan.voxels.ndim == 3 and scan.voxels.shape[2] == 1:
        return _dicom_slice(scan, information)
    return scan


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


def to_sitk(array: np.ndarray, affine: np.ndarray, vector: bool = False) -> Any:
    """SimpleITK image of voxels ``(X, Y[, Z])``, with ``vector`` ``(X, Y[, Z], C)``; the inverse of :func:`from_sitk`.

    Example:
        >>> to_sitk(np.zeros((4, 3, 2), np.uint8), np.diag([1.0, 1, 5, 1])).GetSpacing()
        (1.0, 1.0, 5.0)
    """
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    dims = array.ndim - vector
    axes = (*reversed(range(dims)), *([dims] if vector else []))
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=vector)
    lps = LPS_TO_RAS @ affine
    spacing = np.sqrt((lps[:dims, :dims] ** 2).sum(axis=0))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in lps[:dims, 3]])
    image.SetDirection([float(d) for d in (lps[:dims, :dims] / spacing).flatten()])
    return image


def _dicom_slice(scan: Scan, information: Any) -> Scan:
    """One slice as a picture, bright where the scanner's screen is bright."""
    voxels, notes = scan.voxels[:, :, 0], scan.notes
    tag = "0028|0004"  # photometric interpretation
    if information.HasMetaDataKey(tag) and information.GetMetaData(tag).strip() == MONOCHROME1:
        voxels = voxels.max() - (voxels - voxels.min())
        notes = (*notes, f"image is {MONOCHROME1}, bright where others are dark: it is inverted")
    return Scan(voxels, scan.affine, scan.channel_axis, notes)


def _information(file: Path) -> Any:
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    if reader_name := READERS.get(file.suffix.lower()):  # ITK goes by names in small letters
        reader.SetImageIO(reader_name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _refused(error) from error
    return reader


def _refused(error: RuntimeError) -> DataError:
    # the last line of ITK's report says what is wrong, the others where in ITK it was found out
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"\(0x[0-9a-f]+\)", "", lines[-1] if lines else "nothing readable")
    return DataError(
        f"file must be an image of a known format ({', '.join(IMAGE_SUFFIXES[:5])}, ...), got: "
        f"{without_quotes(text)}; is it complete? Else convert it to NIfTI (.nii.gz)"
    )


# --------------------------------------------------- what ITK does not check: it takes memory first, and no checksum


def _check_metaimage(file: Path) -> None:
    """The voxels are there and, where packed, unpack: of damaged ones ITK gives whatever was unpacked so far."""
    fields, begin = _fields(file, "=", "elementdatafile")
    wrong = "dimsize"
    try:
        shape = [int(side) for side in fields[wrong].split()]
        wrong = "elementnumberofchannels"
        channels = int(fields.get(wrong, 1))
        wrong = "elementtype"
        itemsize = META_TYPES[fields[wrong].upper().removeprefix("MET_").removesuffix("_ARRAY")]
        wrong = "headersize"
        skipped = int(fields.get(wrong, 0))
        wrong = "elementdatafile"
        name = fields[wrong]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"file must be MetaImage as its name says, got a header with a wrong or without '{wrong}': export it again"
        ) from error
    packed = fields.get("compresseddata", "").lower().startswith("t")
    if fields.get("binarydata", "t").lower().startswith("f") or name.split()[:1] == ["LIST"] or "%" in name:
        check_promise((*shape, channels), itemsize)
        return
    data, begin = (file, begin) if name.lower() == "local" else (file.parent / name, 0)
    stored = _stored(data) - begin - max(skipped, 0)
    promised = check_promise((*shape, channels), itemsize, stored, packed)
    if packed:
        _check_packed(data, begin, promised)


def _check_nrrd(file: Path) -> None:
    """The voxels are there and, where packed, unpack with the right checksum, at which ITK does not look."""
    fields, begin = _fields(file, ":", "")
    try:
        shape = [int(side) for side in fields["sizes"].split()]
        kind = fields["type"].lower()
        itemsize = next(size for size, names in NRRD_TYPES.items() if kind in names)
        encoding = fields["encoding"].lower()
    except (KeyError, ValueError, StopIteration):
        return  # the reader says what is wrong with it
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.split()[:1] == ["LIST"] or "%" in name):
        check_promise(shape, itemsize)
        return
    data, begin = (file, begin) if name is None else (file.parent / name, 0)
    stored, packed = _stored(data) - begin, encoding in ("gz", "gzip")
    promised = check_promise(shape, itemsize, stored if packed or encoding == "raw" else None, packed)
    if packed and not fields.keys() & {"byte skip", "byteskip", "line skip", "lineskip"}:
        _check_packed(data, begin, promised)


def _fields(file: Path, sign: str, last: str) -> tuple[dict[str, str], int]:
    """Fields of a header in lower case and where it ends: after the field ``last``, or the first empty line."""
    fields: dict[str, str] = {}
    with open(file, "rb") as stream:
        while (line := stream.readline(HEADER_LIMIT)) and stream.tell() < HEADER_LIMIT:
            text = line.decode("utf-8", "surrogateescape").strip()
            if not last and not text:
                break
            key, found, value = text.partition(sign)
            if found and not text.startswith("#"):
                fields[key.strip().lower()] = value.strip().removeprefix("=").strip() if sign == ":" else value.strip()
            if last and key.strip().lower() == last:
                break
        return fields, stream.tell()


def _stored(data: Path) -> int:
    if not data.is_file():
        raise DataError(f"file must have its voxels beside it, got no {data.name}: copy both files")
    return data.stat().st_size


def _check_packed(data: Path, begin: int, promised: int) -> None:
    if (got := _unpacked(data, begin, promised)) != promised:
        raise DataError(
            f"file must be complete, but it is truncated or corrupt (its header promises {promised} bytes of voxels, "
            f"{got} could be unpacked): copy it again"
        )


def _unpacked(data: Path, begin: int, promised: int) -> int:
    """How many bytes unpack without a fault; more than were promised count as one more."""
    unpacker, count = zlib.decompressobj(wbits=47), 0
    with open(data, "rb") as stream:
        stream.seek(begin)
        while not unpacker.eof and count <= promised:
            block = unpacker.unconsumed_tail or stream.read(1 << 20)
            if not block:
                return min(count, promised - 1)
            count += len(unpacker.decompress(block, BLOCK))
    return min(count, promised + 1)

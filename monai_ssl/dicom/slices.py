"""One gray picture with a place in space: a file of a classic series, or a frame of an enhanced multi-frame object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_ssl.dicom.files import sop_class
from monai_ssl.dicom.values import integer, number, numbers, raw_values, silent, word
from monai_ssl.errors import DataError
from monai_ssl.machine import machine_memory

# enhanced MR, CT, PET and their legacy converted forms: each frame states its place
ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.130",
    "1.2.840.10008.5.1.4.1.1.128.1",
}
PLACED = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
PIXELS = {"BitsAllocated": 8, "BitsStored": 1, "PixelRepresentation": 0}


@dataclass
class Slice:
    """Where one picture lies, and how its stored values become a unit's.

    Attributes:
        dataset: the file.
        frame: its number in the file, from 0.
        place: names the file in messages.
        position: (3,), LPS millimeters of the first pixel's center.
        orientation: (6,), directions of a row and a column.
        spacing: (2,), millimeters between rows and between columns.
        shape: rows and columns.
        thickness: millimeters; None where it is not stated.
        slope, intercept: of the rescaling.
    """

    dataset: Any
    frame: int
    place: str
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, int]
    thickness: float | None
    slope: float
    intercept: float


def slices_of(datasets: Sequence[Any]) -> list[Slice]:
    """Every picture of a series.

    Raises:
        DataError: for color, for several frames without places, and for a header that lacks what a volume needs.
    """
    found: list[Slice] = []
    for dataset in datasets:
        place = dataset.monai_ssl_place
        frames = integer(dataset, "NumberOfFrames", place) or 1
        enhanced = sop_class(dataset) in ENHANCED
        if frames > 1 and not enhanced:
            raise DataError(
                "dicom: multi-frame images other than enhanced MR, CT and PET are not read; export the series with one "
                "image per slice"
            )
        if (integer(dataset, "SamplesPerPixel", place) or 1) != 1 or "PALETTE" in _photometric(dataset):
            raise DataError("dicom: images must be gray, got color; choose the original series")
        shape = (_required(dataset, "Rows", place), _required(dataset, "Columns", place))
        _check_memory(frames, shape)
        groups = _functional_groups(dataset, frames, place) if enhanced else [[dataset]]
        found += [_slice(dataset, frame, place, holders, shape) for frame, holders in enumerate(groups)]
    return found


def _check_memory(frames: int, shape: tuple[int, int]) -> None:
    """
    Raises:
        DataError: before memory is taken for more than the machine has.
    """
    needed, there = frames * shape[0] * shape[1] * 4, machine_memory()
    if needed > there:
        raise DataError(
            f"dicom: {frames} images of {shape[0]} x {shape[1]} need {needed / 1e9:.3g} GB, and this machine has "
            f"{there / 1e9:.3g} GB: is the header right?"
        )


def _photometric(dataset: Any) -> str:
    return word(dataset, "PhotometricInterpretation", "MONOCHROME2")


def _required(dataset: Any, keyword: str, place: str, least: int = 1) -> int:
    value = integer(dataset, keyword, place, least)
    if value is None:
        raise DataError(f"{place} has no {keyword}; export the series again")
    return value


def _functional_groups(dataset: Any, frames: int, place: str) -> Iterator[list[Any]]:
    """Per frame: the items in which its attributes may be, its own first."""
    own, shared = (_items(dataset, f"{name}FunctionalGroupsSequence") for name in ("PerFrame", "Shared"))
    if len(own) != frames:
        raise DataError(
            f"{place}: must describe each of its {frames} frames (PerFrameFunctionalGroupsSequence), got {len(own)}; "
            "export the series again"
        )
    for item in own:
        yield [item, *shared[:1], dataset]


def _items(dataset: Any, keyword: str) -> list[Any]:
    """Of a sequence; none where it is damaged or no sequence."""
    from pydicom.dataset import Dataset

    try:
        with silent():
            return [item for item in dataset.get(keyword) or [] if isinstance(item, Dataset)]
    except Exception:  # damaged sequences raise whatever they like
        return []


def _holder(holders: list[Any], keyword: str) -> Any:
    """The first item that holds the attribute, at its top or in its functional group; else the last."""
    for item in holders:
        if keyword in item:
            return item
        for inner in _items(item, GROUPS[keyword])[:1]:
            if keyword in inner:
                return inner
    return holders[-1]


def _slice(dataset: Any, frame: int, place: str, holders: list[Any], shape: tuple[int, int]) -> Slice:
    found = {}
    for keyword, count in PLACED.items():
        values = numbers(_holder(holders, keyword), keyword, place, count)
        if values is None:
            raise DataError(f"{place} has no {keyword}: its place in space is unknown")
        found[keyword] = np.array(values)
    if found["PixelSpacing"].min() < 0.001 or found["PixelSpacing"].max() > 1000:
        raise DataError(f"{place}: PixelSpacing must be millimeters from 0.001 to 1000; export the series again")
    if np.abs(found["ImagePositionPatient"]).max() > 1e6:
        raise DataError(f"{place}: ImagePositionPatient must be within a kilometer; export the series again")
    slope, intercept = (number(_holder(holders, key), key, place) for key in ("RescaleSlope", "RescaleIntercept"))
    return Slice(
        dataset,
        frame,
        place,
        found["ImagePositionPatient"],
        found["ImageOrientationPatient"],
        found["PixelSpacing"],
        shape,
        number(_holder(holders, "SliceThickness"), "SliceThickness", place),
        1.0 if slope is None else slope,
        intercept or 0.0,
    )


def pixels(slices: Sequence[Slice]) -> tuple[np.ndarray, list[str]]:
    """The pictures ``(slices, rows, columns)`` in the unit that the headers state, float32, and what was interpreted.

    Raises:
        DataError: when a file cannot be decoded or is truncated.
    """
    rows, columns = slices[0].shape
    _check_memory(len(slices), (rows, columns))
    out = np.empty((len(slices), rows, columns), dtype=np.float32)
    stored: dict[int, np.ndarray] = {}
    last = {id(item.dataset): k for k, item in enumerate(slices)}
    inverted = kept = lut = flat = 0
    for k, item in enumerate(slices):
        key = id(item.dataset)
        if key not in stored:
            stored[key] = _decode(item)
        values = stored[key][item.frame].astype(np.float64)
        if _photometric(item.dataset) == "MONOCHROME1":
            if _physical(item.dataset):
                kept += 1
            else:
                values = _inverted(values, item)
                inverted += 1
        lut += "ModalityLUTSequence" in item.dataset
        flat += item.slope == 0
        out[k] = values * (item.slope or 1.0) + item.intercept
        if last[key] == k:
            del stored[key]
    if not np.isfinite(out).all():
        raise DataError("dicom: gray values must be finite, rescaling makes them infinite; export the series again")
    notes = [f"MONOCHROME1 (white is low): the gray values of {inverted} images were inverted"] if inverted else []
    if kept:
        notes.append("MONOCHROME1 of values in Hounsfield units: taken as they are")
    if flat:
        notes.append(f"RescaleSlope of {flat} images is 0, which would make them empty: taken as 1")
    if lut:
        notes.append("the lookup table (ModalityLUTSequence) is not applied: gray values are as stored")
    return out, notes


def _physical(dataset: Any) -> bool:
    """Whether the numbers are a physical unit's, which a way of showing them does not change."""
    return word(dataset, "RescaleType") == "HU" or (word(dataset, "Modality") == "CT" and "RescaleSlope" in dataset)


def _inverted(values: np.ndarray, item: Slice) -> np.ndarray:
    """White for black within the stored range."""
    bits = integer(item.dataset, "BitsStored", item.place, 1) or 16
    signed = integer(item.dataset, "PixelRepresentation", item.place) == 1
    return (-1.0 if signed else 2.0**bits - 1) - values


def _decode(item: Slice) -> np.ndarray:
    """All frames of a file, ``(frames, rows, columns)`` as stored.

    pydicom gets a data set of the attributes that it needs and nothing else, checked before.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    source, place = item.dataset, item.place
    frames = integer(source, "NumberOfFrames", place) or 1
    clean = Dataset()
    for keyword, least in PIXELS.items():
        setattr(clean, keyword, _required(source, keyword, place, least))
    clean.HighBit = clean.BitsStored - 1
    clean.Rows, clean.Columns = item.shape
    clean.SamplesPerPixel, clean.PhotometricInterpretation, clean.NumberOfFrames = 1, "MONOCHROME2", str(frames)
    clean.file_meta = FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = UID(transfer_syntax(source, place))
    if clean.BitsAllocated not in (8, 16, 32) or not 0 < clean.BitsStored <= clean.BitsAllocated:
        raise DataError(f"{place}: BitsAllocated must be 8, 16 or 32, and BitsStored not more; export the series again")
    if (integer(source, "HighBit", place) or clean.HighBit) != clean.HighBit:
        raise DataError(f"{place}: HighBit must be BitsStored - 1, as DICOM wants it; export the series again")
    content = source.get_item("PixelData").value
    if not clean.file_meta.TransferSyntaxUID.is_compressed:
        if _packed(source):
            raise DataError(f"{place}: PixelData is packed, but its transfer syntax says not; export the series again")
        if len(content) < item.shape[0] * item.shape[1] * frames * clean.BitsAllocated // 8:
            raise DataError(f"{place} is truncated; export the series again")
    elif not _packed(source):
        raise DataError(f"{place}: PixelData must be packed, as its transfer syntax says; export the series again")
    clean.add_new("PixelData", "OW" if clean.BitsAllocated > 8 else "OB", content)
    clean["PixelData"].is_undefined_length = clean.file_meta.TransferSyntaxUID.is_compressed
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # where the frames of a large file begin
        table = source.get_item(keyword)
        if table is not None and isinstance(table.value, bytes):
            clean.add_new(keyword, "OV", table.value)
    try:
        with silent():
            clean.set_original_encoding(*_encoding(clean.file_meta.TransferSyntaxUID))
            stored = np.asarray(clean.pixel_array)
    except Exception as error:  # the decoder's message may quote attributes
        raise DataError(
            f"{place} cannot be decoded ({type(error).__name__}, {_syntax_name(clean)}); is the extra complete (pip "
            "install 'monai_ssl[dicom]')? Otherwise export the series again, uncompressed"
        ) from None
    stored = stored.reshape((1, *stored.shape)) if frames == 1 and stored.ndim == 2 else stored
    if stored.shape != (frames, *item.shape):
        raise DataError(f"{place} must hold {frames} gray images of {item.shape}, got shape {stored.shape}")
    return stored


def _packed(dataset: Any) -> bool:
    """Whether the pixels are fragments of a compression, whatever the transfer syntax says."""
    element = dataset.get_item("PixelData")
    undefined = getattr(element, "is_undefined_length", getattr(element, "length", 0) == 0xFFFFFFFF)
    return bool(undefined) and element.value.startswith(b"\xfe\xff\x00\xe0")


def _encoding(syntax: Any) -> tuple[bool, bool]:
    return bool(syntax.is_implicit_VR), bool(syntax.is_little_endian)


def _syntax_name(dataset: Any) -> str:
    name = str(dataset.file_meta.TransferSyntaxUID.name)
    return name if name[:1].isalpha() else "transfer syntax unknown"


def transfer_syntax(dataset: Any, place: str) -> str:
    """As stated; where it is missing, by how the data set was written.

    Raises:
        DataError: for an unknown one, and when packed pixels do not say how they are packed.
    """
    from pydicom import uid

    stated = raw_values(dataset.file_meta, "TransferSyntaxUID") if getattr(dataset, "file_meta", None) else None
    syntax = uid.UID(str(stated[0]).strip(" \0")) if stated else None
    if syntax is None:
        if _packed(dataset):
            raise DataError(f"{place} has no TransferSyntaxUID: how its pixels are packed is unknown; export it again")
        implicit, little = dataset.original_encoding
        return str(
            uid.ImplicitVRLittleEndian
            if implicit
            else uid.ExplicitVRLittleEndian
            if little
            else uid.ExplicitVRBigEndian
        )
    if not syntax.is_transfer_syntax:
        raise DataError(f"{place}: TransferSyntaxUID must be one of DICOM's; export the series again")
    return str(uid.ExplicitVRLittleEndian if syntax == uid.DeflatedExplicitVRLittleEndian else syntax)

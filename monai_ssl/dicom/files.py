"""Which files of a folder are images, and which of them are one series."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_ssl.dicom.values import integer, plain, raw_values, silent, uid, word
from monai_ssl.errors import DataError, plural
from monai_ssl.files import files_below

DICOMDIR = "1.2.840.10008.1.3.10"
DICOM_ENDINGS = {".dcm", ".dicom", ".dic", ".ima"}
# with which a bare data set begins: meta information, or identification
GROUPS = (0x0002, 0x0008)
STORAGE = "1.2.840.10008.5.1.4."
# objects that hang on images: presentation states, waveforms, registrations, segmentations, reports, plans, documents
NO_IMAGES = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.(1\.1\.(9|11|30|66|67|68|88|104|481)(\.\d+)*|34(\.\d+)*|4[35]\..*)")
SHOWN = 12
CHECKED_FOR_COPIES = ("PixelData", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
                      "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation")  # fmt: skip


def read_headers(root: Path) -> tuple[list[Any], list[str]]:
    """Headers (without pixels) of all images below a folder, and what was ignored.

    Raises:
        DataError: for damaged and empty files, or when there is no image.
    """
    found: list[Any] = []
    foreign = empty = 0
    files = sorted(files_below(root))
    for number, path in enumerate(files, 1):
        place = f"dicom: file {number} of {len(files)} (in the order of their names)"
        if not path.stat().st_size:
            if path.suffix.lower() in DICOM_ENDINGS:
                raise DataError(f"{place} is empty (0 bytes); export the series again")
            empty += 1
            continue
        dataset = _read(path, place, pixels=False)
        if dataset is None:
            foreign += 1
            continue
        found.append(dataset)
    kinds = {uid(dataset, "SeriesInstanceUID") for dataset in found if "Rows" in dataset}
    images = [dataset for dataset in found if "Rows" in dataset or uid(dataset, "SeriesInstanceUID") in kinds]
    foreign += len(found) - len(images)
    if not images:
        others = f"{foreign + empty} other files"
        raise DataError(f"dicom: {root} holds no DICOM image ({others}); give the folder of a series")
    notes = [f"{foreign} files that are not DICOM images were ignored"] if foreign else []
    if empty:
        notes.append(f"{plural(empty, 'file')} of 0 bytes ignored: is the copy complete?")
    return images, notes


def _read(path: Path, place: str, pixels: bool) -> Any | None:
    """One file; None where it is no image.

    Raises:
        DataError: when it is a damaged DICOM file.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    with silent():
        try:
            dataset: Any = pydicom.dcmread(path, stop_before_pixels=not pixels)
        except InvalidDicomError:
            dataset = _without_preamble(path, pixels)
            if dataset is None:
                return None
        except Exception as error:  # damaged files raise whatever they like
            raise DataError(f"{place} is damaged ({type(error).__name__}); export the series again") from None
    dataset.monai_ssl_place, dataset.monai_ssl_path = place, path  # plain attributes: pydicom does not write them
    kind = sop_class(dataset)
    return None if not kind or kind == DICOMDIR or NO_IMAGES.fullmatch(kind) else dataset


def _without_preamble(path: Path, pixels: bool) -> Any | None:
    """Old archives write the bare data set; everything else that is no DICOM comes here as well."""
    import pydicom

    with path.open("rb") as file:
        begin = file.read(2)
    if int.from_bytes(begin, "little") not in GROUPS and int.from_bytes(begin, "big") not in GROUPS:
        return None  # before a file of any size and kind is taken for a data set
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
        kind = str((raw_values(dataset, "SOPClassUID") or [""])[0])
    except Exception:  # any file at all
        return None
    return dataset if kind.startswith(STORAGE) else None


def sop_class(dataset: Any) -> str:
    """Of the data set or, where that has none, of the file's meta information."""
    meta = getattr(dataset, "file_meta", None)
    return uid(dataset, "SOPClassUID") or (_meta(meta, "MediaStorageSOPClassUID") if meta is not None else "")


def _meta(meta: Any, keyword: str) -> str:
    values = raw_values(meta, keyword)
    return str(values[0]).strip(" \0") if values else ""


def one_series(root: Path, headers: list[Any], largest: bool, wanted: str | None) -> tuple[list[Any], list[str]]:
    """The images of one series, and a note where it was chosen among several.

    Raises:
        DataError: for several series without a choice, listing them, and for a choice that is not there.
    """
    series: dict[str, list[Any]] = {}
    for header in headers:
        series.setdefault(uid(header, "SeriesInstanceUID"), []).append(header)
    if wanted is not None:
        if chosen := series.get(str(wanted).strip()):
            return chosen, []
        raise DataError(f"series_uid: {root} holds no such series; it holds {_listed(series)}")
    if "" in series:
        raise DataError(f"{series[''][0].monai_ssl_place} has no SeriesInstanceUID; export the series again")
    if len(series) == 1:
        return headers, []
    sizes = sorted(map(len, series.values()), reverse=True)
    if largest:
        note = f"{len(series)} DICOM series in one folder (of {', '.join(map(str, sizes))} images): the largest is used"
        return max(series.values(), key=len), [note]
    raise DataError(
        f"dicom: {root} holds {len(series)} series (of {' and '.join(map(str, sizes))} images); choose one with "
        f"--series_uid: {_listed(series)}"
    )


def _listed(series: dict[str, list[Any]]) -> str:
    """UID, modality, number of images and description of every series, the largest first."""
    lines = []
    for name, headers in sorted(series.items(), key=lambda item: (-len(item[1]), item[0])):
        count = sum(_frames(header) for header in headers)
        words = [plain(word(headers[0], "Modality", "no modality"), 16), f"{count} image{'s' * (count != 1)}"]
        if description := _description(headers[0]):
            words.append(f'"{description}"')
        lines.append(f"{name or '(without a UID)'} ({', '.join(words)})")
    rest = [f"{len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "; ".join(lines[:SHOWN] + rest)


def _frames(header: Any) -> int:
    try:
        return integer(header, "NumberOfFrames", "") or 1
    except DataError:
        return 1


def _description(header: Any) -> str:
    """What the operator called the series; pydicom decodes it by the header's character set."""
    try:
        with silent():
            return plain(str(header.get("SeriesDescription", "") or ""), 40)
    except Exception:  # a character set that nobody knows
        return ""


def read_pixels(root: Path, headers: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The data sets of one series with their pixels; identical copies of a file count once.

    Raises:
        DataError: for files without pixels, and for two different images of one name.
    """
    found: dict[str, Any] = {}
    copies = 0
    for header in headers:
        dataset = _read(header.monai_ssl_path, header.monai_ssl_place, pixels=True)
        if dataset is None:
            raise DataError(f"{header.monai_ssl_place} changed while it was read; run the same command again")
        content = dataset.get_item("PixelData")
        if content is None or not content.value:
            raise DataError(f"{header.monai_ssl_place} has no pixels, it is truncated; export the series again")
        name = uid(dataset, "SOPInstanceUID") or _meta(dataset.file_meta, "MediaStorageSOPInstanceUID")
        if not name:
            raise DataError(f"{header.monai_ssl_place} has no SOPInstanceUID; export the series again")
        dataset.monai_ssl_uid = name
        if name not in found:
            found[name] = dataset
        elif _same(dataset, found[name]):
            copies += 1
        else:
            raise DataError(
                f"dicom: {root} holds the same image twice (equal SOPInstanceUID) with different content; remove the "
                "wrong one"
            )
    notes = [f"identical copies of {plural(copies, 'file')} were dropped"] if copies else []
    return list(found.values()), notes


def _same(first: Any, second: Any) -> bool:
    from pydicom.datadict import tag_for_keyword

    def content(dataset: Any, keyword: str) -> Any:
        element = dataset.get_item(tag_for_keyword(keyword))
        return None if element is None else element.value

    return all(content(first, keyword) == content(second, keyword) for keyword in CHECKED_FOR_COPIES)

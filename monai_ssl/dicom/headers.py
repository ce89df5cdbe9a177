"""Clean headers of the slices, as objects that are derived from a series need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from monai_ssl.dicom.files import sop_class
from monai_ssl.dicom.patient import lossy, patient_and_study
from monai_ssl.dicom.slices import ENHANCED, Slice
from monai_ssl.dicom.values import integer, silent, uid, word
from monai_ssl.errors import DataError

UTF_8 = "ISO_IR 192"


def clean_headers(slices: Sequence[Slice], step: float) -> tuple[list[Any], list[str]]:
    """A header per slice (for an enhanced object: one, with its functional groups), and what was filled or blanked.

    Args:
        slices: of one series, in the order of their places.
        step: mm between two of them; fills a missing slice thickness.

    Raises:
        DataError: when no study is named, or a result could not refer to these images.
    """
    from pydicom.uid import generate_uid

    first = slices[0].dataset
    values, missing, blanked = patient_and_study(first)
    for item in slices[1:]:  # one bad file is enough to say it
        if item.dataset is not first:
            _, also_missing, also_blanked = patient_and_study(item.dataset)
            missing += [keyword for keyword in also_missing if keyword not in missing]
            blanked += [keyword for keyword in also_blanked if keyword not in blanked]
    series = uid(first, "SeriesInstanceUID")
    frame = uid(first, "FrameOfReferenceUID")
    number = _series_number(first)
    if number is None:
        missing.append("SeriesNumber")
    if any(item.thickness is None or item.thickness <= 0 for item in slices):
        missing.append("SliceThickness")
    notes = []
    if missing:
        notes.append(f"missing or empty attributes, taken as unknown: {', '.join(missing)}")
    if blanked:
        notes.append(f"attributes with a value that is not valid, left blank in the results: {', '.join(blanked)}")
    if not frame:
        notes.append("FrameOfReferenceUID is missing: the segmentation gets a new one")
        frame = str(generate_uid(entropy_srcs=["frame", series]))
    notes += _announced(first, len(slices))
    common = {
        "SpecificCharacterSet": UTF_8,
        **values,
        "SeriesInstanceUID": series,
        "FrameOfReferenceUID": frame,
        "SeriesNumber": number,
        "Modality": word(first, "Modality", "OT"),
        **lossy(first),
    }
    _check_class(first)
    if sop_class(first) in ENHANCED:
        if len({id(item.dataset) for item in slices}) > 1:
            raise DataError(
                "dicom: an enhanced series must be one file, got several: a segmentation cannot refer to them; export "
                "the series with one image per slice"
            )
        with silent():
            return [_enhanced(slices, common, step)], notes
    with silent():
        return [_classic(item, slices[0], common, step) for item in slices], notes


def _series_number(dataset: Any) -> int | None:
    try:
        return integer(dataset, "SeriesNumber", "")
    except DataError:  # a name in a number's place
        return None


def _announced(dataset: Any, count: int) -> list[str]:
    try:
        announced = integer(dataset, "ImagesInAcquisition", "") or 0
    except DataError:
        return []
    if announced <= count:
        return []
    return [f"the header announces {announced} images but {count} were found: outer slices may be missing"]


def _check_class(dataset: Any) -> None:
    from pydicom.uid import UID

    if "Image Storage" not in UID(sop_class(dataset)).name:  # objects are derived by the tables of the standard
        raise DataError(
            f"{dataset.monai_ssl_place}: SOPClassUID must be an image class of the DICOM standard; export the series "
            "again"
        )


def _identity(dataset: Any, common: dict[str, Any], first: Slice) -> Any:
    from pydicom.dataset import Dataset

    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = sop_class(dataset), dataset.monai_ssl_uid
    for keyword, value in common.items():
        setattr(header, keyword, value)
    header.Rows, header.Columns = first.shape
    return header


def _decimal(values: Any) -> list[str]:
    """Decimal strings have 16 characters at most."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in np.atleast_1d(values)]


def _thickness(item: Slice, step: float) -> str:
    return _decimal(item.thickness if item.thickness is not None and item.thickness > 0 else step)[0]


def _classic(item: Slice, first: Slice, common: dict[str, Any], step: float) -> Any:
    header = _identity(item.dataset, common, first)
    header.ImagePositionPatient = _decimal(item.position)
    header.ImageOrientationPatient, header.PixelSpacing = _decimal(first.orientation), _decimal(first.spacing)
    header.SliceThickness = _thickness(first, step)
    return header


def _enhanced(slices: Sequence[Slice], common: dict[str, Any], step: float) -> Any:
    """Frames in the order of the file, as a segmentation refers to them."""
    from pydicom.dataset import Dataset

    first = slices[0]
    header = _identity(first.dataset, common, first)
    header.NumberOfFrames = len(slices)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _decimal(first.spacing), _thickness(first, step)
    plane.ImageOrientationPatient = _decimal(first.orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    header.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for item in sorted(slices, key=lambda item: item.frame):
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = _decimal(item.position)
        group.PlanePositionSequence = [place]
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = groups
    return header

"""The part of the headers that derived objects take over: checked, each value valid or blank, none of them quoted.

Objects are made from a header with these attributes and nothing else: what else a file holds reaches no result.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from typing import Any

from monai_ssl.dicom.values import CODED, numbers, raw_values, silent, uid, word
from monai_ssl.errors import DataError

TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", re.ASCII)
AGE = re.compile(r"\d{3}[DWMY]", re.ASCII)


def _date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{8}", text, re.ASCII)) and bool(datetime.datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False


def _line(length: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= length and "\\" not in text and text.isprintable() and "\ufffd" not in text


def _name(text: str) -> bool:
    groups = text.split("=")
    return len(groups) <= 3 and all(_line(64)(group) and group.count("^") <= 4 for group in groups)


VALID: dict[str, Callable[[str], bool]] = {
    "PatientName": _name,
    "PatientID": _line(64),
    "IssuerOfPatientID": _line(64),
    "PatientBirthDate": _date,
    "PatientSex": lambda text: text in ("M", "F", "O"),
    "PatientAge": lambda text: bool(AGE.fullmatch(text)),
    "PatientIdentityRemoved": lambda text: text in ("YES", "NO"),
    "StudyID": _line(16),
    "StudyDate": _date,
    "StudyTime": lambda text: bool(TIME.fullmatch(text)),
    "AccessionNumber": _line(16),
    "ReferringPhysicianName": _name,
    "StudyDescription": _line(64),
}
# every object must have these, possibly empty
TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
# all files of a series must agree in these
ONE_OF = ("StudyInstanceUID", "FrameOfReferenceUID")
ONE_PATIENT = ("PatientID", "PatientName", "PatientBirthDate")


def check_one_patient(datasets: Sequence[Any]) -> None:
    """
    Raises:
        DataError: when the files are of several patients, studies or frames of reference.
    """
    for keyword in ONE_OF:
        if len({uid(dataset, keyword) for dataset in datasets}) > 1:
            raise DataError(
                f"dicom: the files of one series must agree in {keyword}, got several; export the series again"
            )
    for keyword in ONE_PATIENT:
        values = {"\\".join(map(str, raw_values(dataset, keyword) or [])).strip("^= ") for dataset in datasets}
        if keyword != "PatientID":  # an anonymizer may blank some
            values.discard("")
        if len(values) > 1:
            raise DataError(
                f"dicom: the files of one series must be of one patient, got {len(values)} values of {keyword}; export "
                "the series again"
            )


def text(dataset: Any, keyword: str) -> str | None:
    """A text as the header's character set decodes it; None where it cannot be had."""
    try:
        with silent():
            value = dataset.get(keyword)
            if value is None:
                return ""
            several = type(value).__name__ == "MultiValue" or isinstance(value, (list, tuple))
            return None if several else str(value).strip(" \0")
    except Exception:  # a character set that nobody knows, a wrong type
        return None


def patient_and_study(dataset: Any) -> tuple[dict[str, str], list[str], list[str]]:
    """Valid values by keyword, keywords that are missing, and keywords whose value was not valid and is left blank.

    Raises:
        DataError: when no study is named, or the patient's ID cannot be taken over: the result would be misfiled.
    """
    place = dataset.monai_ssl_place
    study = uid(dataset, "StudyInstanceUID")
    if not study:
        raise DataError(f"{place} has no StudyInstanceUID: results could not be filed; export the series again")
    values, missing, blanked = {"StudyInstanceUID": study}, [], []
    for keyword, valid in VALID.items():
        if keyword not in dataset:
            missing += [keyword] if keyword in TYPE_2 else []
            found: str | None = ""
        else:
            found = text(dataset, keyword)
        if found is None or (found and not valid(found)):
            if keyword == "PatientID":
                raise DataError(
                    f"{place}: PatientID must be one line of up to 64 characters: results could not be filed; export "
                    "the series again"
                )
            blanked.append(keyword)
            found = ""
        if found or keyword in TYPE_2:
            values[keyword] = found
    return values, missing, blanked


def lossy(dataset: Any) -> dict[str, Any]:
    """Whether pixels went through a lossy compression; derived objects must say so."""
    if word(dataset, "LossyImageCompression") != "01":
        return {}
    found: dict[str, Any] = {"LossyImageCompression": "01"}
    try:
        ratio = numbers(dataset, "LossyImageCompressionRatio", "")
    except DataError:
        ratio = None
    methods = [str(value).strip() for value in raw_values(dataset, "LossyImageCompressionMethod") or []]
    if ratio and methods and len(ratio) == len(methods) and all(CODED.fullmatch(method) for method in methods):
        found["LossyImageCompressionRatio"] = [f"{value:.6g}" for value in ratio]
        found["LossyImageCompressionMethod"] = methods
    return found

"""Values of DICOM headers, checked before anything computes with them or converts them.

pydicom converts a value when it is first asked for, and its message quotes what it could not convert. Here the bytes of
the file are looked at first: a decimal string is a number by the standard's own grammar or it is refused, by the
attribute's name and without its value.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from monai_ssl.errors import DataError

NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)
CODED = re.compile(r"[A-Z0-9 _]{1,16}", re.ASCII)
UID = re.compile(r"\d{1,64}(\.\d{1,64}){1,40}", re.ASCII)
# no size, place or unit is larger; what is overflows further on
LARGEST = 1e12
BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
TEXT = ("DS", "IS", "CS", "UI", "LO", "SH", "PN", "DA", "TM", "AS", "LT", "ST", "UC", "UR", "UT", "DT", "AE")


@contextmanager
def silent() -> Iterator[None]:
    """pydicom and highdicom quote values, names among them, in warnings and log records: none of them gets out."""
    names = ("pydicom", "highdicom", "pylibjpeg", "openjpeg", "libjpeg", "jpeg_ls")
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)


def require_packages() -> None:
    """
    Raises:
        DataError: without pydicom or highdicom.
    """
    import importlib.util

    for package in ("pydicom", "highdicom"):
        if importlib.util.find_spec(package) is None:
            raise DataError(f"{package} is not installed; pip install 'monai_ssl[dicom]'")


def raw_values(dataset: Any, keyword: str) -> list[Any] | None:
    """What an attribute holds, as texts or as numbers, without pydicom's conversion.

    Returns:
        None where the attribute is absent, or of a kind that holds neither texts nor numbers (a sequence).
    """
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement

    tag = tag_for_keyword(keyword)
    assert tag is not None
    element = dataset.get_item(tag)
    if element is None:
        return None
    if not isinstance(element, RawDataElement):
        value = element.value
        if value is None or (isinstance(value, str) and not value):
            return []
        found = list(value) if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]
        return [v if isinstance(v, (int, float)) and type(v) in (int, float) else str(v) for v in found]
    vr = str(element.VR) if element.VR and element.VR not in ("UN", "OB", "OW") else dictionary_VR(tag)
    content = element.value or b""
    if vr in TEXT:
        text = content.decode("latin-1").strip(" \0")  # one character per byte: different texts stay different
        return text.split("\\") if text else []
    if code := BINARY.get(vr[:2]):
        order = "<" if element.is_little_endian else ">"
        whole = len(content) // struct.calcsize(code)
        return list(struct.unpack(f"{order}{whole}{code}", content[: whole * struct.calcsize(code)]))
    return None


def numbers(dataset: Any, keyword: str, place: str, count: int | None = None) -> list[float] | None:
    """The numbers that an attribute holds; None where it is absent or empty.

    Args:
        dataset: a header.
        keyword: of the attribute.
        place: names the file in messages.
        count: how many there must be.

    Raises:
        DataError: for text that is no number, numbers out of any range, another count. Says how many, never which.
    """
    values = raw_values(dataset, keyword)
    if not values:
        if values is None and keyword in dataset:
            raise DataError(f"{place}: {keyword} must hold numbers; export the series again")
        return None
    found = []
    for value in values:
        if isinstance(value, str):
            text = value.strip(" \0")
            if len(text) > 64 or not NUMBER.fullmatch(text):
                raise DataError(f"{place}: {keyword} must hold numbers, got something else; export the series again")
            value = float(text)
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise DataError(f"{place}: {keyword} must hold finite numbers up to {LARGEST:g}; export the series again")
        found.append(float(value))
    if count is not None and len(found) != count:
        wanted = f"{count} number{'s' * (count != 1)}"
        raise DataError(f"{place}: {keyword} must hold {wanted}, got {len(found)}; export the series again")
    return found


def number(dataset: Any, keyword: str, place: str) -> float | None:
    """The one number of an attribute, see :func:`numbers`."""
    found = numbers(dataset, keyword, place, 1)
    return None if found is None else found[0]


def integer(dataset: Any, keyword: str, place: str, least: int = 0) -> int | None:
    """The one whole number of an attribute, see :func:`numbers`.

    Raises:
        DataError: also for a fraction, and for less than ``least``.
    """
    found = number(dataset, keyword, place)
    if found is None:
        return None
    if found != int(found) or found < least:
        raise DataError(f"{place}: {keyword} must be a whole number of at least {least}; export the series again")
    return int(found)


def word(dataset: Any, keyword: str, default: str = "") -> str:
    """The first text of an attribute that holds coded strings, in capitals; ``default`` where there is none."""
    values = raw_values(dataset, keyword)
    text = str(values[0]).strip(" \0").upper() if values else ""
    return text if CODED.fullmatch(text) else default


def uid(dataset: Any, keyword: str) -> str:
    """A UID; empty where it is absent or empty.

    Raises:
        DataError: when it is none; the value is not quoted.
    """
    values = raw_values(dataset, keyword) or [""]
    text = str(values[0]).strip(" \0")
    if text and (len(values) > 1 or len(text) > 64 or not UID.fullmatch(text)):
        place = getattr(dataset, "monai_ssl_place", "dicom: a file")
        raise DataError(f"{place}: {keyword} must be a UID (numbers and dots); export the series again")
    return text


def plain(text: str, length: int = 64) -> str:
    """A text as DICOM's short and long strings may hold it: one line, no backslash (it separates values), cut.

    Example:
        >>> plain("left\\\\right\\n")
        'left/right'
    """
    text = "".join(c if c.isprintable() else " " for c in text.replace("\\", "/"))
    return " ".join(text.split())[:length].strip()

"""Errors that a user can act on, and words for their messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PROGRAM = "monai-ssl"


class DataError(ValueError):
    """The user's data are not what they must be; the message names the file, the rule, the value and the next step.

    Example:
        >>> raise DataError("split.json: 'training' must be a list, got a string: write [] for none")
        Traceback (most recent call last):
        ...
        monai_ssl.errors.DataError: split.json: 'training' must be a list, got a string: write [] for none
    """


class UsageError(DataError):
    """The command was typed wrongly."""


class TrainingDivergedError(RuntimeError):
    """A loss term or the gradient became NaN or infinite; the message names step, term and cases."""


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an exception says, without line breaks, cut to ``limit`` characters; its type where it says nothing.

    Example:
        >>> one_line(ValueError("two\\n  lines"))
        'two lines'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def enumerated(items: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def dimensions(values: Iterable[float]) -> str:
    """Sizes as they are spoken.

    Example:
        >>> dimensions([112, 0.625])
        '112 x 0.625'
    """
    return " x ".join(f"{value:.3g}" for value in values)


def json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def plural(n: int, noun: str) -> str:
    """
    Example:
        >>> plural(1, "error"), plural(2, "error")
        ('1 error', '2 errors')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def counted(counts: Mapping[str, int]) -> str:
    """
    Example:
        >>> counted({"training": 2, "unlabeled": 3})
        '2 training, 3 unlabeled'
    """
    return ", ".join(f"{n} {name}" for name, n in counts.items())

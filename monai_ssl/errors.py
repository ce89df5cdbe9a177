"""Errors that a user can act on, and words for their messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


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


def enumerated(items: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."

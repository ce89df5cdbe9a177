"""A YAML file of plain values, read without surprises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from monai_ssl.errors import DataError, one_line

# presets and settings are pages, not books
MOST_BYTES, MOST_VALUES, MOST_LEVELS = 1_000_000, 20_000, 30


class _Loader(yaml.SafeLoader):
    """YAML's plain types; a key that stands twice in a mapping is an error, instead of the last one winning."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if (key.tag, key.value) in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"the key {one_line(key.value, 60)!r} stands twice", key.start_mark
                        )
                    seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file, in UTF-8.
        what: what it is, for messages: ``"a preset"``.

    Raises:
        DataError: when it cannot be read, is no text in UTF-8, no valid YAML, no mapping of names to values, or holds
            more, or more deeply nested, than a page of settings does.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if len(raw) > MOST_BYTES:
        raise DataError(f"{path}: {what} must have at most {MOST_BYTES} bytes, got {len(raw)}; is it another file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: must be text in UTF-8, got other bytes in line {line}; save it as UTF-8") from None
    try:
        content = yaml.load(text, Loader=_Loader)  # a SafeLoader
        _measure(content)
    except RecursionError:
        raise DataError(f"{path}: {what} must not be nested so deeply; remove brackets") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is not valid YAML ({one_line(error, 300)})") from None
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError, IndexError) as error:
        # what YAML's constructors of numbers and dates let through
        raise DataError(
            f"{path}: holds a value that cannot be read ({one_line(error)}); quote it or correct it"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: {what} must be a mapping of keys to values, got {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise DataError(f"{path}: keys must be names, got {one_line(repr(key), 60)}; quote it")
    return content


def _measure(content: Any) -> None:
    """
    Raises:
        yaml.YAMLError: for more values, or more levels, than a page of settings has; aliases count each time.
    """
    left, stack = MOST_VALUES, [(content, 0)]
    while stack:
        value, level = stack.pop()
        left -= 1
        if left < 0:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values")
        if level > MOST_LEVELS:
            raise yaml.YAMLError(f"more than {MOST_LEVELS} levels of brackets")
        if isinstance(value, dict):
            stack += [(part, level + 1) for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple, set)):
            stack += [(part, level + 1) for part in value]

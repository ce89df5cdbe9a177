"""Values set in a config's text, so that everything else in it, comments included, stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml


def set_values(text: str, values: Mapping[str, Any]) -> str:
    """A YAML config with other values.

    Args:
        text: the config.
        values: id (``method#variant``) -> value. Missing parts of an id are added at the end of their block; ids whose
            first part the config does not have are left out.

    Raises:
        ValueError: when the text is no YAML mapping.

    Example:
        >>> print(set_values("method:\\n  variant: released   # or paper\\nseed: 0\\n", {"method#variant": "paper"}))
        method:
          variant: paper   # or paper
        seed: 0
        <BLANKLINE>
    """
    config = yaml.safe_load(text)
    if not isinstance(config, dict):
        raise ValueError(f"text must be a YAML mapping, got {type(config).__name__}")
    for key, value in values.items():
        path = re.split("#|::", key)
        if path[0] not in config:
            continue
        _set(config, path, value)
        edited = _edited(text, path, value)
        # anchors, tags, texts over several lines: rather without comments than wrong
        text = (
            edited if _same(edited, config) else yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
        )
    return text


def _same(text: str, config: Any) -> bool:
    try:
        return bool(yaml.safe_load(text) == config)
    except yaml.YAMLError:
        return False


def _set(config: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    block: Any = config
    for part in parents:
        block = block[int(part)] if isinstance(block, list) else block.setdefault(part, {})
    block[int(last) if isinstance(block, list) else last] = value


def _edited(text: str, path: list[str], value: Any) -> str:
    node: Any = yaml.compose(text)
    column = 0
    for depth, part in enumerate(path):
        found = _child(node, part)
        if found is None:
            for missing in reversed(path[depth + 1 :]):
                value = {missing: value}
            return _added(text, node, part, value)
        column, node = found
    start, end = node.start_mark.index, _end(node)
    before = text[:start].rstrip()  # without the blank after the colon, or the end of a block's first line
    written = _written(value, column)
    return before + (written if len(before) < start else written.lstrip()) + text[end:]


def _child(node: Any, part: str) -> tuple[int, Any] | None:
    """Column of a key, and its value."""
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        return node.value[int(part)].start_mark.column, node.value[int(part)]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.column, value
    return None


def _added(text: str, node: Any, key: str, value: Any) -> str:
    column = node.start_mark.column
    if node.flow_style:
        brace = node.end_mark.index - 1
        return f"{text[:brace]}{', ' if node.value else ''}{key}:{_written(value, None)}{text[brace:]}"
    line = text.find("\n", _end(node))
    line = len(text) if line < 0 else line
    return f"{text[:line]}\n{' ' * column}{key}:{_written(value, column)}{text[line:]}"


def _end(node: Any) -> int:
    """Where a value's last character stands; blocks end before the comments that follow them."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _written(value: Any, column: int | None) -> str:
    """A value after its colon: short ones on the line, mappings as a block."""
    if isinstance(value, dict) and value and column is not None:
        block = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
        return "".join("\n" + " " * (column + 2) + line for line in block.splitlines())
    line = yaml.safe_dump([value], sort_keys=False, allow_unicode=True, width=float("inf"), default_flow_style=True)
    return " " + line.strip()[1:-1]

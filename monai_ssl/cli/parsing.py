"""Arguments of a command from the words after it.

Values of a command's own parameters are read as their types say. What goes to a bundle's configs is read by Fire, as
``python -m monai.bundle run`` reads it, except that YAML's words (true, false, null) mean what they mean in a config.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from monai_ssl.cli.commands import PROGRAM, Command
from monai_ssl.errors import UsageError
from monai_ssl.runs.folder import RECORD, is_run

# until version 0.1; both are read until the release after the next
FORMER_OPTIONS = {"flavour": "flavor"}
FORMER_VALUES = {"whole_tumour": "whole_tumor"}
YAML_WORDS = {"true": True, "false": False, "null": None, "~": None}
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse(command: Command, words: list[str]) -> dict[str, Any]:
    """Arguments of a command's function: ``VALUE``, ``--key VALUE``, ``--key=VALUE``, ``--key`` (True).

    Args:
        command: which.
        words: after its name.

    Raises:
        UsageError: for a missing, unknown, repeated or unreadable argument.

    Example:
        >>> from monai_ssl.cli.commands import COMMANDS
        >>> parse(COMMANDS["train"], ["dtc", "2024", "--seed", "3", "--resume", "false"])
        {'seed': 3, 'resume': False, 'bundle': 'dtc', 'dataset_dir': '2024'}
    """
    parameters = command.parameters
    hints = _hints(command.function)
    named = {k: p for k, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    given: dict[str, Any] = {}
    positions, options = separated(words)
    for word, typed, text in options:
        key = _option(command, typed, word, named, free=len(named) < len(parameters))
        if key in given:
            raise UsageError(f"--{key}: given twice")
        given[key] = own_value(key, text, hints[named[key].name]) if key in named else config_value(text)
        if command.name == "prepare":
            given[key] = _today(given[key])
    places = [key for key in named if key not in given]
    runs = _runs(positions) if command.several else []
    if command.several:
        _check_runs(command, positions)
    if runs and places and places[0] == next(iter(named)):
        given[places.pop(0)] = runs
        positions = positions[len(runs) :]
    if len(positions) > len(places):
        excess = positions[len(places)]
        raise UsageError(f"{command.name}: too many arguments, from {excess!r} on; usage: {command.usage}")
    for key, text in zip(places, positions, strict=False):
        try:
            given[key] = own_value(key, text, hints[named[key].name])
        except UsageError as error:
            meant = f"; as a run it would hold {RECORD}: check the path" if command.several else ""
            raise UsageError(f"{error}{meant}") from None
    missing = [key for key, p in named.items() if p.default is p.empty and key not in given]
    if missing:
        raise UsageError(f"{command.name}: missing {missing[0].upper()}; usage: {command.usage}")
    return {named[key].name if key in named else key: value for key, value in given.items()}


def separated(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Positional words, and options: the word itself, its name, and its value, ``True`` where none follows.

    Example:
        >>> separated(["--dataset", "my.yaml", "scans", "--check=no"])
        (['scans'], [('--dataset', 'dataset', 'my.yaml'), ('--check=no', 'check', 'no')])
    """
    positions, options, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if not _is_option(word):
            positions.append(word)
            continue
        name, equals, text = word.lstrip("-").partition("=")
        if not equals:
            text = rest.pop(0) if rest and not _is_option(rest[0]) else "True"
        options.append((word, name, text))
    return positions, options


def _runs(words: list[str]) -> list[str]:
    """The first words as far as they name folders of runs or self-trainings, where that are several."""
    found = list(itertools.takewhile(is_run, words))
    return found if len(found) > 1 else []


def _check_runs(command: Command, words: Sequence[str]) -> None:
    """
    Raises:
        UsageError: for a word between a run and the last word that would lie beside that run, and does not exist: a
            misspelled run, not the folder of images or results that it would be taken for.
    """
    home = Path(words[0]).expanduser() if words else Path()
    for word in words[1:-1]:
        path = Path(word).expanduser()
        if is_run(home) and path.parent == home.parent and not path.exists():
            raise UsageError(f"{command.name}: {word} is no run, there is no such folder; usage: {command.usage}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of a function's parameters; what it returns may be known only to type checkers."""
    annotations = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    return get_type_hints(types.SimpleNamespace(__annotations__=annotations), getattr(function, "__globals__", {}))


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not re.fullmatch(r"-(\d|\.\d).*", word)


def _option(command: Command, typed: str, word: str, named: dict[str, inspect.Parameter], free: bool) -> str:
    """The name of an option; bundles' ids may hold any character, our own may be typed with hyphens."""
    key = typed.replace("-", "_") if typed.replace("-", "_") in named else typed
    if key in FORMER_OPTIONS and (free or FORMER_OPTIONS[key] in named):
        warnings.warn(f"--{key} is now spelled --{FORMER_OPTIONS[key]}", stacklevel=2)
        key = FORMER_OPTIONS[key]
    if key in named:
        return key
    near = difflib.get_close_matches(key, named, n=1, cutoff=0.8 if free and key else 0.6)
    if free and key and not near:
        return key
    hint = f"; did you mean --{near[0]}?" if near else ""
    shown = f"--{key}" if free and key else word.partition("=")[0]
    where = "" if free and key else f" (see {PROGRAM} {command.name} --help)"
    raise UsageError(f"{command.name}: unknown option {shown}{hint}{where}")


def _today(value: Any) -> Any:
    if isinstance(value, str) and value in FORMER_VALUES:
        warnings.warn(f"{value} is now spelled {FORMER_VALUES[value]}", stacklevel=2)
        return FORMER_VALUES[value]
    return value


def config_value(text: str) -> Any:
    """A value for a bundle's config.

    Example:
        >>> [config_value(text) for text in ("3", "off", "false", "null", "[1, true]", "null_model")]
        [3, 'off', False, None, [1, True], 'null_model']
    """
    from fire.parser import DefaultParseValue

    return _with_yaml_words(text if text.lower() in YAML_WORDS else DefaultParseValue(text))


def _with_yaml_words(value: Any) -> Any:
    if isinstance(value, str):
        return YAML_WORDS.get(value.lower(), value)
    if isinstance(value, (list, tuple)):
        return type(value)(_with_yaml_words(part) for part in value)
    if isinstance(value, dict):
        return {key: _with_yaml_words(part) for key, part in value.items()}
    return value


def own_value(key: str, text: str, hint: Any) -> Any:
    """``text`` as a parameter's type wants it, so that a folder called ``2024`` stays text.

    Raises:
        UsageError: when it cannot be read so.

    Example:
        >>> own_value("seed", "3", int | None), own_value("output", "3", str | None), own_value("check", "no", bool)
        (3, '3', False)
        >>> own_value("tta", "False", bool | str), own_value("tta", "auto", bool | str)
        (False, 'auto')
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in kinds and text in ("None", "null", ""):
        return None
    literals = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if literals:
        if text not in literals:
            raise UsageError(f"{key}: must be {', '.join(literals[:-1])} or {literals[-1]}, got {text!r}")
        return text
    if str in kinds or Path in kinds:
        if text == "":
            raise UsageError(f"--{key}: must not be empty")
        return BOOLEANS.get(text.lower(), text) if bool in kinds else text
    if bool in kinds:
        if text.lower() not in BOOLEANS:
            raise UsageError(f"--{key}: must be True or False, got {text!r}")
        return BOOLEANS[text.lower()]
    if int in kinds and float not in kinds:
        if not re.fullmatch(r"[+-]?\d+", text):
            raise UsageError(f"--{key}: must be an integer, got {text!r}")
        return int(text)
    if float in kinds:
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"--{key}: must be a number, got {text!r}") from None
    if any(get_origin(kind) is dict for kind in kinds):
        return _mapping(key, text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _mapping(key: str, text: str) -> dict[Any, Any]:
    import yaml

    if re.fullmatch(r"\s*\d+\s*:[^{}]*", text):  # 255:1,7:2
        text = "{" + re.sub(r":\s*", ": ", text) + "}"
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise UsageError(f'--{key}: must look like "{{1: organ}}", got {text!r}')
    return content

"""What is different where MONAI's own command runs a bundle: ``python -m monai.bundle run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from monai_ssl.errors import DataError
from monai_ssl.mistakes import users_mistake

# what a config says, and how Python, in whose words MONAI's command reads values, says it
WORDS = {"true": "True", "false": "False", "null": "None"}


def say_mistakes_in_a_line() -> None:
    """Where ``python -m monai.bundle`` is the program, a user's mistake ends it in one line, not in three tracebacks.

    The first such mistake is looked for here, see :func:`refuse_words_of_yaml`. Anywhere else nothing changes: who
    calls a bundle from Python gets the exception.
    """
    if not _is_monai_bundle():
        return
    if not os.environ.get("MONAI_SSL_DEBUG"):
        _install_hook()
    refuse_words_of_yaml(sys.argv[1:])


def _install_hook() -> None:
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mistake = None if issubclass(kind, KeyboardInterrupt) else users_mistake(error)
        if mistake is None:
            former(kind, error, trace)
        else:
            print(f"error: {mistake}", file=sys.stderr)

    sys.excepthook = hook


def refuse_words_of_yaml(arguments: Sequence[str]) -> None:
    """Refuse ``false`` where ``False`` is meant: MONAI's command makes a text of it, and any text counts as true.

    ``monai-ssl train`` reads both. Here nobody can: the values were read before this package was loaded.

    Args:
        arguments: of ``python -m monai.bundle``, from the command on.

    Raises:
        DataError: naming the option.

    Example:
        >>> refuse_words_of_yaml(["run", "--resume", "False", "--amp", "off"])
        >>> refuse_words_of_yaml(["run", "--method#memory_weights=true"])
        Traceback (most recent call last):
        ...
        monai_ssl.errors.DataError: --method#memory_weights: MONAI's command reads Python's words; write True, not true
    """
    key = ""
    for word in arguments:
        if word.startswith("--"):
            key, equals, word = word.partition("=")
            if not equals:
                continue
        from fire.parser import DefaultParseValue

        for text in _texts(DefaultParseValue(word)):
            if key and (meant := WORDS.get(text.lower())):
                raise DataError(f"{key}: MONAI's command reads Python's words; write {meant}, not {text}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))


def _is_monai_bundle() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", "") in ("monai.bundle.__main__", "monai.bundle")

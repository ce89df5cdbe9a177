"""Errors that a user can act on, and words for their messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PROGRAM = "monai-ssl"
# how a file that exists is replaced, through either door
OVERWRITE = "--overwrite (from Python: overwrite=True)"


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


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a training after the step that was in work; the message says where its state is."""


class ResourceError(RuntimeError):
    """The machine gave out: memory, shared memory, or a process that somebody killed."""


def out_of_resources(error: BaseException) -> ResourceError | None:
    """What an error of PyTorch says of the machine, with the next step; None for all other errors."""
    text = " ".join(str(error).split())
    again = "the last checkpoint is intact: run the same command again to continue"
    if "DataLoader worker" in text and ("Bus error" in text or "shared memory" in text):
        return ResourceError(
            f"a loader process found no room in shared memory; give the container more (--shm-size 8g) or use "
            f"--num_workers 0; {again}"
        )
    if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        found = re.search(r"by signal: (\w+)", text)
        return ResourceError(
            f"a loader process was killed ({found[1] if found else 'without a word'}), as a rule by the system because "
            f"memory ran out; use fewer --num_workers (0: none), or give the job more memory; {again}"
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "can't allocate memory" in text:
        return ResourceError(
            "memory ran out; try --accumulation_steps 2, smaller --labeled_batch_size and --unlabeled_batch_size, a "
            f"smaller patch_size in the preset, or fewer --num_workers; {again}"
        )
    return None


def one_line(error: BaseException | str, limit: int = 160) -> str:
    """What an exception or a text says, in one line, cut to ``limit`` characters; its type where it says nothing.

    Example:
        >>> one_line(ValueError("two\\n  lines"))
        'two lines'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def without_quotes(error: BaseException | str, limit: int = 160) -> str:
    """What a library says of a file, in one line, without what it quotes of the file: that may be a patient's name.

    Example:
        >>> without_quotes(ValueError("couldn't parse \\"Doe, Jane\\" as a number; b'Doe' is none"))
        "couldn't parse ... as a number; ... is none"
    """
    text = one_line(error, 10**6)
    text = re.sub(r"(?<!\w)b?'[^']*('|$)|b?\"[^\"]*(\"|$)", "...", text)
    return one_line(text, limit)


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


def figure(value: float) -> str:
    """A number to two figures, a large one whole, never as ``1e+02``.

    Example:
        >>> [figure(value) for value in (0.0514, 2.449, 99.7, 1234.5)]
        ['0.051', '2.4', '100', '1234']
    """
    return f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.2g}"


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

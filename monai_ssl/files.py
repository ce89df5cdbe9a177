"""Files that are either whole or absent, and the files below a folder in an order that is the same everywhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

FULL_ERRORS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
FULL = ": the disk is full, or your quota of it is used up; free some space, then run the same command again"
# deeper than any archive; links may run in circles
MAX_DEPTH = 12


@contextmanager
def atomic_paths(paths: Sequence[str | Path]) -> Iterator[list[Path]]:
    """Yield a temporary path next to every target; on success all are synced and then renamed, on failure removed.

    A target is never half-written: a kill or a full disk leaves the previous file, or none.

    Args:
        paths: where the files shall be; their folders are created. A temporary name keeps the suffixes, since writers
            of images choose the format by them.

    Raises:
        OSError: when a file cannot be written, naming the target.
    """
    targets = [Path(path) for path in paths]
    temporary = [target.with_name(f".{os.getpid()}-{target.name}") for target in targets]
    target = targets[0]
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for target, file in zip(targets, temporary, strict=True):  # noqa: B007  # the message names the target
            with open(file, "rb+") as written:  # Windows syncs only what is open for writing
                os.fsync(written.fileno())
        for target, file in zip(targets, temporary, strict=True):
            os.replace(file, target)
    except OSError as error:
        reason = f"{error.strerror or error}{FULL if error.errno in FULL_ERRORS else ''}"
        raise OSError(
            error.errno, f"cannot write ({reason}); the previous file, if any, is intact", str(target)
        ) from error
    finally:
        for file in temporary:
            with suppress(OSError):  # where nothing can be written nothing can be removed: the reason is said above
                file.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """:func:`atomic_paths` for one file.

    Example:
        >>> with atomic_path("/tmp/monai_ssl_example.txt") as temporary:
        ...     _ = temporary.write_text("whole")
    """
    with atomic_paths([path]) as (temporary,):
        yield temporary


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically, see :func:`atomic_paths`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, see :func:`atomic_paths`; line ends stay as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_atomically(files: Mapping[Path, str | bytes]) -> None:
    """Write all files under temporary names, then put each in place: a reader never sees half a file."""
    with atomic_paths(list(files)) as temporary:
        for file, content in zip(temporary, files.values(), strict=True):
            file.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def files_below(root: str | Path, without: Collection[str] = ()) -> Iterator[Path]:
    """Every file below a folder, sorted, folder by folder; links are followed.

    Hidden files and folders are ignored (macOS writes a ``._name`` next to every file, and ``__MACOSX``).

    Args:
        root: the folder.
        without: subfolders that hold a file of such a name are left out, with all that is below them.

    Example:
        >>> list(files_below("/does/not/exist"))
        []
    """
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        depth = len(Path(folder).relative_to(root).parts)
        if depth and not set(without).isdisjoint(names):
            subfolders.clear()
            continue
        if depth >= MAX_DEPTH:
            subfolders.clear()
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder) / name


# what a spreadsheet takes for a formula; the apostrophe, so that the way back is unique
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "'")


def cell(text: str) -> str:
    """A text for a table in CSV: with an apostrophe before it where a spreadsheet would take it for a formula.

    Numbers stay as they are. :func:`text_of_cell` gives the text back.

    Example:
        >>> cell("=1+1"), cell("-0.5"), cell("case 1"), text_of_cell(cell("@a"))
        ("'=1+1", '-0.5', 'case 1', '@a')
    """
    if not text.startswith(FORMULAS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def text_of_cell(text: str) -> str:
    """The text that :func:`cell` wrote."""
    return text[1:] if text.startswith("'") else text

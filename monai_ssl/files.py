"""Files that are either whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed, on failure removed.

    The target is never half-written: a kill or a full disk leaves the former file, or none.

    Args:
        path: where the file shall be; its folder is created. The temporary name keeps the suffixes, since writers
            of images choose the format by them.

    Raises:
        OSError: when the file cannot be written, naming the target.

    Example:
        >>> with atomic_path("/tmp/monai_ssl_example.txt") as temporary:
        ...     _ = temporary.write_text("whole")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write ({error.strerror}); the former file, if any, is intact", str(target)
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, see :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_atomically(files: Mapping[Path, str | bytes]) -> None:
    """Write all files under temporary names, then put each in place: a reader never sees half a file."""
    temporary: dict[Path, Path] = {}
    try:
        for target, content in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary[target] = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            temporary[target].write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        for target, source in temporary.items():
            os.replace(source, target)
    finally:
        for source in temporary.values():
            source.unlink(missing_ok=True)

"""Finding files below a download."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path


def files_below(source: Path) -> Iterator[Path]:
    """Every file below a folder, sorted, without hidden ones (macOS writes a ``._name`` beside every file)."""
    for folder, subfolders, names in os.walk(source, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        if len(Path(folder).relative_to(source).parts) >= 12:  # links that run in circles
            subfolders.clear()
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder) / name


def matching(source: Path, pattern: str) -> list[tuple[Path, re.Match[str]]]:
    """Files whose name fits a regular expression as a whole, upper and lower case alike."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return [(path, match) for path in files_below(source) if (match := compiled.fullmatch(path.name))]

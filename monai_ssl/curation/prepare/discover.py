"""Finding files below a download."""

from __future__ import annotations

import re
from pathlib import Path

from monai_ssl.files import files_below


def matching(source: Path, pattern: str) -> list[tuple[Path, re.Match[str]]]:
    """Files whose name fits a regular expression as a whole, upper and lower case alike."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return [(path, match) for path in files_below(source) if (match := compiled.fullmatch(path.name))]

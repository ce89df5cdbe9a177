"""The run folder: names of its files."""

from __future__ import annotations

import os
from pathlib import Path

# what `monai-ssl train` notes about a run, before the first iteration
CHECKPOINT, MODEL = "checkpoint.pt", "model.pt"
RECORD = ("run.json", "preset.yaml")


def pending(path: Path) -> Path:
    """Where a file of :data:`RECORD` waits until a former run's is out of its way."""
    return path.with_name(f".{path.name}.pending")


def promote(folder: Path) -> None:
    """Give waiting files of :data:`RECORD` their names."""
    for name in RECORD:
        if pending(folder / name).is_file():
            os.replace(pending(folder / name), folder / name)

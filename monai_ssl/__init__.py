"""Semi-supervised medical image segmentation, at home in MONAI."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

__version__ = "0.1.0"

# Large tensors in large pages (Linux): without, a tenth to a quarter of a training step on a CPU goes into page faults.
# PyTorch reads it at its first allocation, once; 0 switches it off.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_ROOMS = (
    "bundle",
    "curation",
    "data",
    "deploy",
    "engines",
    "handlers",
    "losses",
    "methods",
    "metrics",
    "networks",
    "reports",
    "runs",
    "transforms",
)


def __getattr__(name: str) -> ModuleType:
    """Rooms are imported on first use, so that ``import monai_ssl`` alone (and ``--help``) stays quick."""
    if name in _ROOMS:
        return importlib.import_module(f"monai_ssl.{name}")
    raise AttributeError(f"module 'monai_ssl' has no attribute {name!r}")

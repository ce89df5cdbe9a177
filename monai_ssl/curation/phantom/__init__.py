"""Synthetic scans of a left-atrium-like organ."""

from .acquisition import SCANNERS
from .case import phantom_case
from .dataset import CLASS_NAMES, write_phantom

__all__ = ["CLASS_NAMES", "SCANNERS", "phantom_case", "write_phantom"]

"""Synthetic scans of a left-atrium-like organ."""

from .acquisition import SCANNERS
from .dataset import CLASS_NAMES, phantom_case, write_phantom

__all__ = ["CLASS_NAMES", "SCANNERS", "phantom_case", "write_phantom"]

"""Which golden number of the comparison methods which test accounts for; see ``conftest.py``."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUMBERS = Path(__file__).parents[1] / "golden" / "golden_baselines.npz"


def claimed_by(patterns: Iterable[str], keys: list[str]) -> set[str]:
    """Keys that the patterns name; each pattern names one at least."""
    found: set[str] = set()
    for pattern in patterns:
        matching = set(fnmatch.filter(keys, pattern))
        assert matching, f"no number is called {pattern!r}"
        found |= matching
    return found


class Golden:
    """The numbers, and which of them were read."""

    def __init__(self, numbers: Any) -> None:
        self.numbers, self.read = numbers, set()

    def __getitem__(self, key: str) -> np.ndarray:
        """As stored."""
        self.read.add(key)
        return self.numbers[key]

    def tensor(self, key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """As a new tensor of its own dtype, or of another one."""
        found = torch.from_numpy(self[key].copy())
        return found if dtype is None else found.to(dtype)

    def number(self, key: str) -> float:
        """A scalar."""
        return float(self[key].reshape(()))

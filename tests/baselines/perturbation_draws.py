"""The draws of the released feature perturbations (URPC 2D, CCT): the k-th of any kind has the seed 5000 + k."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ssl.networks import perturbations


def seeded_draws(patch: pytest.MonkeyPatch, base: int = 5000) -> list[tuple[int, ...]]:
    """From here on, perturbations draw those numbers; the list of shapes grows with every draw."""
    drawn: list[tuple[int, ...]] = []

    def uniform(shape, like):
        numbers = np.random.RandomState(base + len(drawn)).rand(*shape)
        drawn.append(tuple(shape))
        return torch.as_tensor(numbers, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)

    patch.setattr(perturbations, "uniform", uniform)
    return drawn

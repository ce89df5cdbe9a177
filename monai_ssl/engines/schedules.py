"""Learning-rate schedules of the published protocols, stated per iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("step", "poly", "cosine", "constant")


def lr_schedule(
    optimizer: Optimizer,
    schedule: str,
    max_iterations: int,
    milestones: Sequence[float] = (2500 / 6000, 5000 / 6000),
    power: float = 0.9,
    warmup: float = 0.0,
) -> LambdaLR:
    """Schedule to be stepped once per iteration.

    Args:
        optimizer: its learning rates are the starting point.
        schedule: ``"step"``: x0.1 after each milestone (DTC, SS-Net, UA-MT: after 2500 and 5000 of 6000 steps).
            ``"poly"``: ``(1 - i / max_iterations) ** power``. ``"cosine"``: half a cosine to 0. ``"constant"``.
        max_iterations: length of the run, >= 1.
        milestones: shares of ``max_iterations``.
        power: exponent of ``"poly"``.
        warmup: share of the run during which the rate rises linearly from 0 (exclusive), in [0, 1).

    Raises:
        ValueError: for an unknown schedule or a length below 1.

    Example:
        >>> import torch
        >>> s = lr_schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01), "step", 6000)
        >>> [round(s.lr_lambdas[0](i), 4) for i in (0, 2499, 2500, 5000)]
        [1.0, 1.0, 0.1, 0.01]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {SCHEDULES}, got {schedule!r}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be >= 1, got {max_iterations}")
    steps = [round(m * max_iterations) for m in milestones]
    rise = round(warmup * max_iterations)

    def factor(iteration: int) -> float:
        progress = min(iteration / max_iterations, 1.0)
        value = 1.0
        if schedule == "step":
            value = 0.1 ** sum(iteration >= s for s in steps)
        elif schedule == "poly":
            value = (1.0 - progress) ** power
        elif schedule == "cosine":
            value = 0.5 * (1.0 + math.cos(math.pi * progress))
        return value * min((iteration + 1) / rise, 1.0) if rise else value

    return LambdaLR(optimizer, factor)

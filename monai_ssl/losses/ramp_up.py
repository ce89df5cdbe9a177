"""Ramp-ups: how the weight of an unsupervised term grows with the iteration."""

from __future__ import annotations

import math


class SigmoidRampUp:
    r"""Sigmoid-shaped ramp-up ``maximum * exp(-5 (1 - t)^2)``, optionally as a staircase.

    With ``level = clip(iteration // granularity, 0, length / granularity)`` the weight is

    .. math:: w = w_{max} \exp\left(-5 \left(1 - \frac{level}{length / granularity}\right)^q\right), \qquad q = 2.

    The papers print the continuous curve (``granularity=1``); the code released for DTC, UA-MT, UG-MCL, SS-Net and
    CAML holds the weight for 150 iterations at a time (``length=6000, granularity=150``: 40 levels), so that the
    weight never quite reaches its maximum within ``length`` iterations.

    Args:
        length: number of iterations until the maximum is reached, >= 0. 0 means: at the maximum from the start.
        maximum: final weight, >= 0.
        granularity: iterations for which the weight stays constant, >= 1.
        exponent: q > 0; 2 in the source and in all released code, 1 as UG-MCL prints it.

    Raises:
        ValueError: when an argument is outside its range.

    Source: Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, section 3.2; DTC, Eq. 7.

    Example:
        >>> ramp = SigmoidRampUp(length=6000, maximum=1.0, granularity=150)
        >>> round(ramp(0), 6), round(ramp(3000), 6), ramp(6000)
        (0.006738, 0.286505, 1.0)
    """

    def __init__(self, length: float, maximum: float = 1.0, granularity: float = 1, exponent: float = 2.0) -> None:
        if not length >= 0:
            raise ValueError(f"length must be >= 0 iterations, got {length}")
        if not maximum >= 0:
            raise ValueError(f"maximum must be >= 0, got {maximum}")
        if not granularity >= 1:
            raise ValueError(f"granularity must be >= 1 iteration, got {granularity}")
        if not exponent > 0:
            raise ValueError(f"exponent must be > 0, got {exponent}")
        self.length, self.maximum, self.granularity, self.exponent = length, maximum, granularity, exponent

    def __call__(self, iteration: float) -> float:
        """Weight at ``iteration`` (counted from 0, before the step)."""
        if self.length == 0:
            return float(self.maximum)
        levels = self.length / self.granularity
        level = min(max(iteration // self.granularity if self.granularity > 1 else iteration, 0), levels)
        return float(self.maximum * math.exp(-5.0 * (1.0 - level / levels) ** self.exponent))

    def __repr__(self) -> str:
        exponent = "" if self.exponent == 2 else f", exponent={self.exponent}"
        return f"SigmoidRampUp(length={self.length}, maximum={self.maximum}, granularity={self.granularity}{exponent})"

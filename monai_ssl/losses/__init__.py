"""Losses: tensors in, a scalar out. They know no engine and no method."""

from .dual_task import DualTaskConsistencyLoss, SmoothHeaviside
from .ramp_up import SigmoidRampUp
from .supervised import ForegroundDiceLoss, HalfDiceCELoss

__all__ = [
    "DualTaskConsistencyLoss",
    "ForegroundDiceLoss",
    "HalfDiceCELoss",
    "SigmoidRampUp",
    "SmoothHeaviside",
]

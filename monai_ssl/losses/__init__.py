"""Losses: tensors in, a scalar out. They know no engine and no method."""

from .dual_task import DualTaskConsistencyLoss, SmoothHeaviside
from .ramp_up import SigmoidRampUp
from .supervised import HalfDiceCELoss, foreground_dice_loss

__all__ = [
    "DualTaskConsistencyLoss",
    "HalfDiceCELoss",
    "SigmoidRampUp",
    "SmoothHeaviside",
    "foreground_dice_loss",
]

"""Losses: tensors in, a scalar out. They know no engine and no method."""

from .correlation import OmniCorrelationLoss, most_confident
from .cross_pseudo import CrossPseudoLabelLoss, SharpenedConsistencyLoss, sharpen
from .dual_task import DualTaskConsistencyLoss, SmoothHeaviside
from .ramp_up import SigmoidRampUp
from .representation import RepresentationConsistencyLoss, class_representations, masked_sums
from .supervised import ForegroundDiceLoss, HalfDiceCELoss

__all__ = [
    "CrossPseudoLabelLoss",
    "DualTaskConsistencyLoss",
    "ForegroundDiceLoss",
    "HalfDiceCELoss",
    "OmniCorrelationLoss",
    "RepresentationConsistencyLoss",
    "SharpenedConsistencyLoss",
    "SigmoidRampUp",
    "SmoothHeaviside",
    "class_representations",
    "masked_sums",
    "most_confident",
    "sharpen",
]

"""Losses: tensors in, a scalar out. They know no engine and no method."""

from .consistency import MaskedMSELoss
from .dual_task import DualTaskConsistencyLoss, SmoothHeaviside
from .prototype_separation import PrototypeSeparationLoss
from .ramp_up import SigmoidRampUp
from .supervised import ForegroundDiceLoss, HalfDiceCELoss
from .uncertainty import UncertaintyThreshold, add_noise, monte_carlo_probabilities, predictive_entropy
from .virtual_adversarial import VirtualAdversarialLoss

__all__ = [
    "DualTaskConsistencyLoss",
    "ForegroundDiceLoss",
    "HalfDiceCELoss",
    "MaskedMSELoss",
    "PrototypeSeparationLoss",
    "SigmoidRampUp",
    "SmoothHeaviside",
    "UncertaintyThreshold",
    "VirtualAdversarialLoss",
    "add_noise",
    "monte_carlo_probabilities",
    "predictive_entropy",
]

"""Losses: tensors in, a scalar out. They know no engine and no method."""

from monai_ssl.labels import IGNORE_LABEL, ignored_voxels

from .consistency import MaskedMSELoss
from .correlation import OmniCorrelationLoss, most_confident
from .cross_pseudo import CrossPseudoLabelLoss, SharpenedConsistencyLoss, sharpen
from .dual_task import DualTaskConsistencyLoss, SmoothHeaviside
from .prototype_separation import PrototypeSeparationLoss
from .pyramid import PyramidConsistencyLoss
from .ramp_up import SigmoidRampUp
from .representation import RepresentationConsistencyLoss, class_representations, masked_sums
from .supervised import ForegroundDiceLoss, HalfDiceCELoss, supervised_cross_entropy, supervised_mse
from .uncertainty import UncertaintyThreshold, add_noise, monte_carlo_probabilities, predictive_entropy
from .virtual_adversarial import VirtualAdversarialLoss

__all__ = [
    "IGNORE_LABEL",
    "CrossPseudoLabelLoss",
    "DualTaskConsistencyLoss",
    "ForegroundDiceLoss",
    "HalfDiceCELoss",
    "MaskedMSELoss",
    "OmniCorrelationLoss",
    "PrototypeSeparationLoss",
    "PyramidConsistencyLoss",
    "RepresentationConsistencyLoss",
    "SharpenedConsistencyLoss",
    "SigmoidRampUp",
    "SmoothHeaviside",
    "UncertaintyThreshold",
    "VirtualAdversarialLoss",
    "add_noise",
    "class_representations",
    "ignored_voxels",
    "masked_sums",
    "monte_carlo_probabilities",
    "most_confident",
    "predictive_entropy",
    "sharpen",
    "supervised_cross_entropy",
    "supervised_mse",
]

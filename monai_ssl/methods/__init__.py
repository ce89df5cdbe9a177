"""Methods: one file each. A method turns a labelled and an unlabelled batch into named loss terms."""

from .base import SemiSupervisedMethod, joint_images
from .dual_task_consistency import DualTaskConsistency
from .smoothness_separation import SmoothnessSeparation
from .supervised import Supervised
from .uncertainty_guided_mutual_consistency import UncertaintyGuidedMutualConsistency

__all__ = [
    "DualTaskConsistency",
    "SemiSupervisedMethod",
    "SmoothnessSeparation",
    "Supervised",
    "UncertaintyGuidedMutualConsistency",
    "joint_images",
]

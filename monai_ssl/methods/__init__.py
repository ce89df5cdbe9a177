"""Methods: one file each. A method turns a labelled and an unlabelled batch into named loss terms."""

from .base import SemiSupervisedMethod, joint_images
from .dual_task_consistency import DualTaskConsistency
from .supervised import Supervised

__all__ = ["DualTaskConsistency", "SemiSupervisedMethod", "Supervised", "joint_images"]

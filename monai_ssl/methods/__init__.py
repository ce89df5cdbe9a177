"""Methods: one file each. A method turns a labelled and an unlabelled batch into named loss terms."""

from .base import SemiSupervisedMethod, joint_images
from .correlation_aware_mutual_learning import CorrelationAwareMutualLearning
from .dual_task_consistency import DualTaskConsistency
from .supervised import Supervised
from .task_affinity_consistency import TaskAffinityConsistency

__all__ = [
    "CorrelationAwareMutualLearning",
    "DualTaskConsistency",
    "SemiSupervisedMethod",
    "Supervised",
    "TaskAffinityConsistency",
    "joint_images",
]

"""Methods: one file each. A method turns a labeled and an unlabeled batch into named loss terms."""

from .base import Batch, SemiSupervisedMethod, joint_images
from .correlation_aware_mutual_learning import CorrelationAwareMutualLearning, published_ramp_levels
from .cross_consistency import CrossConsistency
from .dual_task_consistency import DualTaskConsistency
from .mean_teacher import MeanTeacher
from .mutual_consistency import MutualConsistency
from .pyramid_consistency import PyramidConsistency
from .self_training import SelfTraining
from .smoothness_separation import SmoothnessSeparation
from .supervised import Supervised
from .task_affinity_consistency import TaskAffinityConsistency
from .transformation_consistency import TransformationConsistency
from .uncertainty_guided_mutual_consistency import UncertaintyGuidedMutualConsistency
from .weak_to_strong import WeakToStrong

__all__ = [
    "Batch",
    "CorrelationAwareMutualLearning",
    "CrossConsistency",
    "DualTaskConsistency",
    "MeanTeacher",
    "MutualConsistency",
    "PyramidConsistency",
    "SelfTraining",
    "SemiSupervisedMethod",
    "SmoothnessSeparation",
    "Supervised",
    "TaskAffinityConsistency",
    "TransformationConsistency",
    "UncertaintyGuidedMutualConsistency",
    "WeakToStrong",
    "joint_images",
    "published_ramp_levels",
]

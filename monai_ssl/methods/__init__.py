"""Methods: one file each. A method turns a labeled and an unlabeled batch into named loss terms."""

from .alternate_diverse_teaching import AlternateDiverseTeaching
from .base import Batch, SemiSupervisedMethod, joint_images
from .bidirectional_copy_paste import BidirectionalCopyPaste
from .correlation_aware_mutual_learning import CorrelationAwareMutualLearning, published_ramp_levels
from .cross_pseudo_supervision import CrossPseudoSupervision
from .deep_adversarial_network import DeepAdversarialNetwork
from .dual_task_consistency import DualTaskConsistency
from .entropy_minimization import EntropyMinimization
from .interpolation_consistency import InterpolationConsistency
from .mean_teacher import MeanTeacher
from .self_training import SelfTraining
from .shape_aware import ShapeAwareSegmentation
from .smoothness_separation import SmoothnessSeparation
from .supervised import Supervised
from .task_affinity_consistency import TaskAffinityConsistency
from .uncertainty_aware_mean_teacher import UncertaintyAwareMeanTeacher
from .uncertainty_guided_mutual_consistency import UncertaintyGuidedMutualConsistency
from .weak_to_strong import WeakToStrong

__all__ = [
    "AlternateDiverseTeaching",
    "Batch",
    "BidirectionalCopyPaste",
    "CorrelationAwareMutualLearning",
    "CrossPseudoSupervision",
    "DeepAdversarialNetwork",
    "DualTaskConsistency",
    "EntropyMinimization",
    "InterpolationConsistency",
    "MeanTeacher",
    "SelfTraining",
    "SemiSupervisedMethod",
    "ShapeAwareSegmentation",
    "SmoothnessSeparation",
    "Supervised",
    "TaskAffinityConsistency",
    "UncertaintyAwareMeanTeacher",
    "UncertaintyGuidedMutualConsistency",
    "WeakToStrong",
    "joint_images",
    "published_ramp_levels",
]

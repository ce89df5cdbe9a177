"""What hooks into Ignite engines: checkpoints, logs, progress, previews, results."""

from monai_ssl.handlers.checkpoint import RunCheckpoint
from monai_ssl.handlers.evaluation import EvaluationResults, Preview

from .costs import TrainingCosts, count_macs
from .log import TRAINING, VALIDATION, CaseProgress, Progress, TrainingLog, ValidationLog
from .validation import Validation

__all__ = [
    "TRAINING",
    "VALIDATION",
    "CaseProgress",
    "EvaluationResults",
    "Preview",
    "Progress",
    "RunCheckpoint",
    "TrainingCosts",
    "TrainingLog",
    "Validation",
    "ValidationLog",
    "count_macs",
]

"""What hooks into Ignite engines: checkpoints, logs, alarms, progress, previews, results."""

from monai_ssl.handlers.alarms import Alarms
from monai_ssl.handlers.checkpoint import RunCheckpoint
from monai_ssl.handlers.evaluation import EvaluationResults, Preview

from .costs import TrainingCosts, count_macs
from .log import TRAINING, VALIDATION, CaseProgress, Progress, TrainingLog, ValidationLog
from .validation import Validation

__all__ = [
    "TRAINING",
    "VALIDATION",
    "Alarms",
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

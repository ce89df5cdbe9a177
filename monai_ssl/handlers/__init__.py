"""What hooks into Ignite engines: checkpoints, logs, progress, previews, results."""

from .checkpoint import CHECKPOINT, MODEL, RunCheckpoint, load, load_network, save
from .evaluation import EvaluationResults, Preview, load_original, spacing_of
from .log import TRAINING, VALIDATION, CaseProgress, Progress, TrainingLog, ValidationLog
from .validation import Validation

__all__ = [
    "CHECKPOINT",
    "MODEL",
    "TRAINING",
    "VALIDATION",
    "CaseProgress",
    "EvaluationResults",
    "Preview",
    "Progress",
    "RunCheckpoint",
    "TrainingLog",
    "Validation",
    "ValidationLog",
    "load",
    "load_network",
    "load_original",
    "save",
    "spacing_of",
]

"""Engines: the trainer, the inferer and what they need."""

from monai_ssl.errors import TrainingDivergedError

from .inferer import WindowInferer
from .optimizers import build_optimizer
from .precision import Precision, autocast, autocast_dtype, channels_last, cpu_has_bfloat16
from .schedules import lr_schedule
from .segment import Segmentation, VolumeSegmenter
from .trainer import SemiSupervisedTrainer

__all__ = [
    "Precision",
    "Segmentation",
    "SemiSupervisedTrainer",
    "TrainingDivergedError",
    "VolumeSegmenter",
    "WindowInferer",
    "autocast",
    "autocast_dtype",
    "build_optimizer",
    "channels_last",
    "cpu_has_bfloat16",
    "lr_schedule",
]

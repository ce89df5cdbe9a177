"""Data: datalists, dataset presets, two-stream loading, the phantom."""

from monai_ssl.data.cases import case_name
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.loading import load_datalist
from monai_ssl.errors import DataError

from .images import images_to_segment
from .pipelines import (
    cleaning,
    postprocessing,
    preprocessing,
    random_transforms,
    saver,
    training_preprocessing,
    validation_preprocessing,
)
from .preset import Preset, available_presets, dump_preset, load_preset
from .streams import CaseDataset, TwoStreamLoader, position_seed
from .writer import AtomicNibabelWriter

__all__ = [
    "AtomicNibabelWriter",
    "CaseDataset",
    "DataError",
    "Datalist",
    "Preset",
    "TwoStreamLoader",
    "available_presets",
    "case_name",
    "cleaning",
    "dump_preset",
    "images_to_segment",
    "load_datalist",
    "load_preset",
    "position_seed",
    "postprocessing",
    "preprocessing",
    "random_transforms",
    "saver",
    "training_preprocessing",
    "validation_preprocessing",
]

"""Data: datalists, dataset presets, two-stream loading, the phantom."""

from .datalist import DataError, Datalist, case_name, load_datalist
from .images import images_to_segment
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
    "dump_preset",
    "images_to_segment",
    "load_datalist",
    "load_preset",
    "position_seed",
]

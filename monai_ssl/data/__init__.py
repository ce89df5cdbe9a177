"""What training needs to know of the data: datalists, dataset presets, reading scans, two-stream loading.

What happens before a training (choosing cases, checking, preparing, phantoms) is in :mod:`monai_ssl.curation`.
Names are imported on first use: datalists and presets by themselves load neither PyTorch nor MONAI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_ssl.errors import DataError

    from .cache import CaseCache
    from .cases import case_name
    from .datalist import Datalist
    from .images import images_to_segment
    from .loading import fold_datalists, load_datalist
    from .monai_io import AtomicNibabelWriter
    from .pipelines import (
        plausible_flips,
        postprocessing,
        preprocessing,
        random_transforms,
        saver,
        strong_transforms,
        training_preprocessing,
        validation_preprocessing,
    )
    from .preset import Preset, available_presets, dump_preset, load_preset
    from .protocol import training_protocol
    from .pseudo_labels import pseudo_label_preprocessing, pseudo_labeled
    from .streams import CaseDataset, TwoStreamLoader, position_seed

# public name -> the module that defines it
_HOMES = {
    "AtomicNibabelWriter": "monai_ssl.data.monai_io",
    "CaseCache": "monai_ssl.data.cache",
    "CaseDataset": "monai_ssl.data.streams",
    "DataError": "monai_ssl.errors",
    "Datalist": "monai_ssl.data.datalist",
    "Preset": "monai_ssl.data.preset",
    "TwoStreamLoader": "monai_ssl.data.streams",
    "available_presets": "monai_ssl.data.preset",
    "case_name": "monai_ssl.data.cases",
    "dump_preset": "monai_ssl.data.preset",
    "images_to_segment": "monai_ssl.data.images",
    "fold_datalists": "monai_ssl.data.loading",
    "load_datalist": "monai_ssl.data.loading",
    "load_preset": "monai_ssl.data.preset",
    "plausible_flips": "monai_ssl.data.pipelines",
    "position_seed": "monai_ssl.data.streams",
    "postprocessing": "monai_ssl.data.pipelines",
    "preprocessing": "monai_ssl.data.pipelines",
    "pseudo_label_preprocessing": "monai_ssl.data.pseudo_labels",
    "pseudo_labeled": "monai_ssl.data.pseudo_labels",
    "random_transforms": "monai_ssl.data.pipelines",
    "saver": "monai_ssl.data.pipelines",
    "strong_transforms": "monai_ssl.data.pipelines",
    "training_preprocessing": "monai_ssl.data.pipelines",
    "training_protocol": "monai_ssl.data.protocol",
    "validation_preprocessing": "monai_ssl.data.pipelines",
}
# configs name these by attribute: monai_ssl.data.cases.image_files
_MODULES = (
    "cache", "cases", "content", "datalist", "footprint", "formats", "guard", "images", "loading", "mapped",
    "monai_io", "patients", "pipelines", "placement", "pool", "preset", "protocol", "pseudo_labels", "reading", "rules",
    "scan", "streams", "writing",
)  # fmt: skip

__all__ = [
    "AtomicNibabelWriter",
    "CaseCache",
    "CaseDataset",
    "DataError",
    "Datalist",
    "Preset",
    "TwoStreamLoader",
    "available_presets",
    "case_name",
    "dump_preset",
    "fold_datalists",
    "images_to_segment",
    "load_datalist",
    "load_preset",
    "plausible_flips",
    "position_seed",
    "postprocessing",
    "preprocessing",
    "pseudo_label_preprocessing",
    "pseudo_labeled",
    "random_transforms",
    "saver",
    "strong_transforms",
    "training_preprocessing",
    "training_protocol",
    "validation_preprocessing",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})

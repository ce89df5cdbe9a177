"""Runs: their folders, and what is done with them: train, evaluate, predict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_ssl._lazy import lazy_names

if TYPE_CHECKING:
    from monai_ssl.runs.evaluation import Evaluation
    from monai_ssl.runs.folder import CHECKPOINT, MODEL, Run
    from monai_ssl.runs.monai_program import say_mistakes_in_a_line
    from monai_ssl.runs.record import Record
    from monai_ssl.runs.warm_start import WarmStart, warm_started
    from monai_ssl.weights import load, load_network, save

__all__ = [
    "CHECKPOINT",
    "MODEL",
    "Evaluation",
    "Record",
    "Run",
    "WarmStart",
    "load",
    "load_network",
    "save",
    "say_mistakes_in_a_line",
    "say_where",
    "warm_started",
]

_HOMES = {
    "CHECKPOINT": "monai_ssl.runs.folder",
    "MODEL": "monai_ssl.runs.folder",
    "Evaluation": "monai_ssl.runs.evaluation",
    "Record": "monai_ssl.runs.record",
    "Run": "monai_ssl.runs.folder",
    "WarmStart": "monai_ssl.runs.warm_start",
    "load": "monai_ssl.weights",
    "load_network": "monai_ssl.weights",
    "save": "monai_ssl.weights",
    "say_mistakes_in_a_line": "monai_ssl.runs.monai_program",
    "warm_started": "monai_ssl.runs.warm_start",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""Runs: train, evaluate, predict."""

from .folder import CHECKPOINT, MODEL
from .weights import load, load_network, save

__all__ = ["CHECKPOINT", "MODEL", "load", "load_network", "save"]

"""Moved to :mod:`monai_ssl.weights`."""

from monai_ssl.weights import load, load_network, save

__all__ = ["load", "load_network", "save"]

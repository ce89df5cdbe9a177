"""Transforms that MONAI lacks."""

from .literature import LiteraturePadd, RandLiteratureCropd, RandRotateFlipd, rotate_flip
from .signed_distance import SignedDistanceMap, SignedDistanceMapd, signed_distance_map

__all__ = [
    "LiteraturePadd",
    "RandLiteratureCropd",
    "RandRotateFlipd",
    "SignedDistanceMap",
    "SignedDistanceMapd",
    "rotate_flip",
    "signed_distance_map",
]

"""Transforms that MONAI lacks."""

from .literature import LiteraturePadd, RandLiteratureCropd, RandRotateFlipd, rotate_flip
from .signed_distance import SignedDistanceMap, SignedDistanceMapd, signed_distance_map
from .slices import OrientSlicesd, RandSliced

__all__ = [
    "LiteraturePadd",
    "OrientSlicesd",
    "RandLiteratureCropd",
    "RandRotateFlipd",
    "RandSliced",
    "SignedDistanceMap",
    "SignedDistanceMapd",
    "rotate_flip",
    "signed_distance_map",
]

"""Transforms that MONAI lacks."""

from .centre_crop import CentreCropd, centre_window
from .intensity import NormalizeNonzerod
from .literature import LiteraturePadd, RandLiteratureCropd, RandRotateFlipd, rotate_flip
from .signed_distance import SignedDistanceMap, SignedDistanceMapd, signed_distance_map
from .slices import ByRankd, RandSliced, RandSliceRotateFlipd

__all__ = [
    "ByRankd",
    "CentreCropd",
    "LiteraturePadd",
    "NormalizeNonzerod",
    "RandLiteratureCropd",
    "RandRotateFlipd",
    "RandSliceRotateFlipd",
    "RandSliced",
    "SignedDistanceMap",
    "SignedDistanceMapd",
    "centre_window",
    "rotate_flip",
    "signed_distance_map",
]

"""Transforms that MONAI lacks."""

from .batched import change_strongly, cutmix
from .center_crop import CenterCropd, center_window
from .components import largest_component, largest_components
from .image_grid import LabelsOnImageGridd, on_image_grid
from .intensity import NormalizeNonzerod, RandCoilFieldd
from .known import PadUnknownd, UntilKnown
from .literature import LiteraturePadd, RandLiteratureCropd, RandRotateFlipd, rotate_flip
from .patch import RandPatchd, sample_patch
from .poses import Poses, random_poses
from .signed_distance import SignedDistanceMap, SignedDistanceMapd, signed_distance_map
from .slices import DispatchByDimensiond, RandSliceRotateFlipd, RandSliceSelectd

__all__ = [
    "CenterCropd",
    "DispatchByDimensiond",
    "LabelsOnImageGridd",
    "LiteraturePadd",
    "NormalizeNonzerod",
    "PadUnknownd",
    "Poses",
    "RandCoilFieldd",
    "RandLiteratureCropd",
    "RandPatchd",
    "RandRotateFlipd",
    "RandSliceRotateFlipd",
    "RandSliceSelectd",
    "SignedDistanceMap",
    "SignedDistanceMapd",
    "UntilKnown",
    "center_window",
    "change_strongly",
    "cutmix",
    "largest_component",
    "largest_components",
    "on_image_grid",
    "random_poses",
    "rotate_flip",
    "sample_patch",
    "signed_distance_map",
]

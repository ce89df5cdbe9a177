"""Surface distances between two masks, as the literature defines them.

MONAI and medpy extract the same surface but define the 95 % Hausdorff distance differently: MONAI takes the larger of
the two directed 95th percentiles, medpy the 95th percentile of both directed sets pooled. Published semi-supervised
results use medpy's definition, and so does this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from .overlap import to_masks

__all__ = ["SurfaceDistances", "check_spacing", "image_diagonal", "surface_points"]


def check_spacing(spacing: Sequence[float] | float | None, ndim: int) -> np.ndarray:
    """Return the voxel spacing as ``ndim`` positive numbers.

    Args:
        spacing: one number per axis, one number for all axes, or None for unit spacing.
        ndim: number of spatial axes.

    Returns:
        float64 array of shape (ndim,).

    Raises:
        ValueError: if the count is wrong, or a value is not positive and finite.

    Example:
        >>> check_spacing(None, 2).tolist()
        [1.0, 1.0]
    """
    array = np.ones(ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if array.ndim == 0:
        array = np.full(ndim, float(array))
    if array.shape != (ndim,):
        raise ValueError(f"spacing must hold one value per image axis ({ndim}), got {spacing!r}")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"spacing must be positive and finite, got {spacing!r}")
    return array


def image_diagonal(shape: Sequence[int], spacing: Sequence[float] | float | None = None) -> float:
    """Length of the image diagonal: the penalty distance of a case where exactly one mask is empty.

    No two voxels of the image are that far apart, so a missed structure scores worse than any drawn one.

    Args:
        shape: image shape in voxels.
        spacing: millimeters per voxel and axis; None gives the diagonal in voxels.

    Returns:
        The diagonal in millimeters (or voxels).

    Example:
        >>> image_diagonal((3, 4))
        5.0
    """
    return float(np.linalg.norm(np.asarray(shape, dtype=np.float64) * check_spacing(spacing, len(shape))))


def surface_points(mask: Any, known: Any = None) -> np.ndarray:
    """Indices of the surface voxels: foreground voxels with a face neighbor outside the mask.

    Beyond the image counts as outside, so a structure cut by the border has surface there (as in medpy).

    Args:
        mask: boolean array of shape (X, Y) or (X, Y, Z).
        known: array of that shape, False where nobody knows whether a voxel is of the mask, which is False there: a
            voxel beside them is no surface for that. None: all are known.

    Returns:
        int array of shape (N, ndim).

    Example:
        >>> len(surface_points(np.ones((3, 3), dtype=bool)))
        8
    """
    mask = np.asarray(mask, dtype=bool)
    if not mask.any():
        return np.zeros((0, mask.ndim), dtype=np.int64)
    filled = mask if known is None else mask | ~np.asarray(known, dtype=bool)
    margin = 0 if known is None else 1  # unknown neighbors must be seen
    box = []
    for axis in range(mask.ndim):  # crop first: erosion of a whole scan costs far more than that of the organ
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(int(hit[0]) - margin, 0), int(hit[-1]) + 1 + margin))
    surface = mask[tuple(box)] & ~binary_erosion(filled[tuple(box)])
    return np.argwhere(surface) + [side.start for side in box]


class SurfaceDistances:
    """Both directed sets of distances between the surfaces of two non-empty masks.

    Args:
        prediction: mask of shape (X, Y) or (X, Y, Z); non-zero is foreground.
        reference: mask of the same shape.
        spacing: millimeters per voxel and axis; None gives distances in voxels.
        known: array of that shape, False where nobody knows the truth: both masks are 0 there, and end at known voxels
            only. Where a mask has no such end (all of it lies beside unknown voxels), both end there as well.

    Attributes:
        to_reference: distance of every surface voxel of the prediction to the surface of the reference.
        to_prediction: distance of every surface voxel of the reference to the surface of the prediction.

    Raises:
        ValueError: if the shapes differ, a mask is empty or ``spacing`` does not fit.

    Example:
        >>> first, second = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
        >>> first[2, 2], second[5, 6] = True, True
        >>> SurfaceDistances(first, second).hd95()
        5.0
    """

    def __init__(
        self, prediction: Any, reference: Any, spacing: Sequence[float] | float | None = None, known: Any = None
    ) -> None:
        first, second = to_masks(prediction, reference)
        for name, mask in (("prediction", first), ("reference", second)):
            if not mask.any():
                raise ValueError(f"{name} must hold at least one foreground voxel, got an empty mask")
        scale = check_spacing(spacing, first.ndim)
        ends = [surface_points(mask, known) for mask in (first, second)]
        if not all(map(len, ends)):
            ends = [surface_points(mask) for mask in (first, second)]
        points = [found * scale for found in ends]
        self.to_reference: np.ndarray = KDTree(points[1], leafsize=32).query(points[0])[0]
        self.to_prediction: np.ndarray = KDTree(points[0], leafsize=32).query(points[1])[0]

    def hd95(self) -> float:
        """95th percentile of both directed sets pooled (medpy ``hd95``)."""
        return float(np.percentile(np.concatenate([self.to_reference, self.to_prediction]), 95))

    def asd(self) -> float:
        """Mean distance from the prediction's surface to the reference's: one direction only (medpy ``asd``)."""
        return float(self.to_reference.mean())

    def assd(self) -> float:
        """Mean of both directed sets pooled (medpy ``assd``): not the mean of the two directed means."""
        return float(np.concatenate([self.to_reference, self.to_prediction]).mean())

"""Overlap of two masks, and the largest-component clean-up that the literature applies before scoring."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["dice_score", "jaccard_score", "largest_component"]


def to_array(value: Any) -> np.ndarray:
    """Return ``value`` (array, nested list, tensor on any device) as a plain NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def to_masks(prediction: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both arguments as boolean arrays of one shape; any non-zero value is foreground."""
    first, second = to_array(prediction).astype(bool), to_array(reference).astype(bool)
    if first.shape != second.shape:
        raise ValueError(f"prediction and reference must have the same shape, got {first.shape} and {second.shape}")
    return first, second


def dice_score(prediction: Any, reference: Any) -> float:
    """Dice coefficient 2|P ∩ R| / (|P| + |R|) of two masks.

    Args:
        prediction: mask of any shape; non-zero is foreground.
        reference: mask of the same shape.

    Returns:
        A value in [0, 1]; 1 when both masks are empty, 0 when exactly one is.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> dice_score([1, 1, 0, 0], [0, 1, 0, 0])
        0.6666666666666666
    """
    first, second = to_masks(prediction, reference)
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else 1.0


def jaccard_score(prediction: Any, reference: Any) -> float:
    """Jaccard index |P ∩ R| / |P ∪ R| of two masks.

    Args:
        prediction: mask of any shape; non-zero is foreground.
        reference: mask of the same shape.

    Returns:
        A value in [0, 1]; 1 when both masks are empty, 0 when exactly one is.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> jaccard_score([1, 1, 0, 0], [0, 1, 0, 0])
        0.5
    """
    first, second = to_masks(prediction, reference)
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def largest_component(labelmap: Any) -> np.ndarray:
    """Keep the largest connected component of every class (full connectivity: 8 in 2D, 26 in 3D).

    The released test scripts of several methods clean their predictions so before they score them. Among components
    of equal size the first in scan order stays. An empty mask, or an empty class, is returned as it is.

    Args:
        labelmap: mask or integer label map, shape (X, Y) or (X, Y, Z), 0 = background.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: if ``labelmap`` is neither 2D nor 3D.

    Example:
        >>> largest_component(np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1]]))
        array([[0, 0, 0],
               [0, 0, 1],
               [0, 0, 1]])
    """
    array = to_array(labelmap)
    if array.ndim not in (2, 3):
        raise ValueError(f"labelmap must have shape (X, Y) or (X, Y, Z), got shape {array.shape}")
    result = np.zeros_like(array)
    structure = np.ones((3,) * array.ndim, dtype=bool)
    for value in np.unique(array):
        if value == 0:
            continue
        components, count = ndimage.label(array == value, structure=structure)
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        result[components == int(np.argmax(sizes[1:])) + 1] = value
    return result

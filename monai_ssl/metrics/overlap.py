"""Overlap of two masks."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["dice_score", "jaccard_score", "to_array"]


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
    r"""Dice coefficient :math:`2 |P \cap R| / (|P| + |R|)` of two masks.

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
    r"""Jaccard index :math:`|P \cap R| / |P \cup R|` of two masks.

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

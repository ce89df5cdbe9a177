"""The largest connected component of masks and label maps."""

from __future__ import annotations

import numpy as np
import torch


def largest_component(mask: np.ndarray, connectivity: int | None = None) -> np.ndarray:
    """The largest component of a mask; of equal ones the first in the order of storage.

    Args:
        mask: bool ``(*spatial)``; an empty one is returned as it is.
        connectivity: how many axes may differ by one between neighbors, 1 (faces) to the number of axes (corners).
            None: as many as there are.

    Returns:
        bool, the same shape.

    Example:
        >>> largest_component(np.array([1, 0, 1, 1, 0], bool)).tolist()
        [False, False, True, True, False]
    """
    from scipy import ndimage  # imported here: nothing else in this package needs it at once

    rank = mask.ndim
    parts, n = ndimage.label(mask, ndimage.generate_binary_structure(rank, min(connectivity or rank, rank)))
    if n < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def largest_components(label: torch.Tensor, n_classes: int, connectivity: int | None = None) -> torch.Tensor:
    """Each class of each image keeps its largest component only; the rest becomes background.

    Computed on the CPU by SciPy.

    Args:
        label: ``(B, 1, *spatial)`` integer-valued in [0, n_classes).
        n_classes: number of classes, background included.
        connectivity: see :func:`largest_component`.

    Returns:
        the same shape, dtype and device; ``label`` itself stays as it is.

    Example:
        >>> largest_components(torch.tensor([[[1, 0, 1, 1, 2, 0, 2]]]), 3).tolist()
        [[[0, 0, 1, 1, 2, 0, 0]]]
    """
    found = label.cpu().numpy().copy()
    for image in found[:, 0]:
        masks = [image == value for value in range(1, n_classes)]
        for mask in masks:
            image[mask & ~largest_component(mask, connectivity)] = 0
    return torch.from_numpy(found).to(label.device)

"""The one value of a label map that is no class."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_LABEL = 255
"""Voxels of this value take no part in any supervised loss: nobody knows their class."""


def ignored_voxels(label: Tensor) -> Tensor | None:
    """Where ``label`` is :data:`IGNORE_LABEL`; None where a look has shown that no voxel is.

    On a CPU a look costs next to nothing and spares all masking. On a GPU it would make the host wait for the network's
    pass, so nobody looks there: the mask is returned in any case, and masking nothing changes no bit of a loss.

    Args:
        label: integer-valued, any shape.

    Returns:
        bool tensor of the same shape, or None.

    Example:
        >>> import torch
        >>> ignored_voxels(torch.tensor([0, 1, 255])).tolist(), ignored_voxels(torch.tensor([0, 1]))
        ([False, False, True], None)
    """
    ignored = label == IGNORE_LABEL
    return None if label.device.type == "cpu" and not ignored.any() else ignored

"""Small tools for batches of feature maps that plain autograd does less well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["float32_or_wider", "unlabeled_rows", "voxel_rows"]


def float32_or_wider(x: Tensor) -> Tensor:
    """``x`` in float32; float64 stays what it is.

    Example:
        >>> [float32_or_wider(torch.zeros(1, dtype=d)).dtype for d in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return x if x.dtype == torch.float64 else x.float()


def unlabeled_rows(x: Tensor, n_labeled: int) -> Tensor:
    """The unlabeled rows of a joint batch, ``x[n_labeled:]``.

    Use it for feature maps. The gradient of plain indexing is contiguous, which slows down whatever reads it together
    with channels-last tensors; the gradient of this view keeps the layout of ``x``.

    Args:
        x: ``(B, ...)``, the labeled rows first, as :func:`monai_ssl.methods.joint_images` stacks them.
        n_labeled: number of labeled rows, 0 to B.

    Returns:
        ``(B - n_labeled, ...)``, a view.

    Example:
        >>> unlabeled_rows(torch.arange(4.0), 1).tolist()
        [1.0, 2.0, 3.0]
    """
    return _UnlabeledRows.apply(x, n_labeled)


class _UnlabeledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, start: int) -> Tensor:
        ctx.like, ctx.start = torch.empty_like(x, device="meta"), start
        return x[start:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = torch.empty_like(ctx.like, device=grad.device, dtype=grad.dtype)
        out[: ctx.start] = 0
        out[ctx.start :] = grad
        return out, None


def voxel_rows(x: Tensor) -> Tensor:
    """Voxels as rows: ``(B, C, *spatial)`` -> ``(B * V, C)``, a view in channels-last layout."""
    return x.movedim(1, -1).flatten(0, -2)

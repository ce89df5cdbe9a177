"""Mean and covariance over the voxels of a feature map, and normalizations that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_ssl.networks.recompute.switch import enabled
from monai_ssl.networks.tensors import float32_or_wider, voxel_rows

CHUNK = 1 << 14  # voxels at a time: what is computed in between stays in the cache
GPU_CHUNK = 1 << 20  # on a GPU: little memory, few kernels


def mean_and_covariance(
    x: Tensor, counted: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and covariance over the voxels, or those of ``relu(weight @ voxel + bias)``.

    Args:
        x: ``(B, F, *spatial)`` or ``(N, F)``, any float format and layout.
        counted: ``(M,)`` int64, distinct: which of the ``B * V`` voxels count, at least one. None: all.
        weight: ``(D, F)`` float32, or None.
        bias: ``(D,)`` float32, or None.

    Returns:
        mean ``(D,)`` and biased covariance ``(D, D)``, float32 (float64 for such ``x``), differentiable in ``x``,
        ``weight`` and ``bias``. Of the voxels, nothing but ``x`` is kept for the backward pass.
    """
    if enabled():
        return _MeanAndCovariance.apply(x, counted, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        y = _hidden_layer(_select(voxel_rows(x), counted), weight, bias)
        mean = y.mean(0)
        return mean, (y - mean).T @ (y - mean) / len(y)


class _MeanAndCovariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counted: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Any:
        d = x.shape[1] if weight is None else len(weight)
        total, squares, shift = (float32_or_wider(x.new_zeros(size)) for size in ((d,), (d, d), (d,)))
        voxels = voxel_rows(x)
        with torch.autocast(x.device.type, enabled=False):
            ctx.n = len(voxels) if counted is None else len(counted)
            for chunk in chunks(ctx.n, x.device):
                y = _hidden_layer(_select(voxels, counted, chunk), weight, bias)
                if chunk.start == 0:
                    shift = y.mean(0)  # near the mean: little cancels in the squares
                y = y - shift
                total += y.sum(0)
                squares.addmm_(y.T, y)
            offset = total / ctx.n
            mean = shift + offset
            # an output: as an attribute of ctx it would keep the graph alive in a circle
            ctx.save_for_backward(x, counted, weight, bias, mean)
            return mean, squares / ctx.n - torch.outer(offset, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_covariance: Tensor) -> tuple[Tensor | None, ...]:
        x, counted, weight, bias, mean = ctx.saved_tensors
        voxels = voxel_rows(x)
        grad = x.new_empty(voxels.shape) if counted is None else x.new_zeros(voxels.shape)
        grad_weight = torch.zeros_like(weight) if weight is not None else None
        grad_bias = torch.zeros_like(bias) if bias is not None else None
        # d mean / d y = 1 / n, d covariance / d y = 2 (y - mean) / n: one affine map of y
        slope = (grad_covariance + grad_covariance.T) / ctx.n
        constant = grad_mean / ctx.n - mean @ slope
        with torch.autocast(x.device.type, enabled=False):
            for chunk in chunks(ctx.n, x.device):
                v = _select(voxels, counted, chunk)
                y = _hidden_layer(v, weight, bias)
                g = torch.addmm(constant, y, slope)
                if grad_weight is not None and grad_bias is not None:
                    g *= y > 0
                    grad_weight.addmm_(g.T, v)
                    grad_bias += g.sum(0)
                    g = g @ weight
                if counted is None:
                    grad[chunk] = g
                else:
                    grad.index_copy_(0, counted[chunk], g.to(grad.dtype))
        return rows_as_map(grad, x), None, grad_weight, grad_bias


def chunks(n: int, device: torch.device) -> Iterator[slice]:
    """``range(n)`` in slices of :data:`CHUNK`, on a GPU of :data:`GPU_CHUNK`."""
    size = CHUNK if device.type == "cpu" else GPU_CHUNK
    return (slice(start, start + size) for start in range(0, n, size))


def rows_as_map(rows: Tensor, x: Tensor) -> Tensor:
    """The inverse of :func:`~monai_ssl.networks.tensors.voxel_rows` for rows of ``x``, a view."""
    return rows.view(len(x), *x.shape[2:], x.shape[1]).movedim(-1, 1)


def _select(voxels: Tensor, counted: Tensor | None, chunk: slice = slice(None)) -> Tensor:
    return float32_or_wider(voxels[chunk] if counted is None else voxels.index_select(0, counted[chunk]))


def _hidden_layer(voxels: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return voxels if weight is None else nn.functional.linear(voxels, weight, bias).relu_()


def fold_normalization(
    norm: Any, weight: Tensor, bias: Tensor, moments: tuple[Tensor, Tensor], n: int
) -> tuple[Tensor, Tensor]:
    """A linear map and the batch normalization after it as one affine map; updates the running statistics.

    Args:
        norm: batch normalization with affine parameters, in training.
        weight: ``(D, F)`` of the linear map.
        bias: ``(D,)``. It cancels, and gets a gradient of zero.
        moments: :func:`mean_and_covariance` of what the linear map reads.
        n: number of rows that they were taken over, > 1.

    Returns:
        weight ``(D, F)`` and bias ``(D,)``, differentiable.
    """
    mean, covariance = moments
    center = weight @ mean + bias
    variance = ((weight @ covariance) * weight).sum(1).clamp(min=0)
    if norm.track_running_stats and norm.momentum is not None:
        with torch.no_grad():
            norm.running_mean.lerp_(center, norm.momentum)
            norm.running_var.lerp_(variance * (n / (n - 1)), norm.momentum)
            norm.num_batches_tracked.add_(1)
    factor = norm.weight * (variance + norm.eps).rsqrt()
    return factor[:, None] * weight, norm.bias + factor * (bias - center)

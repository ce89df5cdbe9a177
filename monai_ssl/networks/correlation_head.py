"""Projection and prediction of voxel features, of which only a few rows are needed (CAML)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["CorrelationHead", "ProjectionHead"]

CHUNK = 1 << 16


class ProjectionHead(nn.Module):
    """Linear, batch normalization, ReLU, linear, on rows.

    Args:
        in_channels, channels: of the input, and of hidden layer and output.

    Shapes:
        ``(N, in_channels)`` -> ``(N, channels)``; in training N > 1.

    Example:
        >>> ProjectionHead(4, 8)(torch.rand(3, 4)).shape
        torch.Size([3, 8])
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_channels, channels)
        self.norm = nn.BatchNorm1d(channels)
        self.second = nn.Linear(channels, channels)

    def forward(self, rows: Tensor) -> Tensor:
        return self.second(self.norm(self.first(rows)).relu())


class CorrelationHead(nn.Module):
    r"""A projection and a prediction head on the rows of a feature map.

    :meth:`forward` computes the prediction of few rows with the batch statistics of many. Both batch normalizations see
    a linear map of rows, so that mean and variance follow from the mean and the covariance of these rows (before the
    second one: of the hidden layer, taken piece by piece and computed again in the backward pass). What is as long as
    the voxels of a batch is never stored, yet values, gradients and running statistics are those of projecting every
    row.

    Args:
        in_channels: F of the feature map.
        channels: D of the embedding. The released code runs with 32, the paper says 64.

    Source: Gao et al., CAML, MICCAI 2023, section 2.3; the two heads and their batch statistics over all rows are those
        of the released code.

    Example:
        >>> head = CorrelationHead(4, 8)
        >>> rows, mask = torch.rand(100, 4), torch.ones(100, dtype=torch.bool)
        >>> head(rows, mask, torch.tensor([3, 5])).shape, head.embed(rows[:7]).shape
        (torch.Size([2, 8]), torch.Size([7, 8]))
    """

    def __init__(self, in_channels: int, channels: int = 32) -> None:
        super().__init__()
        self.projection = ProjectionHead(in_channels, channels)
        self.prediction = ProjectionHead(channels, channels)

    @torch.no_grad()
    def embed(self, rows: Tensor) -> Tensor:
        """Projection with running statistics, without gradient: ``(N, F)`` -> ``(N, D)`` float32."""
        head = self.projection
        norm = head.norm
        with torch.autocast(rows.device.type, enabled=False):
            hidden = nn.functional.batch_norm(
                head.first(rows.float()), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
            return head.second(hidden.relu())

    def forward(self, rows: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
        """Prediction of the projection of chosen rows, in training with the statistics of all rows under the mask.

        Args:
            rows: ``(N, F)``, any float format and layout.
            mask: ``(N,)`` bool, with two rows or more in training.
            chosen: ``(M,)`` indices of rows.

        Returns:
            ``(M, D)`` float32.
        """
        with torch.autocast(rows.device.type, enabled=False):
            x = rows[chosen].float()
            first, second = self.projection, self.prediction
            if not self.training:
                return second(first(x))
            n = int(mask.sum())
            scale, shift = _affine(first.norm, first.first.weight, first.first.bias, moments(rows, mask), n)
            hidden = moments(rows, mask, scale, shift)
            # the prediction's first layer reads the projection's last: one linear map of the hidden layer
            weight = second.first.weight @ first.second.weight
            bias = second.first.weight @ first.second.bias + second.first.bias
            x = nn.functional.linear(x, scale, shift).relu()
            scale, shift = _affine(second.norm, weight, bias, hidden, n)
            return second.second(nn.functional.linear(x, scale, shift).relu())


def _affine(
    norm: nn.BatchNorm1d, weight: Tensor, bias: Tensor, statistics: tuple[Tensor, Tensor], n: int
) -> tuple[Tensor, Tensor]:
    """Linear layer and batch normalization in one affine map; updates the running statistics."""
    mean, covariance = statistics
    center = weight @ mean + bias
    variance = ((weight @ covariance) * weight).sum(1).clamp(min=0)
    if norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None:
        with torch.no_grad():
            norm.running_mean.lerp_(center, norm.momentum)
            norm.running_var.lerp_(variance * (n / (n - 1)), norm.momentum)
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    factor = norm.weight * (variance + norm.eps).rsqrt()
    return factor[:, None] * weight, norm.bias + factor * (bias - center)


def moments(
    rows: Tensor, mask: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the rows under a mask, or of ``relu(rows @ weight.T + bias)``.

    Args:
        rows: ``(N, F)``, any float format and layout.
        mask: ``(N,)`` bool, at least one row.
        weight: ``(D, F)`` float32, or None.
        bias: ``(D,)`` float32, or None.

    Returns:
        mean ``(D,)`` and biased covariance ``(D, D)``, float32, differentiable; of length N, only the rows are kept.
    """
    return _Moments.apply(rows, mask, weight, bias)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None) -> Any:
        n, d = 0, rows.shape[1] if weight is None else len(weight)
        total, squares, shift = (rows.new_zeros(s, dtype=torch.float32) for s in ((d,), (d, d), (d,)))
        with torch.autocast(rows.device.type, enabled=False):
            for x, m, _ in _chunks(rows, mask):
                y = _hidden(x[m], weight, bias)
                if not len(y):
                    continue
                if n == 0:
                    shift = y.mean(0)  # near the mean: little cancels in the squares
                y = y - shift
                n += len(y)
                total += y.sum(0)
                squares.addmm_(y.T, y)
            offset = total / n
            mean, covariance = shift + offset, squares / n - torch.outer(offset, offset)
        ctx.save_for_backward(rows, mask, weight, bias, mean)
        ctx.n = n
        return mean, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_covariance: Tensor) -> tuple[Tensor | None, ...]:
        rows, mask, weight, bias, mean = ctx.saved_tensors
        grad = torch.zeros_like(rows)
        symmetric = of_covariance + of_covariance.T
        of_weight = torch.zeros_like(weight) if weight is not None else None
        of_bias = torch.zeros_like(bias) if bias is not None else None
        with torch.autocast(rows.device.type, enabled=False):
            for x, m, place in _chunks(rows, mask):
                x = x[m]
                y = _hidden(x, weight, bias)
                g = torch.addmm(of_mean, y - mean, symmetric) / ctx.n
                if weight is not None and of_weight is not None and of_bias is not None:
                    g = g * (y > 0)
                    of_weight.addmm_(g.T, x)
                    of_bias.add_(g.sum(0))
                    g = g @ weight
                grad[place][m] = g.to(grad.dtype)
        return grad, None, of_weight, of_bias


def _chunks(rows: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor, slice]]:
    for start in range(0, len(rows), CHUNK):
        place = slice(start, start + CHUNK)
        yield rows[place].float(), mask[place], place


def _hidden(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return x if weight is None else nn.functional.linear(x, weight, bias).relu_()

"""Projection and prediction of voxel features, of which only a few rows are needed (CAML)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_ssl.networks import lean

__all__ = ["CorrelationHead", "ProjectionHead"]


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
    """A projection and a prediction head on the voxels of a feature map.

    :meth:`forward` computes the prediction of few voxels with the batch statistics of many. Both batch normalizations
    see a linear map, so that mean and variance follow from mean and covariance of what the map reads (for the second
    one: of the hidden layer, taken piece by piece and computed again in the backward pass). Nothing as long as the
    voxels of a batch is stored, yet values, gradients and running statistics are those of projecting every voxel.

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

    def forward(self, x: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
        """Prediction of the projection of chosen voxels, in training with the statistics of all under the mask.

        Args:
            x: ``(B, F, *spatial)`` or ``(N, F)``, any float format and layout.
            mask: ``(B * V,)`` bool, with two voxels or more in training.
            chosen: ``(M,)`` indices of voxels.

        Returns:
            ``(M, D)`` float32.
        """
        with torch.autocast(x.device.type, enabled=False):
            rows = lean.rows(x)[chosen].float()
            first, second = self.projection, self.prediction
            if not self.training:
                return second(first(rows))
            n = int(mask.sum())
            w1, b1 = lean.normalized_linear(first.norm, first.first.weight, first.first.bias, lean.moments(x, mask), n)
            hidden = lean.moments(x, mask, w1, b1)
            # the prediction's first layer reads the projection's last: one linear map of the hidden layer
            weight = second.first.weight @ first.second.weight
            bias = second.first.weight @ first.second.bias + second.first.bias
            w2, b2 = lean.normalized_linear(second.norm, weight, bias, hidden, n)
            rows = nn.functional.linear(rows, w1, b1).relu()
            return second.second(nn.functional.linear(rows, w2, b2).relu())

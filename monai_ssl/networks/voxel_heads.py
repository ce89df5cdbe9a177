"""Projection and prediction heads on the features of single voxels, of which only some are needed (SS-Net, CAML)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from monai_ssl.networks.recompute import fold_normalization, mean_and_covariance
from monai_ssl.networks.tensors import float32_or_wider

__all__ = ["PointwiseHead", "VoxelHeads"]


class PointwiseHead(nn.Module):
    """Linear, batch normalization, activation, Linear on rows of features.

    Args:
        in_channels: of a row.
        hidden_channels: between the two linear layers.
        out_channels: of the result.
        negative_slope: of the activation; 0 is ReLU.

    Shapes:
        ``(M, in_channels)`` -> ``(M, out_channels)``; in training mode M >= 2.

    Example:
        >>> PointwiseHead(16, 32, 32)(torch.rand(5, 16)).shape
        torch.Size([5, 32])
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, negative_slope: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(in_channels, hidden_channels)
        self.norm = nn.BatchNorm1d(hidden_channels)
        self.act = nn.LeakyReLU(negative_slope, inplace=True) if negative_slope else nn.ReLU(inplace=True)
        self.second = nn.Linear(hidden_channels, out_channels)

    def forward(self, rows: Tensor) -> Tensor:
        return self.second(self.act(self.norm(self.first(rows))))


class VoxelHeads(nn.Module):
    """A projection head and a prediction head on top of it, for the voxels that matter.

    In training mode the batch normalization inside the heads uses the statistics of *all* voxels (or of all that are
    counted), as in the released codes, which send all of them through both heads. Here they come from sums over the
    voxels instead: a linear layer maps mean and covariance of its input to those of its output, so the first
    normalization needs only the moments of the feature map, and the second one those of 32 hidden channels that are
    made and dropped block by block. Only the selected voxels are then sent through the heads. Values, gradients and
    running statistics are those of ``prediction(projection(all voxels))[selected]`` up to rounding, in a fraction of
    time and memory.

    Everything is float32, whatever the format of the features and under autocast.

    Args:
        in_channels: channels of the feature map.
        channels: of both heads' hidden and output features. CAML's code runs with 32, its paper says 64.

    Example:
        >>> heads = VoxelHeads(16, 32)
        >>> heads(torch.rand(2, 16, 4, 4), torch.tensor([0, 5, 31])).shape  # of 2 * 4 * 4 voxels
        torch.Size([3, 32])

    Source: Wu et al., SS-Net, MICCAI 2022, section 2.2 and figure 5; Gao et al., CAML, MICCAI 2023, section 2.3;
        batch-norm algebra: ours.
    """

    def __init__(self, in_channels: int, channels: int = 32) -> None:
        super().__init__()
        self.projection = PointwiseHead(in_channels, channels, channels)
        self.prediction = PointwiseHead(channels, channels, channels)

    def forward(self, features: Tensor, selected: Tensor, counted: Tensor | None = None) -> Tensor:
        """Predicted features of the selected voxels.

        Args:
            features: feature map ``(B, in_channels, *spatial)``, any float format and layout.
            selected: distinct places among the ``B * n_voxels``, ``(M,)`` int64; M may be 0.
            counted: places whose voxels the batch statistics are taken over in training mode, ``(N,)`` int64, distinct,
                two or more. None: all.

        Returns:
            ``(M, channels)`` float32.
        """
        with torch.autocast(features.device.type, enabled=False):
            if not self.training:
                return self.prediction(self.projection(_Rows.apply(features, selected)))
            lower, upper = self.projection, self.prediction
            n = features.numel() // features.shape[1] if counted is None else len(counted)
            statistics = mean_and_covariance(features, counted)
            weight, bias = fold_normalization(lower.norm, lower.first.weight, lower.first.bias, statistics, n)
            hidden = mean_and_covariance(features, counted, weight, bias)
            # no activation between the heads: their two linear layers are one
            joint = upper.first.weight @ lower.second.weight
            offset = upper.first.weight @ lower.second.bias + upper.first.bias
            weight_2, bias_2 = fold_normalization(upper.norm, joint, offset, hidden, n)
            # computed again for the backward pass: in the first steps half of all voxels may be selected
            return checkpoint(
                self._selected, features, selected, weight, bias, weight_2, bias_2,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip

    def _selected(self, features: Tensor, selected: Tensor, *layers: Tensor) -> Tensor:
        weight, bias, weight_2, bias_2 = layers
        y = nn.functional.linear(_Rows.apply(features, selected), weight, bias).relu_()
        return self.prediction.second(nn.functional.linear(y, weight_2, bias_2).relu_())

    @torch.no_grad()
    def project(self, features: Tensor, selected: Tensor) -> Tensor:
        """Projected features ``(M, channels)`` of the selected voxels: running statistics, no gradient."""
        with torch.autocast(features.device.type, enabled=False):
            head, norm = self.projection, self.projection.norm
            y = nn.functional.batch_norm(
                head.first(_Rows.apply(features, selected)),
                norm.running_mean,
                norm.running_var,
                norm.weight,
                norm.bias,
                eps=norm.eps,
            )
            return head.second(y.relu_())


class _Rows(torch.autograd.Function):
    """Features ``(B, F, *spatial)`` of distinct voxels as float32 rows; the gradient is written, not added up."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, selected: Tensor) -> Tensor:
        ctx.save_for_backward(features, selected)
        flat = features.flatten(2)
        return float32_or_wider(flat[selected // flat.shape[2], :, selected % flat.shape[2]])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        features, selected = ctx.saved_tensors
        out = _zeros(features)
        flat = out.view(*out.shape[:2], -1)
        flat[selected // flat.shape[2], :, selected % flat.shape[2]] = grad.to(out.dtype)
        return out, None


def _zeros(features: Tensor) -> Tensor:
    """Zeros in the shape and layout of a feature map, with sides that ``view`` can flatten."""
    n, c, *sides = features.shape
    if features.stride(1) == 1:
        return features.new_zeros((n, *sides, c)).movedim(-1, 1)
    return features.new_zeros(features.shape)

"""Convolutions with kernel 1 whose result is exact and whose features may be half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monai_ssl.networks.recompute.switch import enabled
from monai_ssl.networks.tensors import float32_or_wider


def pointwise_convolution(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution with kernel 1 in float32, whatever the number format of the features, without a float32 copy of them.

    Args:
        features: ``(B, F, *spatial)``, any float format and layout.
        weight: ``(C, F, 1, ...)``.
        bias: ``(C,)``.

    Returns:
        ``(B, C, *spatial)`` contiguous, float32 (float64 for such features), also under autocast.
    """
    if not enabled():
        convolution = torch.nn.functional.conv3d if features.dim() == 5 else torch.nn.functional.conv2d
        with torch.autocast(features.device.type, enabled=False):
            return convolution(float32_or_wider(features), weight, bias)
    return _PointwiseConvolution.apply(features, weight.flatten(1), bias)


class _PointwiseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        out = features.new_empty((len(features), len(weight), *features.shape[2:]), dtype=weight.dtype)
        with torch.autocast(features.device.type, enabled=False):
            for x, y in zip(features, out, strict=True):
                torch.addmm(bias[:, None], weight, float32_or_wider(x.flatten(1)), out=y.flatten(1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, weight = ctx.saved_tensors
        grad_features, grad_weight = torch.empty_like(features), torch.zeros_like(weight)
        grad = grad.contiguous()
        channels_last = features.stride(1) == 1
        with torch.autocast(features.device.type, enabled=False):
            for x, g, grad_x in zip(features, grad, grad_features, strict=True):
                g = g.flatten(1)
                grad_weight.addmm_(g, float32_or_wider(x.flatten(1)).T)
                product = (g.T @ weight).T if channels_last else weight.T @ g
                grad_x.copy_(product.view_as(grad_x))
        return grad_features, grad_weight, grad.flatten(2).sum((0, 2))

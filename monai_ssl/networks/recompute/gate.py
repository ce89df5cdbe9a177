"""Attention gates that keep nothing but one number per voxel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_ssl.networks.recompute.activations import lend, node_of, recompute, save_recomputable_inputs, saved_by
from monai_ssl.networks.recompute.moments import chunks, fold_normalization, mean_and_covariance, rows_as_map
from monai_ssl.networks.recompute.switch import may_recompute
from monai_ssl.networks.tensors import float32_or_wider, voxel_rows


def can_gate(block: Any, g: Tensor, x: Tensor) -> bool:
    """Whether :func:`gate` may stand in for ``block(g, x)`` here."""
    last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    norms = [block.W_g[1], block.W_x[1], block.psi[1]]
    return bool(
        may_recompute(x)
        and may_recompute(g)
        and x.is_contiguous(memory_format=last)
        and g.is_contiguous(memory_format=last)
        and x.numel() > x.shape[1]
        and all(type(n) in (nn.BatchNorm2d, nn.BatchNorm3d) and n.training for n in norms)
    )


def gate(block: Any, g: Tensor, x: Tensor) -> Tensor:
    """Additive attention gate ``x * sigmoid(norm(psi(relu(norm(W_g g) + norm(W_x x)))))`` in training.

    Args:
        block: ``monai.networks.nets.attentionunet.AttentionBlock``, which is the same in one layer after the other.
        g: upsampled decoder features.
        x: skip connection.

    Returns:
        the gated skip connection. Kept are ``g`` and ``x``, or what they can be computed from, and one number per
        voxel.
    """
    n = x.numel() // x.shape[1]
    with torch.autocast(x.device.type, enabled=False), save_recomputable_inputs():
        maps = []
        for (conv, norm), features in ((block.W_g, g), (block.W_x, x)):
            linear = conv.conv
            maps.append(
                fold_normalization(norm, linear.weight.flatten(1), linear.bias, mean_and_covariance(features), n)
            )
        (w_g, b_g), (w_x, b_x) = maps
        psi = block.psi[0].conv
        logit = _GateLogit.apply(g, x, w_g, w_x, b_g + b_x, psi.weight.flatten(), psi.bias)
        passing = block.psi[1](logit).sigmoid().to(x.dtype)
        return x * passing if node_of(x) is None else _Gated.apply(x, passing)


class _Gated(torch.autograd.Function):
    """``x * passing`` of an ``x`` that can be computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passing: Tensor) -> Tensor:
        ctx.save_for_backward(passing)
        ctx.source, ctx.recompute, ctx.unpacked = node_of(x), _recompute_gated, None
        return x * passing

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (passing,) = saved_by(ctx)
        ctx.unpacked = None
        return grad * passing, (grad * lend(ctx.source)).sum(1, keepdim=True)


def _recompute_gated(node: Any) -> Tensor:
    (passing,) = saved_by(node)
    return recompute(node.source).mul_(passing.detach())


class _GateLogit(torch.autograd.Function):
    """``psi . relu(w_g g + w_x x + b) + bias`` per voxel, piece by piece; ``(B, 1, *spatial)`` float32."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(g, x, *parameters)
        rows_g, rows_x = voxel_rows(g), voxel_rows(x)
        out = float32_or_wider(x.new_empty(len(rows_x)))
        for chunk in chunks(len(rows_x), x.device):
            hidden = _GateLogit.hidden(
                float32_or_wider(rows_g[chunk]), float32_or_wider(rows_x[chunk]), *parameters[:3]
            )
            torch.addmv(parameters[4], hidden, parameters[3], out=out[chunk])
        return out.view(len(x), 1, *x.shape[2:])

    @staticmethod
    def hidden(g: Tensor, x: Tensor, w_g: Tensor, w_x: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(b, g, w_g.T).addmm_(x, w_x.T).relu_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        g, x, w_g, w_x, b, psi, _ = ctx.saved_tensors
        rows_g, rows_x = voxel_rows(g), voxel_rows(x)
        grad = grad.flatten()
        grad_g, grad_x = torch.empty_like(rows_g), torch.empty_like(rows_x)
        grad_w_g, grad_w_x, grad_b, grad_psi = (torch.zeros_like(p) for p in (w_g, w_x, b, psi))
        for chunk in chunks(len(rows_x), x.device):
            g_here, x_here, grad_here = float32_or_wider(rows_g[chunk]), float32_or_wider(rows_x[chunk]), grad[chunk]
            hidden = _GateLogit.hidden(g_here, x_here, w_g, w_x, b)
            grad_psi.addmv_(hidden.T, grad_here)
            grad_hidden = torch.outer(grad_here, psi).mul_(hidden > 0)
            grad_w_g.addmm_(grad_hidden.T, g_here)
            grad_w_x.addmm_(grad_hidden.T, x_here)
            grad_b += grad_hidden.sum(0)
            grad_g[chunk] = grad_hidden @ w_g
            grad_x[chunk] = grad_hidden @ w_x
        return rows_as_map(grad_g, g), rows_as_map(grad_x, x), grad_w_g, grad_w_x, grad_b, grad_psi, grad.sum(0, True)

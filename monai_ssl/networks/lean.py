"""Training in less memory: what batch normalization and activation produced is computed again instead of kept.

A unit of a network is convolution, batch normalization, activation (ReLU or leaky ReLU). For the backward pass autograd
keeps the input of each layer, so every unit keeps two tensors: what the convolution returned, and what the activation
returned, which is what the next convolution reads. The second follows from the first by one multiplication and one
addition per voxel. The functions of
this module keep the first alone, and hand the next convolution a :class:`Recipe` of
the second. The same holds for the sum at a skip connection. Values and gradients are those of plain autograd up to
rounding; the running statistics are updated once.

It costs one cheap pass per unit in the backward pass and saves nearly half of the memory. Used in training on the CPU
only: in evaluation nothing is kept anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["add", "can_recompute", "norm_act", "pointwise", "reading"]


class Recipe:
    """How to compute a tensor again; travels with the tensor, see :func:`norm_act` and :func:`add`.

    Args:
        compute: returns a new tensor.
        cell: an empty list that holds the tensor from :meth:`peek` on; whoever empties it may write over the tensor.
    """

    def __init__(self, compute: Callable[[], Tensor], cell: list[Tensor] | None = None) -> None:
        self.compute, self.cell = compute, cell

    def peek(self) -> Tensor:
        """The tensor; kept in the cell, because the gradient of the activation needs it right after the convolution."""
        if self.cell is None:
            return self.compute()
        if not self.cell:
            self.cell.append(self.compute())
        return self.cell[0]


def _recipe(x: Tensor) -> Recipe | None:
    return getattr(x, "_recipe", None)


def can_recompute(norm: Any, act: Any, x: Tensor) -> bool:
    """Whether :func:`norm_act` may stand in for ``act(norm(x))`` here."""
    return bool(
        norm.training
        and torch.is_grad_enabled()
        and x.requires_grad
        and x.device.type == "cpu"
        and x.numel() > x.shape[1]  # else the normalization raises its error
        and type(norm) in (nn.BatchNorm2d, nn.BatchNorm3d)
        and norm.affine
        and norm.momentum is not None
        and type(act) in (nn.ReLU, nn.LeakyReLU)
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


def reading(layer: Any, x: Tensor) -> Tensor:
    """``layer(x)``; if ``x`` has a recipe, that is kept for the backward pass, not ``x``."""
    if _recipe(x) is None:
        return layer(x)
    with saved_tensors_hooks(_pack, _unpack):
        return layer(x)


# autograd keeps these two as long as the graph: as closures they would keep x alive
def _pack(saved: Tensor) -> Tensor | Recipe:
    recipe = _recipe(saved)
    return saved if recipe is None else recipe


def _unpack(kept: Tensor | Recipe) -> Tensor:
    return kept.peek() if isinstance(kept, Recipe) else kept


def norm_act(norm: Any, act: Any, x: Tensor) -> Tensor:
    """``act(norm(x))`` where :func:`can_recompute` says so; keeps ``x`` alone for the backward pass."""
    counted = norm.track_running_stats  # not in the perturbed passes of virtual adversarial training
    if counted:
        norm.num_batches_tracked.add_(1)
    y, recipe = _NormAct.apply(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean if counted else None,
        norm.running_var if counted else None,
        norm.momentum,
        norm.eps,
        getattr(act, "negative_slope", 0.0),
    )
    y._recipe = recipe  # type: ignore[attr-defined]
    return y


def add(a: Tensor, b: Tensor) -> Tensor:
    """``a + b``, with a recipe if both have one."""
    y = a + b
    first, second = _recipe(a), _recipe(b)
    if first is not None and second is not None:
        y._recipe = Recipe(lambda: first.compute().add_(second.compute()))  # type: ignore[attr-defined]
    return y


def _act_(x: Tensor, slope: float) -> Tensor:
    return nn.functional.leaky_relu_(x, slope) if slope else x.relu_()


def _compute(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_sd: Tensor, slope: float) -> Tensor:
    """Batch normalization with these statistics, as in evaluation, and activation; eps is in ``inverse_sd`` already."""
    y = torch.native_batch_norm(x, weight, bias, mean, inverse_sd.pow(-2), False, 0.0, 0.0)[0]
    return _act_(y, slope)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        slope: float,
    ) -> tuple[Tensor, Recipe]:
        y, mean, inverse_sd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse_sd)
        # the node itself holds no tensor beside the saved ones, which autograd frees after the backward pass
        ctx.cell, ctx.eps, ctx.slope = [], eps, slope
        arguments = (x.detach(), weight.detach(), bias.detach(), mean, inverse_sd, slope)
        return _act_(y, slope), Recipe(lambda: _compute(*arguments), ctx.cell)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse_sd = ctx.saved_tensors
        y = ctx.cell.pop() if ctx.cell else _compute(x, weight, bias, mean, inverse_sd, ctx.slope)
        # the gradient before the activation, written over y, whose sign tells the branch
        torch.ops.aten.leaky_relu_backward.grad_input(grad, y, ctx.slope, True, grad_input=y)
        grads = torch.ops.aten.native_batch_norm_backward(
            y, x, weight, None, None, mean, inverse_sd, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return *grads, None, None, None, None, None


def pointwise(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution with kernel 1 in float32, whatever the number format of the features, without a float32 copy of them.

    Args:
        features: ``(B, F, *spatial)``, any float format and layout.
        weight: ``(C, F, 1, ...)``.
        bias: ``(C,)``.

    Returns:
        ``(B, C, *spatial)`` float32, contiguous.
    """
    return _Pointwise.apply(features, weight.flatten(1), bias)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        out = features.new_empty((len(features), len(weight), *features.shape[2:]), dtype=torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            for x, y in zip(features, out, strict=True):
                torch.addmm(bias[:, None], weight, x.flatten(1).float(), out=y.flatten(1))
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
                grad_weight.addmm_(g, x.flatten(1).float().T)
                product = (g.T @ weight).T if channels_last else weight.T @ g
                grad_x.copy_(product.view_as(grad_x))
        return grad_features, grad_weight, grad.flatten(2).sum((0, 2))

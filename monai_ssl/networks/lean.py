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

A normalization of a linear map of voxels (a convolution with kernel 1) needs even less: its mean and variance follow
from mean and covariance of what the map reads, so that both are one affine map (:func:`moments`,
:func:`normalized_linear`), and nothing between input and output has to exist as a whole. Attention gates are computed
so (:func:`gate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

__all__ = [
    "add",
    "can_gate",
    "can_recompute",
    "gate",
    "moments",
    "norm_act",
    "normalized_linear",
    "pointwise",
    "reading",
    "recipes",
    "tail",
]

CHUNK = 1 << 14  # voxels at a time: what is computed in between stays in the cache
GPU_CHUNK = 1 << 20  # on a GPU: little memory, few kernels


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
    with recipes():
        return layer(x)


def recipes() -> AbstractContextManager:
    """Within it, autograd keeps the recipe of a tensor that has one, not the tensor."""
    return saved_tensors_hooks(_pack, _unpack)


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


def rows(x: Tensor) -> Tensor:
    """Voxels as rows: ``(B, C, *spatial)`` -> ``(B * V, C)``, a view in channels-last layout."""
    return x.movedim(1, -1).flatten(0, -2)


def _wide(x: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def _places(n: int, device: torch.device) -> Iterator[slice]:
    size = CHUNK if device.type == "cpu" else GPU_CHUNK
    return (slice(start, start + size) for start in range(0, n, size))


def tail(x: Tensor, start: int) -> Tensor:
    """``x[start:]``, a view. Its gradient keeps the layout of ``x``; that of plain indexing is contiguous, and slows
    down whatever reads it together with channels-last tensors."""
    return _Tail.apply(x, start)


class _Tail(torch.autograd.Function):
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


def moments(
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
    return _Moments.apply(x, counted, weight, bias)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counted: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Any:
        d = x.shape[1] if weight is None else len(weight)
        total, squares, shift = (_wide(x.new_zeros(s)) for s in ((d,), (d, d), (d,)))
        voxels = rows(x)
        with torch.autocast(x.device.type, enabled=False):
            ctx.n = len(voxels) if counted is None else len(counted)
            for place in _places(ctx.n, x.device):
                y = _hidden(_counted(voxels, counted, place), weight, bias)
                if place.start == 0:
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
    def backward(ctx: Any, of_mean: Tensor, of_covariance: Tensor) -> tuple[Tensor | None, ...]:
        x, counted, weight, bias, mean = ctx.saved_tensors
        voxels = rows(x)
        grad = x.new_empty(voxels.shape) if counted is None else x.new_zeros(voxels.shape)
        of_weight = torch.zeros_like(weight) if weight is not None else None
        of_bias = torch.zeros_like(bias) if bias is not None else None
        # d mean / d y = 1 / n, d covariance / d y = 2 (y - mean) / n: one affine map of y
        slope = (of_covariance + of_covariance.T) / ctx.n
        constant = of_mean / ctx.n - mean @ slope
        with torch.autocast(x.device.type, enabled=False):
            for place in _places(ctx.n, x.device):
                v = _counted(voxels, counted, place)
                y = _hidden(v, weight, bias)
                g = torch.addmm(constant, y, slope)
                if of_weight is not None and of_bias is not None:
                    g *= y > 0
                    of_weight.addmm_(g.T, v)
                    of_bias += g.sum(0)
                    g = g @ weight
                if counted is None:
                    grad[place] = g
                else:
                    grad.index_copy_(0, counted[place], g.to(grad.dtype))
        return _map_like(grad, x), None, of_weight, of_bias


def _counted(voxels: Tensor, counted: Tensor | None, place: slice) -> Tensor:
    return _wide(voxels[place] if counted is None else voxels.index_select(0, counted[place]))


def _hidden(voxels: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return voxels if weight is None else nn.functional.linear(voxels, weight, bias).relu_()


def _map_like(voxels: Tensor, x: Tensor) -> Tensor:
    """The inverse of :func:`rows`, a view."""
    return voxels.view(len(x), *x.shape[2:], x.shape[1]).movedim(-1, 1)


def normalized_linear(
    norm: Any, weight: Tensor, bias: Tensor, statistics: tuple[Tensor, Tensor], n: int
) -> tuple[Tensor, Tensor]:
    """A linear map and the batch normalization behind it as one affine map; updates the running statistics.

    Args:
        norm: batch normalization with affine parameters, in training.
        weight: ``(D, F)`` of the linear map.
        bias: ``(D,)``. It cancels, and gets a gradient of zero.
        statistics: :func:`moments` of what the linear map reads.
        n: number of rows that they were taken over, > 1.

    Returns:
        weight ``(D, F)`` and bias ``(D,)``, differentiable.
    """
    mean, covariance = statistics
    center = weight @ mean + bias
    variance = ((weight @ covariance) * weight).sum(1).clamp(min=0)
    if norm.track_running_stats and norm.momentum is not None:
        with torch.no_grad():
            norm.running_mean.lerp_(center, norm.momentum)
            norm.running_var.lerp_(variance * (n / (n - 1)), norm.momentum)
            norm.num_batches_tracked.add_(1)
    factor = norm.weight * (variance + norm.eps).rsqrt()
    return factor[:, None] * weight, norm.bias + factor * (bias - center)


def can_gate(block: Any, g: Tensor, x: Tensor) -> bool:
    """Whether :func:`gate` may stand in for ``block(g, x)`` here."""
    last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    norms = [block.W_g[1], block.W_x[1], block.psi[1]]
    return bool(
        torch.is_grad_enabled()
        and x.requires_grad
        and g.requires_grad
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=last)
        and g.is_contiguous(memory_format=last)
        and x.numel() > x.shape[1]
        and all(type(n) in (nn.BatchNorm2d, nn.BatchNorm3d) and n.training for n in norms)
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


def gate(block: Any, g: Tensor, x: Tensor) -> Tensor:
    """Additive attention gate ``x * sigmoid(norm(psi(relu(norm(W_g g) + norm(W_x x)))))`` in training.

    Args:
        block: ``monai.networks.nets.attentionunet.AttentionBlock``, which is the same in one layer after the other.
        g: upsampled decoder features.
        x: skip connection.

    Returns:
        the gated skip connection; only ``g`` and ``x``, or their recipes, are kept, and one number per voxel.
    """
    n = x.numel() // x.shape[1]
    with torch.autocast(x.device.type, enabled=False), recipes():
        maps = []
        for (conv, norm), read in ((block.W_g, g), (block.W_x, x)):
            linear = conv.conv
            maps.append(normalized_linear(norm, linear.weight.flatten(1), linear.bias, moments(read), n))
        (w_g, b_g), (w_x, b_x) = maps
        psi = block.psi[0].conv
        logit = _GateLogit.apply(g, x, w_g, w_x, b_g + b_x, psi.weight.flatten(), psi.bias)
        passing = block.psi[1](logit).sigmoid().to(x.dtype)
        gated = x * passing
    recipe, passing = _recipe(x), passing.detach()
    if recipe is not None:
        gated._recipe = Recipe(lambda: recipe.compute().mul_(passing))  # type: ignore[attr-defined]
    return gated


class _GateLogit(torch.autograd.Function):
    """``psi . relu(w_g g + w_x x + b) + bias`` per voxel, piece by piece; ``(B, 1, *spatial)`` float32."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(g, x, *parameters)
        of_g, of_x = rows(g), rows(x)
        out = _wide(x.new_empty(len(of_x)))
        for place in _places(len(of_x), x.device):
            hidden = _GateLogit.hidden(_wide(of_g[place]), _wide(of_x[place]), *parameters[:3])
            torch.addmv(parameters[4], hidden, parameters[3], out=out[place])
        return out.view(len(x), 1, *x.shape[2:])

    @staticmethod
    def hidden(g: Tensor, x: Tensor, w_g: Tensor, w_x: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(b, g, w_g.T).addmm_(x, w_x.T).relu_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        g, x, w_g, w_x, b, psi, _ = ctx.saved_tensors
        of_g, of_x = rows(g), rows(x)
        grad = grad.flatten()
        into_g, into_x = torch.empty_like(of_g), torch.empty_like(of_x)
        into_w_g, into_w_x, into_b, into_psi = (torch.zeros_like(p) for p in (w_g, w_x, b, psi))
        for place in _places(len(of_x), x.device):
            g_here, x_here, grad_here = _wide(of_g[place]), _wide(of_x[place]), grad[place]
            hidden = _GateLogit.hidden(g_here, x_here, w_g, w_x, b)
            into_psi.addmv_(hidden.T, grad_here)
            through = torch.outer(grad_here, psi).mul_(hidden > 0)
            into_w_g.addmm_(through.T, g_here)
            into_w_x.addmm_(through.T, x_here)
            into_b += through.sum(0)
            into_g[place] = through @ w_g
            into_x[place] = through @ w_x
        return _map_like(into_g, g), _map_like(into_x, x), into_w_g, into_w_x, into_b, into_psi, grad.sum(0, True)

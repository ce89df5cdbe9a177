"""Units (convolution, batch normalization, activation) and skip connections; see the package's docstring.

An autograd node that can compute its output again carries the attribute ``recompute``, a function of the node. It is an
attribute of the node and not of the tensor, so that any operation on the tensor leaves it behind.
"""

from __future__ import annotations

import functools
import logging
import threading
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from monai_ssl.networks.recompute.switch import may_recompute

logger = logging.getLogger(__name__)

SUPPORTED_NORMALIZATIONS = (nn.BatchNorm2d, nn.BatchNorm3d)
SUPPORTED_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU)


# ------------------------------------------------------------------------------------------------- what networks call


def can_recompute(norm: Any, act: Any, x: Tensor) -> bool:
    """Whether :func:`normalize_and_activate` may stand in for ``act(norm(x))`` here."""
    return bool(
        norm.training
        and may_recompute(x)
        and x.numel() > x.shape[1]  # else the normalization raises its error
        and type(norm) in SUPPORTED_NORMALIZATIONS
        and norm.affine
        and norm.momentum is not None
        and type(act) in SUPPORTED_ACTIVATIONS
        and kernels_work()
    )


def normalize_and_activate(norm: Any, act: Any, x: Tensor) -> Tensor:
    """``act(norm(x))`` where :func:`can_recompute` says so; only ``x`` is kept for the backward pass.

    Args:
        norm: batch normalization with affine parameters, in training. Its running statistics are updated.
        act: ReLU or leaky ReLU.
        x: ``(B, C, *spatial)``.

    Returns:
        a new tensor; its node can compute it again.
    """
    counted = norm.track_running_stats  # not in the perturbed passes of virtual adversarial training
    if counted:
        norm.num_batches_tracked.add_(1)
    return _NormalizeAndActivate.apply(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean if counted else None,
        norm.running_var if counted else None,
        norm.momentum,
        norm.eps,
        getattr(act, "negative_slope", 0.0),
    )


def add(a: Tensor, b: Tensor) -> Tensor:
    """``a + b``; can be computed again if both parts can."""
    if node_of(a) is None or node_of(b) is None:
        return a + b
    return _Add.apply(a, b)


def run_layer(layer: Any, x: Tensor) -> Tensor:
    """``layer(x)``; if ``x`` can be computed again, the layer does not keep it for the backward pass."""
    if node_of(x) is None:
        return layer(x)
    with save_recomputable_inputs():
        return layer(x)


def save_recomputable_inputs() -> AbstractContextManager:
    """Within it, autograd keeps the node of a tensor that can be computed again, not the tensor."""
    return saved_tensors_hooks(_pack, _unpack)


# ------------------------------------------------------------------------------------------------- nodes


def node_of(x: Tensor) -> Any | None:
    """The node that can compute ``x`` again, or None."""
    node = x.grad_fn
    return node if hasattr(node, "recompute") else None


def recompute(node: Any) -> Tensor:
    """The output of the node, in a new tensor."""
    return node.recompute(node)


def lend(node: Any) -> Tensor:
    """The output of the node; one that its own backward pass needs as well is computed once for both."""
    if not hasattr(node, "lent"):  # its own backward pass needs it not
        return recompute(node)
    if node.lent is None:
        node.lent = recompute(node)
    return node.lent


def saved_by(node: Any) -> tuple[Tensor, ...]:
    """The saved tensors of a node, unpacked once per backward pass: ``torch.utils.checkpoint`` allows no more."""
    if node.unpacked is None:
        node.unpacked = node.saved_tensors
    return node.unpacked


# autograd holds these two as long as the graph: as closures they would keep x alive
def _pack(saved: Tensor) -> Any:
    node = node_of(saved)
    return saved if node is None else node


def _unpack(kept: Any) -> Tensor:
    return kept if isinstance(kept, Tensor) else lend(kept)


class _NormalizeAndActivate(torch.autograd.Function):
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
    ) -> Tensor:
        y, mean, inverse_sd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        # autograd frees the saved tensors after the backward pass; attributes of the node hold no tensor until then
        ctx.save_for_backward(x, weight, bias, mean, inverse_sd)
        ctx.eps, ctx.slope = eps, slope
        ctx.recompute, ctx.unpacked, ctx.lent = _recompute_activation, None, None
        return _activate_(y, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _, mean, inverse_sd = saved_by(ctx)
        y = lend(ctx)
        ctx.unpacked = ctx.lent = None
        # the gradient before the activation, written over y, whose sign tells the branch: nobody reads y any more
        torch.ops.aten.leaky_relu_backward.grad_input(grad, y, ctx.slope, True, grad_input=y)
        grads = torch.ops.aten.native_batch_norm_backward(
            y, x, weight, None, None, mean, inverse_sd, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return *grads, None, None, None, None, None


def _recompute_activation(node: Any) -> Tensor:
    """Batch normalization with the statistics of the forward pass, as in evaluation, and activation."""
    x, weight, bias, mean, inverse_sd = (saved.detach() for saved in saved_by(node))
    with torch.no_grad():  # eps is in inverse_sd already
        y = torch.native_batch_norm(x, weight, bias, mean, inverse_sd.pow(-2), False, 0.0, 0.0)[0]
        return _activate_(y, node.slope)


def _activate_(x: Tensor, slope: float) -> Tensor:
    return nn.functional.leaky_relu_(x, slope) if slope else x.relu_()


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.parts = node_of(a), node_of(b)
        ctx.recompute = _recompute_sum
        return a + b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


def _recompute_sum(node: Any) -> Tensor:
    first, second = node.parts
    return recompute(first).add_(recompute(second))


# ------------------------------------------------------------------------------------------------- self-test


@functools.cache
def kernels_work() -> bool:
    """Whether the kernels that this module calls directly do in this PyTorch what they did in 2.10 to 2.13.

    PyTorch promises neither their names nor their arguments. Once per process a small unit is compared with plain
    autograd; where it fails or differs, a warning is logged and :func:`can_recompute` is False from then on.
    """
    problem: list[object] = []

    def run() -> None:
        try:
            problem.extend(_differences())
        except Exception as error:  # whatever a changed kernel raises
            problem.append(error)

    # in a thread of its own: autocast, gradient mode and hooks of the caller do not reach it
    thread = threading.Thread(target=run, name="recompute self-test")
    thread.start()
    thread.join()
    if problem:
        logger.warning(
            "monai_ssl.networks.recompute: the kernels of PyTorch %s do not pass the self-test (%s); training "
            "continues by plain autograd, which needs more memory",
            torch.__version__,
            problem[0],
        )
    return not problem


def _differences() -> list[str]:
    """What differs between a unit here and in plain autograd."""
    found: list[str] = []
    ramp = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64)
    image = (ramp * 0.7).sin().reshape(2, 3, 4, 5) * 2 + 1
    direction = (ramp * 1.3).cos().reshape(2, 3, 4, 5)
    for act in (nn.ReLU(), nn.LeakyReLU(0.1)):
        outcomes: list[dict[str, Any]] = []
        for unit in (normalize_and_activate, lambda norm, act, x: act(norm(x))):
            norm = nn.BatchNorm2d(3, dtype=torch.float64)
            x = image.clone().requires_grad_()
            y = unit(norm, act, x)
            again = recompute(y.grad_fn) if unit is normalize_and_activate else y
            gradients = torch.autograd.grad((y * direction).sum(), [x, norm.weight, norm.bias])
            outcomes.append(
                {
                    "output": y,
                    "recomputed output": again,
                    **dict(zip(("gradient", "gradient of weight", "gradient of bias"), gradients, strict=True)),
                    "running mean": norm.running_mean,
                    "running variance": norm.running_var,
                }
            )
        found += [
            name for name, value in outcomes[0].items() if not torch.allclose(value, outcomes[1][name], 1e-6, 1e-8)
        ]
    return found

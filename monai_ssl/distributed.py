"""What processes that train together tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def in_group() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(x: Tensor) -> list[Tensor]:
    """``x`` of every process of the group, in the order of their ranks; a collective call, of equal shapes."""
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x)
    return parts


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients of all processes, averaged; for parameters that no ``DistributedDataParallel`` takes care of.

    A collective call inside a group, nothing outside. A parameter without a gradient counts as zero, so that all
    processes exchange the same number of values.
    """
    if not in_group():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    joint = torch.cat([gradient.float().flatten() for gradient in gradients])
    torch.distributed.all_reduce(joint)
    joint /= torch.distributed.get_world_size()
    for parameter, gradient, mean in zip(
        parameters, gradients, joint.split([g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(mean.view_as(gradient))
        parameter.grad = gradient


def from_first(value: Any) -> Any:
    """``value`` of the first process in every process of the group; a collective call inside one."""
    if not in_group():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def any_of(flag: int, device: torch.device | str) -> int:
    """The largest of the numbers that the processes of the group give; a collective call inside one."""
    if not in_group():
        return flag
    found = torch.tensor(flag, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)

"""The optimizer that a preset names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from monai_ssl.errors import DataError

OPTIMIZERS = ("sgd", "adamw")


def build_optimizer(
    params: Iterable[Any],
    algorithm: str = "sgd",
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    **arguments: Any,
) -> Optimizer:
    """SGD, which the papers of the field train with, or AdamW, which the practical recipe does.

    Args:
        params: parameters or groups of them, as every optimizer of PyTorch takes them.
        algorithm: ``"sgd"`` or ``"adamw"``.
        lr: learning rate, > 0.
        momentum: of SGD; of AdamW the decay of the mean gradient, its first beta.
        weight_decay: >= 0. SGD adds it to the gradient, AdamW shrinks the weights by ``lr * weight_decay``.
        nesterov: Nesterov's momentum, of SGD.
        **arguments: further ones of ``torch.optim.SGD`` or ``torch.optim.AdamW``. ``fused`` is true unless given, where
            all parameters are on a CPU or a CUDA device: a step of AdamW on a CPU is then five times as fast.

    Raises:
        DataError: for another algorithm, or an argument that it has not.

    Example:
        >>> weights = [torch.nn.Parameter(torch.zeros(1))]
        >>> build_optimizer(weights, "adamw", lr=0.002, momentum=0.8).param_groups[0]["betas"]
        (0.8, 0.999)
    """
    groups = [{**p, "params": _listed(p["params"])} if isinstance(p, dict) else p for p in params]
    given = dict(arguments, lr=lr, weight_decay=weight_decay, **({"nesterov": True} if nesterov else {}))
    if not given.get("foreach"):
        given.setdefault("fused", _fusible(groups))
    try:
        if algorithm == "sgd":
            return torch.optim.SGD(groups, momentum=momentum, **given)
        if algorithm == "adamw":
            return torch.optim.AdamW(groups, **{"betas": (momentum, 0.999), **given})
    except TypeError as error:
        raise DataError(f"optimizer: {algorithm}: {error}; its arguments are those of torch.optim") from None
    raise DataError(
        f"optimizer#algorithm: must be one of {', '.join(OPTIMIZERS)}, got {algorithm!r}; any other: "
        "--optimizer#_target_ torch.optim.RMSprop"
    )


def _listed(members: Any) -> list[Any]:
    return [members] if isinstance(members, torch.Tensor) else list(members)


def _fusible(groups: list[Any]) -> bool:
    tensors = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    tensors = [p[-1] if isinstance(p, tuple) else p for p in tensors]  # with their names
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in tensors)

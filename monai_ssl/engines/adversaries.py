"""How the adversaries of a method learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_ssl.methods import SemiSupervisedMethod


@dataclass
class Adversary:
    """How one of ``method.adversaries`` learns; see :class:`~monai_ssl.methods.SemiSupervisedMethod`."""

    optimizer: Optimizer
    lr_scheduler: LRScheduler | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@contextmanager
def learning(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters of an adversary are trainable inside the block; after it they are frozen, without gradient."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def adversaries_of(method: SemiSupervisedMethod) -> dict[str, Adversary]:
    """Optimizer and schedule of each of the method's adversaries."""
    optimizers = method.adversary_optimizers()
    if set(optimizers) != set(method.adversaries):
        raise ValueError(
            f"adversary_optimizers of {type(method).__name__} must name its adversaries {sorted(method.adversaries)}, "
            f"got {sorted(optimizers)}"
        )
    schedules = method.adversary_schedules(optimizers)
    found = {name: Adversary(optimizer, schedules.get(name)) for name, optimizer in optimizers.items()}
    for name, adversary in found.items():
        own = {id(parameter) for parameter in method.adversaries[name].parameters()}
        if any(id(parameter) not in own for parameter in adversary.parameters):
            raise ValueError(
                f"the optimizer of the adversary {name!r} must hold parameters of method.adversaries[{name!r}] only"
            )
    return found

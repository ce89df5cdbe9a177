"""Mean teachers: a second network whose weights are a moving average of the student's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["EMATeacher"]

BUFFERS = ("own", "copy")


class EMATeacher(nn.Module):
    r"""Exponential moving average of a student network, with the warm-up of the mean-teacher code bases.

    .. math:: \theta' \leftarrow \alpha\,\theta' + (1 - \alpha)\,\theta, \qquad
        \alpha = \min\left(1 - \frac{1}{t + 1},\; \alpha_{max}\right)

    with :math:`t` the number of steps made before this one: the first update copies the student. Nothing in here ever
    receives a gradient. The teacher follows ``train()`` and ``eval()`` like any module; in the literature it stays in
    training mode, so that dropout makes its passes stochastic.

    Args:
        network: the student; the teacher starts as a copy of it.
        decay: :math:`\alpha_{max}` in [0, 1).
        warm_up: False: :math:`\alpha = \alpha_{max}` from the first update on, as the papers' equations read.
        buffers: of batch normalization. ``"own"``: the teacher's running statistics come from its own passes, as in the
            released codes of MT, UA-MT and UG-MCL, which average parameters only. ``"copy"``: they are the student's,
            for a teacher that is used in evaluation mode.

    Attributes:
        network: the teacher's network, with all its methods (``teacher.network.tasks(x)``); call it without gradients.

    Raises:
        ValueError: when an option is out of its range.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, Eq. 1 and its released code.

    Example:
        >>> student = nn.Conv2d(1, 2, 1)
        >>> teacher = EMATeacher(student, decay=0.99)
        >>> [round(teacher.decay_at(t), 3) for t in (0, 1, 3, 99, 5000)]
        [0.0, 0.5, 0.75, 0.99, 0.99]
        >>> _ = student.weight.data.fill_(1.0)
        >>> teacher.update(student, 0)
        >>> teacher(torch.ones(1, 1, 1, 1)).requires_grad, torch.equal(teacher.network.weight, student.weight)
        (False, True)
    """

    def __init__(self, network: nn.Module, decay: float = 0.99, buffers: str = "own", warm_up: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        if buffers not in BUFFERS:
            raise ValueError(f"buffers must be one of {BUFFERS}, got {buffers!r}")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.buffer_policy, self.warm_up = float(decay), buffers, bool(warm_up)

    def decay_at(self, step: int) -> float:
        """:math:`\\alpha` of the update after ``step + 1`` optimizer steps."""
        return min(1.0 - 1.0 / (step + 1), self.decay) if self.warm_up else self.decay

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Move toward ``student``; ``step`` counts from 0. Call it after the optimizer's step."""
        alpha = self.decay_at(step)
        ours: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(student.parameters())
        if alpha == 0.0:  # not 0 * teacher: a weight that is not finite would stay
            torch._foreach_copy_(ours, theirs)
        else:
            torch._foreach_mul_(ours, alpha)
            torch._foreach_add_(ours, theirs, alpha=1.0 - alpha)
        if self.buffer_policy == "copy":
            for our, their in zip(self.network.buffers(), student.buffers(), strict=True):
                our.copy_(their)

    def forward(self, x: Tensor) -> Tensor:
        """The teacher's logits, without gradient."""
        with torch.no_grad():
            return self.network(x)

"""Mean teachers: a second network whose weights are a moving average of the student's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["EMATeacher", "decay_at", "move_toward"]

BUFFERS = ("own", "copy", "average")


def decay_at(step: int, decay: float, copy_steps: int = 0) -> float:
    r""":math:`\alpha = \min(1 - 1/(t + 1), \alpha_{max})` of the update after ``step + 1`` optimizer steps.

    Args:
        step: counts from 0.
        decay: :math:`\alpha_{max}`.
        copy_steps: updates that copy before :math:`t` begins to count.

    Example:
        >>> [round(decay_at(t, 0.99), 3) for t in (0, 1, 3, 99, 5000)]
        [0.0, 0.5, 0.75, 0.99, 0.99]
        >>> [round(decay_at(t, 0.99, copy_steps=40), 3) for t in (0, 39, 40, 41, 5000)]
        [0.0, 0.0, 0.0, 0.5, 0.99]
    """
    return min(1.0 - 1.0 / (max(step - copy_steps, 0) + 1), decay)


@torch.no_grad()
def move_toward(average: nn.Module, network: nn.Module, alpha: float, buffers: str = "own") -> None:
    """One update of a moving average: :math:`\\theta' \\leftarrow \\alpha \\theta' + (1 - \\alpha) \\theta`.

    Args:
        average: changed in place; of the same architecture as ``network``.
        network: whose parameters are averaged.
        alpha: in [0, 1); 0 copies.
        buffers: see :class:`EMATeacher`.
    """
    _mix(list(average.parameters()), list(network.parameters()), alpha)
    if buffers == "own":
        return
    pairs = list(zip(average.buffers(), network.buffers(), strict=True))
    averaged = [(a, b) for a, b in pairs if buffers == "average" and a.is_floating_point()]
    if averaged:
        _mix([a for a, _ in averaged], [b for _, b in averaged], alpha)
    for ours, theirs in pairs:
        if buffers == "copy" or not ours.is_floating_point():  # a counter has no average
            ours.copy_(theirs)


def _mix(ours: list[Tensor], theirs: list[Tensor], alpha: float) -> None:
    if alpha == 0.0:  # not 0 * teacher: a weight that is not finite would stay
        torch._foreach_copy_(ours, theirs)
    else:
        torch._foreach_mul_(ours, alpha)
        torch._foreach_add_(ours, theirs, alpha=1.0 - alpha)


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
            released codes of MT, UA-MT and UG-MCL, which average parameters only. For a teacher that is used in
            evaluation mode ``"average"``: averaged like parameters, or ``"copy"``: those of the student.
        copy_steps: with ``warm_up``, updates >= 0 that copy the student before the average begins (AD-MT: 40 or 50).

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

    def __init__(
        self,
        network: nn.Module,
        decay: float = 0.99,
        buffers: str = "own",
        warm_up: bool = True,
        copy_steps: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        if buffers not in BUFFERS:
            raise ValueError(f"buffers must be one of {BUFFERS}, got {buffers!r}")
        if copy_steps < 0:
            raise ValueError(f"copy_steps must be >= 0, got {copy_steps}")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.buffer_policy = float(decay), buffers
        self.warm_up, self.copy_steps = bool(warm_up), int(copy_steps)

    def decay_at(self, step: int) -> float:
        """:math:`\\alpha` of the update after ``step + 1`` optimizer steps."""
        return decay_at(step, self.decay, self.copy_steps) if self.warm_up else self.decay

    def update(self, student: nn.Module, step: int) -> None:
        """Move toward ``student``; ``step`` counts from 0. Call it after the optimizer's step."""
        move_toward(self.network, student, self.decay_at(step), self.buffer_policy)

    def forward(self, x: Tensor) -> Tensor:
        """The teacher's logits, without gradient."""
        with torch.no_grad():
            return self.network(x)

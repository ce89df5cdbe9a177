"""What the methods with an averaged teacher have in common: mean teacher, UA-MT, ICT, TCSE."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from monai_ssl.losses import HalfDiceCELoss
from monai_ssl.methods.base import SemiSupervisedMethod, staircase
from monai_ssl.networks import EMATeacher


class AveragedTeacher(SemiSupervisedMethod):
    r"""A student that is deployed, and the moving average of its parameters, which gives targets.

    :math:`\theta' \leftarrow \alpha \theta' + (1 - \alpha) \theta`, :math:`\alpha = \min(1 - 1/(t + 1), \alpha_{max})`,
    after every step; the teacher stays in training mode, with batch statistics of its own.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        max_iterations, weight, ramp_levels, ramp_up: see :func:`~monai_ssl.methods.base.staircase`.
        decay: :math:`\alpha_{max}` in [0, 1).
        include_background: of the Dice term.
        unsupervised_weight: factor on the unsupervised term; 0 is the matched floor, and nobody asks the teacher.

    Attributes:
        supervised: the supervised loss.
        ramp_up: weight of the unsupervised term by iteration.
        teacher: an :class:`~monai_ssl.networks.EMATeacher`.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when ``ramp_up`` is no function.
    """

    honors_ignore_label = True
    second_opinion_needs_state = True

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int,
        weight: float,
        ramp_levels: int,
        ramp_up: Callable[[int], float] | None,
        decay: float,
        include_background: bool,
        unsupervised_weight: float,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        self.ramp_up = staircase(ramp_up, max_iterations, weight, ramp_levels)
        self.supervised = HalfDiceCELoss(include_background)
        self.teacher = EMATeacher(network, decay)

    def second_opinion(self, image: Tensor) -> Tensor | None:
        """Class probabilities of the teacher; None for the matched floor, whose teacher has never seen an image."""
        return self.teacher(image).float().softmax(1) if self.unsupervised_weight > 0 else None

    def after_step(self) -> None:
        self.teacher.update(self.network, self.iteration)
        super().after_step()

"""UA-MT: a mean teacher whose targets count where its stochastic passes agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.losses import (
    MaskedMSELoss,
    UncertaintyThreshold,
    add_noise,
    monte_carlo_probabilities,
    predictive_entropy,
)
from monai_ssl.methods.averaged_teacher import AveragedTeacher
from monai_ssl.methods.base import Batch, check_at_least, joint_images, joint_pass_floor
from monai_ssl.methods.variants import Columns, of_variant

COLUMNS: Columns = {
    None: {"entropy_classes": None, "divisor": None, "labeled_too": False},
    "released": {"entropy_classes": 2, "divisor": 2, "labeled_too": False},
    "paper": {"entropy_classes": None, "divisor": 1, "labeled_too": True},
}


class UncertaintyAwareMeanTeacher(AveragedTeacher):
    r"""The student's probabilities on unlabeled images are pulled to its average's, where that is certain.

    .. math::
        L = \tfrac12 \left(L_{CE} + L_{Dice}\right)
        + w(t)\, \frac{\sum_v M_v \sum_c (p_{vc} - q_{vc})^2}{C \sum_v M_v + 10^{-16}}, \qquad
        M_v = \left[-\sum_c \bar q_{vc} \ln(\bar q_{vc} + 10^{-6}) < H(t)\right]

    The student sees labeled and unlabeled images in one pass. Of the unlabeled ones the teacher, with noise and active
    dropout, gives the target :math:`q` in one pass and :math:`\bar q` as the mean of ``passes`` further ones;
    :math:`H(t)` rises from three quarters of :math:`\ln C` to all of it. The teacher is the average of the student's
    parameters, :math:`\alpha = \min(1 - 1/(t + 1), \alpha_{max})`; batch statistics are its own. The student is
    deployed.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        max_iterations: length of the default ramp-up.
        weight: of the consistency after the ramp-up, >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 40 (V-Net, 6000 iterations) and 200 (U-Net,
            30000 iterations) as released, of 150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        passes: stochastic passes of the teacher for the uncertainty, >= 1.
        passes_per_call: how many of them share a call and its batch statistics; 2 as released.
        variant: ``None`` (default), ``"released"`` or ``"paper"``: a column of the table below, from which every option
            comes that is None here.
        entropy_classes: :math:`C` of the threshold, >= 2. None and no variant that says it: the classes of the logits.
        divisor: :math:`C` of the divisor, >= 1. None likewise: ``entropy_classes``.
        labeled_too: the consistency is on labeled images as well.
        threshold_iterations: length of the threshold's rise, that of the run; None: ``max_iterations``.
        decay: :math:`\alpha_{max}` in [0, 1).
        include_background: of the Dice term; False as in UA-MT's own code (left atrium), True as in SSL4MIS.
        unsupervised_weight: factor on the consistency; 0 is the matched floor, and nobody asks the teacher.

    Paper and released code differ:

    ============================  =======================  =======================  ============================
    part                          paper                    released                 default here
    ============================  =======================  =======================  ============================
    target                        prediction of the        first noisy pass, not    first noisy pass
                                  teacher                  their mean
    threshold                     up to the maximal        up to :math:`\ln 2`      up to :math:`\ln C`
                                  uncertainty                                       (``entropy_classes``)
    divisor                       number of voxels that    twice that number        :math:`C` times that number
                                  count                                             (``divisor``)
    consistency on                all images               unlabeled images         unlabeled images
                                                                                    (``labeled_too``)
    ============================  =======================  =======================  ============================

    With two classes, the default is the released code. The last threshold is then the largest possible entropy: the
    mask passes everything.

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term.

    Loss terms: ``supervised``, and where there is something unlabeled and the weight is not 0, ``consistency``.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when ``ramp_up`` is no function.

    Source: Yu, Wang, Li, Fu, Heng, "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium
        Segmentation", MICCAI 2019, Eq. 1-3.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = UncertaintyAwareMeanTeacher(VNet(spatial_dims=2, base_channels=2))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['consistency', 'supervised']
    """

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float = 0.1,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        passes: int = 8,
        passes_per_call: int = 2,
        variant: str | None = None,
        entropy_classes: int | None = None,
        divisor: int | None = None,
        labeled_too: bool | None = None,
        threshold_iterations: int | None = None,
        decay: float = 0.99,
        include_background: bool = False,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(
            network, max_iterations, weight, ramp_levels, ramp_up, decay, include_background, unsupervised_weight
        )
        check_at_least(1, passes=passes, passes_per_call=passes_per_call)
        options = of_variant(
            variant, COLUMNS, entropy_classes=entropy_classes, divisor=divisor, labeled_too=labeled_too
        )
        entropy_classes, divisor = options["entropy_classes"], options["divisor"]
        check_at_least(2, entropy_classes=2 if entropy_classes is None else entropy_classes)
        check_at_least(1, divisor=1 if divisor is None else divisor)
        self.threshold_iterations = int(max_iterations if threshold_iterations is None else threshold_iterations)
        check_at_least(1, threshold_iterations=self.threshold_iterations)
        self.passes, self.passes_per_call = int(passes), int(passes_per_call)
        self.entropy_classes, self.labeled_too = entropy_classes, bool(options["labeled_too"])
        self.masked_mse = MaskedMSELoss(entropy_classes if divisor is None else divisor)

    @classmethod
    def matched_floor(cls, options: Mapping[str, Any]) -> Any:
        return joint_pass_floor(options)

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        taught: tuple[Tensor | None, Tensor | None] = (None, None)
        if (unlabeled is not None or self.labeled_too) and self.unsupervised_weight > 0:
            # first: no graph is in memory yet
            image = joint_images(labeled, unlabeled) if self.labeled_too else unlabeled["image"]  # type: ignore[index]
            target = self.teacher(add_noise(image))
            taught = target, monte_carlo_probabilities(self.teacher, image, self.passes, self.passes_per_call)
        return self.terms(self.network(joint_images(labeled, unlabeled)), *taught, labeled)

    def threshold(self, n_classes: int) -> float:
        """:math:`H(t)` of the step that comes, in nats, for logits of ``n_classes`` channels."""
        return UncertaintyThreshold(self.entropy_classes or n_classes, self.threshold_iterations)(self.iteration)

    @torch.no_grad()
    def certain(self, mean_probabilities: Tensor) -> Tensor:
        """The voxels that count.

        Args:
            mean_probabilities: of the stochastic passes, ``(B, n_classes, *spatial)``.

        Returns:
            ``(B, 1, *spatial)`` bool.
        """
        return predictive_entropy(mean_probabilities) < self.threshold(mean_probabilities.shape[1])

    def terms(
        self, logits: Tensor, teacher_logits: Tensor | None, mean_probabilities: Tensor | None, labeled: Batch
    ) -> dict[str, Tensor]:
        """Loss terms from the outputs of student and teacher; the labeled rows come first.

        Args:
            logits: of the student, ``(B_l + B_u, n_classes, *spatial)``.
            teacher_logits: of the last images, ``(B_u, n_classes, *spatial)`` for the unlabeled ones, without gradient;
                or None.
            mean_probabilities: of the teacher's stochastic passes, of the same shape; or None.
            labeled: batch with ``label``.
        """
        rows, logits = len(labeled["label"]), logits.float()
        terms = {"supervised": self.supervised(logits[:rows], labeled["label"])}
        if teacher_logits is not None and mean_probabilities is not None:
            p, q = logits[-len(teacher_logits) :].softmax(1), teacher_logits.float().softmax(1)
            consistency = self.masked_mse(p, q, self.certain(mean_probabilities))
            terms["consistency"] = self.unsupervised_weight * self.ramp_up(self.iteration) * consistency
        return terms

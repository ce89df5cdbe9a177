"""Mean Teacher: the predictions of an averaged copy of the network are targets on unlabeled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from monai_ssl.losses import add_noise
from monai_ssl.methods.averaged_teacher import AveragedTeacher
from monai_ssl.methods.base import Batch, check_at_least, joint_images, joint_pass_floor


class MeanTeacher(AveragedTeacher):
    r"""The student's probabilities on unlabeled images are pulled to those of its moving average.

    .. math:: L = \tfrac12 \left(L_{CE} + L_{Dice}\right) + w(t)\, \overline{(p - q)^2}, \qquad
        q = \mathrm{softmax}\, f_{\theta'}\left(x + \mathrm{clip}(\mathcal N(0, 0.1^2), \pm 0.2)\right)

    The student sees labeled and unlabeled images in one pass, the teacher the unlabeled ones with noise and active
    dropout. :math:`\theta'` is the average of the student's parameters,
    :math:`\alpha = \min(1 - 1/(t + 1), \alpha_{max})`; batch statistics are the teacher's own. The student is deployed.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        max_iterations: length of the default ramp-up.
        weight: of the consistency after the ramp-up, >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 40 (V-Net, 6000 iterations) and 200 (U-Net,
            30000 iterations) as released, of 150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        delay: iterations before the consistency counts, >= 0; 1000 of 30000 in the released 2D code. The teacher
            is asked and moves in the meantime.
        decay: :math:`\alpha_{max}` in [0, 1).
        include_background: of the Dice term; True as released.
        unsupervised_weight: factor on the consistency; 0 is the matched floor, and nobody asks the teacher.

    Paper and the released code that segmentation papers compare with differ:

    ======================  ===================================  ======================================
    part                    paper (classification)               released (here)
    ======================  ===================================  ======================================
    consistency on          all images                           unlabeled images
    noise                   augmentation of both sides           Gaussian noise on the teacher's side
    ramp-up                 80 epochs, continuous                staircase over the whole run
    :math:`\alpha_{max}`    0.99, later 0.999                    0.99
    deployed                teacher                              student
    ======================  ===================================  ======================================

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term.

    Loss terms: ``supervised``, and where there is something unlabeled and the weight is not 0, ``consistency``.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when ``ramp_up`` is no function.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2; for segmentation Yu
        et al., "Uncertainty-aware Self-ensembling Model", MICCAI 2019, whose comparison method it is.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import VNet
        >>> method = MeanTeacher(VNet(spatial_dims=2, base_channels=2))
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
        delay: int = 0,
        decay: float = 0.99,
        include_background: bool = True,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(
            network, max_iterations, weight, ramp_levels, ramp_up, decay, include_background, unsupervised_weight
        )
        check_at_least(0, delay=delay)
        self.delay = int(delay)

    @classmethod
    def matched_floor(cls, options: Mapping[str, Any]) -> Any:
        return joint_pass_floor(options)

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        taught = None
        if unlabeled is not None and self.unsupervised_weight > 0:  # first: no graph is in memory yet
            taught = self.teacher(add_noise(unlabeled["image"]))
        return self.terms(self.network(joint_images(labeled, unlabeled)), taught, labeled)

    def terms(self, logits: Tensor, teacher_logits: Tensor | None, labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the outputs of student and teacher; the labeled rows come first.

        Args:
            logits: of the student, ``(B_l + B_u, n_classes, *spatial)``.
            teacher_logits: of the unlabeled images, ``(B_u, n_classes, *spatial)``, without gradient; or None.
            labeled: batch with ``label``.
        """
        rows, logits = len(labeled["label"]), logits.float()
        terms = {"supervised": self.supervised(logits[:rows], labeled["label"])}
        if teacher_logits is not None:
            weight = self.ramp_up(self.iteration) if self.iteration >= self.delay else 0.0
            p, q = logits[rows:].softmax(1), teacher_logits.float().softmax(1)
            terms["consistency"] = self.unsupervised_weight * weight * nn.functional.mse_loss(p, q)
        return terms

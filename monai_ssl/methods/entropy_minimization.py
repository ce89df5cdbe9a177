"""Entropy minimization: predictions should be certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from monai_ssl.losses import HalfDiceCELoss, predictive_entropy
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, joint_images, joint_pass_floor, staircase
from monai_ssl.methods.variants import Columns, of_variant

COLUMNS: Columns = {
    "released": {"labeled_too": True, "relative": True},
    "paper": {"labeled_too": False, "relative": False},
}


class EntropyMinimization(SemiSupervisedMethod):
    r"""The entropy of the network's predictions is a loss.

    .. math:: L = \tfrac12 \left(L_{CE} + L_{Dice}\right)
        + w(t)\, \overline{\frac{-\sum_c p_c \ln(p_c + 10^{-6})}{\ln C}}

    One network, one pass over labeled and unlabeled images, no teacher. The mean is over all voxels of all images.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        max_iterations: length of the default ramp-up.
        weight: of the entropy after the ramp-up, >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 40 (6000 iterations) and 200 (30000
            iterations) as released, of 150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        variant: ``"released"`` (default) or ``"paper"``: a column of the table below, from which every option comes
            that is None here.
        labeled_too: the entropy of labeled images counts as well; False: unlabeled images only.
        relative: the entropy is divided by its maximum, :math:`\ln C`; False: in nats.
        include_background: of the Dice term; True as released.
        unsupervised_weight: factor on the entropy; 0 is the matched floor.

    Papers that name it as comparison method cite others than the code does:

    ======================  =======================================  =====================================
    part                    papers                                   released (here)
    ======================  =======================================  =====================================
    entropy of              unlabeled data (Grandvalet and Bengio),  all images of the batch
                            or of the target domain (ADVENT)         (``labeled_too``)
    how                     ADVENT: also by an adversary             its mean, directly
    scale                   in nats                                  divided by :math:`\ln C` (``relative``)
    ======================  =======================================  =====================================

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term; their entropy, which needs no label, counts.

    Loss terms: ``supervised``, and where the weight is not 0 and there is an image for it, ``entropy``.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when ``ramp_up`` is no function.

    Source: Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization", NeurIPS 2004, Eq. 6; Vu et al.,
        "ADVENT", CVPR 2019, Eq. 3.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import VNet
        >>> method = EntropyMinimization(VNet(spatial_dims=2, base_channels=2))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['entropy', 'supervised']
    """

    honors_ignore_label = True

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float = 0.1,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        variant: str = "released",
        labeled_too: bool | None = None,
        relative: bool | None = None,
        include_background: bool = True,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        self.ramp_up = staircase(ramp_up, max_iterations, weight, ramp_levels)
        options = of_variant(variant, COLUMNS, labeled_too=labeled_too, relative=relative)
        self.labeled_too, self.relative = bool(options["labeled_too"]), bool(options["relative"])
        self.supervised = HalfDiceCELoss(include_background)

    @classmethod
    def matched_floor(cls, options: Mapping[str, Any]) -> Any:
        return joint_pass_floor(options)

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        return self.terms(self.network(joint_images(labeled, unlabeled)), labeled)

    def terms(self, logits: Tensor, labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the network's output; the labeled rows come first.

        Args:
            logits: ``(B_l + B_u, n_classes, *spatial)``.
            labeled: batch with ``label``.
        """
        rows, logits = len(labeled["label"]), logits.float()
        terms = {"supervised": self.supervised(logits[:rows], labeled["label"])}
        counted = logits if self.labeled_too else logits[rows:]
        if self.unsupervised_weight > 0 and len(counted):
            entropy = predictive_entropy(counted.softmax(1), relative=self.relative).mean()
            terms["entropy"] = self.unsupervised_weight * self.ramp_up(self.iteration) * entropy
        return terms

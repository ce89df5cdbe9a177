"""Self-training: the pool teaches through labels that an earlier network has drawn."""

from __future__ import annotations

import logging
from typing import ClassVar

from torch import Tensor, nn

from monai_ssl.losses import ForegroundDiceLoss, HalfDiceCELoss, supervised_cross_entropy
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, joint_images
from monai_ssl.transforms import change_strongly, cutmix

logger = logging.getLogger(__name__)


class SelfTraining(SemiSupervisedMethod):
    r"""A network learns the labels of the labeled scans, and pseudo-labels of the pool under a strong change.

    .. math:: L = \tfrac12 \left(L_{CE} + L_{Dice}\right)(x, y) + w\, L_{CE}\left(M(S(u)), M(\hat y)\right)

    :math:`\hat y` are label maps from files: of an earlier network, of an ensemble, of any other tool. :math:`S`
    changes gray values (:func:`~monai_ssl.transforms.change_strongly`), :math:`M` puts a box of one pool image into
    another, labels alike (:func:`~monai_ssl.transforms.cutmix`). One pass over labeled and pool images, as everywhere
    in this field; the labeled ones are changed weakly only.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        weight: :math:`w` >= 0.
        strength: of the change of gray values, >= 0; 0: none.
        cutmix_probability: of a pool image to get a box of another one, in [0, 1].
        dice: also the Dice of the pseudo-labels, as for the labels: :math:`w` times half of the sum of both.
        unsupervised_weight: factor on the pool's term; 0 is the matched floor.

    Voxels labeled ``IGNORE_LABEL``, in labels and pseudo-labels, take no part.

    Loss terms: ``supervised``, and where there are pseudo-labels and the weight is not 0, ``pseudo``. A pool without
    pseudo-labels teaches nothing, as in the matched floor; the log says so once.

    Raises:
        ValueError: for an option out of its range.

    Source: Lee, "Pseudo-label", ICML workshop 2013; Xie et al., "Self-training with Noisy Student", CVPR 2020; Yang et
        al., "ST++", CVPR 2022, for segmentation. The constants are our own.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import VNet
        >>> method = SelfTraining(VNet(spatial_dims=2, base_channels=2))
        >>> batch = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(batch, batch))
        ['pseudo', 'supervised']
    """

    honors_ignore_label = True
    pseudo_labels: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module,
        weight: float = 0.5,
        strength: float = 0.5,
        cutmix_probability: float = 1.0,
        dice: bool = False,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        for name, value in (("weight", weight), ("strength", strength), ("cutmix_probability", cutmix_probability)):
            if not value >= 0 or (name == "cutmix_probability" and value > 1):
                raise ValueError(f"{name} must be {'in [0, 1]' if 'cutmix' in name else '>= 0'}, got {value}")
        self.weight, self.strength = float(weight), float(strength)
        self.cutmix_probability = float(cutmix_probability)
        self.supervised = HalfDiceCELoss()
        self.dice = ForegroundDiceLoss() if dice else None
        self._said = False

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        pseudo = None
        if unlabeled is not None:
            mixed = [change_strongly(unlabeled["image"], self.strength)]
            if self.weight * self.unsupervised_weight > 0 and self._is_labeled(unlabeled):
                mixed.append(unlabeled["label"])
            image, *rest = cutmix(mixed, self.cutmix_probability)
            unlabeled = {"image": image}
            pseudo = rest[0] if rest else None
        logits = self.network(joint_images(labeled, unlabeled)).float()
        rows = len(labeled["label"])
        terms = {"supervised": self.supervised(logits[:rows], labeled["label"])}
        if pseudo is not None:
            self.note_pseudo_labels(pseudo, logits.shape[1])
            loss = supervised_cross_entropy(logits[rows:], pseudo)
            if self.dice is not None:
                loss = 0.5 * (loss + self.dice(logits[rows:], pseudo))
            terms["pseudo"] = self.unsupervised_weight * self.weight * loss
        return terms

    def _is_labeled(self, unlabeled: Batch) -> bool:
        if "label" not in unlabeled and not self._said:
            logger.warning(
                "there are no pseudo-labels: the pool teaches nothing; `monai-ssl self-train` makes them, "
                "--pseudo_labels DIR names yours"
            )
            self._said = True
        return "label" in unlabeled

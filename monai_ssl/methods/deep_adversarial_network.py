"""DAN: predictions on unlabeled images must look to a discriminator like predictions on labeled ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from monai_ssl.losses import HalfDiceCELoss
from monai_ssl.methods.adversarial import AdversarialMethod
from monai_ssl.methods.base import Batch, joint_images, joint_pass_floor, staircase


class DeepAdversarialNetwork(AdversarialMethod):
    r"""Probability maps of unlabeled images shall pass for those of labeled images.

    .. math:: L = \tfrac12 \left(L_{CE} + L_{Dice}\right) + w(t)\, \ell_{CE}\left(D(p_u, x_u), 1\right), \qquad
        L_D = \ell_{CE}\left(D(p_l, x_l), 1\right) + \ell_{CE}\left(D(p_u, x_u), 0\right)

    with :math:`p = \mathrm{softmax} f(x)` and :math:`L_D` a mean over all images of the batch. The network sees labeled
    and unlabeled images in one pass and takes its step with D in evaluation mode; then D takes its step on predictions
    of the network as it is now, in evaluation mode and without gradient. The network is deployed.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        discriminator: probabilities ``(B, n_classes, *spatial)`` and image -> logits ``(B, 2)``, see
            :class:`~monai_ssl.networks.Discriminator`.
        max_iterations: length of the default ramp-up.
        weight: of the adversarial term after the ramp-up, >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 40 (V-Net, 6000 iterations) and 200 (U-Net,
            30000 iterations), of 150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        include_background: of the Dice term; True as released.
        discriminator_learning_rate: of D's Adam (betas 0.9 and 0.99), constant, > 0.
        unsupervised_weight: factor on the adversarial term; 0 is the matched floor: same passes of the network, nobody
            asks D, and D does not learn.

    Paper and the released code that segmentation papers compare with differ:

    ======================  ===========================================  =====================================
    part                    paper (2D histology)                         released (here)
    ======================  ===========================================  =====================================
    D is asked about        annotated and unannotated images, "good or   labeled and unlabeled images
                            bad segmentation"
    D sees                  image and probabilities                      the same; a stem each, added
    network's term          unannotated images, weight grows             unlabeled images, staircase to 0.1
    network's step          one after one of D                           before D's
    ======================  ===========================================  =====================================

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term.

    Loss terms: ``supervised``, and where there is something unlabeled and the weight is not 0, ``adversarial``; of the
    discriminator ``discriminator/cross_entropy``.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when ``ramp_up`` is no function.

    Source: Zhang, Yang, Chen, Fredericksen, Hughes and Chen, "Deep Adversarial Networks for Biomedical Image
        Segmentation Utilizing Unannotated Images", MICCAI 2017.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import Discriminator, VNet
        >>> discriminator = Discriminator(spatial_dims=2, map_channels=2, base_channels=4)
        >>> method = DeepAdversarialNetwork(VNet(spatial_dims=2, base_channels=2), discriminator)
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> unlabeled = {"image": torch.rand(2, 1, 16, 16)}
        >>> sorted(method(labeled, unlabeled)), sorted(method.adversary_terms("discriminator", labeled, unlabeled))
        (['adversarial', 'supervised'], ['cross_entropy'])
    """

    honors_ignore_label = True

    def __init__(
        self,
        network: nn.Module,
        discriminator: nn.Module,
        max_iterations: int = 6000,
        weight: float = 0.1,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        include_background: bool = True,
        discriminator_learning_rate: float = 1e-4,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, discriminator, discriminator_learning_rate, unsupervised_weight)
        self.ramp_up = staircase(ramp_up, max_iterations, weight, ramp_levels)
        self.supervised = HalfDiceCELoss(include_background)

    @classmethod
    def matched_floor(cls, options: Mapping[str, Any]) -> Any:
        return joint_pass_floor(options)

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        logits = self.network(joint_images(labeled, unlabeled)).float()
        rows = len(labeled["label"])
        terms = {"supervised": self.supervised(logits[:rows], labeled["label"])}
        if unlabeled is not None and self.unsupervised_weight > 0:
            weight = self.unsupervised_weight * self.ramp_up(self.iteration)
            terms["adversarial"] = weight * self.passes_for_labeled(logits[rows:].softmax(1), unlabeled["image"])
        return terms

    def judged_map(self, image: Tensor) -> Tensor:
        return self.network(image).float().softmax(1)

"""SASSNet: signed distances of unlabeled images must look like those of labeled ones to a discriminator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.transforms import Transform
from torch import Tensor, nn

from monai_ssl.losses import ForegroundDiceLoss, SmoothHeaviside, supervised_mse
from monai_ssl.methods.adversarial import AdversarialMethod
from monai_ssl.methods.base import Batch, check_at_least, joint_images, staircase
from monai_ssl.methods.dual_task import check_dual_task, distance_target, distance_transforms
from monai_ssl.networks import DualTaskNetwork
from monai_ssl.transforms import SignedDistanceMap


class ShapeAwareSegmentation(AdversarialMethod):
    r"""Segmentation and signed distance from one network; a discriminator judges the distance maps.

    .. math:: L = L_{Dice} + \beta\, \overline{(d - d^*)^2} + w(t)\, \ell_{CE}\left(D(d_u, x_u), 1\right), \qquad
        L_D = \ell_{CE}\left(D(d_l, x_l), 1\right) + \ell_{CE}\left(D(d_u, x_u), 0\right)

    :math:`d` is the hyperbolic tangent of the network's distance head, :math:`d^*` the signed distance map of the
    label, negative inside, and :math:`L_D` a mean over all images of the batch. The network sees labeled and unlabeled
    images in one pass and takes its step with D in evaluation mode; then D takes its step on maps of the network as it
    is now, in evaluation mode and without gradient. The segmentation head is deployed.

    Args:
        network: a :class:`~monai_ssl.networks.DualTaskNetwork` (any backbone, ``n_classes - 1`` distance channels).
        discriminator: distances ``(B, n_classes - 1, *spatial)`` and image -> logits ``(B, 2)``, see
            :class:`~monai_ssl.networks.Discriminator`.
        max_iterations: length of the default ramp-up.
        weight: of the adversarial term after the ramp-up, >= 0: 0.01 as released for 16 labeled scans, 0.015 for 8.
        ramp_levels: the default ramp-up is a staircase of this many levels.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        distance_weight: :math:`\beta` >= 0.
        degenerate: distance targets of empty and full patches, see :class:`~monai_ssl.transforms.SignedDistanceMap`.
            ``"official"`` is the released code, whose full patches are NaN.
        discriminator_learning_rate: of D's Adam (betas 0.9 and 0.99), constant, > 0.
        unsupervised_weight: factor on the adversarial term; 0 is the matched floor: same passes of the network, nobody
            asks D, and D does not learn.

    Paper and released code differ:

    =====================  ===========================================  =====================================
    part                   paper                                        released (here)
    =====================  ===========================================  =====================================
    segmentation loss      Dice                                         Dice; cross-entropy is logged only
    distance loss          squared error                                the same, weight 0.3
    loss of D              binary cross-entropy of one output           cross-entropy of two outputs
    weight                 "time-dependent Gaussian"                    staircase of 40 levels to 0.01 or 0.015
    empty patches          not discussed                                distance 0 everywhere
    =====================  ===========================================  =====================================

    Voxels labeled ``IGNORE_LABEL`` take no part in Dice and distance supervision, and are neither inside nor outside in
    the distance maps of their neighbors.

    Loss terms: ``dice``, ``signed_distance``, and where there is something unlabeled and the weight is not 0,
    ``adversarial``; of the discriminator ``discriminator/cross_entropy``.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when the network has no ``tasks`` method, or ``ramp_up`` is no function.

    Source: Li, Zhang and He, "Shape-aware Semi-supervised 3D Semantic Segmentation for Medical Images", MICCAI 2020,
        Eq. 1-6.

    Example:
        >>> from monai_ssl.networks import Discriminator, DualTaskVNet
        >>> discriminator = Discriminator(spatial_dims=2, map_channels=1, base_channels=4)
        >>> method = ShapeAwareSegmentation(DualTaskVNet(spatial_dims=2, base_channels=2), discriminator)
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['adversarial', 'dice', 'signed_distance']
    """

    honors_ignore_label = True
    network: DualTaskNetwork

    def __init__(
        self,
        network: DualTaskNetwork,
        discriminator: nn.Module,
        max_iterations: int = 6000,
        weight: float = 0.01,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        distance_weight: float = 0.3,
        degenerate: str = "zero",
        discriminator_learning_rate: float = 1e-4,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, discriminator, discriminator_learning_rate, unsupervised_weight)
        check_dual_task(network)
        check_at_least(0, distance_weight=distance_weight)
        self.distance_weight = float(distance_weight)
        self.ramp_up = staircase(ramp_up, max_iterations, weight, ramp_levels)
        self.dice, self.heaviside = ForegroundDiceLoss(), SmoothHeaviside()
        self.signed_distance_map = SignedDistanceMap(network.n_classes, degenerate)

    def loader_transforms(self) -> list[Transform]:
        return distance_transforms(self.signed_distance_map)

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        logits, raw_distance = self.network.tasks(joint_images(labeled, unlabeled))
        logits, distance = logits.float(), torch.tanh(raw_distance.float())
        label, target = labeled["label"], distance_target(self.signed_distance_map, labeled)
        rows = len(label)
        error = supervised_mse(distance[:rows], target.to(distance), label)
        terms = {"dice": self.dice(logits[:rows], label), "signed_distance": self.distance_weight * error}
        if unlabeled is not None and self.unsupervised_weight > 0:
            weight = self.unsupervised_weight * self.ramp_up(self.iteration)
            terms["adversarial"] = weight * self.passes_for_labeled(distance[rows:], unlabeled["image"])
        return terms

    def judged_map(self, image: Tensor) -> Tensor:
        return torch.tanh(self.network.tasks(image)[1].float())

    def second_opinion(self, image: Tensor) -> Tensor:
        """The mask that the signed distance implies, inside where it is negative: the other head's view."""
        return self.heaviside.classes(self.judged_map(image))

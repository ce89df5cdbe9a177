"""DTC: semi-supervised segmentation through dual-task consistency."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.transforms import Transform
from torch import Tensor

from monai_ssl.losses import DualTaskConsistencyLoss, ForegroundDiceLoss, SigmoidRampUp, supervised_mse
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least, checked_ramp_up, joint_images
from monai_ssl.methods.dual_task import check_dual_task, distance_target, distance_transforms
from monai_ssl.methods.variants import Columns, of_variant
from monai_ssl.networks import DualTaskNetwork
from monai_ssl.transforms import SignedDistanceMap

COLUMNS: Columns = {
    "released": {"distance_weight": 0.3, "plain_dice": False},
    "paper": {"distance_weight": 1.0, "plain_dice": True},
}


class DualTaskConsistency(SemiSupervisedMethod):
    r"""Dual-task consistency between a segmentation head and a signed-distance head.

    One forward pass over labeled and unlabeled images together gives logits and a signed distance map ``d``. Labeled
    images supervise both heads; on all images the mask implied by the distance, :math:`T^{-1}(d) = \sigma(-k d)`, is
    pulled to the segmentation and the other way round:

    .. math:: L = L_{Dice} + \beta\, L_{SDF} + w(t)\, L_{DTC}

    There is no teacher, no second pass and no noise.

    Args:
        network: a :class:`~monai_ssl.networks.DualTaskNetwork` (any backbone, ``n_classes - 1`` distance channels).
        max_iterations: length of the run, for the default ramp-up.
        ramp_up: weight of the consistency term as a function of the iteration. Default: over the whole run; released
            code, a staircase of 40 levels (150 iterations each in a run of 6000); paper, continuous.
        distance_weight: :math:`\beta >= 0`.
        slope: :math:`k > 0` of the smooth Heaviside function, 1500 in the released code.
        variant: ``"released"`` (default) or ``"paper"``: a column of the table below, from which every option comes
            that is left at None.
        degenerate: distance targets of empty and full patches, see :class:`monai_ssl.transforms.SignedDistanceMap`.
        unsupervised_weight: factor on the consistency term; 0 is the matched floor.
        dice_weight: factor >= 0 on the Dice term. 0, with a network that deploys its distance head, leaves the distance
            branch alone (Table 1, "LSF").
        plain_dice: Dice of each image with a plain denominator; False: squared, sums over all labeled rows.

    Paper and released code differ:

    ============================  ==============================  ================================
    option                        ``"released"``                  ``"paper"``
    ============================  ==============================  ================================
    ``distance_weight``           0.3                             1 (Eq. 7)
    ``plain_dice``                False                           True (Eq. 5)
    ``ramp_up``                   staircase of 40 levels          continuous
    ============================  ==============================  ================================

    As in the code in both: the minus sign in :math:`T^{-1}` (with negative distances inside, Eq. 2 as printed would be
    the background); voxel means where Eq. 4 and 6 print sums, a million times larger; a distance that is normalized to
    1 inside and outside, 0 on the inner boundary voxels (Eq. 1 prints distances to the contour); of the crop, where the
    paper computes it once for the image: a map of a crop is not the crop of a map.

    Voxels labeled ``IGNORE_LABEL`` take no part in Dice and distance supervision, and are neither inside nor outside in
    the distance maps of their neighbors; the consistency, which needs no label, acts on them too.

    Loss terms: ``dice``, ``signed_distance``, ``consistency``.

    Raises:
        ValueError: for an unknown variant or a negative weight.
        TypeError: when the network has no ``tasks`` method, or ``ramp_up`` is no function.

    Source: Luo, Chen, Song, Wang, "Semi-supervised Medical Image Segmentation through Dual-task Consistency", AAAI
        2021, Eq. 1-7.

    Example:
        >>> from monai_ssl.networks import DualTaskVNet
        >>> method = DualTaskConsistency(DualTaskVNet(spatial_dims=2, base_channels=2))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['consistency', 'dice', 'signed_distance']
    """

    honors_ignore_label = True

    def __init__(
        self,
        network: DualTaskNetwork,
        max_iterations: int = 6000,
        ramp_up: Callable[[int], float] | None = None,
        distance_weight: float | None = None,
        slope: float = 1500.0,
        variant: str = "released",
        degenerate: str = "safe",
        unsupervised_weight: float = 1.0,
        dice_weight: float = 1.0,
        plain_dice: bool | None = None,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        options = of_variant(variant, COLUMNS, distance_weight=distance_weight, plain_dice=plain_dice)
        check_dual_task(network)
        released = variant == "released"
        check_at_least(0, distance_weight=options["distance_weight"], dice_weight=dice_weight)
        self.distance_weight, self.dice_weight = float(options["distance_weight"]), float(dice_weight)
        check_at_least(1, max_iterations=max_iterations)
        step = max(round(max_iterations / 40), 1)
        staircase = SigmoidRampUp(40 * step, granularity=step)
        self.ramp_up = checked_ramp_up(ramp_up) or (staircase if released else SigmoidRampUp(max_iterations))
        self.dice = ForegroundDiceLoss(squared=not options["plain_dice"], pooled=not options["plain_dice"])
        self.consistency = DualTaskConsistencyLoss(slope)
        self.signed_distance_map = SignedDistanceMap(network.n_classes, degenerate)

    def loader_transforms(self) -> list[Transform]:
        return distance_transforms(self.signed_distance_map)

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        logits, raw_distance = self.network.tasks(joint_images(labeled, unlabeled))  # type: ignore[operator]
        return self.terms(logits, raw_distance, labeled)

    def second_opinion(self, image: Tensor) -> Tensor:
        """The other task's view of the image: the mask that the signed distance implies, :math:`T^{-1}(d)`.

        Of a network that deploys the distance it is the segmentation head's.
        """
        logits, raw_distance = self.network.tasks(image)  # type: ignore[operator]
        if getattr(self.network, "deployed", "segmentation") == "distance":
            return logits.float().softmax(1)
        return self.consistency.heaviside.classes(torch.tanh(raw_distance.float()))

    def terms(self, logits: Tensor, raw_distance: Tensor, labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the outputs of both heads; the labeled rows come first.

        Args:
            logits: ``(B, n_classes, *spatial)``.
            raw_distance: ``(B, n_classes - 1, *spatial)``, before tanh.
            labeled: batch with ``label`` and, optionally, ``signed_distance`` (computed here where missing).
        """
        label = labeled["label"]
        rows = label.shape[0]
        # float32 from here on: with slope 1500 the rounding of a half-precision tanh would be the signal
        logits, distance = logits.float(), torch.tanh(raw_distance.float())
        target = distance_target(self.signed_distance_map, labeled)
        weight = self.unsupervised_weight * self.ramp_up(self.iteration)
        return {
            "dice": self.dice_weight * self.dice(logits[:rows], label),
            "signed_distance": self.distance_weight * supervised_mse(distance[:rows], target.to(distance), label),
            "consistency": weight * self.consistency(distance, logits.softmax(1)[:, 1:]),
        }

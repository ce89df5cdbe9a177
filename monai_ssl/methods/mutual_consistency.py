"""MC-Net and MC-Net+: decoders that upsample differently learn each other's sharpened predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from monai_ssl.losses import ForegroundDiceLoss, SharpenedConsistencyLoss
from monai_ssl.methods.base import Batch, check_at_least, staircase
from monai_ssl.methods.several_outputs import SeveralOutputs

DICE = ("foreground", "all_classes", "halved")
SHARPENING = ("per_channel", "normalized")


class MutualConsistency(SeveralOutputs):
    r"""Two (MC-Net) or three (MC-Net+) decoders on one encoder are pulled to each other's sharpened probabilities.

    .. math:: L = \lambda \sum_i L_{Dice}(p_i, y) + w(t) \sum_{i \ne j} \overline{\left(p_i - S(p_j)\right)^2},
        \qquad S(p) = \frac{p^{1/T}}{p^{1/T} + (1 - p)^{1/T}}

    One pass over labeled and unlabeled images together; Dice on the labeled ones, consistency on all. The decoders
    differ in how they upsample, so that they disagree where the image is hard; sharpening makes the common prediction
    confident. Targets are not detached: gradient reaches both sides. The first decoder is deployed.

    Args:
        network: offers ``outputs(image)``, the logits of every decoder, the deployed one first: a
            :class:`~monai_ssl.networks.VNet` or :class:`~monai_ssl.networks.UNet` with two or more ``decoders``, or any
            network in a :class:`~monai_ssl.networks.MultiHeadNetwork`.
        max_iterations: length of the default ramp-up.
        weight: :math:`w_{max} >= 0`; 1 (V-Net) and 0.1 (U-Net) as released.
        ramp_levels: the default ramp-up is a staircase of this many levels: 40 (V-Net) and 200 (U-Net) as released, of
            150 iterations each. A level begins one iteration before its multiple, since the released loop counts the
            iteration before it asks for the weight.
        ramp_up: :math:`w` as a function of the step's number, counted from 1; replaces ``weight`` and ``ramp_levels``.
        supervised_weight: :math:`\lambda >= 0`; 0.5 (V-Net) and 1 (U-Net) as released.
        dice: ``"foreground"``: mean over the foreground classes, plain sums, :math:`\epsilon = 10^{-8}` (released 3D
            code). ``"all_classes"``: background included, squared denominator. ``"halved"``: the latter without the
            factor 2, the released 2D code, in which a class that is absent costs 1 whatever the network says.
        sharpening: ``"per_channel"`` (released) or ``"normalized"``: the sharpened channels of a voxel add up to 1. The
            same for two classes.
        temperature: T in [0.01, 1].
        detach_target: sharpened targets carry no gradient.
        unsupervised_weight: factor on the consistency; 0 is the matched floor.

    The released code has no single setting; the defaults are those of its 3D script. Its options in either dimension,
    and the other readings that are offered:

    ==========================  ======================  ======================  ===================================
    part                        released, 3D            released, 2D            option
    ==========================  ======================  ======================  ===================================
    :math:`\lambda`             0.5                     1                       ``supervised_weight``
    :math:`w_{max}`             1                       0.1                     ``weight``
    levels of the ramp-up       40                      200                     ``ramp_levels``, ``ramp_up``
    Dice                        class 1, plain sums     factor 2 missing        ``dice``
    cross-entropy               logged, not learned     logged, not learned
    consistency                 sum over ordered pairs  sum over ordered pairs
    images of the consistency   labeled and unlabeled   labeled and unlabeled
    targets                     with gradient           with gradient           ``detach_target``
    more than two classes       each channel by itself  each channel by itself  ``sharpening``
    deployed                    first decoder           first decoder           ``average_decoders`` of the network
    ==========================  ======================  ======================  ===================================

    Voxels labeled ``IGNORE_LABEL`` take no part in Dice; the consistency, which needs no label, acts on them too.

    Loss terms: ``dice``, ``consistency``.

    Raises:
        ValueError: for an option out of its range, or a network with a single decoder.
        TypeError: when the network has no ``outputs`` method, or ``ramp_up`` is no function.

    Source: Wu, Xu, Ge, Cai, Zhang, "Semi-supervised Left Atrium Segmentation with Mutual Consistency Training", MICCAI
        2021; Wu, Ge, Zhang, Xu, Zhang, Xia, Cai, "Mutual consistency learning for semi-supervised medical image
        segmentation", MedIA 2022, Eq. 1-4.

    Example:
        >>> from monai_ssl.networks import literature_network
        >>> network = literature_network(2, base_channels=2, decoders=2, mixed_upsampling=True)
        >>> method = MutualConsistency(network)
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['consistency', 'dice']
    """

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float = 1.0,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        supervised_weight: float = 0.5,
        dice: str = "foreground",
        sharpening: str = "per_channel",
        temperature: float = 0.1,
        detach_target: bool = False,
        unsupervised_weight: float = 1.0,
    ) -> None:
        cure = "wrap your backbone in monai_ssl.networks.MultiHeadNetwork"
        super().__init__(network, unsupervised_weight, "the logits of every decoder", cure)
        if (decoders := len(getattr(network, "decoders", (1, 2)))) < 2:
            raise ValueError(f"network must have two decoders or more, got {decoders}; give it decoders=2 or 3")
        for name, value, known in (("dice", dice, DICE), ("sharpening", sharpening, SHARPENING)):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        check_at_least(0, supervised_weight=supervised_weight)
        self.supervised_weight = float(supervised_weight)
        self.ramp_up = staircase(ramp_up, max_iterations, weight, ramp_levels)
        self.dice = (
            ForegroundDiceLoss(squared=False, smooth=1e-8)
            if dice == "foreground"
            else ForegroundDiceLoss(include_background=True)
            if dice == "all_classes"
            else ForegroundDiceLoss(include_background=True, smooth=1e-10, halved=True)
        )
        self.consistency = SharpenedConsistencyLoss(temperature, detach_target, normalized=sharpening == "normalized")

    def terms(self, outputs: Sequence[Tensor], labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the logits of the decoders; the labeled rows come first.

        Args:
            outputs: two or more of ``(B, n_classes, *spatial)``.
            labeled: batch with ``label``.
        """
        label = labeled["label"]
        probabilities = [logits.float().softmax(1) for logits in outputs]
        dice = [self.dice.of_probabilities(p[: len(label), self.dice.first :], label) for p in probabilities]
        terms = {"dice": self.supervised_weight * torch.stack(dice).sum()}
        if self.unsupervised_weight > 0:
            weight = self.unsupervised_weight * self.ramp_up(self.iteration + 1)
            terms["consistency"] = weight * self.consistency(*probabilities)
        return terms

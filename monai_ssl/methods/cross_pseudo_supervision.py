"""Cross pseudo supervision: two networks learn each other's labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from monai_ssl.losses import CrossPseudoLabelLoss, HalfDiceCELoss, SigmoidRampUp
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, joint_images, staircase
from monai_ssl.methods.variants import Columns, of_variant
from monai_ssl.networks import initialize

COLUMNS: Columns = {
    "released": {"weight": 0.1, "labeled_too": False},
    "paper": {"weight": 1.5, "labeled_too": True},
}


class CrossPseudoSupervision(SemiSupervisedMethod):
    r"""Two networks that began with different weights learn, on unlabeled images, the labels that the other one draws.

    .. math:: L = \sum_{m=1}^{2} \tfrac12 \left(L_{CE} + L_{Dice}\right)(z_m)
        + w(t) \left[\ell_{CE}(z_1, \mathrm{argmax}\, z_2) + \ell_{CE}(z_2, \mathrm{argmax}\, z_1)\right]

    Both see labeled and unlabeled images, each in one pass; the labels are hard and carry no gradient, every voxel
    counts. One sum, one backward pass. The first network is deployed; which of the two that is, is decided before
    training, by its initialization, and never by scores.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``; the first network, deployed.
        second: the other network, of the same inputs and outputs. None: a copy of the first one with other weights.
        max_iterations: length of the default ramp-up.
        variant: ``"released"`` (default) or ``"paper"``: a column of the table below, from which every option comes
            that is None here; the paper's weight is constant.
        weight: of the pseudo-labels after the ramp-up, >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 40 (6000 iterations) and 200 (30000
            iterations) as released, of 150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        labeled_too: the networks learn each other's labels on labeled images as well.
        initialization: of the first network, ``"kaiming"`` as released or ``"xavier"``, see
            :func:`~monai_ssl.networks.initialize`. None: it keeps the weights that it has, such as trained ones.
        second_initialization: of the second network. None: a copy of the first one gets ``"xavier"``, as released; a
            network that is given keeps its weights.
        include_background: of the Dice term; True as released.
        unsupervised_weight: factor on the pseudo-labels; 0 is the matched floor, which leaves the second network out:
            it cannot reach the first one any more.

    Attributes:
        second: the second network.

    Paper and the released code that segmentation papers compare with differ:

    ======================  =====================================  ======================================
    part                    paper (scenes)                         released (here)
    ======================  =====================================  ======================================
    pseudo-labels for       labeled and unlabeled images           unlabeled images (``labeled_too``)
    :math:`w`               1.5 (to 6 by data set), constant       to 0.1 by a ramp-up (``weight``)
    initialization          pretrained encoders, random rest       random: Kaiming and Xavier
    optimizers              two                                    two; here one over both networks
    deployed                either of them                         both are scored, the best iterate of each is
                                                                   kept; here the first one, last iterate
    ======================  =====================================  ======================================

    One optimizer over both networks makes the same steps as two of equal settings, as long as gradients are not clipped
    by their common norm.

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised terms.

    Loss terms: ``supervised``; where the weight is not 0, ``supervised_second``, and where there is something
    unlabeled, ``pseudo`` (what the first network learns from the second) and ``pseudo_second``.

    Raises:
        ValueError: for an option out of its range, or where both networks are one object.
        TypeError: when ``ramp_up`` is no function.

    Source: Chen, Yuan, Zeng, Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021,
        Eq. 1-2.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import VNet
        >>> method = CrossPseudoSupervision(VNet(spatial_dims=2, base_channels=2))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['pseudo', 'pseudo_second', 'supervised', 'supervised_second']
    """

    honors_ignore_label = True
    second_opinion_needs_state = True

    def __init__(
        self,
        network: nn.Module,
        second: nn.Module | None = None,
        max_iterations: int = 6000,
        weight: float | None = None,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        variant: str = "released",
        labeled_too: bool | None = None,
        initialization: str | None = None,
        second_initialization: str | None = None,
        include_background: bool = True,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        options = of_variant(variant, COLUMNS, weight=weight, labeled_too=labeled_too)
        rise = staircase(ramp_up, max_iterations, options["weight"], ramp_levels)
        constant = variant == "paper" and ramp_up is None
        self.ramp_up = SigmoidRampUp(0, options["weight"]) if constant else rise
        self.labeled_too = bool(options["labeled_too"])
        if second is not None and not isinstance(second, nn.Module):
            raise TypeError(f"second must be a network or null, got {second!r}")
        if second is network:
            raise ValueError("second must be another network than the first one, got the same object")
        if second is None:
            second, second_initialization = copy.deepcopy(network), second_initialization or "xavier"
        self.second = second
        for member, how in ((self.network, initialization), (self.second, second_initialization)):
            if how is not None:
                initialize(member, how)
        if self.unsupervised_weight == 0:
            self.second.requires_grad_(False)
        self.supervised = HalfDiceCELoss(include_background)
        self.pseudo = CrossPseudoLabelLoss()

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        image = joint_images(labeled, unlabeled)
        members = (self.network, self.second) if self.unsupervised_weight > 0 else (self.network,)
        return self.terms([member(image) for member in members], labeled)

    def terms(self, logits: Sequence[Tensor], labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the outputs of both networks, or of the first one alone; the labeled rows come first.

        Args:
            logits: one or two of ``(B_l + B_u, n_classes, *spatial)``.
            labeled: batch with ``label``.
        """
        rows, z = len(labeled["label"]), [member.float() for member in logits]
        names = ("", "_second")[: len(z)]
        terms = {
            f"supervised{name}": self.supervised(member[:rows], labeled["label"])
            for name, member in zip(names, z, strict=True)
        }
        first = 0 if self.labeled_too else rows
        if len(z) == 2 and len(z[0]) > first:
            weight = self.unsupervised_weight * self.ramp_up(self.iteration)
            self.note_pseudo_labels(z[1][first:].argmax(1), z[1].shape[1])  # what the deployed network learns
            for name, loss in zip(names, self.pseudo.each(*(member[first:] for member in z)), strict=True):
                terms[f"pseudo{name}"] = weight * loss
        return terms

    def second_opinion(self, image: Tensor) -> Tensor | None:
        """Class probabilities of the second network; None for the matched floor, where it learns nothing."""
        return self.second(image).float().softmax(1) if self.unsupervised_weight > 0 else None

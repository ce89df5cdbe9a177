"""TAC: semi-supervised segmentation through task-affinity consistency between unpaired images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks import one_hot
from torch import Tensor, nn

from monai_ssl.losses import ForegroundDiceLoss, RepresentationConsistencyLoss, ignored_voxels
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least, joint_images
from monai_ssl.methods.variants import Columns, of_variant

_RELEASED = {
    "contextual_scales": None,
    "pooling": "batch",
    "pairing": "same_index",
    "empty": "zero",
    "reduction": "mean",
    "separate_passes": False,
}
COLUMNS: Columns = {
    None: {**_RELEASED, "empty": "skip"},
    "released": _RELEASED,
    "paper": {
        "contextual_scales": [1, 2, 3, 4],
        "pooling": "image",
        "pairing": "all_pairs_sum",
        "empty": "skip",
        "reduction": "norm",
        "separate_passes": True,
    },
}
MASKS = ("soft", "hard")
ACTIVATIONS = ("sigmoid", "softmax")


class TaskAffinityConsistency(SemiSupervisedMethod):
    r"""Class-specific representations of unlabeled images are matched to those of labeled images.

    One forward pass over labeled and unlabeled images together gives logits, the encoder's feature maps
    (*contextual*) and the skip connections after their attention gates (*structural*). At every scale the features are
    averaged under the mask of each class, the label of a labeled image, the prediction of an unlabeled one, and the
    representations E (contextual) and S (structural) of both kinds of images are pulled together:

    .. math:: L = \sum_c L_{Dice}^c + \tau_1 \sum_k \overline{(E^k_u - E^k_l)^2}
        + \tau_2 \sum_k \overline{(S^k_u - S^k_l)^2}

    There is no teacher, no second pass, no memory and no ramp-up.

    Args:
        network: offers ``taps(image) -> (logits, contextual maps, structural maps)``: a
            :class:`~monai_ssl.networks.VNet` or :class:`~monai_ssl.networks.UNet` with ``gates=True``, or any network
            in a :class:`~monai_ssl.networks.TappedNetwork`.
        contextual_weight: :math:`\tau_1 >= 0`; published 0.5 in 3D, 1 in 2D.
        structural_weight: :math:`\tau_2 >= 0`; published 1. Must be 0 for a network without gates.
        variant: ``None`` (default), ``"released"`` or ``"paper"``: a column of the table below, from which every option
            comes that is left at None.
        contextual_scales: scales of the contextual term, 1 = full resolution; all: the coarsest included.
        structural_scales: scales of the structural term, 1 = full resolution; None: all four.
        pooling: ``"batch"``: the denominator of the masked average sums over the images of one kind; ``"image"``: a
            true masked average per image.
        pairing: ``"same_index"``, ``"all_pairs"`` (mean) or ``"all_pairs_sum"``. Different numbers of labeled and
            unlabeled images are always paired each with each.
        empty: ``"skip"``: a class that an image of the pair does not show at a scale is left out there. ``"zero"``: its
            representation is 0 and the other image's is pulled to it, unless ignored voxels may hide the class.
        masks: of unlabeled images. ``"soft"``: probabilities, with gradient. ``"hard"``: the most probable class,
            without.
        reduction: ``"mean"`` or ``"norm"``, see :class:`~monai_ssl.losses.RepresentationConsistencyLoss`.
        separate_passes: labeled and unlabeled images go through the network one after the other, each with their own
            batch statistics.
        detach_labeled: labeled representations are fixed targets (released code: both sides move).
        activation: ``"sigmoid"`` per channel (released code) or ``"softmax"``, of Dice and of the masks. The deployed
            segmentation is the most probable class either way.
        unsupervised_weight: factor on both consistency terms; 0 is the matched floor.

    Paper and released code differ. The default is the released code, except that a class that is not there is skipped:

    ============================  =========================  =============================  ========================
    option                        ``"paper"``                ``"released"``                 None
    ============================  =========================  =============================  ========================
    ``pooling``                   image (Eq. 1, 4, 5)        batch                          batch
    ``reduction``                 norm (Eq. 6)               mean                           mean
    ``pairing``                   all_pairs_sum (Eq. 7)      same_index                     same_index
    ``contextual_scales``         [1, 2, 3, 4]               all five                       all five
    ``separate_passes``           True                       False: one mixed batch         False
    ``empty``                     skip (0/0 in Eq. 4)        zero                           skip
    ============================  =========================  =============================  ========================

    Not stated in the paper, and the code's in all of them: soft masks with gradient (``masks``), a sigmoid per channel
    (``activation``). The gates belong to the network: the code normalizes inside them, Eq. 2 does not
    (``gate_norm=False`` of the network). The printed terms are about a hundred times larger than the code's, with which
    :math:`\tau` was chosen.

    Voxels labeled ``IGNORE_LABEL`` take no part in Dice and in no class vector of a labeled image.

    Loss terms: ``dice``, ``contextual``, ``structural``.

    Raises:
        ValueError: for an unknown option, a negative weight, a scale that does not exist, or a structural weight
            without gates.
        TypeError: when the network has no ``taps`` method.

    Source: Chen, Zhang, Debattista, Han, "Semi-supervised Unpaired Medical Image Segmentation Through Task-affinity
        Consistency", IEEE TMI 42(3), 2023, Eq. 1-7.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = TaskAffinityConsistency(VNet(spatial_dims=2, base_channels=2, gates=True))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['contextual', 'dice', 'structural']
    """

    honors_ignore_label = True

    def __init__(
        self,
        network: nn.Module,
        contextual_weight: float = 0.5,
        structural_weight: float = 1.0,
        contextual_scales: Sequence[int] | None = None,
        structural_scales: Sequence[int] | None = None,
        pooling: str | None = None,
        pairing: str | None = None,
        empty: str | None = None,
        masks: str = "soft",
        reduction: str | None = None,
        detach_labeled: bool = False,
        activation: str = "sigmoid",
        unsupervised_weight: float = 1.0,
        variant: str | None = None,
        separate_passes: bool | None = None,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        if not hasattr(network, "taps"):
            raise TypeError(
                f"network must offer taps(image) -> (logits, contextual, structural), got {type(network).__name__}; "
                "wrap it in monai_ssl.networks.TappedNetwork"
            )
        options = of_variant(
            variant,
            COLUMNS,
            contextual_scales=contextual_scales,
            pooling=pooling,
            pairing=pairing,
            empty=empty,
            reduction=reduction,
            separate_passes=separate_passes,
        )
        check_at_least(0, contextual_weight=contextual_weight, structural_weight=structural_weight)
        if masks not in MASKS:
            raise ValueError(f"masks must be one of {MASKS}, got {masks!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
        self.contextual_weight, self.structural_weight = float(contextual_weight), float(structural_weight)
        self.contextual_scales, self.structural_scales = options["contextual_scales"], structural_scales
        self.masks, self.activation = masks, activation
        self.separate_passes = bool(options["separate_passes"])
        self.dice = ForegroundDiceLoss(include_background=True, activation=activation, reduction="sum")
        self.consistency = RepresentationConsistencyLoss(
            options["pooling"], options["pairing"], options["empty"], options["reduction"], detach_labeled
        )

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        return self.terms(*self._taps(labeled, unlabeled), labeled)

    def _taps(self, labeled: Batch, unlabeled: Batch | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits, contextual and structural maps of all images, the labeled ones first."""
        taps: Any = self.network.taps
        if unlabeled is None or not self.separate_passes:
            return taps(joint_images(labeled, unlabeled))
        first, second = taps(labeled["image"]), taps(unlabeled["image"])
        contextual, structural = (
            [torch.cat(pair) for pair in zip(first[kind], second[kind], strict=True)] for kind in (1, 2)
        )
        return torch.cat([first[0], second[0]]), contextual, structural

    def terms(
        self, logits: Tensor, contextual: Sequence[Tensor], structural: Sequence[Tensor], labeled: Batch
    ) -> dict[str, Tensor]:
        """Loss terms from the network's outputs; the labeled rows come first.

        Args:
            logits: ``(B, n_classes, *spatial)``.
            contextual: feature maps ``(B, F_k, *spatial_k)``, fine to coarse.
            structural: gated maps, fine to coarse.
            labeled: batch with ``label``.
        """
        label = labeled["label"]
        rows, n_classes = len(label), logits.shape[1]
        logits = logits.float()
        if self.structural_weight > 0 and not structural:
            raise ValueError(
                f"structural_weight must be 0 for a network without attention gates, got {self.structural_weight}; "
                "build the network with gates=True"
            )
        terms = {"dice": self.dice(logits[:rows], label)}
        kinds = {
            "contextual": (self.contextual_weight, _at(contextual, self.contextual_scales, "contextual_scales")),
            "structural": (self.structural_weight, _at(structural, self.structural_scales, "structural_scales")),
        }
        if len(logits) == rows:  # no unlabeled image
            return terms | {kind: logits.new_zeros(()) for kind in kinds}
        ignored = ignored_voxels(label)
        masks = torch.cat([self._labeled_masks(label, n_classes), self._masks(logits[rows:])])
        for kind, (weight, maps) in kinds.items():
            used = maps if self.unsupervised_weight * weight > 0 else []
            losses = [self.consistency(x, masks, rows, ignored) for x in used]
            total = torch.stack(losses).sum() if losses else 0.0 * logits.sum()
            terms[kind] = self.unsupervised_weight * weight * total
        return terms

    @staticmethod
    def _labeled_masks(label: Tensor, n_classes: int) -> Tensor:
        ignored = ignored_voxels(label)
        if ignored is None:
            return one_hot(label, n_classes, dtype=torch.float32)
        return one_hot(label.masked_fill(ignored, 0), n_classes, dtype=torch.float32).masked_fill(ignored, 0.0)

    def _masks(self, logits: Tensor) -> Tensor:
        if self.masks == "hard":
            return one_hot(logits.argmax(1, keepdim=True), logits.shape[1], dtype=torch.float32)
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(1)


def _at(maps: Sequence[Tensor], scales: Sequence[int] | None, name: str) -> list[Tensor]:
    if scales is None:
        return list(maps)
    if any(not 1 <= scale <= len(maps) for scale in scales):
        raise ValueError(f"{name} must be numbers from 1 (full resolution) to {len(maps)}, got {list(scales)}")
    return [maps[scale - 1] for scale in scales]

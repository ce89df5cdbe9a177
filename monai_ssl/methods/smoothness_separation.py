"""SS-Net: smoothness under adversarial perturbations, separation of classes by prototypes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from monai_ssl.losses import (
    ForegroundDiceLoss,
    PrototypeSeparationLoss,
    SigmoidRampUp,
    VirtualAdversarialLoss,
    ignored_voxels,
)
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least, checked_ramp_up, joint_images
from monai_ssl.methods.variants import Columns, of_variant
from monai_ssl.networks import PointwiseHead, PrototypeMemory, VoxelHeads

COLUMNS: Columns = {
    "released": {
        "distance": None,  # by the number of dimensions
        "rank": "lowest",
        "rank_by": "features",
        "memory_weights": False,
        "separation_pooling": "halves",
    },
    "paper": {
        "distance": "classwise_linear",
        "rank": "highest",
        "rank_by": "prototypes",
        "memory_weights": True,
        "separation_pooling": "all",
    },
}
POOLINGS = ("halves", "all")

logger = logging.getLogger(__name__)


class SmoothnessSeparation(SemiSupervisedMethod):
    r"""Predictions that withstand adversarial noise, features that gather around the prototypes of their class.

    .. math:: L = L_{Dice} + w(t) \left[ L_{lds} + 0.1\, (L_{cs}^{l} + L_{cs}^{u}) \right]

    *Smoothness* (:class:`~monai_ssl.losses.VirtualAdversarialLoss`): on all images, the prediction may not change under
    the perturbation of norm :math:`\epsilon` that changes it most. *Separation*: labeled voxels that the network gets
    right offer their projected features; ``prototypes`` of them per foreground class are kept, those that a learned
    *selector* scores lowest. The features of every voxel, grouped by label (labeled) or prediction (unlabeled), are
    pulled toward the prototypes of their class.

    Args:
        network: maps images to logits and offers ``features(image)``, ``logits(features)``, ``feature_channels``,
            ``out_channels`` and ``spatial_dims``: a :class:`~monai_ssl.networks.VNet`, a
            :class:`~monai_ssl.networks.UNet`, or any backbone in a :class:`~monai_ssl.networks.FeatureNetwork`.
        max_iterations: length of the run, for the default ramp-up.
        distance: of the smoothness term. ``"flat"``: one Dice over everything. ``"classwise"``: mean over the classes,
            squared sums. ``"classwise_linear"``: mean over the classes, plain sums (paper, Eq. 3). ``"kl"``:
            Kullback-Leibler (Table 3).
        epsilon: norm of the perturbation, > 0. Default: by the patch, so that the change per value is that of the
            papers: :math:`10 \sqrt{n / (112 \cdot 112 \cdot 80)}` in 3D, :math:`6 \sqrt{n / 256^2}` in 2D, with n
            voxels times channels.
        xi: length of the step that probes the gradient, > 0.
        power_iterations: refinements of the perturbation's direction, >= 1.
        smoothness_weight: weight >= 0 of :math:`L_{lds}`.
        separation_weight: weight >= 0 of :math:`L_{cs}`, relative to :math:`w(t)`.
        prototypes: per class, >= 2.
        rank: which candidates become prototypes: those with the ``"lowest"`` scores (released) or the ``"highest"``
            (paper).
        rank_by: whose scores: of the selector of ``"features"`` (released) or of ``"prototypes"`` (paper). Candidates
            are scored as they are; the selector of prototypes learns from L2-normalized ones, as in the code.
        memory_weights: weigh the prototypes by their selector's scores (paper). Released: a slip of axes makes all
            weights 1.
        separation_pooling: ``"halves"``: a mean over the labeled voxels of a class and one over the unlabeled ones,
            added (released). ``"all"``: one mean over the voxels of all images (Eq. 4), about half as large; the heads
            then normalize over all of them.
        ramp_up: :math:`w(t)` as a function of the step's number, which counts from 1 in 3D and from 0 in 2D, as in the
            released code. Default: 3D, to 1 in 40 levels; 2D, to 0.1 in 200 levels; both over the whole run (150
            iterations per level in a run of 6000 or 30000).
        unsupervised_weight: factor on both terms; 0 is the matched floor.
        variant: ``"released"`` (default), which produced the published numbers, or ``"paper"``: a column of the table
            below, from which every option comes that is left at None.

    Paper and released code differ:

    ==========================  ================================  ==========================================
    option                      ``"released"``                    ``"paper"``
    ==========================  ================================  ==========================================
    ``distance``                3D flat: linear sums; 2D          classwise_linear (Eq. 3)
                                classwise: squared sums
    ``rank``                    lowest scores                     highest
    ``rank_by``                 features                          prototypes
    ``memory_weights``          False: all weights 1              True
    ``separation_pooling``      halves: two means, added          all: one mean (Eq. 4)
    ==========================  ================================  ==========================================

    The same in both: the sum over the foreground classes is divided by the number of all classes; weights are scaled to
    mean 1 where the paper says "L1 normalized" (with the means of Eq. 4 that would divide the term by the number of
    pairs once more); 0.1 between the two terms and the ramp-up ("warming-up function" in the paper) are the code's.

    The supervised Dice is the code's too: 3D over the foreground with plain sums, 2D over all classes with squared
    sums. Selectors exist for the foreground classes, and prototype selectors where an option uses them; the code makes
    them for every class, of which those are trained only by weight decay.

    Under ``DistributedDataParallel`` all processes hold the same prototypes; ranking and batch statistics are those of
    each process's part of the batch.

    Voxels labeled ``IGNORE_LABEL`` take no part in Dice, offer no prototype and are pulled to none; the smoothness,
    which needs no label, acts on them too.

    Loss terms: ``dice``, ``smoothness``, ``separation``. While the memory of a class is empty, the separation leaves
    that class out; a warning says so when that lasts.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when the network does not offer features and a head, or ``ramp_up`` is no function.

    Source: Wu, Wu, Wu, Ge, Cai, "Exploring Smoothness and Class-Separation for Semi-supervised Medical Image
        Segmentation", MICCAI 2022, Eq. 1-5, Algorithms 1-2.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = SmoothnessSeparation(VNet(spatial_dims=2, base_channels=2))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['dice', 'separation', 'smoothness']
    """

    honors_ignore_label = True

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        distance: str | None = None,
        epsilon: float | None = None,
        xi: float = 10.0,
        power_iterations: int = 1,
        smoothness_weight: float = 1.0,
        separation_weight: float = 0.1,
        prototypes: int = 32,
        rank: str | None = None,
        rank_by: str | None = None,
        memory_weights: bool | None = None,
        ramp_up: Callable[[int], float] | None = None,
        unsupervised_weight: float = 1.0,
        variant: str = "released",
        separation_pooling: str | None = None,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        needed = ("features", "logits", "feature_channels", "out_channels", "spatial_dims")
        missing = [name for name in needed if getattr(network, name, None) is None]
        if missing:
            raise TypeError(
                f"network must offer {', '.join(needed)}, got {type(network).__name__} without {', '.join(missing)}; "
                "take a VNet or UNet with out_channels, or wrap your backbone in monai_ssl.networks.FeatureNetwork"
            )
        options = of_variant(
            variant,
            COLUMNS,
            distance=distance,
            rank=rank,
            rank_by=rank_by,
            memory_weights=memory_weights,
            separation_pooling=separation_pooling,
        )
        check_at_least(1, max_iterations=max_iterations)
        check_at_least(0, smoothness_weight=smoothness_weight, separation_weight=separation_weight)
        self.rank_by, self.memory_weights = options["rank_by"], bool(options["memory_weights"])
        if self.rank_by not in ("features", "prototypes"):
            raise ValueError(f"rank_by must be 'features' or 'prototypes', got {rank_by!r}")
        if options["separation_pooling"] not in POOLINGS:
            raise ValueError(f"separation_pooling must be one of {POOLINGS}, got {separation_pooling!r}")
        self.separation_pooling = options["separation_pooling"]
        volumes = network.spatial_dims == 3
        self.n_classes, self.max_iterations = int(network.out_channels), max_iterations  # type: ignore[arg-type]
        self.smoothness_weight, self.separation_weight = float(smoothness_weight), float(separation_weight)
        levels, maximum = (40, 1.0) if volumes else (200, 0.1)
        step = max(round(max_iterations / levels), 1)
        self.ramp_up = checked_ramp_up(ramp_up) or SigmoidRampUp(levels * step, maximum, granularity=step)
        self.first_step = 1 if volumes else 0
        self.dice = ForegroundDiceLoss(smooth=1e-8, squared=False) if volumes else ForegroundDiceLoss(
            smooth=1e-10, include_background=True
        )  # fmt: skip
        self.smoothness = VirtualAdversarialLoss(
            options["distance"] or ("flat" if volumes else "classwise"), epsilon, xi, power_iterations
        )
        self.separation = PrototypeSeparationLoss()
        self.voxel_heads = VoxelHeads(network.feature_channels)  # type: ignore[arg-type]
        self.memory = PrototypeMemory(self.n_classes, prototypes, rank=options["rank"])

        def selectors() -> nn.ModuleList:
            return nn.ModuleList(PointwiseHead(32, 32, 1, negative_slope=0.2) for _ in range(1, self.n_classes))

        self.selectors = selectors()
        own = self.memory_weights or self.rank_by == "prototypes"
        self.prototype_selectors = selectors() if own else None

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        images, label = joint_images(labeled, unlabeled), labeled["label"]
        attacked = None
        if self.unsupervised_weight * self.smoothness_weight > 0:
            attacked = self.smoothness.attack(self.network, images)
        else:
            with torch.no_grad():
                self.network(images)  # what an attack leaves behind: this pass in the batch statistics
        features = self.network.features(images)  # type: ignore[operator]
        logits = self.network.logits(features)  # type: ignore[operator]
        rows = len(label)
        predicted = logits.detach().argmax(1, keepdim=True)
        weight = self.unsupervised_weight * self.ramp_up(self.first_step + self.iteration)
        dice = self.dice(logits[:rows], label)
        with torch.autocast(images.device.type, enabled=False):
            if self.unsupervised_weight * self.separation_weight > 0:
                separation = self.separate(features, predicted, label)
            else:
                separation = self._no_separation()
        smoothness = dice.new_zeros(()) if attacked is None else self.smoothness.compare(self.network, *attacked)
        return {
            "dice": dice,
            "smoothness": weight * self.smoothness_weight * smoothness,
            "separation": weight * self.separation_weight * separation,
        }

    def separate(self, features: Tensor, predicted: Tensor, label: Tensor) -> Tensor:
        """Separation of labeled plus unlabeled voxels; the memory is renewed first.

        Args:
            features: ``(B, F, *spatial)``, labeled rows first.
            predicted: classes ``(B, 1, *spatial)`` int64.
            label: ``(B_l, 1, *spatial)``.
        """
        rows = len(label)
        label = label.to(predicted)
        if (ignored := ignored_voxels(label)) is not None:
            label = label.masked_fill(ignored, 0)  # like the background, which is left out of all that follows
        parts = [features] if rows == len(features) else features.split([rows, len(features) - rows])
        correct = (predicted[:rows] == label) & (label > 0)
        self.renew(parts[0].detach(), correct, label)
        if self.separation_pooling == "all":
            return self._separate_part(features, torch.cat([label, predicted[rows:]])) + self._no_separation()
        # one call per part: each has its own batch statistics
        total = self._separate_part(parts[0], label)
        if len(parts) > 1:
            total = total + self._separate_part(parts[1], predicted[rows:])
        return total + self._no_separation()

    def _no_separation(self) -> Tensor:
        """0, with a gradient for the heads of classes that are not there too: distributed training wants them all."""
        heads = [self.voxel_heads, self.selectors, self.prototype_selectors]
        return 0.0 * torch.stack([p.sum() for head in heads if head is not None for p in head.parameters()]).sum()

    @torch.no_grad()
    def renew(self, features: Tensor, correct: Tensor, label: Tensor) -> None:
        """New prototypes from the labeled voxels that are predicted right, for every class that has some."""
        places = correct.flatten().nonzero()[:, 0]
        candidates = self.voxel_heads.project(features, places)
        classes = label.flatten()[places]
        selectors = self.selectors if self.rank_by == "features" else self.prototype_selectors
        assert selectors is not None
        for c in range(1, self.n_classes):
            mine = candidates[classes == c]
            ranked = len(mine) > self.memory.size
            self.memory.replace(c, mine, selectors[c - 1](mine)[:, 0] if ranked else None)

    def _separate_part(self, features: Tensor, classes: Tensor) -> Tensor:
        """Sum over the foreground classes divided by the number of all classes (as released)."""
        places = classes.flatten().nonzero()[:, 0]
        projected, classes = self.voxel_heads(features, places), classes.flatten()[places]
        total = projected.new_zeros(())
        for c in range(1, self.n_classes):
            mine, prototypes = projected[classes == c], self.memory[c]
            if len(mine) > 1 and len(prototypes) > 1:
                total = total + self.class_separation(c, mine, prototypes)
        return total / self.n_classes

    def class_separation(self, c: int, features: Tensor, prototypes: Tensor) -> Tensor:
        """Separation of one class: features ``(M, 32)``, prototypes ``(N, 32)``, weighted by their selectors."""
        scores = self.selectors[c - 1](features.detach())[:, 0].sigmoid()
        own = None
        if self.memory_weights:
            assert self.prototype_selectors is not None
            z = nn.functional.normalize(prototypes, dim=1)
            own = self.prototype_selectors[c - 1](z)[:, 0].sigmoid()
        return self.separation(features, prototypes, scores, own)

    def after_step(self) -> None:
        super().after_step()
        due = self.iteration % max(self.max_iterations // 10, 1) == 0
        used = self.unsupervised_weight * self.separation_weight > 0
        if used and due and (empty := self.memory.empty()):
            logger.warning(
                "iteration %d: no prototypes of class %s yet: no labeled voxel of it was ever predicted right, and "
                "the separation term leaves it out. Check that labeled patches show the class (patch size, cropping, "
                "label values: `monai-ssl check`) and that the supervised loss falls.",
                self.iteration,
                ", ".join(map(str, empty)),
            )

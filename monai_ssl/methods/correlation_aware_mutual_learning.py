"""CAML: correlation-aware mutual learning of two networks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from monai_ssl.losses import (
    CrossPseudoLabelLoss,
    ForegroundDiceLoss,
    OmniCorrelationLoss,
    SharpenedConsistencyLoss,
    SigmoidRampUp,
    most_confident,
)
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least, checked_ramp_up, joint_images
from monai_ssl.methods.variants import Columns, of_variant
from monai_ssl.networks import MemoryBank, VoxelHeads, unlabeled_rows

COLUMNS: Columns = {
    "released": {
        "supervised_weight": 0.5,
        "correlation_weight": 0.05,
        "cross_supervision": "sharpened",
        "embedding_channels": 32,
        "similarity": "dot",
    },
    "paper": {
        "supervised_weight": 1.0,
        "correlation_weight": 0.1,
        "cross_supervision": "hard",
        "embedding_channels": 64,
        "similarity": "cosine",
    },
}
CROSS_SUPERVISION = ("sharpened", "hard")

logger = logging.getLogger(__name__)


class CorrelationAwareMutualLearning(SemiSupervisedMethod):
    r"""A vanilla and an auxiliary network teach each other and agree on correlations with labeled prototypes.

    Both networks see labeled and unlabeled images together, once. The auxiliary one upsamples differently and lets
    the images of a batch attend to each other (:class:`~monai_ssl.networks.CrossSampleNetwork`). Each is pulled to the
    other's sharpened prediction; and for unlabeled voxels on which both agree, the softmax of similarities to
    prototypes from a memory of labeled voxels shall be the same in both:

    .. math:: L = \lambda_s \left(L_{Dice}^v + L_{Dice}^a\right) + \lambda_c(t)\, L_c + \lambda_o(t)\, L_o

    Only the vanilla network is deployed; it has no attention. The auxiliary one runs without attention in evaluation,
    which is another function than the one that was trained.

    Args:
        network: the vanilla network, offers ``features(image)`` and ``logits(features)``: a
            :class:`~monai_ssl.networks.VNet`, a :class:`~monai_ssl.networks.UNet`, or any network in a
            :class:`~monai_ssl.networks.FeatureNetwork`. Needs ``feature_channels`` and ``out_channels``.
        auxiliary: the auxiliary network, as ``network``, with its own weights.
        max_iterations: length of the run, for the default ramp-up.
        ramp_levels: the default ramp-up rises for this many levels. Those of the released runs depend on the number of
            labeled cases, which a method does not know: :func:`published_ramp_levels`, which the bundle asks. 20 is
            that of 8 cases.
        ramp_step: steps of a level. Default: 1/40 of the run, which is 150, as released, in a run of 6000.
        ramp_up: weight as a function of the step number, counted from 1; replaces the default.
        cross_weight: :math:`\lambda_c >= 0` after the ramp-up.
        correlation_weight: :math:`\lambda_o >= 0` after the ramp-up.
        cross_supervision: ``"sharpened"``: mean squared error to sharpened probabilities (released code).
            ``"hard"``: cross-entropy with hard labels (CPS, which the paper cites).
        sharpening_temperature: of ``"sharpened"``.
        embedding_channels: of projection and prediction.
        rows_per_class: the i most confident unlabeled voxels of each class.
        prototypes_per_class: the j memory vectors drawn for each class.
        similarity: ``"dot"`` (released code) or ``"cosine"`` (Eq. 2).
        temperature: of the correlations; the paper's t is its inverse, 10.
        detach_target: targets of both unsupervised losses carry no gradient (released code: they do).
        bank_capacity: vectors stored per labeled case and class; None: all. See
            :class:`~monai_ssl.networks.MemoryBank`: from ``prototypes_per_class`` on, every draw has the same
            distribution as with all of them.
        unsupervised_weight: factor on both unsupervised terms; 0 is the matched floor.
        variant: ``"released"`` (default) or ``"paper"``: a column of the table below, from which every option comes
            that is left at None.
        supervised_weight: factor >= 0 on the sum of both Dice losses.

    Paper and released code differ:

    ==========================  ==============================  =====================================
    option                      ``"paper"``                     ``"released"``
    ==========================  ==============================  =====================================
    ``similarity``              cosine (Eq. 2)                  dot: no normalization
    ``embedding_channels``      64                              32
    ``correlation_weight``      0.1                             0.05
    ``supervised_weight``       1 (Eq. 1)                       0.5
    ``cross_supervision``       hard: as CPS, which it cites    sharpened, targets not detached
    ==========================  ==============================  =====================================

    As in the code in both: one memory slot per labeled image, where the paper says N without a number; the vanilla
    network predicts and the auxiliary one is the target in Eq. 3, which does not say; the confidence by which rows are
    chosen is the vanilla network's, for both.

    The released bank update reads the auxiliary features of labeled images in another axis order than the vanilla
    ones, a slip: half of every stored vector mixes neighboring voxels. Here both are read in the same order.

    Randomness (dropout, which vectors are stored and drawn) comes from torch's global generator, which the trainer
    seeds by the position of the step. The memory is part of the state: a resumed run draws the same prototypes.

    Under ``DistributedDataParallel`` attention stays inside each process's batch, and the memory holds the labeled
    cases of all processes.

    Voxels labeled ``IGNORE_LABEL`` take no part in Dice and never enter the memory; the unsupervised terms, which need
    no label, act on them too.

    Loss terms: ``dice``, ``cross_supervision``, ``correlation``. A class of which the memory holds fewer than
    ``prototypes_per_class`` vectors has no prototypes; a warning says so when that lasts.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when a network lacks what is named above, or ``ramp_up`` is no function.

    Source: Gao, Zhang, Ma, Li, Zhang, "Correlation-Aware Mutual Learning for Semi-supervised Medical Image
        Segmentation", MICCAI 2023, Eq. 1-3.

    Example:
        >>> from monai_ssl.networks import CrossSampleNetwork, VNet
        >>> vanilla = VNet(spatial_dims=2, base_channels=2)
        >>> auxiliary = CrossSampleNetwork(VNet(spatial_dims=2, base_channels=2, decoders=("linear",)))
        >>> method = CorrelationAwareMutualLearning(vanilla, auxiliary)
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long),
        ...            "index": torch.tensor([0, 4])}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['correlation', 'cross_supervision', 'dice']
        >>> method.bank.cases
        [0, 4]
    """

    honors_ignore_label = True
    second_opinion_needs_state = True

    def __init__(
        self,
        network: nn.Module,
        auxiliary: nn.Module,
        max_iterations: int = 6000,
        ramp_levels: int = 20,
        ramp_step: int | None = None,
        ramp_up: Callable[[int], float] | None = None,
        cross_weight: float = 1.0,
        correlation_weight: float | None = None,
        cross_supervision: str | None = None,
        sharpening_temperature: float = 0.1,
        embedding_channels: int | None = None,
        rows_per_class: int = 12800,
        prototypes_per_class: int = 256,
        similarity: str | None = None,
        temperature: float = 0.1,
        detach_target: bool = False,
        bank_capacity: int | None = 4096,
        unsupervised_weight: float = 1.0,
        variant: str = "released",
        supervised_weight: float | None = None,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        for name, member in (("network", network), ("auxiliary", auxiliary)):
            missing = [a for a in ("features", "logits", "feature_channels") if not hasattr(member, a)]
            if missing:
                raise TypeError(
                    f"{name} must offer features(image), logits(features) and feature_channels, "
                    f"got {type(member).__name__} without {', '.join(missing)}; wrap it in "
                    "monai_ssl.networks.FeatureNetwork"
                )
        options = of_variant(
            variant,
            COLUMNS,
            supervised_weight=supervised_weight,
            correlation_weight=correlation_weight,
            cross_supervision=cross_supervision,
            embedding_channels=embedding_channels,
            similarity=similarity,
        )
        weights = {name: options[name] for name in ("supervised_weight", "correlation_weight")}
        check_at_least(0, cross_weight=cross_weight, **weights)
        check_at_least(
            1,
            max_iterations=max_iterations,
            ramp_levels=ramp_levels,
            ramp_step=1 if ramp_step is None else ramp_step,
            embedding_channels=options["embedding_channels"],
            rows_per_class=rows_per_class,
            prototypes_per_class=prototypes_per_class,
        )
        if bank_capacity is not None and bank_capacity < prototypes_per_class:
            raise ValueError(
                f"bank_capacity must be None or at least prototypes_per_class, {prototypes_per_class}, got "
                f"{bank_capacity}"
            )
        if options["cross_supervision"] not in CROSS_SUPERVISION:
            raise ValueError(f"cross_supervision must be one of {CROSS_SUPERVISION}, got {cross_supervision!r}")
        self.auxiliary = auxiliary
        self.max_iterations = max_iterations
        step = ramp_step or max(round(max_iterations / 40), 1)
        self.ramp_up = checked_ramp_up(ramp_up) or SigmoidRampUp(ramp_levels * step, granularity=step)
        self.cross_weight, self.correlation_weight = float(cross_weight), float(weights["correlation_weight"])
        self.supervised_weight = float(weights["supervised_weight"])
        self.rows_per_class, self.prototypes_per_class = int(rows_per_class), int(prototypes_per_class)
        self.dice = ForegroundDiceLoss(squared=False, smooth=1e-8)
        self.hard = options["cross_supervision"] == "hard"
        self.cross: nn.Module = (
            CrossPseudoLabelLoss() if self.hard else SharpenedConsistencyLoss(sharpening_temperature, detach_target)
        )
        self.correlation = OmniCorrelationLoss(options["similarity"], temperature, detach_target)
        self.heads = nn.ModuleList(
            VoxelHeads(int(member.feature_channels), int(options["embedding_channels"]))  # type: ignore[arg-type]
            for member in (network, auxiliary)
        )
        self.bank = MemoryBank(int(network.out_channels), bank_capacity)  # type: ignore[arg-type]

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        image = joint_images(labeled, unlabeled)
        members: tuple = (self.network, self.auxiliary)
        features = [member.features(image) for member in members]
        logits = [member.logits(x).float() for member, x in zip(members, features, strict=True)]
        return self.terms(logits, features, labeled)

    def second_opinion(self, image: Tensor) -> Tensor:
        """Class probabilities of the auxiliary network, without attention."""
        return self.auxiliary(image).float().softmax(1)

    def terms(self, logits: Sequence[Tensor], features: Sequence[Tensor], labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the outputs of both networks, vanilla first; the labeled rows come first. Updates the bank.

        Args:
            logits: two of ``(B, n_classes, *spatial)`` float32.
            features: two of ``(B, F, *spatial)``.
            labeled: batch with ``label`` and ``index``.
        """
        label = labeled["label"]
        rows = len(label)
        probabilities = [z.softmax(1) for z in logits]
        with torch.no_grad():
            predicted = [_most_probable(p) for p in probabilities]
        weight = self.unsupervised_weight * self.ramp_up(self.iteration + 1)
        if self.unsupervised_weight * self.correlation_weight > 0:
            self._remember(features, predicted, labeled)
            apart = [unlabeled_rows(x, rows) for x in features], [p[rows:] for p in predicted]
            correlation = self._correlation(*apart, probabilities[0])
        else:
            correlation = self._no_correlation()
        return {
            "dice": self.supervised_weight
            * sum(self.dice.of_probabilities(p[:rows, 1:], label) for p in probabilities),
            "cross_supervision": weight * self.cross_weight * self.cross(*(logits if self.hard else probabilities)),
            "correlation": weight * self.correlation_weight * correlation,
        }

    def _remember(self, features: Sequence[Tensor], predicted: Sequence[Tensor], labeled: Batch) -> None:
        """Fill the slots of the labeled cases with the voxels that both networks classify correctly."""
        label = labeled["label"][:, 0]
        parts: list[list[Tensor]] = []
        counts: list[list[int]] = []
        for b, truth in enumerate(label):
            correct = (predicted[0][b] == truth) & (predicted[1][b] == truth)
            classes = torch.where(correct, truth, -1).flatten()
            parts.append([])
            counts.append([])
            for c in range(self.bank.n_classes):
                found = (classes == c).nonzero()[:, 0]
                chosen = found[self.bank.choose(len(found), found.device)]
                embedded = [
                    head.project(x[b : b + 1], chosen)  # type: ignore[operator]
                    for head, x in zip(self.heads, features, strict=True)
                ]
                parts[-1].append((embedded[0] + embedded[1]) / 2)
                counts[-1].append(len(found))
        self.bank.update(labeled["index"], parts, counts)

    def _correlation(self, features: Sequence[Tensor], predicted: Sequence[Tensor], probability: Tensor) -> Tensor:
        """Omni-correlation consistency of the unlabeled images."""
        with torch.no_grad():
            prototypes, _ = self.bank.sample(self.prototypes_per_class)
            agreed = (predicted[0] == predicted[1]).flatten()
            positions = agreed.nonzero()[:, 0]
            confidence = probability[len(probability) - len(predicted[0]) :].amax(1).flatten()
            # one set of rows for both branches: ties are broken once
            chosen = positions[
                most_confident(
                    confidence[positions],
                    predicted[0].flatten()[positions],
                    self.bank.n_classes,
                    self.rows_per_class,
                )
            ]
        if len(positions) < 2:  # batch statistics need two rows
            return self._no_correlation()
        rows = [head(x, chosen, positions) for head, x in zip(self.heads, features, strict=True)]
        return self.correlation(rows[0], rows[1], prototypes)

    def _no_correlation(self) -> Tensor:
        """0, with a (zero) gradient for every parameter of the heads, as distributed training needs."""
        return 0.0 * torch.stack([p.sum() for p in self.heads.parameters()]).sum()

    def after_step(self) -> None:
        super().after_step()
        due = self.iteration % max(self.max_iterations // 10, 1) == 0
        used = self.unsupervised_weight * self.correlation_weight > 0
        if used and due:
            counts = self.bank.counts.sum(0).tolist()
            if few := [f"{c} ({n})" for c, n in enumerate(counts) if n < self.prototypes_per_class]:
                logger.warning(
                    "iteration %d: the memory holds fewer than prototypes_per_class = %d correct labeled voxels of "
                    "class %s: it is skipped; if all classes are skipped, the correlation term is 0. Check that "
                    "labeled patches show the class (patch size, cropping, label values: `monai-ssl check`) and that "
                    "the supervised loss falls, or lower prototypes_per_class.",
                    self.iteration,
                    self.prototypes_per_class,
                    ", ".join(few),
                )


def published_ramp_levels(n_labeled: int) -> int:
    """Levels of CAML's ramp-up in the released runs: 40, 20, 15 for 4, 8, 16 labeled cases; between them the next one.

    Example:
        >>> [published_ramp_levels(n) for n in (2, 4, 5, 8, 16, 64)]
        [40, 40, 20, 20, 15, 15]
    """
    return 40 if n_labeled <= 4 else 20 if n_labeled <= 8 else 15


def _most_probable(p: Tensor) -> Tensor:
    """``p.argmax(1)``, ties to the lower class; on a CPU ten times faster than argmax along this axis."""
    best, classes = p[:, 0], torch.zeros_like(p[:, 0], dtype=torch.int64)
    for c in range(1, p.shape[1]):
        classes.masked_fill_(p[:, c] > best, c)
        best = torch.maximum(best, p[:, c])
    return classes

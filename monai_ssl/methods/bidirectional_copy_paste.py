"""BCP: boxes of labeled images are pasted into unlabeled ones and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.losses import ForegroundDiceLoss, supervised_cross_entropy
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least
from monai_ssl.methods.variants import of_variant
from monai_ssl.networks import EMATeacher
from monai_ssl.networks.ema import move_toward
from monai_ssl.transforms import largest_components

LABELED, UNLABELED = True, False
Source = tuple[bool, int]  # labeled or not, and which half of the batch

# per mixed image: what is outside of the box, what is inside
PAIRINGS: dict[str, tuple[tuple[Source, Source], ...]] = {
    "left_atrium": (((LABELED, 0), (UNLABELED, 0)), ((UNLABELED, 1), (LABELED, 1))),
    "pancreas_ct": (((UNLABELED, 0), (LABELED, 1)), ((LABELED, 0), (UNLABELED, 1))),
    "acdc": (((UNLABELED, 0), (LABELED, 0)), ((LABELED, 1), (UNLABELED, 1))),
}
VARIANTS: dict[str | None, dict[str, Any]] = {
    "left_atrium": {"pairing": "left_atrium", "dice": "per_image", "pretrain_loss": "whole", "connectivity": 3,
                    "buffers": "own", "pretrain": 2 / 17},
    "pancreas_ct": {"pairing": "pancreas_ct", "dice": "per_image", "pretrain_loss": "whole", "connectivity": 2,
                    "buffers": "own", "pretrain": 3 / 13},
    "acdc": {"pairing": "acdc", "dice": "pooled", "pretrain_loss": "regions", "connectivity": 2,
             "buffers": "average", "pretrain": 1 / 4},
}  # fmt: skip
PRETRAIN_LOSSES = ("whole", "regions")
DICE = {
    "per_image": {"squared": False, "pooled": False, "smooth": 1e-5},
    "pooled": {"squared": True, "pooled": True, "smooth": 1e-10},
}


class BidirectionalCopyPaste(SemiSupervisedMethod):
    r"""A box of an unlabeled image is pasted into a labeled one, and a box of a labeled image into an unlabeled one.

    With a mask :math:`M` that is 0 inside a box and 1 outside, the same for all images of a step,

    .. math:: x_1 = a \odot M + u \odot (1 - M), \quad x_2 = v \odot M + b \odot (1 - M), \qquad
        L = \sum_{i=1}^{2} \ell_{lab}(x_i) + \alpha\, \ell_{pseudo}(x_i)

    for labeled :math:`a, b` and unlabeled :math:`u, v`. :math:`\ell_{lab}` and :math:`\ell_{pseudo}` are
    :math:`\tfrac12 (L_{CE} + L_{Dice})` over the voxels from labeled and from unlabeled images. Pseudo-labels are the
    largest component of each class in what a teacher says of :math:`u` and :math:`v`, without threshold and ramp-up;
    the teacher is the moving average of the network, in training mode.

    A run has two stages. In the first one, a share ``pretrain`` of it, the network learns from labeled images only, of
    which the second half is pasted into the first one. With its end the teacher becomes a copy of the network, and the
    second stage begins; nothing else changes.

    **Pairs.** Of the rows of a batch the first half is :math:`a` (:math:`u`), the second half :math:`b` (:math:`v`):
    2 n labeled and 2 n unlabeled images make n mixed images per direction, and each direction has a pass of its own.
    Of an odd number the middle one is in both halves, and a single image is its own partner; where one kind of images
    has fewer pairs, they are used again in turn. With one pair (n = 1) both directions share one pass, and two labeled
    images of the first stage are pasted both ways: batch statistics of one image would be worth little.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        max_iterations: length of the run, both stages.
        variant: which released code: ``"left_atrium"``, ``"pancreas_ct"`` or ``"acdc"``; sets what is None here.
        pretrain: the first stage, as a share of the run in [0, 1), or as a whole number of iterations from 1 on. None:
            2/17, 3/13 and 1/4 as released. 0: none; for a network that has been trained.
        pseudo_weight: :math:`\alpha` >= 0.
        box: sides of the box as a share of the patch's, in (0, 1).
        decay: of the moving average, without warm-up, in [0, 1).
        keep_largest: of the pseudo-labels only the largest component of each class. Switch it off for classes that
            have several.
        connectivity: how many axes may differ by one between neighbors in a component: 1, 2 or 3.
        pairing: who is pasted into whom, see the table.
        dice: ``"per_image"`` or ``"pooled"``, see the table.
        pretrain_loss: ``"whole"`` or ``"regions"``, see the table.
        buffers: batch statistics of the teacher, see :class:`~monai_ssl.networks.EMATeacher`.
        unsupervised_weight: factor on the pseudo-labels' term. 0 is the matched floor: same mixed images, nobody asks
            the teacher, and voxels from unlabeled images have no label.

    Paper and the three released codes differ:

    ==================  =====================  ======================  ======================  ======================
    part                paper                  ``left_atrium``         ``pancreas_ct``         ``acdc``
    ==================  =====================  ======================  ======================  ======================
    halves that meet    any                    a with u, b with v      a with v, b with u      a with u, b with v
    unlabeled outside   second input           v                       u                       u
    ``dice``            Dice                   of each image, plain    the same                pooled, squares,
                                               sums, 1e-5                                      1e-10
    ``pretrain_loss``   plain                  of the whole mixed      the same                outside plus inside:
                                               label                                           about twice as large
    component           largest                26 neighbors            18 neighbors            8 neighbors, per class
    ``buffers``         not discussed          own                     own                     averaged
    first stage         separate training      2000 of 17,000          60 of 260 epochs        10,000 of 40,000
    second one starts   from the best by a     the same                the same                the same
                        test set
    ==================  =====================  ======================  ======================  ======================

    Here the second stage starts from the last iterate of the first one, and goes on with the same optimizer.

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term.

    Loss terms: ``supervised``, and where there is something unlabeled and its weight is not 0, ``pseudo``, which is 0
    in the first stage.

    Raises:
        ValueError: for an option out of its range.

    Source: Bai, Chen, Li, Shen and Wang, "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation",
        CVPR 2023, Eq. 1-8.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = BidirectionalCopyPaste(VNet(spatial_dims=2, base_channels=2), pretrain=0)
        >>> labeled = {"image": torch.rand(4, 1, 16, 16), "label": torch.zeros(4, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(4, 1, 16, 16)}))
        ['pseudo', 'supervised']
    """

    honors_ignore_label = True
    second_opinion_needs_state = True

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 17000,
        variant: str = "left_atrium",
        pretrain: float | None = None,
        pseudo_weight: float = 0.5,
        box: float = 2 / 3,
        decay: float = 0.99,
        keep_largest: bool = True,
        connectivity: int | None = None,
        pairing: str | None = None,
        dice: str | None = None,
        pretrain_loss: str | None = None,
        buffers: str | None = None,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        options = of_variant(
            variant, VARIANTS, pretrain=pretrain, connectivity=connectivity, pairing=pairing, dice=dice,
            pretrain_loss=pretrain_loss, buffers=buffers,
        )  # fmt: skip
        check_at_least(1, max_iterations=max_iterations, connectivity=options["connectivity"])
        check_at_least(0, pseudo_weight=pseudo_weight)
        for name, allowed in {
            "pairing": tuple(PAIRINGS),
            "dice": tuple(DICE),
            "pretrain_loss": PRETRAIN_LOSSES,
        }.items():
            if options[name] not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {options[name]!r}")
        if not 0 < box < 1:
            raise ValueError(f"box must be in (0, 1), a share of the patch's sides, got {box}")
        self.pretrain = _iterations(options["pretrain"], max_iterations)
        self.pseudo_weight, self.box = float(pseudo_weight), float(box)
        self.keep_largest, self.connectivity = bool(keep_largest), int(options["connectivity"])
        self.pairing, self.pretrain_loss = PAIRINGS[options["pairing"]], options["pretrain_loss"]
        self.dice = ForegroundDiceLoss(include_background=True, **DICE[options["dice"]])  # type: ignore[arg-type]
        self.teacher = EMATeacher(network, decay, options["buffers"], warm_up=False)

    @property
    def pretraining(self) -> bool:
        """Whether the step that comes belongs to the first stage."""
        return self.iteration < self.pretrain

    @property
    def teaches(self) -> bool:
        """Whether pseudo-labels count at all."""
        return self.unsupervised_weight * self.pseudo_weight > 0

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        # first, so that it does not depend on who is asked afterwards
        inside = self.draw_box(labeled["image"])
        if unlabeled is None or self.pretraining:
            terms = {"supervised": self.labeled_loss(labeled, inside)}
            if unlabeled is not None and self.teaches:
                terms["pseudo"] = torch.zeros_like(terms["supervised"])
            return terms
        return self.mixed_losses(labeled, unlabeled, inside)

    def labeled_loss(self, labeled: Batch, inside: Tensor) -> Tensor:
        """The first stage: the second half of the labeled images pasted into the first one.

        Args:
            labeled: see :class:`Batch`.
            inside: what :meth:`draw_box` returned.
        """
        of_image, of_label = (
            (rows, rows.flip(0)) if len(rows) == 2 else halves(rows) for rows in (labeled["image"], labeled["label"])
        )
        image, label = (torch.where(inside, second, first) for first, second in (of_image, of_label))
        logits = self.network(image).float()
        if self.pretrain_loss == "whole":
            return self.loss(logits, label)
        return self.loss(logits, label, ~inside) + self.loss(logits, label, inside)

    def mixed_losses(self, labeled: Batch, unlabeled: Batch, inside: Tensor) -> dict[str, Tensor]:
        """The second stage: both directions of pasting, each with a pass of its own.

        Args:
            labeled, unlabeled: see :class:`Batch`.
            inside: what :meth:`draw_box` returned.
        """
        pairs = max(-(-len(batch["image"]) // 2) for batch in (labeled, unlabeled))
        images = {LABELED: halves(labeled["image"], pairs), UNLABELED: halves(unlabeled["image"], pairs)}
        labels: dict[bool, Sequence[Tensor]] = {LABELED: halves(labeled["label"], pairs)}
        if self.teaches:  # first: no graph is in memory yet
            labels[UNLABELED] = passes(self.teacher_labels, images[UNLABELED])
        mixed = []
        for outer, inner in self.pairing:
            mixed.append(torch.where(inside, images[inner[0]][inner[1]], images[outer[0]][outer[1]]))
        sums: dict[bool, list[Tensor]] = {LABELED: [], UNLABELED: []}
        for logits, (outer, inner) in zip(passes(self.network, mixed), self.pairing, strict=True):
            for (kind, half), region in ((outer, ~inside), (inner, inside)):
                if kind in labels:
                    sums[kind].append(self.loss(logits.float(), labels[kind][half], region))
        terms = {"supervised": sum(sums[LABELED], torch.zeros_like(sums[LABELED][0]))}
        if self.teaches:
            weight = self.unsupervised_weight * self.pseudo_weight
            terms["pseudo"] = weight * sum(sums[UNLABELED], torch.zeros_like(sums[UNLABELED][0]))
        return terms

    def draw_box(self, image: Tensor) -> Tensor:
        """Where the box is, bool ``(1, 1, *spatial)``: sides are shares of the patch's, every place equally likely.

        The corner comes from PyTorch's generator of the CPU, which the trainer seeds by iteration.
        """
        inside = torch.zeros(1, 1, *image.shape[2:], dtype=torch.bool)
        box = inside
        for axis, side in enumerate(image.shape[2:], start=2):
            length = max(int(side * self.box), 1)
            corner = int(torch.randint(0, max(side - length, 1), (1,)))
            box = box.narrow(axis, corner, length)
        box.fill_(True)
        return inside.to(image.device)

    @torch.no_grad()
    def teacher_labels(self, image: Tensor) -> Tensor:
        """What the teacher says of images ``(B, C_in, *spatial)``: ``(B, 1, *spatial)`` int64.

        Of two classes the foreground has a probability of 0.5 or more.
        """
        p = self.teacher(image).float().softmax(1)
        label = (p[:, 1:] >= 0.5).long() if p.shape[1] == 2 else p.argmax(1, keepdim=True)
        if self.keep_largest:
            label = largest_components(label, p.shape[1], self.connectivity)
        self.note_pseudo_labels(label, p.shape[1])
        return label

    def loss(self, logits: Tensor, label: Tensor, region: Tensor | None = None) -> Tensor:
        """Half of cross-entropy and Dice over a region.

        Args:
            logits: ``(B, n_classes, *spatial)`` float32.
            label: ``(B, 1, *spatial)``; voxels labeled ``IGNORE_LABEL`` are left out.
            region: bool ``(1, 1, *spatial)``; None: everywhere.
        """
        if region is not None:
            label = label.masked_fill(~region, IGNORE_LABEL)
        return 0.5 * (supervised_cross_entropy(logits, label) + self.dice(logits, label))

    def second_opinion(self, image: Tensor) -> Tensor | None:
        """Class probabilities of the teacher; None before the second stage and for the matched floor."""
        if self.pretraining or not self.teaches:
            return None
        return self.teacher(image).float().softmax(1)

    def after_step(self) -> None:
        if not self.pretraining:
            self.teacher.update(self.network, self.iteration)
        elif self.iteration + 1 == self.pretrain:
            move_toward(self.teacher.network, self.network, 0.0, buffers="copy")
        super().after_step()


def passes(network: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """What ``network`` gives for each of the batches, one after the other; together where they are single images."""
    if len(images[0]) > 1:
        return [network(image) for image in images]
    return list(network(torch.cat(list(images))).split(1))


def halves(rows: Tensor, pairs: int | None = None) -> tuple[Tensor, Tensor]:
    """First and second half of the rows; of an odd number the middle one is in both.

    Args:
        rows: ``(B, ...)``.
        pairs: rows of each result, which are used again in turn; None: as many as half of the rows, rounded up.

    Example:
        >>> [half.tolist() for half in halves(torch.arange(4))], [half.tolist() for half in halves(torch.arange(3))]
        ([[0, 1], [2, 3]], [[0, 1], [1, 2]])
        >>> [half.tolist() for half in halves(torch.arange(2), pairs=3)]
        [[0, 0, 0], [1, 1, 1]]
    """
    half = -(-len(rows) // 2)
    if pairs is None or pairs == half:
        return rows[:half], rows[len(rows) - half :]
    index = torch.arange(pairs, device=rows.device) % half
    return rows[index], rows[len(rows) - half + index]


def _iterations(pretrain: float, max_iterations: int) -> int:
    if not (0 <= pretrain < 1 or (pretrain >= 1 and float(pretrain).is_integer())):
        raise ValueError(
            f"pretrain must be a share of the run in [0, 1) or a whole number of iterations, got {pretrain}"
        )
    return round(pretrain * max_iterations) if pretrain < 1 else int(pretrain)

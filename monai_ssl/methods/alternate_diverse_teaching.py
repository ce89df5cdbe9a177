"""AD-MT: two averaged teachers take turns, each with its own kind of strong view."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.losses import ForegroundDiceLoss, HalfDiceCELoss, supervised_cross_entropy
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least, staircase
from monai_ssl.methods.variants import Columns, of_variant
from monai_ssl.networks import EMATeacher
from monai_ssl.networks.modes import evaluating
from monai_ssl.transforms import change_strongly

COLUMNS: Columns = {"released": {"align_student": False}, "paper": {"align_student": True}}

PSEUDO_LOSSES = ("cross_entropy", "dice")


class Teaching(NamedTuple):
    """What both teachers together say of weak views; each tensor ``(B, 1, *spatial)``.

    Attributes:
        label: most probable class of the ensemble, int64.
        confidence: its probability, in [0, 1].
        conflict: where the teachers differ, bool.
    """

    label: Tensor
    confidence: Tensor
    conflict: Tensor


class AlternateDiverseTeaching(SemiSupervisedMethod):
    r"""Two teachers in turn: the strong view changes gray values under the first one, and is CutMix under the other.

    .. math:: L = \tfrac12 \left(L_{CE} + L_{Dice}\right) + w(t)\, \ell\left(p_{strong}, \hat y \mid c \ge \tau\right)

    *Turns.* The active teacher changes after random periods of 1 to ``longest_period`` iterations. Only the active one
    is in training mode (dropout, batch statistics of its own pass) and moves toward the network: parameters and batch
    statistics, as a copy while :math:`\lfloor t/2 \rfloor` is below ``copy_steps``, then with
    :math:`\alpha = \min(1 - 1/(\lfloor t/2 \rfloor - copy\_steps + 1), \alpha_{max})`.

    *Labels.* Both teachers see the weak view. Voxel by voxel :math:`\bar p = \sum_i a_i p_i` with
    :math:`a_i = e^{-H_i} / (e^{-H_1} + e^{-H_2})`, :math:`H_i` the entropy of :math:`p_i` in bits;
    :math:`(\hat y, c) = (\mathrm{argmax}, \max)\, \bar p`.

    *Conflicts.* Where the teachers' classes differ, the network's own class on the weak view replaces
    :math:`\hat y`, with its probability as :math:`c`, if it is another one and more probable.

    *Views.* Either ``unlabeled["strong"]``, which the loader makes from the weak view, or a box of the next weak image
    pasted into each weak image: :math:`\lambda \sim \mathrm{Beta}(4, 4)`, sides :math:`\sqrt{1 - \lambda}` of the
    patch's, center anywhere but in the first eighth of each axis, cut at the border. Labels, confidence and conflicts
    are pasted likewise.

    The network sees labeled images, weak views and strong views in one pass. It is deployed.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        max_iterations: length of the default ramp-up, 6000 of 15,000 (left atrium) and 7500 of 30,000 (ACDC).
        weight: of the pseudo-labels after the ramp-up, >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 40 in 3D, 50 in 2D, of 150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        threshold: :math:`\tau` in [0, 1]; 0.8 in 3D, 0.95 in 2D.
        pseudo_loss: :math:`\ell`, over the voxels whose confidence reaches it: ``"cross_entropy"`` (3D), the mean over
            them, or ``"dice"`` (2D), of all classes. Without such a voxel it is 0.
        longest_period: of a teacher, >= 1: 19 (left atrium), 14 (pancreas), 50 (ACDC), half of a pass over the pool.
        concentration: both parameters of the beta distribution, > 0.
        variant: ``"released"`` (default) or ``"paper"``: sets ``align_student`` where that is None.
        align_student: paste also the network's class and probability before it settles conflicts of pasted images.
            False (released): they are those of the image before.
        decay: :math:`\alpha_{max}` in [0, 1).
        copy_steps: see above; 40 in 3D, 50 in 2D.
        seed: of the periods, the same in all processes of a training.
        unsupervised_weight: factor on the pseudo-labels' term. 0 is the matched floor: same views, nobody asks the
            teachers.

    Attributes:
        teachers: two :class:`~monai_ssl.networks.EMATeacher`.
        active: which of them teaches, 0 or 1.
        remaining: iterations until it changes.

    Paper and released code differ:

    ======================  ==================================  =========================================
    part                    paper                               released (here)
    ======================  ==================================  =========================================
    conflicts of pasted     one image                           the network's map is of the image before
    images                                                      pasting; ``align_student``
    box                     area :math:`1 - \lambda`            smaller at the border; odd sides lose one
    no confident voxel      not discussed                       NaN in 3D; 0 here
    batch counters          not discussed                       averaged; here those of the network
    teachers' start         not discussed                       two random networks; here copies of the
                                                                network, as after the first update
    gray values             "color"                             contrast, brightness, noise; here the
                                                                preset's ``strong_view``
    ======================  ==================================  =========================================

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term. Where a batch holds no strong view,
    :func:`~monai_ssl.transforms.change_strongly` makes one.

    Loss terms: ``supervised``, and where there is something unlabeled and the weight is not 0, ``pseudo``.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when ``ramp_up`` is no function.

    Source: Zhao, Wang, Wang, Yu, Yuan and Zhou, "Alternate Diverse Teaching for Semi-supervised Medical Image
        Segmentation", ECCV 2024.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = AlternateDiverseTeaching(VNet(spatial_dims=2, base_channels=2))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> unlabeled = {"image": torch.rand(2, 1, 16, 16), "strong": torch.rand(2, 1, 16, 16)}
        >>> sorted(method(labeled, unlabeled))
        ['pseudo', 'supervised']
    """

    strong_view = True
    honors_ignore_label = True
    second_opinion_needs_state = True

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float = 2.0,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        threshold: float = 0.8,
        pseudo_loss: str = "cross_entropy",
        longest_period: int = 19,
        concentration: float = 4.0,
        variant: str = "released",
        align_student: bool | None = None,
        decay: float = 0.99,
        copy_steps: int = 40,
        seed: int = 0,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        check_at_least(1, longest_period=longest_period)
        check_at_least(0, seed=seed)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        if not concentration > 0:
            raise ValueError(f"concentration must be > 0, got {concentration}")
        if pseudo_loss not in PSEUDO_LOSSES:
            raise ValueError(f"pseudo_loss must be one of {PSEUDO_LOSSES}, got {pseudo_loss!r}")
        self.ramp_up = staircase(ramp_up, max_iterations, weight, ramp_levels)
        self.threshold, self.concentration = float(threshold), float(concentration)
        options = of_variant(variant, COLUMNS, align_student=align_student)
        self.align_student = bool(options["align_student"])
        self.longest_period, self.seed = int(longest_period), int(seed)
        self.supervised = HalfDiceCELoss(include_background=True)
        self.pseudo_loss = (
            supervised_cross_entropy if pseudo_loss == "cross_entropy" else ForegroundDiceLoss(include_background=True)
        )
        self.teachers = nn.ModuleList(
            EMATeacher(network, decay, buffers="average", copy_steps=copy_steps) for _ in range(2)
        )
        self.active, self.periods = 0, 0
        self.remaining = self.draw_period()

    def draw_period(self) -> int:
        """Length of the next period in iterations; it depends on the seed and the number of the period alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.periods)
        self.periods += 1
        return int(torch.randint(1, self.longest_period + 1, (1,), generator=generator))

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        if unlabeled is None:
            return {"supervised": self.supervised(self.network(labeled["image"]).float(), labeled["label"])}
        weak, box = unlabeled["image"], None
        if self.active == 0:
            strong = unlabeled["strong"] if "strong" in unlabeled else change_strongly(weak)
        else:
            box = self.draw_boxes(weak)
            strong = paste(weak, box)
        # before the network's pass: no graph is in memory yet
        teaching = self.teach(weak) if self.unsupervised_weight > 0 else None
        logits = self.network(torch.cat([labeled["image"], weak, strong.to(weak)])).float()
        of_labeled, of_weak, of_strong = logits.split([len(labeled["label"]), len(weak), len(weak)])
        terms = {"supervised": self.supervised(of_labeled, labeled["label"])}
        if teaching is not None:
            label, confidence = self.settle(teaching, of_weak.detach(), box)
            label = label.masked_fill(confidence < self.threshold, IGNORE_LABEL)
            self.note_pseudo_labels(label, logits.shape[1])
            weight = self.unsupervised_weight * self.ramp_up(self.iteration)
            terms["pseudo"] = weight * self.pseudo_loss(of_strong, label)
        return terms

    @torch.no_grad()
    def teach(self, image: Tensor) -> Teaching:
        """Both teachers on weak views ``(B, C_in, *spatial)``, the inactive one in evaluation mode."""
        first, second = self.teachers
        with evaluating(second if self.active == 0 else first):
            p = [teacher(image).float().softmax(1) for teacher in (first, second)]
        confidence, label = ensemble(*p).max(1, keepdim=True)
        return Teaching(label, confidence, p[0].argmax(1, keepdim=True) != p[1].argmax(1, keepdim=True))

    def settle(self, teaching: Teaching, student: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Labels and confidence of strong views, after conflicts.

        Args:
            teaching: on the weak views.
            student: logits of the network on the weak views, ``(B, n_classes, *spatial)`` float32, without gradient.
            box: what :meth:`draw_boxes` returned where the strong views are pasted.

        Returns:
            label ``(B, 1, *spatial)`` int64 and confidence of the same shape.
        """
        confidence, label = student.softmax(1).max(1, keepdim=True)
        if box is not None:
            teaching = Teaching(*(paste(part, box) for part in teaching))
            if self.align_student:
                confidence, label = paste(confidence, box), paste(label, box)
        better = teaching.conflict & (label != teaching.label) & (confidence > teaching.confidence)
        return torch.where(better, label, teaching.label), torch.where(better, confidence, teaching.confidence)

    def draw_boxes(self, image: Tensor) -> Tensor:
        r"""Boxes of a common size at random places, bool ``(B, 1, *spatial)``; :math:`\lambda` is drawn once."""
        beta = torch.distributions.Beta(self.concentration, self.concentration)
        share = 1.0 - float(beta.sample())
        centers = [torch.randint(side // 8, side, (len(image),)) for side in image.shape[2:]]
        return boxes(image.shape[2:], centers, share).to(image.device)

    def second_opinion(self, image: Tensor) -> Tensor | None:
        """Class probabilities of both teachers together; None for the matched floor."""
        if self.unsupervised_weight == 0:
            return None
        return ensemble(*(teacher(image).float().softmax(1) for teacher in self.teachers))

    def after_step(self) -> None:
        if self.unsupervised_weight > 0:
            self.teachers[self.active].update(self.network, self.iteration // 2)  # type: ignore[operator]
        self.remaining -= 1
        if self.remaining == 0:
            self.active, self.remaining = 1 - self.active, self.draw_period()
        super().after_step()

    def get_extra_state(self) -> dict[str, Any]:
        return {
            **super().get_extra_state(),
            "active": self.active,
            "remaining": self.remaining,
            "periods": self.periods,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.active, self.remaining, self.periods = (int(state[key]) for key in ("active", "remaining", "periods"))


def ensemble(first: Tensor, second: Tensor) -> Tensor:
    """Mean of two probability maps, voxel by voxel weighted by the exponential of minus their entropies in bits.

    Args:
        first, second: ``(B, C, *spatial)`` float32.

    Example:
        >>> sure, unsure = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
        >>> [round(p, 3) for p in ensemble(sure, unsure)[0].tolist()]  # weights 1 : 1/e
        [0.866, 0.134]
    """
    weight = torch.sigmoid(entropy_in_bits(second) - entropy_in_bits(first))  # of the first one
    return weight * first + (1 - weight) * second


def entropy_in_bits(p: Tensor) -> Tensor:
    """Entropy of each voxel ``(B, 1, *spatial)`` of class probabilities ``(B, C, *spatial)``.

    Example:
        >>> round(entropy_in_bits(torch.tensor([[0.5, 0.5]])).item(), 4)
        1.0
    """
    return -(p * torch.log2(p + 1e-10)).sum(1, keepdim=True)


def paste(rows: Tensor, box: Tensor) -> Tensor:
    """The box of the next row in each row ``(B, channels, *spatial)``; the last one gets that of the first."""
    return torch.where(box, rows.roll(-1, 0), rows)


def boxes(sides: Sequence[int], centers: list[Tensor], share: float) -> Tensor:
    """Boxes around given centers, cut at the border.

    Args:
        sides: of the patch.
        centers: per axis ``(B,)``.
        share: square of the boxes' sides as a share of the patch's, in [0, 1]. Half sides are whole voxels: odd sides
            lose one.

    Returns:
        bool ``(B, 1, *sides)``.

    Example:
        >>> boxes((8,), [torch.tensor([4, 7])], 0.25).int().tolist()
        [[[0, 0, 1, 1, 1, 1, 0, 0]], [[0, 0, 0, 0, 0, 1, 1, 1]]]
    """
    inside = torch.ones(len(centers[0]), 1, *[1] * len(sides), dtype=torch.bool)
    for axis, (side, center) in enumerate(zip(sides, centers, strict=True)):
        half = int(side * math.sqrt(share)) // 2
        position = torch.arange(side)
        within = (position >= center[:, None] - half) & (position < center[:, None] + half)
        inside = inside & within.reshape(len(center), 1, *[side if a == axis else 1 for a in range(len(sides))])
    return inside

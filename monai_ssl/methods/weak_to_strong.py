"""Weak to strong: a moving average labels the weak view of a pool image, the network learns it on a strong one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.losses import ForegroundDiceLoss, HalfDiceCELoss
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least
from monai_ssl.networks.ema import decay_at, move_toward
from monai_ssl.transforms import change_strongly, cutmix

ROLES = ("student", "teacher")


class WeakToStrong(SemiSupervisedMethod):
    r"""A teacher labels the weak view of a pool image; the student learns its confident labels on a strong one.

    .. math:: L = \tfrac12 \left(L_{CE} + L_{Dice}\right)(x, y) + r(t)\, w\, \overline{m\, \ell_{CE}(p, \hat y)}, \qquad
        (\hat y, c) = (\mathrm{argmax}, \max)\ \mathrm{softmax}\, f_{\theta'}(u), \quad m = [c \ge \tau]

    The teacher is the moving average of the student, parameters and batch statistics, in evaluation mode. Of the pool
    the student sees :math:`M(S(u))`: :math:`S` changes gray values (:func:`~monai_ssl.transforms.change_strongly`),
    :math:`M` puts a box of one image into another, with :math:`\hat y` and :math:`m` in the same box
    (:func:`~monai_ssl.transforms.cutmix`). The mean is over all voxels: what the teacher is not sure of weighs nothing
    but counts, so that the term grows with the teacher's confidence. One pass over labeled and pool images.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``; the one that is deployed.
        max_iterations: length of the run, of which ``burn_in`` and ``ramp`` are shares.
        weight: :math:`w` >= 0.
        threshold: :math:`\tau` in [0, 1]; 0: every voxel counts. None: :math:`m = c`, voxels weighted by confidence.
        strength: of the change of gray values, >= 0; 0: none.
        cutmix_probability: of a pool image to get a box of another one, in [0, 1].
        dice: also the Dice over the voxels that count: :math:`w` times half of the sum of both.
        burn_in: share of the run in which only labeled images are looked at, in [0, 1].
        ramp: share of the run, after the burn-in, in which :math:`r(t)` rises linearly to 1, in [0, 1].
        decay: of the moving average, :math:`\alpha = \min(1 - 1/(t + 1), decay)`, in [0, 1); 0: the teacher is the
            student.
        feature_dropout: two strong views of each pool image, and of the encoder's features channels that are dropped
            with probability 1/2 in one view and kept, doubled, in the other one, at half of the images (UniMatch V2).
            The network needs ``encode``, ``decode`` and ``logits`` as :class:`~monai_ssl.networks.VNet` has them.
        deploys: ``"student"`` or ``"teacher"``: which of the two ``network`` is. It is what is validated and saved.
        unsupervised_weight: factor on the pool's term. 0 is the matched floor: same passes, nobody asks the teacher.

    Attributes:
        student, teacher: the networks; one of them is :attr:`network`.

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term.

    Loss terms: ``supervised``, and where there is something unlabeled and the weight is not 0, ``pseudo``, which is 0
    during the burn-in.

    Raises:
        ValueError: for an option out of its range, or ``feature_dropout`` with a network that has no such features.

    Source: Sohn et al., "FixMatch", NeurIPS 2020; Yang et al., "UniMatch", CVPR 2023, and "UniMatch V2", TPAMI 2025,
        for segmentation. The constants are our own.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = WeakToStrong(VNet(spatial_dims=2, base_channels=2), burn_in=0.0)
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['pseudo', 'supervised']
    """

    honors_ignore_label = True
    second_opinion_needs_state = True

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float = 0.5,
        threshold: float | None = 0.8,
        strength: float = 0.5,
        cutmix_probability: float = 1.0,
        dice: bool = False,
        burn_in: float = 0.2,
        ramp: float = 0.1,
        decay: float = 0.99,
        feature_dropout: bool = False,
        deploys: str = "student",
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        check_at_least(1, max_iterations=max_iterations)
        check_at_least(0, weight=weight, strength=strength)
        shares = {"cutmix_probability": cutmix_probability, "burn_in": burn_in, "ramp": ramp, "threshold": threshold}
        for name, value in shares.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        if deploys not in ROLES:
            raise ValueError(f"deploys must be one of {ROLES}, got {deploys!r}")
        if feature_dropout and not all(hasattr(network, name) for name in ("encode", "decode", "logits")):
            raise ValueError(
                "feature_dropout needs a network with encode, decode and logits, such as VNet and UNet of "
                f"monai_ssl.networks, got {type(network).__name__}; set feature_dropout to false"
            )
        self.weight, self.threshold, self.strength = float(weight), threshold, float(strength)
        self.cutmix_probability, self.decay = float(cutmix_probability), float(decay)
        self.burn_in, self.ramp = round(burn_in * max_iterations), round(ramp * max_iterations)
        self.feature_dropout, self.deploys = bool(feature_dropout), deploys
        self.supervised = HalfDiceCELoss()
        self.dice = ForegroundDiceLoss() if dice else None
        self.other = copy.deepcopy(network)
        self.teacher.requires_grad_(False)
        self.teacher.eval()

    @property
    def student(self) -> nn.Module:
        return self.network if self.deploys == "student" else self.other

    @property
    def teacher(self) -> nn.Module:
        return self.other if self.deploys == "student" else self.network

    def train(self, mode: bool = True) -> WeakToStrong:
        """As of any module, but the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        teaches = unlabeled is not None and self.weight * self.unsupervised_weight > 0
        if unlabeled is None or self.iteration < self.burn_in:
            terms = {"supervised": self.supervised(self.student(labeled["image"]).float(), labeled["label"])}
            return {**terms, "pseudo": torch.zeros_like(terms["supervised"])} if teaches else terms
        mixed: list[Tensor] = [unlabeled["image"]]
        if teaches:  # first: no graph is in memory yet
            mixed += self.targets(unlabeled["image"])
        views = [self._strong_view(mixed) for _ in range(2 if self.feature_dropout else 1)]
        image, *targets = [torch.cat(parts) for parts in zip(*views, strict=True)]
        rows = len(labeled["label"])
        logits = self._student_logits(torch.cat([labeled["image"], image]), rows)
        terms = {"supervised": self.supervised(logits[:rows], labeled["label"])}
        if targets:
            weight = self.unsupervised_weight * self.weight * self.ramp_up()
            terms["pseudo"] = weight * self.pseudo_loss(logits[rows:], *targets)
        return terms

    def ramp_up(self) -> float:
        """:math:`r(t)` in [0, 1] of the step that comes."""
        done = self.iteration - self.burn_in + 1
        return min(max(done, 0) / self.ramp, 1.0) if self.ramp else float(done > 0)

    @torch.no_grad()
    def targets(self, image: Tensor) -> tuple[Tensor, Tensor]:
        r"""What the teacher says of weak views ``(B, C_in, *spatial)``.

        Returns:
            :math:`\hat y` ``(B, 1, *spatial)`` int64, and :math:`m`, of the same shape, float32 in [0, 1].
        """
        probabilities = self.teacher(image).float().softmax(1)
        confidence, label = probabilities.max(1, keepdim=True)
        weight = confidence if self.threshold is None else (confidence >= self.threshold).float()
        self.note_pseudo_labels(label.masked_fill(weight == 0, IGNORE_LABEL), probabilities.shape[1])
        return label, weight

    def pseudo_loss(self, logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """Loss of pseudo-labels, before its factors.

        Args:
            logits: of the student, ``(B, n_classes, *spatial)`` float32.
            label: ``(B, 1, *spatial)`` int64.
            weight: of each voxel in [0, 1], same shape; the sum is divided by the number of all voxels.
        """
        cross_entropy = nn.functional.cross_entropy(logits, label[:, 0], reduction="none")
        loss = (weight[:, 0] * cross_entropy).mean()
        if self.dice is None:
            return loss
        return 0.5 * (loss + self.dice(logits, label.masked_fill(weight == 0, IGNORE_LABEL)))

    def _strong_view(self, mixed: Sequence[Tensor]) -> list[Tensor]:
        """Strong view of the image, with whatever else belongs to its voxels."""
        return cutmix([change_strongly(mixed[0], self.strength), *mixed[1:]], self.cutmix_probability)

    def _student_logits(self, image: Tensor, rows: int) -> Tensor:
        """Logits float32; with ``feature_dropout`` the two views of the pool images follow after ``rows``."""
        if not self.feature_dropout:
            return self.student(image).float()
        student: Any = self.student
        encoded = _drop_complementarily(student.encode(image), rows)
        return student.logits(student.decode(encoded)[-1]).float()

    def second_opinion(self, image: Tensor) -> Tensor | None:
        """Class probabilities of the teacher; of the student where the teacher is deployed."""
        return self.other(image).float().softmax(1)

    def after_step(self) -> None:
        move_toward(self.teacher, self.student, decay_at(self.iteration, self.decay), buffers="average")
        super().after_step()


def _drop_complementarily(encoded: Sequence[Tensor], rows: int) -> list[Tensor]:
    """After the first ``rows``, two views of each image: what one loses of a feature, the other has twice."""
    pairs = (len(encoded[0]) - rows) // 2
    device = encoded[0].device
    untouched = torch.randperm(pairs, device=device) < pairs // 2
    dropped = []
    for features in encoded:
        shape = (pairs, features.shape[1], *[1] * (features.dim() - 2))
        first = 2.0 * torch.randint(0, 2, shape, device=device, dtype=features.dtype)
        first[untouched] = 1.0
        labeled = features.new_ones(rows, *shape[1:])
        dropped.append(features * torch.cat([labeled, first, 2.0 - first]))
    return dropped

"""TCSE: what is predicted of a transformed image must be the transformed prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.losses import MaskedMSELoss, add_noise
from monai_ssl.methods.averaged_teacher import AveragedTeacher
from monai_ssl.methods.base import Batch, check_at_least, joint_images, joint_pass_floor
from monai_ssl.transforms import Poses, random_poses

NETWORKS = ("teacher", "student")


class TransformationConsistency(AveragedTeacher):
    r"""Transformation-consistent self-ensembling: a mean teacher that sees the images turned, flipped and scaled.

    .. math:: L = \tfrac12 \left(L_{CE} + L_{Dice}\right) + w(t)\, \overline{\left(\pi(p_S(x)) - p_T(\pi(x) + n)
        \right)^2}

    A segmentation should turn with its image; convolutions guarantee that for shifts alone. Each unlabeled image gets a
    transform :math:`\pi` of its own: quarter turns, flips, scaling. The teacher, a moving average of the student,
    predicts the transformed image with noise; the student's prediction of the image itself is transformed and compared.
    Gradient flows through the student, transform included. The student is deployed.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        max_iterations: length of the default ramp-up.
        weight: :math:`w_{max}` >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        flip_axes: spatial axes along which anatomy may be mirrored.
        rotate90_axes: two spatial axes in whose plane it may be turned by quarters; None: no turns. Where their sides
            differ, half turns.
        scale: s in [0, 0.5): scaling by U(1 - s, 1 + s).
        noise: standard deviation of the Gaussian noise on the teacher's side, clipped at twice that, >= 0.
        transformed: which network sees the transformed image: ``"teacher"``, as above, or ``"student"``:
            :math:`p_S(\pi(x)) - \pi(p_T(x + n))`.
        decay: :math:`\alpha_{max}` of the moving average, in [0, 1).
        include_background: of the Dice term.
        unsupervised_weight: factor on the consistency; 0 is the matched floor.

    No inverse transform is needed: both predictions are compared in the transformed image. Where a scaled image shows
    what lies beyond the edge, neither is right, and the voxel does not count.

    Written from the paper. Its released code, for 2D skin lesions, differs; there is no released 3D code:

    ==========================  ===============================  ==============================================
    part                        released code                    here
    ==========================  ===============================  ==============================================
    gradient of the term        none: both predictions are made  through the student, as in the paper
                                without gradient
    comparison                  the teacher's is turned back     both in the transformed image
    scaling                     applied twice                    once, on either side
    noise                       0.5                              0.1 clipped at 0.2, as the mean teacher has it
    weight, ramp-up             1, over 600 of 800 epochs        0.1, over the run, as the mean teacher has it
    :math:`\alpha_{max}`        0.999                            0.99
    supervised loss             class-weighted cross-entropy     half of cross-entropy and Dice
    network                     DenseUNet, ImageNet weights      any
    ==========================  ===============================  ==============================================

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term.

    Loss terms: ``supervised``, and where there is something unlabeled and the weight is not 0, ``consistency``.

    Raises:
        ValueError: for an option out of its range, or axes that an image does not have.
        TypeError: when ``ramp_up`` is no function.

    Source: Li, Yu, Chen, Fu, Xing, Heng, "Transformation-Consistent Self-Ensembling Model for Semisupervised Medical
        Image Segmentation", IEEE TNNLS 32(2), 2021, section III.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = TransformationConsistency(VNet(spatial_dims=2, base_channels=2), flip_axes=[0])
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['consistency', 'supervised']
    """

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float = 0.1,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        flip_axes: Sequence[int] = (),
        rotate90_axes: Sequence[int] | None = None,
        scale: float = 0.1,
        noise: float = 0.1,
        transformed: str = "teacher",
        decay: float = 0.99,
        include_background: bool = True,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(
            network, max_iterations, weight, ramp_levels, ramp_up, decay, include_background, unsupervised_weight
        )
        check_at_least(0, noise=noise)
        if not 0 <= scale < 0.5:
            raise ValueError(f"scale must be in [0, 0.5), got {scale}")
        if transformed not in NETWORKS:
            raise ValueError(f"transformed must be one of {NETWORKS}, got {transformed!r}")
        if rotate90_axes is not None and (len(rotate90_axes) != 2 or rotate90_axes[0] == rotate90_axes[1]):
            raise ValueError(f"rotate90_axes must be two different axes or None, got {rotate90_axes}")
        self.flip_axes = tuple(flip_axes)
        self.rotate90_axes = None if rotate90_axes is None else tuple(rotate90_axes)
        self.scale, self.noise, self.transformed = float(scale), float(noise), transformed
        self.difference = MaskedMSELoss()

    @classmethod
    def matched_floor(cls, options: Mapping[str, Any]) -> Any:
        if options.get("transformed", "teacher") != "teacher":  # the student's images are moved then
            return None
        return joint_pass_floor(options)

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        if unlabeled is None or (self.unsupervised_weight == 0 and self.transformed == "teacher"):
            return self.terms(self.network(joint_images(labeled, unlabeled)), None, None, labeled)
        image = unlabeled["image"]
        poses = random_poses(image, self.flip_axes, self.rotate90_axes, self.scale)
        moved = poses(image)
        of_student, of_teacher = (image, moved) if self.transformed == "teacher" else (moved, image)
        taught = None
        if self.unsupervised_weight > 0:  # first: no graph is in memory yet
            taught = self.teacher(add_noise(of_teacher, self.noise, 2 * self.noise))
        return self.terms(self.network(torch.cat([labeled["image"], of_student])), taught, poses, labeled)

    def terms(
        self, logits: Tensor, teacher_logits: Tensor | None, poses: Poses | None, labeled: Batch
    ) -> dict[str, Tensor]:
        """Loss terms from the outputs of student and teacher; the labeled rows come first.

        Args:
            logits: of the student, ``(B_l + B_u, n_classes, *spatial)``.
            teacher_logits: of the unlabeled images, ``(B_u, n_classes, *spatial)``, without gradient; or None.
            poses: the transforms that one of the two networks saw.
            labeled: batch with ``label``.
        """
        rows, logits = len(labeled["label"]), logits.float()
        terms = {"supervised": self.supervised(logits[:rows], labeled["label"])}
        if teacher_logits is not None and poses is not None:
            p, q = logits[rows:].softmax(1), teacher_logits.float().softmax(1)
            p, q = (poses(p), q) if self.transformed == "teacher" else (p, poses(q))
            weight = self.unsupervised_weight * self.ramp_up(self.iteration)
            terms["consistency"] = weight * self.difference(p, q, poses.inside(p))
        return terms

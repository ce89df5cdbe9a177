"""Interpolation consistency: the prediction of a mixture of images is the mixture of their predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from monai_ssl.errors import DataError
from monai_ssl.methods.averaged_teacher import AveragedTeacher
from monai_ssl.methods.base import Batch, joint_images


class InterpolationConsistency(AveragedTeacher):
    r"""Between two unlabeled images, the student's probabilities are pulled to the mean of its average's.

    .. math::
        L = \tfrac12 \left(L_{CE} + L_{Dice}\right) + w(t)\, \overline{\left(f_\theta(x_\lambda) - q_\lambda\right)^2},
        \qquad x_\lambda = (1 - \lambda)\, u_i + \lambda\, u_j, \quad
        q_\lambda = (1 - \lambda)\, f_{\theta'}(u_i) + \lambda\, f_{\theta'}(u_j)

    with probabilities :math:`f` and :math:`\lambda \sim \mathrm{Beta}(a, a)`, one per pair. The student sees labeled
    and mixed images in one pass, never an unlabeled image as it is; the teacher sees the first images of all pairs in
    one pass and the second ones in another, without noise. :math:`\theta'` is the average of the student's parameters,
    :math:`\alpha = \min(1 - 1/(t + 1), \alpha_{max})`; batch statistics are the teacher's own. The student is deployed.

    Of :math:`n` unlabeled images, :math:`i` is mixed with :math:`i + h`, :math:`h = n/2` rounded up; where this is
    beyond the last one, counting goes on at the first: three images make two pairs, (0, 2) and (1, 0), and one image is
    mixed with itself, which leaves it as it is.

    Args:
        network: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        max_iterations: length of the default ramp-up.
        weight: of the consistency after the ramp-up, >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 40 (6000 iterations) and 200 (30000
            iterations) as released, of 150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        alpha: :math:`a > 0` of the Beta distribution; the smaller, the closer a mixture is to one of its images.
        joint_pass: the teacher sees both halves of the unlabeled images in one pass, with common batch statistics;
            False as released.
        decay: :math:`\alpha_{max}` in [0, 1).
        include_background: of the Dice term; True as released.
        unsupervised_weight: factor on the consistency; 0 is the matched floor: the network sees the same mixtures, and
            nobody asks the teacher.

    Paper and the released code that segmentation papers compare with differ:

    ======================  ==================================  ======================================
    part                    paper (classification)              released (here)
    ======================  ==================================  ======================================
    pairs                   two drawn batches                   halves of the batch
    :math:`\lambda`         of the first image                  of the second one
    :math:`a`               0.1 to 1 by data set                0.2
    :math:`\alpha_{max}`    0.999                               0.99
    deployed                teacher                             student
    ======================  ==================================  ======================================

    Its 3D code works with exactly two unlabeled images, its 2D code with any even number; here any number does.
    :math:`\lambda` comes from PyTorch's generator of the CPU, which the trainer seeds by iteration.

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term.

    Loss terms: ``supervised``, and where there is something unlabeled and the weight is not 0, ``consistency``.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when ``ramp_up`` is no function.
        DataError: in a pass over one image that is a single voxel at the network's coarsest scale, which batch
            normalization cannot normalize.

    Source: Verma et al., "Interpolation Consistency Training for Semi-Supervised Learning", IJCAI 2019, Eq. 1-3.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = InterpolationConsistency(VNet(spatial_dims=2, base_channels=2))
        >>> labeled = {"image": torch.rand(2, 1, 32, 32), "label": torch.zeros(2, 1, 32, 32, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 32, 32)}))
        ['consistency', 'supervised']
    """

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float = 0.1,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        alpha: float = 0.2,
        joint_pass: bool = False,
        decay: float = 0.99,
        include_background: bool = True,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(
            network, max_iterations, weight, ramp_levels, ramp_up, decay, include_background, unsupervised_weight
        )
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number > 0, got {alpha}")
        self.alpha, self.joint_pass = float(alpha), bool(joint_pass)

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        if unlabeled is None:
            return self.terms(self.network(labeled["image"]), None, labeled)
        first, second = halves(unlabeled["image"])
        share = self.draw(len(first)).to(first).reshape(-1, *[1] * (first.dim() - 1))
        target = None
        if self.unsupervised_weight > 0:  # first: no graph is in memory yet
            of_first, of_second = self.taught(first, second)
            target = mixture(of_first, of_second, share)
        mixed: Batch = {"image": mixture(first, second, share)}
        return self.terms(self.network(joint_images(labeled, mixed)), target, labeled)

    def taught(self, first: Tensor, second: Tensor) -> Sequence[Tensor]:
        """The teacher's probabilities of both images of each pair, float32."""
        try:
            if self.joint_pass:
                return self.teacher(torch.cat([first, second])).float().softmax(1).chunk(2)
            return [self.teacher(image).float().softmax(1) for image in (first, second)]
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                f"patches {tuple(first.shape[2:])}: the teacher's pass over {len(first)} unlabeled image leaves one "
                "voxel at the network's coarsest scale, which batch normalization cannot normalize; give larger "
                "patches, 4 unlabeled images or more (unlabeled_batch_size), or set joint_pass to true"
            ) from None

    def draw(self, pairs: int) -> Tensor:
        r""":math:`\lambda` of so many pairs, ``(pairs,)`` float64 in [0, 1] on the CPU."""
        parameter = torch.tensor(self.alpha, dtype=torch.float64)
        return torch.distributions.Beta(parameter, parameter).sample((pairs,))

    def terms(self, logits: Tensor, target: Tensor | None, labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the outputs of student and teacher; the labeled rows come first.

        Args:
            logits: of the student, of labeled and mixed images, ``(B_l + pairs, n_classes, *spatial)``.
            target: mixed probabilities of the teacher, ``(pairs, n_classes, *spatial)``, without gradient; or None.
            labeled: batch with ``label``.
        """
        rows, logits = len(labeled["label"]), logits.float()
        terms = {"supervised": self.supervised(logits[:rows], labeled["label"])}
        if target is not None:
            consistency = nn.functional.mse_loss(logits[rows:].softmax(1), target)
            terms["consistency"] = self.unsupervised_weight * self.ramp_up(self.iteration) * consistency
        return terms


def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """First and second images of the pairs: i and i + n/2, rounded up; beyond the last image counting starts anew.

    Example:
        >>> [[half.tolist() for half in halves(torch.arange(n))] for n in (1, 2, 3, 4)]
        [[[0], [0]], [[0], [1]], [[0, 1], [2, 0]], [[0, 1], [2, 3]]]
    """
    n = len(images)
    half = (n + 1) // 2
    return images[:half], torch.cat([images[half:], images[: 2 * half - n]])


def mixture(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """``share`` of the second tensor and the rest of the first.

    Example:
        >>> mixture(torch.zeros(1), torch.ones(1), torch.tensor(0.25)).item()
        0.25
    """
    return (1.0 - share) * first + share * second

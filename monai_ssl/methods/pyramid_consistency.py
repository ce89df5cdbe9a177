"""URPC: outputs at several scales of one decoder must agree, rectified by their uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from monai_ssl.losses import HalfDiceCELoss, PyramidConsistencyLoss
from monai_ssl.methods.base import Batch, staircase
from monai_ssl.methods.several_outputs import SeveralOutputs


class PyramidConsistency(SeveralOutputs):
    r"""Uncertainty-rectified pyramid consistency of a network with outputs at several scales.

    .. math:: L = \frac1S \sum_s \tfrac12 \left(L_{CE}(p_s, y) + L_{Dice}(p_s, y)\right)
        + w(t)\, \frac1S \sum_s \left[ \frac{\overline{(\bar p - p_s)^2 e^{-D_s}}}{\overline{e^{-D_s}}}
        + \overline{D_s} \right]

    One pass over labeled and unlabeled images together gives :math:`S = 4` predictions, one per level of the decoder,
    all at full resolution. On unlabeled images each is pulled to their mean :math:`\bar p`; where it is far from it in
    the sense of :math:`D_s = KL(\bar p \,\|\, p_s)`, it counts less, and :math:`D_s` itself is minimized. Gradient
    flows through the mean. The finest output is deployed.

    Args:
        network: offers ``outputs(image)``, logits at full resolution, the deployed ones first: a
            :class:`~monai_ssl.networks.PyramidNetwork`.
        max_iterations: length of the default ramp-up.
        weight: :math:`w_{max}` >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 400 (3D, 60000 iterations) and 200 (2D,
            30000 iterations) as released, of 150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        include_background: of the Dice term; True as released.
        unsupervised_weight: factor on the consistency; 0 is the matched floor: all outputs learn from labels.

    What the released code does, and what is different or optional here:

    ==========================  =====================================  =========================================
    part                        released                               here
    ==========================  =====================================  =========================================
    network, 3D                 3D U-Net with deep supervision         the same; V-Net: ``trunk`` of the network
    network, 2D                 U-Net, disturbed auxiliary features,   the same without that head
                                an unused fifth head
    classes, 3D                 three, written into the script         those of the data
    :math:`\log p`              of probabilities                       of logits, in float32: never NaN
    protocol, 3D                rate 0.1, 60000 iterations             the preset's
    ==========================  =====================================  =========================================

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term.

    Loss terms: ``supervised``, and where there is something unlabeled and the weight is not 0, ``consistency``.

    Raises:
        ValueError: for an option out of its range.
        TypeError: when the network has no ``outputs`` method, or ``ramp_up`` is no function.

    Source: Luo, Liao, Chen et al., "Efficient Semi-supervised Gross Target Volume of Nasopharyngeal
        Carcinoma Segmentation via Uncertainty Rectified Pyramid Consistency", MICCAI 2021; extended in MedIA 2022.

    Example:
        >>> from monai_ssl.networks import pyramid_network
        >>> method = PyramidConsistency(pyramid_network(2, base_channels=2))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['consistency', 'supervised']
    """

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float = 0.1,
        ramp_levels: int = 400,
        ramp_up: Callable[[int], float] | None = None,
        include_background: bool = True,
        unsupervised_weight: float = 1.0,
    ) -> None:
        what = "logits at several scales brought to full resolution"
        super().__init__(network, unsupervised_weight, what, "put it into monai_ssl.networks.PyramidNetwork")
        self.ramp_up = staircase(ramp_up, max_iterations, weight, ramp_levels)
        self.supervised = HalfDiceCELoss(include_background)
        self.consistency = PyramidConsistencyLoss()

    def terms(self, outputs: Sequence[Tensor], labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the logits of all scales; the labeled rows come first.

        Args:
            outputs: two or more of ``(B_l + B_u, n_classes, *spatial)``.
            labeled: batch with ``label``.
        """
        label = labeled["label"]
        outputs = [logits.float() for logits in outputs]
        supervised = torch.stack([self.supervised(logits[: len(label)], label) for logits in outputs]).mean()
        terms = {"supervised": supervised}
        if len(outputs[0]) > len(label) and self.unsupervised_weight > 0:
            weight = self.unsupervised_weight * self.ramp_up(self.iteration)
            terms["consistency"] = weight * self.consistency(*(logits[len(label) :] for logits in outputs))
        return terms

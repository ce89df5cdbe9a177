"""Networks or decoders that teach each other by their predictions (CPS, MC-Net, CAML)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def sharpen(probabilities: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Push probabilities toward 0 and 1, each channel by itself:
    :math:`S(p) = p^{1/T} / \left(p^{1/T} + (1-p)^{1/T}\right)`.

    With more than two classes the channels of a voxel no longer add up to 1.

    Args:
        probabilities: any shape, in [0, 1]; taken in float32 whatever the format, since :math:`p^{10}` leaves the range
            of half precision.
        temperature: T in [0.01, 1]; below, both powers vanish at 0.5.

    Returns:
        same shape, float32.

    Source: Wu et al., "Mutual consistency learning for semi-supervised medical image segmentation", MedIA 2022
        (MC-Net+), Eq. 2; CAML's released code.

    Example:
        >>> [round(p, 4) for p in sharpen(torch.tensor([0.0, 0.4, 0.5, 0.6])).tolist()]
        [0.0, 0.017, 0.5, 0.983]
    """
    p = probabilities.float()
    if temperature == 1:
        return p
    a, b = p.pow(1 / temperature), (1 - p).pow(1 / temperature)
    return a / (a + b)


class SharpenedConsistencyLoss(nn.Module):
    r"""Each prediction is pulled to the sharpened predictions of the others.

    .. math:: L = \sum_{i \ne j} \frac{1}{N} \sum \left(p_i - S(p_j)\right)^2

    A sum, not a mean, over the ordered pairs: 2 for two members, 6 for three.

    Args:
        temperature: T in [0.01, 1] of :func:`sharpen`.
        detach_target: gradient only through :math:`p_i`. The released code of MC-Net and CAML does not detach, and the
            path through S then dominates: its slope at 0.5 is 1/T.

    Shapes:
        two or more probabilities ``(B, C, *spatial)`` of equal shape, background included -> scalar float32.

    Raises:
        ValueError: when the temperature is out of its range, or fewer than two predictions are given.

    Source: MC-Net+ (MedIA 2022), Eq. 3; CAML, MICCAI 2023, Eq. 1, which cites the hard labels of CPS instead: see
        :class:`CrossPseudoLabelLoss`.

    Example:
        >>> p = torch.tensor([[[1.0], [0.0]]])
        >>> SharpenedConsistencyLoss()(p, p).item()
        0.0
    """

    def __init__(self, temperature: float = 0.1, detach_target: bool = False) -> None:
        super().__init__()
        if not 0.01 <= temperature <= 1:
            raise ValueError(f"temperature must be in [0.01, 1], got {temperature}")
        self.temperature, self.detach_target = float(temperature), bool(detach_target)

    def forward(self, *probabilities: Tensor) -> Tensor:
        _check_members(probabilities)
        p = [member.float() for member in probabilities]
        targets = [sharpen(member.detach() if self.detach_target else member, self.temperature) for member in p]
        return torch.stack(
            [nn.functional.mse_loss(p[i], targets[j]) for i in range(len(p)) for j in range(len(p)) if i != j]
        ).sum()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, detach_target={self.detach_target}"


class CrossPseudoLabelLoss(nn.Module):
    """Each network learns the hard labels of the others: the sum over ordered pairs of the cross-entropy.

    Shapes:
        two or more logits ``(B, C, *spatial)`` of equal shape -> scalar float32. Labels carry no gradient.

    Raises:
        ValueError: when fewer than two predictions are given.

    Source: Chen, Yuan, Zeng, Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021,
        Eq. 2.

    Example:
        >>> z = torch.tensor([[[30.0], [-30.0]]])
        >>> CrossPseudoLabelLoss()(z, z).item()
        0.0
    """

    def forward(self, *logits: Tensor) -> Tensor:
        return torch.stack(self._pairs(logits)).sum()

    def each(self, *logits: Tensor) -> list[Tensor]:
        """What each member learns of the others, in the order of the members; the sum of these is the loss."""
        return list(torch.stack(self._pairs(logits)).unflatten(0, (len(logits), -1)).sum(1))

    @staticmethod
    def _pairs(logits: Sequence[Tensor]) -> list[Tensor]:
        _check_members(logits)
        z = [member.float() for member in logits]
        labels = [member.detach().argmax(1) for member in z]
        return [nn.functional.cross_entropy(z[i], labels[j]) for i in range(len(z)) for j in range(len(z)) if i != j]


def _check_members(members: Sequence[Tensor]) -> None:
    if len(members) < 2 or any(member.shape != members[0].shape for member in members):
        shapes = [tuple(member.shape) for member in members]
        raise ValueError(f"predictions must be two or more tensors of equal shape, got {shapes}")

"""Consistency of outputs at several scales, rectified by their uncertainty (URPC)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PyramidConsistencyLoss(nn.Module):
    r"""Each output is pulled to the mean of all, less where it is far from it, and that distance is small itself.

    .. math:: \bar p = \frac1S \sum_s p_s, \qquad
        D_s = \sum_c \bar p_c \left(\log \bar p_c - \log p_{s,c}\right), \qquad
        L = \frac1S \sum_s \left[ \frac{\overline{(\bar p - p_s)^2 e^{-D_s}}}{\overline{e^{-D_s}} + 10^{-8}}
        + \overline{D_s} \right]

    The mean of the first numerator is over images, classes and voxels, the others over images and voxels. Gradient
    reaches :math:`\bar p` and the weights too. Logarithms are taken of logits, in float32: certain predictions stay
    finite, where :math:`\log p` of half precision would not.

    Shapes:
        two or more logits ``(B, C, *spatial)`` of equal shape, any float dtype -> scalar float32; 0 without images.

    Raises:
        ValueError: when fewer than two outputs are given, or shapes differ.

    Source: Luo et al., "Efficient Semi-supervised Gross Target Volume of Nasopharyngeal Carcinoma Segmentation via
        Uncertainty Rectified Pyramid Consistency", MICCAI 2021, Eq. 2-6.

    Example:
        >>> z = torch.tensor([[[90.0], [-90.0]]])
        >>> PyramidConsistencyLoss()(z, z).item(), bool(PyramidConsistencyLoss()(z, -z) > 30)
        (0.0, True)
    """

    def forward(self, *logits: Tensor) -> Tensor:
        if not len(logits[0]):
            return torch.stack([z.float().sum() for z in logits]).sum()
        return torch.stack(self.per_output(*logits)).mean()

    def per_output(self, *logits: Tensor) -> list[Tensor]:
        """The bracket of each output, of which the loss is the mean; at least one image."""
        log_p, log_mean = self._logarithms(logits)
        mean = log_mean.exp()
        terms = []
        for member in log_p:
            distance = (mean * (log_mean - member)).sum(1, keepdim=True)
            weight = (-distance).exp()
            squares = ((mean - member.exp()).square() * weight).mean()
            terms.append(squares / (weight.mean() + 1e-8) + distance.mean())
        return terms

    def divergences(self, *logits: Tensor) -> list[Tensor]:
        """:math:`D_s` of each output, ``(B, 1, *spatial)`` float32, in nats."""
        log_p, log_mean = self._logarithms(logits)
        return [(log_mean.exp() * (log_mean - member)).sum(1, keepdim=True) for member in log_p]

    @staticmethod
    def _logarithms(logits: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """:math:`\\log p_s` and :math:`\\log \\bar p`, finite however certain the outputs are."""
        if len(logits) < 2 or any(z.shape != logits[0].shape for z in logits):
            raise ValueError(
                f"outputs must be two or more tensors of equal shape, got {[tuple(z.shape) for z in logits]}"
            )
        log_p = [z.float().log_softmax(1) for z in logits]
        return log_p, torch.logsumexp(torch.stack(log_p), 0) - math.log(len(log_p))

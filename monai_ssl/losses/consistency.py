"""Consistency of two predictions."""

from __future__ import annotations

from torch import Tensor, nn


class MaskedMSELoss(nn.Module):
    r"""Mean squared difference over the voxels that a mask selects.

    .. math:: L = \frac{\sum_v M_v \sum_c (p_{vc} - q_{vc})^2}{C \sum_v M_v + 10^{-16}}

    An empty mask gives 0. What is not finite is never hidden by the mask: the result is then NaN.

    Args:
        channels: :math:`C` of the divisor; None: as many as the prediction has.

    Shapes:
        prediction and target ``(B, C, *spatial)``, any float dtype, mask ``(B, 1, *spatial)`` bool or in [0, 1], or
        None for all voxels -> scalar float32.

    Raises:
        ValueError: when the shapes do not fit, or ``channels`` is below 1.

    Source: UA-MT (Yu et al., MICCAI 2019), Eq. 2, whose code divides by 2 times the mask, also with more classes:
        ``channels=2``.

    Example:
        >>> import torch
        >>> p, q = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
        >>> mask = torch.tensor([[[True, True, False, False]]])
        >>> MaskedMSELoss()(p, q, mask).item(), MaskedMSELoss()(p, q, mask & False).item()
        (1.0, 0.0)
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be >= 1 or None, got {channels}")
        self.channels = channels

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction and target must have the same shape, got {tuple(prediction.shape)} and "
                f"{tuple(target.shape)}"
            )
        channels = self.channels or prediction.shape[1]
        if mask is None:
            return prediction.shape[1] / channels * nn.functional.mse_loss(prediction.float(), target.float())
        if mask.shape != (len(prediction), 1, *prediction.shape[2:]):
            raise ValueError(
                f"mask must have one channel and the sides of the prediction {tuple(prediction.shape)}, got shape "
                f"{tuple(mask.shape)}"
            )
        difference = (prediction.float() - target.float()).square()
        weight = mask.float()
        return (weight * difference).sum() / (channels * weight.sum() + 1e-16)

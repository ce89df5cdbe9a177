"""Supervision, put together from MONAI's own losses."""

from __future__ import annotations

from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn


def foreground_dice_loss(squared: bool = True, pooled: bool = True) -> DiceLoss:
    """Soft Dice over the foreground classes of softmax logits, as the V-Net code bases use it.

    For two classes with logits ``[0, z]`` this is the Dice of ``sigmoid(z)``.

    Args:
        squared: squared probabilities in the denominator (released code) or plain sums (DTC's text).
        pooled: sums over all images of the batch (released code) or Dice per image, then the mean.

    Returns:
        ``monai.losses.DiceLoss``; logits ``(B, C, *spatial)``, label ``(B, 1, *spatial)`` -> scalar in [0, 1].
    """
    return DiceLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        squared_pred=squared,
        batch=pooled,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )


class HalfDiceCELoss(nn.Module):
    """``0.5 * (cross-entropy + Dice)``: the supervised loss of the UA-MT family of code bases.

    Cross-entropy is the voxel mean over all classes, Dice is over the foreground, pooled over the batch, with squared
    denominator and epsilon 1e-5. A thin face of :class:`monai.losses.DiceCELoss`.

    Shapes:
        logits ``(B, C, *spatial)`` float, label ``(B, 1, *spatial)`` integer-valued in [0, C) -> scalar float32.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[20.0, -20.0]], [[-20.0, 20.0]]]).permute(1, 0, 2)
        >>> round(HalfDiceCELoss()(logits, torch.tensor([[[0, 1]]])).item(), 4)
        0.0
    """

    def __init__(self, include_background: bool = False) -> None:
        super().__init__()
        self.loss = DiceCELoss(
            include_background=include_background,
            to_onehot_y=True,
            softmax=True,
            squared_pred=True,
            batch=True,
            smooth_nr=1e-5,
            smooth_dr=1e-5,
            lambda_dice=0.5,
            lambda_ce=0.5,
        )

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.loss(logits.float(), label)

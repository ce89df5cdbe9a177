"""Supervision: Dice and cross-entropy as the V-Net code bases use them."""

from __future__ import annotations

from monai.networks import one_hot
from torch import Tensor, nn


class ForegroundDiceLoss(nn.Module):
    r"""Soft Dice loss over the foreground classes, mean over them.

    .. math:: L = 1 - \frac{2 \sum p\,y + \epsilon}{\sum p^2 + \sum y^2 + \epsilon}, \quad \epsilon = 10^{-5}

    For two classes with logits ``[0, z]`` this is the Dice of ``sigmoid(z)``. ``monai.losses.DiceLoss`` with
    ``squared_pred=True`` is the same in exact arithmetic, but takes the three sums from float32 vector norms and their
    differences: 1e-4 off for two patches of 112 x 112 x 80, where these sums are 1e-8 off.

    Args:
        squared: squared probabilities in the denominator (released code) or plain sums (DTC's text).
        pooled: sums over all images of the batch (released code) or Dice per image, then the mean.
        include_background: class 0 counts as well.
        activation: ``"softmax"``, ``"sigmoid"`` for each channel by itself (TAC), or ``"none"``: probabilities are
            given instead of logits.
        reduction: ``"mean"`` or ``"sum"`` over the classes.
        smooth: :math:`\epsilon > 0`; the MC-Net family uses :math:`10^{-8}`.

    Shapes:
        logits ``(B, C, *spatial)`` float, label ``(B, 1, *spatial)`` integer-valued in [0, C) -> scalar float32 in
        [0, 1] (with ``"sum"``: up to the number of classes).

    Raises:
        ValueError: for an unknown option, or ``smooth`` that is not positive.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[20.0, -20.0]], [[-20.0, 20.0]]]).permute(1, 0, 2)
        >>> round(ForegroundDiceLoss()(logits, torch.tensor([[[0, 1]]])).item(), 4)
        0.0
    """

    def __init__(
        self,
        squared: bool = True,
        pooled: bool = True,
        include_background: bool = False,
        activation: str = "softmax",
        reduction: str = "mean",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if activation not in ("softmax", "sigmoid", "none"):
            raise ValueError(f'activation must be "softmax", "sigmoid" or "none", got {activation!r}')
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        if not smooth > 0:
            raise ValueError(f"smooth must be > 0, got {smooth}")
        self.squared, self.pooled, self.first = squared, pooled, 0 if include_background else 1
        self.activation, self.reduction, self.smooth = activation, reduction, float(smooth)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        p = logits.float()
        if self.activation != "none":
            p = p.softmax(1) if self.activation == "softmax" else p.sigmoid()
        p = p[:, self.first :]
        y = one_hot(label, logits.shape[1], dtype=p.dtype)[:, self.first :]
        axes = [0] * self.pooled + list(range(2, p.dim()))
        size = (p * p if self.squared else p).sum(axes) + y.sum(axes)
        dice = (2.0 * (p * y).sum(axes) + self.smooth) / (size + self.smooth)
        if self.reduction == "sum":  # over the classes; Dice per image is still averaged over the images
            return (1.0 - dice).sum(-1).mean()
        return 1.0 - dice.mean()

    def extra_repr(self) -> str:
        return (
            f"squared={self.squared}, pooled={self.pooled}, include_background={self.first == 0}, "
            f"activation={self.activation}, reduction={self.reduction}, smooth={self.smooth}"
        )


class HalfDiceCELoss(nn.Module):
    """``0.5 * (cross-entropy + Dice)``: the supervised loss of the UA-MT family of code bases.

    Cross-entropy is the voxel mean over all classes; Dice is :class:`ForegroundDiceLoss`, pooled over the batch, with
    squared denominator.

    Args:
        include_background: of the Dice term.

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
        self.dice = ForegroundDiceLoss(include_background=include_background)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        cross_entropy = nn.functional.cross_entropy(logits.float(), label[:, 0].long())
        return 0.5 * (cross_entropy + self.dice(logits, label))

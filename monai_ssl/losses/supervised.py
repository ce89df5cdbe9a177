"""Supervision: Dice and cross-entropy as the V-Net code bases use them.

Voxels labeled :data:`IGNORE_LABEL` take no part in any of these losses: value and gradient are those of the loss over
the other voxels. Where every voxel is ignored, a loss is 0 and has no gradient. Labels without such voxels give the
same bits as if the value did not exist.
"""

from __future__ import annotations

import torch
from monai.networks import one_hot
from torch import Tensor, nn

from monai_ssl.labels import IGNORE_LABEL, ignored_voxels


def supervised_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy, mean over the voxels that are not ignored.

    Args:
        logits: ``(B, C, *spatial)``.
        label: ``(B, 1, *spatial)`` integer-valued in [0, C), or :data:`IGNORE_LABEL`.

    Returns:
        scalar float32.

    Example:
        >>> logits = torch.tensor([[[0.0, 9.0], [0.0, 0.0]]])
        >>> round(supervised_cross_entropy(logits, torch.tensor([[[1, IGNORE_LABEL]]])).item(), 4)  # ln 2
        0.6931
    """
    loss = nn.functional.cross_entropy(logits.float(), label[:, 0].long(), ignore_index=IGNORE_LABEL)
    ignored = ignored_voxels(label)
    # the mean over no voxel is NaN
    return loss if ignored is None else torch.where(ignored.all(), torch.zeros_like(loss), loss)


def supervised_mse(prediction: Tensor, target: Tensor, label: Tensor) -> Tensor:
    """Squared error, mean over the channels and the voxels that are not ignored.

    Args:
        prediction: ``(B, C, *spatial)`` float32, for example signed distances.
        target: same shape; its values at ignored voxels do not matter. NaN in an image with ignored voxels is unknown,
            too, and left out; elsewhere it is the released code's, and the loss is NaN.
        label: ``(B, 1, *spatial)``, which tells the ignored voxels.

    Returns:
        scalar float32.

    Example:
        >>> d, label = torch.tensor([[[1.0, 5.0]]]), torch.tensor([[[1, IGNORE_LABEL]]])
        >>> supervised_mse(d, torch.zeros(1, 1, 2), label).item()
        1.0
    """
    ignored = ignored_voxels(label)
    if ignored is None:
        return nn.functional.mse_loss(prediction, target)
    partly = ignored.flatten(1).any(1).reshape(-1, *[1] * (target.dim() - 1))
    ignored = ignored | (target.isnan() & partly)
    share = ignored.numel() / (~ignored).sum().clamp(min=1)  # exactly 1 where nothing is ignored
    return share * nn.functional.mse_loss(prediction.masked_fill(ignored, 0.0), target.masked_fill(ignored, 0.0))


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
        activation: ``"softmax"``, or ``"sigmoid"`` for each channel by itself (TAC).
        reduction: ``"mean"`` or ``"sum"`` over the classes.
        smooth: :math:`\epsilon > 0`; the MC-Net family uses :math:`10^{-8}`.
        halved: without the factor 2, and with :math:`\epsilon` in the denominator only, as in MC-Net's released 2D
            code: a perfect prediction costs 0.5, and a class that neither label nor prediction shows costs 1.

    Shapes:
        logits ``(B, C, *spatial)`` float, label ``(B, 1, *spatial)`` integer-valued in [0, C), or
        :data:`~monai_ssl.losses.IGNORE_LABEL` for a voxel that enters no sum -> scalar float32 in [0, 1] (with
        ``"sum"``: up to the number of classes). :meth:`of_probabilities` takes the probabilities of the classes that
        are averaged instead of logits.

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
        halved: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(f'activation must be "softmax" or "sigmoid", got {activation!r}')
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        if not smooth > 0:
            raise ValueError(f"smooth must be > 0, got {smooth}")
        self.squared, self.pooled, self.first = squared, pooled, 0 if include_background else 1
        self.activation, self.reduction, self.smooth = activation, reduction, float(smooth)
        self.halved = bool(halved)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        logits = logits.float()
        p = logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()
        return self.of_probabilities(p[:, self.first :], label)

    def of_probabilities(self, p: Tensor, label: Tensor) -> Tensor:
        """The loss of probabilities ``(B, C - 1, *spatial)``, or ``(B, C, *spatial)`` with background."""
        ignored = ignored_voxels(label)
        if ignored is not None:
            p, label = p.masked_fill(ignored, 0.0), label.masked_fill(ignored, 0)
        y = one_hot(label, p.shape[1] + self.first, dtype=p.dtype)[:, self.first :]
        if ignored is not None:  # with background, its channel has just been set there
            y = y.masked_fill(ignored, 0.0)
        axes = [0] * self.pooled + list(range(2, p.dim()))
        size = (p * p if self.squared else p).sum(axes) + y.sum(axes)
        overlap = (p * y).sum(axes)
        dice = (overlap if self.halved else 2.0 * overlap + self.smooth) / (size + self.smooth)
        if self.halved and ignored is not None:  # nothing to learn from costs nothing
            dice = torch.where(ignored.all(), torch.ones_like(dice), dice)
        if self.reduction == "sum":  # over the classes; Dice per image is still averaged over the images
            return (1.0 - dice).sum(-1).mean()
        return 1.0 - dice.mean()

    def extra_repr(self) -> str:
        return (
            f"squared={self.squared}, pooled={self.pooled}, include_background={self.first == 0}, "
            f"activation={self.activation}, reduction={self.reduction}, smooth={self.smooth}, halved={self.halved}"
        )


class HalfDiceCELoss(nn.Module):
    """``0.5 * (cross-entropy + Dice)``: the supervised loss of the UA-MT family of code bases.

    Cross-entropy is the voxel mean over all classes; Dice is :class:`ForegroundDiceLoss`, pooled over the batch, with
    squared denominator.

    Args:
        include_background: of the Dice term.

    Shapes:
        logits ``(B, C, *spatial)`` float, label ``(B, 1, *spatial)`` integer-valued in [0, C), or
        :data:`~monai_ssl.losses.IGNORE_LABEL` -> scalar float32.

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
        return 0.5 * (supervised_cross_entropy(logits, label) + self.dice(logits, label))

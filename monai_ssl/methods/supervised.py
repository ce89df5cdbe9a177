"""Training from labels only: lower bound (the labeled cases) and upper bound (all cases labeled)."""

from __future__ import annotations

from torch import Tensor, nn

from monai_ssl.losses import ForegroundDiceLoss, HalfDiceCELoss
from monai_ssl.methods.base import Batch, SemiSupervisedMethod


class Supervised(SemiSupervisedMethod):
    """Learns from the labeled batch; the unlabeled batch, if any, is ignored.

    Args:
        network: image -> logits with background.
        loss: logits ``(B, n_classes, *spatial)``, label ``(B, 1, *spatial)`` -> scalar. Default:
            :class:`monai_ssl.losses.HalfDiceCELoss`, the supervised loss of the UA-MT family. With a loss that is not
            of this package, a label with ``IGNORE_LABEL`` is refused: nobody knows what that loss does with it.
        unsupervised_weight: accepted for uniformity, without effect.

    Loss terms: ``supervised``.

    Example:
        >>> from monai_ssl.networks import VNet
        >>> method = Supervised(VNet(spatial_dims=2, base_channels=2))
        >>> import torch
        >>> batch = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(batch, None))
        ['supervised']
    """

    uses_unlabeled = False

    def __init__(self, network: nn.Module, loss: nn.Module | None = None, unsupervised_weight: float = 1.0) -> None:
        super().__init__(network, unsupervised_weight)
        self.loss = HalfDiceCELoss() if loss is None else loss
        self.honors_ignore_label = isinstance(self.loss, (HalfDiceCELoss, ForegroundDiceLoss))

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        return {"supervised": self.loss(self.network(labeled["image"]).float(), labeled["label"])}

"""What MC-Net and URPC share: a network with several outputs, of which the first one is deployed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_ssl.methods.base import Batch, SemiSupervisedMethod, joint_images


class SeveralOutputs(SemiSupervisedMethod):
    """A method whose network predicts several times in one pass over labeled and unlabeled images.

    Args:
        network: offers ``outputs(image)``, logits ``(B, n_classes, *spatial)``, the deployed ones first.
        unsupervised_weight: see :class:`~monai_ssl.methods.base.SemiSupervisedMethod`.
        what: of the outputs, for the message of the error.
        cure: what to do about a network without them, likewise.

    Raises:
        TypeError: when the network has no ``outputs`` method.
        ValueError: when ``unsupervised_weight`` is negative.
    """

    honors_ignore_label = True

    def __init__(self, network: nn.Module, unsupervised_weight: float, what: str, cure: str) -> None:
        super().__init__(network, unsupervised_weight)
        if not hasattr(network, "outputs"):
            raise TypeError(f"network must offer outputs(image), {what}, got {type(network).__name__}; {cure}")

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        return self.terms(self.network.outputs(joint_images(labeled, unlabeled)), labeled)  # type: ignore[operator]

    @abstractmethod
    def terms(self, outputs: Sequence[Tensor], labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from all outputs; the labeled rows come first.

        Args:
            outputs: two or more of ``(B_l + B_u, n_classes, *spatial)``.
            labeled: batch with ``label``.
        """

    def second_opinion(self, image: Tensor) -> Tensor:
        """Mean class probabilities of the outputs that are not deployed."""
        others = self.network.outputs(image)[1:]  # type: ignore[operator]
        return torch.stack([logits.float().softmax(1) for logits in others]).mean(0)

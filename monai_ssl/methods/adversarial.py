"""What DAN and SASSNet share: a discriminator tells maps of labeled images from maps of unlabeled ones."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from monai_ssl.methods.base import Batch, SemiSupervisedMethod, joint_images
from monai_ssl.networks.modes import evaluating

NAME = "discriminator"


class AdversarialMethod(SemiSupervisedMethod):
    r"""A method whose maps of unlabeled images shall pass for maps of labeled ones.

    The map :math:`m` of an image is whatever :meth:`judged_map` takes from the network, probabilities or signed
    distances. The method minimizes :math:`\ell_{CE}(D(m_u, x_u), 1)`, with D in evaluation mode; after the network's
    step D learns :math:`\ell_{CE}(D(m, x), \cdot)` with class 1 for labeled and 0 for unlabeled images, the network in
    evaluation mode, without gradient and without a trace in its batch statistics.

    Args:
        network: what the subclass deploys.
        discriminator: map and image -> logits ``(B, 2)``, for example :class:`~monai_ssl.networks.Discriminator`.
        discriminator_learning_rate: constant rate of its Adam, > 0.
        unsupervised_weight: factor on the adversarial term; 0: nobody asks the discriminator, which does not learn.

    Raises:
        ValueError: when ``discriminator_learning_rate`` is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        discriminator: nn.Module,
        discriminator_learning_rate: float = 1e-4,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        if not discriminator_learning_rate > 0:
            raise ValueError(f"discriminator_learning_rate must be > 0, got {discriminator_learning_rate}")
        self.discriminator_learning_rate = float(discriminator_learning_rate)
        self.add_adversary(NAME, discriminator)

    @abstractmethod
    def judged_map(self, image: Tensor) -> Tensor:
        """The map that the discriminator sees of images ``(B, C_in, *spatial)``, float32."""

    def passes_for_labeled(self, judged: Tensor, image: Tensor) -> Tensor:
        """Cross-entropy of the discriminator's verdict with "labeled", a scalar; gradient reaches ``judged``."""
        with evaluating(self.adversaries[NAME]) as discriminator:
            verdict = discriminator(judged, image).float()
        return nn.functional.cross_entropy(verdict, torch.ones(len(verdict), dtype=torch.long, device=verdict.device))

    def adversary_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        parameters = self.adversaries[NAME].parameters()
        return {NAME: torch.optim.Adam(parameters, self.discriminator_learning_rate, betas=(0.9, 0.99))}

    def adversary_terms(self, name: str, labeled: Batch, unlabeled: Batch | None) -> dict[str, Tensor]:
        if unlabeled is None or self.unsupervised_weight == 0:
            return {}
        image = joint_images(labeled, unlabeled)
        with torch.no_grad(), evaluating(self.network):
            judged = self.judged_map(image)
        verdict = self.adversaries[name](judged, image).float()
        labeled_or_not = torch.zeros(len(image), dtype=torch.long, device=image.device)
        labeled_or_not[: len(labeled["image"])] = 1
        return {"cross_entropy": nn.functional.cross_entropy(verdict, labeled_or_not)}

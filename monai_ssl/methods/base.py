"""The contract of a semi-supervised method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


class SemiSupervisedMethod(nn.Module, ABC):
    """A method owns its networks and turns two batches into named loss terms.

    A subclass implements :meth:`forward`; the trainer does the rest. Everything a step computes (teacher passes,
    adversarial directions, reads of a memory) happens inside ``forward``, so wrapping a method in
    ``DistributedDataParallel`` just works. Whatever happens after the optimizer's step goes into :meth:`after_step`.
    All state that changes belongs into ``state_dict()``: then resuming is exact by construction.

    Args:
        network: the module that is deployed: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``,
            background included.
        unsupervised_weight: factor on every unsupervised term, >= 0. At 0 the method learns from labels alone while all
            else that shapes the network stays, batches and batch statistics: its *matched floor*, the only fair
            reference. Passes that leave no trace in the networks (teachers, attacks, memories) are left out.

    Attributes:
        network: the deployed network.
        iteration: optimizer steps made so far (ramp-ups and warm-ups depend on it).

    Raises:
        ValueError: when ``unsupervised_weight`` is negative.

    Example:
        >>> class EntropyMinimization(SemiSupervisedMethod):
        ...     def forward(self, labeled, unlabeled):
        ...         supervised = nn.functional.cross_entropy(self.network(labeled["image"]), labeled["label"][:, 0])
        ...         if unlabeled is None:
        ...             return {"supervised": supervised}
        ...         p = self.network(unlabeled["image"]).softmax(1)
        ...         entropy = -(p * (p + 1e-6).log()).sum(1).mean()
        ...         return {"supervised": supervised, "entropy": self.unsupervised_weight * 0.1 * entropy}
    """

    def __init__(self, network: nn.Module, unsupervised_weight: float = 1.0) -> None:
        super().__init__()
        if not unsupervised_weight >= 0:
            raise ValueError(f"unsupervised_weight must be >= 0, got {unsupervised_weight}")
        self.network = network
        self.unsupervised_weight = float(unsupervised_weight)
        self.iteration = 0

    @abstractmethod
    def forward(self, labeled: Batch, unlabeled: Batch | None) -> dict[str, Tensor]:
        """Named, already weighted loss terms; the trainer sums and logs them.

        Args:
            labeled: ``image`` (B_l, C_in, *spatial) float32, ``label`` (B_l, 1, *spatial) int64, ``index`` (B_l,)
                int64 stable case index, ``name`` list of case names, and what the config's transforms added.
            unlabeled: ``image`` (B_u, C_in, *spatial) float32, ``name``; None when there are no unlabeled cases.

        Returns:
            scalar tensors; their sum is minimized.
        """

    def after_step(self) -> None:
        """Called once after every optimizer step: EMA and memory updates. Overrides call ``super().after_step()``."""
        self.iteration += 1

    def second_opinion(self, image: Tensor) -> Tensor | None:
        """What the method knows of an image beside its deployed network: another head, a teacher, a second network.

        Where it contradicts the network, a label would teach most: active learning ranks unlabeled scans by it, see
        :func:`monai_ssl.deploy.disagreement.disagreement`. Called in eval mode, without gradients.

        Args:
            image: ``(B, C_in, *spatial)``.

        Returns:
            class probabilities ``(B, n_classes, *spatial)``; None where the method has none (the default), and the
            network's own uncertainty is taken instead.
        """
        return None

    def get_extra_state(self) -> dict[str, Any]:
        """State beside parameters and buffers: plain containers and tensors only (read with ``weights_only``)."""
        return {"iteration": self.iteration}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.iteration = int(state["iteration"])


def joint_images(labeled: Batch, unlabeled: Batch | None) -> Tensor:
    """Labeled rows first, then unlabeled rows, for methods that need joint batch statistics."""
    if unlabeled is None:
        return labeled["image"]
    return torch.cat([labeled["image"], unlabeled["image"]])


def checked_ramp_up(ramp_up: Any) -> Any:
    """``ramp_up`` itself, a function of the step's number or None; else a TypeError that says how to hand one over."""
    if ramp_up is None or callable(ramp_up):
        return ramp_up
    raise TypeError(
        f"ramp_up must be a function of the step's number, got {ramp_up!r}; on a command line write it in single "
        "quotes, in which the shell leaves the $ alone: '$monai_ssl.losses.SigmoidRampUp(3000, 1.0)'"
    )

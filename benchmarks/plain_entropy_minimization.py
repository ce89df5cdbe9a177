"""The yardstick of entropy minimization's speed: the released loop read plainly, written anew.

One network, one pass. It shares no code with the package.
"""

from __future__ import annotations

import math

import torch
from plain_mean_teacher import SegmentationVNet, sgd, supervised_loss, weight
from torch import Tensor

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}


class PlainLoop:
    """One network, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.network = SegmentationVNet()
        self.optimizer = sgd(self.network.parameters())
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        self.network.train()
        logits = self.network(image)
        soft = torch.softmax(logits, dim=1)
        entropy = (-(soft * torch.log(soft + 1e-6)).sum(1) / math.log(2)).mean()
        loss = supervised_loss(logits[: len(label)], label) + weight(self.iteration) * entropy
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        return loss.item()

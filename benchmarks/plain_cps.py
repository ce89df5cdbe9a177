"""The yardstick of cross pseudo supervision's speed: the released loop read plainly, written anew.

Two networks, one pass of each, one backward pass, two optimizers. It shares no code with the package.
"""

from __future__ import annotations

import torch
from plain_mean_teacher import SegmentationVNet, sgd, supervised_loss, weight
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}


class PlainLoop:
    """Two networks, an SGD for each; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.networks = [SegmentationVNet(), SegmentationVNet()]
        for network, draw in zip(self.networks, (nn.init.kaiming_normal_, nn.init.xavier_normal_), strict=True):
            for module in network.modules():
                if isinstance(module, nn.Conv3d):
                    draw(module.weight)
        self.optimizers = [sgd(network.parameters()) for network in self.networks]
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        for network in self.networks:
            network.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows = len(label)
        for network in self.networks:
            network.train()
        logits1, logits2 = (network(image) for network in self.networks)
        soft1, soft2 = torch.softmax(logits1, dim=1), torch.softmax(logits2, dim=1)
        labels1 = torch.argmax(soft1[rows:].detach(), dim=1)
        labels2 = torch.argmax(soft2[rows:].detach(), dim=1)
        pseudo1 = nn.functional.cross_entropy(logits1[rows:], labels2)
        pseudo2 = nn.functional.cross_entropy(logits2[rows:], labels1)
        loss = supervised_loss(logits1[:rows], label) + supervised_loss(logits2[:rows], label)
        loss = loss + weight(self.iteration) * (pseudo1 + pseudo2)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.iteration += 1
        return loss.item()

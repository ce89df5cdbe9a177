"""The yardstick of AD-MT's speed: the loop read plainly from its description, in the turn of the first teacher.

The strong view, with changed gray values, comes with the batch. It shares no code with the package.
"""

from __future__ import annotations

import math

import torch
from plain_mean_teacher import SegmentationVNet, sgd, supervised_loss
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}

COPIES, DECAY, THRESHOLD, WEIGHT = 40, 0.99, 0.8, 2.0


class PlainLoop:
    """Student, two teachers, one SGD; :meth:`step` is one iteration."""

    def __init__(self) -> None:
        self.network, self.teacher, self.other = (SegmentationVNet() for _ in range(3))
        for network in (self.teacher, self.other):
            for parameter in network.parameters():
                parameter.detach_()
        self.optimizer = sgd(self.network.parameters())
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        for network in (self.network, self.teacher, self.other):
            network.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows = len(label)
        weak = image[rows:]
        strong = weak.clone()
        self.network.train()
        self.teacher.train()
        self.other.eval()
        logits = self.network(torch.cat([image, strong]))
        of_weak, of_strong = logits[rows : len(image)], logits[len(image) :]
        with torch.no_grad():
            p1, p2 = torch.softmax(self.teacher(weak), dim=1), torch.softmax(self.other(weak), dim=1)
            h1, h2 = (-torch.sum(p * torch.log2(p + 1e-10), dim=1, keepdim=True) for p in (p1, p2))
            weight = torch.exp(-h1) / (torch.exp(-h1) + torch.exp(-h2))
            confidence, pseudo = torch.max(weight * p1 + (1 - weight) * p2, dim=1)
            conflict = torch.argmax(p1, dim=1) != torch.argmax(p2, dim=1)
            own_confidence, own = torch.max(torch.softmax(of_weak, dim=1), dim=1)
            better = conflict & (own != pseudo) & (own_confidence > confidence)
            pseudo = torch.where(better, own, pseudo)
            kept = torch.where(better, own_confidence, confidence) >= THRESHOLD
        entropy = nn.functional.cross_entropy(of_strong, pseudo, reduction="none")
        consistency = (entropy * kept).sum() / kept.sum().clamp(min=1)
        level = min(self.iteration // 150, 40)
        loss = supervised_loss(logits[:rows], label) + WEIGHT * math.exp(-5 * (1 - level / 40) ** 2) * consistency
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        step = self.iteration // 2
        alpha = 0.0 if step < COPIES else min(1 - 1 / (step - COPIES + 1), DECAY)
        mine, theirs = self.teacher.state_dict(), self.network.state_dict()
        for name, value in mine.items():
            value.copy_(alpha * value + (1 - alpha) * theirs[name])
        self.iteration += 1
        return loss.item()

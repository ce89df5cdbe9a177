"""The yardstick of mean teacher's speed: the loop that segmentation papers compare with, read plainly, written anew.

Default memory layout, float32; the teacher is averaged parameter by parameter. It shares no code with the package. What
the loops of other comparison methods have in common with it stands here, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from plain_dtc import PlainVNet
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}

ITERATIONS_PER_LEVEL, LEVELS, WEIGHT, DECAY = 150, 40, 0.1, 0.99


class SegmentationVNet(PlainVNet):
    """The V-Net with two logits and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.segmentation = nn.Conv3d(16, 2, 1)
        del self.distance

    def forward(self, x: Tensor) -> Tensor:
        return self.segmentation(self.features(x))


def noise(image: Tensor) -> Tensor:
    return torch.clamp(torch.randn_like(image) * 0.1, -0.2, 0.2)


def weight(iteration: int) -> float:
    """Of the unsupervised term."""
    level = min(iteration // ITERATIONS_PER_LEVEL, LEVELS)
    return WEIGHT * math.exp(-5 * (1 - level / LEVELS) ** 2)


def supervised_loss(logits: Tensor, label: Tensor, first_class: int = 0) -> Tensor:
    """Half of cross-entropy and the mean Dice of the classes from ``first_class`` on."""
    soft, dice = torch.softmax(logits, dim=1), 0.0
    for c in range(first_class, logits.shape[1]):
        p, y = soft[:, c], (label == c).float()
        dice += 1 - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + (y * y).sum() + 1e-5)
    return 0.5 * (nn.functional.cross_entropy(logits, label) + dice / (logits.shape[1] - first_class))


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)


class PlainLoop:
    """Student, teacher, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.network, self.teacher = SegmentationVNet(), SegmentationVNet()
        for parameter in self.teacher.parameters():
            parameter.detach_()
        self.optimizer = sgd(self.network.parameters())
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        self.teacher.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        self.network.train()
        self.teacher.train()
        loss = self.loss(image, label)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        alpha = min(1 - 1 / (self.iteration + 1), DECAY)
        for ours, theirs in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            ours.data.mul_(alpha).add_(theirs.data, alpha=1 - alpha)
        self.iteration += 1
        return loss.item()

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        rows = len(label)
        unlabeled = image[rows:]
        logits = self.network(image)
        soft = torch.softmax(logits, dim=1)
        with torch.no_grad():
            target = torch.softmax(self.teacher(unlabeled + noise(unlabeled)), dim=1)
        consistency = ((soft[rows:] - target) ** 2).mean()
        return supervised_loss(logits[:rows], label) + weight(self.iteration) * consistency

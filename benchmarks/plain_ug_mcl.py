"""The yardstick of UG-MCL's speed: the released loop with the paper's network, read plainly, written anew.

Default memory layout, float32, distance maps by SciPy inside the step. One step makes one pass of the student, one of
the teacher, and four of the teacher over the batch twice; the teacher is averaged parameter by parameter. It shares no
code with the package.
"""

from __future__ import annotations

import math

import torch
from plain_dtc import PlainVNet, distance_map
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"bfloat16": 0.6}, "memory": {"bfloat16": 0.6}}

ITERATIONS, PASSES, BETA, SLOPE = 6000, 8, 0.75, 1500.0


class TwoClassVNet(PlainVNet):
    """The V-Net with two logits and a distance head (tanh)."""

    def __init__(self) -> None:
        super().__init__()
        self.segmentation = nn.Conv3d(16, 2, 1)


def noise(image: Tensor) -> Tensor:
    return torch.clamp(torch.randn_like(image) * 0.1, -0.2, 0.2)


class PlainLoop:
    """Student, teacher, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.network, self.teacher = TwoClassVNet(), TwoClassVNet()
        for parameter in self.teacher.parameters():
            parameter.detach_()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        self.teacher.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows, batch = len(label), len(image)
        self.network.train()
        self.teacher.train()
        distance, logits = self.network(image)
        soft = torch.softmax(logits, dim=1)
        with torch.no_grad():
            teacher_distance, teacher_logits = self.teacher(image + noise(image))
            twice = image.repeat(2, 1, 1, 1, 1)
            passes = torch.zeros((PASSES * batch, 2, *image.shape[2:]), device=image.device)
            for i in range(PASSES // 2):
                passes[2 * batch * i : 2 * batch * (i + 1)] = self.teacher(twice + noise(twice))[1]
            mean = torch.softmax(passes, dim=1).reshape(PASSES, batch, 2, *image.shape[2:]).mean(0)
            uncertainty = -(mean * torch.log(mean + 1e-6)).sum(1, keepdim=True)
            target = torch.from_numpy(distance_map(label.cpu().numpy())).float().to(image.device)
        ramp = math.exp(-5 * (1 - min(self.iteration / ITERATIONS, 1.0)) ** 2)
        mask = (uncertainty < (0.75 + 0.25 * ramp) * math.log(2)).float()
        p, y = soft[:rows, 1], (label == 1).float()
        dice = 1 - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + (y * y).sum() + 1e-5)
        supervised = (
            nn.functional.cross_entropy(logits[:rows], label) + dice + ((distance[:rows, 0] - target) ** 2).mean()
        )
        squares = (soft - torch.softmax(teacher_logits, dim=1)) ** 2
        intra = BETA * (mask * squares).sum() / (2 * mask.sum() + 1e-16)
        intra = intra + (1 - BETA) * (mask * (distance - teacher_distance) ** 2).sum() / (mask.sum() + 1e-16)
        cross = ((torch.sigmoid(-SLOPE * distance) - soft[:, 1:]) ** 2).mean()
        loss = supervised + 0.1 * ramp * (intra + cross)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        alpha = min(1 - 1 / (self.iteration + 1), 0.99)
        for ours, theirs in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            ours.data.mul_(alpha).add_(theirs.data, alpha=1 - alpha)
        self.iteration += 1
        return loss.item()

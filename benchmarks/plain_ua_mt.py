"""The yardstick of UA-MT's speed: its released loop read plainly, written anew.

One step makes one pass of the student, one of the teacher over the unlabeled images, and four over these images twice.
It shares no code with the package.
"""

from __future__ import annotations

import math

import torch
from plain_mean_teacher import PlainLoop as MeanTeacherLoop
from plain_mean_teacher import noise, supervised_loss, weight
from torch import Tensor

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}

ITERATIONS, PASSES = 6000, 8


class PlainLoop(MeanTeacherLoop):
    """Student, teacher, one SGD; :meth:`step` is one iteration of the released loop."""

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        rows = len(label)
        unlabeled = image[rows:]
        batch = len(unlabeled)
        logits = self.network(image)
        soft = torch.softmax(logits, dim=1)
        with torch.no_grad():
            target = torch.softmax(self.teacher(unlabeled + noise(unlabeled)), dim=1)
            twice = unlabeled.repeat(2, 1, 1, 1, 1)
            passes = torch.zeros((PASSES * batch, 2, *image.shape[2:]), device=image.device)
            for i in range(PASSES // 2):
                passes[2 * batch * i : 2 * batch * (i + 1)] = self.teacher(twice + noise(twice))
            mean = torch.softmax(passes, dim=1).reshape(PASSES, batch, 2, *image.shape[2:]).mean(0)
            uncertainty = -(mean * torch.log(mean + 1e-6)).sum(1, keepdim=True)
        ramp = math.exp(-5 * (1 - min(self.iteration / ITERATIONS, 1.0)) ** 2)
        mask = (uncertainty < (0.75 + 0.25 * ramp) * math.log(2)).float()
        consistency = (mask * (soft[rows:] - target) ** 2).sum() / (2 * mask.sum() + 1e-16)
        return supervised_loss(logits[:rows], label, first_class=1) + weight(self.iteration) * consistency

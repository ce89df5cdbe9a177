"""The yardstick of TCSE's speed: the paper's step read plainly, with the loop of the mean teacher.

Default memory layout, float32; one image is transformed after the other. It shares no code with the package.
"""

from __future__ import annotations

import random

import torch
from plain_mean_teacher import PlainLoop as MeanTeacherLoop
from plain_mean_teacher import noise, supervised_loss, weight
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}


def transformed(x: Tensor, turns: int, flips: list[int], scale: float) -> Tensor:
    """One image ``(1, C, *spatial)``."""
    x = torch.flip(torch.rot90(x, turns, (2, 3)), flips)
    matrix = torch.cat([torch.eye(3, device=x.device) / scale, torch.zeros(3, 1, device=x.device)], dim=1)
    grid = nn.functional.affine_grid(matrix[None], list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


class PlainLoop(MeanTeacherLoop):
    """Student, teacher, one SGD; :meth:`step` is one iteration."""

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        rows = len(label)
        unlabeled = image[rows:]
        turns = 1 if image.shape[2] == image.shape[3] else 2
        poses = [
            (turns * random.randrange(4 // turns), [axis for axis in (2, 3) if random.random() < 0.5],
             random.uniform(0.9, 1.1))
            for _ in unlabeled
        ]  # fmt: skip
        moved = torch.cat([transformed(x[None], *pose) for x, pose in zip(unlabeled, poses, strict=True)])
        with torch.no_grad():
            target = torch.softmax(self.teacher(moved + noise(moved)), dim=1)
            inside = torch.cat([shown(x, pose[2]) for x, pose in zip(unlabeled, poses, strict=True)])
        logits = self.network(image)
        soft = torch.softmax(logits[rows:], dim=1)
        found = torch.cat([transformed(p[None], *pose) for p, pose in zip(soft, poses, strict=True)])
        consistency = (inside * (found - target) ** 2).sum() / (2 * inside.sum())
        return supervised_loss(logits[:rows], label) + weight(self.iteration) * consistency


def shown(image: Tensor, scale: float) -> Tensor:
    """1 where a scaled image shows itself, 0 where it shows what lies beyond its edge."""
    inside = torch.ones(image.shape[1:], device=image.device)
    for axis, side in enumerate(image.shape[1:]):
        place = (torch.arange(side, device=image.device) + 0.5) * 2 / side - 1
        shape = [-1 if a == axis else 1 for a in range(3)]
        inside = inside * (place.abs() <= scale).float().view(shape)
    return inside[None, None]

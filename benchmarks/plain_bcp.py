"""The yardstick of BCP's speed: the second stage of the released loop read plainly, written anew.

Two mixtures, each with a pass of its own, the largest component of the teacher's labels by SciPy, the average
parameter by parameter. It shares no code with the package.
"""

from __future__ import annotations

import numpy as np
import torch
from plain_mean_teacher import SegmentationVNet, sgd
from scipy import ndimage
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}
OPTIONS = {"method#pretrain": 0}  # ours begins with the second stage, too

DECAY, PSEUDO = 0.99, 0.5


def largest(masks: np.ndarray) -> np.ndarray:
    """The largest component of each mask, 26 neighbors."""
    found = np.zeros_like(masks)
    for i, mask in enumerate(masks):
        parts, n = ndimage.label(mask, np.ones((3, 3, 3)))
        if n:
            found[i] = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return found


def masked_loss(logits: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """Half of Dice, of each image and class, and cross-entropy where ``mask`` is 1."""
    soft, dice = torch.softmax(logits, dim=1), []
    for c in range(logits.shape[1]):
        p, y = soft[:, c] * mask, (label == c).float() * mask
        sums = [x.flatten(1).sum(1) for x in (p * y, p, y)]
        dice.append(1 - (2 * sums[0] + 1e-5) / (sums[1] + sums[2] + 1e-5))
    entropy = nn.functional.cross_entropy(logits, label, reduction="none") * mask
    return 0.5 * (torch.stack(dice).mean() + entropy.sum() / (mask.expand_as(entropy).sum() + 1e-16))


class PlainLoop:
    """Student, teacher, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.network, self.teacher = SegmentationVNet(), SegmentationVNet()
        for parameter in self.teacher.parameters():
            parameter.detach_()
        self.optimizer = sgd(self.network.parameters())

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        self.teacher.to(device)
        return self

    def labels(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            foreground = torch.softmax(self.teacher(image), dim=1)[:, 1] >= 0.5
        return torch.from_numpy(largest(foreground.cpu().numpy()).astype(np.int64)).to(image.device)

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        self.network.train()
        self.teacher.train()
        half = len(image) // 4
        a_l, b_l, a_u, b_u = image.split(half)
        y_a, y_b = label.split(half)
        z_a, z_b = self.labels(a_u), self.labels(b_u)
        mask = torch.ones(image.shape[2:], device=image.device)
        sides = [int(side * 2 / 3) for side in mask.shape]
        corner = [np.random.randint(0, side - box) for side, box in zip(mask.shape, sides, strict=True)]
        mask[tuple(slice(c, c + box) for c, box in zip(corner, sides, strict=True))] = 0
        out_l = self.network(a_l * mask + a_u * (1 - mask))
        out_u = self.network(b_u * mask + b_l * (1 - mask))
        loss = masked_loss(out_l, y_a, mask) + PSEUDO * masked_loss(out_l, z_a, 1 - mask)
        loss = loss + PSEUDO * masked_loss(out_u, z_b, mask) + masked_loss(out_u, y_b, 1 - mask)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for ours, theirs in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            ours.data.mul_(DECAY).add_(theirs.data, alpha=1 - DECAY)
        return loss.item()

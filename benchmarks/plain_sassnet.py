"""The yardstick of SASSNet's speed: the released loop read plainly, written anew.

Two heads, distance maps by SciPy inside the step, a discriminator of distances. It shares no code with the package.
"""

from __future__ import annotations

import torch
from plain_dan import AdversarialLoop
from plain_dtc import PlainVNet, distance_map
from plain_mean_teacher import weight
from torch import Tensor

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}


class PlainLoop(AdversarialLoop):
    """Signed distances are judged."""

    def __init__(self) -> None:
        super().__init__(PlainVNet(), 1)

    def losses(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(label)
        distance, logits = self.network(image)
        with torch.no_grad():
            target = torch.from_numpy(distance_map(label.cpu().numpy())).float().to(image.device)
        p, y = torch.sigmoid(logits[:rows, 0]), label.float()
        dice = 1 - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + (y * y).sum() + 1e-5)
        return dice + 0.3 * ((distance[:rows, 0] - target) ** 2).mean(), distance

    def judged(self, image: Tensor) -> Tensor:
        return self.network(image)[0]

    def weight(self) -> float:
        return weight(self.iteration) / 10  # ends at 0.01

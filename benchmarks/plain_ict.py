"""The yardstick of interpolation consistency's speed: the released loop read plainly, written anew.

One step makes one pass of the student over labeled and mixed images, and two of the teacher over one half of the
unlabeled images each. It shares no code with the package.
"""

from __future__ import annotations

import numpy as np
import torch
from plain_mean_teacher import PlainLoop as MeanTeacherLoop
from plain_mean_teacher import supervised_loss, weight
from torch import Tensor

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}

ALPHA = 0.2


class PlainLoop(MeanTeacherLoop):
    """Student, teacher, one SGD; :meth:`step` is one iteration of the released loop."""

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        rows = len(label)
        first, second = image[rows:].chunk(2)
        shares = np.random.beta(ALPHA, ALPHA, size=(len(first), 1, 1, 1, 1))
        share = torch.tensor(shares, dtype=torch.float32, device=image.device)
        mixed = first * (1.0 - share) + second * share
        logits = self.network(torch.cat([image[:rows], mixed], dim=0))
        soft = torch.softmax(logits, dim=1)
        with torch.no_grad():
            target_first = torch.softmax(self.teacher(first), dim=1)
            target_second = torch.softmax(self.teacher(second), dim=1)
            target = target_first * (1.0 - share) + target_second * share
        consistency = ((soft[rows:] - target) ** 2).mean()
        return supervised_loss(logits[:rows], label) + weight(self.iteration) * consistency

"""The yardstick of CCT's speed: SSL4MIS's loop read plainly, written anew, with a V-Net of four decoders.

Default memory layout, float32. It shares no code with the package.
"""

from __future__ import annotations

import torch
from plain_dtc import up
from plain_mc_net import PlainDecoder, PlainEncoder
from plain_mean_teacher import sgd, supervised_loss, weight
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}


def noise(x: Tensor) -> Tensor:
    return x + x * torch.empty(x.shape[1:], device=x.device).uniform_(-0.3, 0.3)


def drop(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.3)


def drop_strongest(x: Tensor) -> Tensor:
    attention = x.mean(1, keepdim=True)
    threshold = attention.flatten(1).max(1).values * float(torch.empty(1).uniform_(0.7, 0.9))
    return x * (attention < threshold.view(-1, 1, 1, 1, 1)).float()


class PlainLoop:
    """One encoder, four decoders, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.encoder = PlainEncoder()
        self.decoders = nn.ModuleList(PlainDecoder(up) for _ in range(4))
        self.all = nn.ModuleList([self.encoder, self.decoders])
        self.optimizer = sgd(self.all.parameters())
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.all.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows = len(label)
        self.all.train()
        features = self.encoder(image)
        logits = [self.decoders[0](features)]
        for decoder, disturb in zip(self.decoders[1:], (noise, drop, drop_strongest), strict=True):
            logits.append(decoder([disturb(x) for x in features]))
        supervised = sum(supervised_loss(z[:rows], label) for z in logits) / 4
        soft = [torch.softmax(z[rows:], dim=1) for z in logits]
        consistency = sum(((soft[0] - p) ** 2).mean() for p in soft[1:]) / 3
        loss = supervised + weight(self.iteration) * consistency
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        return loss.item()

"""The yardstick of URPC's speed: its released 3D loop and 3D U-Net read plainly, written anew.

Default memory layout, float32. It shares no code with the package.
"""

from __future__ import annotations

import itertools
import math

import torch
from plain_mean_teacher import sgd, supervised_loss
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}

ITERATIONS_PER_LEVEL, LEVELS = 150, 400
CHANNELS, DROPOUT = (16, 32, 64, 128, 256), (0.1, 0.2, 0.3, 0.5)


def convolutions(n_in: int, n_out: int) -> nn.Sequential:
    """Twice convolution, instance normalization, ReLU."""
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv3d(n, n_out, 3, padding=1), nn.InstanceNorm3d(n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PlainPyramid(nn.Module):
    """3D U-Net; returns two logits of four decoder levels at full resolution, the finest first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(convolutions(a, b) for a, b in zip((1, *CHANNELS), CHANNELS, strict=False))
        self.pool, self.rise = nn.MaxPool3d(2), nn.Upsample(scale_factor=2, mode="trilinear")
        self.decoder = nn.ModuleList(convolutions(a + b, a) for a, b in itertools.pairwise(CHANNELS))
        self.dropout = nn.ModuleList(nn.Dropout3d(p) for p in DROPOUT)
        self.heads = nn.ModuleList(nn.Conv3d(n, 2, 1) for n in CHANNELS[:4])

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.encoder[0](image)]
        for block in self.encoder[1:]:
            features.append(block(self.pool(features[-1])))
        x, outputs = features[-1], []
        for scale in (3, 2, 1, 0):
            x = self.dropout[scale](self.decoder[scale](torch.cat([features[scale], self.rise(x)], dim=1)))
            logits = self.heads[scale](x)
            if scale:
                logits = nn.functional.interpolate(logits, scale_factor=2**scale, mode="trilinear")
            outputs.insert(0, logits)
        return outputs


class PlainLoop:
    """One network, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.network = PlainPyramid()
        self.optimizer = sgd(self.network.parameters())
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows = len(label)
        self.network.train()
        outputs = self.network(image)
        supervised = sum(supervised_loss(logits[:rows], label) for logits in outputs) / 4
        soft = [torch.softmax(logits[rows:], dim=1) for logits in outputs]
        mean = sum(soft) / 4
        consistency = 0.0
        for p in soft:
            distance = (mean * (torch.log(mean) - torch.log(p))).sum(1, keepdim=True)
            certain = torch.exp(-distance)
            consistency += ((mean - p) ** 2 * certain).mean() / (certain.mean() + 1e-8) + distance.mean()
        level = min(self.iteration // ITERATIONS_PER_LEVEL, LEVELS)
        loss = supervised + 0.1 * math.exp(-5 * (1 - level / LEVELS) ** 2) * consistency / 4
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        return loss.item()

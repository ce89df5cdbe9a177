"""The yardstick of MC-Net's speed: its released 3D loop read plainly, written anew, with two decoders.

Default memory layout, float32. It shares no code with the package. Encoder and decoders apart, what loops of several
decoders have in common stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from plain_caml import dice_loss, interpolated, sharpen
from plain_dtc import convolutions, down, up
from plain_mean_teacher import sgd
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}

ITERATIONS_PER_LEVEL, LEVELS = 150, 40


class PlainEncoder(nn.Module):
    """V-Net down to its coarsest features; returns those of every scale, fine to coarse."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.down1 = convolutions(1, 1, 16), down(16, 32)
        self.block2, self.down2 = convolutions(2, 32, 32), down(32, 64)
        self.block3, self.down3 = convolutions(3, 64, 64), down(64, 128)
        self.block4, self.down4 = convolutions(3, 128, 128), down(128, 256)
        self.block5, self.dropout = convolutions(3, 256, 256), nn.Dropout3d(0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        x1 = self.block1(x)
        x2 = self.block2(self.down1(x1))
        x3 = self.block3(self.down2(x2))
        x4 = self.block4(self.down3(x3))
        return [x1, x2, x3, x4, self.dropout(self.block5(self.down4(x4)))]


class PlainDecoder(nn.Module):
    """V-Net up from features of five scales; returns two logits."""

    def __init__(self, rise: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.up5 = rise(256, 128)
        self.block6, self.up6 = convolutions(3, 128, 128), rise(128, 64)
        self.block7, self.up7 = convolutions(3, 64, 64), rise(64, 32)
        self.block8, self.up8 = convolutions(2, 32, 32), rise(32, 16)
        self.block9, self.dropout = convolutions(1, 16, 16), nn.Dropout3d(0.5)
        self.segmentation = nn.Conv3d(16, 2, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x1, x2, x3, x4, x5 = features
        x6 = self.block6(self.up5(x5) + x4)
        x7 = self.block7(self.up6(x6) + x3)
        x8 = self.block8(self.up7(x7) + x2)
        return self.segmentation(self.dropout(self.block9(self.up8(x8) + x1)))


class PlainLoop:
    """One encoder, two decoders, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.encoder = PlainEncoder()
        self.decoders = nn.ModuleList([PlainDecoder(up), PlainDecoder(interpolated)])
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
        soft = [torch.softmax(decoder(features), dim=1) for decoder in self.decoders]
        target = (label == 1).float()
        supervised = sum(dice_loss(p[:rows, 1], target) for p in soft)
        sharp = [sharpen(p) for p in soft]
        consistency = ((soft[0] - sharp[1]) ** 2).mean() + ((soft[1] - sharp[0]) ** 2).mean()
        self.iteration += 1
        level = min(self.iteration // ITERATIONS_PER_LEVEL, LEVELS)
        loss = 0.5 * supervised + math.exp(-5 * (1 - level / LEVELS) ** 2) * consistency
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

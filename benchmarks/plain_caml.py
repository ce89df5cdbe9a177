"""The yardstick of the speed benchmarks for CAML: its released loop read plainly, written anew for this purpose.

Default memory layout, float32; all voxels are projected, the memory bank holds every correct voxel on the host and is
concatenated as a whole in every step. It shares no code with the package.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from plain_dtc import convolutions, down, up
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"bfloat16": 0.5}, "memory": {"bfloat16": 0.6}}
WARM_UP = 8  # steps until every one of 16 labeled cases has been in the memory bank, two a step

ITERATIONS_PER_LEVEL, LEVELS = 150, 20
CHANNELS, ROWS, PROTOTYPES = 32, 12800, 256


def interpolated(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True),
        nn.Conv3d(n_in, n_out, 3, padding=1),
        nn.BatchNorm3d(n_out),
        nn.ReLU(inplace=True),
    )


class Attention(nn.Module):
    """Attention within each image, then among the images."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.within = nn.TransformerEncoderLayer(n, 4, 4 * n, 0.5)
        self.between = nn.TransformerEncoderLayer(n, 4, 4 * n, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.within(x.flatten(2).permute(2, 0, 1))
        y = self.between(y.permute(1, 0, 2))
        return y.permute(0, 2, 1).reshape(x.shape)


class PlainBranch(nn.Module):
    """V-Net; returns two logits and the last feature map."""

    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        rise = interpolated if auxiliary else up
        self.block1, self.down1 = convolutions(1, 1, 16), down(16, 32)
        self.block2, self.down2 = convolutions(2, 32, 32), down(32, 64)
        self.block3, self.down3 = convolutions(3, 64, 64), down(64, 128)
        self.block4, self.down4 = convolutions(3, 128, 128), down(128, 256)
        self.attention = Attention(128) if auxiliary else None
        self.block5, self.up5 = convolutions(3, 256, 256), rise(256, 128)
        self.block6, self.up6 = convolutions(3, 128, 128), rise(128, 64)
        self.block7, self.up7 = convolutions(3, 64, 64), rise(64, 32)
        self.block8, self.up8 = convolutions(2, 32, 32), rise(32, 16)
        self.block9 = convolutions(1, 16, 16)
        self.dropout = nn.Dropout3d(0.5)
        self.segmentation = nn.Conv3d(16, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1 = self.block1(x)
        x2 = self.block2(self.down1(x1))
        x3 = self.block3(self.down2(x2))
        x4 = self.block4(self.down3(x3))
        if self.attention is not None:
            x4 = self.attention(x4)
        x5 = self.dropout(self.block5(self.down4(x4)))
        x6 = self.block6(self.up5(x5) + x4)
        x7 = self.block7(self.up6(x6) + x3)
        x8 = self.block8(self.up7(x7) + x2)
        features = self.dropout(self.block9(self.up8(x8) + x1))
        return self.segmentation(features), features


def head(n_in: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, CHANNELS), nn.BatchNorm1d(CHANNELS), nn.ReLU(inplace=True), nn.Linear(CHANNELS, CHANNELS)
    )


def sharpen(p: Tensor) -> Tensor:
    return p**10 / (p**10 + (1 - p) ** 10)


def dice_loss(score: Tensor, target: Tensor) -> Tensor:
    return 1 - (2 * (score * target).sum() + 1e-8) / (score.sum() + target.sum() + 1e-8)


class PlainLoop:
    """Two networks, heads, memory of ``n_cases`` labeled cases, optimizer; :meth:`step` is one released iteration."""

    def __init__(self, n_cases: int = 16) -> None:
        self.parts = nn.ModuleDict({"vanilla": PlainBranch(False), "auxiliary": PlainBranch(True)})
        self.project = nn.ModuleList([head(16), head(16)])
        self.predict = nn.ModuleList([head(CHANNELS), head(CHANNELS)])
        self.all = nn.ModuleList([self.parts, self.project, self.predict])
        self.optimizer = torch.optim.SGD(self.all.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.n_cases = n_cases
        self.memory: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.all.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows = len(label)
        self.all.train()
        logits, features = zip(*(branch(image) for branch in self.parts.values()), strict=True)
        soft = [z.softmax(1) for z in logits]
        target = (label == 1).float()
        supervised = dice_loss(soft[0][:rows, 1], target) + dice_loss(soft[1][:rows, 1], target)
        cross = ((soft[0] - sharpen(soft[1])) ** 2).mean() + ((soft[1] - sharpen(soft[0])) ** 2).mean()
        predicted = [p.argmax(1) for p in soft]
        self.remember(features, predicted, label)
        correlation = self.correlation([f[rows:] for f in features], [p[rows:] for p in predicted], soft[0][rows:])
        self.iteration += 1
        level = min(self.iteration // ITERATIONS_PER_LEVEL, LEVELS)
        weight = math.exp(-5 * (1 - level / LEVELS) ** 2)
        loss = 0.5 * supervised + weight * cross + 0.05 * weight * correlation
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def remember(self, features: tuple[Tensor, ...], predicted: list[Tensor], label: Tensor) -> None:
        rows = len(label)
        self.project.eval()
        with torch.no_grad():
            embedded = [
                head(f[:rows].permute(0, 2, 3, 4, 1).reshape(-1, 16)).reshape(rows, -1, CHANNELS)
                for head, f in zip(self.project, features, strict=True)
            ]
        self.project.train()
        correct = (predicted[0][:rows] == label) & (predicted[1][:rows] == label)
        for i in range(rows):
            case = (rows * self.iteration + i) % self.n_cases  # the labeled cases come up in turn
            keep = correct[i].flatten()
            mean = (embedded[0][i][keep] + embedded[1][i][keep]) / 2
            self.memory[case] = (mean.cpu().numpy(), label[i].flatten()[keep].cpu().numpy())

    def prototypes(self) -> list[Tensor]:
        vectors = np.concatenate([v for v, _ in self.memory.values()])
        classes = np.concatenate([c for _, c in self.memory.values()])
        drawn = []
        for c in range(2):
            of_class = vectors[classes == c]
            if len(of_class) >= PROTOTYPES:
                drawn.append(torch.from_numpy(of_class[random.sample(range(len(of_class)), PROTOTYPES)]))
        return drawn

    def correlation(self, features: list[Tensor], predicted: list[Tensor], soft: Tensor) -> Tensor:
        agreed = predicted[0] == predicted[1]
        classes = predicted[0][agreed]
        confidence = soft.max(1).values[agreed]
        rows = [
            predict(project(f.permute(0, 2, 3, 4, 1)[agreed]))
            for project, predict, f in zip(self.project, self.predict, features, strict=True)
        ]
        drawn = self.prototypes()
        if not drawn:
            return features[0].new_zeros(())
        prototypes = torch.cat(drawn).to(features[0].device)
        correlations = []
        for z in rows:
            per_class = []
            for c in range(2):
                order = torch.sort(confidence[classes == c], descending=True).indices[:ROWS]
                if len(order) > 1:
                    per_class.append(((z[classes == c][order] @ prototypes.T) / 0.1).softmax(1))
            correlations.append(torch.cat(per_class))
        return -(correlations[1] * (correlations[0] + 1e-8).log()).sum(1).mean()

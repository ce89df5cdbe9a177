"""The yardstick of SS-Net's speed: its released loop read plainly, written anew for this purpose.

Default memory layout, float32. One step makes four passes of the network and two backward passes, the inner one through
all parameters; every voxel goes through both heads, and the weights of the separation are repeated to M x N matrices.
It shares no code with the package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from plain_dtc import PlainVNet
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"bfloat16": 0.5}, "memory": {"bfloat16": 0.6}}

XI, EPSILON, PROTOTYPES = 10.0, 10.0, 32
ITERATIONS_PER_LEVEL, LEVELS = 150, 40


def head(n_in: int, n_out: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 32), nn.BatchNorm1d(32), activation, nn.Linear(32, n_out))


class PlainSSNet(PlainVNet):
    """V-Net with two classes that also returns the feature map, and the heads of the separation."""

    def __init__(self) -> None:
        super().__init__()
        del self.distance
        self.segmentation = nn.Conv3d(16, 2, 1)
        self.projection, self.prediction = head(16, 32, nn.ReLU()), head(32, 32, nn.ReLU())
        self.selectors = nn.ModuleList(head(32, 1, nn.LeakyReLU(0.2)) for _ in range(2))
        self.memory_selectors = nn.ModuleList(head(32, 1, nn.LeakyReLU(0.2)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x9 = self.features(x)
        return self.segmentation(x9), x9


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    yield
    for norm in norms:
        norm.track_running_stats = True


def dice_distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (2 * (a * b).sum() + 1e-8) / (a.sum() + b.sum() + 1e-8)


def normalized(d: Tensor) -> Tensor:
    return d / (d.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1) + 1e-8)


class PlainLoop:
    """One network, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.network = PlainSSNet()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.memory: list[Tensor | None] = [None, None]
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        network, rows = self.network, len(label)
        network.train()
        logits, features = network(image)
        p = logits.softmax(1)
        predicted = p.argmax(1)
        flat = features.permute(0, 2, 3, 4, 1)
        labeled, unlabeled = flat[:rows].reshape(-1, 16), flat[rows:].reshape(-1, 16)
        correct = ((predicted[:rows] == label) & (predicted[:rows] > 0)).reshape(-1)
        with torch.no_grad():
            network.eval()
            candidates = network.projection(labeled[correct])
            network.train()
        self._renew(candidates, label.reshape(-1)[correct])
        separation = self._separation(network.prediction(network.projection(labeled)), label.reshape(-1))
        separation = separation + self._separation(
            network.prediction(network.projection(unlabeled)), predicted[rows:].reshape(-1)
        )
        dice = dice_distance(p[:rows, 1], (label == 1).float())
        nn.functional.cross_entropy(logits[:rows], label)  # computed for the log
        smoothness = self._smoothness(image)
        level = min(self.iteration // ITERATIONS_PER_LEVEL, LEVELS)
        weight = math.exp(-5 * (1 - level / LEVELS) ** 2)
        loss = dice + weight * (smoothness + 0.1 * separation)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        return loss.item()

    def _smoothness(self, image: Tensor) -> Tensor:
        network = self.network
        with torch.no_grad():
            clean = network(image)[0].softmax(1)
        d = normalized(torch.rand(image.shape, device=image.device) - 0.5)
        with frozen_statistics(network):
            d.requires_grad_()
            dice_distance(network(image + XI * d)[0].softmax(1), clean).backward()
            d = normalized(d.grad)
            network.zero_grad()
            return dice_distance(network(image + EPSILON * d)[0].softmax(1), clean)

    def _renew(self, candidates: Tensor, classes: Tensor) -> None:
        with torch.no_grad():
            for c in range(1, 2):
                mine = candidates[classes == c]
                if len(mine) > PROTOTYPES:
                    order = torch.sigmoid(self.network.selectors[c](mine)).squeeze(1).argsort()
                    mine = mine[order][:PROTOTYPES]
                if len(mine):
                    self.memory[c] = mine

    def _separation(self, features: Tensor, classes: Tensor) -> Tensor:
        loss = features.new_zeros(())
        for c, memory in enumerate(self.memory):
            mine = features[classes == c]
            if memory is None or len(memory) < 2 or len(mine) < 2:
                continue
            z = nn.functional.normalize(memory, dim=1)
            distances = 1 - nn.functional.normalize(mine, dim=1) @ z.T
            w = torch.sigmoid(self.network.selectors[c](mine.detach()))
            w = (w / w.sum(0, keepdim=True) * len(mine)).repeat(1, len(z))
            v = torch.sigmoid(self.network.memory_selectors[c](z)).T
            v = (v / v.sum(0, keepdim=True)).repeat(len(mine), 1)  # along the axis that leaves ones, as released
            loss = loss + (w * v * distances).mean()
        return loss / len(self.memory)

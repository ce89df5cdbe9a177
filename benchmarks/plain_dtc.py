"""The yardstick of the speed benchmarks: DTC's released loop read plainly, written anew for this purpose.

Default memory layout, float32, the distance map by SciPy inside the step on the main process, nothing cached, nothing
overlapped; inference window by window with a score map in NumPy. It shares no code with the package.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {
    "time": {"float32": 0.7, "bfloat16": 0.45, "default": {"32x32x16": 0.6, "64x64x32": 0.5}},
    "memory": {"float32": 0.8, "bfloat16": 0.8},
}

ITERATIONS_PER_LEVEL, LEVELS = 150, 40


def convolutions(n: int, n_in: int, n_out: int) -> nn.Sequential:
    """``n`` times convolution (kernel 3), batch normalization, ReLU."""
    layers: list[nn.Module] = []
    for i in range(n):
        layers += [
            nn.Conv3d(n_in if i == 0 else n_out, n_out, 3, padding=1),
            nn.BatchNorm3d(n_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def down(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(n_in, n_out, 2, stride=2), nn.BatchNorm3d(n_out), nn.ReLU(inplace=True))


def up(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose3d(n_in, n_out, 2, stride=2), nn.BatchNorm3d(n_out), nn.ReLU(inplace=True))


class PlainVNet(nn.Module):
    """V-Net with a distance head (tanh) and a segmentation head (one logit), on one draw of dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.down1 = convolutions(1, 1, 16), down(16, 32)
        self.block2, self.down2 = convolutions(2, 32, 32), down(32, 64)
        self.block3, self.down3 = convolutions(3, 64, 64), down(64, 128)
        self.block4, self.down4 = convolutions(3, 128, 128), down(128, 256)
        self.block5, self.up5 = convolutions(3, 256, 256), up(256, 128)
        self.block6, self.up6 = convolutions(3, 128, 128), up(128, 64)
        self.block7, self.up7 = convolutions(3, 64, 64), up(64, 32)
        self.block8, self.up8 = convolutions(2, 32, 32), up(32, 16)
        self.block9 = convolutions(1, 16, 16)
        self.dropout = nn.Dropout3d(0.5)
        self.distance, self.segmentation = nn.Conv3d(16, 1, 1), nn.Conv3d(16, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        x1 = self.block1(x)
        x2 = self.block2(self.down1(x1))
        x3 = self.block3(self.down2(x2))
        x4 = self.block4(self.down3(x3))
        x5 = self.dropout(self.block5(self.down4(x4)))
        x6 = self.block6(self.up5(x5) + x4)
        x7 = self.block7(self.up6(x6) + x3)
        x8 = self.block8(self.up7(x7) + x2)
        return self.dropout(self.block9(self.up8(x8) + x1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x9 = self.features(x)
        return torch.tanh(self.distance(x9)), self.segmentation(x9)


def distance_map(masks: np.ndarray) -> np.ndarray:
    """Signed distance of each mask ``(B, *spatial)``: inside [-1, 0), outside (0, 1], 0 on the inner boundary."""
    maps = np.zeros(masks.shape)
    for i, mask in enumerate(masks.astype(bool)):
        if mask.any():
            inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
            maps[i] = outside / outside.max() - inside / inside.max()
            maps[i][mask & (inside == 1)] = 0
    return maps


class PlainLoop:
    """One network, one SGD; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.network = PlainVNet()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.iteration = 0

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows = len(label)
        self.network.train()
        distance, logits = self.network(image)
        soft = torch.sigmoid(logits)
        with torch.no_grad():
            target = torch.from_numpy(distance_map(label.cpu().numpy())).float().to(image.device)
        distance_loss = ((distance[:rows, 0] - target) ** 2).mean()
        p, y = soft[:rows, 0], label.float()
        dice_loss = 1 - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + (y * y).sum() + 1e-5)
        consistency_loss = ((torch.sigmoid(-1500 * distance) - soft) ** 2).mean()
        level = min(self.iteration // ITERATIONS_PER_LEVEL, LEVELS)
        weight = math.exp(-5 * (1 - level / LEVELS) ** 2)
        loss = dice_loss + 0.3 * distance_loss + weight * consistency_loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        return loss.item()


@torch.no_grad()
def sliding_window(
    network: nn.Module, image: np.ndarray, patch: tuple[int, ...], stride: tuple[int, ...]
) -> np.ndarray:
    """Foreground probability of one scan ``(*spatial)``: one window at a time, uniform mean of the overlaps.

    ``network`` is a :class:`PlainVNet`: both heads are computed, the segmentation is used.
    """
    network.eval()
    missing = [max(p - s, 0) for s, p in zip(image.shape, patch, strict=True)]
    padding = [(m // 2, m - m // 2) for m in missing]
    padded = np.pad(image, padding)
    score, count = np.zeros(padded.shape, dtype=np.float32), np.zeros(padded.shape, dtype=np.float32)
    steps = [math.ceil((side - p) / s) + 1 for side, p, s in zip(padded.shape, patch, stride, strict=True)]
    for index in np.ndindex(*steps):
        first = [min(s * i, side - p) for i, side, p, s in zip(index, padded.shape, patch, stride, strict=True)]
        window = tuple(slice(a, a + p) for a, p in zip(first, patch, strict=True))
        _, logits = network(torch.from_numpy(np.ascontiguousarray(padded[window]).astype(np.float32)[None, None]))
        score[window] += torch.sigmoid(logits)[0, 0].numpy()
        count[window] += 1
    score /= count
    return score[tuple(slice(low, low + side) for (low, _), side in zip(padding, image.shape, strict=True))]

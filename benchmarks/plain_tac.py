"""The yardstick of the speed benchmarks for TAC: its released loop read plainly, written anew for this purpose.

Default memory layout, float32; every gate and every pooled feature map is computed as the equations say. It shares no
code with the package.
"""

from __future__ import annotations

import torch
from plain_dtc import PlainVNet
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"bfloat16": 0.6}, "memory": {"bfloat16": 0.6}}


class Gate(nn.Module):
    """Additive attention: how much of the skip connection passes."""

    def __init__(self, n: int, n_inside: int) -> None:
        super().__init__()
        self.of_decoder = nn.Sequential(nn.Conv3d(n, n_inside, 1), nn.BatchNorm3d(n_inside))
        self.of_encoder = nn.Sequential(nn.Conv3d(n, n_inside, 1), nn.BatchNorm3d(n_inside))
        self.psi = nn.Sequential(nn.Conv3d(n_inside, 1, 1), nn.BatchNorm3d(1), nn.Sigmoid())
        self.relu = nn.ReLU(inplace=True)

    def forward(self, decoder: Tensor, encoder: Tensor) -> Tensor:
        return encoder * self.psi(self.relu(self.of_decoder(decoder) + self.of_encoder(encoder)))


class PlainGatedVNet(PlainVNet):
    """V-Net with attention gates; returns two logits, the encoder's maps and the gated maps."""

    def __init__(self) -> None:
        super().__init__()
        del self.distance
        self.gate4, self.gate3, self.gate2, self.gate1 = Gate(128, 64), Gate(64, 32), Gate(32, 16), Gate(16, 32)
        self.segmentation = nn.Conv3d(16, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        x1 = self.block1(x)
        x2 = self.block2(self.down1(x1))
        x3 = self.block3(self.down2(x2))
        x4 = self.block4(self.down3(x3))
        x5 = self.dropout(self.block5(self.down4(x4)))
        g4 = self.up5(x5)
        s4 = self.gate4(g4, x4)
        g3 = self.up6(self.block6(g4 + s4))
        s3 = self.gate3(g3, x3)
        g2 = self.up7(self.block7(g3 + s3))
        s2 = self.gate2(g2, x2)
        g1 = self.up8(self.block8(g2 + s2))
        s1 = self.gate1(g1, x1)
        out = self.segmentation(self.dropout(self.block9(g1 + s1)))
        return out, [x1, x2, x3, x4, x5], [s4, s3, s2, s1]


def representations(features: Tensor, masks: Tensor) -> Tensor:
    """Class, image, channel: sums under the masks divided by the size of the masks in all images."""
    masks = nn.functional.interpolate(masks, size=features.shape[2:], mode="nearest")
    per_class = []
    for c in range(masks.shape[1]):
        mask = masks[:, c : c + 1]
        per_class.append((features * mask).sum((2, 3, 4)) / (mask.sum() + 1e-6))
    return torch.stack(per_class)


def dice_loss(score: Tensor, target: Tensor) -> Tensor:
    return 1 - (2 * (score * target).sum() + 1e-5) / ((score * score).sum() + (target * target).sum() + 1e-5)


class PlainLoop:
    """One network and its optimizer; :meth:`step` is one iteration of the released loop."""

    def __init__(self) -> None:
        self.network = PlainGatedVNet()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def to(self, device: torch.device) -> PlainLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        return self

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows = len(label)
        self.network.train()
        logits, contextual, structural = self.network(image)
        soft = torch.sigmoid(logits)
        target = nn.functional.one_hot(label, 2).movedim(-1, 1).float()
        supervised = dice_loss(soft[:rows, 0], target[:, 0]) + dice_loss(soft[:rows, 1], target[:, 1])
        consistency = [0.0, 0.0]
        for kind, maps in enumerate((contextual, structural)):
            for x in maps:
                of_labeled = representations(x[:rows], target)
                of_unlabeled = representations(x[rows:], soft[rows:])
                consistency[kind] = consistency[kind] + ((of_unlabeled - of_labeled) ** 2).mean()
        loss = supervised + 0.5 * consistency[0] + consistency[1]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

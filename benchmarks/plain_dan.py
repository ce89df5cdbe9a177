"""The yardstick of DAN's speed: the released loop read plainly, written anew.

One network with a discriminator of map and image, SGD and Adam, a second pass of all images for the discriminator's
step. It shares no code with the package.
"""

from __future__ import annotations

import torch
from plain_mean_teacher import SegmentationVNet, sgd, supervised_loss, weight
from torch import Tensor, nn

# what `step.py` asks of ours, as shares of this loop
TARGETS = {"time": {"float32": 1.1, "bfloat16": 0.7}, "memory": {"bfloat16": 0.8}}


class PlainDiscriminator(nn.Module):
    """Map and image -> two logits per image, for patches of any size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.of_map = nn.Conv3d(channels, 64, 4, stride=2, padding=1)
        self.of_image = nn.Conv3d(1, 64, 4, stride=2, padding=1)
        self.conv2 = nn.Conv3d(64, 128, 4, stride=2, padding=1)
        self.conv3 = nn.Conv3d(128, 256, 4, stride=2, padding=1)
        self.conv4 = nn.Conv3d(256, 512, 4, stride=2, padding=1)
        self.activation, self.dropout = nn.LeakyReLU(0.2), nn.Dropout3d(0.5)
        self.classifier = nn.Linear(512, 2)

    def forward(self, judged: Tensor, image: Tensor) -> Tensor:
        x = self.dropout(self.activation(self.of_map(judged) + self.of_image(image)))
        x = self.dropout(self.activation(self.conv2(x)))
        x = self.dropout(self.activation(self.conv3(x)))
        x = self.activation(self.conv4(x))
        return self.classifier(x.mean((2, 3, 4)))


class AdversarialLoop:
    """A network that is judged; :meth:`step` is one iteration of the released loop."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        self.network, self.discriminator = network, PlainDiscriminator(channels)
        self.optimizer = sgd(self.network.parameters())
        self.adam = torch.optim.Adam(self.discriminator.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.iteration = 0

    def to(self, device: torch.device) -> AdversarialLoop:
        """Move the loop, before its first step."""
        self.network.to(device)
        self.discriminator.to(device)
        return self

    def losses(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Supervised loss, and the map that is judged."""
        raise NotImplementedError

    def judged(self, image: Tensor) -> Tensor:
        """The map that is judged."""
        raise NotImplementedError

    def weight(self) -> float:
        return weight(self.iteration)

    def step(self, image: Tensor, label: Tensor) -> float:
        """Image ``(B, 1, *spatial)``, labeled rows first; label ``(B_l, *spatial)``. Returns the loss."""
        rows, entropy = len(label), nn.functional.cross_entropy
        truth = torch.tensor([1] * rows + [0] * (len(image) - rows), device=image.device)
        self.network.train()
        self.discriminator.eval()
        supervised, judged = self.losses(image, label)
        verdict = self.discriminator(judged[rows:], image[rows:])
        loss = supervised + self.weight() * entropy(verdict, torch.ones_like(truth[rows:]))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.network.eval()
        self.discriminator.train()
        with torch.no_grad():
            judged = self.judged(image)
        of_discriminator = entropy(self.discriminator(judged, image), truth)
        self.adam.zero_grad()
        of_discriminator.backward()
        self.adam.step()
        self.iteration += 1
        return loss.item()


class PlainLoop(AdversarialLoop):
    """Probabilities are judged."""

    def __init__(self) -> None:
        super().__init__(SegmentationVNet(), 2)

    def losses(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(image)
        return supervised_loss(logits[: len(label)], label), torch.softmax(logits, dim=1)

    def judged(self, image: Tensor) -> Tensor:
        return torch.softmax(self.network(image), dim=1)

"""A small adversarial method: a discriminator tells labeled from unlabeled predictions, as in DAN.

It ships with no bundle: it stands for methods with a second optimizer in the tests of the trainer, which find it like
all others, resume it after a kill and distribute it.
"""

import torch
from method_tester import MethodTester
from monai.networks.layers import Conv
from torch import nn

from monai_ssl.losses import HalfDiceCELoss
from monai_ssl.methods import SemiSupervisedMethod
from monai_ssl.networks import VNet


class Discriminator(nn.Module):
    """Image and class probabilities -> two logits, labeled or not."""

    def __init__(self, spatial_dims, n_classes):
        super().__init__()
        conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if spatial_dims == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
        self.stem = conv(1 + n_classes, 4, 4, stride=2, padding=1)
        self.layers = nn.Sequential(
            nn.LeakyReLU(0.2), nn.Dropout(0.5), conv(4, 8, 4, stride=2, padding=1), nn.LeakyReLU(0.2), pool(1)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, image, probabilities):
        return self.head(self.layers(self.stem(torch.cat([image, probabilities], 1))).flatten(1))


class ToyAdversarial(SemiSupervisedMethod):
    """The network makes unlabeled predictions look like labeled ones; the discriminator learns to tell them apart."""

    honors_ignore_label = True

    def __init__(
        self, network, spatial_dims=2, n_classes=2, weight=0.1, rate=1e-3, decay=None, unsupervised_weight=1.0
    ):
        super().__init__(network, unsupervised_weight)
        self.supervised, self.weight, self.rate, self.decay = HalfDiceCELoss(), weight, rate, decay
        self.add_adversary("critic", Discriminator(spatial_dims, n_classes))

    def forward(self, labeled, unlabeled):
        terms = {"supervised": self.supervised(self.network(labeled["image"]).float(), labeled["label"])}
        if unlabeled is not None:
            critic = self.adversaries["critic"].eval()
            verdict = critic(unlabeled["image"], self.network(unlabeled["image"]).float().softmax(1)).float()
            claimed = torch.ones(len(verdict), dtype=torch.long, device=verdict.device)
            loss = nn.functional.cross_entropy(verdict, claimed)
            terms["adversarial"] = self.unsupervised_weight * self.weight * loss
        return terms

    def adversary_optimizers(self):
        return {"critic": torch.optim.Adam(self.adversaries["critic"].parameters(), self.rate, betas=(0.9, 0.99))}

    def adversary_schedules(self, optimizers):
        if self.decay is None:
            return {}
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizers["critic"], lambda step: self.decay**step)
        return {"critic": schedule}

    def adversary_terms(self, name, labeled, unlabeled):
        if unlabeled is None:
            return {}
        image = torch.cat([labeled["image"], unlabeled["image"]])
        self.network.eval()
        with torch.no_grad():
            probabilities = self.network(image).float().softmax(1)
        truth = torch.tensor([1] * len(labeled["image"]) + [0] * len(unlabeled["image"]), device=image.device)
        verdict = self.adversaries["critic"](image, probabilities).float()
        return {"cross_entropy": nn.functional.cross_entropy(verdict, truth)}


class TestToyAdversarial(MethodTester):
    bundle = "toy_adversary"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("adversarial",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        network = nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))
        network.spatial_dims, network.out_channels = spatial_dims, n_classes
        return network

    def method(self, network, **options):
        return ToyAdversarial(network, network.spatial_dims, network.out_channels, **options)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return ToyAdversarial(VNet(spatial_dims, **sizes), spatial_dims, **options)

"""Learning from labels only."""

import pytest
import torch
from method_tester import MethodTester, batches, total
from monai.networks.layers import Conv
from torch import nn

from monai_ssl.losses import (
    ForegroundDiceLoss,
    HalfDiceCELoss,
)
from monai_ssl.methods import (
    Supervised,
)
from monai_ssl.networks import (
    VNet,
)


class TestSupervised(MethodTester):
    bundle = "supervised"
    supervised_terms = ("supervised",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return Supervised(VNet(spatial_dims, **sizes), **({"loss": ForegroundDiceLoss(pooled=False)} | options))

    def method(self, network, **options):
        return Supervised(network, **options)

    def test_has_no_second_opinion(self):
        assert self.build().eval().second_opinion(batches()[1]["image"]) is None

    def test_unlabeled_images_have_no_influence(self):
        labeled, unlabeled = batches()
        first, second = self.build(), self.build()
        total(first(labeled, unlabeled)).backward()
        total(second(labeled, None)).backward()
        for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name
        for a, b in zip(first.buffers(), second.buffers(), strict=True):
            assert torch.equal(a, b)  # they do not even pass through the batch statistics

    def test_default_loss(self):
        method, (labeled, _) = self.build(), batches()
        term = method(labeled, None)["supervised"]
        assert term.item() == pytest.approx(
            HalfDiceCELoss()(self.build().network(labeled["image"]), labeled["label"]).item()
        )

    def test_own_loss(self):
        labeled, _ = batches()
        term = self.build(loss=ForegroundDiceLoss())(labeled)["supervised"]
        expected = ForegroundDiceLoss()(self.build().network(labeled["image"]), labeled["label"])
        assert term.item() == pytest.approx(expected.item())

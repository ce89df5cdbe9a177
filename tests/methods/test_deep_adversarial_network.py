"""DAN, and what it shares with SASSNet: who learns when, and in which mode."""

import pytest
import torch
from method_tester import SIDES, MethodTester, batches
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.methods import DeepAdversarialNetwork
from monai_ssl.methods.adversarial import NAME
from monai_ssl.networks import Discriminator, VNet
from monai_ssl.networks.modes import evaluating


class TestDeepAdversarialNetwork(MethodTester):
    bundle = "dan"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("adversarial",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        network = nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))
        network.spatial_dims, network.out_channels = spatial_dims, n_classes
        return network

    def method(self, network, **options):
        discriminator = Discriminator(network.spatial_dims, network.out_channels, base_channels=2)
        return DeepAdversarialNetwork(network, discriminator, **options)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return self.method(VNet(spatial_dims, **sizes), max_iterations=max_iterations, **options)

    def test_the_discriminators_step_leaves_no_trace_in_the_network(self):
        method, given = self.build().train(), batches()
        before = {key: value.clone() for key, value in method.network.state_dict().items()}
        method.adversaries.requires_grad_(True)
        [loss] = method.adversary_terms(NAME, *given).values()
        loss.backward()
        assert all(torch.equal(value, before[key]) for key, value in method.network.state_dict().items())
        assert all(p.grad is None for p in method.network.parameters())
        assert all(p.grad is not None for p in method.adversaries.parameters())
        assert all(module.training for module in method.modules())

    def test_the_discriminator_learns_to_tell_and_the_network_to_deceive(self):
        method, (labeled, unlabeled) = self.build(weight=1.0, ramp_up=lambda t: 1.0), batches()
        unlabeled["image"] = 0.3 * unlabeled["image"] + 2  # another scanner
        method.adversaries[NAME].dropout.p = 0.0
        optimizer = torch.optim.Adam(method.adversaries.parameters(), 0.02)
        method.adversaries.requires_grad_(True)
        losses = []
        for _ in range(20):
            [loss] = method.train().adversary_terms(NAME, labeled, unlabeled).values()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.2 * losses[0]
        assert method(labeled, unlabeled)["adversarial"].item() > losses[-1]  # it is not deceived

    def test_without_a_pool_and_in_the_floor_nobody_asks_the_discriminator(self):
        labeled, unlabeled = batches()
        for method, pool in ((self.build(), None), (self.build(unsupervised_weight=0.0), unlabeled)):
            method.adversaries[NAME].register_forward_hook(lambda *_: pytest.fail("the discriminator was asked"))
            assert set(method(labeled, pool)) == {"supervised"}
            assert method.adversary_terms(NAME, labeled, pool) == {}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1}, "weight must be >= 0, got -1"),
            ({"ramp_levels": 0}, "ramp_levels must be >= 1, got 0"),
            ({"max_iterations": 0}, "max_iterations must be >= 1, got 0"),
            ({"discriminator_learning_rate": 0}, "discriminator_learning_rate must be > 0, got 0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)


def test_parts_return_to_the_mode_they_were_in():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    network[1].eval()
    with evaluating(network) as found:
        assert found is network
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"map_channels": 0}, "map_channels must be >= 1, got 0"),
        ({"base_channels": 0}, "base_channels must be >= 1, got 0"),
        ({"cells": 0}, "cells must be >= 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_discriminators_reject_options(options, message):
    with pytest.raises(ValueError, match=message):
        Discriminator(**{"spatial_dims": 2, "map_channels": 2, **options})


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_discriminators_say_which_images_they_cannot_take(spatial_dims):
    discriminator = Discriminator(spatial_dims, 2, base_channels=2)
    assert discriminator(torch.rand(2, 2, *SIDES[spatial_dims]), torch.rand(2, 1, *SIDES[spatial_dims])).shape == (2, 2)
    small = (8,) * spatial_dims
    with pytest.raises(ValueError, match=r"every side of the patch must be at least 16 .*\(2, 1, 8, 8"):
        discriminator(torch.rand(2, 2, *small), torch.rand(2, 1, *small))
    bound = Discriminator(2, 2, base_channels=2, pool_window=7)
    with pytest.raises(ValueError, match=r"pool_window must leave 64 numbers per image, got 16 for images of shape"):
        bound(torch.rand(1, 2, 112, 112), torch.rand(1, 1, 112, 112))

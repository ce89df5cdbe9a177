"""URPC: what is its own; ``method_tester.py`` holds what all methods have in common."""

from collections import OrderedDict

import pytest
import torch
from method_tester import SIDES, MethodTester, Pointwise, batches
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.losses import PyramidConsistencyLoss
from monai_ssl.methods import PyramidConsistency
from monai_ssl.networks import PyramidNetwork, TappedNetwork, UNet, VNet, pyramid_network

LEVELS = ["backbone.upcat_1", "backbone.down_1", "backbone.conv_0"]


class TestPyramidConsistency(MethodTester):
    bundle = "urpc"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2):
        network = pyramid_network(spatial_dims, 1, n_classes, 4, dropout=0.0)
        network.perturbations = ["none"] * 3  # whole methods are compared here; below they are tested
        return network

    def wrap(self, backbone, spatial_dims, n_classes):
        head = Conv["conv", spatial_dims](8, n_classes, kernel_size=1)
        network = nn.Sequential(OrderedDict(backbone=backbone, head=head))
        channels = [8 if isinstance(backbone, Pointwise) else 4] * len(LEVELS)
        return PyramidNetwork(TappedNetwork(network, LEVELS), n_classes, channels, spatial_dims)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        network = VNet(spatial_dims, **{**sizes, "stages": (1, 1, 1)})
        return PyramidConsistency(PyramidNetwork(network, 2, [4], spatial_dims), max_iterations, **options)

    def method(self, network, **options):
        return PyramidConsistency(network, **options)

    def test_learns(self):  # the coarse outputs cannot tell voxel from voxel: squares of 16 x 16
        method = self.build()
        squares = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)).sign()
        image = squares.repeat_interleave(16, 2).repeat_interleave(16, 3)
        labeled, unlabeled = {"image": image, "label": (image > 0).long()}, {"image": image}
        optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            terms = method(labeled, unlabeled)
            sum(terms.values()).backward()
            optimizer.step()
            method.after_step()
            losses.append(terms["supervised"].item())
        assert losses[-1] < 0.8 * losses[0]

    @pytest.mark.parametrize("n_classes", [2, 4])
    def test_terms_equal_the_formulas(self, n_classes):
        method = self.build(n_classes=n_classes)
        method.iteration = 3000
        labeled, unlabeled = batches(n_classes=n_classes)
        terms = method(labeled, unlabeled)
        outputs = method.network.outputs(torch.cat([labeled["image"], unlabeled["image"]]))
        assert len(outputs) == 4
        supervised = sum(method.supervised(z[:2], labeled["label"]) for z in outputs) / 4
        assert terms["supervised"].item() == pytest.approx(supervised.item(), rel=1e-6)
        p = [z[2:].softmax(1) for z in outputs]
        mean, expected = sum(p) / 4, 0.0
        for q in p:
            distance = (mean * (mean / q).log()).sum(1, keepdim=True)
            weight = torch.exp(-distance)
            expected += ((mean - q).square() * weight).mean() / weight.mean() + distance.mean()
        expected = method.ramp_up(3000) * expected / 4
        assert terms["consistency"].item() == pytest.approx(expected.item(), rel=1e-4)
        assert method.ramp_up(3000) < method.ramp_up(3015)  # 400 levels of 15 iterations

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_certain_outputs_are_finite_in_every_format(self, dtype):
        certain = torch.tensor([[[60.0, -60.0], [-60.0, 60.0]]], dtype=dtype)
        outputs = [z.clone().requires_grad_() for z in (certain, -certain, 500 * certain)]
        loss = PyramidConsistencyLoss()(*outputs)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert all(torch.isfinite(z.grad).all() for z in outputs)

    def test_gradient_flows_through_the_mean(self):
        outputs = [torch.randn(1, 2, 8).requires_grad_() for _ in range(3)]
        loss = PyramidConsistencyLoss()
        alone = torch.autograd.grad(loss.per_output(*outputs)[0], outputs[1])[0]
        assert alone.abs().max() > 0

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    @pytest.mark.parametrize("trunk", ["unet", "vnet"])
    def test_published_networks(self, spatial_dims, trunk):
        network = pyramid_network(spatial_dims, 1, 3, 2, trunk)
        image = torch.randn(2, 1, *SIDES[spatial_dims])
        network.train()
        torch.manual_seed(0)
        one = network.outputs(image)
        two = network.outputs(image)
        assert [tuple(z.shape) for z in one] == [(2, 3, *SIDES[spatial_dims])] * 4
        assert not torch.equal(one[1], two[1])  # dropout, and in 2D perturbations
        network.eval()
        with torch.no_grad():
            one, two = network.outputs(image), network.outputs(image)
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
            torch.testing.assert_close(network(image), one[0])
        assert isinstance(network.network, VNet if trunk == "vnet" else UNet)

    def test_perturbations_disturb_the_auxiliary_outputs_in_training_alone(self):
        torch.manual_seed(0)
        network = pyramid_network(2, 1, 2, 4, dropout=0.0)
        image = torch.randn(2, 1, 32, 32)
        quiet = pyramid_network(2, 1, 2, 4, dropout=0.0)
        quiet.load_state_dict(network.state_dict())
        quiet.perturbations = ["none"] * 3
        a, b = network.train().outputs(image), quiet.train().outputs(image)
        assert torch.equal(a[0], b[0])
        assert not any(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
        assert all(
            torch.equal(x, y) for x, y in zip(network.eval().outputs(image), quiet.eval().outputs(image), strict=True)
        )

    def test_second_opinion_is_the_mean_of_the_coarser_outputs(self):
        method, image = self.build().eval(), batches()[1]["image"]
        with torch.no_grad():
            outputs = [z.softmax(1) for z in method.network.outputs(image)]
            torch.testing.assert_close(method.second_opinion(image), sum(outputs[1:]) / 3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1.0}, "weight must be >= 0, got -1"),
            ({"ramp_levels": 0}, "ramp_levels must be >= 1, got 0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_networks_with_one_output(self):
        with pytest.raises(TypeError, match=r"network must offer outputs.* got Conv2d; put it into .*PyramidNetwork"):
            PyramidConsistency(nn.Conv2d(1, 2, 1))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kernel_size": 2}, "kernel_size must be 1 or 3, got 2"),
            ({"upsampling": "cubic"}, 'upsampling must be "linear" or "nearest", got \'cubic\''),
            ({"level_channels": []}, "level_channels must name one level at least, got none"),
            ({"level_channels": [8, 16]}, "level_channels must be fewer than the decoder's 2 levels.* got 2"),
            ({"perturbations": ["noise", "noise"]}, "perturbations must be empty or 1, one per level, of .* got"),
            ({"perturbations": ["shake"]}, r"perturbations must be .* got \('shake',\)"),
        ],
    )
    def test_pyramid_rejects(self, options, message):
        with pytest.raises(ValueError, match=message):
            PyramidNetwork(
                UNet(2, 1, 2, channels=(4, 8, 16)), 2, **{"level_channels": [8], "spatial_dims": 2, **options}
            )

    def test_pyramid_network_rejects_a_trunk(self):
        with pytest.raises(ValueError, match=r"trunk must be one of \('unet', 'vnet'\), got 'resnet'"):
            pyramid_network(3, trunk="resnet")

"""Entropy minimization: what is its own; the numbers of the released code are in ``tests/baselines``."""

import pytest
import torch
from method_tester import MethodTester, batches
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.losses import SigmoidRampUp
from monai_ssl.methods import EntropyMinimization
from monai_ssl.networks import VNet

LABELED = {"label": torch.zeros(2, 1, 4, 4, dtype=torch.long)}


class TestEntropyMinimization(MethodTester):
    bundle = "entropy_minimization"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("entropy",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return EntropyMinimization(VNet(spatial_dims, **sizes), max_iterations, **options)

    def method(self, network, **options):
        return EntropyMinimization(network, **options)

    @pytest.mark.parametrize("n_classes", [2, 4])
    def test_one_for_even_predictions_and_nothing_for_certain_ones(self, n_classes):
        method = EntropyMinimization(nn.Identity(), ramp_up=SigmoidRampUp(0, 0.1))
        even = torch.zeros(3, n_classes, 4, 4)
        assert method.terms(even, LABELED)["entropy"].item() == pytest.approx(0.1, rel=1e-4)
        certain = even.clone()
        certain[:, 1] = 100.0
        assert method.terms(certain, LABELED)["entropy"].item() == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("labeled_too", [True, False])
    def test_whose_entropy(self, labeled_too):
        method = EntropyMinimization(nn.Identity(), labeled_too=labeled_too)
        logits = torch.randn(3, 2, 4, 4, requires_grad=True)
        method.terms(logits, LABELED)["entropy"].backward()
        assert logits.grad[2:].all()
        assert logits.grad[:2].any() == labeled_too
        assert ("entropy" in method.terms(logits[:2], LABELED)) == labeled_too

    def test_the_paper_has_nats_of_unlabeled_images(self):
        logits = torch.randn(5, 3, 4, 4)
        p = logits[2:].softmax(1)
        expected = -(p * (p + 1e-6).log()).sum(1).mean()
        method = EntropyMinimization(nn.Identity(), variant="paper", ramp_up=SigmoidRampUp(0, 0.1))
        assert method.terms(logits, LABELED)["entropy"].item() == pytest.approx(0.1 * expected.item(), rel=1e-5)
        method = EntropyMinimization(nn.Identity(), variant="paper", relative=True, ramp_up=SigmoidRampUp(0, 0.1))
        expected = expected / torch.tensor(3.0).log()
        assert method.terms(logits, LABELED)["entropy"].item() == pytest.approx(0.1 * expected.item(), rel=1e-5)

    def test_one_pass(self):
        method, rows = self.build(), []
        method.network.register_forward_hook(lambda m, x, y: rows.append(len(x[0])))
        method(*batches(n_labeled=2, n_unlabeled=3))
        assert rows == [5]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1}, "weight must be >= 0, got -1"),
            ({"ramp_levels": 0}, "ramp_levels must be >= 1, got 0"),
            ({"variant": "code"}, "variant must be one of .* got 'code'"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

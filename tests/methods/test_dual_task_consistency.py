"""DTC: what is its own; ``method_tester.py`` holds what all methods have in common."""

import math

import numpy as np
import pytest
import torch
from method_tester import SIDES, MethodTester, batches
from torch.nn import functional

from monai_ssl.losses import (
    ForegroundDiceLoss,
    SigmoidRampUp,
)
from monai_ssl.methods import (
    DualTaskConsistency,
)
from monai_ssl.networks import (
    DualTaskNetwork,
    DualTaskVNet,
    VNet,
)
from monai_ssl.transforms import SignedDistanceMap


class TestDualTaskConsistency(MethodTester):
    bundle = "dtc"
    supervised_terms = ("dice", "signed_distance")
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2):
        return DualTaskVNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return DualTaskNetwork(backbone, n_classes, feature_channels=8)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return DualTaskConsistency(DualTaskVNet(spatial_dims, **sizes), max_iterations, **options)

    def method(self, network, **options):
        return DualTaskConsistency(network, **options)

    @staticmethod
    def outputs(n_classes=2, n=4, seed=0):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(n, n_classes, *SIDES[2], generator=generator)
        return logits, 0.003 * torch.randn(n, n_classes - 1, *SIDES[2], generator=generator)

    @pytest.mark.parametrize("variant", ["released", "paper"])
    @pytest.mark.parametrize("n_classes", [2, 4])
    def test_terms_equal_the_formulas(self, n_classes, variant):
        (labeled, _), (logits, raw) = batches(n_classes=n_classes), self.outputs(n_classes)
        method = self.build(n_classes=n_classes, variant=variant, max_iterations=400, slope=900.0)
        method.iteration = 123
        terms = method.terms(logits, raw, labeled)
        released = variant == "released"
        p, d = logits.double().softmax(1)[:, 1:].numpy(), np.tanh(raw.double().numpy())
        dice = ForegroundDiceLoss(squared=released, pooled=released)(logits[:2], labeled["label"])
        assert terms["dice"].item() == pytest.approx(dice.item(), abs=1e-6)
        target = np.stack([SignedDistanceMap(n_classes)(label).numpy() for label in labeled["label"]])
        weight = 0.3 if released else 1.0
        assert terms["signed_distance"].item() == pytest.approx(weight * np.mean((d[:2] - target) ** 2), abs=1e-5)
        level = 123 // 10 / 40 if released else 123 / 400
        ramp = math.exp(-5 * (1 - level) ** 2)
        difference = np.mean((1 / (1 + np.exp(900.0 * d)) - p) ** 2)
        assert terms["consistency"].item() == pytest.approx(ramp * difference, abs=1e-5)

    def test_labels_and_maps_concern_the_labeled_rows_only(self):
        (labeled, _), (logits, raw) = batches(), self.outputs()
        logits.requires_grad_()
        raw.requires_grad_()
        terms = self.build().terms(logits, raw, labeled)
        (terms["dice"] + terms["signed_distance"]).backward(retain_graph=True)
        assert logits.grad[:2].abs().sum() > 0
        assert raw.grad[:2].abs().sum() > 0
        assert not logits.grad[2:].any()
        assert not raw.grad[2:].any()
        terms["consistency"].backward()
        assert (logits.grad[2:].flatten(1).abs().sum(1) > 0).all()  # both heads of every unlabeled row
        assert (raw.grad[2:].flatten(1).abs().sum(1) > 0).all()

    def test_one_pass_over_the_joint_batch(self):
        method, (labeled, unlabeled) = self.build(), batches(n_labeled=1, n_unlabeled=3)
        seen = []
        method.network.backbone.register_forward_hook(lambda m, x, y: seen.append(x[0]))
        method(labeled, unlabeled)
        assert len(seen) == 1
        assert torch.equal(seen[0], torch.cat([labeled["image"], unlabeled["image"]]))

    def test_distance_maps_of_the_loader_are_used(self):
        (labeled, _), (logits, raw) = batches(), self.outputs()
        method = self.build()
        maps = torch.stack([SignedDistanceMap()(label) for label in labeled["label"]])
        here = method.terms(logits, raw, labeled)
        assert method.terms(logits, raw, {**labeled, "signed_distance": maps}) == here
        other = method.terms(logits, raw, {**labeled, "signed_distance": maps - 1})
        expected = 0.3 * functional.mse_loss(raw[:2].tanh(), maps - 1)
        assert other["signed_distance"].item() == pytest.approx(expected.item())
        assert other["dice"] == here["dice"]

    def test_degenerate_option_reaches_the_target(self):
        (labeled, _), (logits, raw) = batches(), self.outputs()
        labeled["label"].fill_(1)
        assert torch.isfinite(self.build().terms(logits, raw, labeled)["signed_distance"])
        assert self.build(degenerate="official").terms(logits, raw, labeled)["signed_distance"].isnan()

    @pytest.mark.parametrize(("max_iterations", "step"), [(6000, 150), (1000, 25), (100, 2), (7, 1)])
    def test_released_ramp_has_forty_levels(self, max_iterations, step):
        ramp = self.build(max_iterations=max_iterations).ramp_up
        assert (ramp.length, ramp.granularity, ramp.maximum) == (40 * step, step, 1.0)

    def test_paper_ramp_is_continuous(self):
        ramp = self.build(max_iterations=50, variant="paper").ramp_up
        assert (ramp.length, ramp.granularity) == (50, 1)

    def test_own_ramp_and_distance_weight(self):
        (labeled, _), (logits, raw) = batches(), self.outputs()
        default = self.build().terms(logits, raw, labeled)
        own = self.build(ramp_up=SigmoidRampUp(0, 0.5), distance_weight=0.6).terms(logits, raw, labeled)
        assert own["signed_distance"].item() == pytest.approx(2 * default["signed_distance"].item())
        assert own["consistency"].item() == pytest.approx(0.5 * default["consistency"].item() * math.exp(5), rel=1e-5)
        assert self.build(distance_weight=0.0).terms(logits, raw, labeled)["signed_distance"] == 0

    def test_unsupervised_weight_scales_the_consistency(self):
        (labeled, _), (logits, raw) = batches(), self.outputs()
        one = self.build().terms(logits, raw, labeled)
        half = self.build(unsupervised_weight=0.5).terms(logits, raw, labeled)
        assert half["consistency"].item() == pytest.approx(0.5 * one["consistency"].item())
        assert half["dice"] == one["dice"]

    def test_heads_stay_in_float32_under_autocast(self):
        method, (labeled, unlabeled) = self.build(), batches()
        seen = {}
        original = method.terms
        method.terms = lambda logits, raw, batch: (seen.update(logits=logits, raw=raw), original(logits, raw, batch))[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            method(labeled, unlabeled)
        assert seen["logits"].dtype == seen["raw"].dtype == torch.float32
        # not float32 numbers that were rounded to bfloat16 before
        assert not torch.equal(seen["raw"], seen["raw"].bfloat16().float())

    def test_second_opinion_is_what_the_distance_says(self):
        method = self.build(n_classes=3, slope=10.0).eval()
        inside = torch.tensor([[0.8, 0.1], [0.1, 0.3], [0.02, 0.05]])  # of both classes, at three voxels
        raw = torch.atanh(-torch.logit(inside) / 10.0).T.reshape(1, 2, 3, 1)
        method.network.tasks = lambda image: (torch.full((1, 3, 3, 1), float("nan")), raw)
        opinion = method.second_opinion(torch.zeros(1, 1, 3, 1))
        expected = torch.tensor([[0.2, 0.8, 0.1], [0.7, 0.1, 0.3], [0.95, 0.02, 0.05]])
        expected /= expected.sum(1, keepdim=True)
        torch.testing.assert_close(opinion[0, :, :, 0].T, expected)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"variant": "code"}, r"variant must be one of \('released', 'paper'\), got 'code'"),
            ({"distance_weight": -1.0}, r"distance_weight must be >= 0, got -1.0"),
            ({"slope": 0.0}, r"slope must be > 0, got 0.0"),
            ({"max_iterations": 0}, r"max_iterations must be >= 1, got 0"),
            ({"degenerate": "x"}, r"degenerate must be one of .* got 'x'"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_a_network_without_two_tasks(self):
        with pytest.raises(TypeError, match=r"network must offer tasks.*got VNet; wrap .*DualTaskNetwork"):
            DualTaskConsistency(VNet(2, 1, 2, base_channels=2))

    def test_rejects_maps_of_another_number_of_classes(self):
        (labeled, _), (logits, raw) = batches(), self.outputs()
        with pytest.raises(ValueError, match="same shape"):
            self.build().terms(
                logits, torch.cat([raw, raw], 1), labeled | {"signed_distance": torch.zeros(2, 2, 32, 32)}
            )

"""UA-MT: what is its own; the numbers of the released code are in ``tests/baselines``."""

import math

import pytest
import torch
from method_tester import MethodTester, batches
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.losses import SigmoidRampUp
from monai_ssl.methods import UncertaintyAwareMeanTeacher
from monai_ssl.networks import VNet


class TestUncertaintyAwareMeanTeacher(MethodTester):
    bundle = "ua_mt"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return UncertaintyAwareMeanTeacher(VNet(spatial_dims, **sizes), max_iterations, **options)

    def method(self, network, **options):
        return UncertaintyAwareMeanTeacher(network, **options)

    @pytest.mark.parametrize(
        ("passes", "per_call", "calls"), [(8, 2, [2, 4, 4, 4, 4]), (3, 2, [2, 4, 2]), (1, 1, [2, 2])]
    )
    def test_the_teacher_is_asked_once_for_the_target_and_then_for_its_spread(self, passes, per_call, calls):
        method, rows = self.build(passes=passes, passes_per_call=per_call), []
        method.teacher.register_forward_hook(lambda m, x, y: rows.append(len(x[0])))
        method(*batches())
        assert rows == calls

    def test_the_matched_floor_asks_no_teacher(self):
        method = self.build(unsupervised_weight=0.0)
        method.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
        assert set(method(*batches())) == {"supervised"}
        assert method.second_opinion(batches()[1]["image"]) is None

    @pytest.mark.parametrize("n_classes", [2, 4])
    def test_the_threshold_ends_at_the_largest_entropy(self, n_classes):
        method = self.build(n_classes=n_classes, max_iterations=100)
        assert method.threshold(n_classes) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(n_classes))
        uniform = torch.full((1, n_classes, 2, 2), 1 / n_classes)
        assert not method.certain(uniform).any()
        assert method.certain(torch.eye(n_classes)[None, :, :, None]).all()
        method.iteration = 100
        assert method.threshold(n_classes) == pytest.approx(math.log(n_classes))
        assert method.certain(uniform).all()

    def test_two_classes_in_the_constants_as_released(self):
        torch.manual_seed(0)
        logits, taught = torch.randn(4, 4, 8, 8), torch.randn(2, 4, 8, 8)
        labeled = {"label": torch.zeros(2, 1, 8, 8, dtype=torch.long)}
        certain = torch.eye(4)[torch.zeros(2, 8, 8, dtype=torch.long)].movedim(-1, 1)
        found = {}
        for classes in (None, 2):
            method = self.build(n_classes=4, entropy_classes=classes, ramp_up=SigmoidRampUp(0))
            found[classes] = method.terms(logits, taught, certain, labeled)["consistency"].item()
            assert method.threshold(4) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(classes or 4))
        assert found[2] == pytest.approx(found[None] * 4 / 2)

    def test_variants_are_columns_of_its_table(self):
        torch.manual_seed(0)
        logits, taught = torch.randn(4, 4, 8, 8), torch.randn(2, 4, 8, 8)
        labeled = {"label": torch.zeros(2, 1, 8, 8, dtype=torch.long)}
        certain = torch.eye(4)[torch.zeros(2, 8, 8, dtype=torch.long)].movedim(-1, 1)
        found = {}
        for variant in (None, "released", "paper"):
            method = self.build(n_classes=4, variant=variant, ramp_up=SigmoidRampUp(0))
            found[variant] = method.terms(logits, taught, certain, labeled)["consistency"].item()
            assert method.threshold(4) / (0.75 + 0.25 * math.exp(-5)) == pytest.approx(
                math.log(2 if variant == "released" else 4)
            )
        assert found["paper"] == pytest.approx(2 * found["released"])
        assert found["paper"] == pytest.approx(4 * found[None])
        with pytest.raises(ValueError, match=r"variant must be one of \('released', 'paper'\) or None, got 'code'"):
            self.build(variant="code")

    @pytest.mark.parametrize("labeled_too", [True, False])
    def test_the_paper_asks_for_all_images(self, labeled_too):
        method, rows = self.build(variant="paper", labeled_too=labeled_too, passes=2), []
        method.teacher.register_forward_hook(lambda m, x, y: rows.append(len(x[0])))
        labeled, unlabeled = batches()
        images = len(labeled["label"]) * labeled_too + len(unlabeled["image"])
        assert set(method(labeled, unlabeled)) == {"supervised", "consistency"}
        assert rows == [images, 2 * images]
        assert ("consistency" in method(labeled)) == labeled_too

    def test_the_threshold_rises_over_the_run_and_the_weight_over_its_ramp(self):
        """SS-Net's and CAML's tables train 15000 iterations with a ramp-up of 6000."""
        method = self.build(max_iterations=6000, threshold_iterations=15000)
        for iteration, expected in ((3000, 0.526924), (6000, 0.548505), (9000, 0.597723), (15000, 0.693147)):
            method.iteration = iteration
            assert method.threshold(2) == pytest.approx(expected, abs=1e-6)
        assert method.ramp_up(6000) == pytest.approx(0.1)

    def test_where_the_teacher_is_uncertain_nothing_is_learned(self):
        method = self.build(ramp_up=SigmoidRampUp(0))
        logits, taught = torch.randn(4, 2, 8, 8, requires_grad=True), torch.randn(2, 2, 8, 8)
        mean = torch.full((2, 2, 8, 8), 0.5)
        mean[:, 0, :4], mean[:, 1, :4] = 0.9, 0.1
        labeled = {"label": torch.zeros(2, 1, 8, 8, dtype=torch.long)}
        method.terms(logits, taught, mean, labeled)["consistency"].backward()
        assert logits.grad[2:, :, :4].all()
        assert not logits.grad[2:, :, 4:].any()
        assert not logits.grad[:2].any()
        mean.fill_(0.5)
        assert method.terms(logits, taught, mean, labeled)["consistency"].item() == 0.0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"passes": 0}, "passes must be >= 1, got 0"),
            ({"passes_per_call": 0}, "passes_per_call must be >= 1, got 0"),
            ({"divisor": 0}, "divisor must be >= 1, got 0"),
            ({"threshold_iterations": 0}, "threshold_iterations must be >= 1, got 0"),
            ({"entropy_classes": 1}, "entropy_classes must be >= 2, got 1"),
            ({"weight": -1}, "weight must be >= 0, got -1"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

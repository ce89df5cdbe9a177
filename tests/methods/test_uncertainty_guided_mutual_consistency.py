"""UG-MCL: what is its own; ``method_tester.py`` holds what all methods have in common."""

import math

import numpy as np
import pytest
import torch
from method_tester import SIDES, MethodTester, batches, total
from torch import nn

from monai_ssl.losses import (
    ForegroundDiceLoss,
    SigmoidRampUp,
)
from monai_ssl.methods import (
    UncertaintyGuidedMutualConsistency,
)
from monai_ssl.networks import (
    DualTaskNetwork,
    DualTaskVNet,
    UNet,
    VNet,
)
from monai_ssl.transforms import SignedDistanceMap


class TestUncertaintyGuidedMutualConsistency(MethodTester):
    bundle = "ug_mcl"
    supervised_terms = ("dice", "cross_entropy", "signed_distance")
    unsupervised_terms = ("intra_task", "cross_task")

    def network(self, spatial_dims=2, n_classes=2):
        return DualTaskVNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0, binary="softmax")

    def wrap(self, backbone, spatial_dims, n_classes):
        return DualTaskNetwork(backbone, n_classes, feature_channels=8, binary="softmax")

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        network = DualTaskVNet(spatial_dims, binary="softmax", **sizes)
        return UncertaintyGuidedMutualConsistency(network, max_iterations=max_iterations, **options)

    def method(self, network, **options):
        return UncertaintyGuidedMutualConsistency(network, **options)

    @staticmethod
    def outputs(n_classes=2, channels=None, n=4, seed=0):
        """Student's logits and distance, teacher's, mean probabilities."""
        generator = torch.Generator().manual_seed(seed)

        def draw(c):
            return torch.randn(n, c, *SIDES[2], generator=generator)

        channels = channels or n_classes - 1
        distances = [0.003 * draw(channels), 0.003 * draw(channels)]
        return draw(n_classes), distances[0], draw(n_classes), distances[1], (2 * draw(n_classes)).softmax(1)

    @pytest.mark.parametrize("off", [{"unsupervised_weight": 0.0}, {"intra_weight": 0.0}])
    def test_a_teacher_that_nobody_learns_from_is_not_asked(self, off):
        method = self.build(**off)
        method.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
        method.teacher.network.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
        terms = method(*batches())
        assert terms["intra_task"] == 0
        assert (terms["cross_task"] > 0) == ("intra_weight" in off)
        assert method.second_opinion(batches()[1]["image"]) is None

    def test_variants_are_sets_of_options(self):
        (labeled, _), outputs = batches(), self.outputs(channels=2)
        options = {"shared_logits": True, "distance_supervision": "dice", "supervised_weight": 0.5, "beta": 1.0,
                   "intra_weight": 0.5, "ramp_up": SigmoidRampUp(6000, 0.1, granularity=30)}  # fmt: skip
        one_by_one = self.build(**options).terms(*outputs, labeled)
        released = self.build(variant="released").terms(*outputs, labeled)
        assert one_by_one == released

    def test_options_of_the_distance_map(self):
        (labeled, _), outputs = batches(n_classes=4), self.outputs(4)
        p, distance = outputs[0].softmax(1), outputs[1]
        soft = torch.sigmoid(-1500.0 * distance)
        dice = self.build(n_classes=4, distance_supervision="dice").terms(*outputs, labeled)
        expected = ForegroundDiceLoss().of_probabilities(soft[:2], labeled["label"])
        assert dice["signed_distance"].item() == pytest.approx(expected.item(), rel=1e-5)
        plain = self.build(n_classes=4).terms(*outputs, labeled)
        assert dice["cross_task"] == plain["cross_task"]
        # shared logits: the channels of the foreground have distance targets
        everywhere = torch.cat([distance[:, :1], distance], 1)
        shared = self.build(n_classes=4, shared_logits=True).terms(
            outputs[0], everywhere, outputs[2], everywhere, outputs[4], labeled
        )
        assert shared["signed_distance"].item() == pytest.approx(plain["signed_distance"].item(), rel=1e-5)
        weight = self.build(n_classes=4).ramp_up(0)
        expected = weight * (torch.sigmoid(-1500.0 * everywhere) - p).square().mean()
        assert shared["cross_task"].item() == pytest.approx(expected.item(), rel=1e-4)

    @pytest.mark.parametrize("variant", [None, "paper", "released"])
    @pytest.mark.parametrize("n_classes", [2, 4])
    def test_terms_equal_the_formulas(self, n_classes, variant):
        (labeled, _), released = batches(n_classes=n_classes), variant == "released"
        outputs = self.outputs(n_classes, n_classes if released else None)
        method = self.build(n_classes=n_classes, variant=variant, max_iterations=400, slope=900.0)
        method.iteration = 123
        terms = method.terms(*outputs, labeled)
        logits, d, logits_t, d_t, mean = (x.double().numpy() for x in outputs)
        p, p_t = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (logits, logits_t))
        y = np.stack([labeled["label"][:, 0].numpy() == c for c in range(n_classes)], 1).astype(float)

        def dice(q, y):
            top, bottom = (q * y).sum((0, 2, 3)), (q**2).sum((0, 2, 3)) + (y**2).sum((0, 2, 3))
            return np.mean(1 - (2 * top + 1e-5) / (bottom + 1e-5))

        soft = 1 / (1 + np.exp(900.0 * d))
        entropy = -(mean * np.log(mean + 1e-6)).sum(1, keepdims=True)
        mask = entropy < (0.75 + 0.25 * math.exp(-5 * (1 - 123 / 400) ** 2)) * math.log(n_classes)
        assert 0.1 < mask.mean() < 0.9
        half = 0.5 if released else 1.0
        level = 123 // 2 / 200 if released else 123 / 400
        weight = 0.1 * math.exp(-5 * (1 - level) ** (1 if variant == "paper" else 2))
        channels = n_classes if variant == "paper" else 1, n_classes - 1 if variant == "paper" else 1
        squares = channels[0] * (mask * (p - p_t) ** 2).mean(1).sum() / mask.sum()
        target = np.stack([SignedDistanceMap(n_classes)(label).numpy() for label in labeled["label"]])
        if released:
            distance, intra = dice(soft[:2, 1:], y[:, 1:]), 0.5 * squares
            cross = ((soft - p) ** 2).mean()
        else:
            distance = ((d[:2] - target) ** 2).mean()
            intra = 0.75 * squares + 0.25 * channels[1] * (mask * (d - d_t) ** 2).mean(1).sum() / mask.sum()
            cross = ((soft - p[:, 1:]) ** 2).mean()
        expected = {
            "dice": half * dice(p[:2, 1:], y[:, 1:]),
            "cross_entropy": half * -(y * np.log(p[:2])).sum(1).mean(),
            "signed_distance": half * distance,
            "intra_task": weight * intra,
            "cross_task": weight * cross,
        }
        assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, abs=1e-6, rel=1e-4)

    def test_passes_over_the_images(self):
        method, (labeled, unlabeled) = self.build(passes=8, passes_per_call=3), batches(n_labeled=1, n_unlabeled=3)
        student, teacher = [], []
        method.network.backbone.register_forward_hook(lambda m, x, y: student.append(x[0]))
        method.teacher.network.backbone.register_forward_hook(lambda m, x, y: teacher.append((x[0], y.requires_grad)))
        method(labeled, unlabeled)
        images = torch.cat([labeled["image"], unlabeled["image"]])
        assert len(student) == 1
        assert torch.equal(student[0], images)  # without noise
        assert [len(x) for x, _ in teacher] == [4, 12, 12, 8]
        assert not any(gradient for _, gradient in teacher)
        copies = torch.cat([x for x, _ in teacher])
        noise = copies - images.repeat(9, 1, 1, 1)
        assert noise.abs().max() == pytest.approx(0.2)
        assert noise.std() == pytest.approx(0.0958, abs=0.003)  # of a normal distribution clipped at two sigma
        assert len(copies.flatten(1).unique(dim=0)) == 36  # each pass its own noise

    def test_teacher_is_the_moving_average_and_never_learns(self):
        method = self.build()
        optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
        expected = None
        for step in range(4):
            total(method(*batches(seed=step))).backward()
            optimizer.step()
            optimizer.zero_grad()
            method.after_step()
            weights = method.network.segmentation_head.weight.detach().clone()
            alpha = 1 - 1 / (step + 1)
            expected = weights if expected is None else alpha * expected + (1 - alpha) * weights
            torch.testing.assert_close(method.teacher.network.segmentation_head.weight.data, expected)
        assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())
        teacher, student = (
            dict(n.named_buffers())["backbone.stages.0.0.norm.running_mean"]
            for n in (method.teacher.network, method.network)
        )
        assert not torch.equal(teacher, student)  # its statistics are those of its own passes

    def test_second_opinion_is_the_teachers(self):
        method, image = self.build(n_classes=3).eval(), batches()[1]["image"]
        for parameter in method.teacher.parameters():
            parameter.data.mul_(1.5)
        with torch.no_grad():
            opinion, student = method.second_opinion(image), method.network(image).softmax(1)
            torch.testing.assert_close(opinion, method.teacher.network(image).softmax(1))
        assert (opinion - student).abs().max() > 0.01

    def test_released_variant_leaves_a_distance_head_out(self):
        method = self.build(variant="released")
        total(method(*batches())).backward()
        for name, parameter in method.network.named_parameters():
            assert (parameter.grad is None) == name.startswith("distance_head"), name

    def test_released_variant_takes_any_network(self):
        method = UncertaintyGuidedMutualConsistency(UNet(2, 1, 3, channels=(2, 4)), variant="released")
        terms = method(*batches(n_classes=3))
        self.check_terms(terms)
        total(terms).backward()
        self.check_training(method)

    @pytest.mark.parametrize(
        ("option", "term"),
        [("distance_weight", "signed_distance"), ("intra_weight", "intra_task"), ("cross_weight", "cross_task")],
    )
    def test_switches_of_the_ablation(self, option, term):
        (labeled, _), outputs = batches(), self.outputs()
        full, off = self.build().terms(*outputs, labeled), self.build(**{option: 0.0}).terms(*outputs, labeled)
        assert off[term] == 0 < full[term]
        assert {k: v.item() for k, v in off.items() if k != term} == {k: v.item() for k, v in full.items() if k != term}

    def test_what_is_not_finite_is_not_hidden_by_the_mask(self):
        (labeled, _), outputs = batches(), list(self.outputs())
        outputs[2][0, 0, 0, 0] = float("nan")  # the teacher
        outputs[4][0, :, 0, 0] = 0.5  # where it is not certain
        assert self.build().terms(*outputs, labeled)["intra_task"].isnan()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"variant": "official"}, r"variant must be one of \('paper', 'released'\) or None, got 'official'"),
            ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
            ({"cross_weight": -1.0}, r"cross_weight must be >= 0, got -1.0"),
            ({"passes": 0}, r"passes must be >= 1, got 0"),
            ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
            ({"max_iterations": 0}, r"max_iterations must be >= 1, got 0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_a_network_without_two_tasks(self):
        with pytest.raises(TypeError, match=r"network must offer tasks.*got VNet; .*DualTaskNetwork.*shared_logits"):
            UncertaintyGuidedMutualConsistency(VNet(2, 1, 2, base_channels=2))
        with pytest.raises(ValueError, match=r"n_classes must be given: Sequential"):
            UncertaintyGuidedMutualConsistency(nn.Sequential(nn.Conv2d(1, 2, 1)), variant="released")

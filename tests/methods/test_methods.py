"""Every method: what all have in common (``method_tester.py``) and what is its own.

A new method adds a class that inherits :class:`MethodTester`.
"""

import copy
import math

import numpy as np
import pytest
import torch
from method_tester import SIDES, MethodTester, batches, total
from monai.networks.layers import Conv
from torch import nn
from torch.nn import functional

from monai_ssl.losses import (
    CrossPseudoLabelLoss,
    ForegroundDiceLoss,
    HalfDiceCELoss,
    OmniCorrelationLoss,
    SigmoidRampUp,
)
from monai_ssl.losses.virtual_adversarial import DISTANCES
from monai_ssl.methods import (
    CorrelationAwareMutualLearning,
    DualTaskConsistency,
    SemiSupervisedMethod,
    SmoothnessSeparation,
    Supervised,
    TaskAffinityConsistency,
    UncertaintyGuidedMutualConsistency,
    joint_images,
)
from monai_ssl.networks import (
    CrossSampleNetwork,
    DualTaskNetwork,
    DualTaskVNet,
    FeatureNetwork,
    TappedNetwork,
    UNet,
    VNet,
    literature_network,
)
from monai_ssl.transforms import SignedDistanceMap


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

    @pytest.mark.parametrize("variant", ["paper", "released"])
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
        weight = 0.1 * math.exp(-5 * (1 - level) ** 2)
        squares = (mask * (p - p_t) ** 2).mean(1).sum() / mask.sum()
        target = np.stack([SignedDistanceMap(n_classes)(label).numpy() for label in labeled["label"]])
        if released:
            distance, intra = dice(soft[:2, 1:], y[:, 1:]), 0.5 * squares
            cross = ((soft - p) ** 2).mean()
        else:
            distance = ((d[:2] - target) ** 2).mean()
            intra = 0.75 * squares + 0.25 * (mask * (d - d_t) ** 2).mean(1).sum() / mask.sum()
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
            ({"variant": "official"}, r"variant must be one of \('paper', 'released'\), got 'official'"),
            ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
            ({"cross_weight": -1.0}, r"cross_weight must be >= 0, got -1.0"),
            ({"passes": 0}, r"passes and passes_per_call must be >= 1, got 0 and 2"),
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


class TestSmoothnessSeparation(MethodTester):
    bundle = "ss_net"
    supervised_terms = ("dice",)
    unsupervised_terms = ("smoothness", "separation")

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return FeatureNetwork(backbone, n_classes, feature_channels=8)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return SmoothnessSeparation(VNet(spatial_dims, **sizes), max_iterations, **({"prototypes": 8} | options))

    def method(self, network, **options):
        return SmoothnessSeparation(network, **options)

    @staticmethod
    def plain_separation(method, features, label, predicted):
        """As the released code goes about it: every voxel through both heads, M x N matrices."""
        heads, rows = method.voxel_heads, len(label)
        flat = [part.movedim(1, -1).reshape(-1, part.shape[1]) for part in (features[:rows], features[rows:])]
        classes = [label.flatten(), predicted[rows:].flatten()]
        correct = (predicted[:rows].flatten() == classes[0]) & (classes[0] > 0)
        with torch.no_grad():
            candidates = heads.projection.eval()(flat[0][correct])
            heads.projection.train()
            memory = [None]
            for c in range(1, method.n_classes):
                mine = candidates[classes[0][correct] == c]
                selector = (method.selectors if method.rank_by == "features" else method.prototype_selectors)[c - 1]
                order = selector(mine)[:, 0].argsort(descending=method.memory.rank == "highest")
                memory.append(mine[order[: method.memory.size]])
        loss = 0.0
        for f, y in zip(flat, classes, strict=True):
            projected = heads.prediction(heads.projection(f))
            for c in range(1, method.n_classes):
                mine, z = projected[y == c], functional.normalize(memory[c], dim=1)
                w = method.selectors[c - 1](mine.detach()).sigmoid()
                v = method.prototype_selectors[c - 1](z).sigmoid() if method.memory_weights else torch.ones(len(z), 1)
                matrix = (w / w.mean()) @ (v / v.mean()).T * (1 - functional.normalize(mine, dim=1) @ z.T)
                loss = loss + matrix.mean() / method.n_classes
        return loss, memory

    @pytest.mark.parametrize(
        ("off", "passes"), [("unsupervised_weight", 2), ("smoothness_weight", 2), ("separation_weight", 4)]
    )
    def test_parts_that_are_off_cost_nothing(self, off, passes):
        method, seen = self.build(**{off: 0.0}), []
        first = next(m for m in method.network.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_hook(lambda *_: seen.append(1))
        terms = method(*batches())
        assert len(seen) == passes
        assert (terms["smoothness"] == 0) == (passes == 2)
        if off != "smoothness_weight":
            assert terms["separation"] == 0

    @pytest.mark.parametrize(
        "options", [{}, {"rank": "highest", "rank_by": "prototypes", "memory_weights": True}], ids=["released", "paper"]
    )
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_separation_equals_the_plain_reading(self, spatial_dims, options):
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(4, 2, *SIDES[spatial_dims], generator=generator)
        classes = torch.randint(0, 3, (4, 1, *SIDES[spatial_dims]), generator=generator)
        label = torch.where(torch.rand(2, 1, *SIDES[spatial_dims], generator=generator) < 0.3, 1, classes[:2])
        results = []
        for plain in (True, False):
            method = self.build(spatial_dims, 3, prototypes=6, **options)
            f = features.clone().requires_grad_()
            if plain:
                loss, memory = self.plain_separation(method, f, label, classes)
            else:
                loss = method.separate(f, classes, label)
                memory = [method.memory[c] for c in range(3)]
            loss.backward()
            parameters = {n: p.grad for n, p in method.named_parameters() if not n.startswith("network")}
            results.append((loss.detach(), memory, {**parameters, "features": f.grad}, dict(method.named_buffers())))
        (loss, memory, gradients, buffers), (expected, prototypes, wanted, statistics) = results[1], results[0]
        torch.testing.assert_close(loss, expected)
        for c in (1, 2):
            torch.testing.assert_close(memory[c], prototypes[c])
        for name, gradient in wanted.items():
            # none: an unused selector; a bias before batch normalization has gradient 0 up to rounding
            if gradient is not None and not name.endswith("first.bias"):
                torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
        for name, value in statistics.items():
            if not name.startswith(("memory", "network")):
                torch.testing.assert_close(buffers[name], value, msg=name)

    def test_every_parameter_has_a_gradient_in_every_step(self):
        # distributed training waits for them all
        method, (labeled, unlabeled) = self.build(n_classes=4, memory_weights=True), batches(n_classes=4)
        labeled["label"].fill_(0)  # no class, no prototype
        total(method(labeled, unlabeled)).backward()
        assert [name for name, p in method.named_parameters() if p.grad is None] == []

    def test_smoothness_leaves_gradients_and_statistics_alone(self):
        method, (labeled, unlabeled) = self.build(), batches()
        for parameter in method.parameters():
            parameter.grad = torch.ones_like(parameter)
        method(labeled, unlabeled)
        assert all((p.grad == 1).all() for p in method.parameters())
        norm = method.network.stages[0][0].norm
        assert norm.num_batches_tracked == 2  # the main pass and the clean pass of the smoothness
        assert norm.track_running_stats

    @pytest.mark.parametrize("distance", ["flat", "classwise", "kl"])
    def test_perturbation_raises_the_distance_more_than_noise(self, distance):
        method, image = self.build(distance=distance), batches()[0]["image"]
        network = method.network.eval()
        with torch.no_grad():
            p = network(image).softmax(1)
        r = method.smoothness.perturbation(network, image, p)
        assert r.flatten(1).norm(dim=1).tolist() == pytest.approx([6 * 32 / 256] * 2, rel=2e-3)
        noise = torch.randn_like(r)
        noise *= r.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) / noise.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        with torch.no_grad():
            found, random = (DISTANCES[distance](network(image + x), p) for x in (r, noise))
        assert found > random

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_direction_under_autocast(self, spatial_dims):
        method, image = self.build(spatial_dims), batches(spatial_dims)[0]["image"]
        network = method.network.eval()
        with torch.no_grad():
            p = network(image).softmax(1)
        noise = torch.randn_like(image)
        exact = method.smoothness.perturbation(network, image, p, noise)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = method.smoothness.perturbation(network, image, p, noise)
        assert found.dtype == torch.float32
        assert functional.cosine_similarity(found.flatten(1), exact.flatten(1)).min() > 0.9

    def test_an_empty_memory_is_reported(self, caplog):
        method = self.build(n_classes=3, max_iterations=20)
        method.memory.replace(1, torch.ones(2, 32))
        for _ in range(3):
            method.after_step()
        [record] = caplog.records
        assert "iteration 2: no prototypes of class 2 yet" in record.getMessage()
        assert "monai-ssl check" in record.getMessage()

    def test_prototypes_stay_until_there_are_new_ones(self):
        method, (labeled, unlabeled) = self.build(), batches()
        method(labeled, unlabeled)
        before = method.memory[1].clone()
        assert len(before) == 32
        labeled["label"].fill_(0)
        method(labeled, unlabeled)
        assert torch.equal(method.memory[1], before)

    @pytest.mark.parametrize(
        ("option", "term"), [("smoothness_weight", "smoothness"), ("separation_weight", "separation")]
    )
    def test_switches_of_the_ablation(self, option, term):
        full, off = (self.build(**options)(*batches()) for options in ({}, {option: 0.0}))
        assert off[term] == 0 < full[term]
        assert off["dice"] == full["dice"]

    def test_defaults_by_dimension(self):
        three, two = self.build(3), self.build(2)
        assert (three.smoothness.distance, two.smoothness.distance) == ("flat", "classwise")
        assert (three.ramp_up.length, three.ramp_up.granularity, three.ramp_up.maximum) == (6000, 150, 1.0)
        assert (two.ramp_up.length, two.ramp_up.granularity, two.ramp_up.maximum) == (6000, 30, 0.1)
        assert self.build(ramp_up=SigmoidRampUp(0, 0.5)).ramp_up(0) == 0.5

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"distance": "dice"}, r"distance must be one of \('flat', 'classwise', 'kl'\), got 'dice'"),
            ({"epsilon": 0.0}, r"epsilon must be > 0 or None, got 0.0"),
            ({"xi": -1.0}, r"xi must be > 0, got -1.0"),
            ({"power_iterations": 0}, r"power_iterations must be >= 1, got 0"),
            ({"smoothness_weight": -1.0}, r"smoothness_weight must be >= 0, got -1.0"),
            ({"prototypes": 1}, r"size must be >= 2 prototypes per class, got 1"),
            ({"rank": "top"}, r"rank must be 'lowest' or 'highest', got 'top'"),
            ({"rank_by": "x"}, r"rank_by must be 'features' or 'prototypes', got 'x'"),
            ({"max_iterations": 0}, r"max_iterations must be >= 1, got 0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_a_network_without_features(self):
        with pytest.raises(TypeError, match=r"got Conv2d without features, logits.*FeatureNetwork"):
            SmoothnessSeparation(nn.Conv2d(1, 2, 1))
        with pytest.raises(TypeError, match=r"got VNet without out_channels"):
            SmoothnessSeparation(VNet(2, 1, None, base_channels=2))


class TestTaskAffinityConsistency(MethodTester):
    bundle = "tac"
    supervised_terms = ("dice",)
    unsupervised_terms = ("contextual", "structural")

    def network(self, spatial_dims=2, n_classes=2):
        return literature_network(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0, gates=True)

    def wrap(self, backbone, spatial_dims, n_classes):
        network = nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))
        return TappedNetwork(network, contextual=["0.conv_0", "0.down_1"], structural=["0.upcat_1"])

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return TaskAffinityConsistency(VNet(spatial_dims, gates=True, **sizes), **options)

    def method(self, network, **options):
        return TaskAffinityConsistency(network, **options)

    @staticmethod
    def outputs(n_labeled=2, n_unlabeled=2, n_classes=3, seed=0):
        """Logits, three contextual and two structural maps, label."""
        generator = torch.Generator().manual_seed(seed)
        n = n_labeled + n_unlabeled
        x = [torch.rand(n, 4 + i, 16 >> i, 16 >> i, generator=generator) for i in range(3)]
        gated = [torch.rand(n, 4 + i, 16 >> i, 16 >> i, generator=generator) for i in range(2)]
        label = torch.randint(0, n_classes, (n_labeled, 1, 16, 16), generator=generator)
        return torch.randn(n, n_classes, 16, 16, generator=generator), x, gated, label

    @staticmethod
    def expected(maps, masks, rows, pooling, pairing, empty):
        """The consistency term, loop by loop in float64."""
        total = 0.0
        for x in maps:
            stride = masks[0].shape[-1] // x.shape[-1]
            vectors, present = [], []
            for half, mask in ((x[:rows], masks[0]), (x[rows:], masks[1])):
                m = mask[..., ::stride, ::stride].double()
                size = m.sum((2, 3))
                below = size.sum(0, keepdim=True) if pooling == "batch" else size
                sums = (half.double()[:, None] * m[:, :, None]).sum((3, 4))
                vectors.append(sums / (below + 1e-6)[..., None])
                present.append(size > 0)
            n_l, n_u = len(vectors[0]), len(vectors[1])
            every = pairing == "all_pairs" or n_l != n_u
            pairs = [(i, j) for i in range(n_l) for j in range(n_u)] if every else [(i, i) for i in range(n_l)]
            distances = [
                (vectors[0][i, c] - vectors[1][j, c]).square().mean().item()
                for i, j in pairs
                for c in range(m.shape[1])
                if empty == "zero" or (present[0][i, c] and present[1][j, c])
            ]
            total += sum(distances) / max(len(distances), 1)
        return total

    @pytest.mark.parametrize("empty", ["skip", "zero"])
    @pytest.mark.parametrize("masks", ["soft", "hard"])
    @pytest.mark.parametrize("pooling", ["image", "batch"])
    @pytest.mark.parametrize(
        ("n_labeled", "n_unlabeled", "pairing"), [(2, 2, "same_index"), (2, 2, "all_pairs"), (3, 1, "same_index")]
    )
    def test_terms_equal_the_formulas(self, n_labeled, n_unlabeled, pairing, pooling, masks, empty):
        logits, x, gated, label = self.outputs(n_labeled, n_unlabeled)
        label[0][label[0] == 2] = 0  # a class that one image does not show
        logits[-1, 1] -= 20  # and one that is never predicted there
        method = self.build(n_classes=3, pooling=pooling, pairing=pairing, masks=masks, empty=empty)
        terms = method.terms(logits, x, gated, {"label": label})
        dice = sum(
            1 - (2 * (p * y).sum() + 1e-5) / (p.square().sum() + y.sum() + 1e-5)
            for p, y in ((logits[:n_labeled, c].sigmoid(), (label[:, 0] == c).float()) for c in range(3))
        )
        assert terms["dice"].item() == pytest.approx(dice.item(), rel=1e-5)
        target = functional.one_hot(label[:, 0], 3).movedim(-1, 1)
        below = logits[n_labeled:]
        mask = below.sigmoid() if masks == "soft" else functional.one_hot(below.argmax(1), 3).movedim(-1, 1)
        arguments = (target, mask), n_labeled, pooling, pairing, empty
        assert terms["contextual"].item() == pytest.approx(0.5 * self.expected(x, *arguments), rel=1e-4)
        assert terms["structural"].item() == pytest.approx(self.expected(gated, *arguments), rel=1e-4)

    def test_every_map_of_the_network_counts(self):
        method, (labeled, unlabeled) = self.build(spatial_dims=3), batches(3)
        logits, contextual, structural = method.network.taps(joint_images(labeled, unlabeled))
        assert [x.shape[2] for x in contextual] == [32, 16, 8, 4, 2]
        assert [x.shape[2] for x in structural] == [32, 16, 8, 4]  # fine to coarse, as the contextual ones
        assert torch.equal(logits, self.build(spatial_dims=3).network(joint_images(labeled, unlabeled)).float())
        terms = method(labeled, unlabeled)
        for kind, n in (("contextual", 5), ("structural", 4)):
            alone = [
                self.build(spatial_dims=3, **{f"{kind}_scales": [scale]})(labeled, unlabeled)[kind].item()
                for scale in range(1, n + 1)
            ]
            assert min(alone) > 0
            assert terms[kind].item() == pytest.approx(sum(alone), rel=1e-4)

    def test_gradient_reaches_both_sides_and_the_prediction(self):
        logits, x, gated, label = self.outputs()
        for tensor in (logits, *x):
            tensor.requires_grad_()
        self.build(n_classes=3).terms(logits, x, gated, {"label": label})["contextual"].backward()
        assert all(tensor.grad[:2].any() for tensor in x)
        assert all(tensor.grad[2:].any() for tensor in x)
        assert not logits.grad[:2].any()
        assert logits.grad[2:].any()

    def test_fixed_targets_and_hard_masks_stop_it(self):
        logits, x, gated, label = self.outputs()
        for tensor in (logits, *x):
            tensor.requires_grad_()
        method = self.build(n_classes=3, detach_labeled=True, masks="hard")
        method.terms(logits, x, gated, {"label": label})["contextual"].backward()
        assert not any(tensor.grad[:2].any() for tensor in x)
        assert all(tensor.grad[2:].any() for tensor in x)
        assert logits.grad is None

    def test_weights_switch_the_modules_off(self):
        logits, x, gated, label = self.outputs()
        one = self.build(n_classes=3).terms(logits, x, gated, {"label": label})
        none = self.build(n_classes=3, contextual_weight=0.0, structural_weight=0.5)
        terms = none.terms(logits, x, gated, {"label": label})
        assert terms["contextual"] == 0
        assert terms["structural"].item() == pytest.approx(0.5 * one["structural"].item())
        without_gates = TaskAffinityConsistency(UNet(2, 1, 3, channels=(2, 4)), structural_weight=0.0)
        assert without_gates(*batches(n_classes=3))["structural"] == 0

    def test_softmax(self):
        logits, x, gated, label = self.outputs()
        terms = self.build(n_classes=3, activation="softmax").terms(logits, x, gated, {"label": label})
        target = functional.one_hot(label[:, 0], 3).movedim(-1, 1)
        expected = self.expected(x, (target, logits[2:].softmax(1)), 2, "batch", "same_index", "skip")
        assert terms["contextual"].item() == pytest.approx(0.5 * expected, rel=1e-4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"contextual_weight": -1.0}, r"contextual_weight must be >= 0, got -1.0"),
            ({"structural_weight": -1.0}, r"structural_weight must be >= 0, got -1.0"),
            ({"pooling": "x"}, r"pooling must be one of \('image', 'batch'\), got 'x'"),
            ({"pairing": "x"}, r"pairing must be one of .* got 'x'"),
            ({"empty": "x"}, r"empty must be one of .* got 'x'"),
            ({"masks": "x"}, r"masks must be one of .* got 'x'"),
            ({"reduction": "x"}, r"reduction must be one of .* got 'x'"),
            ({"activation": "x"}, r"activation must be one of .* got 'x'"),
            ({"contextual_scales": [6]}, r"contextual_scales must be numbers from 1 .* to 5, got \[6\]"),
            ({"structural_scales": [0]}, r"structural_scales must be numbers from 1 .* to 4, got \[0\]"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)(*batches())

    def test_rejects_networks(self):
        with pytest.raises(TypeError, match=r"network must offer taps.*got Conv2d; wrap .*TappedNetwork"):
            TaskAffinityConsistency(nn.Conv2d(1, 2, 1))
        with pytest.raises(ValueError, match=r"structural_weight must be 0 for a network without attention gates"):
            TaskAffinityConsistency(VNet(2, base_channels=2))(*batches())
        with pytest.raises(ValueError, match=r"must be names of the network's modules, got 'x'"):
            TappedNetwork(nn.Conv2d(1, 2, 1), ["x"])


class TestCorrelationAwareMutualLearning(MethodTester):
    bundle = "caml"
    supervised_terms = ("dice",)
    unsupervised_terms = ("cross_supervision", "correlation")

    def network(self, spatial_dims=2, n_classes=2):
        return literature_network(spatial_dims, 1, n_classes, base_channels=4, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return FeatureNetwork(backbone, n_classes, feature_channels=8)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        backbone = VNet(spatial_dims, decoders=("linear",), **sizes)
        auxiliary = CrossSampleNetwork(backbone, heads=1, dropout=sizes["dropout"])
        few = {"embedding_channels": 4, "rows_per_class": 20, "prototypes_per_class": 8, "bank_capacity": 16}
        network = VNet(spatial_dims, **sizes)
        return CorrelationAwareMutualLearning(network, auxiliary, max_iterations, **(few | options))

    def method(self, network, **options):
        if isinstance(network, FeatureNetwork):
            auxiliary = copy.deepcopy(network)
            for parameter in auxiliary.parameters():
                nn.init.normal_(parameter, std=0.2)
        else:
            sizes = network.spatial_dims, 1, network.out_channels
            backbone = literature_network(*sizes, base_channels=4, dropout=0.0, alternative=True)
            auxiliary = CrossSampleNetwork(backbone, dropout=0.0)
        defaults = {"prototypes_per_class": 16, "rows_per_class": 100, "embedding_channels": 8, "bank_capacity": 64}
        return CorrelationAwareMutualLearning(network, auxiliary, **(defaults | options))

    def check_training(self, method):
        super().check_training(method)
        for name, parameter in method.named_parameters():  # DistributedDataParallel waits for all of them
            assert parameter.grad is not None, name

    def test_terms_equal_the_formulas(self):
        labeled, unlabeled = batches(n_classes=3)
        method = self.build(n_classes=3, max_iterations=400, rows_per_class=10**6, similarity="cosine")
        method.iteration = 122
        reference = self.build(n_classes=3)
        image = joint_images(labeled, unlabeled)
        members = reference.network, reference.auxiliary
        features = [member.features(image) for member in members]
        logits = [member.logits(x) for member, x in zip(members, features, strict=True)]
        p = [z.softmax(1) for z in logits]
        y = functional.one_hot(labeled["label"][:, 0], 3).movedim(-1, 1)
        torch.manual_seed(5)
        terms = method(labeled, unlabeled)
        ramp = math.exp(-5 * (1 - 12 / 20) ** 2)  # step 123, levels of 10 steps
        dice = sum(
            1 - (2 * (q[:2, c] * y[:, c]).sum() + 1e-8) / (q[:2, c].sum() + y[:, c].sum() + 1e-8)
            for q in p
            for c in (1, 2)
        )
        assert terms["dice"].item() == pytest.approx(0.5 * dice.item() / 2, rel=1e-5)
        s = [q.double() ** 10 / (q.double() ** 10 + (1 - q.double()) ** 10) for q in p]
        cross = (p[0] - s[1]).square().mean() + (p[1] - s[0]).square().mean()
        assert terms["cross_supervision"].item() == pytest.approx(ramp * cross.item(), rel=1e-4)
        # the plain reading projects every row on which both agree
        agreed = p[0][2:].argmax(1) == p[1][2:].argmax(1)
        rows = [x[2:].movedim(1, -1)[agreed] for x in features]
        z = [head.prediction(head.projection(x)) for head, x in zip(reference.heads, rows, strict=True)]
        torch.manual_seed(5)
        prototypes, _ = self.drawn(method, labeled)
        assert len(prototypes) >= 32
        expected = OmniCorrelationLoss("cosine")(z[0], z[1], prototypes)
        assert terms["correlation"].item() == pytest.approx(0.05 * ramp * expected.item(), rel=1e-3)

    @staticmethod
    def drawn(method, labeled):
        """What the step drew, drawn again: the choice of the bank's vectors comes first."""
        for counts in method.bank.counts:
            for n in counts.tolist():
                method.bank.choose(n)
        return method.bank.sample(method.prototypes_per_class)

    def test_labels_concern_the_labeled_rows_only(self):
        method, given = self.build(), batches()
        members = method.network, method.auxiliary
        features = [m.features(joint_images(*given)).detach().requires_grad_() for m in members]
        logits = [m.logits(x).detach().requires_grad_() for m, x in zip(members, features, strict=True)]
        terms = method.terms(logits, features, given[0])
        terms["dice"].backward()
        assert all(z.grad[:2].any() and not z.grad[2:].any() for z in logits)
        assert all(x.grad is None for x in features)
        terms["correlation"].backward()
        assert all(x.grad[2:].any() and not x.grad[:2].any() for x in features)  # the memory is a constant

    def test_the_memory_holds_correct_voxels_of_labeled_cases(self):
        method, (labeled, unlabeled) = self.build(bank_capacity=None), batches()
        labeled["index"] = torch.tensor([9, 4])
        reference = self.build()
        image = joint_images(labeled, unlabeled)
        features = [m.features(image) for m in (reference.network, reference.auxiliary)]
        predicted = [
            m.logits(x).argmax(1) for m, x in zip((reference.network, reference.auxiliary), features, strict=True)
        ]
        method(labeled, unlabeled)
        assert method.bank.cases == [4, 9]
        for row, case in enumerate((9, 4)):
            truth = labeled["label"][row, 0]
            for c in range(2):
                correct = (truth == c) & (predicted[0][row] == c) & (predicted[1][row] == c)
                rows = [x[row].movedim(0, -1)[correct] for x in features]
                expected = sum(h.projection.eval()(r) for h, r in zip(reference.heads, rows, strict=True)) / 2
                torch.testing.assert_close(method.bank.features(case, c), expected, rtol=1e-4, atol=1e-5)
        assert not method.bank.features(4, 0).requires_grad

    def test_only_the_vanilla_network_is_deployed(self):
        method = self.build()
        assert not any(isinstance(m, nn.MultiheadAttention) for m in method.network.modules())
        method.eval()
        image = batches()[0]["image"]
        single = torch.cat([method.network(x[None]) for x in image])
        torch.testing.assert_close(method.network(image), single, rtol=1e-4, atol=1e-5)

    def test_images_attend_to_each_other_in_training(self):
        auxiliary, (labeled, unlabeled) = self.build().auxiliary, batches()
        image = joint_images(labeled, unlabeled).requires_grad_()
        for module in auxiliary.modules():  # leaves the attention as the only path between images
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                module.eval()
        auxiliary(image)[0].sum().backward()
        assert image.grad[3].abs().sum() > 0
        image.grad = None
        auxiliary.attention.eval()
        auxiliary(image)[0].sum().backward()
        assert image.grad[3].abs().sum() == 0

    def test_hard_labels(self):
        terms = self.build(cross_supervision="hard")(*batches())
        method = self.build()
        image = joint_images(*batches())
        logits = [m.logits(m.features(image)) for m in (method.network, method.auxiliary)]
        expected = method.ramp_up(1) * CrossPseudoLabelLoss()(*logits)
        assert terms["cross_supervision"].item() == pytest.approx(expected.item(), rel=1e-4)

    @pytest.mark.parametrize(("max_iterations", "step"), [(6000, 150), (1500, 38), (7, 1)])
    def test_released_ramp(self, max_iterations, step):
        ramp = self.build(max_iterations=max_iterations, ramp_levels=15).ramp_up
        assert (ramp.length, ramp.granularity, ramp.maximum) == (15 * step, step, 1.0)

    def test_levels_of_a_length_of_their_own(self):
        ramp = self.build(max_iterations=15000, ramp_levels=15, ramp_step=150).ramp_up
        assert (ramp.length, ramp.granularity) == (2250, 150)

    def test_a_memory_without_prototypes_is_reported(self, caplog):
        method = self.build(max_iterations=20)  # 16 prototypes per class
        method.bank.update([3], [[torch.rand(16, 32), torch.rand(5, 32)]], [[16, 5]])
        for _ in range(3):
            method.after_step()
        [record] = caplog.records
        assert "iteration 2: " in record.getMessage()
        assert "voxels of class 1 (5)" in record.getMessage()

    def test_disagreement_everywhere_leaves_no_correlation(self):
        method, (labeled, _) = self.build(), batches()
        features = [torch.rand(4, 4, 32, 32).requires_grad_() for _ in range(2)]
        logits = [sign * torch.ones(4, 2, 32, 32) * torch.tensor([1.0, -1.0])[:, None, None] for sign in (1, -1)]
        terms = method.terms(logits, features, labeled)
        assert terms["correlation"] == 0
        terms["correlation"].backward()
        assert all(p.grad is not None for p in method.heads.parameters())
        assert int(method.bank.counts.sum()) == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"cross_weight": -1.0}, r"cross_weight must be >= 0, got -1.0"),
            ({"correlation_weight": -1.0}, r"correlation_weight must be >= 0, got -1.0"),
            ({"max_iterations": 0}, r"max_iterations must be >= 1, got 0"),
            ({"ramp_levels": 0}, r"ramp_levels must be >= 1, got 0"),
            ({"ramp_step": 0}, r"ramp_step must be >= 1, got 0"),
            ({"rows_per_class": 0}, r"rows_per_class must be >= 1, got 0"),
            ({"bank_capacity": 15}, r"bank_capacity must be None or at least prototypes_per_class, 16, got 15"),
            ({"cross_supervision": "x"}, r"cross_supervision must be one of .* got 'x'"),
            ({"similarity": "x"}, r"similarity must be one of \('dot', 'cosine'\), got 'x'"),
            ({"temperature": 0.0}, r"temperature must be > 0, got 0.0"),
            ({"sharpening_temperature": 2.0}, r"temperature must be in \[0.01, 1\], got 2.0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_networks(self):
        with pytest.raises(TypeError, match=r"network must offer features.*got Conv2d without features, logits"):
            CorrelationAwareMutualLearning(nn.Conv2d(1, 2, 1), self.network())
        with pytest.raises(TypeError, match=r"auxiliary must offer .* wrap it in .*FeatureNetwork"):
            CorrelationAwareMutualLearning(self.network(), nn.Conv2d(1, 2, 1))


@pytest.mark.parametrize(
    "tester", [TestUncertaintyGuidedMutualConsistency, TestSmoothnessSeparation, TestCorrelationAwareMutualLearning]
)
def test_a_ramp_up_that_the_shell_has_eaten(tester):
    with pytest.raises(TypeError, match=r"ramp_up must be a function .* got '.losses.SigmoidRampUp'; .* quotes"):
        tester().build(ramp_up=".losses.SigmoidRampUp")


def test_joint_images_puts_labeled_rows_first():
    labeled, unlabeled = batches(n_labeled=1, n_unlabeled=2)
    images = joint_images(labeled, unlabeled)
    assert torch.equal(images[:1], labeled["image"])
    assert torch.equal(images[1:], unlabeled["image"])
    assert joint_images(labeled, None) is labeled["image"]


def test_the_contract_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        SemiSupervisedMethod(nn.Identity())


def test_every_method_has_a_tester():
    from monai_ssl import methods

    public = {getattr(methods, name) for name in methods.__all__}
    own = {m for m in public if isinstance(m, type) and issubclass(m, SemiSupervisedMethod)} - {SemiSupervisedMethod}
    tested = {t.__name__.removeprefix("Test") for t in MethodTester.__subclasses__()}
    assert {m.__name__ for m in own} <= tested

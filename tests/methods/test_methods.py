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
from monai_ssl.methods import (
    CorrelationAwareMutualLearning,
    DualTaskConsistency,
    SemiSupervisedMethod,
    Supervised,
    TaskAffinityConsistency,
    joint_images,
)
from monai_ssl.networks import (
    BackboneWithHead,
    CrossSampleNetwork,
    DualTaskNetwork,
    DualTaskVNet,
    TappedNetwork,
    UNet,
    VNet,
    literature_network,
)
from monai_ssl.transforms import SignedDistanceMap


class TestSupervised(MethodTester):
    supervised_terms = ("supervised",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def method(self, network, **options):
        return Supervised(network, **options)

    def test_unlabelled_images_have_no_influence(self):
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
    supervised_terms = ("dice", "signed_distance")
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2):
        return DualTaskVNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return DualTaskNetwork(backbone, n_classes, feature_channels=8)

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

    def test_labels_and_maps_concern_the_labelled_rows_only(self):
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
        assert (logits.grad[2:].flatten(1).abs().sum(1) > 0).all()  # both heads of every unlabelled row
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


class TestTaskAffinityConsistency(MethodTester):
    supervised_terms = ("dice",)
    unsupervised_terms = ("contextual", "structural")

    def network(self, spatial_dims=2, n_classes=2):
        return literature_network(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0, gates=True)

    def wrap(self, backbone, spatial_dims, n_classes):
        network = nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))
        return TappedNetwork(network, contextual=["0.conv_0", "0.down_1"], structural=["0.upcat_1"])

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
    supervised_terms = ("dice",)
    unsupervised_terms = ("cross_supervision", "correlation")

    def network(self, spatial_dims=2, n_classes=2):
        return literature_network(spatial_dims, 1, n_classes, base_channels=4, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return BackboneWithHead(backbone, spatial_dims, feature_channels=8, n_classes=n_classes)

    def method(self, network, **options):
        if isinstance(network, BackboneWithHead):
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

    def test_labels_concern_the_labelled_rows_only(self):
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

    def test_the_memory_holds_correct_voxels_of_labelled_cases(self):
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
            ({"rows_per_class": 0}, r"rows_per_class must be >= 1, got 0"),
            ({"bank_capacity": 15}, r"bank_capacity must be None or at least prototypes_per_class, 16, got 15"),
            ({"cross_supervision": "x"}, r"cross_supervision must be one of .* got 'x'"),
            ({"similarity": "x"}, r"similarity must be one of \('dot', 'cosine'\), got 'x'"),
            ({"temperature": 0.0}, r"temperature must be > 0, got 0.0"),
            ({"sharpening_temperature": 2.0}, r"temperature must be in \(0, 1\], got 2.0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_networks(self):
        with pytest.raises(TypeError, match=r"network must offer features.*got Conv2d without features, logits"):
            CorrelationAwareMutualLearning(nn.Conv2d(1, 2, 1), self.network())
        with pytest.raises(TypeError, match=r"auxiliary must offer .* wrap it in .*BackboneWithHead"):
            CorrelationAwareMutualLearning(self.network(), nn.Conv2d(1, 2, 1))


def test_joint_images_puts_labelled_rows_first():
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

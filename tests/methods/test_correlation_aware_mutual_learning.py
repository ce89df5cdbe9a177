"""CAML: what is its own; ``method_tester.py`` holds what all methods have in common."""

import copy
import math

import pytest
import torch
from method_tester import MethodTester, batches
from torch import nn
from torch.nn import functional

from monai_ssl.losses import (
    CrossPseudoLabelLoss,
    OmniCorrelationLoss,
)
from monai_ssl.methods import (
    CorrelationAwareMutualLearning,
    joint_images,
)
from monai_ssl.networks import (
    CrossSampleNetwork,
    FeatureNetwork,
    VNet,
    literature_network,
)


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

    def test_second_opinion_is_the_auxiliary_networks(self):
        method, image = self.build(n_classes=3).eval(), batches()[1]["image"]
        with torch.no_grad():
            opinion, vanilla = method.second_opinion(image), method.network(image).softmax(1)
            torch.testing.assert_close(opinion, method.auxiliary(image).softmax(1))
            torch.testing.assert_close(method.second_opinion(image[:1]), opinion[:1], rtol=1e-4, atol=1e-5)
        assert (opinion - vanilla).abs().max() > 0.01

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

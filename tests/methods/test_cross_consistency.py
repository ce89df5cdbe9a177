"""CCT: what is its own; ``method_tester.py`` holds what all methods have in common."""

import pytest
import torch
from method_tester import SIDES, MethodTester, batches
from torch import nn

from monai_ssl.losses import SigmoidRampUp
from monai_ssl.methods import CrossConsistency
from monai_ssl.networks import FeatureNetwork, MultiHeadNetwork, VNet, literature_network
from monai_ssl.networks.perturbations import add_feature_noise, drop_elements, drop_strongest

ORIGINAL = {"scales": "coarsest", "supervise": "main", "supervised_loss": "ce", "detach_main": True}


class TestCrossConsistency(MethodTester):
    bundle = "cct"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2, decoders=4):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0, decoders=["transpose"] * decoders)

    def wrap(self, backbone, spatial_dims, n_classes):
        return MultiHeadNetwork(backbone, n_classes, feature_channels=8, heads=4)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        network = VNet(spatial_dims, **sizes, decoders=["transpose"] * 3)
        return CrossConsistency(network, max_iterations, perturbations=("noise", "feature_drop"), **options)

    def method(self, network, **options):
        return CrossConsistency(network, **options)

    # what a voxel's features become depends on the other ones, by the threshold of feature drop, and on chance: labels
    # to be ignored are compared on features that nobody disturbs
    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_ignored_voxels_change_no_supervised_term(self, n_classes, monkeypatch):
        monkeypatch.setattr(CrossConsistency, "disturbed", lambda self, name, encoded, main, decoder: encoded)
        super().test_ignored_voxels_change_no_supervised_term(n_classes)

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_an_ignored_half_is_as_if_images_ended_there(self, n_classes, monkeypatch):
        monkeypatch.setattr(CrossConsistency, "disturbed", lambda self, name, encoded, main, decoder: encoded)
        super().test_an_ignored_half_is_as_if_images_ended_there(n_classes)

    @pytest.mark.parametrize("n_classes", [2, 4])
    def test_terms_equal_the_formulas(self, n_classes):
        method = self.build(n_classes=n_classes)
        method.iteration = 3000
        labeled, unlabeled = batches(n_classes=n_classes)
        torch.manual_seed(3)
        terms = method(labeled, unlabeled)
        torch.manual_seed(3)
        outputs = method.outputs(torch.cat([labeled["image"], unlabeled["image"]]))
        supervised = sum(method.supervised(z[:2], labeled["label"]) for z in outputs) / 4
        assert terms["supervised"].item() == pytest.approx(supervised.item(), rel=1e-6)
        p = [z[2:].softmax(1) for z in outputs]
        expected = method.ramp_up(3000) * sum((q - p[0]).square().mean() for q in p[1:]) / 3
        assert terms["consistency"].item() == pytest.approx(expected.item(), rel=1e-5)

    def test_the_paper_is_the_original(self):
        paper = self.build(variant="paper", max_iterations=6000)
        by_hand = self.build(**ORIGINAL, ramp_up=SigmoidRampUp(600, 30))
        by_hand.load_state_dict(paper.state_dict())
        for iteration in (0, 300, 600, 6000):
            assert paper.ramp_up(iteration) == by_hand.ramp_up(iteration)
        found = []
        for method in (paper, by_hand):
            method.iteration = 600
            torch.manual_seed(1)
            found.append({name: value.item() for name, value in method(*batches(seed=0)).items()})
        assert found[0] == found[1]
        assert self.build(variant="paper", supervise="all").supervise == "all"
        assert self.build(variant="paper", weight=1.0).ramp_up(600) == 1.0

    @pytest.mark.parametrize("detach_main", [False, True])
    def test_gradient_of_the_main_decoder(self, detach_main):
        method = self.build(detach_main=detach_main)
        labeled, unlabeled = batches()
        method(labeled, unlabeled)["consistency"].backward()
        main = [p for part in (method.network.decoders[0], method.network.heads[0]) for p in part.parameters()]
        assert all(p.grad is None for p in main) == detach_main
        assert all(p.grad is not None for p in method.network.decoders[1].parameters())

    def test_the_main_decoder_is_never_disturbed(self):
        method, image = self.build(), batches()[1]["image"]
        one, two = method.outputs(image), method.outputs(image)
        assert torch.equal(one[0], two[0])
        assert not any(torch.equal(a, b) for a, b in zip(one[1:], two[1:], strict=True))
        method.eval()
        with torch.no_grad():
            one, two = method.outputs(image), method.outputs(image)
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
            torch.testing.assert_close(method.second_opinion(image), sum(z.softmax(1) for z in one[1:]) / 3)

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_original(self, spatial_dims):
        names = ("noise", "dropout", "feature_drop", "adversarial", "mask_context", "mask_object")
        torch.manual_seed(0)
        method = CrossConsistency(self.network(spatial_dims, 3, 7), perturbations=names, **ORIGINAL)
        labeled, unlabeled = batches(spatial_dims, 3)
        seen = []
        method.network.heads[1].register_forward_hook(lambda *given: seen.append(len(given[1][0])))
        outputs = method.outputs(torch.cat([labeled["image"], unlabeled["image"]]), first=2)
        assert [len(z) for z in outputs] == [4, 2, 2, 2, 2, 2, 2]
        statistics = [b.clone() for b in method.network.decoders[4].buffers()]
        terms = method(labeled, unlabeled)
        self.check_terms(terms)
        sum(terms.values()).backward()
        self.check_training(method)
        # of the adversarial decoder: one pass counts, those that look for the direction do not
        counters = [int(b) for b in method.network.decoders[4].buffers() if b.dim() == 0]
        assert counters == [2] * len(counters)
        assert any(not torch.equal(a, b) for a, b in zip(statistics, method.network.decoders[4].buffers(), strict=True))

    @pytest.mark.parametrize("n_unlabeled", [0, 1])
    def test_decoders_that_nobody_asks_have_a_gradient(self, n_unlabeled):
        method = self.build(**ORIGINAL)
        terms = method(*batches(n_unlabeled=n_unlabeled))
        sum(terms.values()).backward()
        assert all(p.grad is not None for p in method.parameters())
        if n_unlabeled == 0:
            assert terms["consistency"] == 0
            assert not any(p.grad.any() for p in method.network.decoders[1].parameters())

    def test_confidence(self):
        method = self.build(confidence=0.9)
        sure = torch.tensor([[[4.0, 0.0], [-4.0, 0.0]]])
        other = torch.zeros_like(sure)
        [found] = method.differences(sure, [other])
        expected = (sure.softmax(1) - 0.5)[..., 0].square().mean()  # the second voxel is not sure
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        [none] = method.differences(other, [sure])
        assert none.item() == 0.0

    def test_masks(self):
        method = self.build(scales="coarsest")
        main = torch.tensor([[[[9.0, 9.0, 0.0, 0.0]] * 2, [[0.0, 0.0, 9.0, 9.0]] * 2]])
        features = [torch.ones(1, 3, 2, 4), torch.ones(1, 3, 1, 2)]
        context = method.disturbed("mask_context", features, main, 1)
        assert torch.equal(context[0], features[0])
        assert context[1][0, 0].tolist() == [[0.0, 1.0]]
        assert method.disturbed("mask_object", features, main, 1)[1][0, 0].tolist() == [[1.0, 0.0]]
        everywhere = self.build(scales="all").disturbed("mask_context", features, main, 1)
        assert everywhere[0][0, 0].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2

    def test_the_adversarial_direction_changes_the_prediction_more_than_chance(self):
        torch.manual_seed(1)
        method = CrossConsistency(self.network(2, 2, 2), perturbations=["adversarial"], adversarial_norm=2.0)
        encoded = method.network.encode(torch.randn(2, 1, *SIDES[2]))
        r = method._adversarial(encoded, 1)
        torch.testing.assert_close(r.flatten(1).norm(dim=1), torch.full((2,), 2.0), rtol=1e-3, atol=0)

        def change(direction):
            with torch.no_grad():
                z = [method.network.logits(method.network.decode([*encoded[:-1], e], 1)[-1], 1).softmax(1)
                     for e in (encoded[-1], encoded[-1] + direction)]  # fmt: skip
            return (z[0] - z[1]).square().mean()

        chance = torch.randn_like(r)
        chance *= 2.0 / chance.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        assert change(r) > change(chance)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_perturbations_keep_the_format(self, dtype):
        features = torch.randn(2, 4, 8, 8).to(dtype)
        for change in (add_feature_noise, drop_elements, drop_strongest):
            changed = change(features)
            assert changed.dtype == dtype
            assert changed.shape == features.shape
            assert not torch.equal(changed, features)
        dropped = (drop_strongest(features) == 0).all(1)
        strongest = features.float().mean(1).flatten(1).argmax(1)
        assert dropped.flatten(1).gather(1, strongest[:, None]).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1.0}, "weight must be >= 0, got -1"),
            ({"noise": -1.0}, "noise must be >= 0, got -1"),
            ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
            ({"confidence": 1.0}, r"confidence must be in \[0, 1\), got 1.0"),
            ({"scales": "fine"}, r"scales must be one of \('all', 'coarsest'\), got 'fine'"),
            ({"supervise": "none"}, r"supervise must be one of \('all', 'main'\), got 'none'"),
            ({"supervised_loss": "dice"}, r"supervised_loss must be one of .* got 'dice'"),
            ({"perturbations": ["noise", "cutout"]}, r"perturbations must be some of .*, got \['cutout'\]"),
            ({"perturbations": []}, r"perturbations must be some of .*, got none"),
            ({"perturbations": ["noise"]}, "network must have 2 decoders, .* got 4; set its option decoders"),
            ({"adversarial_norm": 0.0}, "epsilon must be > 0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_networks_without_decoders(self):
        with pytest.raises(TypeError, match=r"network must offer encode.* got FeatureNetwork without encode, decode, "):
            CrossConsistency(FeatureNetwork(nn.Conv2d(1, 8, 1), 2, 8))

    def test_the_3d_network_has_the_published_size(self):
        plain = VNet(3, 1, 2, decoders=["transpose"] * 4, norm=None)
        assert round(sum(p.numel() for p in plain.parameters()) / 1e6, 2) == 15.65  # as tables count, without norms
        network = literature_network(3, 1, 2, decoders=4)
        assert [type(d.levels[0].up) for d in network.decoders] == [type(network.decoders[0].levels[0].up)] * 4

"""MC-Net: what is its own; ``method_tester.py`` holds what all methods have in common."""

import pytest
import torch
from method_tester import SIDES, MethodTester, batches

from monai_ssl.losses import IGNORE_LABEL, SigmoidRampUp, sharpen
from monai_ssl.methods import MutualConsistency
from monai_ssl.networks import MultiHeadNetwork, VNet, literature_network


class TestMutualConsistency(MethodTester):
    bundle = "mc_net"
    supervised_terms = ("dice",)
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(
            spatial_dims, 1, n_classes, base_channels=2, dropout=0.0, decoders=("transpose", "linear", "nearest")
        )

    def wrap(self, backbone, spatial_dims, n_classes):
        return MultiHeadNetwork(backbone, n_classes, feature_channels=8, heads=2)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return MutualConsistency(
            VNet(spatial_dims, **sizes, decoders=("transpose", "linear")), max_iterations, **options
        )

    def method(self, network, **options):
        return MutualConsistency(network, **options)

    @pytest.mark.parametrize("n_classes", [2, 4])
    @pytest.mark.parametrize("sharpening", ["per_channel", "normalized"])
    def test_terms_equal_the_formulas(self, n_classes, sharpening):
        method = self.build(n_classes=n_classes, sharpening=sharpening, dice="all_classes", supervised_weight=0.7)
        method.iteration = 2999
        labeled, unlabeled = batches(n_classes=n_classes)
        terms = method(labeled, unlabeled)
        outputs = method.network.outputs(torch.cat([labeled["image"], unlabeled["image"]]))
        p = [z.softmax(1) for z in outputs]
        y = torch.nn.functional.one_hot(labeled["label"][:, 0], n_classes).movedim(-1, 1)
        dice = 0.0
        for q in (q[:2] for q in p):
            per_class = 2 * (q * y).sum((0, 2, 3)) / (q.square().sum((0, 2, 3)) + y.sum((0, 2, 3)))
            dice += 1 - per_class.mean()
        assert terms["dice"].item() == pytest.approx(0.7 * dice.item(), rel=1e-5)
        powers = [q**10 for q in p]
        targets = [
            a / (a.sum(1, keepdim=True) if sharpening == "normalized" else a + (1 - q) ** 10)
            for a, q in zip(powers, p, strict=True)
        ]
        pairs = [(p[i] - targets[j]).square().mean() for i in range(3) for j in range(3) if i != j]
        assert len(pairs) == 6
        weight = SigmoidRampUp(6000, 1.0, 150)(3000)
        assert terms["consistency"].item() == pytest.approx(weight * sum(pairs).item(), rel=1e-4)

    @pytest.mark.parametrize("sharpening", ["per_channel", "normalized"])
    def test_sharpening_of_certain_and_impossible_classes_has_finite_gradients(self, sharpening):
        method = self.build(n_classes=3, sharpening=sharpening)
        logits = [torch.tensor([200.0, -200.0, 0.0]).reshape(1, 3, 1).requires_grad_(),
                  torch.tensor([0.0, 0.0, 0.0]).reshape(1, 3, 1).requires_grad_()]  # fmt: skip
        method.terms(logits, {"label": torch.zeros(1, 1, 1, dtype=torch.long)})["consistency"].backward()
        assert all(torch.isfinite(z.grad).all() for z in logits)

    def test_normalized_sharpening(self):
        p = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0)).softmax(1)
        sharp = sharpen(p, 0.1, normalized=True)
        torch.testing.assert_close(sharp.sum(1), torch.ones(2, 8))
        assert torch.equal(sharp.argmax(1), p.argmax(1))
        assert not torch.allclose(sharpen(p, 0.1).sum(1), torch.ones(2, 8), atol=0.1)
        two = torch.stack([p[:, 0], 1 - p[:, 0]], 1)
        torch.testing.assert_close(sharpen(two, 0.1, normalized=True), sharpen(two, 0.1))

    @pytest.mark.parametrize("detach_target", [False, True])
    def test_gradient_of_the_targets(self, detach_target):
        method = self.build(detach_target=detach_target)
        (labeled, _), (first, second) = batches(), torch.randn(2, 4, 2, *SIDES[2]).requires_grad_().unbind()
        p, q = first.softmax(1), second.softmax(1)
        [gradient] = torch.autograd.grad(method.terms([first, second], labeled)["consistency"], first)
        alone = method.ramp_up(1) * (p - sharpen(q).detach()).square().mean()
        [expected] = torch.autograd.grad(alone, first)
        assert torch.allclose(gradient, expected, atol=1e-9) == detach_target

    def test_the_released_2d_dice_lets_an_absent_class_cost_1(self):
        label = torch.tensor([[[0, 1]]])
        logits = torch.tensor([[[90.0, -90.0], [-90.0, 90.0], [-90.0, -90.0]]])
        costs = {name: self.build(n_classes=3, dice=name).dice(logits, label).item() for name in
                 ("foreground", "all_classes", "halved")}  # fmt: skip
        assert costs == pytest.approx({"foreground": 0.0, "all_classes": 0.0, "halved": (0.5 + 0.5 + 1) / 3}, abs=1e-6)
        ignored = torch.full_like(label, IGNORE_LABEL)
        assert self.build(dice="halved").dice(logits[:, :2].requires_grad_(), ignored).item() == 0.0

    def test_the_matched_floor_trains_all_decoders(self):
        method = self.build(unsupervised_weight=0.0)
        terms = method(*batches())
        assert set(terms) == {"dice"}
        terms["dice"].backward()
        assert all(p.grad is not None for p in method.parameters())

    def test_second_opinion_is_the_mean_of_the_other_decoders(self):
        method, image = self.build().eval(), batches()[1]["image"]
        with torch.no_grad():
            outputs = [z.softmax(1) for z in method.network.outputs(image)]
            torch.testing.assert_close(method.second_opinion(image), (outputs[1] + outputs[2]) / 2)

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_deployed_decoder_or_mean_of_all(self, spatial_dims):
        image = torch.randn(1, 1, *SIDES[spatial_dims])
        networks = []
        for average in (False, True):
            torch.manual_seed(0)
            networks.append(literature_network(spatial_dims, base_channels=2, decoders=3, mixed_upsampling=True,
                                               average_decoders=average).eval())  # fmt: skip
        assert networks[0].state_dict().keys() == networks[1].state_dict().keys()
        with torch.no_grad():
            outputs = networks[0].outputs(image)
            assert torch.equal(networks[0](image), outputs[0])
            mean = torch.stack([z.softmax(1) for z in outputs]).mean(0)
            torch.testing.assert_close(networks[1](image).softmax(1), mean)
            torch.testing.assert_close(torch.jit.script(networks[1])(image), networks[1](image))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1.0}, "weight must be >= 0, got -1"),
            ({"supervised_weight": -1.0}, "supervised_weight must be >= 0, got -1"),
            ({"ramp_levels": 0}, "ramp_levels must be >= 1, got 0"),
            ({"max_iterations": 0}, "max_iterations must be >= 1, got 0"),
            ({"dice": "half"}, r"dice must be one of \('foreground', 'all_classes', 'halved'\), got 'half'"),
            ({"sharpening": "x"}, r"sharpening must be one of \('per_channel', 'normalized'\), got 'x'"),
            ({"temperature": 2}, r"temperature must be in \[0.01, 1\], got 2"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_networks_with_one_output(self):
        with pytest.raises(ValueError, match=r"network must have two decoders or more, got 1; give it decoders=2 or 3"):
            MutualConsistency(VNet(2, 1, 2, base_channels=2))
        with pytest.raises(TypeError, match=r"network must offer outputs.* got Conv2d; wrap .*MultiHeadNetwork"):
            MutualConsistency(torch.nn.Conv2d(1, 2, 1))

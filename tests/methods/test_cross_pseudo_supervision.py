"""Cross pseudo supervision: what is its own; the numbers of the released code are in ``tests/baselines``."""

import copy

import pytest
import torch
from method_tester import MethodTester, batches, total
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.losses import CrossPseudoLabelLoss, SigmoidRampUp
from monai_ssl.methods import CrossPseudoSupervision
from monai_ssl.networks import UNet, VNet, initialize


class TestCrossPseudoSupervision(MethodTester):
    bundle = "cps"
    supervised_terms = ("supervised",)
    # the second network's own loss is part of what the floor leaves out
    unsupervised_terms = ("pseudo", "pseudo_second", "supervised_second")

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return CrossPseudoSupervision(VNet(spatial_dims, **sizes), max_iterations=max_iterations, **options)

    def method(self, network, **options):
        return CrossPseudoSupervision(network, **options)

    @pytest.mark.parametrize("n_unlabeled", [0, 2])
    def test_every_parameter_that_trains_gets_a_gradient(self, n_unlabeled):
        for weight in (0.0, 1.0):
            method = self.build(unsupervised_weight=weight)
            total(method(*batches(n_unlabeled=n_unlabeled))).backward()
            for name, parameter in method.named_parameters():  # DistributedDataParallel waits for all of them
                assert (parameter.grad is not None) == parameter.requires_grad, name
                assert parameter.requires_grad == (weight > 0 or name.startswith("network.")), name

    def test_one_network_learns_the_labels_of_the_other(self):
        method = self.build(ramp_up=SigmoidRampUp(0, 0.5))
        logits = [torch.randn(4, 3, 8, 8, requires_grad=True) for _ in range(2)]
        labeled = {"label": torch.zeros(2, 1, 8, 8, dtype=torch.long)}
        terms = method.terms(logits, labeled)
        for name, ours, theirs in (("pseudo", *logits), ("pseudo_second", *logits[::-1])):
            expected = 0.5 * nn.functional.cross_entropy(ours[2:], theirs[2:].argmax(1))
            assert terms[name].item() == pytest.approx(expected.item())
            gradient = torch.autograd.grad(terms[name], logits, retain_graph=True, allow_unused=True)
            reached = [g is not None and bool(g.any()) for g in gradient]
            assert reached == [ours is z for z in logits]

    def test_the_paper_has_a_constant_weight_and_all_images(self):
        method = self.build(variant="paper")
        logits = [torch.randn(4, 3, 8, 8) for _ in range(2)]
        labeled = {"label": torch.zeros(2, 1, 8, 8, dtype=torch.long)}
        expected = 1.5 * nn.functional.cross_entropy(logits[0], logits[1].argmax(1))
        for method.iteration in (0, 3000):
            assert method.terms(logits, labeled)["pseudo"].item() == pytest.approx(expected.item())
        assert "pseudo" in method.terms([z[:2] for z in logits], labeled)
        assert self.build(variant="paper", weight=6.0).ramp_up(0) == 6.0
        assert self.build(variant="paper", ramp_up=SigmoidRampUp(0, 0.5)).ramp_up(0) == 0.5
        released = self.build()
        assert (released.ramp_up(6000), released.labeled_too) == (pytest.approx(0.1), False)

    def test_the_losses_of_each_add_up(self):
        z = [torch.randn(2, 3, 4, 4) for _ in range(3)]
        loss = CrossPseudoLabelLoss()
        each = loss.each(*z)
        assert len(each) == 3
        torch.testing.assert_close(sum(each), loss(*z))
        expected = sum(nn.functional.cross_entropy(z[1], z[j].argmax(1)) for j in (0, 2))
        torch.testing.assert_close(each[1], expected)

    def test_the_matched_floor_leaves_the_second_network_out(self):
        method = self.build(unsupervised_weight=0.0)
        method.second.register_forward_hook(lambda *_: pytest.fail("the second network was asked"))
        assert set(method(*batches())) == {"supervised"}
        assert method.second_opinion(batches()[1]["image"]) is None

    def test_initialization(self):
        torch.manual_seed(0)
        network = VNet(2, base_channels=16)
        before = copy.deepcopy(network.state_dict())
        kept = CrossPseudoSupervision(network)
        assert all(torch.equal(before[key], value) for key, value in kept.network.state_dict().items())
        drawn = CrossPseudoSupervision(copy.deepcopy(network), initialization="kaiming")
        for method, member, spread in (
            (drawn, "network", lambda fan_in, fan_out: 2 / fan_in),
            (drawn, "second", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
            (kept, "second", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ):
            convolutions = [m for m in getattr(method, member).modules() if type(m) is nn.Conv2d]
            big = max(convolutions, key=lambda m: m.weight.numel()).weight
            n_out, n_in = big[0, 0].numel() * big.shape[0], big[0, 0].numel() * big.shape[1]
            assert big.var().item() == pytest.approx(spread(n_in, n_out), rel=0.05)

    def test_nothing_of_a_trained_network_is_left_by_an_initialization(self):
        network = VNet(2, base_channels=2)
        with torch.no_grad():
            for value in network.state_dict().values():
                value.fill_(77)
        state = initialize(network, "xavier").state_dict()
        assert not any((value == 77).any() for value in state.values())

    def test_another_architecture_as_second_network(self):
        torch.manual_seed(0)
        second = UNet(2, 1, 2, channels=(2, 4))
        before = copy.deepcopy(second.state_dict())
        method = CrossPseudoSupervision(self.network(), second)
        assert all(torch.equal(before[key], value) for key, value in method.second.state_dict().items())
        self.check_terms(method(*batches()))
        again = CrossPseudoSupervision(self.network(), second, second_initialization="kaiming")
        assert not all(torch.equal(before[key], value) for key, value in again.second.state_dict().items())

    def test_one_optimizer_over_both_is_as_two(self):
        given, settings = batches(), {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
        states = []
        for split in (False, True):
            method = self.build(ramp_up=SigmoidRampUp(0))
            parts = (method.network.parameters(), method.second.parameters()) if split else (method.parameters(),)
            optimizers = [torch.optim.SGD(part, **settings) for part in parts]
            for _ in range(3):
                terms = method(*given)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                total(terms).backward()
                for optimizer in optimizers:
                    optimizer.step()
                method.after_step()
            states.append(method.state_dict())
        for key, value in states[0].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key])) if "extra" not in key else True

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"second_initialization": 3}, r"initialization must be one of \['kaiming', 'xavier'\] or null, got 3"),
            ({"initialization": "he"}, r"initialization must be one of \['kaiming', 'xavier'\] or null, got 'he'"),
            ({"weight": -1}, "weight must be >= 0, got -1"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    def test_rejects_one_network_twice(self):
        network = self.network()
        with pytest.raises(ValueError, match="second must be another network"):
            CrossPseudoSupervision(network, network)
        with pytest.raises(TypeError, match="second must be a network or null, got 7"):
            CrossPseudoSupervision(network, 7)

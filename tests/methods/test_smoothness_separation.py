"""SS-Net: what is its own; ``method_tester.py`` holds what all methods have in common."""

import pytest
import torch
from method_tester import SIDES, MethodTester, batches, total
from torch import nn
from torch.nn import functional

from monai_ssl.losses import (
    SigmoidRampUp,
)
from monai_ssl.losses.virtual_adversarial import DISTANCES
from monai_ssl.methods import (
    SmoothnessSeparation,
)
from monai_ssl.networks import (
    FeatureNetwork,
    VNet,
)


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

    def test_has_no_second_opinion(self):
        assert self.build().eval().second_opinion(batches()[1]["image"]) is None

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
            (
                {"distance": "dice"},
                r"distance must be one of \('flat', 'classwise', 'classwise_linear', 'kl'\), got 'dice'",
            ),
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

"""Mean teacher: what is its own; the numbers of the released code are in ``tests/baselines``."""

import pytest
import torch
from method_tester import MethodTester, batches
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.losses import HalfDiceCELoss, SigmoidRampUp
from monai_ssl.methods import MeanTeacher
from monai_ssl.networks import VNet


class TestMeanTeacher(MethodTester):
    bundle = "mean_teacher"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return MeanTeacher(VNet(spatial_dims, **sizes), max_iterations, **options)

    def method(self, network, **options):
        return MeanTeacher(network, **options)

    def test_the_teacher_is_the_moving_average_and_sees_noise(self):
        method, given = self.build(decay=0.9), batches()
        seen = []
        method.teacher.register_forward_hook(lambda m, x, y: seen.append(x[0]))
        for step in range(3):
            before = [p.clone() for p in method.teacher.parameters()]
            sum(method(*given).values()).backward()
            with torch.no_grad():
                for p in method.network.parameters():
                    p.add_(0.1 * torch.rand_like(p))
            method.after_step()
            alpha = min(1 - 1 / (step + 1), 0.9)
            for old, new, student in zip(before, method.teacher.parameters(), method.network.parameters(), strict=True):
                torch.testing.assert_close(new, alpha * old + (1 - alpha) * student)
                assert not new.requires_grad
        noise = torch.stack(seen) - given[1]["image"]
        assert noise.abs().max() <= 0.2 + 1e-6
        assert noise.std().item() == pytest.approx(0.0966, rel=0.05)  # of a normal one, clipped at two sigma
        assert not torch.equal(seen[0], seen[1])

    def test_the_matched_floor_asks_no_teacher(self):
        method = self.build(unsupervised_weight=0.0)
        method.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
        assert set(method(*batches())) == {"supervised"}
        assert method.second_opinion(batches()[1]["image"]) is None

    def test_delay(self):
        method = self.build(delay=2, ramp_up=SigmoidRampUp(0))
        values = []
        for _ in range(3):
            values.append(method(*batches())["consistency"].item())
            method.after_step()
        assert values[:2] == [0.0, 0.0]
        assert values[2] > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1}, "weight must be >= 0, got -1"),
            ({"delay": -1}, "delay must be >= 0, got -1"),
            ({"ramp_levels": 0}, "ramp_levels must be >= 1, got 0"),
            ({"max_iterations": 0}, "max_iterations must be >= 1, got 0"),
            ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)


def test_the_default_is_the_released_supervised_loss():
    given = batches(n_classes=4)[0]
    method = TestMeanTeacher().build(n_classes=4)
    expected = HalfDiceCELoss(include_background=True)(
        TestMeanTeacher().build(n_classes=4).network(given["image"]), given["label"]
    )
    assert method(given, None)["supervised"].item() == pytest.approx(expected.item())

"""Interpolation consistency: what is its own; the numbers of the released code are in ``tests/baselines``."""

import pytest
import torch
from method_tester import MethodTester, batches
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.errors import DataError
from monai_ssl.methods import InterpolationConsistency
from monai_ssl.networks import VNet


class TestInterpolationConsistency(MethodTester):
    bundle = "ict"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return InterpolationConsistency(VNet(spatial_dims, **sizes), max_iterations, **options)

    def method(self, network, **options):
        return InterpolationConsistency(network, **options)

    @pytest.mark.parametrize("weight", [0.0, 1.0])
    @pytest.mark.parametrize(
        ("n", "pairs"), [(1, [(0, 0)]), (2, [(0, 1)]), (3, [(0, 2), (1, 0)]), (4, [(0, 2), (1, 3)])]
    )
    def test_the_student_sees_labeled_and_mixed_images_the_teacher_the_halves(self, n, pairs, weight, monkeypatch):
        method, (labeled, unlabeled) = self.build(unsupervised_weight=weight), batches(n_unlabeled=n)
        shares = torch.linspace(0.1, 0.8, len(pairs), dtype=torch.float64)
        monkeypatch.setattr(method, "draw", lambda k: shares[:k])
        student, teacher = [], []
        method.network.register_forward_hook(lambda m, x, y: student.append(x[0]))
        method.teacher.register_forward_hook(lambda m, x, y: teacher.append((x[0], y.softmax(1))))
        terms = method(labeled, unlabeled)
        images = unlabeled["image"]
        mixed = [(1 - s) * images[i] + s * images[j] for (i, j), s in zip(pairs, shares.float(), strict=True)]
        torch.testing.assert_close(student[0], torch.cat([labeled["image"], torch.stack(mixed)]))
        assert len(student) == 1
        if weight == 0:  # the network sees the same images in the matched floor
            assert not teacher
            assert set(terms) == {"supervised"}
            return
        for (seen, _), position in zip(teacher, (0, 1), strict=True):
            torch.testing.assert_close(seen, images[[pair[position] for pair in pairs]], rtol=0, atol=0)
        s = shares.float()[:, None, None, None]
        target = (1 - s) * teacher[0][1] + s * teacher[1][1]
        with torch.no_grad():
            p = method.network(student[0])[len(labeled["image"]) :].softmax(1)
        expected = method.ramp_up(0) * (p - target).square().mean()
        torch.testing.assert_close(terms["consistency"].detach(), expected, rtol=1e-4, atol=1e-7)

    def test_one_pass_of_the_teacher_gives_both_halves(self):
        method, seen = self.build(joint_pass=True), []
        method.teacher.register_forward_hook(lambda m, x, y: seen.append(x[0]))
        first, second = torch.randn(2, 2, 1, 32, 32)
        found = method.taught(first, second)
        assert torch.equal(seen[0], torch.cat([first, second]))
        assert torch.equal(torch.cat(list(found)), method.teacher(seen[0]).softmax(1))

    def test_one_voxel_at_the_coarsest_scale(self):
        method, (labeled, unlabeled) = self.build(), batches()
        labeled, unlabeled = ({**b, "image": b["image"][..., :16, :16]} for b in (labeled, unlabeled))
        labeled["label"] = labeled["label"][..., :16, :16]
        with pytest.raises(DataError, match=r"patches \(16, 16\): .* over 1 unlabeled image .* joint_pass to true$"):
            method(labeled, unlabeled)
        method.joint_pass = True
        assert set(method(labeled, unlabeled)) == {"supervised", "consistency"}

    def test_shares_are_of_the_beta_distribution_and_of_torchs_generator(self):
        method = InterpolationConsistency(nn.Identity(), alpha=0.2)
        torch.manual_seed(3)
        first = method.draw(4000)
        torch.manual_seed(3)
        assert torch.equal(method.draw(4000), first)
        assert first.min() >= 0
        assert first.max() <= 1
        assert first.mean().item() == pytest.approx(0.5, abs=0.03)
        assert first.var().item() == pytest.approx(0.25 / 1.4, rel=0.05)  # 1 / (4 (2 a + 1))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"alpha": 0}, "alpha must be a finite number > 0, got 0"),
            ({"alpha": float("nan")}, "alpha must be a finite number > 0, got nan"),
            ({"weight": -1}, "weight must be >= 0, got -1"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

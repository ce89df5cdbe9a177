"""TCSE: what is its own; ``method_tester.py`` holds what all methods have in common. No released numbers exist."""

import pytest
import torch
from method_tester import MethodTester, batches
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.methods import TransformationConsistency
from monai_ssl.networks import VNet
from monai_ssl.transforms import Poses, random_poses

EVERYTHING = {"flip_axes": [0, 1], "rotate90_axes": [0, 1]}


def pointwise(spatial_dims=2):
    """What it says of a voxel depends on this voxel alone: it turns with its image."""
    conv = Conv["conv", spatial_dims]
    return nn.Sequential(conv(1, 4, kernel_size=1), nn.Tanh(), conv(4, 3, kernel_size=1))


class TestTransformationConsistency(MethodTester):
    bundle = "tcse"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("consistency",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return TransformationConsistency(VNet(spatial_dims, **sizes), max_iterations, **{**EVERYTHING, **options})

    def method(self, network, **options):
        return TransformationConsistency(network, **{**EVERYTHING, **options})

    @pytest.mark.parametrize("transformed", ["teacher", "student"])
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_an_equivariant_network_is_consistent(self, spatial_dims, transformed):
        torch.manual_seed(0)
        method = self.method(pointwise(spatial_dims), scale=0.0, noise=0.0, transformed=transformed)
        given = batches(spatial_dims, n_classes=3)
        for _ in range(3):
            assert method(*given)["consistency"].item() < 1e-12
        # another one is not
        other = self.build(spatial_dims, scale=0.0, noise=0.0, transformed=transformed)
        assert other(*batches(spatial_dims, n_unlabeled=6))["consistency"].item() > 1e-8

    @pytest.mark.parametrize("transformed", ["teacher", "student"])
    def test_scaling_is_undone_by_nobody_and_missed_by_nobody(self, transformed):
        torch.manual_seed(0)
        method = self.method(
            pointwise(), flip_axes=(), rotate90_axes=None, scale=0.4, noise=0.0, transformed=transformed
        )
        labeled, _ = batches(n_classes=3)
        # smooth in the middle, and another value at the edge, which a smaller image would repeat
        axis = torch.linspace(-1, 1, 32)
        smooth = (-4 * (axis[:, None] ** 2 + axis**2)).exp()[None, None].repeat(8, 1, 1, 1) * 2
        found = method(labeled, {"image": smooth})["consistency"].item() / method.ramp_up(0)
        # what it would be if one side were not scaled
        p = method.network(smooth).softmax(1)

        moved = random_poses(smooth, scale=0.4)(p)
        assert found < 0.01 * (p - moved).square().mean().item()

    def test_voxels_from_beyond_the_edge_do_not_count(self):
        method = self.method(pointwise(), flip_axes=(), rotate90_axes=None, scale=0.4)
        labeled, _ = batches(n_classes=3)
        logits = torch.zeros(4, 3, 32, 32)
        taught = torch.zeros(2, 3, 32, 32)
        torch.manual_seed(0)

        poses = Poses((0, 0), ((), ()), (0.75, 1.25))
        taught[0, 0, :4] = 50.0  # the image of 32 fills 24 voxels
        assert method.terms(logits, taught, poses, labeled)["consistency"] < 1e-12
        taught[1, 0, :4] = 50.0  # here it is larger than the patch
        assert method.terms(logits, taught, poses, labeled)["consistency"] > 1e-6

    @pytest.mark.parametrize("transformed", ["teacher", "student"])
    def test_gradient_reaches_the_student_alone(self, transformed):
        method = self.build(transformed=transformed)
        method(*batches())["consistency"].backward()
        gradients = [p.grad for p in method.network.parameters()]
        assert sum(g.abs().sum() for g in gradients if g is not None) > 0
        assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())

    @pytest.mark.parametrize("transformed", ["teacher", "student"])
    def test_who_sees_what(self, transformed):
        method, (labeled, unlabeled) = self.build(transformed=transformed, noise=0.05), batches(n_unlabeled=3)
        seen = {}
        for name, network in (("student", method.network), ("teacher", method.teacher)):
            network.register_forward_hook(lambda m, x, y, name=name: seen.__setitem__(name, x[0].detach()))
        method(labeled, unlabeled)
        assert torch.equal(seen["student"][:2], labeled["image"])
        clean = {"student": torch.equal(seen["student"][2:], unlabeled["image"])}
        distance = (seen["teacher"] - unlabeled["image"]).abs().max()
        clean["teacher"] = bool(distance <= 0.1 + 1e-6)  # noise clipped at two sigma
        assert clean == {"student": transformed == "teacher", "teacher": transformed == "student"}

    def test_noise_is_on_the_teachers_side(self):
        torch.manual_seed(0)
        method, (labeled, unlabeled) = self.build(transformed="student", noise=0.05), batches(n_unlabeled=3)
        seen = []
        method.teacher.register_forward_hook(lambda m, x, y: seen.append(x[0]))
        method(labeled, unlabeled)
        noise = seen[0] - unlabeled["image"]
        assert noise.std().item() == pytest.approx(0.05 * 0.96, rel=0.05)  # of a normal law, clipped at two sigma
        assert noise.abs().max().item() == pytest.approx(0.1, rel=1e-4)

    def test_consistency_is_ramped_up(self):
        method = self.build(max_iterations=80, weight=0.4, scale=0.0, noise=0.0)
        labeled, _ = batches()
        logits, taught = torch.randn(4, 2, 32, 32), torch.randn(2, 2, 32, 32)
        found = []
        for method.iteration in (0, 40, 80):
            terms = method.terms(logits, taught, Poses((0, 0), ((), ()), (1.0, 1.0)), labeled)
            found.append(terms["consistency"].item())
        difference = (logits[2:].softmax(1) - taught.softmax(1)).square().mean().item()
        assert [value / difference for value in found] == pytest.approx([method.ramp_up(t) for t in (0, 40, 80)])
        assert found[2] == pytest.approx(0.4 * difference)

    def test_the_matched_floor_asks_no_teacher(self):
        method = self.build(unsupervised_weight=0.0)
        method.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
        assert set(method(*batches())) == {"supervised"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1}, "weight must be >= 0, got -1"),
            ({"noise": -1}, "noise must be >= 0, got -1"),
            ({"scale": 0.5}, r"scale must be in \[0, 0.5\), got 0.5"),
            ({"transformed": "both"}, r"transformed must be one of \('teacher', 'student'\), got 'both'"),
            ({"rotate90_axes": [0, 0]}, r"rotate90_axes must be two different axes or None, got \[0, 0\]"),
            ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

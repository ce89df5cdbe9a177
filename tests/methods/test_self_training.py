"""Self-training: what is its own."""

import method_tester
import pytest
import torch
from method_tester import MethodTester, total
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.losses import IGNORE_LABEL, HalfDiceCELoss
from monai_ssl.methods import SelfTraining
from monai_ssl.networks import VNet

plain_batches = method_tester.batches


def batches(spatial_dims=2, n_classes=2, n_labeled=2, n_unlabeled=2, seed=0):
    """With pseudo-labels."""
    labeled, unlabeled = plain_batches(spatial_dims, n_classes, n_labeled, n_unlabeled, seed)
    if unlabeled is None:
        return labeled, None
    generator = torch.Generator().manual_seed(seed + 100)
    shape = (n_unlabeled, 1, *labeled["label"].shape[2:])
    return labeled, {**unlabeled, "label": torch.randint(0, n_classes, shape, generator=generator)}


class TestSelfTraining(MethodTester):
    bundle = "self_training"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("pseudo",)

    @pytest.fixture(autouse=True)
    def _pseudo_labels(self, monkeypatch):
        monkeypatch.setattr(method_tester, "batches", batches)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return SelfTraining(VNet(spatial_dims, **sizes), **options)

    def method(self, network, **options):
        return SelfTraining(network, **options)

    def test_needs_no_label_of_an_unlabeled_image(self):
        """It has only those from files; without them it is its matched floor, and says so once."""
        labeled, unlabeled = plain_batches()
        method, floor = self.build(), self.build(unsupervised_weight=0.0)
        for other in (unlabeled, {**unlabeled, "label": torch.full_like(labeled["label"], 1)}):
            torch.manual_seed(0)
            expected = floor(labeled, other)
            assert set(expected) == {"supervised"}
        torch.manual_seed(0)
        assert method(labeled, unlabeled)["supervised"].item() == expected["supervised"].item()

    def test_says_once_that_there_are_no_pseudo_labels(self, caplog):
        method = self.build()
        for _ in range(3):
            method(*plain_batches())
        assert [r.message for r in caplog.records] == [
            "there are no pseudo-labels: the pool teaches nothing; `monai-ssl self-train` makes them, --pseudo_labels "
            "DIR names yours"
        ]

    @pytest.mark.parametrize("dice", [False, True])
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_terms_against_a_plain_reading(self, spatial_dims, dice):
        """Without change and mixing, in float64: 0.3 (cross-entropy [+ Dice, half of both]) over the known voxels."""
        method = self.build(spatial_dims, 3, weight=0.6, strength=0.0, cutmix_probability=0.0, dice=dice,
                            unsupervised_weight=0.5)  # fmt: skip
        labeled, unlabeled = batches(spatial_dims, 3)
        unknown = torch.rand(unlabeled["label"].shape, generator=torch.Generator().manual_seed(5)) < 0.3
        unlabeled["label"].masked_fill_(unknown, IGNORE_LABEL)
        terms = method(labeled, unlabeled)
        z = method.network(torch.cat([labeled["image"], unlabeled["image"]])).double()
        assert terms["supervised"].item() == pytest.approx(HalfDiceCELoss()(z[:2], labeled["label"]).item(), abs=1e-6)
        z, y, known = z[2:], unlabeled["label"][:, 0], ~unknown[:, 0]
        log_p = z.log_softmax(1)
        expected = -(log_p.gather(1, y.clamp(max=2)[:, None])[:, 0])[known].mean()
        if dice:
            scores = []
            for c in (1, 2):
                p, t = log_p.exp()[:, c][known], (y == c)[known].double()
                scores.append((2 * (p * t).sum() + 1e-5) / ((p * p).sum() + t.sum() + 1e-5))
            expected = 0.5 * (expected + 1 - sum(scores) / 2)
        assert terms["pseudo"].item() == pytest.approx(0.3 * expected.item(), abs=1e-5)

    def test_images_and_pseudo_labels_are_mixed_alike(self):
        """A network that copies the gray value finds every pseudo-label wherever CutMix has put it."""

        class Copies(nn.Module):
            def forward(self, image):
                return torch.cat([-50 * image, 50 * image], dim=1)

        method = SelfTraining(Copies(), strength=0.0)
        labeled, unlabeled = batches()
        for batch in (labeled, unlabeled):
            batch["image"] = batch["label"].float() - 0.5
        assert method(labeled, unlabeled)["pseudo"].item() < 1e-6
        unlabeled["label"] = unlabeled["label"].roll(1, 0)  # it is no accident
        assert method(labeled, unlabeled)["pseudo"].item() > 1

    def test_labeled_images_are_not_changed(self):
        seen = []
        method = self.build()
        method.network.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
        labeled, unlabeled = batches()
        method(labeled, unlabeled)
        assert torch.equal(seen[0][:2], labeled["image"])
        assert not torch.equal(seen[0][2:], unlabeled["image"])

    def test_unknown_pool_voxels_change_no_gradient(self):
        method = self.build(weight=1.0, strength=0.0, cutmix_probability=0.0)
        labeled, unlabeled = batches()
        unlabeled["label"].fill_(IGNORE_LABEL)
        terms = method(labeled, unlabeled)
        assert terms["pseudo"].item() == 0
        total(terms).backward()
        found = [p.grad.clone() for p in method.parameters()]
        method.zero_grad()
        method(labeled, unlabeled)["supervised"].backward()
        for a, p in zip(found, method.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1}, "weight must be >= 0, got -1"),
            ({"strength": float("nan")}, "strength must be >= 0, got nan"),
            ({"cutmix_probability": 1.5}, r"cutmix_probability must be in \[0, 1\], got 1.5"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

"""TAC: what is its own; ``method_tester.py`` holds what all methods have in common."""

import pytest
import torch
from method_tester import MethodTester, batches
from monai.networks.layers import Conv
from torch import nn
from torch.nn import functional

from monai_ssl.methods import (
    TaskAffinityConsistency,
    joint_images,
)
from monai_ssl.networks import (
    TappedNetwork,
    UNet,
    VNet,
    literature_network,
)


class TestTaskAffinityConsistency(MethodTester):
    bundle = "tac"
    supervised_terms = ("dice",)
    unsupervised_terms = ("contextual", "structural")

    def network(self, spatial_dims=2, n_classes=2):
        return literature_network(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0, gates=True)

    def wrap(self, backbone, spatial_dims, n_classes):
        network = nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))
        return TappedNetwork(network, contextual=["0.conv_0", "0.down_1"], structural=["0.upcat_1"])

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        return TaskAffinityConsistency(VNet(spatial_dims, gates=True, **sizes), **options)

    def method(self, network, **options):
        return TaskAffinityConsistency(network, **options)

    def test_has_no_second_opinion(self):
        assert self.build().eval().second_opinion(batches()[1]["image"]) is None

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

    @pytest.mark.parametrize("pairing", ["same_index", "all_pairs", "all_pairs_sum"])
    def test_a_class_that_ignored_voxels_may_hide_is_not_absent(self, pairing):
        """As released, the other image is pulled to 0 where a class is absent; nobody knows that of such a label."""
        logits, x, gated, label = self.outputs(2, 2)
        label[0][label[0] == 2] = 0
        options = {"n_classes": 3, "pairing": pairing, "pooling": "image"}
        zero = self.build(**options, empty="zero")
        whole = zero.terms(logits, x, gated, {"label": label})["contextual"]
        partly = label.clone()
        partly[0, :, :1] = 255
        found = zero.terms(logits, x, gated, {"label": partly})["contextual"]
        # every class is there but for that one: what is skipped where nobody knows it is what `skip` leaves out
        skipped = self.build(**options, empty="skip").terms(logits, x, gated, {"label": partly})["contextual"]
        if pairing == "all_pairs_sum":
            assert found.item() == pytest.approx(skipped.item(), rel=1e-5)
        else:  # the mean over the classes of each pair, then over the pairs
            assert found.item() != pytest.approx(whole.item(), rel=1e-3)
        unknown = torch.full_like(label, 255)
        assert zero.terms(logits, x, gated, {"label": unknown})["contextual"].item() == 0
        kept = zero.terms(logits, x, gated, {"label": label})["contextual"]
        assert torch.equal(kept, whole)

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

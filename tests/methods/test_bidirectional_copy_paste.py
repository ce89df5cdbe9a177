"""BCP: what is its own."""

import copy

import pytest
import torch
from method_tester import MethodTester, batches, total
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.methods import BidirectionalCopyPaste
from monai_ssl.methods.bidirectional_copy_paste import halves
from monai_ssl.networks import VNet
from monai_ssl.transforms import largest_component, largest_components


def upper_left(method, image):
    """A box that does not depend on the patch."""
    inside = torch.zeros(1, 1, *image.shape[2:], dtype=torch.bool)
    inside[..., 2:9, 3:20] = True
    return inside


class TestBidirectionalCopyPaste(MethodTester):
    bundle = "bcp"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("pseudo",)
    every_voxel_counts = False

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        options = {"pretrain": 4, **options}  # of 11: trainings that are stopped and go on see both stages
        return BidirectionalCopyPaste(VNet(spatial_dims, **sizes), max_iterations, **options)

    def method(self, network, **options):
        return BidirectionalCopyPaste(network, **{"pretrain": 0, **options})

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_ignored_voxels_change_no_supervised_term(self, n_classes, monkeypatch):
        monkeypatch.setattr(BidirectionalCopyPaste, "draw_box", upper_left)
        super().test_ignored_voxels_change_no_supervised_term(n_classes)

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_an_ignored_half_is_as_if_images_ended_there(self, n_classes, monkeypatch):
        monkeypatch.setattr(BidirectionalCopyPaste, "draw_box", upper_left)
        super().test_an_ignored_half_is_as_if_images_ended_there(n_classes)

    @pytest.mark.parametrize("variant", ["left_atrium", "pancreas_ct", "acdc"])
    @pytest.mark.parametrize(("dims", "n_classes"), [(2, 4), (3, 2)])
    def test_all_variants_in_both_stages(self, variant, dims, n_classes):
        method = self.build(dims, n_classes, variant=variant, pretrain=1)
        given = batches(dims, n_classes, 4, 4)
        for stage in range(2):
            terms = method(*given)
            self.check_terms(terms)
            assert (terms["pseudo"] > 0) == (stage == 1)
            total(terms).backward()
            self.check_training(method)
            method.after_step()

    def test_the_teacher_starts_where_the_first_stage_ends(self):
        method, given = self.build(pretrain=2, decay=0.9), batches(n_labeled=4, n_unlabeled=4)
        optimizer = torch.optim.SGD(method.parameters(), 0.1)
        first = copy.deepcopy(method.teacher.state_dict())
        for step in range(4):
            before = copy.deepcopy(method.teacher.state_dict())
            assert method.pretraining == (step < 2)
            assert (method.second_opinion(given[0]["image"]) is None) == (step < 2)
            optimizer.zero_grad()
            total(method(*given)).backward()
            optimizer.step()
            asked = copy.deepcopy(method.teacher.state_dict())
            method.after_step()
            for key, value in method.teacher.network.state_dict().items():
                student = method.network.state_dict()[key]
                if step == 0:
                    assert torch.equal(value, first[f"network.{key}"])
                elif step == 1:
                    assert torch.equal(value, student)
                elif "running" in key:  # of its own passes
                    assert not torch.equal(value, before[f"network.{key}"])
                    assert torch.equal(value, asked[f"network.{key}"])
                elif value.is_floating_point():
                    torch.testing.assert_close(value, 0.9 * before[f"network.{key}"] + 0.1 * student)

    def test_a_run_that_is_resumed_at_the_switch_goes_on_the_same(self):
        whole, part = (self.build(pretrain=2) for _ in range(2))
        for method, restarts in ((whole, ()), (part, (1, 2, 3))):
            for step in range(4):
                if step in restarts:
                    state = copy.deepcopy(method.state_dict())
                    method = self.build(seed=step, pretrain=2)
                    method.load_state_dict(state)
                torch.manual_seed(step)
                terms = method.train()(*batches(n_labeled=4, n_unlabeled=4, seed=step))
                gradients = torch.autograd.grad(total(terms), list(method.network.parameters()), allow_unused=True)
                with torch.no_grad():
                    for parameter, gradient in zip(method.network.parameters(), gradients, strict=True):
                        parameter.sub_(0.1 * gradient)
                method.after_step()
            if restarts:
                part = method
        for key, value in whole.state_dict().items():
            assert (
                value == part.state_dict()[key] if key == "_extra_state" else torch.equal(value, part.state_dict()[key])
            )

    def test_the_matched_floor_sees_the_same_mixed_images_and_asks_nobody(self):
        shown = {}
        for weight in (0.0, 1.0):
            method = self.build(unsupervised_weight=weight)
            if weight == 0:
                method.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
            method.network.register_forward_hook(lambda m, x, y, w=weight: shown.setdefault(w, []).append(x[0]))
            torch.manual_seed(0)
            terms = method(*batches(n_labeled=4, n_unlabeled=4))
            assert ("pseudo" in terms) == (weight > 0)
        assert all(torch.equal(a, b) for a, b in zip(shown[0.0], shown[1.0], strict=True))
        assert len(shown[0.0]) == 2

    @pytest.mark.parametrize(("pretrain", "rows", "expected"), [
        (9, 1, [1]), (9, 2, [2]), (9, 3, [2]), (9, 4, [2]), (0, 1, [2]), (0, 2, [2]), (0, 3, [2, 2]), (0, 4, [2, 2]),
    ])  # fmt: skip
    def test_no_pass_of_a_single_mixed_image_where_there_are_two(self, pretrain, rows, expected):
        method, sizes = self.build(pretrain=pretrain), []
        for network in (method.network, method.teacher.network):
            network.register_forward_hook(lambda m, x, y: sizes.append(len(y)))
        method(*batches(n_labeled=rows, n_unlabeled=rows))
        assert sizes == (expected if pretrain else 2 * expected)  # the teacher first

    def test_both_ways_of_two_labeled_images(self):
        method, shown = self.build(pretrain=9), []
        method.network.register_forward_hook(lambda m, x, y: shown.append(x[0]))
        torch.manual_seed(0)
        labeled, _ = batches()
        box = method.draw_box(labeled["image"])
        torch.manual_seed(0)
        method(labeled)
        a, b = labeled["image"].split(1)
        assert torch.equal(shown[0], torch.cat([torch.where(box, b, a), torch.where(box, a, b)]))

    def test_pseudo_labels_are_one_piece_each(self):
        method, image = self.build(n_classes=3), batches()[1]["image"]
        method.teacher.network = nn.Conv2d(1, 3, 1, bias=False)  # what it says of noise is noise
        label = method.teacher_labels(image)
        assert torch.equal(largest_components(label, 3, 2), label)
        method.keep_largest = False
        assert not torch.equal(method.teacher_labels(image), label)

    def test_boxes_lie_everywhere_inside_the_patch(self):
        method = self.build()
        torch.manual_seed(0)
        found = torch.cat([method.draw_box(torch.empty(1, 1, 12, 9)) for _ in range(200)])
        assert (found.flatten(1).sum(1) == 8 * 6).all()
        assert found.any(0).sum() == (12 - 1) * (9 - 1)  # the last row and column are never reached, as released

    @pytest.mark.parametrize("rows", range(1, 8))
    @pytest.mark.parametrize("pairs", [None, 1, 2, 5])
    def test_halves(self, rows, pairs):
        first, second = (half.tolist() for half in halves(torch.arange(rows), pairs))
        assert len(first) == len(second) == (pairs or (rows + 1) // 2)
        assert all(b - a == rows // 2 for a, b in zip(first, second, strict=True))
        if pairs is None or pairs >= (rows + 1) // 2:
            assert set(first) | set(second) == set(range(rows))

    @pytest.mark.parametrize(("pretrain", "expected"), [(None, 2), (0, 0), (0.5, 8), (1, 1), (100, 100), (5.0, 5)])
    def test_pretrain_is_a_share_or_a_number(self, pretrain, expected):
        assert self.build(pretrain=pretrain, max_iterations=17).pretrain == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pretrain": -0.1}, "pretrain must be a share of the run .* or a whole number of iterations, got -0.1"),
            ({"pretrain": 1.5}, "pretrain must be a share of the run .* or a whole number of iterations, got 1.5"),
            ({"variant": "liver"}, r"variant must be one of \('left_atrium', 'pancreas_ct', 'acdc'\), got 'liver'"),
            ({"pairing": "random"}, "pairing must be one of .* got 'random'"),
            ({"dice": "squared"}, "dice must be one of .* got 'squared'"),
            ({"pretrain_loss": "none"}, "pretrain_loss must be one of .* got 'none'"),
            ({"buffers": "none"}, "buffers must be one of .* got 'none'"),
            ({"connectivity": 0}, "connectivity must be >= 1, got 0"),
            ({"pseudo_weight": -1}, "pseudo_weight must be >= 0, got -1"),
            ({"max_iterations": 0}, "max_iterations must be >= 1, got 0"),
            ({"box": 1.0}, r"box must be in \(0, 1\), a share of the patch's sides, got 1.0"),
            ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)


def test_components_of_equal_size_and_of_no_voxel():
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1]]).bool().numpy()
    assert largest_component(mask).nonzero()[0].tolist() == [0]
    assert largest_component(mask & False).sum() == 0
    touching = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool().numpy()
    assert largest_component(touching).sum() == 2
    assert largest_component(touching, connectivity=1).sum() == 1
    label = torch.tensor([[[[1, 0, 1, 1]]], [[[2, 2, 0, 2]]]])
    assert largest_components(label, 3).tolist() == [[[[0, 0, 1, 1]]], [[[2, 2, 0, 0]]]]
    assert label[0, 0, 0, 0] == 1

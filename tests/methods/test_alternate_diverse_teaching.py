"""AD-MT: what is its own."""

import copy

import pytest
import torch
from method_tester import MethodTester, batches, total
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.methods import AlternateDiverseTeaching
from monai_ssl.methods.alternate_diverse_teaching import Teaching, boxes, paste
from monai_ssl.networks import VNet


class TestAlternateDiverseTeaching(MethodTester):
    bundle = "ad_mt"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("pseudo",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        # both teachers in a run of 11 iterations, and voxels of which random networks are sure
        options = {"longest_period": 3, "copy_steps": 1, "threshold": 0.5, **options}
        return AlternateDiverseTeaching(VNet(spatial_dims, **sizes), max_iterations, **options)

    def method(self, network, **options):
        return AlternateDiverseTeaching(network, **{"threshold": 0.3, **options})

    @pytest.mark.parametrize("active", [0, 1])
    def test_weight_zero_is_the_matched_floor(self, active, monkeypatch):
        original = AlternateDiverseTeaching.__init__

        def build(self, *args, **options):
            original(self, *args, **options)
            self.active = active

        monkeypatch.setattr(AlternateDiverseTeaching, "__init__", build)
        super().test_weight_zero_is_the_matched_floor()

    @pytest.mark.parametrize("pseudo_loss", ["cross_entropy", "dice"])
    @pytest.mark.parametrize("active", [0, 1])
    @pytest.mark.parametrize(("dims", "n_classes", "unlabeled"), [(2, 4, 3), (3, 2, 2), (2, 2, 1)])
    def test_both_teachers(self, active, dims, n_classes, unlabeled, pseudo_loss):
        method = self.build(dims, n_classes, pseudo_loss=pseudo_loss)
        method.active = active
        terms = method(*batches(dims, n_classes, n_unlabeled=unlabeled))
        self.check_terms(terms)
        assert terms["pseudo"] > 0
        total(terms).backward()
        self.check_training(method)

    def test_which_view_the_network_sees(self):
        method, (labeled, unlabeled) = self.build(), batches()
        unlabeled["strong"] = torch.full_like(unlabeled["image"], 7.0)
        shown = []
        method.network.register_forward_hook(lambda m, x, y: shown.append(x[0]))
        for active in (0, 1):
            method.active = active
            method(labeled, unlabeled)
        assert torch.equal(shown[0], torch.cat([labeled["image"], unlabeled["image"], unlabeled["strong"]]))
        pasted = shown[1][4:]
        ours, other = unlabeled["image"], unlabeled["image"].flip(0)
        assert ((pasted == ours) | (pasted == other)).all()
        assert (pasted != ours).any()

    def test_only_the_active_teacher_learns_and_is_in_training_mode(self):
        method, given = self.build(longest_period=1, copy_steps=0, decay=0.9), batches()
        modes = []
        for teacher in method.teachers:
            teacher.register_forward_hook(lambda m, x, y: modes.append(m.network.stages[0][0].training))
        for step in range(4):
            before = copy.deepcopy(method.teachers.state_dict())
            active = method.active
            assert active == step % 2
            method.train()(*given)
            assert modes[-2:] == [active == 0, active == 1]
            assert all(module.training for module in method.modules())
            with torch.no_grad():
                for parameter in method.network.parameters():
                    parameter.add_(torch.rand_like(parameter))
            method.after_step()
            after = method.teachers.state_dict()
            for key, value in after.items():
                if key.startswith(f"{1 - active}."):
                    assert torch.equal(value, before[key]), key
                elif key.endswith("weight"):
                    assert not torch.equal(value, before[key]), key

    def test_the_network_settles_conflicts_where_it_is_surer(self):
        method = self.build()
        teaching = Teaching(
            label=torch.tensor([[[0, 0, 0, 0, 0]]]),
            confidence=torch.tensor([[[0.6, 0.6, 0.6, 0.6, 0.99]]]),
            conflict=torch.tensor([[[True, True, True, False, True]]]),
        )
        # surer of another class; surer of the same one; not surer; no conflict; not surer
        p = torch.tensor([[[0.1, 0.9, 0.45, 0.1, 0.1], [0.9, 0.1, 0.55, 0.9, 0.9]]])
        label, confidence = method.settle(teaching, p.log())
        assert label.tolist() == [[[1, 0, 0, 0, 0]]]
        torch.testing.assert_close(confidence, torch.tensor([[[0.9, 0.6, 0.6, 0.6, 0.99]]]))

    def test_pasted_conflicts_meet_the_map_of_the_image_before_unless_it_is_aligned(self):
        teaching = Teaching(torch.zeros(2, 1, 4, dtype=torch.long), torch.full((2, 1, 4), 0.6),
                            torch.ones(2, 1, 4, dtype=torch.bool))  # fmt: skip
        student = torch.zeros(2, 2, 4)
        student[0, 1] = 5.0  # of the first image the network says class 1
        box = torch.tensor([[[False, True, True, False]], [[False, False, False, False]]])
        for aligned, expected in ((False, [1, 1, 1, 1]), (True, [1, 0, 0, 1])):
            for options in ({"align_student": aligned}, {"variant": "paper" if aligned else "released"}):
                label, _ = self.build(**options).settle(teaching, student, box)
                assert label[0, 0].tolist() == expected

    def test_periods_are_the_same_in_all_processes_and_other_ones_for_other_seeds(self):
        def periods(seed):
            method = self.method(self.network(), seed=seed)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return [method.remaining] + [method.draw_period() for _ in range(200)]

        first = periods(0)
        torch.manual_seed(99)
        assert periods(0) == first
        assert periods(1) != first
        assert set(first) == set(range(1, 20))

    def test_turns_are_part_of_the_state(self):
        method = self.build(longest_period=4)
        for _ in range(7):
            method.after_step()
        other = self.build(longest_period=4)
        other.load_state_dict(copy.deepcopy(method.state_dict()))
        for _ in range(30):
            assert (method.active, method.remaining) == (other.active, other.remaining)
            method.after_step()
            other.after_step()

    def test_boxes_cover_what_lambda_leaves(self):
        method, image = self.build(), torch.empty(1, 1, 32, 32)
        torch.manual_seed(0)
        shares = torch.cat([method.draw_boxes(image).float().mean((2, 3)) for _ in range(400)])
        assert 0.15 < shares.mean() < 0.5  # a half, less what the border cuts
        assert shares.min() > 0
        whole = boxes((8, 8), [torch.tensor([4]), torch.tensor([4])], 1.0)
        assert whole.all()
        assert not boxes((8, 8), [torch.tensor([4]), torch.tensor([4])], 0.0).any()
        rows = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
        assert paste(rows, whole)[:, 0, 0, 0].tolist() == [1.0, 2.0, 0.0]

    def test_the_matched_floor_asks_no_teacher(self):
        method = self.build(unsupervised_weight=0.0)
        for teacher in method.teachers:
            teacher.register_forward_hook(lambda *_: pytest.fail("a teacher was asked"))
        assert set(method(*batches())) == {"supervised"}
        assert method.second_opinion(batches()[1]["image"]) is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1}, "weight must be >= 0, got -1"),
            ({"ramp_levels": 0}, "ramp_levels must be >= 1, got 0"),
            ({"max_iterations": 0}, "max_iterations must be >= 1, got 0"),
            ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
            ({"pseudo_loss": "mse"}, "pseudo_loss must be one of .* got 'mse'"),
            ({"longest_period": 0}, "longest_period must be >= 1, got 0"),
            ({"concentration": 0}, "concentration must be > 0, got 0"),
            ({"copy_steps": -1}, "copy_steps must be >= 0, got -1"),
            ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)
        with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
            self.method(self.network(), seed=-1)

"""Weak to strong: what is its own."""

import copy

import pytest
import torch
from method_tester import MethodTester, batches, total
from monai.networks.layers.factories import Conv
from monai.networks.nets import BasicUNet
from torch import nn

from monai_ssl.losses import HalfDiceCELoss
from monai_ssl.methods import WeakToStrong
from monai_ssl.methods.weak_to_strong import _drop_complementarily
from monai_ssl.networks import UNet, VNet

AT_ONCE = {"burn_in": 0.0, "ramp": 0.0, "threshold": 0.0}  # every voxel counts from the first step on
PLAIN = {**AT_ONCE, "strength": 0.0, "cutmix_probability": 0.0}  # and the strong view is the weak one


class Copies(nn.Module):
    """Two classes; the gray value is the logit of the second one."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), self.slope * image], dim=1)


def steps(method, n, seed=0):
    """Train; the terms of every step."""
    optimizer = torch.optim.AdamW(method.parameters(), 0.01)
    found = []
    for step in range(method.iteration, method.iteration + n):
        torch.manual_seed(step)
        terms = method.train()(*batches(seed=seed + step))
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        method.after_step()
        found.append({name: term.item() for name, term in terms.items()})
    return found


class TestWeakToStrong(MethodTester):
    bundle = "weak_to_strong"
    supervised_terms = ("supervised",)
    unsupervised_terms = ("pseudo",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        options = {"threshold": 0.5, "burn_in": 0.2, **options}
        return WeakToStrong(VNet(spatial_dims, **sizes), max_iterations, **options)

    def method(self, network, **options):
        return WeakToStrong(network, **{**AT_ONCE, **options})


# ------------------------------------------------------------------------------------------------ equations


@pytest.mark.parametrize("dice", [False, True])
@pytest.mark.parametrize("threshold", [0.0, "median", 1.0, None])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_terms_against_a_plain_reading(spatial_dims, threshold, dice):
    torch.manual_seed(0)
    network = VNet(spatial_dims, 1, 3, base_channels=2, dropout=0.0)
    labeled, unlabeled = batches(spatial_dims, 3)
    with torch.no_grad():
        q = copy.deepcopy(network).eval()(unlabeled["image"]).double().softmax(1)  # the teacher, before any step
    c, y = q.max(1)
    threshold = float(c.median()) if threshold == "median" else threshold
    method = WeakToStrong(network, **{**PLAIN, "threshold": threshold}, weight=0.6, dice=dice, unsupervised_weight=0.5)
    terms = method.train()(labeled, unlabeled)
    with torch.no_grad():
        z = network(torch.cat([labeled["image"], unlabeled["image"]])).double()
    assert terms["supervised"].item() == pytest.approx(HalfDiceCELoss()(z[:2], labeled["label"]).item(), abs=1e-6)
    m = c if threshold is None else (c.float() >= threshold).double()
    log_p = z[2:].log_softmax(1)
    expected = -(m * log_p.gather(1, y[:, None])[:, 0]).sum() / m.numel()
    if dice:
        scores = []
        for k in (1, 2):
            p, t = log_p.exp()[:, k][m > 0], (y == k)[m > 0].double()
            scores.append((2 * (p * t).sum() + 1e-5) / ((p * p).sum() + t.sum() + 1e-5))
        expected = 0.5 * (expected + 1 - sum(scores) / 2)
    assert terms["pseudo"].item() == pytest.approx(0.3 * float(expected), abs=1e-5)


def test_unsure_voxels_change_no_gradient():
    method = WeakToStrong(Copies(), **{**PLAIN, "threshold": 0.9})
    labeled, unlabeled = batches()
    unlabeled["image"].uniform_(-8, 8)
    seen = []
    method.network.register_forward_pre_hook(lambda m, x: seen.append(x[0].requires_grad_()))
    method(labeled, unlabeled)["pseudo"].backward()
    sure = unlabeled["image"].abs() >= torch.logit(torch.tensor(0.9))
    assert 0.2 < sure.float().mean() < 0.9
    assert not seen[0].grad[:2].any()
    assert seen[0].grad[2:][sure].all()
    assert not seen[0].grad[2:][~sure].any()


def test_nothing_sure_is_no_nan():
    method = WeakToStrong(Copies(), **{**PLAIN, "threshold": 1.0}, dice=True)
    labeled, unlabeled = batches()
    terms = method(labeled, {**unlabeled, "image": 0.1 * unlabeled["image"]})
    assert terms["pseudo"].item() == 0
    total(terms).backward()
    assert torch.isfinite(method.network.slope.grad)


@pytest.mark.parametrize("threshold", [0.9, None])
def test_image_label_and_confidence_are_mixed_by_one_box(threshold):
    """A network that copies the gray value finds its own label, as sure as it was, wherever CutMix has put it."""
    labeled, unlabeled = batches()
    values = torch.tensor([6.0, -6.0, 1.0, -1.0])
    unlabeled["image"] = values[torch.randint(0, 4, unlabeled["image"].shape)]
    found = []
    for probability in (0.0, 1.0):
        method = WeakToStrong(Copies(), **{**PLAIN, "threshold": threshold, "cutmix_probability": probability})
        seen = []
        method.network.register_forward_pre_hook(lambda m, x, seen=seen: seen.append(x[0][2:]))
        pseudo = method(labeled, unlabeled)["pseudo"].item()
        image = seen[0]
        assert torch.equal(image, unlabeled["image"]) == (probability == 0)
        c = image.abs().sigmoid()
        m = c if threshold is None else (c >= threshold).float()
        assert pseudo == pytest.approx(0.5 * (m * -c.log()).mean().item(), abs=1e-6)
        found.append(pseudo)


# ------------------------------------------------------------------------------------------------ switches


def test_burn_in_and_ramp():
    method = WeakToStrong(Copies(), 10, burn_in=0.3, ramp=0.4, threshold=0.0)
    assert [method.ramp_up() for method.iteration in range(10)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    rows = []
    method.network.register_forward_pre_hook(lambda m, x: rows.append(len(x[0])))
    method.teacher.register_forward_pre_hook(lambda m, x: rows.append("teacher"))
    method.iteration = 2
    assert method(*batches())["pseudo"].item() == 0
    method.iteration = 3
    assert method(*batches())["pseudo"].item() > 0
    assert rows == [2, "teacher", 4]
    at_once = WeakToStrong(Copies(), 10, burn_in=0.3, ramp=0.0)
    assert [at_once.ramp_up() for at_once.iteration in (2, 3)] == [0, 1]
    assert WeakToStrong(Copies(), 10, burn_in=1.0).burn_in == 10


def test_the_burn_in_is_supervised_training():
    """The same numbers as in the floor, and without any unlabeled image."""
    found = []
    for unlabeled, weight in ((True, 1.0), (True, 0.0), (False, 1.0)):
        torch.manual_seed(0)
        method = WeakToStrong(VNet(2, 1, 2, base_channels=2), 4, burn_in=1.0, unsupervised_weight=weight)
        torch.manual_seed(1)
        labeled, other = batches()
        terms = method.train()(labeled, other if unlabeled else None)
        assert set(terms) == {"supervised", *(["pseudo"] if unlabeled and weight else [])}
        total(terms).backward()
        found.append([p.grad for p in method.student.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


@pytest.mark.parametrize("feature_dropout", [False, True])
def test_the_floor_draws_the_same_views_and_asks_no_teacher(feature_dropout):
    seen = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        method = WeakToStrong(VNet(2, base_channels=2), **AT_ONCE, feature_dropout=feature_dropout,
                              unsupervised_weight=weight)  # fmt: skip
        method.student.stages[0].register_forward_pre_hook(lambda m, x, w=weight: seen.setdefault(w, x[0]))
        if weight == 0:
            method.teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher was asked"))
        torch.manual_seed(1)
        method.train()(*batches())
    assert len(seen[0.0]) == (6 if feature_dropout else 4)
    assert torch.equal(seen[0.0], seen[1.0])
    if feature_dropout:
        assert not torch.equal(seen[0.0][2:4], seen[0.0][4:])


def test_labeled_images_are_not_changed_and_the_teacher_sees_the_weak_view():
    method = WeakToStrong(Copies(), **AT_ONCE)
    seen = []
    for network in (method.teacher, method.student):
        network.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    labeled, unlabeled = batches()
    method(labeled, unlabeled)
    assert torch.equal(seen[0], unlabeled["image"])
    assert torch.equal(seen[1][:2], labeled["image"])
    assert not torch.equal(seen[1][2:], unlabeled["image"])


@pytest.mark.parametrize("deploys", ["student", "teacher"])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_teacher_averages_parameters_and_buffers(deploys, decay):
    torch.manual_seed(0)
    network = VNet(2, base_channels=2)
    method = WeakToStrong(network, **AT_ONCE, deploys=deploys, decay=decay)
    assert method.network is network
    assert (method.teacher is network) == (deploys == "teacher")
    for step in range(4):
        before = copy.deepcopy(method.teacher.state_dict())
        steps(method, 1)
        alpha = min(1 - 1 / (step + 1), decay)
        student = method.student.state_dict()
        for name, value in method.teacher.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, alpha * before[name] + (1 - alpha) * student[name])
            else:
                assert torch.equal(value, student[name])
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert all(p.requires_grad for p in method.student.parameters())


def test_the_teacher_stays_in_evaluation_mode():
    for deploys in ("student", "teacher"):
        method = WeakToStrong(VNet(2, base_channels=2), deploys=deploys)
        for mode in (True, False, True):
            assert method.train(mode) is method
            assert not any(m.training for m in method.teacher.modules())
            assert all(m.training == mode for m in method.student.modules())


@pytest.mark.parametrize("deploys", ["student", "teacher"])
def test_both_roles_train_alike_and_the_other_is_the_second_opinion(deploys):
    """Which of the two is deployed changes nothing else."""
    methods, image = {}, batches()[1]["image"]
    for role in ("student", deploys):
        torch.manual_seed(0)
        methods[role] = WeakToStrong(VNet(2, base_channels=2), **AT_ONCE, deploys=role)
        terms = steps(methods[role], 4)
        assert all(set(step) == {"supervised", "pseudo"} for step in terms)
    first, second = methods["student"], methods[deploys]
    for role in ("student", "teacher"):
        for a, b in zip(getattr(first, role).parameters(), getattr(second, role).parameters(), strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        opinion = second.eval().second_opinion(image)
        expected = (second.teacher if deploys == "student" else second.student)(image).softmax(1)
    assert torch.equal(opinion, expected)


@pytest.mark.parametrize("options", [{}, {"deploys": "teacher"}, {"feature_dropout": True}], ids=str)
def test_resumes_exactly(options):
    def build():
        torch.manual_seed(0)
        return WeakToStrong(VNet(2, base_channels=2), 6, **{**AT_ONCE, "burn_in": 0.3, "ramp": 0.5}, **options)

    whole, begun, resumed = build(), build(), build()
    expected = [steps(whole, 1)[0] for _ in range(6)]  # an optimizer without memory: a new one for each step
    for _ in range(3):
        steps(begun, 1)
    resumed.load_state_dict(begun.state_dict())
    assert resumed.iteration == 3
    assert [steps(resumed, 1)[0] for _ in range(3)] == expected[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ feature dropout


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_what_one_view_loses_the_other_has_twice(pairs):
    torch.manual_seed(0)
    rows = 3
    encoded = [torch.rand(rows + 2 * pairs, channels, 4, 4) + 1 for channels in (8, 16)]
    dropped = _drop_complementarily(encoded, rows)
    untouched = []
    for before, after in zip(encoded, dropped, strict=True):
        assert torch.equal(after[:rows], before[:rows])
        factor = after[rows:] / before[rows:]
        first, second = factor[:pairs], factor[pairs:]
        torch.testing.assert_close(first + second, torch.full_like(first, 2.0))
        channels = first.mean((2, 3))
        torch.testing.assert_close(first, channels[..., None, None].expand_as(first))  # whole channels
        kept = (channels.round(decimals=3) == 1).all(1)
        assert kept.sum() == pairs // 2
        assert set(channels[~kept].round().flatten().tolist()) == {0.0, 2.0}
        untouched.append(kept)
    assert torch.equal(*untouched)  # at every scale the same images


@pytest.mark.parametrize(("kind", "spatial_dims"), [(VNet, 2), (VNet, 3), (UNet, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feature_dropout_trains_every_parameter(kind, spatial_dims, dtype):
    network = kind(spatial_dims, 1, 3, **({"base_channels": 2} if kind is VNet else {"channels": (4, 8)}))
    method = WeakToStrong(network, **AT_ONCE, feature_dropout=True)
    given = batches(spatial_dims, 3)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        terms = method.train()(*given)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    total(terms).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_feature_dropout_is_off_where_it_is_not_asked_for():
    """Ones for masks give the logits of the network itself."""
    torch.manual_seed(0)
    network, image = VNet(2, base_channels=2, dropout=0.0), batches()[1]["image"]
    method = WeakToStrong(network, feature_dropout=True)
    expected = network(image)
    torch.testing.assert_close(method._student_logits(image, rows=2), expected)  # labeled rows only
    two = method._student_logits(torch.cat([image, image[:1], image[:1]]), rows=2)
    assert not torch.allclose(two[2], two[3])


def test_feature_dropout_needs_features():
    network = BasicUNet(2, 1, 2, features=(4, 4, 4, 4, 4, 4))
    WeakToStrong(network)
    with pytest.raises(ValueError, match=r"feature_dropout needs a network with encode.*got BasicUNet; set"):
        WeakToStrong(network, feature_dropout=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, "weight must be >= 0, got -1"),
        ({"strength": float("nan")}, "strength must be >= 0, got nan"),
        ({"max_iterations": 0}, "max_iterations must be >= 1, got 0"),
        ({"cutmix_probability": 1.5}, r"cutmix_probability must be in \[0, 1\], got 1.5"),
        ({"threshold": -0.1}, r"threshold must be in \[0, 1\], got -0.1"),
        ({"burn_in": 1.2}, r"burn_in must be in \[0, 1\], got 1.2"),
        ({"ramp": float("nan")}, r"ramp must be in \[0, 1\], got nan"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"deploys": "both"}, r"deploys must be one of \('student', 'teacher'\), got 'both'"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        WeakToStrong(Copies(), **options)

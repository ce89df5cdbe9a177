"""Mean teacher: what is its own, and the numbers of the released code (``tests/golden/golden_mean_teacher.npz``).

Losses of given outputs agree within 1e-6 in float64, gradients within rtol 1e-4; whole steps run in float32, whose
rounding was measured on the released code itself: tolerances are about ten times that.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from method_tester import MethodTester, batches
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.engines import lr_schedule
from monai_ssl.losses import HalfDiceCELoss, SigmoidRampUp, add_noise
from monai_ssl.methods.mean_teacher import MeanTeacher
from monai_ssl.networks import EMATeacher, VNet, literature_network

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_mean_teacher.npz"
CASES = {"3": (40, 6000, 0), "2": (200, 30000, 1000)}  # levels, iterations, delay
HERE = r"mt[23]_.*|mt_randn[23]|in[23]_.*|ema_(factor_mt|steps)|emamod_.*|weight_.*|lr_.*|step_.*"


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


# ------------------------------------------------------------------------------------------------- released code


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


def test_golden_mean_teacher_every_entry_is_accounted_for(golden):
    assert [key for key in golden if not re.fullmatch(HERE, key)] == []


@pytest.mark.parametrize("dims", CASES)
def test_golden_mean_teacher_losses(golden, dims, monkeypatch):
    levels, iterations, delay = CASES[dims]
    method = MeanTeacher(nn.Identity(), iterations, ramp_levels=levels, delay=delay)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)  # the numbers were made in float64
    logits = torch.from_numpy(golden[f"in{dims}_multi"][0]).double().requires_grad_()
    labeled = {"label": torch.from_numpy(golden[f"in{dims}_label"][:2, None].astype(np.int64))}
    taught = torch.from_numpy(golden[f"in{dims}_teacher"]).double()
    ours = {}
    for i, (t, weight, total) in enumerate(
        zip(*(golden[f"mt{dims}_{key}"] for key in ("iters", "weights", "totals")), strict=True)
    ):
        method.iteration = int(t)
        assert method.ramp_up(int(t)) == pytest.approx(weight, rel=1e-12)
        terms = method.terms(logits, taught, labeled)
        assert sum(terms.values()).item() == pytest.approx(total, rel=1e-6)
        ours = terms if i == 0 else ours
    assert ours["supervised"].item() == pytest.approx(golden[f"mt{dims}_supervised_loss"], rel=1e-6)
    dice = method.supervised.dice(logits[:2], labeled["label"]).item()
    assert dice == pytest.approx(golden[f"mt{dims}_loss_dice"], rel=1e-6)
    assert 2 * ours["supervised"].item() - dice == pytest.approx(golden[f"mt{dims}_loss_ce"], rel=1e-6)
    consistency = ours["consistency"] / golden[f"mt{dims}_weights"][0]
    assert consistency.item() == pytest.approx(golden[f"mt{dims}_consistency_loss"], rel=1e-6)
    for name, loss in (("grad", sum(ours.values())), ("grad_cons", consistency)):
        [gradient] = torch.autograd.grad(loss, logits, retain_graph=True)
        np.testing.assert_allclose(gradient.numpy(), golden[f"mt{dims}_{name}"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dims", CASES)
def test_golden_mean_teacher_noise(golden, dims, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.from_numpy(golden[f"mt_randn{dims}"]).clone())
    noisy = add_noise(torch.from_numpy(golden[f"in{dims}_image"][2:]))
    np.testing.assert_allclose(noisy.numpy(), golden[f"mt{dims}_teacher_input"], atol=1e-6)


@pytest.mark.parametrize(("name", "levels", "iterations"), [("uamt_R40", 40, 6000), ("ssl4mis_R200", 200, 30000)])
def test_golden_mean_teacher_weights(golden, name, levels, iterations):
    ramp = MeanTeacher(nn.Identity(), iterations, ramp_levels=levels).ramp_up
    weights = [ramp(int(t)) for t in golden["weight_iters"]]
    np.testing.assert_allclose(weights, golden[f"weight_{name}"], rtol=1e-12)


def rates(iterations):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    factor = lr_schedule(optimizer, "poly", iterations).lr_lambdas[0]
    return lambda t: 0.01 * factor(t)


def test_golden_mean_teacher_learning_rates(golden):
    # the released loop sets the rate at the end of an iteration from its number: one iteration late
    after = [rates(6000)(int(t)) for t in golden["lr_t"]]
    np.testing.assert_allclose(after, golden["lr_ssl4mis_after"], rtol=1e-12)
    for dims, (_, iterations, _) in CASES.items():
        rate = rates(iterations)(int(golden[f"mt{dims}_iters"][0]))
        assert rate == pytest.approx(golden[f"mt{dims}_lr_"], rel=1e-12)


def test_golden_mean_teacher_decay(golden):
    teacher = EMATeacher(nn.Identity(), 0.99)
    found = [[teacher.decay_at(int(step)), 1.0] for step in golden["ema_steps"]]  # buffers stay
    np.testing.assert_allclose(found, golden["ema_factor_mt"], rtol=1e-12)


@pytest.mark.parametrize("step", [0, 9, 500])
def test_golden_mean_teacher_average(golden, step):
    def module(values):
        network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Conv3d(2, 2, 1)).double()
        parts = torch.from_numpy(golden[f"emamod_{values}"]).split(golden["emamod_sizes"].tolist())
        state = {k: p.view(v.shape).to(v.dtype) for (k, v), p in zip(network.state_dict().items(), parts, strict=True)}
        network.load_state_dict(state)
        return network

    teacher = EMATeacher(module("teacher"), 0.99)
    teacher.update(module("student"), step)
    found = torch.cat([v.double().flatten() for v in teacher.network.state_dict().values()])
    np.testing.assert_allclose(found.numpy(), golden[f"emamod_mt_t{step}"], rtol=1e-6)


def fill(network, base, shapes):
    """Entry i of the state dict, batch counters left out, has the seed base + i."""
    parameters = [(*p.shape, *[0] * (shapes.shape[1] - p.dim())) for p in network.parameters()]
    np.testing.assert_array_equal(parameters, shapes)
    state = [(k, v) for k, v in network.state_dict().items() if not k.endswith("tracked")]
    for i, (name, value) in enumerate(state):
        r = np.random.RandomState(base + i).standard_normal(value.shape)
        if value.dim() > 1:
            r = r * np.sqrt(2 / np.prod(value.shape[1:]))
        elif name.endswith("running_var"):
            r = 0.5 + np.abs(r)
        else:
            r = 0.1 * r if name.endswith(("running_mean", "bias")) else 1 + 0.1 * r
        value.copy_(torch.from_numpy(r.astype(np.float32)))


def norms(tensors):
    return [t.double().norm().item() for t in tensors]


@pytest.mark.parametrize(
    ("step", "dims", "start"), [("mt3", 3, 3000), ("mt3_from0", 3, 0), ("mt2", 2, 15000)], ids=lambda v: str(v)
)
def test_golden_mean_teacher_whole_steps(golden, step, dims, start, monkeypatch):
    levels, iterations, delay = CASES[str(dims)]
    network = literature_network(dims, 1, 2 if dims == 3 else 4, base_channels=2 if dims == 3 else 4, dropout=0.0)
    method = MeanTeacher(network, iterations, ramp_levels=levels, delay=delay).train()
    with torch.no_grad():
        shapes = golden["step_vnet_shapes" if dims == 3 else "step_unet_shapes"]
        fill(method.network, 1000, shapes)
        fill(method.teacher.network, 2000, shapes)
    shape, seed, half = ((4, 1, 32, 32, 16), 1910, 2) if dims == 3 else ((8, 1, 32, 32), 1920, 4)
    image = torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
    label = np.random.RandomState(seed + 1).randint(0, 2 if dims == 3 else 4, (shape[0], *shape[2:]))
    labeled = {"image": image[:half], "label": torch.from_numpy(label)[:half, None]}
    drawn = []

    def noise(x):
        r = np.random.RandomState(6000 + len(drawn)).standard_normal(x.shape).astype(np.float32)
        drawn.append(r)
        return torch.from_numpy(r.copy())

    monkeypatch.setattr(torch, "randn_like", noise)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    method.iteration = start
    for i in range(2):
        logits = []
        handle = method.network.register_forward_hook(lambda m, x, y, logits=logits: logits.append(y.detach()))
        terms = method(labeled, {"image": image[half:]})
        handle.remove()
        weight = method.ramp_up(method.iteration)
        assert terms["consistency"].item() / weight == pytest.approx(
            golden[f"step_{step}_consistency_loss"][i], rel=2e-5
        )
        dice = method.supervised.dice(logits[0][:half], labeled["label"]).item()
        assert dice == pytest.approx(golden[f"step_{step}_loss_dice"][i], rel=3e-6)
        cross_entropy = 2 * terms["supervised"].item() - dice
        assert cross_entropy == pytest.approx(golden[f"step_{step}_loss_ce"][i], rel=3e-6)
        assert sum(terms.values()).item() == pytest.approx(golden[f"step_{step}_loss"][i], rel=2e-6)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        if i == 0:
            found, expected = norms(p.grad for p in method.network.parameters()), golden[f"step_{step}_grad_norms"]
            large = expected > 1e-3 * expected.max()  # biases before a normalization have none but rounding
            np.testing.assert_allclose(np.array(found)[large], expected[large], rtol=2e-4)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rates(iterations)(method.iteration)  # as released: one iteration late
        method.after_step()
    for name, module in (("model", method.network), ("ema_model", method.teacher.network)):
        parameters = norms(module.parameters())
        np.testing.assert_allclose(parameters, golden[f"step_{step}_param_norms_after_{name}"], rtol=3e-6, atol=1e-7)
        buffers = norms(module.buffers())
        np.testing.assert_allclose(buffers, golden[f"step_{step}_buffer_norms_after_{name}"], rtol=3e-6, atol=1e-7)
    assert len(drawn) == 2


def test_the_default_is_the_released_supervised_loss():
    given = batches(n_classes=4)[0]
    method = TestMeanTeacher().build(n_classes=4)
    expected = HalfDiceCELoss(include_background=True)(
        TestMeanTeacher().build(n_classes=4).network(given["image"]), given["label"]
    )
    assert method(given, None)["supervised"].item() == pytest.approx(expected.item())

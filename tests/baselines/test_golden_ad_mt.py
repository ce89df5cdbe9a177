"""AD-MT: ensemble, conflicts, CutMix, turns, losses of given outputs, and two whole steps."""

import math

import numpy as np
import pytest
import torch
from released import check_steps, fill, float64, norms, poly, rs, step_batches, step_network
from torch import nn

from monai_ssl.methods import AlternateDiverseTeaching
from monai_ssl.methods.alternate_diverse_teaching import boxes, ensemble, entropy_in_bits, paste
from monai_ssl.networks import EMATeacher

# options as released
OPTIONS = {
    "3": {"max_iterations": 6000, "ramp_levels": 40, "threshold": 0.8, "longest_period": 19, "copy_steps": 40},
    "2": {"max_iterations": 7500, "ramp_levels": 50, "threshold": 0.95, "longest_period": 50, "copy_steps": 50,
          "pseudo_loss": "dice"},
}  # fmt: skip
DIMS = ("3", "2")


def claims(*patterns):
    return [pytest.param(d, marks=pytest.mark.claims(*(f"admt{d}_{p}" for p in patterns))) for d in DIMS]


class Given(nn.Module):
    """A network whose output is given; remembers what it was shown, and in which mode it was."""

    def __init__(self, output):
        super().__init__()
        self.output, self.shown, self.modes = output, [], []

    def forward(self, image):
        self.shown.append(image)
        self.modes.append(self.training)
        return self.output


@pytest.fixture
def given(golden):
    """A method on given outputs, and its batches."""

    def build(dims):
        student = golden.tensor(f"admt{dims}_student", torch.float64).requires_grad_()
        method = AlternateDiverseTeaching(Given(student), **OPTIONS[dims]).train()
        method.iteration = 3000
        for i in (1, 2):
            method.teachers[i - 1].network = Given(golden.tensor(f"admt{dims}_teacher{i}", torch.float64))
        weak, strong = (golden.tensor(f"admt{dims}_{key}") for key in ("weak", "strong"))
        label = golden.tensor(f"admt{dims}_label", torch.int64)[:, None]
        return method, {"image": weak[2:], "label": label[2:]}, {"image": weak[:2], "strong": strong[:2]}

    return build


def given_boxes(golden, dims):
    centers = [torch.from_numpy(axis) for axis in golden[f"admt{dims}_cutmix_centres"]]
    sides = golden[f"admt{dims}_weak"].shape[2:]
    return boxes(sides, centers, 1 - golden.number(f"admt{dims}_cutmix_lambda"))


@pytest.mark.parametrize("dims", claims("entropy1", "weight1", "ensemble", "conflict", "teacher[12]"))
def test_golden_ad_mt_ensemble(golden, given, dims):
    method, _, unlabeled = given(dims)
    p = [golden.tensor(f"admt{dims}_teacher{i}", torch.float64).softmax(1) for i in (1, 2)]
    with float64():
        found = ensemble(*p)
        teaching = method.teach(unlabeled["image"])
    np.testing.assert_allclose(found.numpy(), golden[f"admt{dims}_ensemble"], rtol=1e-6)
    weight = golden.tensor(f"admt{dims}_weight1", torch.float64)[:, None]
    torch.testing.assert_close(weight * p[0] + (1 - weight) * p[1], found, rtol=1e-5, atol=1e-7)
    entropy = entropy_in_bits(p[0])
    np.testing.assert_allclose(entropy[:, 0].numpy(), golden[f"admt{dims}_entropy1"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(teaching.conflict[:, 0].numpy(), golden[f"admt{dims}_conflict"] != 0)
    assert torch.equal(teaching.label[:, 0], found.argmax(1))


@pytest.mark.parametrize("dims", claims("cutmix_*"))
def test_golden_ad_mt_cutmix(golden, given, dims, monkeypatch):
    method, _, unlabeled = given(dims)
    box = given_boxes(golden, dims)
    assert golden[f"admt{dims}_cutmix_perm"].tolist() == [1, 0]  # of two images the next one
    mixed = paste(unlabeled["image"], box)
    np.testing.assert_array_equal(mixed.numpy(), golden[f"admt{dims}_cutmix_image"])
    with float64():
        conflict = paste(method.teach(unlabeled["image"]).conflict, box)
    np.testing.assert_array_equal(conflict[:, 0].numpy(), golden[f"admt{dims}_cutmix_conflict"] != 0)
    asked = []

    def randint(low, high, size):
        asked.append([low, high])
        return torch.full(size, low)

    monkeypatch.setattr(torch, "randint", randint)
    method.draw_boxes(unlabeled["image"])
    assert asked == golden[f"admt{dims}_cutmix_randint_low_high"].tolist()


@pytest.mark.parametrize("dims", claims("t1active_*", "t2active_*", "student", "weak", "strong", "label"))
def test_golden_ad_mt_losses(golden, given, dims, monkeypatch):
    name = f"admt{dims}"
    for active in (0, 1):
        prefix = f"{name}_t{active + 1}active"
        method, labeled, unlabeled = given(dims)
        method.active = active
        box = given_boxes(golden, dims) if active else None
        monkeypatch.setattr(method, "draw_boxes", lambda image, b=box: b)
        with float64():
            terms = method(labeled, unlabeled)
            logits = method.network.output
            teaching = method.teach(unlabeled["image"])
            after = method.settle(teaching, logits.detach()[2:4], box)
            before = teaching[:2] if box is None else [paste(part, box) for part in teaching[:2]]
        weight = golden.number(f"{prefix}_consistency_weight")
        assert method.ramp_up(3000) == pytest.approx(weight, rel=1e-12)
        for key, value in {
            "loss_lb": terms["supervised"], "loss_ulb": terms["pseudo"] / weight, "loss": sum(terms.values()),
        }.items():  # fmt: skip
            assert value.item() == pytest.approx(golden.number(f"{prefix}_{key}"), rel=1e-6), key
        [gradient] = torch.autograd.grad(sum(terms.values()), logits)
        np.testing.assert_allclose(gradient.numpy(), golden[f"{prefix}_grad"], rtol=1e-4, atol=1e-7)
        for when, (label, confidence) in {"before": before, "after": after}.items():
            np.testing.assert_array_equal(label[:, 0].numpy(), golden[f"{prefix}_pseudo_{when}"])
            np.testing.assert_allclose(confidence[:, 0].numpy(), golden[f"{prefix}_confidence_{when}"], rtol=1e-6)
        assert (before[0] != after[0]).sum() == golden.number(f"{prefix}_changed")
        assert (after[1] >= method.threshold).sum() == golden.number(f"{prefix}_kept")
        modes = [teacher.network.modes[0] for teacher in method.teachers]
        assert modes == golden[f"{prefix}_modes_teacher1_teacher2"].astype(bool).tolist()
        asked = []
        monkeypatch.setattr(EMATeacher, "update", lambda t, n, s, m=method, a=asked: a.append([t is m.teachers[0], s]))
        method.after_step()
        assert asked == [golden[f"{prefix}_ema_called_on_teacher1_with_step"].tolist()]
        length = 15000 if dims == "3" else 30000  # the rate that the loop sets after this iteration
        assert poly(length)(3000) == pytest.approx(golden.number(f"{prefix}_lr_"), rel=1e-12)


@pytest.mark.claims("admt3_ce_none_kept_is_nan")
def test_golden_ad_mt_without_a_confident_voxel(golden, given):
    assert math.isnan(golden.number("admt3_ce_none_kept_is_nan"))  # ours: nothing to learn
    for dims in DIMS:
        method, labeled, unlabeled = given(dims)
        method.threshold = 1.0
        with float64():
            terms = method(labeled, unlabeled)
        assert terms["pseudo"].item() == 0
        [gradient] = torch.autograd.grad(sum(terms.values()), method.network.output)
        assert torch.isfinite(gradient).all()
        assert not gradient[2:].any()


@pytest.mark.parametrize("dims", claims("alternate_*"))
def test_golden_ad_mt_turns(golden, dims, monkeypatch):
    draws, asked = golden[f"admt{dims}_alternate_draws"].tolist(), []

    def randint(low, high, size, generator):
        asked.append([low, high])
        return torch.full(size, draws[len(asked) - 1])

    monkeypatch.setattr(torch, "randint", randint)
    method = AlternateDiverseTeaching(nn.Conv2d(1, 2, 1), **OPTIONS[dims])
    flags = []
    for _ in golden[f"admt{dims}_alternate_flags"]:
        flags.append(method.active == 0)
        method.after_step()
    assert flags == golden[f"admt{dims}_alternate_flags"].astype(bool).tolist()
    assert asked[:1] == golden[f"admt{dims}_alternate_randint_args"].tolist()
    assert len({tuple(bounds) for bounds in asked}) == 1


@pytest.mark.parametrize("dims", [pytest.param(d, marks=pytest.mark.claims(f"step_admt{d}_*")) for d in DIMS])
def test_golden_ad_mt_whole_steps(golden, dims, monkeypatch):
    n = int(dims)
    method = AlternateDiverseTeaching(step_network(n), **{**OPTIONS[dims], "threshold": 0.6 if n == 3 else 0.5})
    fill(method.network, 1000)
    fill(method.teachers[0].network, 2000)
    fill(method.teachers[1].network, 3000)
    first, second = step_batches(n)
    image = torch.cat([first["image"], second["image"]])
    half = len(image) // 2
    shape = (4, 32, 32, 16) if n == 3 else (8, 32, 32)
    label = np.random.RandomState(1911 if n == 3 else 1921).randint(0, 2 if n == 3 else 4, shape)
    strong = image + 0.3 * rs(1930 if n == 3 else 1931, image.shape)
    centers = [(15, 9), (12, 20), (6, 3)] if n == 3 else [(15, 9, 20, 25), (12, 20, 7, 30)]
    box = boxes(image.shape[2:], [torch.tensor(c) for c in centers], 0.6)
    monkeypatch.setattr(method, "draw_boxes", lambda image: box)
    # the released script was given the images in reversed order as partners
    module = "monai_ssl.methods.alternate_diverse_teaching.paste"
    monkeypatch.setattr(module, lambda rows, box: torch.where(box, rows.flip(0), rows))
    method.remaining = 1  # first iteration teacher 1, second teacher 2
    batches = (
        {"image": image[half:], "label": torch.from_numpy(label)[half:, None]},
        {"image": image[:half], "strong": strong[:half]},
    )

    def losses(terms):
        return {"loss_lb": terms["supervised"].item(),
                "loss_ulb": terms["pseudo"].item() / method.ramp_up(method.iteration)}  # fmt: skip

    check_steps(golden, f"admt{dims}", method, batches, 3000, losses, {}, gradients={"": method.network},
                rate=poly(15000 if n == 3 else 30000))  # fmt: skip
    assert method.active == 1
    modules = {"model": method.network, "ema_model": method.teachers[0].network,
               "ema_model_another": method.teachers[1].network}  # fmt: skip
    for name, module in modules.items():
        expected = golden[f"step_admt{dims}_param_norms_after_{name}"]
        np.testing.assert_allclose(norms(module.parameters()), expected, rtol=1e-6, err_msg=name)
        # the released code averages the teachers' batch counters as well, which mean nothing then
        counted = [name == "model" or not key.endswith("tracked") for key, _ in module.named_buffers()]
        expected = golden[f"step_admt{dims}_buffer_norms_after_{name}"]
        np.testing.assert_allclose(
            np.array(norms(module.buffers()))[counted], expected[counted], rtol=1e-6, err_msg=name
        )

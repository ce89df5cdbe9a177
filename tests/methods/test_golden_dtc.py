"""DTC against numbers that its released code produced (``tests/golden/golden_dtc.npz``).

The released code codes two classes with one channel z and a sigmoid; here the logits are ``(0, z)``. Values agree
within 1e-6, gradients within rtol 1e-4, atol 1e-7.

``ELSEWHERE`` names the entries that other test files check, ``EXCEPTED`` those that nothing can reproduce, each with
the reason; ``test_golden_dtc_every_entry_is_accounted_for`` proves that with this file they cover the whole archive.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_ssl.engines import WindowInferer, lr_schedule
from monai_ssl.losses import DualTaskConsistencyLoss, ForegroundDiceLoss, SigmoidRampUp, SmoothHeaviside
from monai_ssl.methods import DualTaskConsistency
from monai_ssl.networks import DualTaskVNet
from monai_ssl.transforms import (
    LiteraturePadd,
    RandLiteratureCropd,
    RandRotateFlipd,
    SignedDistanceMap,
    rotate_flip,
    signed_distance_map,
)

TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    r"net_.*|param_count_.*": "networks/test_networks_golden.py",
    r"metric_.*|lcc_.*": "metrics/test_cases.py",
}
EXCEPTED = {
    "sampler_seed0_epoch": "drawn from NumPy's global random state, batch after batch; our streams are functions of "
    "the position. What both have in common, permutations without repetition, is in tests/data/test_streams.py",
    "step_loss_bce_logged_only": "the released code logs it and leaves it out of the loss; nothing here computes it",
}
HERE = (
    r"sdf_(in|out)_.*|tinv_out_.*|step_(raw_tanh_in|seg_logits_in|label_in|gt_sdf|loss_(dice|sdf|dtc)|iters|total|grad_.*)"
    r"|ramp_.*|lr_.*|rotflip_.*|randcrop_out_.*|sw_(in|score|label)_.*"
)
MASKS = ("sphere", "touch", "two", "voxel", "line", "half", "full_minus1", "random", "ring")


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTS / "golden" / "golden_dtc.npz", allow_pickle=False) as file:
        return dict(file)


def check(actual, expected, rtol=0.0, atol=1e-6):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_golden_dtc_every_entry_is_accounted_for(golden):
    for key in golden:
        places = [bool(re.fullmatch(HERE, key)), key in EXCEPTED, any(re.fullmatch(p, key) for p in ELSEWHERE)]
        assert sum(places) == 1, f"{key} is tested in {sum(places)} places, expected exactly one"
    assert set(EXCEPTED) <= set(golden)
    for pattern, file in ELSEWHERE.items():
        text = (TESTS / file).read_text()
        for prefix in re.findall(r"(\w+_)\.\*", pattern):
            assert "def test_golden_dtc" in text, f"{file} does not test {prefix}"
            assert prefix in text, f"{file} does not test {prefix}"


def test_golden_dtc_every_map_and_volume_has_a_test(golden):
    assert {k[7:] for k in golden if k.startswith("sdf_in_")} == {*MASKS, "empty", "full", "multilabel", "2d"}
    assert {k for k in golden if k.startswith("tinv_")} == {"tinv_out_sphere", "tinv_out_touch"}


# ------------------------------------------------------------------------------------------------- signed distance


@pytest.mark.parametrize("degenerate", ["official", "safe"])
@pytest.mark.parametrize("name", MASKS)
def test_golden_dtc_signed_distance(golden, name, degenerate):
    mask, expected = golden[f"sdf_in_{name}"], golden[f"sdf_out_{name}"]  # (24, 20, 16)
    check(signed_distance_map(mask, degenerate), expected)
    check(SignedDistanceMap(2, degenerate)(torch.from_numpy(mask)[None]), expected[None])


@pytest.mark.parametrize("name", ["empty", "full"])
def test_golden_dtc_signed_distance_degenerate(golden, name):
    mask, expected = golden[f"sdf_in_{name}"], golden[f"sdf_out_{name}"]
    assert np.isnan(expected).all() if name == "full" else not expected.any()
    np.testing.assert_array_equal(signed_distance_map(mask, "official"), expected)


def test_golden_dtc_signed_distance_multilabel(golden):
    label, expected = golden["sdf_in_multilabel"], golden["sdf_out_multilabel"]  # (1, 24, 20, 16), values 0, 1, 2
    assert label.max() == 2
    check(SignedDistanceMap(n_classes=2)(label), expected)  # with two classes every non-zero label is foreground


def test_golden_dtc_signed_distance_2d(golden):
    masks, expected = golden["sdf_in_2d"], golden["sdf_out_2d"]  # (2, 32, 28): two images
    for mask, distance in zip(masks, expected, strict=True):
        check(SignedDistanceMap()(mask[None]), distance[None])


@pytest.mark.parametrize("name", ["sphere", "touch"])
def test_golden_dtc_smooth_heaviside(golden, name):
    mask = SmoothHeaviside(1500.0)(torch.from_numpy(golden[f"sdf_out_{name}"]))
    check(mask, golden[f"tinv_out_{name}"])


# ------------------------------------------------------------------------------------------------- one training step


def step_inputs(golden):
    """Leaf tensors (before tanh; z) of shape (4, 1, 16, 14, 12), and the labeled batch: the first two rows."""
    raw = torch.from_numpy(golden["step_raw_tanh_in"]).requires_grad_()
    z = torch.from_numpy(golden["step_seg_logits_in"]).requires_grad_()
    return raw, z, {"label": torch.from_numpy(golden["step_label_in"][:2, None]).long()}


def dtc():
    return DualTaskConsistency(DualTaskVNet(base_channels=2), max_iterations=6000)


def test_golden_dtc_step_target(golden):
    _, _, labeled = step_inputs(golden)
    for label, expected in zip(labeled["label"], golden["step_gt_sdf"], strict=True):
        check(SignedDistanceMap()(label), expected[None])


def test_golden_dtc_step_losses(golden):
    raw, z, labeled = step_inputs(golden)
    logits = torch.cat([torch.zeros_like(z), z], 1)
    check(ForegroundDiceLoss()(logits[:2], labeled["label"]), golden["step_loss_dice"])
    check(DualTaskConsistencyLoss(1500.0)(raw.tanh(), z.sigmoid()), golden["step_loss_dtc"])
    method = dtc()
    terms = method.terms(logits, raw, labeled)
    check(terms["dice"], golden["step_loss_dice"])
    check(terms["signed_distance"] / 0.3, golden["step_loss_sdf"])
    check(terms["consistency"] / method.ramp_up(0), golden["step_loss_dtc"])


@pytest.mark.parametrize("in_loader", [False, True])
def test_golden_dtc_step_total(golden, in_loader):
    raw, z, labeled = step_inputs(golden)
    if in_loader:  # the distance maps come with the batch
        labeled["signed_distance"] = torch.from_numpy(golden["step_gt_sdf"][:, None])
    method = dtc()
    for iteration, expected in zip(golden["step_iters"], golden["step_total"], strict=True):
        method.iteration = int(iteration)
        terms = method.terms(torch.cat([torch.zeros_like(z), z], 1), raw, labeled)
        assert set(terms) == {"dice", "signed_distance", "consistency"}
        check(sum(terms.values()), expected)


@pytest.mark.parametrize(("row", "iteration"), [(0, 0), (1, 5999)])
def test_golden_dtc_step_gradients(golden, row, iteration):
    raw, z, labeled = step_inputs(golden)
    method = dtc()
    method.iteration = iteration
    sum(method.terms(torch.cat([torch.zeros_like(z), z], 1), raw, labeled).values()).backward()
    check(raw.grad, golden["step_grad_raw_tanh"][row], rtol=1e-4, atol=1e-7)
    check(z.grad, golden["step_grad_seg"][row], rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------------------------------- schedules


def test_golden_dtc_ramp(golden):
    for ramp in (SigmoidRampUp(6000, 1.0, granularity=150), dtc().ramp_up):
        weights = np.array([ramp(int(i)) for i in golden["ramp_iters"]])
        check(weights, golden["ramp_weight"])


def test_golden_dtc_ramp_raw(golden):
    ramp = SigmoidRampUp(length=40)
    check(np.array([ramp(t) for t in golden["ramp_raw_t"]]), golden["ramp_raw_out"])


def test_golden_dtc_learning_rate(golden):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = lr_schedule(optimizer, "step", max_iterations=6000)
    used = []
    for _ in range(6000):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    check(np.array(used)[golden["lr_step_number"] - 1], golden["lr_used_in_step"], atol=1e-12)


# ------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("axis", range(2))
def test_golden_dtc_rotate_flip(golden, k, axis):
    image = torch.from_numpy(golden["rotflip_in"])[None]
    np.testing.assert_array_equal(rotate_flip(image, k, axis)[0], golden["rotflip_out_k_axis"][k, axis])


def test_golden_dtc_rotate_flip_produces_every_golden_and_nothing_else(golden):
    image, outputs = torch.from_numpy(golden["rotflip_in"])[None], golden["rotflip_out_k_axis"].reshape(8, -1)
    expected = {tuple(o) for o in outputs}
    transform = RandRotateFlipd("image")
    transform.set_random_state(0)
    drawn = {tuple(transform({"image": image})["image"].flatten().tolist()) for _ in range(100)}
    assert drawn == expected
    assert len(drawn) == 4
    assert tuple(image.flatten().tolist()) not in drawn


@pytest.mark.parametrize("shape", ["11x14x9", "12x12x8", "12x30x30", "13x13x9", "20x18x10", "8x20x20"])
def test_golden_dtc_random_crop(golden, shape):
    sides = [int(side) for side in shape.split("x")]
    image = torch.arange(1, np.prod(sides) + 1).reshape(1, *sides)
    padded = LiteraturePadd("image", (12, 12, 8))({"image": image})
    crop = RandLiteratureCropd("image", (12, 12, 8))
    crop.set_random_state(
        state=np.random.RandomState(3)
    )  # the released code draws from the global state, seeded with 3
    np.testing.assert_array_equal(crop(padded)["image"][0], golden[f"randcrop_out_{shape}"])


# ------------------------------------------------------------------------------------------------- sliding window


class ToyNetwork(torch.nn.Module):
    """Foreground probability sigmoid(x + 0.1 i - 0.15 k) with the voxel's place (i, ., k) in the window."""

    def forward(self, x):
        i, k = torch.arange(x.shape[2]).reshape(-1, 1, 1), torch.arange(x.shape[4]).reshape(1, 1, -1)
        z = x + 0.1 * i - 0.15 * k
        return torch.cat([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize("shape", ["20x18x10", "10x18x6"])
def test_golden_dtc_sliding_window(golden, shape, sw_batch_size):
    inferer = WindowInferer((12, 12, 8), stride=(5, 5, 3), mode="constant", sw_batch_size=sw_batch_size, amp="off")
    probabilities = inferer(torch.from_numpy(golden[f"sw_in_{shape}"])[None, None], ToyNetwork())
    check(probabilities[0, 1], golden[f"sw_score_{shape}"])
    np.testing.assert_array_equal(probabilities[0].argmax(0), golden[f"sw_label_{shape}"])

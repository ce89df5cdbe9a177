"""What the released codes of several methods have in common: inputs, ramps, rates, averages, supervised losses."""

import numpy as np
import pytest
import torch
from released import float64, given_outputs, padded_shapes, poly, step_network
from torch import nn

from monai_ssl.engines import lr_schedule
from monai_ssl.losses import ForegroundDiceLoss, HalfDiceCELoss, SigmoidRampUp, UncertaintyThreshold
from monai_ssl.methods import WeakToStrong
from monai_ssl.methods.base import staircase
from monai_ssl.networks import DualTaskVNet, EMATeacher

# name -> prefix, sides of the images, classes
INPUTS = {"in3": ((8, 8, 4), 2), "in34": ((8, 8, 4), 4), "in2": ((16, 16), 4), "in22": ((16, 16), 2)}


@pytest.mark.claims("in[23]*")
def test_golden_inputs(golden):
    for name, (sides, n_classes) in INPUTS.items():
        label, logits = golden[f"{name}_label"], golden[f"{name}_multi"]
        assert label.shape == (4, *sides)
        assert label.dtype == np.uint8
        assert set(np.unique(label)) == set(range(n_classes))
        assert logits.shape == (4, 4, n_classes, *sides)
        assert 1.0 < logits.std() < 2.0
        assert np.abs(logits).max() < 8
    for name in ("in3", "in2"):
        (sides, n_classes) = INPUTS[name]
        assert golden[f"{name}_image"].shape == (4, 1, *sides)
        assert golden[f"{name}_image"].std() == pytest.approx(1.0, abs=0.05)
        assert golden[f"{name}_teacher"].shape == (2, n_classes, *sides)


@pytest.mark.claims("step_vnet_shapes", "step_unet_shapes")
def test_golden_networks_of_whole_steps(golden):
    for dims, name in ((3, "vnet"), (2, "unet")):
        shapes = golden[f"step_{name}_shapes"]
        np.testing.assert_array_equal(padded_shapes(step_network(dims), shapes.shape[1]), shapes)


# -------------------------------------------------------------------------------------------------- ramps and rates


@pytest.mark.claims("ramp_*")
def test_golden_ramps(golden):
    times = golden["ramp_t"]
    for length in (0, 40, 200, 400):
        found = [SigmoidRampUp(length)(t) for t in times]
        np.testing.assert_allclose(found, golden[f"ramp_sigmoid_{length}"], rtol=1e-12)
    method = WeakToStrong(nn.Identity(), max_iterations=40, burn_in=0.0, ramp=1.0)
    found = []
    for t in times[times >= 0]:
        method.iteration = t - 1  # it counts the step that comes
        found.append(method.ramp_up())
    np.testing.assert_allclose(found, golden["ramp_linear_40"], rtol=1e-12)
    factor = lr_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0), "cosine", 40).lr_lambdas[0]
    found = [factor(t) for t in times[(times >= 0) & (times <= 40)]]
    np.testing.assert_allclose(found, golden["ramp_cosine_down_40"], rtol=1e-12, atol=1e-15)


@pytest.mark.claims("weight_*")
def test_golden_weights(golden):
    # levels of 150 iterations and the last weight; each is the default of its bundle for a run of that length
    for name, levels, last in (
        ("uamt_R40", 40, 0.1),
        ("ssl4mis_R200", 200, 0.1),
        ("urpc3d_R400", 400, 0.1),
        ("mcnet3d_R40", 40, 1.0),
        ("sassnet_R40", 40, 0.01),
        ("admt_la_R40", 40, 2.0),
        ("admt_acdc_R50", 50, 2.0),
    ):
        ramp = staircase(None, 150 * levels, last, levels)
        found = [ramp(int(t)) for t in golden["weight_iters"]]
        np.testing.assert_allclose(found, golden[f"weight_{name}"], rtol=1e-12, err_msg=name)


@pytest.mark.claims("uamt_threshold_*")
def test_golden_thresholds(golden):
    for length in (6000, 30000):
        found = [UncertaintyThreshold(2, length)(int(t)) for t in golden["weight_iters"]]
        np.testing.assert_allclose(found, golden[f"uamt_threshold_{length}"], rtol=1e-12)


@pytest.mark.claims("lr_*")
def test_golden_learning_rates(golden):
    times = [int(t) for t in golden["lr_t"]]
    factor = lr_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.01), "step", 6000).lr_lambdas[0]
    np.testing.assert_allclose([0.01 * factor(t) for t in times], golden["lr_uamt_used"], rtol=1e-12)
    rate = poly(6000)
    # set at the end of iteration t, from t: the released loops use it one iteration late, ours at t
    np.testing.assert_allclose([rate(t) for t in times], golden["lr_ssl4mis_after"], rtol=1e-12)
    # set after the counter was raised: iteration t + 1 uses the rate of t + 1, as ours
    np.testing.assert_allclose([rate(t + 1) for t in times], golden["lr_cps_after"], rtol=1e-12)


# --------------------------------------------------------------------------------------------------------- averages

# released teacher -> our options, and how many of its steps one call counts
TEACHERS = {
    "mt": ({"decay": 0.99}, 1),
    "admt_la": ({"decay": 0.99, "buffers": "average", "copy_steps": 40}, 2),
    "admt_acdc": ({"decay": 0.99, "buffers": "average", "copy_steps": 50}, 2),
    "bcp_la": ({"decay": 0.99, "warm_up": False}, 1),
    "bcp_acdc": ({"decay": 0.99, "warm_up": False, "buffers": "average"}, 1),
    "unimatch2": ({"decay": 0.996, "buffers": "average"}, 1),
}


class OneOfEach(nn.Module):
    """A parameter and a buffer of one value."""

    def __init__(self, value):
        super().__init__()
        self.parameter = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.register_buffer("buffer", torch.tensor(value, dtype=torch.float64))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mt", marks=pytest.mark.claims("ema_factor_mt")),
        pytest.param("admt_la", marks=pytest.mark.claims("ema_factor_admt_la")),
        pytest.param("admt_acdc", marks=pytest.mark.claims("ema_factor_admt_acdc")),
        pytest.param("bcp_la", marks=pytest.mark.claims("ema_factor_bcp_la")),
        pytest.param("unimatch2", marks=pytest.mark.claims("ema_factor_unimatch2", "ema_steps")),
    ],
)
def test_golden_averages(golden, name):
    options, divisor = TEACHERS[name]
    found = []
    for step in golden["ema_steps"]:
        teacher = EMATeacher(OneOfEach(1.0), **options)
        teacher.update(OneOfEach(0.0), int(step) // divisor)
        found.append([teacher.network.parameter.item(), teacher.network.buffer.item()])
    expected = golden[f"ema_factor_{name}"]
    found = np.array(found)[:, 0] if expected.ndim == 1 else np.array(found)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.claims("emamod_*")
def test_golden_averages_of_a_module(golden):
    sizes = golden["emamod_sizes"].tolist()

    def module(values):
        network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Conv3d(2, 2, 1)).double()
        parts = golden.tensor(f"emamod_{values}").split(sizes)
        state = {k: p.view(v.shape).to(v.dtype) for (k, v), p in zip(network.state_dict().items(), parts, strict=True)}
        network.load_state_dict(state)
        return network

    counter = sum(sizes[:6])
    for name, key, steps in (
        ("mt", "emamod_mt_t{}", (0, 9, 500)),
        ("admt_la", "emamod_admt_t{}", (10, 90, 5000)),
        ("bcp_la", "emamod_bcp_la", (7,)),
        ("bcp_acdc", "emamod_bcp_acdc", (7,)),
        ("unimatch2", "emamod_unimatch2_t{}", (0, 9, 5000)),
    ):
        options, divisor = TEACHERS[name]
        for step in steps:
            teacher = EMATeacher(module("teacher"), **options)
            teacher.update(module("student"), step // divisor)
            found = torch.cat([v.double().flatten() for v in teacher.network.state_dict().values()]).numpy()
            expected = golden[key.format(step)].copy()
            if options.get("buffers") == "average":
                # the released codes average the batch counter, too, and store 990.07 or 996 batches; ours copies it
                assert found[counter] == 7
                expected[counter] = 7
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=f"{name} {step}")


# ------------------------------------------------------------------------------------------------- supervised losses


@pytest.mark.parametrize(
    ("name", "dims", "include_background", "gradient"),
    [
        pytest.param("uamt3", "3", False, "grad", marks=pytest.mark.claims("sup_uamt3_*")),
        pytest.param("ssl4mis3", "3", True, "total_grad", marks=pytest.mark.claims("sup_ssl4mis3_*")),
        pytest.param(
            "ssl4mis2", "2", True, "total_grad",
            marks=pytest.mark.claims("sup_ssl4mis2_ce", "sup_ssl4mis2_dice", "sup_ssl4mis2_total*"),
        ),
    ],
)  # fmt: skip
def test_golden_half_dice_half_cross_entropy(golden, name, dims, include_background, gradient):
    logits, labeled = given_outputs(golden, dims)
    logits = logits[:2].detach().requires_grad_()
    loss = HalfDiceCELoss(include_background)
    with float64():
        total, dice = loss(logits, labeled["label"]), loss.dice(logits, labeled["label"])
        [found] = torch.autograd.grad(total, logits)
    for key, value in (("total", total), ("dice", dice), ("ce", 2 * total - dice)):
        assert value.item() == pytest.approx(golden.number(f"sup_{name}_{key}"), rel=1e-6)
    np.testing.assert_allclose(found, golden[f"sup_{name}_{gradient}"], rtol=1e-4, atol=1e-7)


@pytest.mark.claims("sup_ssl4mis2_dice_*", "sup_linear_dice3")
def test_golden_dice_of_absent_classes_perfect_predictions_and_plain_sums(golden):
    logits, labeled = given_outputs(golden, "2")
    label, dice = labeled["label"], ForegroundDiceLoss(include_background=True)
    with float64():
        absent = dice(logits[:2], label.masked_fill(label == 3, 0))
        perfect = dice.of_probabilities(nn.functional.one_hot(label[:, 0], 4).movedim(-1, 1).double(), label)
        assert absent.item() == pytest.approx(golden.number("sup_ssl4mis2_dice_no3"), rel=1e-6)
        assert perfect.item() == pytest.approx(golden.number("sup_ssl4mis2_dice_perfect"), abs=1e-12)
        logits, labeled = given_outputs(golden, "3")
        linear = ForegroundDiceLoss(squared=False)(logits[:2], labeled["label"])
        assert linear.item() == pytest.approx(golden.number("sup_linear_dice3"), rel=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("unimatch2", marks=pytest.mark.claims("sup_unimatch2_*", "sup_ignore2")),
        pytest.param("admt2", marks=pytest.mark.claims("sup_admt2_*")),
    ],
)
def test_golden_dice_with_ignored_voxels(golden, name):
    logits, labeled = given_outputs(golden, "2")
    logits = logits[:2].detach().requires_grad_()
    ignored, dice = golden.tensor("sup_ignore2", torch.bool)[:, None], ForegroundDiceLoss(include_background=True)
    with float64():
        for key, mask in (
            ("none_ignored", ignored & False),
            ("ignore", ignored),
            ("all_ignored", ignored | True),
        ):
            loss = dice(logits, labeled["label"].masked_fill(mask, 255))
            assert loss.item() == pytest.approx(golden.number(f"sup_{name}_dice_{key}"), rel=1e-6, abs=1e-12)
            [found] = torch.autograd.grad(loss, logits)
            if key == "ignore":
                np.testing.assert_allclose(found, golden[f"sup_{name}_dice_ignore_grad"], rtol=1e-4, atol=1e-7)
            if key == "all_ignored":
                assert not found.any()


@pytest.mark.claims("nparams_sassnet_vnet_sdf_1")
def test_golden_size_of_a_network_of_two_heads(golden):
    network = DualTaskVNet(3)  # one logit, one distance map
    assert sum(p.numel() for p in network.parameters()) == golden.number("nparams_sassnet_vnet_sdf_1")

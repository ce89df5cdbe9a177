"""UA-MT: the numbers of its own loop (3D, ``uamt3``) and of SSL4MIS's (``uamt3s``, ``uamt2``)."""

import numpy as np
import pytest
import torch
from released import (
    Seen,
    check_steps,
    check_supervised,
    check_totals,
    draws,
    fill,
    float64,
    given_outputs,
    poly,
    step_batches,
    step_network,
)
from torch import nn

from monai_ssl.losses import monte_carlo_probabilities, predictive_entropy
from monai_ssl.methods import UncertaintyAwareMeanTeacher

LENGTHS = {3: (6000, 40), 2: (30000, 200)}


def released(network, dims, include_background):
    iterations, levels = LENGTHS[dims]
    return UncertaintyAwareMeanTeacher(
        network, iterations, ramp_levels=levels, entropy_classes=2, include_background=include_background
    )


def mean_of_passes(golden, dims):
    """Through the calls that the released loop makes: two copies of the batch in each."""
    logits = golden.tensor(f"uamt{dims}_passes", torch.float64)
    calls = iter(logits.unflatten(0, (4, 2)).flatten(1, 2))
    shape = (2, 1, *logits.shape[3:])
    found = monte_carlo_probabilities(lambda x: next(calls), torch.zeros(shape), 8, 2)
    assert next(calls, None) is None
    return found


@pytest.mark.parametrize(
    ("name", "dims", "include_background", "names", "consistency_name"),
    [
        pytest.param(
            "uamt3", 3, False, ("supervised_loss", "loss_seg", "loss_seg_dice"), "consistency_dist",
            marks=pytest.mark.claims("uamt3_*"),
        ),
        pytest.param(
            "uamt3s", 3, True, ("supervised_loss", "loss_ce", "loss_dice"), "consistency_loss",
            marks=pytest.mark.claims("uamt3s_*"),
        ),
        pytest.param(
            "uamt2", 2, True, ("supervised_loss", "loss_ce", "loss_dice"), "consistency_loss",
            marks=pytest.mark.claims("uamt2_*"),
        ),
    ],
)  # fmt: skip
def test_golden_ua_mt_losses(golden, name, dims, include_background, names, consistency_name):
    method = released(nn.Identity(), dims, include_background)
    logits, labeled = given_outputs(golden, str(dims))
    taught = golden.tensor(f"in{dims}_teacher", torch.float64)
    with float64():
        mean = mean_of_passes(golden, dims)
        first, consistency = check_totals(
            golden, name, method, lambda: method.terms(logits, taught, mean, labeled), {"": logits}
        )
        check_supervised(golden, name, method.supervised, logits[:2], labeled["label"], names)
        assert consistency.item() == pytest.approx(golden.number(f"{name}_{consistency_name}"), rel=1e-6)
        if name == "uamt3s":  # the same passes and masks as uamt3
            return
        if name == "uamt3":
            assert first["consistency"].item() == pytest.approx(golden.number("uamt3_consistency_loss"), rel=1e-6)
        entropy = predictive_entropy(mean)
        np.testing.assert_allclose(mean, golden[f"{name}_mean"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(entropy, golden[f"{name}_uncertainty"], rtol=1e-5, atol=1e-7)
        distance = (logits[2:].softmax(1) - taught.softmax(1)).square().detach()
        np.testing.assert_allclose(distance, golden[f"{name}_distance"], rtol=1e-4, atol=1e-7)
        for i, t in enumerate(golden[f"{name}_iters"]):
            method.iteration = int(t)
            assert method.threshold(logits.shape[1]) == pytest.approx(golden[f"{name}_thresholds"][i], rel=1e-12)
            mask = method.certain(mean)
            assert mask.sum() == golden[f"{name}_kept"][i]
            if i == 0:
                np.testing.assert_array_equal(mask, golden[f"{name}_mask"])
            term = method.terms(logits, taught, mean, labeled)["consistency"].item() / method.ramp_up(int(t))
            assert term == pytest.approx(golden[f"{name}_consistency_at_thresholds"][i], rel=1e-6)


@pytest.mark.parametrize("dims", [3, 2])
def test_golden_ua_mt_with_all_classes(golden, dims):
    """No released number: with as many voxels that count, ours is theirs times 2 / C; for two classes both are one."""
    logits, labeled = given_outputs(golden, str(dims))
    taught = golden.tensor(f"in{dims}_teacher", torch.float64)
    with float64():
        mean = mean_of_passes(golden, dims)
        theirs, ours = released(nn.Identity(), dims, True), released(nn.Identity(), dims, True)
        ours.entropy_classes = None
        ours.masked_mse.channels = None
        everything = torch.zeros_like(mean)
        everything[:, 0] = 1.0
        a, b = (m.terms(logits, taught, everything, labeled)["consistency"].item() for m in (theirs, ours))
        assert a == pytest.approx(b * logits.shape[1] / 2, rel=1e-9)
        assert ours.certain(mean).sum() >= theirs.certain(mean).sum()


@pytest.mark.parametrize(
    ("dims", "include_background", "start", "names"),
    [
        pytest.param(
            3, False, 3000, ("loss_seg", "loss_seg_dice", "consistency_dist"),
            marks=pytest.mark.claims("step_uamt3_*"),
        ),
        pytest.param(
            2, True, 15000, ("loss_ce", "loss_dice", "consistency_loss"),
            marks=pytest.mark.claims("step_uamt2_*"),
        ),
    ],
)  # fmt: skip
def test_golden_ua_mt_whole_steps(golden, dims, include_background, start, names, monkeypatch):
    method = released(step_network(dims), dims, include_background)
    fill(method.network, 1000)
    fill(method.teacher.network, 2000)
    labeled, unlabeled = step_batches(dims)
    drawn, seen = draws(monkeypatch, 6000), Seen(method.network)

    def losses(terms):
        dice = method.supervised.dice(seen.logits[: len(labeled["label"])], labeled["label"]).item()
        consistency = terms["consistency"].item() / method.ramp_up(method.iteration)
        return dict(zip(names, (2 * terms["supervised"].item() - dice, dice, consistency), strict=True))

    check_steps(
        golden,
        f"uamt{dims}",
        method,
        (labeled, unlabeled),
        start,
        losses,
        {"model": method.network},
        {"ema_model": method.teacher.network},
        poly(30000) if dims == 2 else None,
    )
    assert [len(noise) for noise in drawn] == [len(unlabeled["image"]) * n for n in (1, 2, 2, 2, 2)] * 2

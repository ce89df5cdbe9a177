"""Mean teacher: the numbers of SSL4MIS's loops."""

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

from monai_ssl.losses import add_noise
from monai_ssl.methods import MeanTeacher

CASES = {"3": (40, 6000, 0), "2": (200, 30000, 1000)}  # levels, iterations, delay


@pytest.mark.parametrize(
    "dims",
    [
        pytest.param("3", marks=pytest.mark.claims("mt3_[!t]*", "mt3_totals")),
        pytest.param("2", marks=pytest.mark.claims("mt2_[!t]*", "mt2_totals")),
    ],
)
def test_golden_mean_teacher_losses(golden, dims):
    levels, iterations, delay = CASES[dims]
    method = MeanTeacher(nn.Identity(), iterations, ramp_levels=levels, delay=delay)
    logits, labeled = given_outputs(golden, dims)
    taught = golden.tensor(f"in{dims}_teacher", torch.float64)
    with float64():
        _, consistency = check_totals(
            golden, f"mt{dims}", method, lambda: method.terms(logits, taught, labeled), {"": logits}
        )
        check_supervised(golden, f"mt{dims}", method.supervised, logits[:2], labeled["label"])
    assert consistency.item() == pytest.approx(golden.number(f"mt{dims}_consistency_loss"), rel=1e-6)
    # the rate that the released loop sets at the end of an iteration, from its number: used one iteration late
    rate = poly(iterations)(int(golden[f"mt{dims}_iters"][0]))
    assert rate == pytest.approx(golden.number(f"mt{dims}_lr_"), rel=1e-12)


@pytest.mark.parametrize(
    "dims",
    [pytest.param(dims, marks=pytest.mark.claims(f"mt{dims}_teacher_input", f"mt_randn{dims}")) for dims in ("3", "2")],
)
def test_golden_mean_teacher_noise(golden, dims, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", lambda x: golden.tensor(f"mt_randn{dims}"))
    noisy = add_noise(golden.tensor(f"in{dims}_image")[2:])
    np.testing.assert_allclose(noisy.numpy(), golden[f"mt{dims}_teacher_input"], atol=1e-6)


@pytest.mark.parametrize(
    ("step", "dims", "start"),
    [
        pytest.param("mt3", 3, 3000, marks=pytest.mark.claims("step_mt3_[!f]*")),
        pytest.param("mt3_from0", 3, 0, marks=pytest.mark.claims("step_mt3_from0_*")),
        pytest.param("mt2", 2, 15000, marks=pytest.mark.claims("step_mt2_*")),
    ],
)
def test_golden_mean_teacher_whole_steps(golden, step, dims, start, monkeypatch):
    levels, iterations, delay = CASES[str(dims)]
    method = MeanTeacher(step_network(dims), iterations, ramp_levels=levels, delay=delay)
    fill(method.network, 1000)
    fill(method.teacher.network, 2000)
    labeled, unlabeled = step_batches(dims)
    drawn, seen = draws(monkeypatch, 6000), Seen(method.network)

    def losses(terms):
        dice = method.supervised.dice(seen.logits[: len(labeled["label"])], labeled["label"]).item()
        return {
            "loss_dice": dice,
            "loss_ce": 2 * terms["supervised"].item() - dice,
            "consistency_loss": terms["consistency"].item() / method.ramp_up(method.iteration),
        }

    check_steps(
        golden,
        step,
        method,
        (labeled, unlabeled),
        start,
        losses,
        {"model": method.network},
        {"ema_model": method.teacher.network},
        poly(iterations),  # as released: one iteration late
    )
    assert len(drawn) == 2

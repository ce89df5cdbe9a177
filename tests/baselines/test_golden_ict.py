"""Interpolation consistency: the numbers of SSL4MIS's loops."""

import numpy as np
import pytest
import torch
from released import (
    Seen,
    check_steps,
    check_supervised,
    check_totals,
    fill,
    float64,
    given_outputs,
    poly,
    step_batches,
    step_network,
)
from torch import nn

from monai_ssl.methods import InterpolationConsistency
from monai_ssl.methods.interpolation_consistency import halves, mixture

LENGTHS = {3: (6000, 40), 2: (30000, 200)}


def released(network, dims):
    iterations, levels = LENGTHS[dims]
    return InterpolationConsistency(network, iterations, ramp_levels=levels)


@pytest.mark.parametrize(
    "dims",
    [
        pytest.param(3, marks=pytest.mark.claims("ict3_*")),
        pytest.param(2, marks=pytest.mark.claims("ict2_[!p]*")),
    ],
)
def test_golden_ict_losses(golden, dims):
    method, share = released(nn.Identity(), dims), golden.tensor(f"ict{dims}_lambda", torch.float64)
    _, labeled = given_outputs(golden, str(dims))
    image = golden.tensor(f"in{dims}_image", torch.float64)
    mixed = mixture(*halves(image[2:]), share)
    np.testing.assert_allclose(torch.cat([image[:2], mixed]), golden[f"ict{dims}_student_input"], rtol=1e-6, atol=1e-7)
    taught = golden.tensor(f"in{dims}_teacher", torch.float64).softmax(1)
    target = mixture(*halves(taught), share)
    np.testing.assert_allclose(target, golden[f"ict{dims}_target"], rtol=1e-6)
    logits = golden.tensor(f"in{dims}_multi", torch.float64)[0, :3].requires_grad_()
    with float64():
        _, consistency = check_totals(
            golden, f"ict{dims}", method, lambda: method.terms(logits, target, labeled), {"": logits}
        )
        check_supervised(golden, f"ict{dims}", method.supervised, logits[:2], labeled["label"])
    assert consistency.item() == pytest.approx(golden.number(f"ict{dims}_consistency_loss"), rel=1e-6)


@pytest.mark.claims("ict2_pairs_*")
def test_golden_ict_pairs(golden):
    constants = torch.arange(24.0)
    mixed = mixture(*halves(constants[12:]), golden.tensor("ict2_pairs_lambda", torch.float32))
    np.testing.assert_allclose(torch.cat([constants[:12], mixed]), golden["ict2_pairs_out"], rtol=1e-6)


@pytest.mark.parametrize(
    ("dims", "start", "shares"),
    [
        pytest.param(3, 3000, [0.3], marks=pytest.mark.claims("step_ict3_*")),
        pytest.param(2, 15000, [0.3, 0.9], marks=pytest.mark.claims("step_ict2_*")),
    ],
)
def test_golden_ict_whole_steps(golden, dims, start, shares, monkeypatch):
    method = released(step_network(dims), dims)
    fill(method.network, 1000)
    fill(method.teacher.network, 2000)
    labeled, unlabeled = step_batches(dims)
    monkeypatch.setattr(method, "draw", lambda pairs: torch.tensor(shares))  # float32, as released
    seen = Seen(method.network)

    def losses(terms):
        dice = method.supervised.dice(seen.logits[: len(labeled["label"])], labeled["label"]).item()
        return {
            "loss_dice": dice,
            "loss_ce": 2 * terms["supervised"].item() - dice,
            "consistency_loss": terms["consistency"].item() / method.ramp_up(method.iteration),
        }

    check_steps(
        golden,
        f"ict{dims}",
        method,
        (labeled, unlabeled),
        start,
        losses,
        {"model": method.network},
        {"ema_model": method.teacher.network},
        poly(LENGTHS[dims][0]),
    )

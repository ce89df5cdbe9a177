"""Entropy minimization: the numbers of SSL4MIS's loops."""

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

from monai_ssl.losses import predictive_entropy
from monai_ssl.methods import EntropyMinimization

LENGTHS = {3: (6000, 40), 2: (30000, 200)}


def released(network, dims):
    iterations, levels = LENGTHS[dims]
    return EntropyMinimization(network, iterations, ramp_levels=levels)


@pytest.mark.parametrize(
    "dims",
    [
        pytest.param(3, marks=pytest.mark.claims("em3_*")),
        pytest.param(2, marks=pytest.mark.claims("em2_*")),
    ],
)
def test_golden_entropy_minimization_losses(golden, dims):
    method = released(nn.Identity(), dims)
    logits, labeled = given_outputs(golden, str(dims))
    with float64():
        _, entropy = check_totals(
            golden, f"em{dims}", method, lambda: method.terms(logits, labeled), {"": logits}, ("entropy",)
        )
        check_supervised(golden, f"em{dims}", method.supervised, logits[:2], labeled["label"])
    assert entropy.item() == pytest.approx(golden.number(f"em{dims}_consistency_loss"), rel=1e-6)


@pytest.mark.claims("em_entropy_*")
def test_golden_entropy_minimization_entropies(golden):
    with float64():
        p = golden.tensor("in3_multi", torch.float64)[0].softmax(1)
        found = predictive_entropy(p, relative=True)
        np.testing.assert_allclose(found, golden["em_entropy_map3"], rtol=1e-5, atol=1e-7)
        plain = predictive_entropy(golden.tensor("in2_multi", torch.float64)[0].softmax(1)).mean()
        assert plain.item() == pytest.approx(golden.number("em_entropy_plain2"), rel=1e-6)
        certain = torch.tensor([[1.0], [0.0]], dtype=torch.float64)[None]
        found = predictive_entropy(certain, relative=True).item()
        assert found == pytest.approx(golden.number("em_entropy_of_onehot"), rel=1e-6)


@pytest.mark.parametrize(
    ("dims", "start"),
    [
        pytest.param(3, 3000, marks=pytest.mark.claims("step_em3_*")),
        pytest.param(2, 15000, marks=pytest.mark.claims("step_em2_*")),
    ],
)
def test_golden_entropy_minimization_whole_steps(golden, dims, start):
    method = released(step_network(dims), dims)
    fill(method.network, 1000)
    labeled, unlabeled = step_batches(dims)
    seen = Seen(method.network)

    def losses(terms):
        dice = method.supervised.dice(seen.logits[: len(labeled["label"])], labeled["label"]).item()
        return {
            "loss_dice": dice,
            "loss_ce": 2 * terms["supervised"].item() - dice,
            "consistency_loss": terms["entropy"].item() / method.ramp_up(method.iteration),
        }

    check_steps(
        golden,
        f"em{dims}",
        method,
        (labeled, unlabeled),
        start,
        losses,
        {"model": method.network},
        rate=poly(LENGTHS[dims][0]),
    )

"""Cross pseudo supervision: the numbers of SSL4MIS's loops."""

import pytest
from released import check_steps, check_totals, fill, float64, given_outputs, poly, step_batches, step_network
from torch import nn

from monai_ssl.methods import CrossPseudoSupervision

LENGTHS = {3: (6000, 40), 2: (30000, 200)}


def released(network, second, dims):
    iterations, levels = LENGTHS[dims]
    return CrossPseudoSupervision(network, second, max_iterations=iterations, ramp_levels=levels)


@pytest.mark.parametrize(
    "dims",
    [
        pytest.param(3, marks=pytest.mark.claims("cps3_*")),
        pytest.param(2, marks=pytest.mark.claims("cps2_*")),
    ],
)
def test_golden_cps_losses(golden, dims):
    method, name = released(nn.Identity(), nn.Identity(), dims), f"cps{dims}"
    logits, labels = zip(*(given_outputs(golden, str(dims), output) for output in (0, 1)), strict=True)
    with float64():
        terms, _ = check_totals(
            golden,
            name,
            method,
            lambda: method.terms(logits, labels[0]),
            {"_1": logits[0], "_2": logits[1]},
            ("pseudo", "pseudo_second"),
        )
    for number, suffix in (("1", ""), ("2", "_second")):
        supervised, pseudo = terms[f"supervised{suffix}"].item(), terms[f"pseudo{suffix}"].item()
        assert supervised == pytest.approx(golden.number(f"{name}_loss{number}"), rel=1e-6)
        assert supervised + pseudo == pytest.approx(golden.number(f"{name}_model{number}_loss"), rel=1e-6)
        unweighted = pseudo / float(golden[f"{name}_weights"][0])
        assert unweighted == pytest.approx(golden.number(f"{name}_pseudo_supervision{number}"), rel=1e-6)


@pytest.mark.parametrize(
    ("dims", "start"),
    [
        pytest.param(3, 3000, marks=pytest.mark.claims("step_cps3_*")),
        pytest.param(2, 15000, marks=pytest.mark.claims("step_cps2_*")),
    ],
)
def test_golden_cps_whole_steps(golden, dims, start):
    method = released(step_network(dims), step_network(dims), dims)
    fill(method.network, 1000)
    fill(method.second, 2000)

    def losses(terms):
        weight = method.ramp_up(method.iteration)
        return {
            "loss1": terms["supervised"].item(),
            "loss2": terms["supervised_second"].item(),
            "pseudo_supervision1": terms["pseudo"].item() / weight,
            "pseudo_supervision2": terms["pseudo_second"].item() / weight,
        }

    networks = {"model1": method.network, "model2": method.second}
    # the released loop sets the rate after it has raised its counter, for the next step: as ours
    rate = poly(LENGTHS[dims][0])
    check_steps(
        golden,
        f"cps{dims}",
        method,
        step_batches(dims),
        start,
        losses,
        networks,
        rate=lambda t: rate(t + 1),
        gradients={f"_{name}": module for name, module in networks.items()},
    )

"""URPC: the numbers of SSL4MIS's loops, 3D and 2D."""

import numpy as np
import pytest
import torch
from decoder_order import InReleasedOrder
from perturbation_draws import seeded_draws
from released import check_steps, check_totals, fill, float64, norms, poly, rs, step_batches
from torch import nn

from monai_ssl.methods import PyramidConsistency
from monai_ssl.networks import literature_network, pyramid_network

# iterations, levels of the ramp-up, names of the outputs
PLAN = {"3": (60000, 400, ["aux1", "aux2", "aux3", "aux4"]), "2": (30000, 200, ["main", "aux1", "aux2", "aux3"])}
LOSSES = {"main": "", "aux1": "_aux1", "aux2": "_aux2", "aux3": "_aux3", "aux4": "_aux4"}
# our heads in the released order, which in 2D has one at the bottleneck, of width 64, that is not used
ORDER = {
    3: ["network.stages.", "network.decoders.", "heads.2.", "heads.1.", "heads.0.", "network.heads."],
    2: ["network.stages.", "network.decoders.", "network.heads.", "unused.", "heads.2.", "heads.1.", "heads.0."],
}


class Outputs(nn.Module):
    def outputs(self, image):
        raise AssertionError("outputs are given")


def released_network(dims):
    network = pyramid_network(dims, 1, 2 if dims == 3 else 4, 2 if dims == 3 else 4, dropout=0.0)
    unused = None if dims == 3 else nn.Conv2d(64, 4, 3, padding=1)
    released = InReleasedOrder(network, ORDER[dims], unused)
    fill(released.entries(), 1000)
    return network, released


@pytest.mark.parametrize(
    ("dims", "classes", "inputs"),
    [
        pytest.param(d, c, i, marks=pytest.mark.claims(f"urpc{d}c{c}_*"))
        for d, c, i in (("3", 2, "in3"), ("3", 4, "in34"), ("2", 4, "in2"), ("2", 2, "in22"))
    ],
)
def test_golden_losses(golden, dims, classes, inputs):
    name, (iterations, levels, names) = f"urpc{dims}c{classes}", PLAN[dims]
    method = PyramidConsistency(Outputs(), iterations, ramp_levels=levels)
    outputs = [z.requires_grad_() for z in golden.tensor(f"{inputs}_multi", torch.float64)]
    labeled = {"label": golden.tensor(f"{inputs}_label", torch.int64)[:2, None]}
    given = {f"_{k}": z for k, z in enumerate(outputs)}
    with float64():
        terms, consistency = check_totals(golden, name, method, lambda: method.terms(outputs, labeled), given)
        unlabeled = [z[2:] for z in outputs]
        for key, value in zip(names, method.consistency.per_output(*unlabeled), strict=True):
            assert value.item() == pytest.approx(golden.number(f"{name}_consistency_loss_{key}"), rel=1e-6)
        last = method.consistency.divergences(*unlabeled)[-1]
        for key, z in zip(names, outputs, strict=True):
            stored = tuple(f"loss_{kind}{LOSSES[key]}" for kind in ("ce", "dice"))
            total, dice = (
                method.supervised(z[:2], labeled["label"]).item(),
                method.supervised.dice(z[:2], labeled["label"]),
            )
            assert 2 * total - dice.item() == pytest.approx(golden.number(f"{name}_{stored[0]}"), rel=1e-6)
            assert dice.item() == pytest.approx(golden.number(f"{name}_{stored[1]}"), rel=1e-6)
    assert consistency.item() == pytest.approx(golden.number(f"{name}_consistency_loss"), rel=1e-6)
    assert terms["supervised"].item() == pytest.approx(golden.number(f"{name}_supervised_loss"), rel=1e-6)
    np.testing.assert_allclose(last.detach().numpy(), golden[f"{name}_variance_last"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dims", [pytest.param(d, marks=pytest.mark.claims(f"net_urpc{d}_*")) for d in (3, 2)])
@torch.no_grad()
def test_golden_network(golden, dims, monkeypatch):
    network, released = released_network(dims)
    np.testing.assert_array_equal(released.padded_shapes(dims + 2), golden[f"net_urpc{dims}_shapes"])
    image = rs(1900, (2, 1, 32, 32, 16)) if dims == 3 else rs(1901, (2, 1, 48, 32))
    every_second = (slice(None), slice(None), *[slice(None, None, 2)] * dims)
    outputs = network.double().eval().outputs(image.double())
    for k, output in enumerate(outputs):
        expected = golden[f"net_urpc{dims}_out{k + 1}_s2"]
        np.testing.assert_allclose(output[every_second].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(network(image.double()), outputs[0])


@pytest.mark.claims(
    "nparams_urpc3d_c2_c3_c4", "nparams_unet3d_c2", "nparams_urpc2d_unused_head", "nparams_urpc2d_cct2d_unet2d"
)
def test_golden_numbers_of_parameters(golden):
    def count(network):
        return sum(p.numel() for p in network.parameters())

    assert [count(pyramid_network(3, 1, c)) for c in (2, 3, 4)] == golden["nparams_urpc3d_c2_c3_c4"].tolist()
    assert count(pyramid_network(3).network) == golden.number("nparams_unet3d_c2")
    urpc, cct, unet = golden["nparams_urpc2d_cct2d_unet2d"].tolist()
    ours = pyramid_network(2, 1, 4)
    assert count(ours) + golden.number("nparams_urpc2d_unused_head") == urpc
    assert count(ours.network) == unet
    assert count(literature_network(2, 1, 4, decoders=4)) == cct


@pytest.mark.parametrize("dims", [pytest.param(d, marks=pytest.mark.claims(f"step_urpc{d}_*")) for d in (3, 2)])
def test_golden_whole_steps(golden, dims, monkeypatch):
    network, released = released_network(dims)
    drawn = seeded_draws(monkeypatch)
    iterations, levels, start = (6000, 40, 3000) if dims == 3 else (30000, 200, 15000)
    method = PyramidConsistency(network, iterations, ramp_levels=levels)
    labeled, unlabeled = step_batches(dims)
    names = PLAN[str(dims)][2]
    each, compute = [], method.consistency.per_output

    def per_output(*logits):
        each[:] = compute(*logits)
        return each

    method.consistency.per_output = per_output

    def losses(terms):
        return {
            "supervised_loss": terms["supervised"].item(),
            "consistency_loss": terms["consistency"].item() / method.ramp_up(method.iteration),
            f"consistency_loss_{names[0]}": each[0].item(),
            f"consistency_loss_{names[-1]}": each[-1].item(),
        }

    check_steps(
        golden,
        f"urpc{dims}",
        method,
        (labeled, unlabeled),
        start,
        losses,
        {"model": released} if dims == 2 else {},
        rate=poly(iterations),
        gradients={"": released},
    )
    assert len(drawn) == (0 if dims == 3 else 6)
    if dims == 3:  # a network without buffers
        expected = golden["step_urpc3_param_norms_after_model"]
        np.testing.assert_allclose(norms(released.parameters()), expected, rtol=1e-6)

"""MC-Net and MC-Net+: the numbers of the released loops, 3D and 2D, with two and with three decoders."""

import numpy as np
import pytest
import torch
from decoder_order import InReleasedOrder, decoder_by_decoder
from released import check_steps, fill, float64, rs, step_batches
from torch import nn

from monai_ssl.losses import ForegroundDiceLoss, sharpen, supervised_cross_entropy
from monai_ssl.methods import MutualConsistency
from monai_ssl.networks import literature_network

# of the released scripts: iterations, options
PLAN = {
    "3": (6000, {"weight": 1.0, "ramp_levels": 40, "supervised_weight": 0.5, "dice": "foreground"}),
    "2": (30000, {"weight": 0.1, "ramp_levels": 200, "supervised_weight": 1.0, "dice": "halved"}),
}


class Outputs(nn.Module):
    def outputs(self, image):
        raise AssertionError("outputs are given")


def method_of(dims, network):
    iterations, options = PLAN[dims]
    return MutualConsistency(network, iterations, **options)


@pytest.mark.claims("mcnet_sharpen_*")
def test_golden_sharpening(golden):
    p = golden.tensor("mcnet_sharpen_in")
    with float64():
        for temperature in (0.1, 0.5):
            expected = golden[f"mcnet_sharpen_T{temperature}"]
            np.testing.assert_allclose(sharpen(p, temperature).numpy(), expected, rtol=1e-6)
            np.testing.assert_allclose(
                sharpen(p.to(torch.float32), temperature).numpy(), expected, rtol=1e-4, atol=1e-7
            )


@pytest.mark.claims("sup_mcnet3_*")
def test_golden_dice_3d(golden):
    loss = method_of("3", Outputs()).dice
    logits = golden.tensor("in3_multi", torch.float64)[0, :2].requires_grad_()
    label = golden.tensor("in3_label", torch.int64)[:2, None]
    with float64():
        value = loss(logits, label)
        empty = loss.of_probabilities(torch.zeros(2, 1, 8, 8, 4, dtype=torch.float64), torch.zeros_like(label))
    assert value.item() == pytest.approx(golden.number("sup_mcnet3_dice"), rel=1e-6)
    assert empty.item() == pytest.approx(golden.number("sup_mcnet3_dice_empty"), abs=1e-12)
    value.backward()
    np.testing.assert_allclose(logits.grad.numpy(), golden["sup_mcnet3_dice_grad"], rtol=1e-4, atol=1e-7)


@pytest.mark.claims("sup_mcnet2_*")
def test_golden_dice_2d(golden):
    loss, corrected = method_of("2", Outputs()).dice, ForegroundDiceLoss(include_background=True)
    logits = golden.tensor("in2_multi", torch.float64)[0, :2].requires_grad_()
    label = golden.tensor("in2_label", torch.int64)[:2, None]
    without = label.masked_fill(label == 3, 0)
    with float64():
        value = loss(logits, label)
        found = {
            "": value.item(),
            "_no3": loss(logits, without).item(),
            **{
                name: loss.of_probabilities(nn.functional.one_hot(y[:, 0], 4).movedim(-1, 1).double(), y).item()
                for name, y in (("_perfect", label), ("_no3_perfect", without))
            },
        }
        # what the default is: both are 0 for a perfect prediction, whatever is absent
        for y in (label, without):
            p = nn.functional.one_hot(y[:, 0], 4).movedim(-1, 1).double()
            assert corrected.of_probabilities(p, y).item() == pytest.approx(0.0, abs=1e-12)
    for name, number in found.items():
        assert number == pytest.approx(golden.number(f"sup_mcnet2_dice{name}"), rel=1e-6), name
    value.backward()
    np.testing.assert_allclose(logits.grad.numpy(), golden["sup_mcnet2_dice_grad"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("dims", "n"),
    [pytest.param(d, n, marks=pytest.mark.claims(f"mcnet{d}n{n}_*")) for d in ("3", "2") for n in (2, 3)],
)
def test_golden_losses(golden, dims, n):
    name, method = f"mcnet{dims}n{n}", method_of(dims, Outputs())
    outputs = [z.requires_grad_() for z in golden.tensor(f"in{dims}_multi", torch.float64)[:n]]
    labeled = {"label": golden.tensor(f"in{dims}_label", torch.int64)[:2, None]}
    first = None
    with float64():
        for t, weight, total in zip(*(golden[f"{name}_{key}"] for key in ("iters", "weights", "totals")), strict=True):
            method.iteration = int(t)
            assert method.ramp_up(int(t) + 1) == pytest.approx(weight, rel=1e-12)  # as released: of the next iteration
            terms = method.terms(outputs, labeled)
            assert sum(terms.values()).item() == pytest.approx(total, rel=1e-6)
            first = first or terms
        sharpened = [sharpen(z.softmax(1)) for z in outputs]
        cross_entropy = sum(supervised_cross_entropy(z[:2], labeled["label"]).item() for z in outputs)
    consistency = first["consistency"] / golden[f"{name}_weights"][0]
    assert consistency.item() == pytest.approx(golden.number(f"{name}_loss_consist"), rel=1e-6)
    dice = first["dice"].item() / method.supervised_weight
    assert dice == pytest.approx(golden.number(f"{name}_loss_seg_dice"), rel=1e-6)
    assert cross_entropy == pytest.approx(golden.number(f"{name}_loss_seg"), rel=1e-6)
    if n == 2:
        found = torch.stack(sharpened).detach().numpy()
        np.testing.assert_allclose(found, golden[f"{name}_sharpened"], rtol=1e-4, atol=1e-7)
    for kind, loss in (("grad", sum(first.values())), ("grad_cons", consistency)):
        gradients = torch.autograd.grad(loss, outputs, retain_graph=True)
        for k, gradient in enumerate(gradients):
            np.testing.assert_allclose(gradient.numpy(), golden[f"{name}_{kind}_{k}"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("dims", "width", "classes"),
    [
        pytest.param(3, 2, 2, marks=pytest.mark.claims("net_mcnet3_*")),
        pytest.param(2, 4, 4, marks=pytest.mark.claims("net_mcnet2_*")),
    ],
)
@torch.no_grad()
def test_golden_network(golden, dims, width, classes):
    network = literature_network(dims, 1, classes, width, dropout=0.0, decoders=3, mixed_upsampling=True)
    released = InReleasedOrder(network, decoder_by_decoder(3))
    np.testing.assert_array_equal(released.padded_shapes(dims + 2), golden[f"net_mcnet{dims}_shapes"])
    fill(released.entries(), 1000)
    image = rs(1900, (2, 1, 32, 32, 16)) if dims == 3 else rs(1901, (2, 1, 48, 32))
    every_second = (slice(None), slice(None), *[slice(None, None, 2)] * dims)
    network.double()
    for mode in ("eval", "train"):
        outputs = network.train(mode == "train").outputs(image.double())
        for k, output in enumerate(outputs):
            expected = golden[f"net_mcnet{dims}_{mode}_out{k + 1}_s2"]
            np.testing.assert_allclose(output[every_second].numpy(), expected, rtol=1e-6, atol=1e-6)
        if mode == "eval":
            assert torch.equal(network(image.double()), outputs[0])


@pytest.mark.claims("nparams_mcnet3d_v1_v2", "nparams_mcnet2d_v1_v2_v3")
def test_golden_numbers_of_parameters(golden):
    def count(dims, n, classes):
        network = literature_network(dims, 1, classes, decoders=n, mixed_upsampling=True)
        return sum(p.numel() for p in network.parameters())

    assert [count(3, n, 2) for n in (2, 3)] == golden["nparams_mcnet3d_v1_v2"].tolist()
    # the third released 2D variant adds a bicubic decoder, which no paper reports: as many parameters as one more
    one, two, three = golden["nparams_mcnet2d_v1_v2_v3"].tolist()
    assert [count(2, n, 4) for n in (2, 3)] == [one, two]
    linear = literature_network(2, 1, 4, decoders=4)
    assert two + sum(p.numel() for part in (linear.decoders[3], linear.heads[3]) for p in part.parameters()) == three


@pytest.mark.parametrize(
    ("dims", "n"),
    [
        pytest.param(3, 2, marks=pytest.mark.claims("step_mcnet3n2_*")),
        pytest.param(3, 3, marks=pytest.mark.claims("step_mcnet3n3_*")),
        pytest.param(2, 2, marks=pytest.mark.claims("step_mcnet2n2_*")),
        pytest.param(2, 3, marks=pytest.mark.claims("step_mcnet2n3_*")),
    ],
)
def test_golden_whole_steps(golden, dims, n):
    width, classes, start = (2, 2, 3000) if dims == 3 else (4, 4, 15000)
    network = literature_network(dims, 1, classes, width, dropout=0.0, decoders=n, mixed_upsampling=True)
    released = InReleasedOrder(network, decoder_by_decoder(n))
    fill(released.entries(), 1000)
    method = method_of(str(dims), network)
    outputs, compute = [], network.outputs

    def outputs_of(image):
        outputs[:] = compute(image)
        return outputs

    network.outputs = outputs_of
    labeled, unlabeled = step_batches(dims)

    def losses(terms):
        rows = len(labeled["label"])
        return {
            "loss_seg_dice": terms["dice"].item() / method.supervised_weight,
            "loss_seg": sum(supervised_cross_entropy(z[:rows].detach(), labeled["label"]).item() for z in outputs),
            "loss_consist": terms["consistency"].item() / method.ramp_up(method.iteration + 1),
        }

    check_steps(
        golden,
        f"mcnet{dims}n{n}",
        method,
        (labeled, unlabeled),
        start,
        losses,
        {"model": released},
    )

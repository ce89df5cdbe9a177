"""CCT: the numbers of SSL4MIS's 2D loop, and of the original."""

import numpy as np
import pytest
import torch
from decoder_order import InReleasedOrder, decoder_by_decoder
from perturbation_draws import seeded_draws
from released import check_steps, check_totals, fill, float64, poly, rs, step_batches
from torch import nn

from monai_ssl.losses import SigmoidRampUp
from monai_ssl.methods import CrossConsistency
from monai_ssl.networks import literature_network, perturbations
from monai_ssl.networks.perturbations import add_feature_noise, drop_elements, drop_strongest

ORIGINAL = {
    "ramp_up": SigmoidRampUp(800, 30.0),
    "scales": "coarsest",
    "supervise": "main",
    "supervised_loss": "ce",
    "detach_main": True,
}


class Decoders(nn.Module):
    """Four decoders whose outputs are given."""

    def __init__(self):
        super().__init__()
        self.decoders = nn.ModuleList(nn.Identity() for _ in range(4))
        self.encode = self.decode = self.logits = None


class OneLayer(Decoders):
    """Every decoder is one convolution."""

    def __init__(self, layer):
        super().__init__()
        self.decode = lambda encoded, k: [layer(encoded[-1])]
        self.logits = lambda features, k: features


@pytest.mark.claims("cct2_*")
def test_golden_losses(golden):
    method = CrossConsistency(Decoders(), 30000, ramp_levels=200)
    outputs = [z.requires_grad_() for z in golden.tensor("in2_multi", torch.float64)]
    labeled = {"label": golden.tensor("in2_label", torch.int64)[:2, None]}
    given = {f"_{k}": z for k, z in enumerate(outputs)}
    with float64():
        terms, consistency = check_totals(golden, "cct2", method, lambda: method.terms(outputs, labeled), given)
        for k, z in enumerate(outputs):
            suffix = f"_aux{k}" if k else ""
            total, dice = (loss(z[:2], labeled["label"]).item() for loss in (method.supervised, method.supervised.dice))
            assert dice == pytest.approx(golden.number(f"cct2_loss_dice{suffix}"), rel=1e-6)
            assert 2 * total - dice == pytest.approx(golden.number(f"cct2_loss_ce{suffix}"), rel=1e-6)
        each = method.differences(outputs[0][2:], [z[2:] for z in outputs[1:]])
    for k, value in enumerate(each, start=1):
        assert value.item() == pytest.approx(golden.number(f"cct2_consistency_loss_aux{k}"), rel=1e-6)
    assert consistency.item() == pytest.approx(golden.number("cct2_consistency_loss"), rel=1e-6)
    assert terms["supervised"].item() == pytest.approx(golden.number("cct2_supervised_loss"), rel=1e-6)


@pytest.mark.claims("cct_feature*", "cct_noise", "cct_dropout_scale")
def test_golden_perturbations(golden, monkeypatch):
    features, negative = golden.tensor("cct_feature"), golden.tensor("cct_feature_negative")
    noise = (golden.tensor("cct_noise") + 0.3) / 0.6
    monkeypatch.setattr(perturbations, "uniform", lambda shape, like: noise)
    np.testing.assert_allclose(add_feature_noise(features).numpy(), golden["cct_feature_noise_out"], rtol=1e-5)
    for factor, expected in zip(golden["cct_feature_drop_factor"], golden["cct_feature_drop_out"], strict=True):
        drawn = torch.tensor((factor - 0.7) / 0.2)
        monkeypatch.setattr(perturbations, "uniform", lambda shape, like, drawn=drawn: drawn)
        np.testing.assert_array_equal(drop_strongest(features).numpy(), expected)
        if factor == golden["cct_feature_drop_factor"][-1]:
            dropped = drop_strongest(negative).numpy()
    np.testing.assert_array_equal(dropped, golden["cct_feature_drop_negative_out"])
    untouched = [(dropped[i] == negative[i].numpy()).all() for i in range(3)]
    assert untouched == [True, False, True]  # where the largest mean is negative
    monkeypatch.undo()
    kept = drop_elements(torch.ones(1, 1, 40, 40)).unique().tolist()
    assert kept == pytest.approx([0.0, golden.number("cct_dropout_scale")])


@pytest.mark.claims("net_cct2_*")
@torch.no_grad()
def test_golden_network(golden, monkeypatch):
    network = literature_network(2, 1, 4, 4, dropout=0.0, decoders=4)
    released = InReleasedOrder(network, decoder_by_decoder(4))
    np.testing.assert_array_equal(released.padded_shapes(4), golden["net_cct2_shapes"])
    fill(released.entries(), 1000)
    method = CrossConsistency(network.double()).train()
    network.eval()  # as released, where perturbations stay on
    drawn = seeded_draws(monkeypatch)
    image = rs(1901, (2, 1, 48, 32)).double()
    for k, output in enumerate(method.outputs(image)):
        expected = golden[f"net_cct2_eval_out{k + 1}_s2"]
        np.testing.assert_allclose(output[:, :, ::2, ::2].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert [len(shape) for shape in drawn] == [3] * 5 + [4] * 5 + [0] * 5
    before = len(drawn)
    outputs = method.eval().outputs(image)  # as here
    assert len(drawn) == before
    assert torch.equal(outputs[0], network(image))


@pytest.mark.claims("step_cct2_*")
def test_golden_whole_steps(golden, monkeypatch):
    network = literature_network(2, 1, 4, 4, dropout=0.0, decoders=4)
    released = InReleasedOrder(network, decoder_by_decoder(4))
    fill(released.entries(), 1000)
    drawn = seeded_draws(monkeypatch)
    method = CrossConsistency(network, 30000, ramp_levels=200)
    each, compute = [], method.differences

    def differences(*given):
        each[:] = compute(*given)
        return each

    method.differences = differences

    def losses(terms):
        return {
            "supervised_loss": terms["supervised"].item(),
            **{f"consistency_loss_aux{k}": value.item() for k, value in enumerate(each, start=1)},
        }

    check_steps(golden, "cct2", method, step_batches(2), 15000, losses, {"model": released}, rate=poly(30000))
    assert len(drawn) == 30


@pytest.mark.claims("cctorig2_*")
def test_golden_original_losses(golden):
    method = CrossConsistency(Decoders(), **ORIGINAL)
    main, *auxiliary = (z.requires_grad_() for z in golden.tensor("in2_multi", torch.float64))
    labeled = {"label": golden.tensor("in2_label", torch.int64)[:2, None]}
    method.iteration = 400  # epoch 4 of a ramp-up over 8 epochs of 100 iterations
    unlabeled = [z[2:].detach().requires_grad_() for z in auxiliary]
    with float64():
        each = method.differences(main, auxiliary)
        confident = CrossConsistency(Decoders(), confidence=0.5, **ORIGINAL).differences(main, auxiliary)
        terms = method.terms([main, *unlabeled], labeled)
    np.testing.assert_allclose([x.item() for x in each], golden["cctorig2_mse_each"], rtol=1e-6)
    assert sum(x.item() for x in each) / 3 == pytest.approx(golden.number("cctorig2_mse_mean"), rel=1e-6)
    np.testing.assert_allclose([x.item() for x in confident], golden["cctorig2_mse_confident"], rtol=1e-6)
    assert terms["supervised"].item() == pytest.approx(golden.number("cctorig2_sup"), rel=1e-6)
    assert terms["consistency"].item() == pytest.approx(golden.number("cctorig2_unsup_weighted"), rel=1e-6)
    total = sum(terms.values())
    assert total.item() == pytest.approx(golden.number("cctorig2_total"), rel=1e-6)
    of_main, of_second = torch.autograd.grad(total, [main, unlabeled[1]])
    assert of_main[2:].abs().max() == golden.number("cctorig2_grad_main_unlabelled_is_zero")
    np.testing.assert_allclose(of_second.numpy(), golden["cctorig2_total_grad_aux2"], rtol=1e-4, atol=1e-7)
    [gradient] = torch.autograd.grad(sum(each) / 3, auxiliary[0])
    np.testing.assert_allclose(gradient.numpy(), golden["cctorig2_grad_aux1"], rtol=1e-4, atol=1e-9)


@pytest.mark.claims("cctorig_weight*")
def test_golden_original_ramp_up(golden):
    found = [ORIGINAL["ramp_up"](int(t)) for t in golden["cctorig_weight_t"]]
    np.testing.assert_allclose(found, golden["cctorig_weight"], rtol=1e-12)


@pytest.mark.claims("cctorig_context_masked", "cctorig_object_masked", "cctorig_feature")
def test_golden_original_masks(golden):
    method = CrossConsistency(Decoders(), **ORIGINAL)
    features, main = golden.tensor("cctorig_feature"), golden.tensor("in2_multi")[0].clone()
    main[:, 0] += 2
    for name in ("context", "object"):
        [masked] = method.disturbed(f"mask_{name}", [features], main, 1)
        np.testing.assert_array_equal(masked.numpy(), golden[f"cctorig_{name}_masked"])


@pytest.mark.claims("cctorig_vat_*")
def test_golden_original_adversarial_direction(golden):
    layer = nn.Conv2d(3, 4, 1)
    fill(layer, 340)
    features = golden.tensor("cctorig_feature", torch.float64)
    uniform = golden.tensor("cctorig_vat_rand01", torch.float64) - 0.5
    for step in (1e-1, 1e-6):
        method = CrossConsistency(OneLayer(layer.double()), adversarial_step=step)
        with float64():
            r = method._adversarial([features], 1, uniform)
        # the original sums over voxels where we take the mean: its gradients are larger by their number, and feel less
        # of the 1e-8 that is added to a norm before the division by it
        norm = r.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        theirs = 1e-8 * norm / (2 - norm) * features[0, 0].numel()
        r = r / norm * 2 * theirs / (theirs + 1e-8)
        np.testing.assert_allclose(r.numpy(), golden[f"cctorig_vat_r_xi1e{'-1' if step == 1e-1 else '-6'}"], rtol=1e-4)

"""DAN of SSL4MIS: losses of given outputs, who is in which mode, and two whole steps."""

import numpy as np
import pytest
import torch
from adversarial_steps import Stub, check_adversarial_steps, check_discriminator_loss
from released import check_supervised, check_totals, fill, float64, given_outputs, poly, step_batches, step_network
from test_golden_discriminators import ORDER

from monai_ssl.methods import DeepAdversarialNetwork
from monai_ssl.methods.adversarial import NAME
from monai_ssl.networks import Discriminator


class Given(torch.nn.Module):
    """A network whose logits are given; remembers in which mode it was asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.modes = logits, []

    def forward(self, image):
        self.modes.append(self.training)
        return self.logits


@pytest.mark.parametrize("dims", [pytest.param(d, marks=pytest.mark.claims(f"dan{d}_*")) for d in ("3", "2")])
def test_golden_dan_losses(golden, dims):
    name = f"dan{dims}"
    logits, labeled = given_outputs(golden, dims)
    verdicts = {
        rows: golden.tensor(f"{name}_{key}", torch.float64) for rows, key in ((2, "d_unlabelled"), (4, "d_all"))
    }
    verdicts[4].requires_grad_()
    network, discriminator = Given(logits), Stub(verdicts)
    length, levels = (6000, 40) if dims == "3" else (30000, 200)
    method = DeepAdversarialNetwork(network, discriminator, length, ramp_levels=levels).train()
    image = golden.tensor(f"in{dims}_image")
    batches = {**labeled, "image": image[:2]}, {"image": image[2:]}
    with float64():
        terms, adversarial = check_totals(
            golden, name, method, lambda: method(*batches), {"": logits}, unsupervised=["adversarial"]
        )
        check_supervised(golden, name, method.supervised, logits[:2], labeled["label"])
        assert adversarial.item() == pytest.approx(golden.number(f"{name}_consistency_loss"), rel=1e-6)
        assert terms["supervised"].item() == pytest.approx(golden.number(f"{name}_supervised_loss"), rel=1e-6)
        judged, shown, evaluated = discriminator.shown[0]
        np.testing.assert_allclose(judged.numpy(), golden[f"{name}_map_of_net_step"], rtol=1e-6)
        assert torch.equal(shown, image[2:])
        [loss] = method.adversary_terms(NAME, *batches).values()
    check_discriminator_loss(golden, name, loss, verdicts[4], "DAN_loss")
    modes = [network.modes[0], evaluated, network.modes[-1], discriminator.shown[-1][2]]
    assert modes == golden[f"{name}_modes"].tolist()
    assert network.training
    assert discriminator.training


@pytest.mark.claims("step_dan3_*")
def test_golden_dan_whole_steps(golden):
    discriminator = Discriminator(3, 2, base_channels=4, dropout=0.0)
    method = DeepAdversarialNetwork(step_network(3), discriminator)
    fill(method.network, 1000)
    state = discriminator.state_dict()
    fill([(key, state[key]) for key in ORDER], 4000)
    labeled, unlabeled = step_batches(3)

    def losses(terms):
        weight = method.ramp_up(method.iteration)
        dice = method.supervised.dice(seen[-1][:2], labeled["label"]).item()
        return {"consistency_loss": terms["adversarial"].item() / weight, "loss_dice": dice,
                "loss_ce": 2 * terms["supervised"].item() - dice}  # fmt: skip

    seen = []
    method.network.register_forward_hook(lambda m, x, y: seen.append(y.detach()) if m.training else None)
    check_adversarial_steps(golden, "dan3", method, (labeled, unlabeled), losses, "DAN_loss", ("model", "DAN"),
                            {"DAN": ORDER}, rate=poly(6000))  # fmt: skip

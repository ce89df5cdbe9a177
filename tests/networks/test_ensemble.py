"""An ensemble is the mean of its members' class probabilities, whatever is done with it."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from monai_ssl.engines import WindowInferer
from monai_ssl.networks import Ensemble, UNet, VNet
from monai_ssl.networks.ensemble import ensemble_state


def build() -> list[nn.Module]:
    unet = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(2, 2, 4, 4, 4))
    return [unet.eval(), VNet(spatial_dims=2, in_channels=1, out_channels=3, base_channels=2).eval()]


def members() -> list[nn.Module]:
    torch.manual_seed(0)
    return build()


def test_the_mean_of_probabilities_and_not_of_logits():
    first, second = (nn.Conv2d(1, 2, 1) for _ in range(2))
    with torch.no_grad():
        for network, logit in ((first, 10.0), (second, -1.0)):
            network.weight.zero_()
            network.bias.copy_(torch.tensor([0.0, logit]))
        found = Ensemble([first, second]).eval()(torch.zeros(1, 1, 2, 2)).softmax(1)[0, 1, 0, 0]
    expected = (torch.tensor(10.0).sigmoid() + torch.tensor(-1.0).sigmoid()) / 2
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_through_windows_and_mirrored_views():
    networks, x = members(), torch.rand(1, 1, 40, 36)
    inferer = WindowInferer((32, 32), amp="off", flips=[[0], [1]])
    with torch.no_grad():
        expected = torch.stack([inferer(x, network) for network in networks]).mean(0)
        found = inferer(x, Ensemble(networks).eval())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_finite_where_every_member_is_certain():
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([0.0, 500.0]))
        found = Ensemble([network, network])(torch.zeros(1, 1, 2, 2))
    assert torch.isfinite(found).all()


def test_state_holds_all_members():
    networks = members()
    state = ensemble_state([network.state_dict() for network in networks])
    torch.manual_seed(1)
    other = Ensemble(build())
    other.load_state_dict(state)
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), Ensemble(networks).eval()(x), atol=0, rtol=0)


def test_can_be_scripted():
    ensemble, x = Ensemble(members()).eval(), torch.rand(1, 1, 32, 32)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(ensemble), buffer)
    buffer.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(buffer)(x), ensemble(x))


def test_one_network_is_no_ensemble():
    with pytest.raises(ValueError, match="at least two networks, got 1"):
        Ensemble(members()[:1])

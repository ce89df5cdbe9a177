"""The image-level discriminators of SASSNet and SSL4MIS's DAN."""

import numpy as np
import pytest
import torch
from released import fill, rs
from torch.nn import functional

from monai_ssl.networks import Discriminator

# index in the seeds, spatial axes, channels of the map, patch, pooling
CASES = {
    "sass3": (0, 3, 1, (112, 112, 80), {}),
    "dan3": (1, 3, 2, (96, 96, 96), {}),
    "dan2": (2, 2, 4, (256, 256), {"pool_window": 7}),
    "sass2": (3, 2, 1, (112, 112), {"cells": 1}),
}
ORDER = [f"{layer}.{kind}" for layer in ("map_stem", "image_stem", *(f"convolutions.{i}" for i in range(3)),
         "classifier") for kind in ("weight", "bias")]  # fmt: skip


def build(golden, name, **options):
    k, dims, channels, _, pooling = CASES[name]
    discriminator = Discriminator(dims, channels, base_channels=4, **{**pooling, **options})
    state = discriminator.state_dict()
    shapes = [(*state[key].shape, *[0] * (5 - state[key].dim())) for key in ORDER]
    np.testing.assert_array_equal(shapes, golden[f"disc_{name}_shapes"])
    fill([(key, state[key]) for key in ORDER], 400 + 40 * k)
    return discriminator


def maps(name, seed, rows, patch):
    _, _, channels, *_ = CASES[name]
    raw = rs(seed, (rows, channels, *patch))
    return raw.tanh() if name.startswith("sass") else raw.softmax(1)


class Masks(torch.nn.Module):
    """Dropout whose masks are given by the number of the call."""

    def __init__(self, seed):
        super().__init__()
        self.seed, self.calls = seed, 0

    def forward(self, x):
        mask = 2.0 * (np.random.RandomState(self.seed + self.calls).rand(*x.shape[:2]) >= 0.5)
        self.calls += 1
        return x * torch.from_numpy(mask).to(x).reshape(*x.shape[:2], *[1] * (x.dim() - 2))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.claims(*(f"disc_{n}_{k}" for k in ("shapes", "eval", "nodropout", "masks"))))
        for n in CASES
    ],
)
def test_golden_discriminator_outputs(golden, name):
    k, _, _, patch, _ = CASES[name]
    judged, image = maps(name, 420 + 40 * k, 2, patch), rs(421 + 40 * k, (2, 1, *patch))
    discriminator = build(golden, name)
    with torch.no_grad():
        found = {"eval": discriminator.eval()(judged, image)}
        discriminator.dropout = torch.nn.Identity()
        found["nodropout"] = discriminator.train()(judged, image)
        discriminator.dropout = Masks(430 + 40 * k)
        found["masks"] = discriminator(judged, image)
    for key, value in found.items():
        np.testing.assert_allclose(value.numpy(), golden[f"disc_{name}_{key}"], rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.claims(f"disc_{n}_small*")) for n in ("sass3", "dan3")]
)
def test_golden_discriminator_gradients(golden, name):
    k, *_ = CASES[name]
    patch = (32, 32, 16)
    judged = maps(name, 422 + 40 * k, 4, patch).requires_grad_()
    discriminator = build(golden, name, dropout=0.0)
    verdict = discriminator(judged, rs(423 + 40 * k, (4, 1, *patch)))
    np.testing.assert_allclose(verdict.detach().numpy(), golden[f"disc_{name}_small"], rtol=1e-4, atol=1e-6)
    loss = functional.cross_entropy(verdict, torch.tensor([1, 1, 0, 0]))
    assert loss.item() == pytest.approx(golden.number(f"disc_{name}_small_loss"), rel=1e-5)
    loss.backward()
    parameters = dict(discriminator.named_parameters())
    found = [parameters[key].grad.norm().item() for key in ORDER]
    np.testing.assert_allclose(found, golden[f"disc_{name}_small_grad_norms"], rtol=1e-4)
    assert judged.grad.norm().item() == pytest.approx(golden.number(f"disc_{name}_small_grad_map_norm"), rel=1e-4)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.claims(f"disc_{n}_nparams_ndf64")) for n in CASES])
def test_golden_discriminator_sizes(golden, name):
    _, dims, channels, _, pooling = CASES[name]
    pooling = {key: value for key, value in pooling.items() if key != "pool_window"}  # which changes no count
    count = sum(p.numel() for p in Discriminator(dims, channels, **pooling).parameters())
    assert count == golden.number(f"disc_{name}_nparams_ndf64")

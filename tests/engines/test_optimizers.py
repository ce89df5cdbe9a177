"""Optimizers by name, and blocks that build something else."""

import pytest
import torch

from monai_ssl.bundle.overrides import with_fitting_arguments
from monai_ssl.engines import build_optimizer
from monai_ssl.errors import DataError


def weights():
    return [torch.nn.Parameter(torch.tensor([2.0]))]


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        # by hand, gradient 1, weight 2: 2 - 0.1 * (1 + 0.5 * 2)
        ("sgd", 1.8),
        # 2 * (1 - 0.1 * 0.5) - 0.1 * 1 / (1 + 1e-8): the first step of Adam is the sign of the gradient
        ("adamw", 1.8),
    ],
)
def test_first_step(algorithm, expected):
    parameters = weights()
    optimizer = build_optimizer(parameters, algorithm, lr=0.1, weight_decay=0.5)
    parameters[0].grad = torch.ones(1)
    optimizer.step()
    assert parameters[0].item() == pytest.approx(expected, abs=1e-6)
    parameters[0].grad = torch.zeros(1)
    optimizer.step()  # what the two make of the past differs: momentum 0.9 of 2; first beta 0.9
    sgd, adamw = 1.8 - 0.1 * (0.9 * 2 + 0.5 * 1.8), 1.8 * 0.95 - 0.1 * (0.09 / 0.19) / (0.000999 / 0.001999) ** 0.5
    assert parameters[0].item() == pytest.approx({"sgd": sgd, "adamw": adamw}[algorithm], abs=1e-5)


def test_further_arguments_reach_the_optimizer():
    assert build_optimizer(weights(), "sgd", nesterov=True).param_groups[0]["nesterov"]
    assert build_optimizer(weights(), "adamw", betas=(0.5, 0.6)).param_groups[0]["betas"] == (0.5, 0.6)


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
@pytest.mark.parametrize("group", ["tensors", "names", "generators"])
def test_fused_unless_it_cannot_be(algorithm, group):
    def listed(parameters):
        if group == "tensors":
            return parameters
        if group == "names":
            return [(str(i), p) for i, p in enumerate(parameters)]
        return [{"params": (p for p in parameters[:1]), "lr": 0.3}, {"params": parameters[1]}]

    def stepped(**options):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(5, 3)) for _ in range(2)]
        optimizer = build_optimizer(listed(parameters), algorithm, lr=0.1, **options)
        for _ in range(4):
            for p in parameters:
                p.grad = torch.randn(5, 3)
            optimizer.step()
        return optimizer, torch.cat([p.detach() for p in parameters])

    fused, found = stepped()
    plain, expected = stepped(fused=False)
    assert [o.param_groups[0]["fused"] for o in (fused, plain)] == [True, False]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert build_optimizer(weights(), algorithm, foreach=True).param_groups[0]["fused"] is None
    whole = [torch.nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)]
    assert not build_optimizer(whole, algorithm).param_groups[0]["fused"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "adam"}, r"^optimizer#algorithm: must be one of sgd, adamw, got 'adam'"),
        ({"algorithm": "adamw", "nesterov": True}, r"^optimizer: adamw: .*nesterov"),
    ],
)
def test_refused(options, message):
    with pytest.raises(DataError, match=message):
        build_optimizer(weights(), **options)


CONFIG = {
    "optimizer": {"_target_": "monai_ssl.engines.build_optimizer", "algorithm": "@a", "params": "$p", "lr": "@lr",
                  "momentum": 0.9},
    "network_def": {"_target_": "monai_ssl.networks.VNet", "out_channels": 2, "base_channels": 16, "dropout": 0.5},
}  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "blocks"),
    [
        # nothing else is built: nothing changes
        ({"optimizer#lr": 1.0}, {"optimizer#lr": 1.0}),
        (
            {"optimizer#_target_": "torch.optim.AdamW", "seed": 1},
            {"optimizer": {"_target_": "torch.optim.AdamW", "params": "$p", "lr": "@lr"}, "seed": 1},
        ),
        # what was given goes on, in either spelling, also an argument that the config does not name
        (
            {"optimizer::_target_": "torch.optim.AdamW", "optimizer#lr": 3.0, "optimizer#amsgrad": True},
            {"optimizer": {"_target_": "torch.optim.AdamW", "params": "$p", "lr": 3.0, "amsgrad": True}},
        ),
        # all arguments fit
        ({"network_def#_target_": "monai_ssl.networks.literature_network"}, None),
        # the whole block is given
        ({"optimizer": {"_target_": "x.Y"}, "optimizer#_target_": "torch.optim.AdamW"}, None),
        # a class that nobody can find is left to MONAI's message
        ({"optimizer#_target_": "torch.optim.Nothing"}, None),
    ],
)
def test_a_block_that_builds_something_else_keeps_what_fits(overrides, blocks):
    assert with_fitting_arguments(CONFIG, overrides) == (overrides if blocks is None else blocks)

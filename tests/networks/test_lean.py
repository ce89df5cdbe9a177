"""Computing again instead of keeping: same values, same gradients, same running statistics, less memory."""

import gc
import weakref

import pytest
import torch
from torch import nn

from monai_ssl.networks import DualTaskVNet, UNet, VNet, lean


def close(actual, expected, rtol=1e-6):
    scale = expected.abs().max().clamp(min=1e-30)
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=rtol)


def run(network, x, dtype=None):
    """Logits, gradients and running statistics of one training pass."""
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    network.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        y = network(x)
    y.float().square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return y.detach(), {**gradients, "x": x.grad}, {name: b.clone() for name, b in network.named_buffers()}


def both(build, x, monkeypatch, dtype=None):
    results = []
    for on in (True, False):
        torch.manual_seed(1)
        network = build().train()
        calls = []
        with monkeypatch.context() as patch:
            original = lean.norm_act
            patch.setattr(lean, "norm_act", lambda *a, o=original, c=calls: c.append(1) or o(*a))
            if not on:
                patch.setattr(lean, "can_recompute", lambda *a: False)
            results.append(run(network, x, dtype))
        assert bool(calls) == on
    return results


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: VNet(2, 1, 2, base_channels=4), (2, 1, 32, 32)),
        (lambda: VNet(3, 1, 2, base_channels=4), (2, 1, 32, 32, 32)),
        (lambda: VNet(2, 1, 2, base_channels=4, gates=True), (2, 1, 32, 32)),
        (lambda: UNet(2, 1, 2, channels=(4, 8, 16), decoders=("linear",), dropout=0.3), (2, 1, 32, 32)),
    ],
)
def test_equals_plain_autograd(build, shape, channels_last, monkeypatch):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def made():
        network = build().double()
        if channels_last:
            network = network.to(memory_format=torch.channels_last_3d if len(shape) == 5 else torch.channels_last)
        return network

    (y, gradients, buffers), (expected, expected_gradients, expected_buffers) = both(made, x, monkeypatch)
    close(y, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        # a bias before batch normalization has the gradient 0 up to rounding
        if not name.endswith("conv.bias"):
            close(gradients[name], gradient)
    for name, value in expected_buffers.items():
        assert torch.equal(buffers[name], value), name


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_unit_in_float32(slope):
    norm, act = nn.BatchNorm3d(4), nn.LeakyReLU(slope) if slope else nn.ReLU(inplace=True)
    x = torch.randn(2, 4, 6, 5, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for function in (lambda z: lean.norm_act(norm, act, z), lambda z: act(norm(z))):
        z = x.clone().requires_grad_()
        y = function(z)
        found.append((y.detach().clone(), *torch.autograd.grad((y * weights).sum(), [z, norm.weight, norm.bias])))
    for actual, expected in zip(*found, strict=True):
        close(actual, expected)
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_gradcheck(slope):
    norm = nn.BatchNorm2d(3).double()
    act = nn.LeakyReLU(slope) if slope else nn.ReLU()
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, *_: lean.norm_act(norm, act, z), (x, norm.weight, norm.bias))


def test_bfloat16_stays_close(monkeypatch):
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    made = both(lambda: VNet(2, 1, 2, base_channels=4, dropout=0.0), x, monkeypatch, torch.bfloat16)
    (y, gradients, _), (expected, expected_gradients, _) = made
    assert y.dtype == expected.dtype
    close(y.float(), expected.float(), 1e-2)
    close(gradients["heads.0.weight"], expected_gradients["heads.0.weight"], 3e-2)


def test_two_backward_passes():
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    y = lean.reading(conv, lean.norm_act(norm, nn.ReLU(), x)).square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)


def test_activations_are_not_kept():
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    a, b = (lean.norm_act(norm, nn.ReLU(), 1 * x) for _ in range(2))
    total = lean.add(a, b)
    z = lean.reading(conv, total).sum() + lean.reading(conv, a).sum()
    kept = [weakref.ref(t) for t in (a, b, total)]
    del a, b, total
    gc.collect()
    assert [k() for k in kept] == [None] * 3
    z.backward()
    assert x.grad.isfinite().all()


def test_evaluation_and_other_layers_are_left_alone():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    norm, act = nn.BatchNorm2d(3), nn.ReLU()
    assert lean.can_recompute(norm, act, x)
    assert not lean.can_recompute(norm.eval(), act, x)
    norm.train()
    assert not lean.can_recompute(norm, nn.PReLU(), x)
    assert not lean.can_recompute(nn.InstanceNorm2d(3), act, x)
    assert not lean.can_recompute(nn.SyncBatchNorm(3), act, x)
    assert not lean.can_recompute(norm, act, x.detach())
    with torch.no_grad():
        assert not lean.can_recompute(norm, act, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_pointwise_is_a_convolution_in_float32(dtype, layout):
    conv = nn.Conv3d(8, 3, 1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, 6, 5, 4, generator=generator).to(dtype).contiguous(memory_format=layout)
    weights = torch.randn(2, 3, 6, 5, 4, generator=generator)
    found = []
    for function in (lambda f: lean.pointwise(f, conv.weight, conv.bias), lambda f: conv(f.float())):
        f = features.clone().requires_grad_()
        y = function(f)
        assert y.dtype == torch.float32
        found.append((y.detach(), *torch.autograd.grad((y * weights).sum(), [f, conv.weight, conv.bias])))
    assert found[0][1].is_contiguous(memory_format=layout)
    for actual, expected in zip(*found, strict=True):
        close(actual.float(), expected.float(), 1e-2 if expected.dtype == torch.bfloat16 else 1e-6)


def test_dual_task_network_trains_like_its_heads(monkeypatch):
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    network = DualTaskVNet(2, base_channels=4, dropout=0.0).train()
    logits, raw_distance = network.tasks(x)
    features = network.backbone(x)
    close(logits, network.logits(features))
    close(raw_distance, network.raw_distance(features))

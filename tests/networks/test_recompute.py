"""Computing again instead of keeping: same values, same gradients, same running statistics, less memory."""

import gc
import threading
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from monai_ssl.networks import DualTaskVNet, UNet, VNet, recompute, unlabeled_rows
from monai_ssl.networks.encoder_decoder import Gate
from monai_ssl.networks.recompute.activations import kernels_work


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
    """One training pass with the switch on and one with it off."""
    results = []
    for on in (True, False):
        torch.manual_seed(1)
        network = build().train()
        calls = []
        with monkeypatch.context() as patch, nullcontext() if on else recompute.disabled():
            original = recompute.normalize_and_activate
            patch.setattr(recompute, "normalize_and_activate", lambda *a, o=original, c=calls: c.append(1) or o(*a))
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
        torch.testing.assert_close(buffers[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_unit_in_float32(slope):
    norm, act = nn.BatchNorm3d(4), nn.LeakyReLU(slope) if slope else nn.ReLU(inplace=True)
    x = torch.randn(2, 4, 6, 5, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for function in (lambda z: recompute.normalize_and_activate(norm, act, z), lambda z: act(norm(z))):
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
    assert torch.autograd.gradcheck(
        lambda z, *_: recompute.normalize_and_activate(norm, act, z), (x, norm.weight, norm.bias)
    )


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
    y = recompute.run_layer(conv, recompute.normalize_and_activate(norm, nn.ReLU(), x)).square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)


def test_activations_are_not_kept():
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    a, b = (recompute.normalize_and_activate(norm, nn.ReLU(), 1 * x) for _ in range(2))
    total = recompute.add(a, b)
    z = recompute.run_layer(conv, total).sum() + recompute.run_layer(conv, a).sum()
    kept = [weakref.ref(t) for t in (a, b, total)]
    del a, b, total
    gc.collect()
    assert [k() for k in kept] == [None] * 3
    z.backward()
    assert x.grad.isfinite().all()


def test_evaluation_and_other_layers_are_left_alone():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    norm, act = nn.BatchNorm2d(3), nn.ReLU()
    assert recompute.can_recompute(norm, act, x)
    assert not recompute.can_recompute(norm.eval(), act, x)
    norm.train()
    assert not recompute.can_recompute(norm, nn.PReLU(), x)
    assert not recompute.can_recompute(nn.InstanceNorm2d(3), act, x)
    assert not recompute.can_recompute(nn.SyncBatchNorm(3), act, x)
    assert not recompute.can_recompute(norm, act, x.detach())
    with torch.no_grad():
        assert not recompute.can_recompute(norm, act, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_pointwise_is_a_convolution_in_float32(dtype, layout):
    conv = nn.Conv3d(8, 3, 1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, 6, 5, 4, generator=generator).to(dtype).contiguous(memory_format=layout)
    weights = torch.randn(2, 3, 6, 5, 4, generator=generator)
    found = []
    for function in (lambda f: recompute.pointwise_convolution(f, conv.weight, conv.bias), lambda f: conv(f.float())):
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


# ------------------------------------------------------------------------------------------------- maps of voxels


def voxels(*shape, seed=0, dtype=torch.float64):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("masked", [False, True])
def test_moments(masked, monkeypatch):
    monkeypatch.setattr("monai_ssl.networks.recompute.moments.CHUNK", 7)
    x, weight, bias = voxels(2, 3, 4, 5), voxels(4, 3, 1, 1, seed=1).detach()[:, :, 0, 0], torch.randn(4).double()
    counted = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:12] if masked else None
    rows = x.movedim(1, -1).reshape(-1, 3)[slice(None) if counted is None else counted]
    for parameters in ((), (weight.requires_grad_(), bias.requires_grad_())):
        y = nn.functional.linear(rows, *parameters).relu() if parameters else rows
        mean, covariance = recompute.mean_and_covariance(x, counted, *parameters)
        torch.testing.assert_close(mean, y.mean(0))
        torch.testing.assert_close(covariance, torch.cov(y.T, correction=0))
        assert torch.autograd.gradcheck(
            lambda *given: recompute.mean_and_covariance(given[0], counted, *given[1:]), (x, *parameters)
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_unlabeled_rows_keep_the_layout_of_the_gradient(layout):
    x = torch.rand(4, 3, 8, 8).contiguous(memory_format=layout).requires_grad_()
    weights = torch.rand(3, 3, 8, 8).contiguous(memory_format=layout)
    y = unlabeled_rows(x * 1, 1)
    assert torch.equal(y, x[1:])
    seen = []
    x.register_hook(seen.append)
    (y * weights).sum().backward()
    assert torch.equal(x.grad[1:], weights)
    assert x.grad[0].abs().sum() == 0
    assert seen[0].is_contiguous(memory_format=layout)


def test_moments_leave_nothing_behind():
    gc.disable()  # a circle of references would wait for the collector, and every step leave one
    try:
        mean, covariance = recompute.mean_and_covariance(torch.rand(2, 3, 8, 8, requires_grad=True))
        alive = weakref.ref(mean)
        (mean.sum() + covariance.sum()).backward()
        del mean, covariance
        assert alive() is None
    finally:
        gc.enable()


def test_moments_far_from_zero():
    # squares of 1000 and a spread of 1 leave three digits in float32 unless the mean is taken off before
    x = voxels(2, 3, 128, 128, dtype=torch.float32).detach() + 1000
    _, covariance = recompute.mean_and_covariance(x)
    torch.testing.assert_close(covariance, torch.cov(x.movedim(1, -1).reshape(-1, 3).T.double(), correction=0).float(),
                               rtol=1e-3, atol=1e-3)  # fmt: skip


def test_gate_is_the_attention_block(monkeypatch):
    monkeypatch.setattr("monai_ssl.networks.recompute.moments.CHUNK", 11)
    torch.manual_seed(0)
    blocks = [Gate(2, f_int=4, f_g=3, f_l=3).double() for _ in range(2)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    found = []
    for block, on in zip(blocks, (True, False), strict=True):
        g, x = voxels(2, 3, 4, 6), voxels(2, 3, 4, 6, seed=1)
        with nullcontext() if on else recompute.disabled():
            assert recompute.can_gate(block, g, x) == on
            y = block(g, x)
        weights = voxels(2, 3, 4, 6, seed=2).detach()
        gradients = torch.autograd.grad((y * weights).sum(), [g, x, *block.parameters()])
        found.append(([y.detach(), *gradients], list(block.buffers())))
    for actual, expected in zip(*(values for values, _ in found), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    for actual, expected in zip(*(buffers for _, buffers in found), strict=True):
        torch.testing.assert_close(actual, expected)


def test_gate_takes_over_in_the_layout_of_training_only():
    block, g, x = Gate(2, f_int=4, f_g=3, f_l=3), *(voxels(2, 3, 4, 6, seed=s, dtype=torch.float32) for s in (0, 1))
    assert recompute.can_gate(block, g, x)
    assert not recompute.can_gate(block, g.detach().clone(memory_format=torch.contiguous_format).requires_grad_(), x)
    assert not recompute.can_gate(block, g, x.detach())
    with torch.no_grad():
        assert not recompute.can_gate(block, g, x)
    assert not recompute.can_gate(block.eval(), g, x)


def test_a_gated_sum_is_computed_again():
    gate, norm = Gate(2, f_int=4, f_g=3, f_l=3), nn.BatchNorm2d(3)
    g, x = (
        recompute.normalize_and_activate(norm, nn.ReLU(), voxels(2, 3, 8, 8, seed=s, dtype=torch.float32))
        for s in (0, 1)
    )
    gated = recompute.gate(gate, g, x)
    total = recompute.add(gated, g)
    torch.testing.assert_close(total.grad_fn.recompute(total.grad_fn), total.detach())
    reference = weakref.ref(x)
    del x
    gc.collect()
    assert reference() is None  # the gate keeps what x was computed from
    total.sum().backward()


def test_running_statistics_are_left_alone_where_they_are_switched_off(monkeypatch):
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def made():
        network = VNet(2, 1, 2, base_channels=4).double()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False  # batch statistics are still used
        return network

    (y, gradients, buffers), (expected, expected_gradients, _) = both(made, x, monkeypatch)
    close(y, expected)
    close(gradients["stages.0.0.conv.weight"], expected_gradients["stages.0.0.conv.weight"])
    for name, value in made().named_buffers():
        assert torch.equal(buffers[name], value), name


# ------------------------------------------------------------------------------------------------- switch and guards


def unit_loss(norm, x, change=lambda y: y):
    """A unit whose output is changed and read by a convolution; loss and gradient of x."""
    conv = nn.Conv2d(3, 2, 3, bias=False, dtype=x.dtype)
    nn.init.constant_(conv.weight, 0.1)
    x = x.detach().clone().requires_grad_()
    y = norm(x).relu() * 1.0 if not recompute.enabled() else recompute.normalize_and_activate(norm, nn.ReLU(), x)
    loss = recompute.run_layer(conv, change(y)).square().sum()
    return loss.detach(), *torch.autograd.grad(loss, x)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.mul_(2.0),
        lambda y: y * 2.0,
        lambda y: y.clone(),
        lambda y: y[:1],
        lambda y: y.transpose(2, 3),
        lambda y: nn.functional.dropout(y, 0.0),
        lambda y: recompute.add(y, y.sin()),
    ],
    ids=["in place", "product", "clone", "rows", "view", "dropout", "sum with a part that is kept"],
)
def test_whatever_happens_to_the_tensor_in_between(change):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = unit_loss(nn.BatchNorm2d(3).double(), x, change)
    with recompute.disabled():
        plain = unit_loss(nn.BatchNorm2d(3).double(), x, change)
    for actual, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(actual, expected)


def test_tensors_carry_nothing():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert not vars(recompute.normalize_and_activate(nn.BatchNorm2d(3), nn.ReLU(), x))


@pytest.mark.parametrize("gates", [False, True])
def test_inside_a_checkpoint(gates):
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for wrapped in (True, False):
        torch.manual_seed(1)
        network = VNet(2, 1, 2, base_channels=4, dropout=0.0, gates=gates).double()
        network.to(memory_format=torch.channels_last)
        z = x.clone().requires_grad_()
        y = checkpoint(network, z, use_reentrant=False) if wrapped else network(z)
        found.append((y.detach(), *torch.autograd.grad(y.square().mean(), [z, *network.heads.parameters()])))
    for actual, expected in zip(*found, strict=True):
        close(actual, expected)


def test_each_thread_has_its_own_switch():
    seen = []
    with recompute.disabled():
        assert not recompute.enabled()
        thread = threading.Thread(target=lambda: seen.append(recompute.enabled()))
        thread.start()
        thread.join()
        with recompute.disabled():
            pass
        assert not recompute.enabled()
    assert seen == [True]
    assert recompute.enabled()


def test_everything_has_a_plain_form():
    conv = nn.Conv3d(4, 3, 1)
    features = torch.randn(2, 4, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    counted = torch.arange(0, 120, 7)
    weight, bias = torch.randn(6, 4), torch.randn(6)
    calls = [
        lambda: (recompute.pointwise_convolution(features, conv.weight, conv.bias),),
        lambda: recompute.mean_and_covariance(features),
        lambda: recompute.mean_and_covariance(features, counted, weight, bias),
    ]
    for call in calls:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = call()
            with recompute.disabled():
                plain = call()
        assert all("Function" not in type(y.grad_fn).__mro__[1].__name__ for y in plain if y.grad_fn is not None)
        for actual, expected in zip(ours, plain, strict=True):
            assert expected.dtype == torch.float32
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def fresh_self_test():
    kernels_work.cache_clear()
    yield
    kernels_work.cache_clear()


def raising(*args):
    raise RuntimeError("native_batch_norm() got an unexpected argument")


def other_statistics(*args, original=torch.native_batch_norm):
    y, mean, inverse_sd = original(*args)
    return y, mean, inverse_sd.pow(-2)  # the variance, say


@pytest.mark.parametrize(
    ("kernel", "reason"), [(raising, "unexpected argument"), (other_statistics, "recomputed output"), (None, "has no")]
)
def test_a_pytorch_with_other_kernels_trains_by_plain_autograd(kernel, reason, monkeypatch, caplog, fresh_self_test):
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = VNet(2, 1, 2, base_channels=4, dropout=0.0).double()
    with recompute.disabled():
        expected = run(network, x)[1]
    if kernel is None:
        monkeypatch.delattr(torch, "native_batch_norm")
    else:
        monkeypatch.setattr(torch, "native_batch_norm", kernel)
    actual = run(network, x)[1]
    assert all(torch.equal(actual[name], gradient) for name, gradient in expected.items())
    [record] = caplog.records
    assert reason in record.getMessage()
    assert "plain autograd" in record.getMessage()


def test_the_self_test_is_blind_to_its_surroundings(fresh_self_test):
    def step(x):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            assert kernels_work()
        return x.sin().square()

    x = torch.randn(3, requires_grad=True)
    # a hook that counts what is saved: the second pass, without a self-test, must save as many
    checkpoint(step, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, (2 * x).sin().detach())

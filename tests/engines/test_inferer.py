"""Sliding windows against a loop over windows, in every shape that the data may have."""

import itertools

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from monai_ssl.engines import WindowInferer
from monai_ssl.networks import DualTaskVNet, VNet


def network(dims, n_classes=3):
    torch.manual_seed(0)
    convolution = nn.Conv2d if dims == 2 else nn.Conv3d
    return convolution(1, n_classes, 3, padding=1)


def by_hand(image, net, roi, stride):
    """Uniform mean of class probabilities; the last window is clamped to the border."""
    sides = image.shape[2:]
    starts = [sorted({min(s, side - r) for s in range(0, side - r + step, step)})
              for side, r, step in zip(sides, roi, stride, strict=True)]  # fmt: skip
    total, count = 0.0, torch.zeros(sides)
    for corner in itertools.product(*starts):
        window = tuple(slice(c, c + r) for c, r in zip(corner, roi, strict=True))
        canvas = torch.zeros(image.shape[0], 3, *sides)
        canvas[(..., *window)] = net(image[(..., *window)]).softmax(1)
        total = total + canvas
        count[window] += 1
    return total / count


@pytest.mark.parametrize(
    ("sides", "roi", "stride"),
    [
        ((20, 30), (16, 16), (8, 5)),
        ((16, 16), (16, 16), (16, 16)),
        ((17, 33), (16, 16), (15, 16)),
        ((40, 16), (16, 16), (1, 16)),
        ((20, 18, 17), (8, 16, 16), (5, 7, 1)),
        ((128, 97), (96, 96), (16, 16)),  # 96 * (1 - overlap) falls just below 16
    ],
)
@torch.no_grad()
def test_equals_a_loop_with_exact_strides(sides, roi, stride):
    net = network(len(sides))
    image = torch.randn(1, 1, *sides)
    inferer = WindowInferer(roi, stride=stride, mode="constant", amp="off")
    torch.testing.assert_close(inferer(image, net), by_hand(image, net, roi, stride), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [(20, 30), (9, 40), (7, 5)])
@torch.no_grad()
def test_a_volume_under_a_2d_window_is_restacked_from_its_slices(sides):
    net, inferer = network(2), WindowInferer((16, 16), overlap=0.5, sw_batch_size=3, amp="off")
    image = MetaTensor(torch.randn(2, 1, *sides, 5), affine=torch.diag(torch.tensor([2.0, 2, 8, 1])))
    stack = inferer(image, net)
    assert stack.shape == (2, 3, *sides, 5)
    assert torch.equal(stack.affine, image.affine)
    for k in range(5):
        torch.testing.assert_close(
            stack[..., k].as_tensor(), inferer(image[..., k].as_tensor(), net), rtol=0, atol=1e-5
        )
    ((first, slab),) = inferer.sweep(image[:1].as_tensor(), net)
    assert first == 0
    torch.testing.assert_close(slab, stack[0].as_tensor(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sides", "options"),
    [
        ((20, 33, 18), {"overlap": 0.25}),
        ((40, 12, 18), {"stride": (4, 8, 3), "mode": "constant"}),
        ((9, 9, 40), {"overlap": 0.5, "sw_batch_size": 3}),
        ((16, 16, 16), {}),
        ((50, 20), {"overlap": 0.25, "flips": [[0], [0, 1]], "sw_batch_size": 2}),
    ],
)
@torch.no_grad()
def test_slab_by_slab_is_the_same_bit_for_bit(sides, options):
    inferer = WindowInferer((16,) * len(sides), amp="off", **options)
    image, net = torch.randn(1, 1, *sides), network(len(sides))
    slabs = list(inferer.sweep(image, net))
    assert [first for first, _ in slabs] == list(itertools.accumulate([0, *(p.shape[1] for _, p in slabs[:-1])]))
    assert torch.equal(torch.cat([p for _, p in slabs], dim=1), inferer(image, net)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lies_on", ["cpu", "cuda"])
@pytest.mark.parametrize(("sides", "roi"), [((20, 33, 18), (16, 16, 16)), ((20, 30, 5), (16, 16))])
@torch.no_grad()
def test_slab_by_slab_on_the_gpu(sides, roi, lies_on):
    inferer = WindowInferer(roi, amp="off")
    image, net = torch.randn(1, 1, *sides), network(len(roi))
    expected = inferer(image, net)[0]
    slabs = list(inferer.sweep(image.to(lies_on), net.cuda(), "cuda"))
    assert all(p.device.type == lies_on for _, p in slabs)
    torch.testing.assert_close(torch.cat([p for _, p in slabs], dim=1).cpu(), expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_flips_average_mirrored_views():
    image, net = torch.randn(1, 1, 16, 16), network(2)
    views = [image, image.flip(2), image.flip(2, 3)]
    expected = sum(net(v).softmax(1).flip(a) for v, a in zip(views, [(), (2,), (2, 3)], strict=True)) / 3
    found = WindowInferer((16, 16), amp="off", flips=[[0], [0, 1]])(image, net)
    torch.testing.assert_close(found, expected)
    plain = WindowInferer((16, 16), amp="off")
    assert torch.equal(plain.with_flips([[0], [0, 1]])(image, net), found)
    assert not torch.equal(plain(image, net), found)
    for wrong in (lambda: WindowInferer((16, 16), flips=[[2]]), lambda: plain.with_flips([[0], [-1]])):
        with pytest.raises(ValueError, match="flips must name spatial axes 0 to 1"):
            wrong()


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("sides", [(5, 7), (16, 16), (50, 9), (5, 40, 17)])
@torch.no_grad()
def test_any_size_gives_probabilities_of_that_size(sides, mode):
    inferer = WindowInferer((16,) * len(sides), overlap=0.5, mode=mode, amp="off")
    probabilities = inferer(torch.randn(2, 1, *sides), network(len(sides)))
    assert probabilities.shape == (2, 3, *sides)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, *sides))
    assert (probabilities >= 0).all()


@torch.no_grad()
def test_number_of_windows_per_pass_and_layout_do_not_matter():
    net, image = network(3).eval(), torch.randn(1, 1, 20, 24, 18)
    results = [WindowInferer((16, 16, 16), stride=(4, 8, 2), sw_batch_size=n, amp="off")(image, net) for n in (1, 5)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_small_volumes_are_padded_on_both_sides():
    net, image = network(2), torch.randn(1, 1, 9, 16)
    padded = nn.functional.pad(image, (0, 0, 3, 4))  # 7 rows: 3 before, 4 after
    expected = net(padded).softmax(1)[:, :, 3:12]
    result = WindowInferer((16, 16), stride=(8, 8), mode="constant", amp="off")(image, net)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [VNet(3, base_channels=2), DualTaskVNet(3, base_channels=2)])
@torch.no_grad()
def test_bfloat16_stays_near_float32(net):
    net, image = net.eval(), torch.randn(1, 1, 32, 32, 16)
    exact = WindowInferer((32, 32, 16), amp="off")(image, net)
    near = WindowInferer((32, 32, 16), amp="bf16")(image, net)
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0, atol=0.05)


@torch.no_grad()
def test_scripted_networks():
    net = VNet(2, base_channels=2).eval()
    image = torch.randn(1, 1, 40, 40)
    inferer = WindowInferer((32, 32), stride=(16, 16), amp="off")
    traced = torch.jit.trace(net, torch.randn(1, 1, 32, 32))
    torch.testing.assert_close(inferer(image, traced), inferer(image, net), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("failing", [False, True])
@torch.no_grad()
def test_a_network_in_training_keeps_its_memory(failing):
    # DistributedDataParallel and exact resume rest on it
    net = VNet(2, base_channels=4).eval()
    before = [(p.data_ptr(), p.stride()) for p in net.parameters()]
    inside = []

    def look(module, inputs):
        inside.extend(p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.dim() == 4)
        if failing:
            raise KeyboardInterrupt

    net.register_forward_pre_hook(look)
    inferer, image = WindowInferer((32, 32), amp="off"), torch.randn(1, 1, 32, 32)
    if failing:
        with pytest.raises(KeyboardInterrupt):
            inferer(image, net)
    else:
        inferer(image, net)
    assert inside
    assert all(inside)
    assert [(p.data_ptr(), p.stride()) for p in net.parameters()] == before


@pytest.mark.parametrize("stride", [(8,), (8, 17), (0, 8), (8, 8, 8)])
def test_rejects_stride(stride):
    with pytest.raises(
        ValueError, match=r"stride must have one entry per axis, each in \[1, roi_size \(16, 16\)\], got "
    ):
        WindowInferer((16, 16), stride=stride)

"""Voxels labeled IGNORE_LABEL: value and gradient of a loss are those of the others; without any, no bit moves."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from monai_ssl.labels import ignored_voxels
from monai_ssl.losses import (
    IGNORE_LABEL,
    ForegroundDiceLoss,
    HalfDiceCELoss,
    supervised_cross_entropy,
    supervised_mse,
)
from monai_ssl.transforms import SignedDistanceMap, signed_distance_map

DICE = {
    f"Dice {options}": ForegroundDiceLoss(*options)
    for options in itertools.product(
        (True, False), (True, False), (True, False), ("softmax", "sigmoid"), ("mean", "sum")
    )
}
LOSSES = DICE | {
    "half": HalfDiceCELoss(),
    "half with background": HalfDiceCELoss(True),
    "cross-entropy": supervised_cross_entropy,
    "squared error": lambda z, y: supervised_mse(z, torch.arange(z.numel(), dtype=z.dtype).view_as(z) / z.numel(), y),
}


def batch(n_classes, dims=2):
    """Logits, labels, and a mask that takes half of the first axis: what is left is a batch of smaller images."""
    generator = torch.Generator().manual_seed(0)
    sides = (8, 6, 5)[:dims]
    label = torch.randint(0, n_classes, (3, 1, *sides), generator=generator)
    ignored = torch.zeros_like(label, dtype=torch.bool)
    ignored[:, :, 4:] = True
    return torch.randn(3, n_classes, *sides, generator=generator), label, ignored


def gradient(loss, logits, label):
    z = logits.clone().requires_grad_()
    value = loss(z, label)
    value.backward()
    return value.detach(), z.grad


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_other_voxels(name, n_classes, dims):
    loss, (logits, label, ignored) = LOSSES[name], batch(n_classes, dims)
    value, here = gradient(loss, logits, label.masked_fill(ignored, IGNORE_LABEL))
    if name == "squared error":  # its target belongs to the place
        target = torch.arange(logits.numel(), dtype=logits.dtype).view_as(logits)[:, :, :4] / logits.numel()
        expected, there = gradient(lambda z, _: nn.functional.mse_loss(z, target), logits[:, :, :4], None)
    else:
        expected, there = gradient(loss, logits[:, :, :4], label[:, :, :4])
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(here[:, :, :4], there)
    assert there.any()
    assert not here[:, :, 4:].any()
    # whatever the network says there, not finite numbers included
    for other in (1e4, float("nan"), float("inf")):
        changed = logits.clone()
        changed[:, :, 4:] = other
        value_, here_ = gradient(loss, changed, label.masked_fill(ignored, IGNORE_LABEL))
        if other != 1e4 and (name == "cross-entropy" or name.startswith("half")):
            continue  # log-softmax has turned it into NaN before anybody can leave it out
        assert torch.equal(value_, value)
        assert torch.equal(here_[:, :, :4], here[:, :, :4])


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_but_ignored_voxels_is_no_loss(name):
    logits, label, _ = batch(3)
    value, here = gradient(LOSSES[name], logits, torch.full_like(label, IGNORE_LABEL))
    assert value == 0
    assert not here.any()


@pytest.mark.parametrize("name", LOSSES)
def test_masking_nothing_changes_no_bit(name, monkeypatch):
    # on a GPU nobody looks whether there are such voxels: the mask is applied in any case
    logits, label, _ = batch(3)
    value, here = gradient(LOSSES[name], logits, label)
    assert ignored_voxels(label) is None
    monkeypatch.setattr("monai_ssl.losses.supervised.ignored_voxels", lambda y: y == IGNORE_LABEL)
    value_, here_ = gradient(LOSSES[name], logits, label)
    assert torch.equal(value, value_)
    assert torch.equal(here, here_)


def test_distances_lead_to_known_voxels_only():
    mask = np.array([0, 0, 1, 1, 1, 1, 0, 0])
    known = np.array([1, 1, 1, 1, 0, 0, 0, 1], bool)
    # the last voxel is known background: four voxels from the nearest known foreground
    found = signed_distance_map(mask, known=known)
    np.testing.assert_allclose(found[known], [2 / 4, 1 / 4, 0, -1, 4 / 4])
    np.testing.assert_array_equal(signed_distance_map(mask, known=np.ones(8, bool)), signed_distance_map(mask))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_distance_maps_do_not_depend_on_ignored_voxels(dims, n_classes):
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, n_classes, (1, *(9, 8, 7)[:dims]), generator=generator)
    ignored = torch.rand(label.shape, generator=generator) < 0.3
    transform = SignedDistanceMap(n_classes)
    known = (~ignored)[0].numpy()
    maps = transform(label.masked_fill(ignored, IGNORE_LABEL))
    assert maps.shape == (n_classes - 1, *label.shape[1:])
    for c in range(1, n_classes):
        inside = (label[0] != 0 if n_classes == 2 else label[0] == c).numpy() & known
        for place in zip(*np.nonzero(known), strict=True):
            other = np.argwhere(~inside & known if inside[place] else inside)
            distance = np.sqrt(((other - place) ** 2).sum(1)).min()
            value = maps[(c - 1, *place)].item()
            assert (value <= 0) == bool(inside[place])
            assert abs(value) <= 1
            if not inside[place]:  # outside, distances are proportional
                farthest = max(
                    np.sqrt(((np.argwhere(inside) - p) ** 2).sum(1)).min() for p in np.argwhere(~inside & known)
                )
                assert value == pytest.approx(distance / farthest, rel=1e-5)


@pytest.mark.parametrize(("kept", "expected"), [("nothing", 1.0), ("background", 1.0), ("foreground", np.nan)])
def test_distance_maps_of_one_kind_of_voxel(kept, expected):
    label = torch.full((1, 6, 6), IGNORE_LABEL)
    if kept != "nothing":
        label[:, :3] = int(kept == "foreground")
    maps = SignedDistanceMap()(label)
    np.testing.assert_array_equal(maps[:, :3], expected)


@pytest.mark.parametrize("degenerate", ["safe", "zero", "official"])
def test_how_far_the_border_is_costs_nothing_where_nobody_knows(degenerate):
    """An organ was drawn, and its background belongs to classes that were not: the distance to it is unknown."""
    label = torch.full((2, 1, 6, 6), IGNORE_LABEL)
    label[0, :, 2:4], label[1] = 1, torch.randint(0, 2, (1, 6, 6), generator=torch.Generator().manual_seed(0))
    target = torch.stack([SignedDistanceMap(2, degenerate)(one) for one in label])
    assert target[0].isnan().all()
    assert not target[1].isnan().any()
    distance = torch.zeros(2, 1, 6, 6, requires_grad=True)
    loss = supervised_mse(distance, target, label)
    assert loss.item() == pytest.approx(target[1].square().mean().item(), rel=1e-6)
    loss.backward()
    assert not distance.grad[0].any()
    assert distance.grad[1].any()
    # a whole label that fills the patch is the released code's matter
    full = torch.ones(1, 1, 6, 6, dtype=torch.long)
    whole = SignedDistanceMap(2, "official")(full[0])[None]
    assert supervised_mse(distance[:1], whole, full).isnan()

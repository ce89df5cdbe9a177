"""Geometric transforms of batches."""

import pytest
import torch

from monai_ssl.transforms import Poses, random_poses


def coordinates(*sides):
    """Voxel centers relative to the center of the image, one channel per axis."""
    axes = [torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in sides]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def poses(rows=1, turns=0, flips=(), scale=1.0, plane=(0, 1)):
    return Poses((turns,) * rows, (tuple(flips),) * rows, (scale,) * rows, plane)


@pytest.mark.parametrize("sides", [(6, 6), (6, 6, 4)])
def test_turns_and_flips_are_those_of_torch(sides):
    image = torch.randn(2, 3, *sides)
    assert torch.equal(poses(2, turns=3)(image), image.rot90(3, (2, 3)))
    assert torch.equal(poses(2, flips=[1])(image), image.flip(3))
    assert torch.equal(poses(2, turns=1, flips=[0])(image), image.rot90(1, (2, 3)).flip(2))
    each = Poses((0, 2), ((0,), ()), (1.0, 1.0), (0, 1))(image)
    assert torch.equal(each, torch.stack([image[0].flip(1), image[1].rot90(2, (1, 2))]))
    assert each.dtype == image.dtype
    assert Poses((0, 2), ((0,), ()), (1.0, 1.0), (0, 1)).inside(image).all()


@pytest.mark.parametrize("scale", [0.9, 1.1])
@pytest.mark.parametrize("sides", [(10, 14), (10, 14, 6)])
def test_scaling_moves_what_is_at_a_place_away_from_the_center(sides, scale):
    place = coordinates(*sides)[None]
    pose = poses(scale=scale)
    moved, inside = pose(place), pose.inside(place)
    # linear functions are interpolated exactly, but for the half voxel beyond the outermost centers
    centers = (
        (place / scale).abs().le(torch.tensor(sides).reshape(1, -1, *[1] * len(sides)) / 2 - 0.5).all(1, keepdim=True)
    )
    torch.testing.assert_close((moved - place / scale) * centers, torch.zeros_like(moved), atol=1e-5, rtol=0)
    assert (centers & ~inside).sum() == 0
    assert bool(inside.all()) == (scale > 1)
    if scale < 1:
        expected = (place.abs() <= scale * torch.tensor(sides).reshape(1, -1, *[1] * len(sides)) / 2 + 1e-6).all(1)
        assert torch.equal(inside[:, 0], expected)


def test_a_scaling_and_its_reciprocal_undo_each_other():
    place = coordinates(32, 32)
    image = (place.square().sum(0) / 60).neg().exp()[None, None]
    back = poses(scale=1 / 1.1)(poses(scale=1.1)(image))
    inside = poses(scale=1 / 1.1).inside(image)
    assert ((back - image) * inside).abs().max() < 0.02
    assert ((poses(scale=1.1)(poses(scale=1.1)(image)) - image) * inside).abs().max() > 0.1


def test_gradients_pass():
    image = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(poses(turns=1, flips=[0], scale=0.9), image)


def test_draws():
    torch.manual_seed(0)
    image = torch.zeros(400, 1, 4, 4)
    found = random_poses(image, [0, 1], [0, 1], 0.1)
    assert {turns: found.turns.count(turns) > 60 for turns in range(4)} == dict.fromkeys(range(4), True)
    assert {flip: found.flips.count(flip) > 60 for flip in ((), (0,), (1,), (0, 1))} == {
        (): True, (0,): True, (1,): True, (0, 1): True,
    }  # fmt: skip
    assert 0.9 <= min(found.scales) < 0.91
    assert 1.09 < max(found.scales) <= 1.1
    half = random_poses(torch.zeros(50, 1, 4, 6), rotate90_axes=[0, 1])
    assert set(half.turns) == {0, 2}
    assert half(torch.zeros(50, 1, 4, 6)).shape == (50, 1, 4, 6)
    nothing = random_poses(image)
    assert nothing == Poses((0,) * 400, ((),) * 400, (1.0,) * 400)
    torch.manual_seed(0)
    assert random_poses(image, [0, 1], [0, 1], 0.1) == found


@pytest.mark.parametrize("options", [{"flip_axes": [2]}, {"rotate90_axes": [0, 2]}, {"flip_axes": [-1]}])
def test_rejects_axes(options):
    with pytest.raises(ValueError, match=r"flip_axes and rotate90_axes must be axes 0 to 1, got \["):
        random_poses(torch.zeros(1, 1, 4, 4), **options)


def test_rejects_scales_rows_and_turns():
    with pytest.raises(ValueError, match=r"scale must be in \[0, 0.5\), got 0.5"):
        random_poses(torch.zeros(1, 1, 4, 4), scale=0.5)
    with pytest.raises(ValueError, match="the batch must have 2 rows, one per transform, got 1"):
        poses(2)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(
        ValueError, match=r"sides must be equal along the axes \(0, 1\) of a quarter turn, got \[4, 6\]"
    ):
        poses(turns=1)(torch.zeros(1, 1, 4, 6))

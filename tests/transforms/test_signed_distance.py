"""The signed distance map against a brute-force reference that follows the definition, and its symmetries."""

import itertools

import numpy as np
import pytest
import torch

from monai_ssl.transforms import SignedDistanceMap, SignedDistanceMapd, signed_distance_map


def reference(mask):
    """All pairs of voxels; boundary = foreground voxels with a background neighbor across a face, inside the array."""
    mask = np.asarray(mask) != 0
    points = np.argwhere(np.ones_like(mask)).astype(float)
    foreground = mask.ravel()
    between = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    to_foreground = between[:, foreground].min(1)  # 0 inside
    to_background = between[:, ~foreground].min(1)  # 0 outside
    distance = (to_foreground / to_foreground.max() - to_background / to_background.max()).reshape(mask.shape)
    for voxel in itertools.product(*map(range, mask.shape)):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbor = list(voxel)
                neighbor[axis] += step
                inside_array = 0 <= neighbor[axis] < mask.shape[axis]
                if mask[voxel] and inside_array and not mask[tuple(neighbor)]:
                    distance[voxel] = 0.0
    return distance


def random_mask(shape, share, seed):
    return np.random.RandomState(seed).rand(*shape) < share


def ball(shape, radius, center=None):
    center = [s // 2 for s in shape] if center is None else center
    return sum((g - c) ** 2 for g, c in zip(np.indices(shape), center, strict=True)) <= radius**2


CASES = {
    "2d random": random_mask((9, 11), 0.4, 0),
    "2d sparse": random_mask((9, 11), 0.05, 1),
    "2d disc": ball((13, 12), 4),
    "2d disc at the border": ball((13, 12), 4, (0, 5)),
    "3d random": random_mask((6, 7, 5), 0.5, 2),
    "3d dense": random_mask((6, 7, 5), 0.95, 3),
    "3d ball": ball((9, 8, 9), 3),
    "3d corner": ball((8, 8, 8), 4, (0, 0, 7)),
    "3d one slice": np.arange(8 * 7 * 1).reshape(8, 7, 1) % 5 == 0,
    "1d": np.array([0, 0, 1, 1, 1, 0, 1]),
    "diagonal touch": np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1]]),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name):
    result = signed_distance_map(CASES[name])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference(CASES[name]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_range_and_sign(name):
    mask, distance = CASES[name] != 0, signed_distance_map(CASES[name])
    assert (distance[~mask] > 0).all()
    assert distance[~mask].max() == 1
    assert (distance[mask] <= 0).all()
    assert distance.min() >= -1
    # thresholding at <= 0 gives the mask back, boundary included
    np.testing.assert_array_equal(distance <= 0, mask)


@pytest.mark.parametrize("name", ["2d random", "3d random", "3d corner"])
def test_moves_with_the_mask(name):
    mask = CASES[name]
    distance = signed_distance_map(mask)
    for axis in range(mask.ndim):
        np.testing.assert_allclose(signed_distance_map(np.flip(mask, axis)), np.flip(distance, axis), atol=1e-6)
    np.testing.assert_allclose(signed_distance_map(np.rot90(mask)), np.rot90(distance), atol=1e-6)
    np.testing.assert_allclose(signed_distance_map(mask.T), distance.T, atol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_any_type_of_mask(dtype):
    mask = CASES["3d ball"]
    np.testing.assert_array_equal(signed_distance_map((mask * 1).astype(dtype)), signed_distance_map(mask))
    np.testing.assert_array_equal(signed_distance_map(mask * 255), signed_distance_map(mask))


def test_thin_objects_are_never_negative():
    mask = np.zeros((9, 9), bool)
    mask[4, 2:7] = True
    assert signed_distance_map(mask).min() == 0


@pytest.mark.parametrize(
    ("value", "degenerate", "expected"),
    [
        (0, "safe", 1.0),
        (1, "safe", -1.0),
        (0, "official", 0.0),
        (1, "official", np.nan),
        (0, "zero", 0.0),
        (1, "zero", 0.0),
    ],
)
@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 3)])
def test_masks_without_contour(shape, value, degenerate, expected):
    mask = np.full(shape, value)
    np.testing.assert_array_equal(signed_distance_map(mask, degenerate), np.full(shape, expected, np.float32))
    as_tensor = SignedDistanceMap(2, degenerate)(torch.from_numpy(mask)[None])
    np.testing.assert_array_equal(as_tensor[0], np.full(shape, expected, np.float32))


def test_default_is_safe():
    assert torch.isfinite(SignedDistanceMap()(torch.ones(1, 4, 4))).all()
    assert np.isfinite(signed_distance_map(np.ones((4, 4)))).all()


@pytest.mark.parametrize("shape", [(10, 9), (7, 8, 6)])
def test_one_map_per_foreground_class(shape):
    label = torch.randint(0, 4, (1, *shape), generator=torch.Generator().manual_seed(0))
    maps = SignedDistanceMap(n_classes=4)(label)
    assert maps.shape == (3, *shape)
    assert maps.dtype == torch.float32
    for c in (1, 2, 3):
        np.testing.assert_allclose(maps[c - 1], reference(label[0].numpy() == c), rtol=0, atol=1e-6)


def test_a_missing_class_is_degenerate_by_itself():
    label = torch.zeros(1, 6, 6, dtype=torch.uint8)
    label[0, 2:4, 2:4] = 1
    maps = SignedDistanceMap(n_classes=3)(label)
    np.testing.assert_allclose(maps[0], reference(label[0].numpy() == 1), atol=1e-6)
    assert (maps[1] == 1).all()
    assert (SignedDistanceMap(3, "official")(label)[1] == 0).all()


def test_two_classes_take_every_nonzero_label_as_foreground():
    label = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(1))
    assert torch.equal(SignedDistanceMap(2)(label), SignedDistanceMap(2)((label > 0).long()))


def test_input_is_not_changed():
    label = torch.randint(0, 2, (1, 8, 8), generator=torch.Generator().manual_seed(2))
    before = label.clone()
    SignedDistanceMapd("label")({"label": label})
    assert torch.equal(label, before)


def test_dictionary_version():
    label = torch.from_numpy(CASES["2d disc"])[None].long()
    item = {"image": torch.zeros(1, 13, 12), "label": label}
    out = SignedDistanceMapd("label", n_classes=2)(item)
    assert out["label"] is label
    assert "signed_distance" not in item
    assert torch.equal(out["signed_distance"], SignedDistanceMap()(label))
    named = SignedDistanceMapd("label", n_classes=3, degenerate="official", output_key="d")(item)
    assert torch.equal(named["d"], SignedDistanceMap(3, "official")(label))
    with pytest.raises(KeyError):
        SignedDistanceMapd("label")({"image": label})
    assert set(SignedDistanceMapd("label", allow_missing_keys=True)({"image": label})) == {"image"}


def test_a_map_of_a_crop_is_not_the_crop_of_a_map():
    mask = ball((16, 16), 5)
    assert np.abs(signed_distance_map(mask)[4:, 4:] - signed_distance_map(mask[4:, 4:])).max() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SignedDistanceMap(1), r"n_classes must be >= 2 \(background included\), got 1"),
        (
            lambda: SignedDistanceMap(2, "other"),
            r"degenerate must be one of \('safe', 'official', 'zero'\), got 'other'",
        ),
        (lambda: signed_distance_map(np.ones(3), "other"), r"degenerate must be one of .*, got 'other'"),
        (lambda: SignedDistanceMap()(torch.zeros(2, 4, 4)), r"one channel \(1, \*spatial\), got shape \(2, 4, 4\)"),
    ],
)
def test_rejects(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_same_on_the_gpu(name):
    label = torch.from_numpy(CASES[name] != 0)[None].long()
    result = SignedDistanceMap()(label.cuda())
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), SignedDistanceMap()(label), rtol=0, atol=1e-6)

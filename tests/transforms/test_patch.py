"""Random patches: what they show, how often each position occurs, and that nothing is made up inside the scan."""

import itertools

import numpy as np
import pytest
import torch
from monai.transforms import Affine, Compose
from monai.transforms.utils import create_rotate, create_scale

from monai_ssl.data import load_preset
from monai_ssl.data.pipelines import random_transforms
from monai_ssl.transforms import RandPatchd, sample_patch


def coverage(shape, patch, draws=800, **options):
    """How often each voxel of a scan is shown by a patch: the scan holds its own positions."""
    positions = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    crop = RandPatchd(["image"], patch, **options)
    crop.set_random_state(0)
    counts = np.zeros(shape)
    for _ in range(draws):
        shown = crop({"image": positions})["image"].reshape(len(shape), -1).round().long().numpy()
        counts += np.bincount(np.ravel_multi_index(shown, shape), minlength=counts.size).reshape(shape) > 0
    return counts / draws


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((24, 18, 11), (16, 16, 8)),
        ((17, 18, 19), (16, 16, 16)),
        ((20, 24), (16, 16)),
        ((17, 16), (16, 16)),
    ],
)
@pytest.mark.parametrize("prob", [0.0, 0.5])
def test_every_position_occurs(shape, patch, prob):
    found = coverage(shape, patch, prob=prob, rotate_range=0.17, scale_range=0.1)
    for axis in range(len(shape)):  # along each axis within a factor of 3 of even
        along = found.mean(axis=tuple(other for other in range(len(shape)) if other != axis))
        assert along.min() > along.mean() / 3
        assert along.max() < 3 * along.mean()
    # a corner is shown by one position in 2^axes at most, however positions are drawn, and not by all that are turned
    assert found.min() > 0.5 ** len(shape) / 8
    assert found.max() < 3 * found.mean()


def test_an_even_draw_would_hide_the_corners():
    """The test above can fail: positions drawn evenly, as a plain random crop does."""
    edge = [1 / (n - p + 1) for n, p in zip((24, 18, 11), (16, 16, 8), strict=True)]
    assert np.prod(edge) < 0.5**3 / 8


def test_nothing_is_turned_without_need():
    image = torch.arange(5.0 * 6 * 7).reshape(1, 5, 6, 7)
    crop = RandPatchd(["image"], (3, 4, 5))
    seen = {tuple(crop({"image": image})["image"].flatten().tolist()) for _ in range(200)}
    windows = {
        tuple(image[0, i : i + 3, j : j + 4, k : k + 5].flatten().tolist())
        for i, j, k in itertools.product(range(3), range(3), range(3))
    }
    assert seen <= windows
    assert len(seen) > len(windows) / 2


@pytest.mark.parametrize("start", [(0, 0, 0), (6, 5, 5), (12, 10, 10)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_equals_monai_s_affine_about_the_center_of_the_patch(start, mode):
    image, patch = torch.rand(2, 21, 17, 15), (9, 7, 5)
    angles, scales = [0.1, 0.2, -0.15], [1.1, 0.9, 1.05]
    matrix = (create_rotate(3, angles) @ create_scale(3, scales))[:3, :3]
    shift = np.asarray(start) + (np.asarray(patch) - 1) / 2 - (np.asarray(image.shape[1:]) - 1) / 2
    placed = np.eye(4)
    placed[:3, 3] = shift
    affine = placed @ create_rotate(3, angles) @ create_scale(3, scales)
    expected, _ = Affine(affine=affine, spatial_size=patch, mode=mode, padding_mode="border", dtype=torch.float64)(
        image
    )
    center = np.asarray(start) + (np.asarray(patch) - 1) / 2
    found = sample_patch(image, center, patch, matrix, mode)
    close = torch.isclose(torch.as_tensor(expected), found, atol=1e-4)
    assert close.float().mean() > (0.999 if mode == "bilinear" else 0.99)  # nearest: ties


@pytest.mark.parametrize("flavor", ["practical"])
@pytest.mark.parametrize("name", ["hippocampus", "acdc"])
def test_image_and_label_stay_together(name, flavor):
    preset = load_preset(name, flavor)
    steps = Compose(random_transforms(preset)[: -5 if preset.augmentation.intensity_probability else None])
    steps.set_random_state(1)
    shape = [2 * side for side in preset.patch_size] if preset.spatial_dims == 3 else [300, 280, 4]
    grid = torch.meshgrid(*(torch.linspace(0, 6, n) for n in shape), indexing="ij")
    smooth = sum(torch.sin(g) for g in grid)[None]
    item = {"image": smooth, "label": (smooth > 0).to(torch.uint8)}
    for _ in range(5):
        patch = steps(dict(item))
        assert tuple(patch["image"].shape[1:]) == tuple(preset.patch_size)
        assert patch["label"].dtype == torch.uint8
        clear = patch["image"].abs() > 0.1  # away from the border between both classes
        assert torch.equal((patch["image"] > 0)[clear], (patch["label"] > 0)[clear])


@pytest.mark.parametrize(("shapes", "named"), [(((1, 8, 8), (1, 8, 9)), "label"), (((1, 7, 8), (1, 7, 8)), "image")])
def test_what_does_not_fit_is_refused(shapes, named):
    crop = RandPatchd(["image", "label"], (8, 8), mode=["bilinear", "nearest"])
    with pytest.raises(ValueError, match=f"^{named} must have one shape with the others"):
        crop({key: torch.zeros(shape) for key, shape in zip(("image", "label"), shapes, strict=True)})


def test_modes_are_checked():
    with pytest.raises(ValueError, match="mode must be bilinear or nearest"):
        RandPatchd(["image"], (8, 8), mode="cubic")

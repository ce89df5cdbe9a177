"""Two channels that are no function of each other, through everything that a preset does to an image."""

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_ssl.data import Preset
from monai_ssl.data.pipelines import preprocessing, random_transforms

SIDES = (28, 26, 24)


@pytest.fixture
def scans(tmp_path):
    """Files of two sequences of one patient: other range, other shape of the histogram, other background."""
    random = np.random.RandomState(0)
    first = random.rand(*SIDES) * 100
    second = 2000.0 * random.rand(*SIDES) ** 6 + 300.0
    second[:4] = 0.0
    paths = []
    for name, array in (("t1", first), ("flair", second)):
        paths.append(str(tmp_path / f"{name}.nii.gz"))
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), paths[-1])
    return paths


def preset(channels, **options):
    needed = {"name": "mine", "patch_size": [16, 16, 16], "labels": {0: "background", 1: "organ"}}
    return Preset(channels=channels, **(needed | options))


@pytest.mark.parametrize("policy", ["robust", "zscore", "minmax", "as_stored"])
def test_each_channel_is_scaled_by_its_own_values(scans, policy):
    both = preprocessing(preset(["t1", "flair"], intensity={"policy": policy}))({"image": scans})["image"]
    assert both.shape == (2, *SIDES)
    for channel, path in zip(both, scans, strict=True):
        alone = preprocessing(preset(["one"], intensity={"policy": policy}))({"image": path})["image"]
        torch.testing.assert_close(channel, alone[0], rtol=1e-5, atol=1e-5)
        if policy in ("robust", "zscore"):
            assert abs(channel.mean()) < 1e-4
            assert channel.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def ramps(sides, spatial_dims):
    """One channel per axis, whose value is the voxel's place along it."""
    places = torch.meshgrid(*(torch.arange(float(n)) for n in sides), indexing="ij")[:spatial_dims]
    return torch.stack(places)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_turned_patch_shows_no_border_that_was_made_up(spatial_dims, seed):
    # turning and scaling keeps a ramp a ramp; a border that was made up bends it
    p = preset(
        [f"axis {i}" for i in range(spatial_dims)],
        spatial_dims=spatial_dims,
        patch_size=[16] * spatial_dims,
        augmentation={
            "policy": "practical",
            "affine_probability": 1.0,
            "rotation_degrees": 10,
            "scale": 0.1,
            "flip_axes": [],
            "intensity_probability": 0.0,
        },
    )
    sides = (40, 36, 32)
    item = {"image": ramps(sides, spatial_dims), "label": torch.zeros(1, *sides, dtype=torch.uint8)}
    for index, transform in enumerate(random_transforms(p)):
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(seed + 100 * index)
        item = transform(item)
    image = torch.as_tensor(item["image"])
    assert image.shape == (spatial_dims, *[16] * spatial_dims)
    slopes, bent = [], []
    for channel in image:
        for axis in range(spatial_dims):
            steps = channel.diff(dim=axis)
            slopes.append(steps.median())
            bent.append(steps.diff(dim=axis).abs() > 1e-3)
    # at the largest angles about three axes at once, the outermost corners of a volume do reach beyond the margin
    assert max(share.float().mean() for share in bent) < 0.002
    turned = torch.stack(slopes).reshape(spatial_dims, spatial_dims)
    assert (turned - torch.eye(spatial_dims)).abs().max() > 0.01  # it was turned or scaled

"""Augmentation and padding of the published protocols."""

import numpy as np
import pytest
import torch

from monai_ssl.transforms import LiteraturePadd, RandLiteratureCropd, RandRotateFlipd, rotate_flip


def volume(*sides, channels=1):
    return torch.arange(channels * int(np.prod(sides))).reshape(channels, *sides)


@pytest.mark.parametrize("sides", [(4, 5), (4, 5, 3)])
@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("axis", [0, 1])
def test_rotate_flip_equals_numpy(sides, k, axis):
    image = volume(*sides, channels=2)
    expected = np.stack([np.flip(np.rot90(channel, k), axis) for channel in image.numpy()])
    np.testing.assert_array_equal(rotate_flip(image, k, axis), expected)


def test_rotate_flip_treats_image_and_label_alike():
    transform = RandRotateFlipd(["image", "label"])
    transform.set_random_state(0)
    image = volume(4, 4, 2)
    for _ in range(20):
        out = transform({"image": image.float(), "label": image})
        assert torch.equal(out["image"], out["label"].float())


def test_rotate_flip_never_gives_the_identity():
    transform = RandRotateFlipd("image")
    transform.set_random_state(1)
    image = volume(3, 3)
    orientations = {tuple(transform({"image": image})["image"].flatten().tolist()) for _ in range(200)}
    mirrored = {tuple(rotate_flip(image, k, 0).flatten().tolist()) for k in range(4)}
    assert orientations == mirrored
    assert tuple(image.flatten().tolist()) not in orientations


@pytest.mark.parametrize(
    ("side", "padded"),  # one side; the other ones exceed the patch
    [(112, 118), (110, 118), (113, 113), (100, 118), (90, 118), (111, 117), (1, 117)],
)
def test_pad_rule_for_one_short_side(side, padded):
    out = LiteraturePadd("image", (112, 8, 8))({"image": torch.ones(1, side, 20, 20)})["image"]
    assert out.shape == (1, padded, 20, 20)
    before = (padded - side) // 2
    assert out[:, before : before + side].sum() == side * 400
    assert out.sum() == side * 400  # the rest is 0


def test_pad_touches_nearly_fitting_sides_as_soon_as_one_is_short():
    # 113 > 112 alone is not padded; beside a short side it gets 2 on both ends
    out = LiteraturePadd("image", (112, 112))({"image": torch.ones(1, 113, 100)})["image"]
    assert out.shape == (1, 117, 118)
    assert LiteraturePadd("image", (112, 112))({"image": torch.ones(1, 113, 113)})["image"].shape == (1, 113, 113)


def test_pad_keeps_image_and_label_aligned():
    x = volume(5, 9, 4)
    out = LiteraturePadd(["image", "label"], (8, 8, 8))({"image": x.float(), "label": x})
    assert torch.equal(out["image"], out["label"].float())
    assert out["label"].dtype == x.dtype


def test_crop_is_a_window_and_excludes_the_last_start():
    transform = RandLiteratureCropd(["image", "label"], (4, 3))
    transform.set_random_state(0)
    image = volume(7, 5)
    starts = set()
    for _ in range(200):
        out = transform({"image": image, "label": image})
        assert torch.equal(out["image"], out["label"])
        a, b = transform.start
        assert torch.equal(out["image"], image[:, a : a + 4, b : b + 3])
        starts.add((a, b))
    assert starts == {(a, b) for a in range(3) for b in range(2)}


@pytest.mark.parametrize("sides", [(4, 9), (9, 3)])
def test_crop_rejects_sides_that_do_not_exceed_the_patch(sides):
    with pytest.raises(ValueError, match=r"every side must be larger than patch_size \(4, 3\), got .*LiteraturePadd"):
        RandLiteratureCropd("image", (4, 3))({"image": volume(*sides)})


def test_after_the_pad_the_crop_always_fits():
    for sides in [(1, 1), (4, 4), (3, 12), (5, 5), (4, 5)]:
        item = LiteraturePadd("image", (4, 4))({"image": volume(*sides)})
        assert RandLiteratureCropd("image", (4, 4))(item)["image"].shape == (1, 4, 4)


def test_missing_keys():
    for transform in (RandRotateFlipd, LiteraturePadd, RandLiteratureCropd):
        extra = () if transform is RandRotateFlipd else ((2, 2),)
        with pytest.raises(KeyError):
            transform(["image", "label"], *extra)({"image": volume(6, 6)})
        out = transform(["image", "label"], *extra, allow_missing_keys=True)({"image": volume(6, 6)})
        assert set(out) == {"image"}

"""Random slices, and the augmentation of the 2D code bases."""

import pytest
import torch

from monai_ssl.transforms import CenterCropd, NormalizeNonzerod, RandSliceRotateFlipd, RandSliceSelectd, rotate_flip


def test_every_slice_is_drawn_equally_often():
    transform = RandSliceSelectd(["image", "label"])
    transform.set_random_state(0)
    image = torch.arange(5.0).expand(1, 4, 3, 5)
    drawn = [transform({"image": image, "label": image * 2}) for _ in range(1000)]
    values = torch.tensor([item["image"][0, 0, 0] for item in drawn])
    assert torch.equal(torch.stack([item["label"] for item in drawn]), 2 * torch.stack([i["image"] for i in drawn]))
    assert torch.bincount(values.long(), minlength=5).min() > 150
    flat = torch.rand(1, 4, 3)
    assert transform({"image": flat, "label": flat})["image"] is flat


def test_a_half_is_turned_a_quarter_rotated_a_quarter_left():
    transform = RandSliceRotateFlipd(["image", "label"])
    transform.set_random_state(0)
    label = torch.zeros(1, 24, 24, dtype=torch.uint8)
    label[0, 4:10, 6:9] = 3
    image = label.float() * 10
    mirrored = [rotate_flip(label, k, axis) for k in range(4) for axis in range(2)]
    counts = {"same": 0, "turned": 0, "rotated": 0}
    for _ in range(400):
        out = transform({"image": image, "label": label})
        assert torch.equal(out["image"], out["label"].float() * 10)  # nearest pixel, in both
        assert out["label"].dtype == torch.uint8
        if torch.equal(out["label"], label):
            counts["same"] += 1
        elif any(torch.equal(out["label"], other) for other in mirrored):
            counts["turned"] += 1
        else:
            counts["rotated"] += 1
            assert abs(int((out["label"] > 0).sum()) - 18) <= 6
    assert counts["same"] == pytest.approx(100, abs=30)
    assert counts["turned"] == pytest.approx(200, abs=35)
    assert counts["rotated"] == pytest.approx(100, abs=30)


def test_empty_and_constant_channels_are_not_divided_by_zero():
    image = torch.stack([torch.zeros(6), torch.tensor([0.0, 0, 5, 5, 5, 5])])
    out = NormalizeNonzerod("image", (0, 100))({"image": image})["image"]
    assert out.tolist() == [[0.0] * 6, [-5.0, -5.0, 0.0, 0.0, 0.0, 0.0]]
    assert image[1, 2] == 5  # the input is left alone


def test_a_field_of_view_has_a_size():
    with pytest.raises(ValueError, match=r"size must be positive millimeters or None per axis, got \(0, None\)"):
        CenterCropd("image", (0, None))

"""Strong changes and CutMix of whole batches."""

import pytest
import torch

from monai_ssl.transforms import change_strongly, cutmix

SIDES = {2: (24, 16), 3: (16, 12, 20)}


@pytest.mark.parametrize("dims", SIDES)
def test_a_change_keeps_every_voxel_on_its_place(dims):
    torch.manual_seed(0)
    image = torch.zeros(64, 2, *SIDES[dims])
    image[:, :, 8:] = 2.0  # an edge: left of it stays darker on average, whatever is drawn
    changed = change_strongly(image)
    assert changed.shape == image.shape
    assert changed.dtype == torch.float32
    assert torch.isfinite(changed).all()
    gap = changed[:, :, 9:].flatten(2).mean(-1) - changed[:, :, :7].flatten(2).mean(-1)
    assert (gap > 0).float().mean() > 0.97
    assert gap.std() > 0.1  # rows and channels draw for themselves
    assert not image[:, :, :8].any()  # not changed in place


def test_strength():
    image = torch.randn(256, 1, 16, 16)
    assert change_strongly(image, 0.0) is image
    size = []
    for strength in (0.1, 0.5, 1.0):
        torch.manual_seed(0)
        size.append((change_strongly(image, strength) - image).pow(2).mean().item())
    assert size[0] < size[1] < size[2]
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        change_strongly(image, -1)


def test_flat_images_stay_finite():
    for value in (0.0, -3.0, 1e4):
        assert torch.isfinite(change_strongly(torch.full((4, 1, 8, 8, 8), value))).all()


@pytest.mark.parametrize("dims", SIDES)
def test_one_box_of_the_next_row_in_all_tensors(dims):
    torch.manual_seed(0)
    rows = 5
    source = torch.arange(rows).reshape(rows, 1, *[1] * dims).expand(rows, 1, *SIDES[dims])
    image = torch.stack([source[:, 0].float(), 10.0 * source[:, 0]], dim=1)
    mixed, label = cutmix([image, source])
    assert label.dtype == source.dtype
    assert torch.equal(mixed[:, :1], label.float())
    assert torch.equal(mixed[:, 1:], 10 * label.float())
    for row in range(rows):
        foreign = label[row, 0] == (row - 1) % rows
        assert set(label[row].unique().tolist()) == {row, (row - 1) % rows}
        # a box: exactly the product of its extents, each between 0.4 and 0.75 of the side
        extents = []
        for axis, n in enumerate(SIDES[dims]):
            along = foreign.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
            extents.append(len(along))
            assert along[-1] - along[0] + 1 == len(along)
            assert round(0.4 * n) <= len(along) <= round(0.75 * n)
        assert foreign.sum() == torch.tensor(extents).prod()


def test_boxes_lie_everywhere():
    torch.manual_seed(0)
    rows = torch.zeros(2000, 1, 16)
    rows[1::2] = 1
    share = (cutmix([rows], sides=(0.5, 0.5))[0] != rows).float().mean((0, 1))
    assert share.min() > 0.08  # ends: one start of nine
    assert share.max() > 0.8


def test_probability_and_single_rows():
    torch.manual_seed(0)
    rows = torch.arange(1000.0).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    changed = (cutmix([rows], 0.3)[0] != rows).flatten(1).any(1).float().mean()
    assert changed == pytest.approx(0.3, abs=0.05)
    assert cutmix([rows], 0.0)[0] is rows
    assert cutmix([rows[:1]])[0].equal(rows[:1])


def test_draws_are_those_of_the_generator():
    given = torch.randn(3, 1, 8, 8)
    torch.manual_seed(4)
    first = cutmix([change_strongly(given)])[0]
    torch.manual_seed(4)
    assert torch.equal(cutmix([change_strongly(given)])[0], first)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"probability": 1.1}, r"in \[0, 1\]"), ({"sides": (0.0, 0.5)}, "range"), ({"sides": (0.6, 0.5)}, "range")],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        cutmix([torch.zeros(2, 1, 8)], **options)
    with pytest.raises(ValueError, match="equal rows"):
        cutmix([torch.zeros(2, 1, 8), torch.zeros(2, 1, 9)])

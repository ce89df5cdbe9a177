"""Two-stream loading: batches are a function of (seed, iteration, slot) and of nothing else."""

import gc
import itertools
import json
import multiprocessing
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandGaussianNoised, RandSpatialCropd, Transform

from monai_ssl.data import CaseDataset, DataError, TwoStreamLoader, load_datalist, load_preset, position_seed
from monai_ssl.data.pipelines import random_transforms, strong_transforms, training_preprocessing
from monai_ssl.data.preset import Augmentation
from monai_ssl.data.streams import _TwoStreamDataset
from monai_ssl.transforms import SignedDistanceMapd

AS_THEY_ARE = Augmentation(policy="none")


class Synthetic(Transform):
    """Stands for deterministic loading: an image (and label) made from the number in the file name."""

    loads = 0

    def __init__(self, sides=(20, 20)):
        self.sides = sides

    def __call__(self, item):
        Synthetic.loads += 1
        generator = torch.Generator().manual_seed(int(Path(item["image"]).name.split("_")[1].split(".")[0]))
        out = {"image": torch.randn(1, *self.sides, generator=generator)}
        if "label" in item:
            out["label"] = (out["image"] > 0).to(torch.uint8)
        return out


def cases(n, label=True, first=0):
    entries = [
        {"image": f"case_{i}.nii.gz"} | ({"label": f"seg_{i}.nii.gz"} if label else {}) for i in range(first, first + n)
    ]
    return CaseDataset(entries, Compose([Synthetic()]), num_workers=1)


def loader(n_labeled=3, n_unlabeled=5, **options):
    transforms = [
        RandSpatialCropd(["image", "label"], (16, 16), random_size=False),
        RandGaussianNoised("image", prob=0.5),
    ]
    unlabeled = [RandSpatialCropd("image", (16, 16), random_size=False), RandGaussianNoised("image", prob=0.5)]
    arguments = {"labeled_batch_size": 2, "unlabeled_batch_size": 2, "seed": 7} | options
    return TwoStreamLoader(cases(n_labeled), cases(n_unlabeled, False, 100), transforms, unlabeled, **arguments)


def take(stream, n, start=0):
    stream.start_at(start)
    return list(itertools.islice(iter(stream), n))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].keys() == b[key].keys()
            for name, value in a[key].items():
                same = torch.equal(value, b[key][name]) if isinstance(value, torch.Tensor) else value == b[key][name]
                assert same, (key, name)


class Stacks(Transform):
    """Stands for the loading of volumes for a 2D network: case i has 3 i + 2 slices, each of which holds its number."""

    def __init__(self, slice_sampling):
        self.preset = load_preset({"name": "stacks", "labels": {0: "a", 1: "b"}, "spatial_dims": 2,
                                   "patch_size": [16, 16], "slice_sampling": slice_sampling})  # fmt: skip

    def __call__(self, item):
        case = int(Path(item["image"]).name.split("_")[1].split(".")[0])
        numbers = torch.arange(3 * case + 2.0) + 100 * case
        return {"image": numbers.expand(1, 16, 16, -1).clone()}


class TestSlices:
    @staticmethod
    def drawn(sampling, n, num_workers=0, start=0):
        transform = Compose([Stacks(sampling)])
        transform.preset = transform.transforms[0].preset
        entries = [{"image": f"case_{i}.nii.gz"} for i in range(3)]  # 2, 5 and 8 slices
        data = CaseDataset(entries, transform, num_workers=1)
        steps = random_transforms(transform.preset.model_copy(update={"augmentation": AS_THEY_ARE}), label=False)
        stream = TwoStreamLoader(data, None, steps, labeled_batch_size=1, num_workers=num_workers)
        found = []
        for batch in take(stream, n, start):
            image = batch["labeled"]["image"]
            assert image.shape == (1, 1, 16, 16)
            assert int(image[0, 0, 0, 0]) // 100 == batch["labeled"]["index"].item()
            found.append(int(image[0, 0, 0, 0]))
        return found

    def test_every_slice_once_per_round(self):
        everything = [100 * case + i for case in range(3) for i in range(3 * case + 2)]
        found = self.drawn("slice", 45)
        assert [sorted(found[i : i + 15]) for i in (0, 15, 30)] == [everything] * 3
        assert found[:15] != found[15:30]

    def test_a_volume_first(self):
        found = self.drawn("volume", 300)
        assert [sum(value // 100 == case for value in found) for case in range(3)] == [100, 100, 100]

    def test_position_alone_decides(self):
        assert self.drawn("slice", 10, start=20) == self.drawn("slice", 30)[20:]
        assert self.drawn("slice", 6, num_workers=2) == self.drawn("slice", 6)


# ------------------------------------------------------------------------------------------------- seeded by position


def test_what_a_batch_holds():
    batch = take(loader(), 1)[0]
    assert set(batch) == {"labeled", "unlabeled"}
    labeled, unlabeled = batch["labeled"], batch["unlabeled"]
    assert set(labeled) == {"image", "label", "index", "name"}
    assert set(unlabeled) == {"image", "index", "name"}
    assert labeled["image"].shape == unlabeled["image"].shape == labeled["label"].shape == (2, 1, 16, 16)
    assert labeled["image"].dtype == torch.float32
    assert labeled["label"].dtype == labeled["index"].dtype == torch.int64
    for i, name in zip(labeled["index"].tolist(), labeled["name"], strict=True):
        assert name == f"case_{i}"
    for i, name in zip(unlabeled["index"].tolist(), unlabeled["name"], strict=True):
        assert name == f"case_{100 + i}"


def test_same_batches_again_and_other_ones_for_another_seed():
    assert_same(take(loader(), 8), take(loader(), 8))
    other = take(loader(seed=8), 8)
    assert [b["labeled"]["name"] for b in take(loader(), 8)] != [b["labeled"]["name"] for b in other]


class Cycle:
    """Garbage that tells which process cleared it away."""

    def __init__(self, file):
        self.file, self.itself = file, self

    def __del__(self):
        with open(self.file, "a") as file:
            file.write(f"{os.getpid()}\n")


class Collecting(Transform):
    def __call__(self, item):
        gc.collect()
        return item


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers inherit nothing")
def test_workers_leave_alone_what_they_inherit(tmp_path):
    # a worker that clears away the CUDA tensors of a former training is ended by CUDA
    alive = [Cycle(tmp_path / "pids")]
    gc.disable()
    try:
        Cycle(tmp_path / "pids")
        crop = RandSpatialCropd(["image", "label"], (16, 16), random_size=False)
        batches = iter(TwoStreamLoader(cases(2), None, [crop, Collecting()], num_workers=1))
        next(batches)
        frozen = gc.get_freeze_count()
        del batches
    finally:
        gc.enable()
    assert frozen == 0
    assert (tmp_path / "pids").read_text().split() == [str(os.getpid())]
    assert len(alive) == 1


def test_number_of_workers_has_no_influence():
    expected = take(loader(), 7)
    assert_same(expected, take(loader(num_workers=2), 7))
    assert_same(expected[3:], take(loader(num_workers=2), 4, start=3))


@pytest.mark.parametrize("k", [1, 4, 13])
def test_started_at_iteration_k(k):
    assert_same(take(loader(), 16)[k:], take(loader(), 16 - k, start=k))


def test_global_random_state_has_no_influence_and_is_not_touched():
    np.random.seed(0)
    torch.manual_seed(0)
    expected = take(loader(), 4)
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy()
    assert_same(expected, take(loader(), 4))
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_take_disjoint_slots_of_the_joint_batch(world_size):
    one = loader(labeled_batch_size=2 * world_size, unlabeled_batch_size=world_size)
    many = loader(labeled_batch_size=2, unlabeled_batch_size=1)
    joint = _TwoStreamDataset(one.streams, rank=0, world_size=1)
    ranks = [_TwoStreamDataset(many.streams, rank, world_size) for rank in range(world_size)]
    for iteration in (0, 1, 6):
        parts = [r[iteration] for r in ranks]
        expected = joint[iteration]
        for key in ("labeled", "unlabeled"):
            assert expected[key]["name"] == [name for p in parts for name in p[key]["name"]]
            for name in ("image", "index"):
                assert torch.equal(expected[key][name], torch.cat([p[key][name] for p in parts])), (key, name)


def test_the_labeled_and_the_unlabeled_stream_differ():
    same_cases = TwoStreamLoader(cases(8), cases(8), [], [], seed=3)
    batches = take(same_cases, 8)
    assert [b["labeled"]["name"] for b in batches] != [b["unlabeled"]["name"] for b in batches]


def test_both_streams_draw_differently():
    # one case in both, so that the order cannot tell them apart: what differs is what the transforms draw
    noise = [RandGaussianNoised("image", prob=1.0)]
    same_case = TwoStreamLoader(cases(1), cases(1), noise, noise, labeled_batch_size=1, unlabeled_batch_size=1, seed=3)
    for batch in take(same_case, 4):
        assert not torch.equal(batch["labeled"]["image"], batch["unlabeled"]["image"])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("flavor", ["literature", "practical"])
def test_the_strong_view_lies_on_the_weak_one(flavor, dims, num_workers):
    preset = tiny_preset(dims, flavor)
    sides = (20, 19, 18)

    def build(strong):
        unlabeled = CaseDataset([{"image": f"case_{i}.nii.gz"} for i in range(5, 8)], Compose([Synthetic(sides)]), 1)
        weak = random_transforms(preset, label=False)
        loader = TwoStreamLoader(cases(2), unlabeled, [], weak, strong, num_workers=num_workers, seed=2)
        return take(loader, 4)

    without, with_strong = build(None), build(strong_transforms(preset))
    again = build(strong_transforms(preset))
    for plain, both, same in zip(without, with_strong, again, strict=True):
        assert "strong" not in plain["unlabeled"]
        strong = both["unlabeled"].pop("strong")
        assert torch.equal(strong, same["unlabeled"].pop("strong"))
        assert_same([plain], [both])  # everything else has the bits of before
        weak = both["unlabeled"]["image"]
        assert strong.shape == weak.shape == (2, 1, *preset.patch_size)
        assert strong.dtype == torch.float32
        assert type(strong) is torch.Tensor
        assert torch.isfinite(strong).all()
        assert not torch.equal(strong, weak)
        for axis in range(2, weak.dim()):  # the images are white noise: moved by a voxel, they would not correlate
            inner, moved = (weak.narrow(axis, first, weak.shape[axis] - 1) for first in (0, 1))
            there = strong.narrow(axis, 0, weak.shape[axis] - 1)
            for same_place, next_place, view in zip(inner, moved, there, strict=True):
                assert correlation(same_place, view) > 0.1 + abs(correlation(next_place, view))


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("flavor", ["literature", "practical"])
def test_workers_and_the_main_process_give_the_same_bits(flavor, dims):
    # in the main process the transforms track their history, in workers they do not
    preset = tiny_preset(dims, flavor)
    entries = [{"image": f"case_{i}.nii.gz", "label": "x"} for i in range(3)]

    def build(num_workers):
        labeled = CaseDataset(entries, Compose([Synthetic((20, 19, 18))]), num_workers=1)
        transforms = [*random_transforms(preset), SignedDistanceMapd("label")]
        return take(TwoStreamLoader(labeled, None, transforms, num_workers=num_workers, seed=4), 6)

    here, there = build(0), build(1)
    assert_same(here, there)
    assert all(type(v) is torch.Tensor for b in here for v in b["labeled"].values() if isinstance(v, torch.Tensor))


def test_loading_leaves_the_switch_of_monai_alone():
    from monai.data import get_track_meta

    seen = []

    class Look(Transform):
        def __call__(self, item):
            seen.append(get_track_meta())
            return item

    take(TwoStreamLoader(cases(2), None, [Look()]), 2)
    assert seen == [True] * 4  # another thread that loads in the meantime finds what it expects


def test_a_label_to_be_ignored_survives():
    class Unknown(Transform):
        def __call__(self, item):
            item["label"] = item["label"].clone()
            item["label"][:, :10] = 255
            return item

    entries = [{"image": "case_1.nii.gz", "label": "x"}]
    labeled = CaseDataset(entries, Compose([Synthetic((24, 24, 20)), Unknown()]), num_workers=1)
    preset = tiny_preset(3, "practical")
    for batch in take(TwoStreamLoader(labeled, None, random_transforms(preset), seed=1), 5):
        assert batch["labeled"]["label"].dtype == torch.int64
        assert set(batch["labeled"]["label"].unique().tolist()) <= {0, 1, 255}
        assert (batch["labeled"]["label"] == 255).any()


def test_neighboring_slots_and_iterations_draw_differently():
    single = TwoStreamLoader(cases(1), None, [RandSpatialCropd(["image", "label"], (4, 4), random_size=False)])
    crops = torch.cat([b["labeled"]["image"] for b in take(single, 10)])
    assert len({tuple(c.flatten().tolist()) for c in crops}) >= 15


def test_position_seed_is_stable_and_well_mixed():
    # stored numbers: another platform or version must give the same streams
    seeds = [position_seed(0), position_seed(0, 1, 2), position_seed(1337, 0, 5999, 1)]
    assert seeds == [2968811710, 3884055042, 2351380684]
    seeds = {position_seed(s, st, i) for s in range(5) for st in range(1, 3) for i in range(1, 200)}
    assert len(seeds) == 5 * 2 * 199
    assert position_seed(-1) == position_seed(2**32 - 1)


# ------------------------------------------------------------------------------------------------- order of the cases


@pytest.mark.parametrize(("n", "batch"), [(16, 2), (5, 2), (3, 2), (1, 2), (3, 7)])
def test_permutations_without_repetition_chained_for_ever(n, batch):
    stream = TwoStreamLoader(cases(n), None, [], labeled_batch_size=batch)
    drawn = torch.cat([b["labeled"]["index"] for b in take(stream, 4 * n)]).tolist()
    epochs = [drawn[i : i + n] for i in range(0, len(drawn) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n >= 5:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_index_is_that_of_the_datalist():
    stream = loader(n_labeled=6)
    for batch in take(stream, 9):
        for i, name in zip(batch["labeled"]["index"].tolist(), batch["labeled"]["name"], strict=True):
            assert Path(stream.labeled.entries[i]["image"]).name == f"{name}.nii.gz"


@pytest.mark.parametrize(("n_unlabeled", "size"), [(0, 2), (5, 0), (0, 0)])
def test_without_unlabeled_images(n_unlabeled, size):
    stream = loader(n_unlabeled=n_unlabeled, unlabeled_batch_size=size)
    assert stream.n_unlabeled == 0
    assert all(set(batch) == {"labeled"} for batch in take(stream, 3))
    # the labeled stream is the same as with them
    expected = [{"labeled": b["labeled"]} for b in take(loader(), 3)]
    assert_same(expected, take(stream, 3))


def test_none_for_the_unlabeled_dataset():
    assert set(take(TwoStreamLoader(cases(2), None, []), 1)[0]) == {"labeled"}


def test_one_labeled_case_and_batches_larger_than_the_data():
    batch = take(loader(n_labeled=1, n_unlabeled=2, labeled_batch_size=3, unlabeled_batch_size=5), 1)[0]
    assert batch["labeled"]["image"].shape[0] == 3
    assert batch["labeled"]["name"] == ["case_0"] * 3
    assert batch["unlabeled"]["image"].shape[0] == 5


def test_more_labeled_than_unlabeled():
    batch = take(loader(n_labeled=6, n_unlabeled=1, labeled_batch_size=4, unlabeled_batch_size=1), 1)[0]
    assert (batch["labeled"]["image"].shape[0], batch["unlabeled"]["image"].shape[0]) == (4, 1)


# ------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("flavor", ["literature", "practical"])
def test_the_cache_is_never_changed(flavor, dims):
    preset = tiny_preset(dims, flavor)
    sides = (20, 19, 18)[:dims]
    entries = [{"image": f"case_{i}.nii.gz", "label": "x"} for i in range(3)]
    labeled = CaseDataset(entries, Compose([Synthetic(sides)]), num_workers=1)
    unlabeled = CaseDataset([{"image": f"case_{i}.nii.gz"} for i in range(5, 8)], Compose([Synthetic(sides)]), 1)
    stream = TwoStreamLoader(
        labeled,
        unlabeled,
        [*random_transforms(preset), SignedDistanceMapd("label")],
        random_transforms(preset, label=False),
    )
    stream.prepare()
    before = [{k: v.clone() for k, v in item.items()} for item in [*map(dict, labeled), *map(dict, unlabeled)]]
    for batch in take(stream, 60):
        for part in batch.values():
            for value in part.values():
                if isinstance(value, torch.Tensor):
                    value.fill_(-5)  # whatever a method does to its batch
    after = [*map(dict, labeled), *map(dict, unlabeled)]
    for a, b in zip(before, after, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key


def test_every_case_is_loaded_once_and_not_before_it_is_needed():
    Synthetic.loads = 0
    stream = loader(n_labeled=3, n_unlabeled=5)
    assert Synthetic.loads == 0
    take(stream, 10)
    take(stream, 10, start=5)
    stream.prepare()
    assert Synthetic.loads == 8


def test_unused_unlabeled_cases_are_not_loaded():
    Synthetic.loads = 0
    take(loader(n_labeled=3, n_unlabeled=5, unlabeled_batch_size=0), 2)
    assert Synthetic.loads == 3


# ------------------------------------------------------------------------------------------------- files


def tiny_preset(dims, flavor, **more):
    return load_preset(
        "phantom",
        flavor,
        spatial_dims=dims,
        patch_size=[16] * dims,
        window={"stride": [8] * dims},
        augmentation={"flip_axes": [0]} if flavor == "practical" else {},
        **more,
    )


def write(path, sides, spacing=1.0, codes="RAS", seed=0):
    """NIfTI with the given axis directions; a 2D image where there are two sides."""
    array = np.random.RandomState(seed).rand(*sides).astype(np.float32)
    codes = (codes + "S")[:3]
    spacing = np.broadcast_to(spacing, 3)
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), (*sides, 1)[:3])
    affine = affine @ np.diag([*spacing, 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return array


def dataset(root, n=2, n_unlabeled=2, sides=(20, 18, 17), labels_of_unlabeled="none", **geometry):
    entries = {"training": [], "unlabeled": []}
    for i in range(n + n_unlabeled):
        section = "training" if i < n else "unlabeled"
        array = write(root / "images" / f"c{i}.nii.gz", sides, seed=i, **geometry)
        entry = {"image": f"images/c{i}.nii.gz"}
        label = root / "labels" / f"c{i}.nii.gz"
        if section == "training" or labels_of_unlabeled == "valid":
            write(label, sides, seed=i, **geometry)
            image = nib.load(label)
            nib.save(nib.Nifti1Image((array > 0.5).astype(np.uint8), image.affine), label)
        elif labels_of_unlabeled == "corrupt":
            label.write_bytes(b"this is no image")
        if section == "training" or labels_of_unlabeled != "none":
            entry["label"] = f"labels/c{i}.nii.gz"
        entries[section].append(entry)
    (root / "datalist.json").write_text(json.dumps(entries))
    return load_datalist("datalist.json", root)


def from_files(listed, preset, **options):
    return TwoStreamLoader(
        CaseDataset(listed.training, training_preprocessing(preset), num_workers=1),
        CaseDataset(listed.unlabeled, training_preprocessing(preset, label=False), num_workers=1),
        random_transforms(preset),
        random_transforms(preset, label=False),
        **options,
    )


@pytest.mark.parametrize("flavor", ["literature", "practical"])
@pytest.mark.parametrize(
    ("sides", "geometry"),
    [
        ((20, 18, 17), {}),
        ((7, 9, 11), {}),  # smaller than the patch in every direction
        ((40, 5, 16), {"spacing": (0.5, 3.0, 1.0)}),
        ((18, 20, 22), {"codes": "LPS"}),
        ((18, 24, 21), {"codes": "SAL", "spacing": (2.0, 0.7, 1.1)}),
        ((20, 18), {}),
        ((9, 30), {"codes": "LP"}),
    ],
)
def test_patches_of_any_image(tmp_path, flavor, sides, geometry):
    preset = tiny_preset(len(sides), flavor)
    stream = from_files(dataset(tmp_path, sides=sides, **geometry), preset)
    for batch in take(stream, 4):
        assert batch["labeled"]["image"].shape == batch["unlabeled"]["image"].shape == (2, 1, *preset.patch_size)
        assert batch["labeled"]["label"].shape == (2, 1, *preset.patch_size)
        assert torch.isfinite(batch["labeled"]["image"]).all()
        assert set(batch["labeled"]["label"].unique().tolist()) <= {0, 1}
        assert batch["labeled"]["label"].any()
        assert type(batch["labeled"]["image"]) is torch.Tensor


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
def test_image_and_label_reach_the_same_orientation(tmp_path, codes):
    # one bright, labeled corner of the scanner's space: right, anterior, superior
    ras = np.zeros((20, 18, 17), np.float32)
    ras[-6:, -5:, -4:] = 1
    stored = nib.Nifti1Image(ras, np.eye(4))
    turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(tuple(codes)))
    stored = stored.as_reoriented(turn)
    assert nib.aff2axcodes(stored.affine) == tuple(codes)
    nib.save(stored, tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj).astype(np.uint8), stored.affine), tmp_path / "label.nii.gz")
    preset = load_preset("phantom", "literature", augmentation={"policy": "none"}, patch_size=[16, 16, 16])
    entry = {"image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    item = CaseDataset([entry], training_preprocessing(preset), num_workers=1)[0]
    np.testing.assert_array_equal(item["image"][0], ras)
    np.testing.assert_array_equal(item["label"][0], ras)


@pytest.fixture
def opened():
    """Paths of the files that are opened while the test runs."""
    paths, active = [], [True]

    def hook(event, arguments):
        if event == "open" and active[0] and isinstance(arguments[0], (str, Path)):
            paths.append(str(arguments[0]))

    sys.addaudithook(hook)
    yield paths
    active[0] = False


@pytest.mark.filterwarnings("ignore:.*label")  # the datalist says that it drops them
@pytest.mark.parametrize("state", ["valid", "corrupt", "deleted"])
def test_no_label_of_an_unlabeled_case_is_ever_opened(tmp_path, opened, state):
    listed = dataset(tmp_path, labels_of_unlabeled="corrupt" if state == "corrupt" else "valid")
    labels = {str(tmp_path / "labels" / f"c{i}.nii.gz") for i in (2, 3)}
    if state == "deleted":
        for path in labels:
            Path(path).unlink()
    opened.clear()
    stream = from_files(load_datalist("datalist.json", tmp_path), tiny_preset(3, "practical"))
    batches = take(stream, 3)
    assert all(set(b["unlabeled"]) == {"image", "index", "name"} for b in batches)
    assert not labels & set(opened)
    # the hook sees what is opened: the labels of the labeled cases are
    assert {str(tmp_path / "labels" / f"c{i}.nii.gz") for i in (0, 1)} <= set(opened)
    assert listed.counts()["unlabeled"] == 2


def test_an_unreadable_image_is_named(tmp_path):
    listed = dataset(tmp_path)
    (tmp_path / "images" / "c3.nii.gz").write_bytes(b"this is no image")
    stream = from_files(listed, tiny_preset(3, "practical"))
    with pytest.raises(DataError, match=r"case c3: cannot be loaded .*monai-ssl check"):
        stream.prepare()


# ------------------------------------------------------------------------------------------------- options


def test_no_labeled_case():
    with pytest.raises(DataError, match=r"training: there is no labeled case"):
        iter(TwoStreamLoader(cases(0), cases(2, False), []))


@pytest.mark.parametrize(
    ("option", "value", "low"),
    [
        ("labeled_batch_size", 0, 1),
        ("unlabeled_batch_size", -1, 0),
        ("epoch_length", 0, 1),
        ("num_workers", -2, 0),
        ("labeled_batch_size", 1.5, 1),
    ],
)
def test_rejects(option, value, low):
    with pytest.raises(ValueError, match=f"{option} must be an integer >= {low}, got {value}"):
        loader(**{option: value})


def test_length_is_that_of_an_epoch():
    assert len(loader(epoch_length=17)) == 17

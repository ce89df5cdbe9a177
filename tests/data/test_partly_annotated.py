"""Scans of which some slices, or some classes, were annotated: what a datalist says of them, to the score."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

import monai_ssl
from monai_ssl.curation.verify import verify
from monai_ssl.data import CaseDataset, DataError, load_datalist, load_preset, validation_preprocessing
from monai_ssl.data.content import case_keys
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.partial import Annotated
from monai_ssl.data.pipelines import random_transforms, training_preprocessing
from monai_ssl.data.preset import dump_preset
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.reports.dataset import case_statistics
from monai_ssl.runs.identity import digests

AFFINE = np.diag([-1.5, 1.0, 2.0, 1.0])  # not RAS: slices are counted as stored


def preset_of(**more):
    labels = {0: "background", 1: "a", 2: "b", 3: "c"}
    return load_preset({"name": "mine", "labels": labels, "patch_size": [16, 16, 16], **more})


def whole_label(shape=(20, 22, 24)):
    label = np.zeros(shape, np.uint8)
    label[4:12, 5:15, 6:18] = 1
    label[13:16, 5:15, 6:18] = 3
    return label


def write(folder, label, name="a", **keys):
    values = np.random.RandomState(sum(map(ord, name))).rand(*label.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(label, AFFINE), folder / f"{name}_seg.nii.gz")
    return {"image": str(folder / f"{name}.nii.gz"), "label": str(folder / f"{name}_seg.nii.gz"), **keys}


def trained(entry, preset):
    """The label as training has it, in the order of the file."""
    label = CaseDataset([entry], training_preprocessing(preset))[0]["label"].numpy()[0]
    return label[::-1]  # to RAS and back


def problems_of(entry, preset, *others):
    return verify(Datalist(training=[entry, *others]), preset, ["training"], progress=False)


SPARSE = whole_label()
SPARSE[..., [k for k in range(24) if k not in (7, 10, 13)]] = 0


@pytest.mark.parametrize("slices", ["drawn", [7, 10, 13], [2, 7, 10, 13, 22]])
def test_slices_that_nobody_annotated_are_ignored(tmp_path, slices):
    entry, preset = write(tmp_path, SPARSE, slices=slices), preset_of()
    assert problems_of(entry, preset) == [p for p in problems_of(entry, preset) if p.rule == "absent_class"]
    known = [7, 10, 13] if slices == "drawn" else slices
    for label in (trained(entry, preset), np.asarray(validation_preprocessing(preset)(dict(entry))["label"])[0]):
        for k in range(24):
            assert (
                np.array_equal(label[..., k], SPARSE[..., k]) if k in known else (label[..., k] == IGNORE_LABEL).all()
            )


def one_slice(k=10, shape=(14, 22, 40)):
    label = np.zeros(shape, np.uint8)
    label[4:9, 5:15, k] = 1
    return label


@pytest.mark.parametrize("policy", ["none", "practical", "literature"])
@pytest.mark.parametrize("dims", [2, 3])
def test_beyond_a_scan_nobody_knows_more_than_in_it(tmp_path, policy, dims):
    """A patch of nothing but ignored voxels is drawn again, whatever was padded to it."""
    preset = preset_of(spatial_dims=dims, patch_size=[16] * dims, augmentation={"policy": policy})
    entry = write(tmp_path, one_slice(), slices=[10])
    chain = Compose(random_transforms(preset)).set_random_state(0)
    item = CaseDataset([entry], training_preprocessing(preset))[0]
    for _ in range(20):
        label = chain(dict(item))["label"]
        assert (label == 1).any() or (label == 0).any()
        assert int((label == 0).sum()) <= 14 * 22  # one slice of the scan, and no padding
    whole = CaseDataset([write(tmp_path, one_slice(), "b")], training_preprocessing(preset))[0]
    assert set(np.unique(chain(dict(whole))["label"])) <= {0, 1}  # background, as it always was


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"spacing": [1.5, 1.0, 10.0]}, True),
        ({"spacing": [1.5, 1.0, 2.0]}, False),
        ({"center_crop": [14, 22, 8]}, True),
    ],
)
def test_slices_that_a_coarser_grid_loses(tmp_path, more, error):
    entry = write(tmp_path, one_slice(12), slices=[12])
    preset = preset_of(**more)
    told = [str(p) for p in problems_of(entry, preset, write(tmp_path, whole_label(), "b")) if "on the grid" in str(p)]
    assert bool(told) == error
    if error:
        assert "a_seg.nii.gz: label must keep annotated voxels on the grid of the preset (" in told[0]
        with pytest.raises(DataError, match=r"a_seg\.nii\.gz: label must keep annotated voxels on the grid"):
            trained(entry, preset)
    else:
        assert (trained(entry, preset) != IGNORE_LABEL).any()


def test_a_coarser_grid_that_loses_most_slices_is_told(tmp_path):
    label = one_slice(12)
    listed = [8, *range(9, 16), *range(17, 24), *range(25, 32)]  # of which one is kept: 8
    (problem,) = [
        problem
        for problem in problems_of(write(tmp_path, label, slices=listed), preset_of(spacing=[1.5, 1.0, 16.0]))
        if problem.rule == "unknown_grid"
    ]
    assert problem.severity == "warning"
    assert "keeps 17 % of its voxels known on the grid of the preset, 55 % as stored" in problem.message


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_any_axis(tmp_path, axis):
    label = np.moveaxis(SPARSE, 2, axis)
    entry = write(tmp_path, label, slices="drawn", slice_axis=axis)
    marked = np.moveaxis(trained(entry, preset_of()), axis, 2)
    assert (marked[..., 8] == IGNORE_LABEL).all()
    np.testing.assert_array_equal(marked[..., 7], SPARSE[..., 7])
    # the check proposes the very keys
    del entry["slices"], entry["slice_axis"]
    (sparse,) = (p for p in problems_of(entry, preset_of()) if p.rule == "sparse_slices")
    assert f"single slices (7, 10, 13 along axis {axis}) and empty between them" in sparse.message
    assert sparse.severity == "warning"
    assert ('"slice_axis"' in sparse.message) == (axis != 2)
    assert not any(p.rule == "sparse_slices" for p in problems_of(write(tmp_path, whole_label()), preset_of()))


def test_background_of_a_scan_with_some_classes_is_ignored(tmp_path):
    preset, label = preset_of(), whole_label()
    entry = write(tmp_path, label, classes=[3, 1])
    full = write(tmp_path, label, "full")
    assert not [p for p in problems_of(entry, preset, full) if p.severity == "error"]
    np.testing.assert_array_equal(trained(entry, preset), np.where(label == 0, IGNORE_LABEL, label))
    # of what was drawn, scores know where it is not
    validated = validation_preprocessing(preset)(dict(entry))["label"]
    np.testing.assert_array_equal(np.asarray(validated)[0], label)
    assert validated.meta["annotated_classes"] == "1,3"
    every = write(tmp_path, label, "every", classes=[1, 2, 3])
    np.testing.assert_array_equal(trained(every, preset), label)
    # alone it would teach to draw everywhere
    (error,) = (p for p in problems_of(entry, preset) if p.severity == "error")
    assert "class 0 (background) is known in no training label" in error.message


def test_both_at_once(tmp_path):
    entry = write(tmp_path, SPARSE, classes=[1, 3], slices="drawn")
    expected = np.where(SPARSE == 0, IGNORE_LABEL, SPARSE)
    np.testing.assert_array_equal(trained(entry, preset_of()), expected)
    validated = np.asarray(validation_preprocessing(preset_of())(dict(entry))["label"])[0]
    np.testing.assert_array_equal(validated[..., 7], SPARSE[..., 7])
    assert (validated[..., 8] == IGNORE_LABEL).all()


@pytest.mark.parametrize(
    ("keys", "label", "message"),
    [
        ({"classes": [1]}, whole_label(), "label must hold the classes [1] of its entry only, got 3"),
        ({"classes": [1, 3, 4]}, whole_label(), "'classes' of its entry must be among [1, 2, 3], got 4"),
        ({"slices": [7, 10, 24]}, SPARSE, "'slices' of its entry must be 0 to 23 along axis 2, got 24"),
        ({"slices": [8, 11, 14]}, SPARSE, "outside of the 'slices' of its entry, got foreground in 7, 10, 13 (counted"),
        ({"slices": "drawn"}, SPARSE * 0, "label must know the class of some voxel, got none in what its entry calls"),
        ({"classes": [2]}, SPARSE * 0, "label must know the class of some voxel, got none in what its entry calls"),
    ],
)
def test_labels_that_are_not_as_their_entry_says(tmp_path, keys, label, message):
    entry, preset = write(tmp_path, label, **keys), preset_of()
    (first, *_) = (p for p in problems_of(entry, preset) if p.severity == "error")
    assert message in first.message
    assert first.file == entry["label"]
    with pytest.raises(DataError) as caught:
        CaseDataset([entry], training_preprocessing(preset))[0]
    assert f"a_seg.nii.gz: {first.message}" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": []}, r"'classes' must list the annotated classes, like \[1, 3\], got \[\]"),
        ({"classes": [0, 1]}, "'classes' must list the annotated classes"),
        ({"classes": [1, 1]}, "'classes' must list the annotated classes"),
        ({"classes": "liver"}, "'classes' must list the annotated classes"),
        ({"classes": [True]}, "'classes' must list the annotated classes"),
        ({"slices": "all"}, "'slices' must list the annotated slices, counted from 0, like .* or be 'drawn'"),
        ({"slices": [-1]}, "'slices' must list the annotated slices"),
        ({"slices": [1.0]}, "'slices' must list the annotated slices"),
        ({"slices": {"axis": 1}}, "'slices' must list the annotated slices"),
        ({"slices": "drawn", "slice_axis": 3}, "'slice_axis' must be 0, 1 or 2, got 3"),
        ({"slices": "drawn", "slice_axis": "z"}, "'slice_axis' must be 0, 1 or 2"),
        ({"slice_axis": 1}, "'slice_axis' goes with 'slices'"),
        ({"slice": [1]}, "may hold 'image', 'label' and 'patient' only, got slice: did you mean 'slices'"),
        ({"label": None, "classes": [1]}, "'label'"),
    ],
)
def test_datalists_that_are_refused(tmp_path, keys, message):
    entry = {"image": "a.nii.gz", "label": "b.nii.gz", **keys}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(DataError, match=message):
        load_datalist("list.json", tmp_path)


def test_what_a_datalist_says_is_kept_and_counts(tmp_path):
    entry = write(tmp_path, SPARSE, slices="drawn")
    content = {"training": [entry, {**write(tmp_path, whole_label(), "b"), "classes": None}],
               "testing": [{"image": write(tmp_path, SPARSE, "c")["image"]}],
               "unlabeled": [write(tmp_path, SPARSE, "d", classes=[1])]}  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="1 entries with a label"):
        cases = load_datalist("list.json", tmp_path)
    assert cases.training[0] == entry
    assert set(cases.training[1]) == {"image", "label"}
    assert set(cases.unlabeled[0]) == {"image"}
    content["testing"][0]["classes"] = [1]
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="classes must go with a 'label'"):
        load_datalist("list.json", tmp_path)
    # another reading of the same files is another preparation, and another run
    plain = {key: entry[key] for key in ("image", "label")}
    assert len({*case_keys([entry, plain, {**plain, "slices": [7, 10, 13]}], "x")}) == 3
    found, _ = digests({"one": [entry], "other": [plain]})
    assert found["one"] != found["other"]
    assert found["other"] == digests({"other": [plain]})[0]["other"]


def test_pictures_have_no_slices(tmp_path):
    problems = Annotated(slices="drawn").findings(np.ones((1, 8, 8), int), preset_of())
    assert problems[0].message == "'slices' of its entry are for volumes, got an image of 2 axes: remove them"


def test_the_page_of_a_data_set_knows_them(tmp_path):
    found = case_statistics("training", "a", write(tmp_path, SPARSE, slices="drawn"), True, preset_of())
    assert found.ignored == 21 * 20 * 22
    assert set(found.voxels) == {0, 1, 3}
    found = case_statistics("training", "b", write(tmp_path, whole_label(), "b", classes=[1, 3]), True, preset_of())
    assert set(found.voxels) == {1, 3}
    assert found.classes == (1, 3)
    assert found.empty_slices == 0


def test_from_the_split_to_the_scores(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        write(folder, SPARSE, name)
    write(folder, SPARSE, "e")
    (folder / "e_seg.nii.gz").unlink()
    made = monai_ssl.split(folder, n_labeled=2, n_validation=1, n_testing=1, slices="drawn",
                           label_names={1: "a", 2: "b", 3: "c"})  # fmt: skip
    assert all(entry["slices"] == "drawn" for entry in made.datalist.training + made.datalist.testing)
    (folder / "mine.yaml").write_text(dump_preset(preset_of(augmentation={"policy": "none"})))
    assert monai_ssl.check(folder, dataset=folder / "mine.yaml").ok
    content = json.loads(made.path.read_text())
    content["testing"][0]["classes"] = content["validation"][0]["classes"] = [1, 3]
    made.path.write_text(json.dumps(content))
    run = monai_ssl.train("supervised", folder, dataset=folder / "mine.yaml", output=tmp_path / "run",
                          max_iterations=2, epoch_length=1, val_interval=1, num_workers=0, amp="off", device="cpu",
                          **{"network_def#base_channels": 2})  # fmt: skip
    scores = [line.split(",")[1] for line in (run.folder / "validation.csv").read_text().split()[1:]]
    assert len(scores) == 2
    found = monai_ssl.evaluate(run)
    assert [row["label"] for row in found.results.rows] == [1, 3]
    (prediction,) = (found.folder / "predictions").rglob("*_seg.nii.gz")
    drawn = np.asarray(nib.load(prediction).dataobj)[..., [7, 10, 13]]
    for row in found.results.rows:
        truth = SPARSE[..., [7, 10, 13]] == row["label"]
        mask = drawn == row["label"]
        assert row["dice"] == pytest.approx(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
    again = monai_ssl.evaluate(predictions=found.folder / "predictions", dataset_dir=folder,
                               dataset=folder / "mine.yaml", output=tmp_path / "again")  # fmt: skip
    assert again.results.rows == found.results.rows
    with pytest.raises(DataError, match="slices must be 'drawn', got 'all'"):
        monai_ssl.split(folder, slices="all", overwrite=True)

"""Voxels whose class nobody knows, from the file to the score: ``ignore_label`` of a preset."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from commands import fails, run
from monai.handlers import MeanDice
from monai.transforms import Compose

import monai_ssl
from monai_ssl.curation.verify import verify
from monai_ssl.data import CaseDataset, DataError, load_preset, validation_preprocessing
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.pipelines import random_transforms, training_preprocessing
from monai_ssl.data.preset import dump_preset
from monai_ssl.data.reading import read_label
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.metrics import case_metrics, known_voxels
from monai_ssl.transforms import RandSliceSelectd, UntilKnown

AFFINE = np.diag([1.5, 1.0, 2.0, 1.0])


def preset_of(ignore_label=255, dims=3, policy="none", **more):
    return load_preset({"name": "mine", "spatial_dims": dims, "labels": {0: "background", 1: "organ"},
                        "patch_size": [16] * dims, "ignore_label": ignore_label,
                        "augmentation": {"policy": policy, **more.pop("augmentation", {})}, **more})  # fmt: skip


def write(folder, label, name="a"):
    """A case whose image shows noise."""
    image, file = folder / f"{name}.nii.gz", folder / f"{name}_seg.nii.gz"
    values = np.random.RandomState(sum(map(ord, name))).rand(*label.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), image)
    nib.save(nib.Nifti1Image(label, AFFINE), file)
    return {"image": str(image), "label": str(file)}


def half_known(value=255, shape=(24, 20, 18), dtype=np.int16):
    """A cube in a scan of which only the first half along the last axis is annotated."""
    label = np.zeros(shape, dtype)
    label[6:14, 5:13, 3:8] = 1
    label[..., shape[-1] // 2 :] = value
    return label


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("stored", "label_map", "ignored", "expected"),
    [
        (np.array([0, 1, 255], np.uint8), {}, 255, [0, 1, 255]),
        (np.array([0, 1, 3], np.uint8), {}, 3, [0, 1, 255]),
        (np.array([0, 1, -1], np.int8), {}, -1, [0, 1, 255]),
        (np.array([0, 1, 127], np.int8), {}, 127, [0, 1, 255]),
        (np.array([0, 1, -100], np.int16), {}, -100, [0, 1, 255]),
        (np.array([0, 1, 70000], np.int32), {}, 70000, [0, 1, 255]),
        (np.array([0, 1, 255], np.float32), {}, 255, [0, 1, 255]),
        (np.array([0, 0.9999999, 2], np.float64), {}, 2, [0, 1, 255]),
        (np.array([0, 255, 128], np.uint8), {255: 1}, 128, [0, 1, 255]),
        (np.array([0, 1, 2], np.uint8), {1: 0, 2: 1}, 0, [255, 0, 1]),
        (np.array([0, 1, 7], np.uint8), {1: 7, 7: 1}, 0, [255, 7, 1]),
        (np.array([0, 1, 255], np.uint8), {}, None, [0, 1, 255]),
    ],
)
def test_the_value_in_the_file_becomes_one_value_inside(tmp_path, stored, label_map, ignored, expected):
    nib.save(nib.Nifti1Image(stored.reshape(3, 1, 1), AFFINE, dtype=stored.dtype), tmp_path / "a.nii.gz")
    voxels, _ = read_label(tmp_path / "a.nii.gz", label_map, ignored)
    assert voxels.ravel().tolist() == expected


def test_the_value_that_stands_for_ignored_voxels_inside_is_none_of_the_files_by_accident(tmp_path):
    entry = write(tmp_path, half_known(255))
    with pytest.raises(DataError, match="ignore_label 3, got 255, which stands for ignored voxels inside"):
        read_label(entry["label"], None, 3)
    preset = preset_of(3)
    assert "ignore_label 3, got 255" in errors(entry, preset)[0]
    with pytest.raises(DataError, match=r"a_seg\.nii\.gz: label values must be classes or .* ignore_label 3, got 255"):
        CaseDataset([entry], training_preprocessing(preset))[0]
    assert read_label(entry["label"], {255: 1}, 3)[0].max() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ignore_label": 1}, r"ignore_label must be no class, got 1 \(organ\)"),
        ({"ignore_label": 0}, r"ignore_label must be no class, got 0 \(background\)"),
        ({"ignore_label": 7, "label_map": {7: 1}}, "ignore_label must be a value that label_map does not name, got 7"),
        ({"ignore_label": 2.5}, "valid integer"),
        ({"ignore_label": "all"}, "valid integer"),
        ({"ignore_label": 2**40}, "less than or equal"),
        ({"labels": {i: f"c{i}" for i in range(256)}}, "labels must be at most 255 classes, got 256"),
    ],
)
def test_a_preset_that_contradicts_itself(content, message):
    base = {"name": "x", "labels": {0: "background", 1: "organ"}, "patch_size": [16, 16, 16]}
    with pytest.raises(DataError, match=message):
        load_preset({**base, **content})


def test_zero_may_be_ignored_where_files_hold_the_background_as_another_value():
    preset = preset_of(0, label_map={2: 0})
    assert load_preset(yaml.safe_load(dump_preset(preset))) == preset


# --------------------------------------------------------------------------------------------------------------- check


def errors(entry, preset, **options):
    found = verify(Datalist(training=[entry]), preset, sections=["training"], progress=False, **options)
    return [problem.message for problem in found if problem.severity == "error"]


def test_the_check_counts_what_is_ignored(tmp_path):
    entry, ignored = write(tmp_path, half_known()), {}
    assert errors(entry, preset_of(), ignored=ignored) == []
    assert ignored == {entry["image"]: (24 * 20 * 9, 24 * 20 * 18)}


def test_without_the_key_the_value_is_an_error_that_proposes_it(tmp_path):
    entry = write(tmp_path, half_known())
    (message,) = errors(entry, preset_of(None))
    assert "must be among the preset's classes [0, 1], got 255" in message
    assert "if nobody knows the class of these voxels, ignore_label: 255" in message
    with pytest.raises(DataError, match="ignore_label: 255"):
        CaseDataset([entry], training_preprocessing(preset_of(None)))[0]


def test_labels_of_which_little_is_known(tmp_path):
    label = np.full((24, 20, 18), 255, np.uint8)
    (message,) = errors(write(tmp_path, label, "all"), preset_of())
    assert message.startswith("label must know the class of some voxel, got ignore_label 255 in every one")
    with pytest.raises(DataError, match="label must know the class of some voxel"):
        CaseDataset([write(tmp_path, label, "all")], training_preprocessing(preset_of()))[0]
    label[:, :, 4], label[3:9, 3:9, 4] = 0, 1
    problems = verify(Datalist(training=[write(tmp_path, label, "most")]), preset_of(), ["training"], progress=False)
    (most,) = (problem for problem in problems if problem.rule == "most_ignored")
    assert most.severity == "warning"
    assert most.message == "94.4 % of the voxels are ignored: is ignore_label 255 the right value?"


def test_a_background_that_nobody_knows_is_an_error(tmp_path):
    label = half_known()
    label[label == 0] = 255
    (message,) = errors(write(tmp_path, label), preset_of())
    assert message.startswith("class 0 (background) is known in no training label")
    # one scan that knows it is enough
    cases = Datalist(training=[write(tmp_path, label), write(tmp_path, half_known(), "bb")])
    assert not [p for p in verify(cases, preset_of(), ["training"], progress=False) if p.severity == "error"]


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("policy", ["none", "practical", "literature"])
@pytest.mark.parametrize(
    ("dims", "more"),
    [
        (3, {}),
        (3, {"spacing": [1.0, 1.3, 1.7]}),
        (3, {"center_crop": [24.0, None, 30.0], "patch_size": [32, 32, 32]}),
        (2, {}),
        (2, {"resize": [20, 20]}),
        (2, {"spacing": [1.0, 1.0], "patch_size": [32, 32]}),
    ],
)
def test_no_transform_mixes_ignored_voxels_with_others(tmp_path, policy, dims, more):
    label = half_known()
    label[:3] = 255
    entry = write(tmp_path, label)
    turns = {"augmentation": {"rotation_degrees": 30.0, "affine_probability": 1.0, "flip_axes": [0]}}
    preset = preset_of(dims=dims, policy=policy, **more, **(turns if policy == "practical" else {}))
    item = CaseDataset([entry], training_preprocessing(preset))[0]
    assert item["label"].dtype == torch.uint8
    assert set(item["label"].unique().tolist()) == {0, 1, 255}
    found = set()
    draw = Compose(random_transforms(preset))
    for seed in range(30):
        patch = draw.set_random_state(seed)(dict(item))
        values = set(patch["label"].unique().tolist())
        assert values <= {0, 1, 255}
        assert values != {255}
        found |= values
    assert 255 in found
    stored = validation_preprocessing(preset)(dict(entry))["label"]
    np.testing.assert_array_equal(np.asarray(stored)[0], label)


def test_places_where_nothing_is_known_are_drawn_again():
    label = torch.full((1, 4, 4, 40), IGNORE_LABEL, dtype=torch.uint8)
    label[..., [3, 17]] = 0
    item = {"label": label, "image": torch.arange(40.0).expand(1, 4, 4, 40)}
    draw = UntilKnown(RandSliceSelectd(["image", "label"]), 500).set_random_state(1)
    assert {int(draw(item)["image"][0, 0, 0]) for _ in range(40)} == {3, 17}
    nothing = {"label": torch.full_like(label, IGNORE_LABEL), "image": item["image"]}
    assert UntilKnown(RandSliceSelectd(["image", "label"]), 3)(nothing)["label"].shape == (1, 4, 4)
    with pytest.raises(ValueError, match="tries must be >= 1, got 0"):
        UntilKnown(RandSliceSelectd("label"), 0)


def test_where_all_is_known_the_first_draw_stands():
    item = {"label": torch.zeros(1, 4, 4, 40), "image": torch.arange(40.0).expand(1, 4, 4, 40)}
    plain, wrapped = RandSliceSelectd(["image", "label"]), UntilKnown(RandSliceSelectd(["image", "label"]))
    for seed in range(10):
        one = plain.set_random_state(seed)(dict(item))
        other = wrapped.set_random_state(seed)(dict(item))
        assert torch.equal(one["image"], other["image"])


# -------------------------------------------------------------------------------------------------------------- scores


def plain_dice(prediction, reference, known):
    p, r = (prediction == 1)[known], (reference == 1)[known]
    return 2.0 * (p & r).sum() / (p.sum() + r.sum())


def test_scores_are_those_of_the_known_voxels():
    random = np.random.RandomState(0)
    reference, prediction = random.randint(0, 2, (12, 11, 10)), random.randint(0, 2, (12, 11, 10))
    known = random.rand(12, 11, 10) < 0.6
    label = np.where(known, reference, IGNORE_LABEL)
    (row,) = case_metrics(prediction, label, {1: "organ"}, 1.0)
    assert row["dice"] == pytest.approx(plain_dice(prediction, reference, known))
    both = (prediction[known] == 1) & (reference[known] == 1)
    either = (prediction[known] == 1) | (reference[known] == 1)
    assert row["jaccard"] == pytest.approx(both.sum() / either.sum())
    assert row["volume_ml_reference"] == pytest.approx(((reference == 1) & known).sum() / 1000)
    # whatever the network says where nobody knows
    (other,) = case_metrics(np.where(known, prediction, 1 - prediction), label, {1: "organ"}, 1.0)
    assert other == row
    # nobody ignores what is a class
    (mask,) = case_metrics(np.where(prediction, 255, 0), np.where(reference, 255, 0), {255: "organ"}, 1.0)
    assert mask["dice"] == pytest.approx(plain_dice(prediction, reference, np.ones_like(known)))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_validation_scores_what_evaluation_scores(kind):
    random = np.random.RandomState(1)
    items, expected = [], []
    for _ in range(3):
        reference, prediction = random.randint(0, 3, (6, 7, 8)), random.randint(0, 3, (6, 7, 8))
        reference[random.rand(6, 7, 8) < 0.4] = IGNORE_LABEL
        items.append({"pred": torch.as_tensor(prediction)[None], "label": torch.as_tensor(reference)[None]})
        rows = case_metrics(kind(prediction), kind(reference), {1: "a", 2: "b"}, 1.0)
        expected += [row["dice"] for row in rows]
    metric = MeanDice(include_background=False, num_classes=3, save_details=False)
    metric.update(known_voxels(items))
    assert float(metric.compute()) == pytest.approx(np.mean(expected), abs=1e-6)
    untouched = {"pred": items[0]["pred"], "label": torch.zeros(1, 6, 7, 8)}
    assert known_voxels([untouched])[1][0] is untouched["label"]


# -------------------------------------------------------------------------------------------------------- all commands


@pytest.fixture(scope="module")
def partly(tiny_phantom, tmp_path_factory):
    """The phantom with the upper half of every label ignored, as the value 7."""
    folder = tmp_path_factory.mktemp("partly") / "scans"
    shutil.copytree(tiny_phantom, folder)
    for file in (folder / "labels").glob("*.nii.gz"):
        image = nib.load(file)
        label = np.asarray(image.dataobj).astype(np.uint8)
        label[..., label.shape[-1] // 2 :] = 7
        nib.save(nib.Nifti1Image(label, image.affine), file)
    content = yaml.safe_load(dump_preset(load_preset("phantom", ignore_label=7)))
    (folder / "preset.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def run_of(partly, tmp_path_factory):
    return monai_ssl.train("dtc", partly, dataset=partly / "preset.yaml", output=tmp_path_factory.mktemp("r") / "run",
                           max_iterations=2, epoch_length=1, val_interval=1, num_workers=0, amp="off", device="cpu",
                           **{"network_def#base_channels": 2})  # fmt: skip


def test_from_the_check_to_the_scores(partly, run_of, tmp_path, capsys):
    assert run("check", partly, "--dataset", partly / "preset.yaml") == 0
    assert "ignored: " in (text := capsys.readouterr().out)
    assert "voxels of 5 labels, 55 % of theirs" in text
    assert "label values must be among" in fails_check(partly, capsys)
    assert run_of.complete
    assert (run_of.folder / "validation.csv").read_text().count("\n") == 3
    found = monai_ssl.evaluate(run_of)
    predicted = sorted((found.folder / "predictions").rglob("*_seg.nii.gz"))
    assert len(predicted) == 2
    for file in predicted:  # whole: only the scores know of ignored voxels
        assert set(np.unique(np.asarray(nib.load(file).dataobj)).tolist()) <= {0, 1}
    again = monai_ssl.evaluate(predictions=found.folder / "predictions", dataset_dir=partly,
                               dataset=partly / "preset.yaml", output=tmp_path / "again")  # fmt: skip
    assert again.results.rows == found.results.rows
    for row, file in zip(found.results.rows, predicted, strict=True):
        label = np.asarray(nib.load(partly / "labels" / f"{row['case']}.nii.gz").dataobj)
        prediction = np.asarray(nib.load(file).dataobj)
        known = label != 7
        if ((prediction == 1) & known).any():
            assert row["dice"] == pytest.approx(plain_dice(prediction, label, known))
        assert row["volume_ml_reference"] == pytest.approx((label == 1).sum() * 0.125)
    assert found.page.is_file()


def fails_check(folder, capsys):
    capsys.readouterr()
    assert run("check", folder, "--dataset", "phantom") == 1
    return capsys.readouterr().out


def test_scoring_files_refuses_a_value_without_a_meaning(partly, run_of, tmp_path, capsys):
    found = monai_ssl.evaluate(run_of, output=tmp_path / "e")
    error = fails(capsys, "evaluate", "--predictions", found.folder / "predictions", "--dataset_dir", partly,
                  "--dataset", "phantom")  # fmt: skip
    assert "label values must be among the preset's classes [0, 1], got 7" in error
    assert "ignore_label: 7" in error


def test_the_page_of_a_data_set_counts_and_shows_them(partly, tmp_path):
    from monai_ssl.reports.dataset import case_statistics

    page = monai_ssl.describe(partly, output=tmp_path / "page.html").read_text()  # takes the preset beside it
    assert "In 5 of 5 labels, voxels are ignored because nobody knows their class" in page
    assert "hold values without a name" not in page
    assert "Ignored %" in page
    entry = monai_ssl.check(partly, dataset=partly / "preset.yaml").datalist.training[0]
    found = case_statistics("training", "a", entry, True, load_preset(partly / "preset.yaml"))
    assert set(found.voxels) == {0, 1}
    assert found.ignored + sum(found.voxels.values()) == np.prod(found.shape)
    plain = monai_ssl.describe(partly, output=tmp_path / "plain.html", dataset="phantom").read_text()
    assert "Labels hold values without a name: 7." in plain


# --------------------------------------------------------------------------------------------------------------- split


def folder_of_nnunet(root, **labels):
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for number in range(4):
        entry = write(root, half_known(3), f"c{number}")
        shutil.move(entry["image"], root / "imagesTr" / f"c{number}_0000.nii.gz")
        shutil.move(entry["label"], root / "labelsTr" / f"c{number}.nii.gz")
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))


def test_split_knows_the_value(tmp_path, recwarn):
    folder_of_nnunet(tmp_path / "named", background=0, organ=1, ignore=3)
    made = monai_ssl.split(tmp_path / "named", n_labeled=2, n_validation=1)
    preset = load_preset(made.preset)
    assert (preset.labels, preset.ignore_label) == ({0: "background", 1: "organ"}, 3)
    assert monai_ssl.check(tmp_path / "named", dataset=made.preset).ok

    folder_of_nnunet(tmp_path / "told")
    (tmp_path / "told" / "dataset.json").unlink()
    made = monai_ssl.split(tmp_path / "told", n_labeled=2, n_validation=1, ignore_label=3)
    preset = load_preset(made.preset)
    assert (sorted(preset.labels), preset.ignore_label) == ([0, 1], 3)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="--ignore_label 3 if nobody knows the class of these voxels"):
        monai_ssl.split(tmp_path / "told", n_labeled=2, n_validation=1, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_label": "many"}, "--ignore_label: must be a whole number, got 'many'"),
        ({"ignore_label": True}, "--ignore_label: must be a whole number, got True"),
        ({"ignore_label": 7, "label_map": {7: 1}}, "--ignore_label: must be a value that label_map does not name"),
    ],
)
def test_split_refuses_what_no_preset_takes(tmp_path, options, message):
    folder_of_nnunet(tmp_path / "scans")
    with pytest.raises(DataError, match=message):
        monai_ssl.split(tmp_path / "scans", **options)

"""Splits: pairing by name, reproducible choice, patients on one side, no label opened that is not learned from."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ssl.curation.split import SplitRequest, infer_labels, make_split
from monai_ssl.data.cases import case_name, image_files
from monai_ssl.data.loading import fold_datalists, load_datalist
from monai_ssl.errors import DataError


def save(path: Path, *values: float, dtype=np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((4, 4, 4), dtype=dtype)
    array.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def folder(root: Path, labeled, unlabeled=(), image="{}", label="{}", images="images", labels="labels") -> Path:
    for name in (*labeled, *unlabeled):
        path = root / images / f"{image.format(name)}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")  # no image is opened by a split
    for name in labeled:
        save(root / labels / f"{label.format(name)}.nii.gz", 0, 1)
    return root


def names(path: Path) -> dict[str, list[str]]:
    datalist = load_datalist(path)
    return {section: sorted(case_name(entry) for entry in datalist.section(section)) for section in datalist.counts()}


CASES = [f"case_{index:02d}" for index in range(20)]


def test_counts_and_content(tmp_path):
    root = folder(tmp_path / "Ünser Ordner", CASES, ["extra 1", "extra 2"])
    path = make_split(root, n_labeled=4, n_validation=3, n_testing=2)
    assert path == root / "datalist.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {section: len(content[section]) for section in ("training", "validation", "testing", "unlabeled")} == {
        "training": 4,
        "validation": 3,
        "testing": 2,
        "unlabeled": 13,
    }
    assert content["labels"] == {"0": "background", "1": "class 1"}
    assert content["numClasses"] == 2
    assert all(set(entry) == {"image"} for entry in content["unlabeled"])
    assert content["training"][0]["image"].startswith("images/")
    found = names(path)
    assert sorted(case for cases in found.values() for case in cases) == sorted([*CASES, "extra 1", "extra 2"])
    assert {"extra 1", "extra 2"} <= set(found["unlabeled"])
    for section in ("training", "validation", "testing"):
        for entry in load_datalist(path).section(section):
            assert case_name(entry) == case_name({"image": entry["label"]})
    assert not list(root.glob(".*"))


def test_the_same_seed_gives_the_same_split_wherever_the_data_lie(tmp_path):
    first = make_split(folder(tmp_path / "a", CASES), n_labeled=4)
    second = make_split(folder(tmp_path / "b" / "c", list(reversed(CASES))), n_labeled=4)
    assert first.read_bytes() == second.read_bytes()
    third = make_split(tmp_path / "a", n_labeled=4, seed=1, output=tmp_path / "a/other.json")
    assert names(third)["training"] != names(first)["training"]


def test_the_split_is_frozen(tmp_path):
    # a published split must not change with a new version of anything
    found = names(make_split(folder(tmp_path, CASES), n_labeled=3, n_validation=2, n_testing=1, seed=0))
    order = [CASES[index] for index in (18, 1, 19, 8, 10, 17)]
    assert found["testing"] == [order[0]]
    assert found["validation"] == sorted(order[1:3])
    assert found["training"] == sorted(order[3:6])


def test_independent_of_the_order_of_the_file_system(tmp_path, monkeypatch):
    root = folder(tmp_path, CASES, ["u1", "u2"])
    first = make_split(root, n_labeled=4).read_bytes()
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((d, s, list(reversed(f))) for d, s, f in walk(*a, **k)))
    assert make_split(root, n_labeled=4, overwrite=True).read_bytes() == first


def test_more_labels_contain_fewer(tmp_path):
    root = folder(tmp_path, CASES)
    found = [
        names(make_split(root, output=tmp_path / f"{n}.json", n_labeled=n, n_validation=4, n_testing=2))
        for n in (2, 4, 8)
    ]
    assert set(found[0]["training"]) < set(found[1]["training"]) < set(found[2]["training"])
    assert found[0]["validation"] == found[2]["validation"]
    assert found[0]["testing"] == found[2]["testing"]


@pytest.mark.parametrize(
    ("n_cases", "n_labeled", "training", "validation"),
    [
        (20, None, 16, 4),
        (20, 4, 4, 4),
        (20, 18, 18, 2),
        (20, 20, 20, 0),
        (1, None, 1, 0),
        (2, None, 1, 1),
        (4, 4, 4, 0),
    ],
)
def test_default_numbers(tmp_path, n_cases, n_labeled, training, validation):
    found = names(make_split(folder(tmp_path, CASES[:n_cases]), n_labeled=n_labeled))
    assert (len(found["training"]), len(found["validation"])) == (training, validation)
    assert len(found["unlabeled"]) == n_cases - training - validation


# ------------------------------------------------------------------------------------------------------------ pairing


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}", "{}"),
        ("{}_0000", "{}"),
        ("{}_image", "{}_label"),
        ("{}_img", "{}_seg"),
        ("img_{}", "label_{}"),
        ("img{}", "lab{}"),
        ("{}", "{}_gt"),
        ("volume-{}", "segmentation-{}"),
        ("{} image", "{} mask"),
        ("Scan_{}", "Mask_{}"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_pairs_by_name(tmp_path, image, label, together):
    cases = ["01", "02", "10"]
    if together:
        if image == label or label == "{}":
            pytest.skip("names in one folder must tell labels from images")
        root = folder(tmp_path, cases, ["11"], image, label, images=".", labels=".")
        path = make_split(root, n_labeled=3)
    else:
        root = folder(tmp_path, cases, ["11"], image, label, images="imagesTr", labels="labelsTr")
        path = make_split(root, n_labeled=3)
    datalist = load_datalist(path)
    assert {(Path(entry["image"]).name, Path(entry["label"]).name) for entry in datalist.training} == {
        (f"{image.format(case)}.nii.gz", f"{label.format(case)}.nii.gz") for case in cases
    }
    assert [Path(entry["image"]).name for entry in datalist.unlabeled] == [f"{image.format('11')}.nii.gz"]


def test_acdc_and_subfolders(tmp_path):
    for patient in ("patient001", "patient002"):
        for frame in ("frame01", "frame12"):
            save(tmp_path / patient / f"{patient}_{frame}.nii.gz")
            save(tmp_path / patient / f"{patient}_{frame}_gt.nii.gz", 0, 1, 2)
        save(tmp_path / patient / f"{patient}_4d.nii.gz")
    datalist = load_datalist(make_split(tmp_path, n_labeled=4))
    assert {case_name(entry) + "_gt" for entry in datalist.training} == {
        case_name({"image": entry["label"]}) for entry in datalist.training
    }
    assert sorted(case_name(entry) for entry in datalist.unlabeled) == ["patient001_4d", "patient002_4d"]
    assert list(datalist.labels) == [0, 1, 2]


def test_the_same_names_in_subfolders(tmp_path):
    for patient in ("p1", "p2", "p3"):
        save(tmp_path / patient / "image.nii.gz")
        if patient != "p3":
            save(tmp_path / patient / "label.nii.gz", 0, 1)
    datalist = load_datalist(make_split(tmp_path, n_labeled=2))
    assert all(Path(entry["image"]).parent == Path(entry["label"]).parent for entry in datalist.training)
    assert len(datalist.training) == 2
    assert [Path(entry["image"]).parent.name for entry in datalist.unlabeled] == ["p3"]


def test_channels_of_nnunet(tmp_path):
    for case in ("a", "b", "u"):
        for channel in range(2):
            save(tmp_path / f"imagesTr/{case}_{channel:04d}.nii.gz")
    for case in ("a", "b"):
        save(tmp_path / f"labelsTr/{case}.nii.gz", 0, 1)
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0}}')
    datalist = load_datalist(make_split(tmp_path, n_labeled=2))
    assert [Path(file).name for file in image_files(datalist.unlabeled[0])] == ["u_0000.nii.gz", "u_0001.nii.gz"]
    assert sorted(case_name(entry) for entry in datalist.training) == ["a", "b"]
    assert all(len(entry["image"]) == 2 for entry in datalist.training)
    (tmp_path / "imagesTr/u_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"imagesTr/u: must have the channels 0000, 0001 .* got \[0\]"):
        make_split(tmp_path, overwrite=True)


def test_four_digits_that_are_no_channels(tmp_path):
    path = make_split(folder(tmp_path, ["scan_0000", "scan_0001", "scan_0002"]), n_labeled=3)
    assert names(path)["training"] == ["scan_0000", "scan_0001", "scan_0002"]


def test_names_that_fit_twice_are_refused(tmp_path):
    folder(tmp_path, ["p1"], image="{}_img", label="{}_seg")
    save(tmp_path / "labels/p1_gt.nii.gz")
    with pytest.raises(DataError, match=r"p1_img.nii.gz: must have one label, got p1_gt.nii.gz, p1_seg.nii.gz"):
        make_split(tmp_path)
    (tmp_path / "labels/p1_gt.nii.gz").unlink()
    save(tmp_path / "images/p1_vol.nii.gz")
    with pytest.raises(DataError, match=r"p1_seg.nii.gz: fits several images, p1_img, p1_vol"):
        make_split(tmp_path)


def test_names_that_do_not_fit(tmp_path):
    folder(tmp_path, ["a"], label="other_{}_thing")
    with pytest.raises(DataError, match=r"no label fits an image by name, got images like a.nii.gz"):
        make_split(tmp_path)


def test_labels_without_image_are_left_out(tmp_path):
    save(folder(tmp_path, CASES[:3]) / "labels/orphan.nii.gz")
    with pytest.warns(UserWarning, match="1 labels have no image and are left out: orphan.nii.gz"):
        path = make_split(tmp_path)
    assert "orphan" not in path.read_text()


def test_explicit_folders_and_absolute_paths(tmp_path):
    folder(tmp_path, CASES[:3], images="scans/mr", labels="manual/v2")
    request = SplitRequest(tmp_path / "scans/mr", tmp_path / "manual/v2", n_labeled=2)
    path = request.write()
    assert path == tmp_path / "scans/mr/datalist.json"
    away = replace(request, output=tmp_path / "lists/new/s.json").write()
    content = json.loads(away.read_text())
    assert content["training"][0]["image"].startswith(str(tmp_path / "scans/mr"))
    assert load_datalist(away).training == load_datalist(path).training
    assert load_datalist(away, tmp_path / "scans").training == load_datalist(path).training
    # the folder around images without labels of their own
    folder(tmp_path / "b", CASES[:3], images="images", labels="elsewhere")
    assert names(make_split(tmp_path / "b", labels=tmp_path / "b/elsewhere", n_labeled=2)) == names(path)


# ----------------------------------------------------------------------------------------------------------- patients


def frames(root: Path, n_patients: int = 10, unlabeled=()) -> Path:
    cases = [f"patient{patient:03d}_frame{frame:02d}" for patient in range(n_patients) for frame in (1, 2)]
    return folder(root, [case for case in cases if case not in unlabeled], unlabeled)


def patients(cases: list[str]) -> set[str]:
    return {case.split("_")[0] for case in cases}


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_two_sides(tmp_path, seed):
    path = make_split(
        frames(tmp_path), n_labeled=3, n_validation=2, n_testing=1, seed=seed, patient_pattern=r"patient\d+"
    )
    found = names(path)
    sides = [patients(found[section]) for section in ("training", "validation", "testing", "unlabeled")]
    assert [len(side) for side in sides] == [3, 2, 1, 4]
    assert len(set.union(*sides)) == 10
    assert [len(found[section]) for section in found] == [6, 8, 4, 2]


def test_without_a_pattern_patients_do_mix(tmp_path):
    # so that the test above cannot pass by luck
    found = names(make_split(frames(tmp_path), n_labeled=6, n_validation=4, n_testing=2))
    sides = [patients(cases) for cases in found.values()]
    assert sum(map(len, sides)) > len(set.union(*sides)) == 10


def test_unlabeled_scans_of_held_out_patients_are_left_out(tmp_path):
    unlabeled = [f"patient{patient:03d}_frame02" for patient in range(10)]
    with pytest.warns(UserWarning, match="3 unlabeled images of patients in validation or testing are left out"):
        path = make_split(
            frames(tmp_path, unlabeled=unlabeled), n_labeled=4, n_validation=2, n_testing=1, patient_pattern=r"(\d+)_"
        )
    found = names(path)
    assert not patients(found["unlabeled"]) & patients(found["validation"] + found["testing"])
    assert {f"{patient}_frame02" for patient in patients(found["training"])} <= set(found["unlabeled"])


def test_patients_from_a_table(tmp_path):
    """Names that tell nothing: a CSV says whose scans they are, as a spreadsheet writes it."""
    root = folder(tmp_path, CASES, ["extra"])
    lines = [f"{name}.nii.gz;P{index // 2}" for index, name in enumerate([*CASES, "extra"])]
    table = tmp_path / "patients.csv"
    table.write_text("\n".join(["case;patient;age", *(f"{line};70" for line in lines)]), encoding="utf-8-sig")
    path = make_split(root, n_labeled=3, n_validation=2, n_testing=2, patients=table)
    found = names(path)
    whose = {name: f"P{index // 2}" for index, name in enumerate([*CASES, "extra"])}
    sides = {section: {whose[case] for case in cases} for section, cases in found.items()}
    assert [len(sides[s]) for s in ("training", "validation", "testing")] == [3, 2, 2]
    for held_out in ("validation", "testing"):
        others = set().union(*(sides[s] for s in sides if s != held_out))
        assert not sides[held_out] & others
    assert json.loads(path.read_text())["split"]["unit"] == "patients"
    assert str(tmp_path) not in path.read_text()
    # the list says whose scans they are, by numbers: what a table calls a patient stays in the table
    content = json.loads(path.read_text())
    numbers = {Path(each["image"]).name.split(".")[0]: each["patient"]
               for section in found for each in content[section]}  # fmt: skip
    assert len(set(zip((whose[name] for name in numbers), numbers.values(), strict=True))) == len(set(whose.values()))
    assert not set(numbers.values()) & set(whose.values())
    assert len(load_datalist(path).patients) == len(numbers) == sum(map(len, found.values()))


def test_a_list_that_says_whose_scans_they_are_is_split_by_patient(tmp_path):
    folder(tmp_path, [f"{scan}{patient}" for patient in "1234" for scan in "ab"])
    listed = [{"image": f"images/{scan}{patient}.nii.gz", "label": f"labels/{scan}{patient}.nii.gz", "patient": patient}
              for patient in "1234" for scan in "ab"]  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}))
    found = names(path := make_split(tmp_path / "dataset.json", n_labeled=2, n_validation=1, n_testing=1))
    content = json.loads(path.read_text())
    assert content["split"]["unit"] == "patients"
    assert content["description"].endswith("split by patient (as listed)")
    sides = [{case[1] for case in found[section]} for section in ("training", "validation", "testing")]
    assert [len(side) for side in sides] == [2, 1, 1]
    assert set.union(*sides) == set("1234")
    assert [len(found[section]) for section in ("training", "validation", "testing")] == [4, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,patient\ncase_00,P1\n", "must have the columns case and patient, got name, patient"),
        ("case,patient\ncase_00,P1\n", "must name the patient of every case, misses 19 of 20: case_01"),
        ("case,patient\ncase_00,\n", "line 2 must name a case and a patient"),
        ("case,patient\ncase_00,P1\ncase_00,P2\n", "a case has one patient, got two in line 3 and before"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        make_split(folder(tmp_path, CASES), patients=tmp_path / "t.csv")
    with pytest.raises(DataError, match="give one of the two"):
        make_split(folder(tmp_path, CASES), patients=tmp_path / "t.csv", patient_pattern="x")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("subject", "must find the patient in every name, got 'subject', which misses 4 of 4: patient000_frame01"),
        ("(", r"must be a regular expression, got '\('"),
        ("x*", "misses 4 of 4"),
    ],
)
def test_bad_patterns(tmp_path, pattern, message):
    with pytest.raises(DataError, match=message):
        make_split(frames(tmp_path, 2), patient_pattern=pattern)


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_labeled": 21}, r"n_labeled must be at most 20 \(20 cases have labels, 0 are for testing\), got 21"),
        ({"n_labeled": 18, "n_testing": 4}, "n_labeled must be at most 16 .* got 18"),
        ({"n_labeled": 18, "n_validation": 3}, "n_validation must be at most 2 .*18 for training.* got 3"),
        ({"n_validation": 20}, "n_validation must be at most 19 .* got 20"),
        ({"n_testing": 20}, "n_testing must be at most 19 .*one must train.* got 20"),
        ({"n_labeled": 0}, "n_labeled must be an integer of at least 1, got 0"),
        ({"n_labeled": 2.5}, "n_labeled must be an integer of at least 1, got 2.5"),
        ({"n_labeled": True}, "n_labeled must be an integer"),
        ({"n_validation": -1}, "n_validation must be an integer of at least 0, got -1"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": 2**32}, "seed must be at most 4294967295"),
        ({"n_labeled": 11, "patient_pattern": r"(\d)\d"}, r"at most 2 \(2 patients have labels"),
        ({"label_names": ["a"]}, r"label_names must map values to names.*got \['a'\]"),
        ({"label_names": {"a": 1}}, "label_names must map values to names.*got {'a': 1}"),
        ({"output": "split.txt"}, "output must be a .json file, got 'split.txt'"),
    ],
)
def test_refuses_nonsense_and_writes_nothing(tmp_path, changes, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        make_split(folder(tmp_path, CASES), **changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


def test_never_overwrites_unasked(tmp_path):
    path = make_split(folder(tmp_path, CASES))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"datalist.json exists already.*overwrite"):
        make_split(tmp_path, seed=3)
    assert path.read_bytes() == before
    make_split(tmp_path, seed=3, overwrite=True)
    assert path.read_bytes() != before


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = make_split(folder(tmp_path, CASES))
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match=r"cannot be written .No space left on device."):
        make_split(tmp_path, seed=3, overwrite=True)
    assert path.read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["datalist.json", "images", "labels"]


def test_sources_of_no_known_form(tmp_path):
    with pytest.raises(DataError, match=r"source must be an existing folder or dataset.json, got 'nowhere'"):
        make_split("nowhere")
    save(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"source must be a folder or a dataset.json, got the file"):
        make_split(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="holds no labels that their names tell from images"):
        make_split(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"holds images but no folder of labels such as labels.*--labels"):
        make_split(tmp_path)
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="images must be a folder with images"):
        make_split(tmp_path)
    save(tmp_path / "images/a.nii.gz")
    with pytest.raises(DataError, match=r"labels must be a folder with label files, got none in .*labels"):
        make_split(tmp_path)
    with pytest.raises(DataError, match="labels must be an existing folder, got 'nowhere'"):
        make_split(tmp_path / "images", labels="nowhere")


# ------------------------------------------------------------------------------------------------------------- labels


def test_labels_come_from_the_training_part_only(tmp_path):
    root = folder(tmp_path, CASES)
    path = make_split(root, n_labeled=2, n_validation=1)
    training = names(path)["training"]
    for case in CASES:
        if case in training:
            save(root / f"labels/{case}.nii.gz", 0, 2, 1)
        else:
            (root / f"labels/{case}.nii.gz").write_bytes(b"never read")
    path = make_split(root, n_labeled=2, n_validation=1, overwrite=True)
    assert load_datalist(path).labels == {0: "background", 1: "class 1", 2: "class 2"}


def test_label_names_are_taken_as_given(tmp_path):
    path = make_split(folder(tmp_path, CASES), label_names={1: "left atrium"})
    assert load_datalist(path).labels == {0: "background", 1: "left atrium"}


def test_infer_labels(tmp_path):
    files = [save(tmp_path / "a.nii.gz", 0, 1), save(tmp_path / "b.nii.gz", 2, dtype=np.float32)]
    assert infer_labels(files) == {0: "background", 1: "class 1", 2: "class 2"}
    with pytest.warns(UserWarning, match=r"without gaps, got \[0, 255\]"):
        assert list(infer_labels([save(tmp_path / "c.nii.gz", 255)])) == [0, 255]
    for value, dtype in ((0.5, np.float32), (-1, np.int16), (np.nan, np.float32)):
        with pytest.raises(DataError, match=rf"d.nii.gz: a label must hold integers from 0, got {value:g}"):
            infer_labels([save(tmp_path / "d.nii.gz", value, dtype=dtype)])
    nib.save(nib.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.eye(4)), tmp_path / "e.nii.gz")
    with pytest.raises(DataError, match=r"e.nii.gz: a label must hold few values, got 1000: is it an image"):
        infer_labels([tmp_path / "e.nii.gz"])
    with pytest.raises(DataError, match=r"missing.nii.gz: file must exist"):
        infer_labels([tmp_path / "missing.nii.gz"])


# ---------------------------------------------------------------------------------------------------------------- MSD


def msd(root: Path, **changes) -> Path:
    folder(root, CASES, ["unlisted"], images="imagesTr", labels="labelsTr")
    content = {
        "name": "Task",
        "labels": {"0": "background", "1": "organ"},
        "numTraining": 20,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in reversed(CASES)
        ],
        "test": ["./imagesTs/t.nii.gz"],
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root / "dataset.json"


def test_msd(tmp_path):
    path = make_split(msd(tmp_path), n_labeled=4, n_validation=2, n_testing=1)
    found = names(path)
    assert [len(found[section]) for section in found] == [4, 14, 2, 1]
    assert "unlisted" in found["unlabeled"]
    assert "imagesTs" not in path.read_text()
    assert load_datalist(path).labels == {0: "background", 1: "organ"}
    # found by itself in the folder, and by its path
    before = path.read_bytes()
    assert make_split(tmp_path, n_labeled=4, n_validation=2, n_testing=1, overwrite=True).read_bytes() == before
    again = make_split(tmp_path / "dataset.json", n_labeled=4, n_validation=2, n_testing=1, overwrite=True)
    assert again.read_bytes() == before


def test_msd_mistakes(tmp_path):
    entry = {"image": "imagesTr/v.nii.gz", "label": "labelsTr/v.nii.gz"}
    with pytest.raises(DataError, match="must list all labeled cases in 'training', got 1 for validation"):
        make_split(msd(tmp_path, validation=[entry]))
    with pytest.raises(DataError, match="must hold labeled cases"):
        make_split(msd(tmp_path, training=[], unlabeled=["imagesTr/a.nii.gz"]))
    with pytest.raises(DataError, match="labels must be left out with a JSON source"):
        make_split(tmp_path / "dataset.json", labels=tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="must be a JSON file"):
        make_split(tmp_path)


# ---------------------------------------------------------------------------------------------------------- real scans


@pytest.mark.data
def test_hippocampus(tmp_path):
    data = os.environ.get("MONAI_SSL_DATA")
    if not data:
        pytest.skip("MONAI_SSL_DATA is not set")
    path = make_split(
        Path(data) / "hippocampus", output=tmp_path / "split.json", n_labeled=10, n_validation=20, n_testing=5
    )
    datalist = load_datalist(path)
    assert datalist.counts() == {"training": 10, "unlabeled": 175, "validation": 20, "testing": 5}
    assert datalist.labels == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert list(infer_labels(entry["label"] for entry in datalist.training)) == [0, 1, 2]


@pytest.mark.data
def test_acdc_patients(tmp_path):
    data = os.environ.get("MONAI_SSL_DATA")
    if not data:
        pytest.skip("MONAI_SSL_DATA is not set")
    path = make_split(
        Path(data) / "acdc", output=tmp_path / "s.json", n_labeled=7, n_validation=10, patient_pattern=r"patient\d+"
    )
    found = names(path)
    assert [len(found[section]) for section in found] == [14, 126, 20, 0]
    assert len(patients(found["training"])) == 7


# ------------------------------------------------------------------------------------------------------------- folds


def fold_names(index: Path) -> list[dict[str, list[str]]]:
    return [names(path) for path in fold_datalists(index)]


class TestFolds:
    def test_every_labeled_case_validates_once_and_testing_is_shared(self, tmp_path):
        root = folder(tmp_path, CASES, ["extra"])
        index = make_split(root, folds=3, n_labeled=4, n_testing=4)
        assert index == root / "datalist-folds.json"
        assert [path.name for path in fold_datalists(index)] == [f"datalist-fold{k}.json" for k in (1, 2, 3)]
        assert not (root / "datalist.json").exists()
        found = fold_names(index)
        validated = [case for fold in found for case in fold["validation"]]
        assert sorted([*validated, *found[0]["testing"]]) == CASES
        assert {tuple(fold["testing"]) for fold in found} == {tuple(found[0]["testing"])}
        assert sorted(len(fold["validation"]) for fold in found) == [5, 5, 6]
        for fold in found:
            assert len(fold["training"]) == 4
            assert sorted(case for cases in fold.values() for case in cases) == sorted([*CASES, "extra"])
        assert len({case for fold in found for case in fold["training"]}) == 12  # other labels in every fold

    def test_the_first_fold_is_the_plain_split(self, tmp_path):
        root = folder(tmp_path, CASES)
        index = make_split(root, folds=2, n_labeled=4, n_validation=3, n_testing=2)
        plain = make_split(root, n_labeled=4, n_validation=3, n_testing=2)
        assert fold_names(index)[0] == names(plain)

    def test_more_labels_contain_fewer(self, tmp_path):
        root = folder(tmp_path, CASES)
        few, more, all_ = (
            fold_names(make_split(root, output=tmp_path / f"{n}.json", folds=4, n_labeled=n)) for n in (2, 8, None)
        )
        for a, b, c in zip(few, more, all_, strict=True):
            assert set(a["training"]) < set(b["training"]) < set(c["training"])
            assert a["validation"] == b["validation"] == c["validation"]
        assert (tmp_path / "2-fold4.json").is_file()

    def test_patients_stay_on_one_side(self, tmp_path):
        index = make_split(frames(tmp_path), folds=4, patient_pattern=r"patient\d+", n_testing=2)
        for fold in fold_names(index):
            sides = [{case.partition("_")[0] for case in cases} for cases in fold.values()]
            assert all(not a & b for number, a in enumerate(sides) for b in sides[:number])
        assert json.loads(index.read_text())["split"]["unit"] == "patients"

    def test_numbers_in_the_index_are_those_of_the_datalists(self, tmp_path):
        index = make_split(folder(tmp_path, CASES), folds=11, n_labeled=3, seed=5)
        content = json.loads(index.read_text())
        assert content["folds"][0]["datalist"] == "datalist-fold01.json"
        for entry, path in zip(content["folds"], fold_datalists(index), strict=True):
            assert load_datalist(path).counts() == {key: entry[key] for key in load_datalist(path).counts()}
            split = json.loads(path.read_text())["split"]
            assert (split["fold"], split["folds"], split["seed"]) == (entry["fold"], 11, 5)

    def test_options_hold_in_every_fold(self, tmp_path):
        root = folder(tmp_path, CASES)
        index = make_split(root, folds=2, n_labeled=2, label_names={1: "atrium"}, slices="drawn", description="mine")
        for path in fold_datalists(index):
            content = json.loads(path.read_text())
            assert content["labels"] == {"0": "background", "1": "atrium"}
            assert content["description"] == "mine"
            assert {entry["slices"] for entry in content["training"] + content["validation"]} == {"drawn"}

    def test_classes_are_those_of_all_folds(self, tmp_path):
        root = folder(tmp_path, CASES)
        save(root / "labels" / f"{CASES[1]}.nii.gz", 0, 1, 2)
        index = make_split(root, folds=4)
        assert all(len(load_datalist(path).labels) == 3 for path in fold_datalists(index))

    def test_replaced_as_a_whole(self, tmp_path):
        root = folder(tmp_path, CASES)
        index = make_split(root, folds=4)
        with pytest.raises(DataError, match=r"datalist-folds.json exists already.*--overwrite"):
            make_split(root, folds=2)
        make_split(root, folds=2, overwrite=True)
        assert sorted(path.name for path in root.glob("*.json")) == [
            "datalist-fold1.json", "datalist-fold2.json", "datalist-folds.json"
        ]  # fmt: skip
        assert len(fold_datalists(index)) == 2

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"folds": 1}, "folds must be an integer of at least 2, got 1"),
            ({"folds": 21}, "folds must be at most 20"),
            ({"folds": 5, "n_testing": 16}, "n_testing must be at most 15"),
            ({"folds": 5, "n_labeled": 17}, "n_labeled must be at most 16"),
            ({"folds": 5, "n_validation": 5}, "n_validation must be at most 4"),
            ({"folds": 5, "n_validation": 0}, "n_validation must be an integer of at least 1"),
        ],
    )
    def test_errors_name_number_and_rule(self, tmp_path, changes, words):
        with pytest.raises(DataError, match=words):
            make_split(folder(tmp_path, CASES), **changes)

    def test_an_index_is_no_datalist_and_a_datalist_no_index(self, tmp_path):
        index = make_split(folder(tmp_path, CASES), folds=2)
        with pytest.raises(DataError, match=r"index of a cross-validation.*datalist-fold1.json"):
            load_datalist(index)
        for path in (tmp_path / "datalist-fold1.json", tmp_path / "nowhere.json"):
            with pytest.raises(DataError, match="must be the index"):
                fold_datalists(path)

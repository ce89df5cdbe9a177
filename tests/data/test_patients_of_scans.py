"""Whose scans they are: as a datalist says, or as names do; and that no patient is on two sides."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from monai_ssl.data import Datalist, load_datalist
from monai_ssl.data.patients import patients_of
from monai_ssl.errors import DataError
from monai_ssl.runs.study import cases as study_cases


def entry(name, label=True, **more):
    return {"image": f"images/{name}.nii", **({"label": f"labels/{name}.nii"} if label else {}), **more}


def listed(folder, **sections):
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": [entry("a", patient="1")], "unlabeled": [], **sections}))
    return path


def test_the_list_says_whose_scan_it_is(tmp_path):
    lists = load_datalist(listed(tmp_path, unlabeled=[entry("b", False, patient="1"), "c.nii"],
                                 validation=[entry("d", patient="2"), entry("e", patient=None)]))  # fmt: skip
    assert {key.rsplit("/", 1)[1]: value for key, value in lists.patients.items()} == {
        "a.nii": "1", "b.nii": "1", "d.nii": "2"}  # fmt: skip
    # training sees nothing of it
    assert all(set(each) <= {"image", "label"} for name in ("training", "unlabeled") for each in lists.section(name))
    every = lists.training + lists.unlabeled + lists.validation
    assert patients_of(every, lists.known_patients()) == ["1", "1", "case:c", "2", "case:e"]
    # a study writes it again
    again = load_datalist(study_cases.write_list(lists, tmp_path / "again.json"))
    assert again.patients == lists.patients


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"validation": [entry("b", patient="1")]}, r"a \(training\) and b \(validation\): move them to one list"),
        ({"unlabeled": [entry("b", False, patient="2")], "testing": [entry("c", False, patient="2")]},
         r"one side only .*b \(unlabeled\) and c \(testing\)"),
        ({"validation": [entry("b", patient=3)]}, "'patient' must be a text of .*, got a number: write it in quotes"),
        ({"validation": [entry("b", patient=" ")]}, "'patient' must be a text of 1 to 200 characters, got 0: give"),
        ({"validation": [entry("b", patient="x" * 201)]}, "of 1 to 200 characters, got 201: give a short name"),
        ({"validation": [entry("b", patient="\ud800")]}, "got characters that nobody can print"),
        ({"training": [entry("a", patient="\u00fc")], "testing": [entry("b", patient="u\u0308")]}, "one side only"),
        ({"validation": [entry("b", patients="1")]}, "did you mean 'patient'"),
    ],
)  # fmt: skip
def test_a_patient_on_two_sides_is_refused(tmp_path, sections, message):
    with pytest.raises(DataError, match=message):
        load_datalist(listed(tmp_path, **sections))


def test_folds_of_a_study_keep_patients_together(tmp_path):
    frames = [{"image": f"/d/p{number}_{frame}.nii", "label": f"/l/p{number}_{frame}.nii"}
              for number in range(7) for frame in ("frame01", "frame12")]  # fmt: skip
    pool = [{"image": f"/d/p{number}_frame20.nii"} for number in range(9)]
    lists = Datalist(training=frames[:9], validation=frames[9:], unlabeled=pool)
    by_name = study_cases.folded(lists, 3, "validation")
    declared = {each["image"]: f"patient {each['image'][3:5]}" for each in frames}  # names tell of the pool
    renamed = replace(lists, patients=declared)
    assert study_cases.folded(renamed, 3, "validation")[1][1].unlabeled == by_name[1][1].unlabeled
    assert study_cases.folded(renamed, 3, "validation")[0][1].validation == by_name[0][1].validation
    judged = []
    for _, fold in by_name:
        judges = {each["image"][3:5] for each in fold.validation}
        judged += sorted(judges)
        assert len(fold.validation) == 2 * len(judges)
        assert not [each for each in fold.training + fold.unlabeled if each["image"][3:5] in judges]
        assert len(fold.unlabeled) == len(pool) - len(judges)
    assert sorted(judged) == [f"p{number}" for number in range(7)]
    with pytest.raises(
        DataError, match="4 folds need 8 patients with labels, got 7, as names tell; ask for fewer, or say"
    ):
        study_cases.folded(lists, 4, "validation")


def images(*names):
    return [{"image": f"/d/{name}.nii"} for name in names]


@pytest.mark.parametrize(
    ("names", "n_patients"),
    [
        (("p1_frame01", "p1_frame12", "p2_frame01", "p2_frame12"), 2),
        (("p1_visit1", "p1_visit2", "p2_visit1", "p3_visit1"), 3),
        (("p1_frame01", "x", "1"), 3),
        # kinds of scans and sites, no patients
        ([f"{kind}_scan_{number:03d}" for kind in ("ct", "mr") for number in range(5)], 10),
        ([f"site{site}_scan{number}" for site in "AB" for number in range(4)], 8),
        (("a", "b"), 2),
    ],
)
def test_names_tell_of_patients_and_not_of_sites(names, n_patients):
    assert len(set(patients_of(images(*names)))) == n_patients


def test_a_list_of_one_patient_is_told_by_the_names_of_all_lists():
    lists = Datalist(training=images("p1_frame01", "p1_frame12"), validation=images("p2_frame01", "p2_frame12"))
    assert len(set(patients_of(lists.validation, lists.known_patients()))) == 1


def test_a_case_is_called_like_a_patient():
    whose = patients_of(images("a", "b", "1"), {"/d/a.nii": "1", "/d/b.nii": "1"})
    assert whose[0] == whose[1] != whose[2]


def test_a_pool_that_is_found_holds_no_scan_of_those_who_judge(tmp_path):
    for name in ("p1_frame01", "p1_frame20", "p2_frame01", "p2_frame20", "p3"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.nii").write_bytes(b"")
    content = {"training": [entry("p1_frame01", patient="1")], "validation": [entry("p2_frame01", patient="2")]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="1 unlabeled images of patients in validation or testing .*: p2_frame20"):
        lists = load_datalist(tmp_path / "datalist.json")
    assert [each["image"].rsplit("/", 1)[1] for each in lists.unlabeled] == ["p1_frame20.nii", "p3.nii"]


def test_check_believes_the_list():
    from monai_ssl.curation.verify import _check_patients

    names = images("siteA_scan01", "siteA_scan02", "other")
    jobs = list(zip(("training", "testing", "training"), names, strict=True))
    assert len(_check_patients(jobs, {})) == 1
    assert _check_patients(jobs, {"/d/siteA_scan01.nii": "1", "/d/siteA_scan02.nii": "2"}) == []

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
    assert patients_of(lists.training + lists.unlabeled + lists.validation, lists.patients) == ["1", "1", "c", "2", "e"]
    # a study writes it again
    again = load_datalist(study_cases.write_list(lists, tmp_path / "again.json"))
    assert again.patients == lists.patients


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"validation": [entry("b", patient="1")]}, r"a \(training\) and b \(validation\): move them to one list"),
        ({"unlabeled": [entry("b", False, patient="2")], "testing": [entry("c", False, patient="2")]},
         r"one side only .*b \(unlabeled\) and c \(testing\)"),
        ({"validation": [entry("b", patient=3)]}, "'patient' must be a text, got a number: write it in quotes"),
        ({"validation": [entry("b", patient=" ")]}, "'patient' must be a text"),
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
    declared = {each["image"]: each["image"][3:5] for each in frames + pool}
    renamed = replace(lists, patients=declared)
    assert study_cases.folded(renamed, 3, "validation")[0][1].validation == by_name[0][1].validation
    judged = []
    for _, fold in by_name:
        judges = {each["image"][3:5] for each in fold.validation}
        judged += sorted(judges)
        assert len(fold.validation) == 2 * len(judges)
        assert not [each for each in fold.training + fold.unlabeled if each["image"][3:5] in judges]
        assert len(fold.unlabeled) == len(pool) - len(judges)
    assert sorted(judged) == [f"p{number}" for number in range(7)]
    with pytest.raises(DataError, match="4 folds need 8 patients with labels, got 7"):
        study_cases.folded(lists, 4, "validation")

"""Folders as communities lay them out, masks of 0 and 255, tables as spreadsheets write them, visits of one patient."""

from __future__ import annotations

import codecs
import json
import re
import warnings

import nibabel as nib
import numpy as np
import pytest
import yaml

import monai_ssl
from monai_ssl.data import load_datalist, load_preset
from monai_ssl.data.cases import image_files
from monai_ssl.data.patients import visit_pattern, visits
from monai_ssl.data.pipelines import training_preprocessing, validation_preprocessing
from monai_ssl.errors import DataError, UsageError


@pytest.fixture
def write(tmp_path):
    random = np.random.RandomState(0)

    def one(*names, values=None, shape=(18, 18, 18)):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            array = random.rand(*shape).astype(np.float32) if values is None else random.choice(values, shape)
            nib.save(nib.Nifti1Image(array if values is None else array.astype(np.uint8), np.eye(4)), path)
        return tmp_path

    return one


def labeled(split):
    cases = split.datalist
    return {
        tuple(file.rpartition("/")[2] for file in image_files(entry)): entry["label"].rpartition("/")[2]
        for entry in cases.training + cases.validation
    }


class TestLayouts:
    @pytest.mark.parametrize("separator", ["-", "_"])
    def test_brats(self, write, separator):
        names = [f"BraTS-GLI-{i:05d}-000" for i in range(3)]
        for name in names:
            folder = write(*(f"{name}/{name}{separator}{m}.nii.gz" for m in ("t2f", "t1c", "t2w", "t1n")))
            if name != names[2]:
                write(f"{name}/{name}{separator}seg.nii.gz", values=(0, 1, 2, 3))
        found = monai_ssl.split(folder, n_validation=0)
        assert labeled(found) == {
            tuple(f"{name}{separator}{m}.nii.gz" for m in ("t1n", "t1c", "t2w", "t2f")): f"{name}{separator}seg.nii.gz"
            for name in names[:2]
        }
        assert len(found.datalist.unlabeled) == 1
        assert load_preset(found.preset).channels == ("t1n", "t1c", "t2w", "t2f")
        assert monai_ssl.check(folder, dataset=found.preset).ok

    @pytest.mark.parametrize(
        ("image", "label", "channels"),
        [
            ("{0}/{1}.nii.gz", "{0}/seg.nii.gz", ("t1", "t1ce", "t2", "flair")),
            ("{0}/{1}.nii.gz", "{0}/SEG.nii.gz", ("CTres", "SUV")),
            ("{0}/{1}.nii.gz", "{0}/mask.nii.gz", ("ct",)),
            ("{0}/abdomen.nii.gz", "{0}/segmentations.nii.gz", ("",)),
            ("case_0{0}/imaging.nii.gz", "case_0{0}/segmentation.nii.gz", ("",)),
            ("{0}/t1.nii.gz", "{0}/t1_seg.nii.gz", ("",)),
            ("images/{0}/scan.nii.gz", "labels/{0}.nii.gz", ("",)),
            ("images/{0}.nii.gz", "labels/{0}/seg.nii.gz", ("",)),
            ("images/{0}/{0}_{1}.nii.gz", "labels/{0}.nii.gz", ("t2w", "adc", "hbv")),
            ("images/{0}__{1}.nii.gz", "labels/{0}.nii.gz", ("CT", "PT")),
            ("{0}_mr.nii.gz", "{0}-label.nii.gz", ("",)),
            ("{0}_ct.nii.gz", "{0}_seg.nii.gz", ("",)),
            ("scans/{0}.nii.gz", "labels/{0}.nii.gz", ("",)),
            ("imgs/{0}.nii.gz", "masks/{0}.nii.gz", ("",)),
            ("img/img{0}.nii.gz", "mask/label{0}.nii.gz", ("",)),
            ("volumes/{0}.nii.gz", "gt/{0}.nii.gz", ("",)),
            ("Images/{0}.nii.gz", "Annotations/{0}.nii.gz", ("",)),
            ("train/images/{0}.nii.gz", "train/labels/{0}.nii.gz", ("",)),
            ("sub-{0}/anat/sub-{0}_T1w.nii.gz", "derivatives/l/sub-{0}_T1w_label-lesion_mask.nii.gz", ("",)),
            ("sub-{0}/ses-1/sub-{0}_ses-1_T2w.nii.gz", "derivatives/sub-{0}_ses-1_T2w_seg-manual.nii.gz", ("",)),
            ("sub-{0}/anat/sub-{0}_FLAIR.nii.gz", "sub-{0}/anat/sub-{0}_FLAIR_lesion.nii.gz", ("",)),
            ("sub-{0}/dwi/sub-{0}_dwi.nii.gz", "sub-{0}/dwi/sub-{0}_msk.nii.gz", ("",)),
        ],
    )
    def test_folders_as_people_keep_them(self, write, image, label, channels):
        names = ("1", "10", "01", "2")  # one is the beginning of another
        for name in names:
            folder = write(*(image.format(name, channel) for channel in channels))
            if name != "2":
                write(label.format(name), values=(0, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = monai_ssl.split(folder, n_validation=1).datalist
        paths = {tuple(image_files(entry)): entry["label"] for entry in found.training + found.validation}
        assert paths == {
            tuple(str(folder / image.format(name, channel)) for channel in channels): str(folder / label.format(name))
            for name in names[:3]
        }
        assert len(found.unlabeled) == 1

    def test_what_differs_in_the_names_pairs_with_a_word(self, write):
        for i in range(3):
            folder = write(f"images/pat_{i:04d}.nii.gz")
            write(f"labels/lab_{i:04d}.nii.gz", values=(0, 1))
        with pytest.warns(UserWarning, match="paired by what differs in their names, pat_0000 with lab_0000"):
            found = monai_ssl.split(folder, n_validation=0)
        assert labeled(found) == {(f"pat_{i:04d}.nii.gz",): f"lab_{i:04d}.nii.gz" for i in range(3)}

    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            (("a/x.nii.gz", "b/x.nii.gz"), ("x_seg.nii.gz",)),  # one label, two places
            (("p1_2020.nii.gz", "p2_2021.nii.gz"), ("p1_2021_seg.nii.gz", "p2_2020_seg.nii.gz")),
            (("p1/a.nii.gz", "p1/b.nii.gz", "p2/a.nii.gz"), ("p1/seg.nii.gz", "p2/seg.nii.gz")),  # scans or channels?
        ],
    )
    def test_what_may_mean_two_things_is_refused(self, write, images, labels):
        folder = write(*images)
        write(*labels, values=(0, 1))
        with pytest.raises(DataError, match="no label fits an image by name"):
            monai_ssl.split(folder)

    def test_a_missing_modality_is_named(self, write):
        for name in ("a", "b"):
            folder = write(*(f"{name}-{m}.nii.gz" for m in ("t1", "flair")))
            write(f"{name}-seg.nii.gz", values=(0, 1))
        (folder / "b-flair.nii.gz").unlink()
        with pytest.raises(DataError, match=r"^b: must have the images t1, flair as other cases do, flair is missing"):
            monai_ssl.split(folder)

    @pytest.mark.parametrize(
        "label", ["derivatives/manual/sub-{}/anat/sub-{}_T1w_dseg.nii.gz", "sub-{}/anat/sub-{}_desc-x_dseg.nii.gz",
                  "derivatives/labels/sub-{}/anat/sub-{}_dseg.nii.gz", "derivatives/l/sub-{}/sub-{}_T1w_mask.nii.gz"]
    )  # fmt: skip
    def test_bids(self, write, label):
        for i in ("01", "02", "03"):
            folder = write(
                f"sub-{i}/anat/sub-{i}_T1w.nii.gz", f"derivatives/prep/sub-{i}/anat/sub-{i}_desc-n4_T1w.nii.gz"
            )
            if i != "03":
                write(label.format(i, i), values=(0, 1))
        found = monai_ssl.split(folder, n_validation=0)
        name = label.rpartition("/")[2]
        assert labeled(found) == {(f"sub-{i}_T1w.nii.gz",): name.format(i) for i in ("01", "02")}
        assert len(found.datalist.unlabeled) == 1  # what was derived of it is no further image

    def test_bids_with_sessions_and_channels(self, write):
        for subject, session in (("01", "1"), ("01", "2"), ("02", "1")):
            stem = f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
            folder = write(f"{stem}_FLAIR.nii.gz", f"{stem}_T1w.nii.gz")
            write(f"{stem}_dseg.nii.gz", values=(0, 1))
        with pytest.warns(UserWarning, match="seem to have several scans"):
            found = monai_ssl.split(folder, n_validation=0)
        assert set(labeled(found)) == {
            tuple(f"sub-{scan}_{m}.nii.gz" for m in ("T1w", "FLAIR")) for scan in ("01_ses-1", "01_ses-2", "02_ses-1")
        }

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ("sub-01/anat/sub-01_run-2_T1w.nii.gz", "sub-01 has several images of one kind"),
            ("sub-01/anat/sub-01_T2w.nii.gz", "must have the images"),
            ("derivatives/b/sub-01_dseg.nii.gz", "sub-01 must have one segmentation"),
        ],
    )
    def test_bids_that_cannot_be_read_is_said(self, write, extra, message):
        for i in ("01", "02"):
            folder = write(f"sub-{i}/anat/sub-{i}_T1w.nii.gz")
            write(f"derivatives/a/sub-{i}_dseg.nii.gz", values=(0, 1))
        write(extra)
        with pytest.raises(DataError, match=message):
            monai_ssl.split(folder)

    @pytest.mark.parametrize(
        "content",
        [
            {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "tumor": 1}},
            {"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "background", "1": "tumor"},
             "training": [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(3)]},
        ],
        ids=["v2", "v1"],
    )  # fmt: skip
    def test_nnunet(self, write, content):
        for i in range(3):
            folder = write(f"imagesTr/c{i}_0000.nii.gz", f"imagesTr/c{i}_0001.nii.gz", f"imagesTs/t{i}_0000.nii.gz")
            write(f"labelsTr/c{i}.nii.gz", values=(0, 1))
        (folder / "dataset.json").write_text(json.dumps(content))
        with pytest.warns(UserWarning, match="3 test images are left out"):
            found = monai_ssl.split(folder, n_validation=0)
        assert labeled(found) == {(f"c{i}_0000.nii.gz", f"c{i}_0001.nii.gz"): f"c{i}.nii.gz" for i in range(3)}
        preset = load_preset(found.preset)
        assert preset.channels == ("T1", "FLAIR")
        assert preset.labels == {0: "background", 1: "tumor"}

    def test_regions_of_nnunet_are_refused(self, write):
        folder = write("imagesTr/a_0000.nii.gz")
        write("labelsTr/a.nii.gz", values=(0, 1))
        (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "whole tumor": [1, 2]}}))
        with pytest.raises(DataError, match="class 'whole tumor' must be one value, got a region"):
            monai_ssl.split(folder)

    @pytest.mark.parametrize("join", ["/", "\\"])
    def test_auto3dseg_and_windows(self, write, join):
        for i in range(4):
            folder = write(f"im/i{i}.nii.gz")
            write(f"la/i{i}.nii.gz", values=(0, 1))
        training = [{"fold": i % 2, "image": f"im{join}i{i}.nii.gz", "label": f"la{join}i{i}.nii.gz"} for i in range(4)]
        (folder / "datalist.json").write_text(json.dumps({"training": training, "testing": []}))
        cases = load_datalist(folder / "datalist.json")
        assert [entry["image"][-9:] for entry in cases.training] == ["i1.nii.gz"[-9:], "i3.nii.gz"[-9:]]
        assert [entry["image"][-9:] for entry in cases.validation] == ["i0.nii.gz"[-9:], "i2.nii.gz"[-9:]]
        assert all((folder / "im").as_posix() in entry["image"] for entry in cases.training)


class TestLabelMap:
    @pytest.fixture
    def masks(self, write):
        for i in range(3):
            folder = write(f"images/i{i}.nii.gz")
            write(f"labels/i{i}.nii.gz", values=(0, 255))
        return folder

    def test_without_it_the_option_is_named(self, masks):
        with pytest.warns(UserWarning, match=re.escape("pass --label_map '{255: 1}'")):
            found = monai_ssl.split(masks)
        assert "--label_map '{255: 1}'" in found.remark

    def test_every_reader_obeys_it(self, masks, tmp_path):
        found = monai_ssl.split(masks, n_validation=1, label_map={255: 1})
        preset = load_preset(found.preset)
        assert preset.label_map == {255: 1}
        assert preset.labels == {0: "background", 1: "class 1"}
        assert monai_ssl.check(masks, dataset=found.preset).ok
        entry = found.datalist.training[0]
        stored = np.asarray(nib.load(entry["label"]).dataobj)
        for steps in (training_preprocessing(preset), validation_preprocessing(preset)):
            label = np.asarray(steps(dict(entry))["label"])[0]
            assert set(np.unique(label)) == {0, 1}
            assert (label == 1).sum() == (stored == 255).sum()
        # scores: masks of 0 and 255 as predictions, too
        (tmp_path / "p").mkdir()
        for case in found.datalist.validation:
            name = case["image"].rpartition("/")[2]
            (tmp_path / "p" / name).write_bytes((masks / "labels" / name).read_bytes())
        result = monai_ssl.evaluate(predictions=tmp_path / "p", dataset=found.preset, dataset_dir=masks,
                                    section="validation", output=tmp_path / "scores")  # fmt: skip
        assert "Dice 1.0000" in repr(result)

    def test_values_that_are_no_class_name_the_map(self, masks):
        found = monai_ssl.split(masks, label_map={255: 1})
        content = yaml.safe_load(found.preset.read_text())
        del content["label_map"]
        found.preset.write_text(yaml.safe_dump(content))
        problems = monai_ssl.check(masks, dataset=found.preset).errors
        assert all("set label_map: {255: 1}" in problem.message for problem in problems)
        assert problems

    @pytest.mark.parametrize("given", [{"a": 1}, {255: "x"}, {-1: 1}, {255: True}])
    def test_nonsense(self, masks, given):
        with pytest.raises(UsageError, match="--label_map: must map values to classes"):
            monai_ssl.split(masks, label_map=given)

    def test_targets_are_classes(self):
        with pytest.raises(DataError, match="label_map must map to classes"):
            load_preset({"name": "x", "labels": {0: "a", 1: "b"}, "patch_size": [16] * 3, "label_map": {255: 2}})


TABLES = {
    "plain": "case,patient\na,p1\nb,p1\nc,p2\n",
    "semicolons": "case;patient\r\na;p1\r\nb;p1\r\nc;p2\r\n",
    "tabs": "case\tpatient\na\tp1\nb\tp1\nc\tp2\n",
    "blanks and capitals": "Case, Patient\na.nii.gz, p1\nb , p1\n\nc,p2\n,\n",
    "quoted": '"case","patient"\n"a","p1"\n"b","p1"\n"c","p2"\n',
    "more columns": "nr;case;age;patient\n1;a;3;p1\n2;b;3;p1\n3;c;4;p2\n",
    "folders": "case,patient\nimages\\a.nii.gz,p1\nimages/b.nii.gz,p1\nc,p2\n",
    "paths of another machine": "case,patient\nD:\\study\\a.nii.gz,p1\n/data/x/b.nii.gz,p1\nc.NII.GZ,p2\n",
}


class TestPatients:
    @pytest.fixture
    def scans(self, write):
        for name in "abc":
            folder = write(f"images/{name}.nii.gz")
            write(f"labels/{name}.nii.gz", values=(0, 1))
        return folder

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    @pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
    def test_tables_of_spreadsheets(self, scans, table, encoding):
        (scans / "t.csv").write_bytes(codecs.encode(table, encoding))
        found = monai_ssl.split(scans, patients=scans / "t.csv", n_validation=1)
        sides = {entry["image"][-8]: "training" for entry in found.datalist.training}
        sides |= {entry["image"][-8]: "validation" for entry in found.datalist.validation}
        assert sides["a"] == sides["b"] != sides["c"]

    @pytest.mark.parametrize("suffix", [".xlsx", ".ods"])
    def test_workbooks_are_refused(self, scans, suffix):
        (scans / f"t{suffix}").write_bytes(b"PK\x03\x04")
        with pytest.raises(DataError, match="is a workbook; save the sheet as CSV"):
            monai_ssl.split(scans, patients=scans / f"t{suffix}")

    @pytest.mark.parametrize("table", ["case,patient\na,\nb,p\nc,p\n", "case,patient\nMuster Max,p\nMuster Max,q\n"])
    def test_no_patient_is_quoted(self, scans, table):
        (scans / "t.csv").write_text(table)
        with pytest.raises(DataError) as caught:
            monai_ssl.split(scans, patients=scans / "t.csv")
        assert "Muster" not in str(caught.value)

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (["MRN1_visit1", "MRN1_visit2", "MRN2_visit1"], {"MRN1": ["MRN1_visit1", "MRN1_visit2"]}),
            (["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02"], {"sub-01": ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w"]}),
            (
                ["patient001_frame01", "patient001_frame12", "x"],
                {"patient001": ["patient001_frame01", "patient001_frame12"]},
            ),
            (["p1_baseline", "p1_followup", "q"], {"p1": ["p1_baseline", "p1_followup"]}),
            (["scan_01", "scan_02"], {}),
            (["case_scan1", "case_scan2", "case_scan3"], {}),
            (["hippocampus_006", "hippocampus_007"], {}),
            (["daylight_1", "daylight_2"], {}),
        ],
    )
    def test_visits(self, names, found):
        assert visits(names) == found
        if found:
            pattern = visit_pattern(names)
            patients = {re.search(pattern, name)[1] for name in names}
            assert set(found) <= patients

    def test_a_split_proposes_the_pattern_and_check_sees_the_leak(self, write):
        for i in range(4):
            for visit in (1, 2):
                folder = write(f"images/MRN573{i}_visit{visit}.nii.gz")
                write(f"labels/MRN573{i}_visit{visit}.nii.gz", values=(0, 1))
        with pytest.warns(UserWarning, match="4 patients seem to have several scans") as told:
            found = monai_ssl.split(folder, n_validation=3)
        assert any(problem.rule == "patient" for problem in monai_ssl.check(folder, dataset=found.preset).warnings)
        pattern = re.search(r"--patient_pattern '(.+)'$", str(told[0].message))[1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = monai_ssl.split(folder, n_validation=1, patient_pattern=pattern, overwrite=True)
        assert not any(problem.rule == "patient" for problem in monai_ssl.check(folder, dataset=again.preset).warnings)

    @pytest.mark.parametrize("path", ["{0}/visit{1}.nii.gz", "{0}/visit{1}/ct.nii.gz", "{0}_visit{1}/ct.nii.gz",
                                      "siteA/{0}/tp_0{1}/ct.nii.gz", "{0}/2024_visit{1}/ct.nii.gz"])  # fmt: skip
    def test_visits_that_only_folders_tell(self, write, path):
        for i in range(4):
            for visit in (1, 2):
                folder = write("images/" + path.format(f"MRN573{i}", visit))
                write("labels/" + path.format(f"MRN573{i}", visit), values=(0, 1))
        folder = write("images/" + path.replace("_visit{1}", "").replace("visit{1}", "ct").format("X1", 1))
        with pytest.warns(UserWarning, match="4 patients seem to have several scans") as told:
            found = monai_ssl.split(folder, n_validation=3)
        assert any(problem.rule == "patient" for problem in monai_ssl.check(folder, dataset=found.preset).warnings)
        pattern = re.search(r"--patient_pattern '(.+)'$", str(told[0].message))[1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = monai_ssl.split(folder, n_validation=1, patient_pattern=pattern, overwrite=True)
        assert len(again.datalist.validation) == 2
        assert not any(problem.rule == "patient" for problem in monai_ssl.check(folder, dataset=again.preset).warnings)

    def test_files_of_several_patients_in_a_folder_called_scan(self):
        assert visits(["a/scan/p1", "a/scan/p2", "b/scan/p3"]) == {}

    @pytest.mark.parametrize("case", ["{0}", "{0}/ct.nii.gz", "{0}_ct", "images/{0}/ct", "images\\{0}\\ct.nii.gz"])
    def test_a_table_may_name_folders(self, write, case):
        for name in "abc":
            folder = write(f"images/{name}/ct.nii.gz")
            write(f"labels/{name}/ct.nii.gz", values=(0, 1))
        rows = [f"{case.format(name)},{patient}" for name, patient in zip("abc", ("p", "p", "q"), strict=True)]
        (folder / "t.csv").write_text("\n".join(["case,patient", *rows]))
        found = monai_ssl.split(folder, patients=folder / "t.csv", n_validation=1).datalist
        sides = [{entry["image"].split("/")[-2] for entry in cases} for cases in (found.training, found.validation)]
        assert sorted(sides, key=len) == [{"c"}, {"a", "b"}]


def test_the_proposed_patch_fits_most_scans(write):
    for i, side in enumerate((33, 36, 36, 37, 37, 40)):
        folder = write(f"images/i{i}.nii.gz", shape=(side, side, side))
        write(f"labels/i{i}.nii.gz", values=(0, 1), shape=(side, side, side))
    found = monai_ssl.split(folder)
    assert load_preset(found.preset).patch_size == (32, 32, 32)
    assert not any(problem.rule == "patch" for problem in monai_ssl.check(folder, dataset=found.preset).warnings)

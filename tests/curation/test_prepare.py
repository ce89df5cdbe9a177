"""Every raw layout, on small files written in that layout by the libraries that write the real ones."""

import gzip
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from monai_ssl.curation.prepare import RECIPES, available_splits, build_recipe, load_split, prepare, seeded_split
from monai_ssl.curation.prepare.files import onto_grid, read_dicom, resampled, to_sitk
from monai_ssl.curation.prepare.left_atrium import label_window
from monai_ssl.curation.split import make_split
from monai_ssl.data import DataError, load_datalist, load_preset
from monai_ssl.data.formats.itk import from_sitk
from monai_ssl.data.pipelines import preprocessing
from monai_ssl.data.reading import read_volume

RAS = np.diag([1.0, 1.0, 1.0, 1.0])


def run(dataset, source, output, workers=1, **options):
    own = {key: options.pop(key) for key in list(options) if key in ("crop", "target", "task", "spacing")}
    return prepare(build_recipe(RECIPES[dataset], own), source, output, workers=workers, **options)


def organ(shape=(24, 20, 12), seed=0, classes=1):
    """A noisy image whose bright boxes are the classes, and the label."""
    random = np.random.RandomState(seed)
    image = random.randint(0, 60, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    for value in range(1, classes + 1):
        low = [int(side * (0.2 + 0.15 * value)) for side in shape]
        label[low[0] : low[0] + 4, low[1] : low[1] + 3, low[2] : low[2] + 3] = value
        image[label == value] += 100 * value
    return image, label


def save(path, array, affine=RAS, dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array if dtype is None else array.astype(dtype), affine)
    if dtype is not None:
        image.set_data_dtype(dtype)
    nib.save(image, path)
    return path


def voxels(path):
    """Array and affine of a written file; the file as a whole was checked by reading it."""
    volume, affine = read_volume(path)
    return volume[0], affine


def codes(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# ------------------------------------------------------------------------------------------------------------ splits


def test_published_sizes():
    sizes = {name: load_split(name) for name in available_splits()}
    assert {k: (len(s.training), len(s.validation), len(s.testing)) for k, s in sizes.items()} == {
        "left_atrium": (80, 0, 20),
        "acdc": (70, 10, 20),
        "brats2019": (250, 25, 60),
        "pancreas_ct": (62, 0, 20),
        "pancreas_ct_in_order": (62, 0, 18),
    }
    # "the first N" are the published ones: 7 patients of ACDC, in this order
    assert sizes["acdc"].training[:7] == tuple(f"patient{n:03d}" for n in (99, 38, 50, 100, 58, 21, 49))
    assert sizes["left_atrium"].training[0] == "06SR5RBREL16DQ6M8LWS"
    assert list(sizes["left_atrium"].training) == sorted(sizes["left_atrium"].training)


@pytest.mark.data
def test_published_lists_are_those_of_the_real_data(real_data):
    listed = (real_data / "left_atrium" / "train.list").read_text().split()
    assert list(load_split("left_atrium").training) == listed
    full = json.loads((real_data / "acdc" / "acdc_full_70_val10.json").read_text())
    for section in ("training", "validation"):
        patients = dict.fromkeys(Path(entry["image"]).name.split("_")[0] for entry in full[section])
        assert getattr(load_split("acdc"), section) == tuple(patients)


def test_seeded_split_depends_on_names_alone():
    names = [f"case{i:02d}" for i in range(20)]
    split = seeded_split(names, 5, 3, seed=1)
    assert split == seeded_split(names[::-1], 5, 3, seed=1)
    assert split != seeded_split(names, 5, 3, seed=2)
    assert sorted((*split.training, *split.validation, *split.testing)) == names
    with pytest.raises(DataError, match="leave none of 20 for training"):
        seeded_split(names, 20)


def test_own_split(tmp_path):
    (tmp_path / "mine.yaml").write_text("training: [1E05, 0012]\ntesting: [x]\nn_labeled: 1\n")
    split = load_split(tmp_path / "mine.yaml")
    assert split.training == ("1E05", "0012")  # identifiers, not numbers
    (tmp_path / "mine.yaml").write_text("training: [a, b]\ntesting: [a]\n")
    with pytest.raises(DataError, match=r"an identifier may appear once, got a twice"):
        load_split(tmp_path / "mine.yaml")
    with pytest.raises(DataError, match=r"split: must be one of acdc, .* got 'nothing'"):
        load_split("nothing")


# ------------------------------------------------------------------------------------------------------- left atrium


LA = [*load_split("left_atrium").training[:3], load_split("left_atrium").testing[0]]


def write_nrrd(folder, seed, flip_label=False, shape=(150, 130, 20)):
    """lgemri.nrrd and laendo.nrrd (0 and 255), compressed as the challenge's are, 0.625 x 0.625 x 1.25 mm, LPS."""
    image, label = organ(shape, seed)
    affine = np.diag([-0.625, -0.625, 1.25, 1.0])
    affine[:3, 3] = (50, 60, -30)
    folder.mkdir(parents=True)
    sitk.WriteImage(to_sitk(image, affine), str(folder / "lgemri.nrrd"), True)
    stored, label_affine = label * 255, affine
    if flip_label:
        stored = stored[::-1]
        label_affine = affine @ np.array([[-1, 0, 0, shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    sitk.WriteImage(to_sitk(stored.astype(np.uint8), label_affine), str(folder / "laendo.nrrd"), True)
    return image, label, affine


def test_left_atrium_nrrd(tmp_path):
    source = tmp_path / "2018 Prüfung" / "Training Set"
    originals = {name: write_nrrd(source / name, i, flip_label=i == 1) for i, name in enumerate(LA)}
    (source / LA[0] / "desktop.ini").write_text("x")
    done = run("left_atrium", source, tmp_path / "out put", n_labeled=1)
    assert done.counts == {"training": 1, "unlabeled": 2, "validation": 0, "testing": 1}
    assert not done.skipped
    assert not [p for p in done.problems if p.severity == "error"]
    assert any(
        r == f"{LA[1]}: label stored as RPS, image as LPS: label brought onto the image's axes" for r in done.remarks
    )
    for name, (image, label, affine) in originals.items():
        written, where = voxels(tmp_path / "out put" / "images" / f"{name}.nii.gz")
        mask, same = voxels(tmp_path / "out put" / "labels" / f"{name}.nii.gz")
        np.testing.assert_allclose(where, same)
        # the whole scan was normalized, then cropped around the label, whose place in the patient stays
        window = label_window(label, name)
        expected = ((image - image.mean()) / image.std())[window[0], window[1]]
        np.testing.assert_allclose(written, expected, atol=1e-5)
        np.testing.assert_array_equal(mask, label[window[0], window[1]])
        np.testing.assert_allclose(where[:3, 3], (affine @ [window[0].start, window[1].start, 0, 1])[:3], atol=1e-4)
        assert written.shape[2] == image.shape[2]
        margins = [mask.any(axis=(1, 2)).argmax(), mask[::-1].any(axis=(1, 2)).argmax()]
        assert min(margins) >= 10
    datalist = load_datalist(done.datalist)
    assert all("label" not in entry for entry in datalist.unlabeled)
    assert datalist.labels == {0: "background", 1: "left atrium"}


def test_left_atrium_without_labels(tmp_path):
    """The label-free crop needs no label and depends on none."""
    image, _, _ = write_nrrd(tmp_path / "a" / LA[0], 0, shape=(400, 340, 6))
    write_nrrd(tmp_path / "a" / LA[3], 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / LA[3] / "laendo.nrrd").unlink()
    first = run("left_atrium", tmp_path / "a", tmp_path / "out a", crop="label_free")
    second = run("left_atrium", tmp_path / "b", tmp_path / "out b", crop="label_free")
    assert (first.counts["testing"], second.counts["testing"]) == (1, 0)
    assert any("have no label and are left out" in remark for remark in second.remarks)
    name = f"{LA[3]}.nii.gz"
    assert (tmp_path / "out a" / "images" / name).read_bytes() == (tmp_path / "out b" / "images" / name).read_bytes()
    written, _ = voxels(tmp_path / "out a" / "images" / f"{LA[0]}.nii.gz")
    assert written.shape == (320, 320, 6)  # 200 mm at 0.625 mm
    np.testing.assert_allclose(written, ((image - image.mean()) / image.std())[40:360, 10:330], atol=1e-5)
    assert not any("outside" in remark for remark in first.remarks)
    # the same field of view as the preset's, so that a network meets the same region of a whole scan
    assert first.flavor == "practical"
    assert load_preset("left_atrium", "practical").center_crop == (200.0, 200.0, None)
    (tmp_path / "b" / LA[0] / "laendo.nrrd").unlink()
    shutil.rmtree(tmp_path / "b" / LA[3])
    with pytest.raises(DataError, match=r"none of 1 cases can be used: .*goes around the label, and there is none"):
        run("left_atrium", tmp_path / "b", tmp_path / "out c")


def write_h5(path, image, label):
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        file.create_dataset("label", data=label, compression="gzip")


def test_left_atrium_h5(tmp_path):
    images = {}
    for i, name in enumerate(LA):
        image, label = organ(seed=i)
        images[name] = (image - image.mean()).astype(">f4" if i == 1 else np.float32), label
        write_h5(tmp_path / "in" / name / "mri_norm2.h5", *images[name])
    truncated(tmp_path / "in" / LA[2] / "mri_norm2.h5")
    done = run("left_atrium", tmp_path / "in", tmp_path / "out", n_labeled=1)
    assert done.counts == {"training": 1, "unlabeled": 1, "validation": 0, "testing": 1}
    assert "must be a complete HDF5 file" in done.skipped[LA[2]]
    for name in (LA[0], LA[1], LA[3]):
        written, affine = voxels(tmp_path / "out" / "images" / f"{name}.nii.gz")
        np.testing.assert_array_equal(written, images[name][0])
        np.testing.assert_array_equal(voxels(tmp_path / "out" / "labels" / f"{name}.nii.gz")[0], images[name][1])
        np.testing.assert_allclose(affine, np.diag([0.625, 0.625, 0.625, 1]))
    with pytest.raises(DataError, match="cropped around the label already"):
        run("left_atrium", tmp_path / "in", tmp_path / "other", crop="label_free")


def test_h5_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "in" / LA[0]).mkdir(parents=True)
    (tmp_path / "in" / LA[0] / "mri_norm2.h5").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"needs h5py: pip install 'monai_ssl\[prepare\]'"):
        run("left_atrium", tmp_path / "in", tmp_path / "out")


@pytest.mark.data
def test_real_left_atrium_there_and_back(tmp_path, real_data):
    """NIfTI -> h5 in the layout that circulates -> prepare -> the same values."""
    for name in (LA[0], LA[1]):
        image, _ = voxels(real_data / "left_atrium" / "images" / f"{name}.nii.gz")
        label, _ = voxels(real_data / "left_atrium" / "labels" / f"{name}.nii.gz")
        write_h5(tmp_path / "in" / name / "mri_norm2.h5", image, label)
    run("left_atrium", tmp_path / "in", tmp_path / "out", n_labeled=1)
    for kind in ("images", "labels"):
        for name in (LA[0], LA[1]):
            original, where = voxels(real_data / "left_atrium" / kind / f"{name}.nii.gz")
            written, affine = voxels(tmp_path / "out" / kind / f"{name}.nii.gz")
            assert np.abs(written.astype(np.float64) - original).max() <= 1e-6
            np.testing.assert_allclose(affine, where)


# ------------------------------------------------------------------------------------------------------------- ACDC


def write_acdc(source, patient, ed=1, es=9, info=True, **options):
    folder = source / patient
    affine = np.diag([-1.5, -1.5, 8.0, 1.0])
    for frame in (ed, es):
        image, label = organ((30, 26, 5), seed=1000 * frame + int(patient[-3:]), classes=3)
        save(folder / f"{patient}_frame{frame:02d}.nii.gz", image, affine, options.get("dtype"))
        save(folder / f"{patient}_frame{frame:02d}_gt.nii.gz", label, affine)
    save(folder / f"{patient}_4d.nii.gz", np.zeros((30, 26, 5, 3), np.int16), affine)
    if info:
        (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\n")
    return folder


def test_acdc(tmp_path):
    source = tmp_path / "ACDC" / "database" / "training"
    split = load_split("acdc")
    chosen = [*split.training[:8], split.validation[0], split.testing[0]]
    for patient in chosen:
        write_acdc(source, patient)
    # the nasty ones
    first, second, third, fourth, fifth, sixth = split.training[:6]
    write_acdc(tmp_path / "ACDC" / "testing", "patient101")  # in no list
    write_acdc(source, first, ed=12, es=3)  # the systolic frame comes first
    for frame in (1, 9):
        for end in ("", "_gt"):
            (source / first / f"{first}_frame{frame:02d}{end}.nii.gz").unlink()
    (source / second / f"{second}_frame01_gt.nii.gz").unlink()
    save(source / third / f"{third}_frame01.nii.gz", np.zeros((30, 26, 5, 7), np.int16))
    truncated(source / fourth / f"{fourth}_frame01.nii.gz")
    (source / fifth / "Info.cfg").unlink()
    image, label = organ((30, 26, 5), 5, 3)
    save(source / sixth / f"{sixth}_frame01.nii.gz", image, np.diag([-1.5, -1.5, 8.0, 1.0]), ">i2")
    save(source / sixth / f"{sixth}_frame01_gt.nii.gz", label * 0.5, np.diag([-1.5, -1.5, 8.0, 1.0]), np.float32)
    (source / sixth / f"._{sixth}_frame09.nii.gz").write_bytes(b"apple")

    done = run("acdc", source.parent.parent, tmp_path / "out")
    manifest = codes(tmp_path / "out")
    assert set(done.skipped) == {f"{third}_ED", f"{fourth}_ED", f"{sixth}_ED"}
    assert "must hold one volume, got 7 (frames or channels)" in done.skipped[f"{third}_ED"]
    assert f"{fourth}_frame01.nii.gz: file must be complete, but it is truncated" in done.skipped[f"{fourth}_ED"]
    assert "label must hold integers, got 0.5" in done.skipped[f"{sixth}_ED"]
    notes = "\n".join(done.remarks)
    assert f"{second}: frame 1 has no _gt file; can only serve as unlabeled" in notes
    assert f"{fifth}: Info.cfg does not say what frame 1 is" in notes
    assert "1 patients are not in the split (published list acdc) and left out: patient101" in notes
    assert "90 of 100 patients of the split" in notes
    # 7 labeled patients with two frames, of which four are gone or bare
    assert done.counts == {"training": 10, "unlabeled": 3, "validation": 2, "testing": 2}
    assert manifest["cases"][f"{first}_ED"]["source"].keys() == {
        f"database/training/{first}/{first}_frame12{end}.nii.gz" for end in ("", "_gt")
    }
    written, affine = voxels(tmp_path / "out" / "images" / f"{first}_ED.nii.gz")
    original, where = voxels(source / first / f"{first}_frame12.nii.gz")
    np.testing.assert_array_equal(written, original)
    np.testing.assert_allclose(affine, where)
    assert not [problem for problem in done.problems if problem.severity == "error"]
    # both frames of a patient are on one side
    lists = load_datalist(done.datalist)
    sides = {}
    for section in ("validation", "testing"):
        for entry in lists.section(section):
            sides.setdefault(Path(entry["image"]).name[:10], set()).add(section)
    assert all(len(found) == 1 for found in sides.values())


# -------------------------------------------------------------------------------------------- MS-CMRSeg, BraTS, MSD


def test_mscmrseg(tmp_path):
    affine = np.diag([-1.25, -1.25, 10.0, 1.0])
    for number in range(1, 8):
        image, label = organ((30, 26, 5), number, classes=3)
        values = np.array([0, 600, 200, 500], np.int16)[label]
        save(tmp_path / "in" / "lge_images" / f"patient{number}_LGE.nii.gz", image, affine)
        save(tmp_path / "in" / "lgegt" / f"patient{number}_LGE_manual.nii.gz", values, affine)
        save(tmp_path / "in" / "c0t2" / f"patient{number}_C0.nii.gz", image, affine)
    with pytest.raises(DataError, match=r"35 training patients, got 7 in all; give --n_testing"):
        run("mscmrseg2019", tmp_path / "in", tmp_path / "out")
    done = run("mscmrseg2019", tmp_path / "in", tmp_path / "out", n_testing=2, n_labeled=2, n_validation=1)
    assert done.counts == {"training": 2, "unlabeled": 2, "validation": 1, "testing": 2}
    for number in range(1, 8):
        mask, where = voxels(tmp_path / "out" / "labels" / f"patient{number:02d}.nii.gz")
        np.testing.assert_array_equal(mask, organ((30, 26, 5), number, classes=3)[1])
        np.testing.assert_allclose(where, affine)
    assert (done.preset, done.flavor) == ("mscmrseg2019", "practical")


@pytest.mark.parametrize("target", ["whole_tumor", "whole_tumor_all", "multi_class"])
def test_brats(tmp_path, target):
    split = load_split("brats2019")
    names = [*split.training[:2], split.validation[0], split.testing[0]]
    brain = (slice(4, 20), slice(3, 17), slice(2, 11))
    for i, name in enumerate(names):
        for j, sequence in enumerate(("flair", "t1", "t1ce", "t2")):
            image, label = organ(seed=10 * i + j, classes=3)
            skull_stripped = np.zeros_like(image)
            skull_stripped[brain] = image[brain] + 1
            save(tmp_path / "in" / "HGG" / name / f"{name}_{sequence}.nii.gz", skull_stripped)
        save(tmp_path / "in" / "HGG" / name / f"{name}_seg.nii.gz", np.array([0, 1, 2, 4], np.uint8)[label])
    (tmp_path / "in" / "HGG" / names[1] / f"{names[1]}_flair.nii.gz").rename(tmp_path / "x.nii.gz")
    done = run("brats2019", tmp_path / "in", tmp_path / "out", target=target, n_labeled=1)
    assert f"{names[1]}: flair missing, ignored" in done.remarks
    assert done.counts == {"training": 1, "unlabeled": 0, "validation": 1, "testing": 1}
    preset = load_preset(done.preset, done.flavor)
    cases = load_datalist(done.datalist)
    item = preprocessing(preset, label=True)(dict(cases.training[0]))
    assert item["image"].shape[0] == preset.in_channels == (1 if target == "whole_tumor" else 4)
    assert item["image"].shape[1:] == (16, 14, 9)  # the box of the brain
    assert preset.labels == cases.labels
    assert set(np.unique(item["label"])) == ({0, 1} if target.startswith("whole_tumor") else {0, 1, 2, 3})
    np.testing.assert_array_equal(item["label"][0] > 0, organ(classes=3)[1][brain] > 0)
    other = "multi_class" if target == "whole_tumor" else "whole_tumor"
    with pytest.raises(DataError, match=r"was prepared as brats2019 --target .*, not as brats2019 --target"):
        run("brats2019", tmp_path / "in", tmp_path / "out", target=other)


def write_msd(folder, number=10, channels=1, labels=("background", "spleen")):
    entries = []
    for i in range(number):
        image, label = organ((40, 36, 20), i, classes=len(labels) - 1)
        label.flat[i] = 1  # no two labels are the same
        stack = image if channels == 1 else np.stack([image + c for c in range(channels)], axis=-1)
        save(folder / "imagesTr" / f"case_{i}.nii.gz", stack)
        save(folder / "labelsTr" / f"case_{i}.nii.gz", label)
        entries.append({"image": f"./imagesTr/case_{i}.nii.gz", "label": f"./labelsTr/case_{i}.nii.gz"})
    content = {"name": "X", "modality": {str(c): f"MR{c}" for c in range(channels)}, "training": entries,
               "labels": {str(i): name for i, name in enumerate(labels)}, "test": ["./imagesTs/a.nii.gz"]}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))


def test_any_decathlon_task(tmp_path):
    write_msd(tmp_path / "in" / "Task01_X", channels=2, labels=("background", "core", "rim"))
    (tmp_path / "in" / "Task01_X" / "imagesTr" / "case_3.nii.gz").unlink()
    done = run("msd", tmp_path / "in", tmp_path / "out")
    assert done.counts == {"training": 5, "unlabeled": 0, "validation": 2, "testing": 2}
    assert any("imagesTr/case_3.nii.gz is listed in dataset.json and missing" in remark for remark in done.remarks)
    preset = load_preset(done.preset)
    assert (preset.channels, preset.n_classes, preset.spatial_dims) == (("MR0", "MR1"), 3, 3)
    assert all(len(entry["image"]) == 2 for entry in load_datalist(done.datalist).training)
    assert any(remark.startswith("preset.yaml: patch_size") for remark in done.remarks)
    # an edited preset is kept
    (tmp_path / "out" / "preset.yaml").write_text(
        (tmp_path / "out" / "preset.yaml").read_text() + "description: mine\n"
    )
    again = run("msd", tmp_path / "in", tmp_path / "out")
    assert load_preset(again.preset).description == "mine"
    write_msd(tmp_path / "in" / "Task02_Y")
    with pytest.raises(DataError, match=r"must hold one dataset\.json, got 2 .*name the task with --task"):
        run("msd", tmp_path / "in", tmp_path / "other")
    assert run("msd", tmp_path / "in", tmp_path / "other", task="Task02_Y", n_testing=1).counts["testing"] == 1


@pytest.mark.data
def test_real_hippocampus(tmp_path, real_data):
    done = run("hippocampus", real_data / "hippocampus", tmp_path / "out", n_validation=20, check=False)
    assert done.counts == {"training": 10, "unlabeled": 130, "validation": 20, "testing": 50}
    assert not done.skipped
    listed = json.loads((real_data / "hippocampus" / "dataset.json").read_text())["training"]
    for entry in listed[::20]:
        for kind, folder in (("image", "images"), ("label", "labels")):
            stored = nib.load(real_data / "hippocampus" / entry[kind])
            written, affine = voxels(tmp_path / "out" / folder / Path(entry[kind]).name)
            np.testing.assert_array_equal(written, np.asarray(stored.dataobj))
            np.testing.assert_allclose(affine, stored.affine)


def test_download_says_where_it_can_be_had(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"acdc must be downloaded by hand \(registration\): https://humanheart"):
        run("acdc", tmp_path / "in", tmp_path / "out", download=True)
    import monai.apps

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(monai.apps, "download_and_extract", offline)
    with pytest.raises(
        DataError, match=r"Task04_Hippocampus could not be downloaded \(no route to host\); get https?://"
    ):
        run("hippocampus", tmp_path / "in", tmp_path / "out", download=True)

    def fetched(url, file, folder, hash_val, hash_type):
        write_msd(Path(folder) / "Task09_Spleen")

    monkeypatch.setattr(monai.apps, "download_and_extract", fetched)
    done = run("msd", tmp_path / "in", tmp_path / "out", task="Task09_Spleen", download=True)
    assert done.counts["testing"] == 2


# ---------------------------------------------------------------------------------------------------- DICOM, pancreas


def write_series(folder, array, affine, slope=1, intercept=-1024, uid="1.2.3", skip=(), dtype=np.int16):
    """A CT series as a scanner exports it: one file per slice, in no useful order, rescale to Hounsfield units."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    for k in range(array.shape[2]):
        if k in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{uid}.{k + 1}"
        data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = uid, "1.2", "CT"
        data.PatientName, data.PatientID, data.InstanceNumber = "Doe", "1", k + 1
        data.ImagePositionPatient = [float(v) for v in (lps @ [0, 0, k, 1])[:3]]
        data.ImageOrientationPatient = [float(v) for v in [*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1])]]
        data.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        data.SliceThickness = float(spacing[2])
        data.Rows, data.Columns = array.shape[1], array.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, int(dtype is np.int16)
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = np.ascontiguousarray(((array[:, :, k] - intercept) / slope).T.astype(dtype)).tobytes()
        name = f"{(7 * k) % array.shape[2]:06d}.dcm"  # file names do not follow the slices
        pydicom.dcmwrite(folder / name, data, enforce_file_format=True)


def abdomen(shape=(60, 50, 24), seed=0):
    """Fat, a spine, air, and an organ of soft tissue that is at home on one side."""
    random = np.random.RandomState(seed)
    image = np.full(shape, -100.0) + random.randn(*shape) * 5
    image[:, :6] = -1000
    image[25:35, 35:45] = 700
    label = np.zeros(shape, np.uint8)
    label[10:22, 12:20, 4:12] = 1
    image[label > 0] = 90 + random.randn(int(label.sum())) * 15
    return image.round(), label


@pytest.mark.parametrize("flip", [None, 1, (1, 2)])
def test_pancreas_ct(tmp_path, flip):
    source = tmp_path / "Pancreas CT"
    affine = np.diag([-0.8, -0.8, 1.5, 1.0])
    affine[:3, 3] = (100, 90, -200)
    names = ["PANCREAS_0057", "PANCREAS_0018", "PANCREAS_0050"]  # two training cases, one test case
    for i, name in enumerate(names):
        image, label = abdomen(seed=i)
        write_series(source / name / "11-24-2015" / "Pancreas-12345", image, affine, uid=f"1.2.{i + 3}")
        stored = label if flip is None else np.flip(label, flip)
        # the header of the labels tells nothing
        save(source / "TCIA_pancreas_labels" / f"label{name[-4:]}.nii.gz", stored, np.diag([0.8, 0.8, 1.5, 1]))
    done = run("pancreas_ct", source, tmp_path / "out", n_labeled=1)
    assert done.counts == {"training": 1, "unlabeled": 1, "validation": 0, "testing": 1}
    flips = [remark for remark in done.remarks if "label flipped along" in remark]
    assert len(flips) == (0 if flip is None else 3)
    image, label = abdomen(seed=0)
    written, where = voxels(tmp_path / "out" / "images" / "PANCREAS_0057.nii.gz")
    mask, _ = voxels(tmp_path / "out" / "labels" / "PANCREAS_0057.nii.gz")
    np.testing.assert_allclose(nib.affines.voxel_sizes(where), [1, 1, 1], atol=1e-4)
    assert "".join(nib.aff2axcodes(where)) == "LPS"
    assert written.dtype == np.int16
    assert abs(written[mask > 0].mean() - 90) < 15  # Hounsfield units under the label
    assert written.min() == -1000
    # 25 voxels around the label, or the border
    assert mask[::-1].any(axis=(1, 2)).argmax() == 25
    # the voxels lie where they lay: center of the organ in the patient
    center = where @ [*np.argwhere(mask).mean(axis=0), 1]
    np.testing.assert_allclose(center, affine @ [*np.argwhere(label).mean(axis=0), 1], atol=0.6)
    # the volume of the organ is kept
    assert mask.sum() == pytest.approx(label.sum() * 0.8 * 0.8 * 1.5, rel=0.1)


def test_pancreas_ct_of_nasty_kinds(tmp_path):
    source, affine = tmp_path / "in", np.diag([-1.0, -1.0, 1.0, 1.0])
    names = [f"PANCREAS_00{n}" for n in (57, 18, 62, 31, 50)]
    for i, name in enumerate(names):
        image, label = abdomen(seed=i)
        write_series(source / name / "s", image, affine, uid=f"1.2.{i + 3}", skip=(5,) if i == 1 else ())
        save(source / "labels" / f"label{name[-4:]}.nii.gz", label[:, :, :-1] if i == 2 else label)
    write_series(source / names[0] / "scout", abdomen()[0][:, :, :2], affine, uid="1.2.99")
    save(source / "labels" / "label0031.nii.gz", (abdomen()[0] < -500).astype(np.uint8))  # air
    save(source / "labels" / "label0099.nii.gz", abdomen()[1])
    done = run("pancreas_ct", source, tmp_path / "out", crop="none", spacing=2.0)
    assert done.counts == {"training": 1, "unlabeled": 0, "validation": 0, "testing": 1}
    assert "s is incomplete: slices are 1 mm apart, but 2 mm between the slices 5 and 6" in done.skipped[names[1]]
    assert "must have the shape of its series" in done.skipped[names[2]]
    assert "image and label do not belong together" in done.skipped[names[3]]
    notes = "\n".join(done.remarks)
    assert f"{names[0]}: 2 folders with DICOM files (2, 24), s is used" in notes or "(24, 2), s is used" in notes
    assert "label0099.nii.gz: label without DICOM series, ignored" in notes
    written, where = voxels(tmp_path / "out" / "images" / f"{names[0]}.nii.gz")
    assert written.shape == (30, 25, 12)
    np.testing.assert_allclose(nib.affines.voxel_sizes(where), [2, 2, 2], atol=1e-4)


@pytest.mark.data
def test_real_dicom_and_nifti_agree_in_the_patient(real_data, tmp_path):
    """The DICOM crops are flipped in x and y against the NIfTI arrays; in RAS both are the same anatomy."""
    array, affine, _ = read_dicom(real_data / "dicom" / "Study1_HCropVolume")
    assert "".join(nib.aff2axcodes(affine)) == "LPS"
    image = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.float32), affine)).get_fdata()
    mean, count = np.zeros((32, 44, 28)), 0
    for path in sorted((real_data / "hippocampus" / "imagesTr").iterdir())[:60]:
        template = nib.as_closest_canonical(nib.load(path)).get_fdata()
        center = [slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(template.shape, mean.shape, strict=True)]
        if all(c.start >= 0 for c in center):
            mean += (template[tuple(center)] - template.mean()) / template.std()
            count += 1
    center = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(image.shape, mean.shape, strict=True))
    assert count > 20
    upright = np.corrcoef(image[center].ravel(), mean.ravel())[0, 1]
    stored = np.corrcoef(np.flip(image, (0, 1))[center].ravel(), mean.ravel())[0, 1]
    assert upright > 0.5 > stored + 0.2


# ------------------------------------------------------------------------------------------- idempotence, resumption


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_again_and_after_an_interruption(tmp_path):
    write_msd(tmp_path / "in", 8)
    first = run("msd", tmp_path / "in", tmp_path / "out")
    assert (first.converted, first.reused) == (8, 0)
    before = content(tmp_path / "out")
    again = run("msd", tmp_path / "in", tmp_path / "out")
    assert (again.converted, again.reused) == (0, 8)
    assert content(tmp_path / "out") == before
    # a run that was killed: a torn line in the journal, a file gone, one half-written under its own name
    journal = (tmp_path / "out" / "prepare.jsonl").read_bytes()
    (tmp_path / "out" / "prepare.jsonl").write_bytes(journal[: len(journal) // 2])
    (tmp_path / "out" / "datalist.json").unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    truncated(tmp_path / "out" / "images" / "case_0.nii.gz")
    resumed = run("msd", tmp_path / "in", tmp_path / "out")
    assert 4 <= resumed.converted < 8
    assert content(tmp_path / "out") == before
    # a source that changed
    image, _ = organ((40, 36, 20), 77)
    time.sleep(0.01)
    save(tmp_path / "in" / "imagesTr" / "case_5.nii.gz", image)
    assert run("msd", tmp_path / "in", tmp_path / "out").converted == 1
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "images" / "case_5.nii.gz")[0], image)
    # a copy of the download elsewhere, several processes: the same bytes but for the new case
    shutil.copytree(tmp_path / "in", tmp_path / "moved")
    run("msd", tmp_path / "moved", tmp_path / "out 2", workers=2)
    ours, theirs = content(tmp_path / "out"), content(tmp_path / "out 2")
    for name in ("prepare.jsonl",):  # times of the sources
        del ours[name], theirs[name]
    assert ours == theirs


def test_manifest(tmp_path):
    write_msd(tmp_path / "in", 5)
    shutil.copyfile(tmp_path / "in" / "labelsTr" / "case_0.nii.gz", tmp_path / "in" / "labelsTr" / "case_1.nii.gz")
    done = run("msd", tmp_path / "in", tmp_path / "out")
    manifest = codes(tmp_path / "out")
    sums = {}
    for case in manifest["cases"].values():
        for folder, files in ((tmp_path / "in", case["source"]), (tmp_path / "out", case["written"])):
            sums |= {str(folder / name): entry["sha256"] for name, entry in files.items()}
    listing = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    checked = subprocess.run(["sha256sum", "--check", "--quiet"], input=listing, text=True, check=False)
    assert checked.returncode == 0
    assert str(tmp_path) not in json.dumps(manifest)  # it can be published
    assert any(remark == "case_0, case_1: the very same label" for remark in done.remarks)
    assert set(manifest["software"]) == {"monai_ssl", "numpy", "nibabel", "SimpleITK"}


def test_a_patient_twice(tmp_path):
    write_acdc(tmp_path / "in" / "a", "patient099")
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "b")
    write_acdc(tmp_path / "in" / "a", "patient011")
    done = run("acdc", tmp_path / "in", tmp_path / "out")
    assert done.counts["training"] == 2
    assert sum("is in 2 places with equal contents" in remark for remark in done.remarks) == 2
    image, _ = organ((30, 26, 5), 5)
    save(tmp_path / "in" / "b" / "patient099" / "patient099_frame01.nii.gz", image)
    with pytest.raises(DataError, match=r"patient099_ED: is in 2 places with different contents .*remove all but one"):
        run("acdc", tmp_path / "in", tmp_path / "other")


def test_the_same_scan_under_two_names_is_a_leak(tmp_path):
    for patient in ("patient099", "patient011"):
        write_acdc(tmp_path / "in", patient)
    for frame in ("01", "09"):
        shutil.copyfile(tmp_path / "in" / "patient099" / f"patient099_frame{frame}.nii.gz",
                        tmp_path / "in" / "patient011" / f"patient011_frame{frame}.nii.gz")  # fmt: skip
    done = run("acdc", tmp_path / "in", tmp_path / "out")
    errors = [problem for problem in done.problems if problem.severity == "error"]
    assert len(errors) == 2
    assert all(problem.rule == "duplicate" and "(a leak)" in problem.message for problem in errors)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("acdc", {"crop": "none"}, r"--crop: is no option of acdc, which has no options"),
        ("left_atrium", {"target": "x"}, r"--target: is no option of left_atrium, which offers --crop"),
        ("left_atrium", {"crop": "x"}, r"--crop: must be one of literature, label_free, none, got 'x'"),
        ("pancreas_ct", {"spacing": 0}, r"--spacing: must be millimeters from 0\.2 to 10, got 0"),
        ("acdc", {}, r"no case of acdc found; expected folders patientNNN .*; get it from https://humanheart"),
        ("acdc", {"seed": 1, "split": "acdc"}, r"--split and --seed: a list is not redrawn"),
        ("acdc", {"n_testing": 1, "split": "acdc"}, r"--split and --n_testing: the list says who is for testing"),
        ("acdc", {"workers": 0}, r"workers: must be at least 1, got 0"),
    ],
)
def test_refusals(tmp_path, dataset, options, message):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=message):
        run(dataset, tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_refuses_folders(tmp_path):
    with pytest.raises(DataError, match=r"source: must be the folder of the download, but .* does not exist"):
        run("acdc", tmp_path / "in", tmp_path / "out")
    write_acdc(tmp_path / "in", "patient099")
    with pytest.raises(DataError, match="output: must be a separate folder outside of the source"):
        run("acdc", tmp_path / "in", tmp_path / "in" / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "datalist.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds a datalist\.json that is not from `monai-ssl prepare`"):
        run("acdc", tmp_path / "in", tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL"])
def test_simpleitk_and_nibabel_agree(tmp_path, codes):
    array = np.random.RandomState(0).randint(0, 99, (5, 6, 7)).astype(np.int16)
    ornt = nib.orientations.axcodes2ornt(tuple(codes))
    affine = nib.orientations.inv_ornt_aff(ornt, array.shape) @ np.diag([0.5, 2.0, 3.0, 1.0])
    path = save(tmp_path / "a.nii.gz", array, affine)
    scan = from_sitk(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(scan.voxels, array)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL"])
def test_labels_are_brought_onto_the_axes_of_the_image(codes):
    label = np.random.RandomState(0).randint(0, 2, (5, 6, 7)).astype(np.uint8)
    original = nib.Nifti1Image(label, np.diag([0.5, 2.0, 3.0, 1.0]))
    ornt = nib.orientations.ornt_transform(
        nib.io_orientation(original.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = original.as_reoriented(ornt)
    back, remarks = onto_grid(np.asarray(turned.dataobj), turned.affine, label.shape, original.affine)
    np.testing.assert_array_equal(back, label)
    assert len(remarks) == (codes != "RAS")


def test_grids_that_do_not_fit():
    label = np.zeros((4, 4, 4), np.uint8)
    moved = RAS.copy()
    moved[0, 3] = 5
    assert "headers that differ by 5" in onto_grid(label, moved, label.shape, RAS)[1][0]
    with pytest.raises(DataError, match="which header is right"):
        onto_grid(label, np.diag([2.0, 1, 1, 1]), label.shape, RAS)
    with pytest.raises(DataError, match=r"must have the shape of its image, \(4, 4, 5\), got \(4, 4, 4\)"):
        onto_grid(label, RAS, (4, 4, 5), RAS)


def test_resampling_keeps_the_place():
    array = np.zeros((20, 20, 10), np.float32)
    array[8:12, 4:8, 2:6] = 100
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = (7, -8, 9)
    for spacing in ((0.5, 0.5, 0.5), (2.0, 2.0, 2.0)):
        again, where = resampled(array, affine, spacing)
        weights = again / again.sum()
        center = where @ [*(np.indices(again.shape) * weights).sum(axis=(1, 2, 3)), 1]
        np.testing.assert_allclose(center[:3], (affine @ [9.5, 5.5, 3.5, 1])[:3], atol=0.05)


def test_gz_with_a_wrong_checksum_is_named(tmp_path):
    write_msd(tmp_path / "in", 5)
    path = tmp_path / "in" / "imagesTr" / "case_2.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # the checksum at the very end: the voxels can be read
    path.write_bytes(content)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(bytes(content))
    done = run("msd", tmp_path / "in", tmp_path / "out")
    assert set(done.skipped) == {"case_2"}
    assert "imagesTr/case_2.nii.gz: file must be complete" in done.skipped["case_2"]


@pytest.mark.slow
def test_a_thousand_cases(tmp_path):
    """Prepared, checked and split within minutes; memory does not grow with the number of cases."""
    import resource

    write_msd(tmp_path / "in", 1000)
    listed = json.loads((tmp_path / "in" / "dataset.json").read_text())
    peaks, start = [], time.monotonic()
    for number in (200, 1000):
        content = {**listed, "training": listed["training"][:number]}
        (tmp_path / "in" / "dataset.json").write_text(json.dumps(content))
        done = run("msd", tmp_path / "in", tmp_path / f"out{number}", workers=2)
        assert sum(done.counts.values()) == number
        assert not [problem for problem in done.problems if problem.severity == "error"]
        split = make_split(tmp_path / f"out{number}", output=tmp_path / f"{number}.json", n_labeled=10, n_validation=20)
        assert load_datalist(split).counts()["unlabeled"] == number - 30
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    seconds = time.monotonic() - start
    print(f"1,200 cases in {seconds:.0f} s; peak memory in MB after 200 and after 1,000 more: {peaks}")
    assert seconds < 300
    assert peaks[1] - peaks[0] < 100

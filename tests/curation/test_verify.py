"""Dataset checks: every kind of bad input gives one clear line with the file's name, and good data give none."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from monai_ssl.curation.verify import Problem, verify
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.loading import load_datalist
from monai_ssl.data.preset import Intensity, Preset
from monai_ssl.data.reading import read_volume
from monai_ssl.data.rules import case_findings

SHAPE = (12, 10, 8)


def preset(**changes):
    values = {
        "name": "test",
        "spatial_dims": 3,
        "channels": ["MR"],
        "labels": {0: "background", 1: "organ"},
        "patch_size": (8, 8, 8),
        "orientation": "RAS",
        "spacing": None,
    }
    # patches this small are no valid preset: a volume of a few hundred voxels is enough here
    return Preset.model_construct(**{**values, **changes})


def voxels(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.RandomState(seed).normal(size=shape).astype(np.float32)


def mask(shape=SHAPE, value: int = 1) -> np.ndarray:
    array = np.zeros(shape, dtype=np.uint8)
    array[2:6, 2:6, 2:6] = value
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


class Dataset:
    """A sound dataset on disk, of which a test spoils one thing."""

    def __init__(self, root: Path) -> None:
        self.root = root / "Ä folder with spaces"
        self.datalist = Datalist()
        for index, section in enumerate(["training", "training", "unlabeled", "unlabeled", "validation", "testing"]):
            entry = {"image": save(self.root / f"images/case {index}.nii.gz", voxels(index))}
            label = save(self.root / f"labels/case {index}.nii.gz", mask())
            if section != "unlabeled":
                entry["label"] = label
            self.datalist.section(section).append(entry)

    def image(self, index: int = 0) -> Path:
        return self.root / f"images/case {index}.nii.gz"

    def label(self, index: int = 0) -> Path:
        return self.root / f"labels/case {index}.nii.gz"

    def verify(self, **changes) -> list[Problem]:
        return verify(self.datalist, preset(**changes), progress=False)


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


def only(problems: list[Problem], severity: str, file: str | Path) -> str:
    """The single problem's text: one line that names the file."""
    assert len(problems) == 1, [str(problem) for problem in problems]
    text = str(problems[0])
    assert problems[0].severity == severity, text
    assert text.startswith(f"{severity}: {problems[0].section}: ")
    assert problems[0].file == str(file)
    assert str(file) in text
    assert "\n" not in text
    return text


def test_sound_data_have_no_problem(dataset):
    assert dataset.verify() == []
    assert verify(dataset.datalist, preset(), workers=1, progress=True) == []


# ------------------------------------------------------------------------------------------------------------- files


def test_missing_file(dataset):
    dataset.image(1).unlink()
    assert "file must exist" in only(dataset.verify(), "error", dataset.image(1))


def test_missing_label(dataset):
    dataset.label(4).unlink()
    assert "validation" in only(dataset.verify(), "error", dataset.label(4))


def test_empty_file(dataset):
    dataset.image(2).write_bytes(b"")
    assert "got 0 bytes" in only(dataset.verify(), "error", dataset.image(2))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_gz(dataset, share):
    content = dataset.image().read_bytes()
    dataset.image().write_bytes(content[: int(len(content) * share)])
    assert "truncated or corrupt" in only(dataset.verify(), "error", dataset.image())


def test_truncated_label(dataset):
    content = dataset.label().read_bytes()
    dataset.label().write_bytes(content[: len(content) // 2])
    assert "truncated or corrupt" in only(dataset.verify(), "error", dataset.label())


def test_damaged_checksum(dataset):
    # one voxel changed and packed without compression: only the checksum tells
    content = bytearray(gzip.compress(gzip.decompress(dataset.image().read_bytes()), compresslevel=0))
    content[-100] ^= 0xFF
    dataset.image().write_bytes(bytes(content))
    nib.load(dataset.image()).get_fdata()  # nibabel alone does not notice
    assert "corrupt (CRC" in only(dataset.verify(), "error", dataset.image())


def test_truncated_uncompressed(dataset, tmp_path):
    file = tmp_path / "scan.nii"
    save(file, voxels(9))
    file.write_bytes(file.read_bytes()[:1000])
    dataset.datalist.unlabeled[0] = {"image": str(file)}
    assert "truncated" in only(dataset.verify(), "error", file)


@pytest.mark.parametrize(
    "content",
    [b"<html>not found</html>", gzip.compress(b"hello" * 100), b"\x1f\x8bnonsense" * 20],
    ids=["a web page", "compressed text", "half a header"],  # gzip writes the time into its header
)
def test_no_nifti_inside(dataset, content):
    dataset.image().write_bytes(content)
    assert "file must be" in only(dataset.verify(), "error", dataset.image())


def test_unreadable_format(dataset, tmp_path):
    file = tmp_path / "notes.docx"
    file.write_bytes(b"PK words")
    dataset.datalist.unlabeled[0] = {"image": str(file)}
    assert "file must be an image of a known format (.nii.gz, .nii" in only(dataset.verify(), "error", file)


def test_simpleitk_files_read_like_nibabel_files(tmp_path):
    # SimpleITK indexes (z, y, x) and writes LPS: the voxels must come back as (x, y, z)
    array = voxels(3)
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((0.5, 1.0, 2.0))
    SimpleITK.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    volume, affine = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume, array[None])
    np.testing.assert_allclose(np.abs(np.diag(affine)), [0.5, 1.0, 2.0, 1.0])


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_flavors_and_scaling(tmp_path, name, kind):
    image = kind(voxels(1).astype(np.int16), np.diag([1, 2, 3, 1]))
    image.header.set_slope_inter(0.5, 7)
    nib.save(image, tmp_path / name)
    volume, affine = read_volume(tmp_path / name)
    np.testing.assert_allclose(volume[0], nib.load(tmp_path / name).get_fdata())
    np.testing.assert_allclose(affine, np.diag([1, 2, 3, 1]))


# --------------------------------------------------------------------------------------------------- shapes, channels


def test_4d_where_one_channel_is_due(dataset):
    save(dataset.image(), voxels(0, (*SHAPE, 3)))
    text = only(dataset.verify(), "error", dataset.image())
    assert "image must have 1 channel(s) (MR), got 3 with shape (12, 10, 8)" in text


def test_one_channel_where_two_are_due(dataset):
    save(dataset.image(), voxels(0, (*SHAPE, 2)))
    problems = dataset.verify(channels=["T1", "T2"])
    assert len(problems) == 5
    assert all("image must have 2 channel(s) (T1, T2), got 1" in problem.message for problem in problems)


def test_channels_in_several_files(dataset, tmp_path):
    def entry(*arrays, affine=None):
        files = [save(tmp_path / f"c{i}.nii.gz", array, affine if i else None) for i, array in enumerate(arrays)]
        return Datalist(training=[{"image": files, "label": str(dataset.label())}])

    def check(datalist):
        return verify(datalist, preset(channels=["T1", "T2"]), sections=["training"], progress=False)

    assert check(entry(voxels(1), voxels(2))) == []
    text = only(check(entry(voxels(1), voxels(2, (12, 10, 9)))), "error", tmp_path / "c1.nii.gz")
    assert "channels must have one shape, got (12, 10, 9) and (12, 10, 8) of " in text
    text = only(check(entry(voxels(1), voxels(2), affine=np.diag([1, 1, 2, 1]))), "error", tmp_path / "c1.nii.gz")
    assert "channels must be on one grid" in text
    text = only(check(entry(voxels(1), voxels(1) * 0)), "warning", tmp_path / "c0.nii.gz")
    assert "channel 1 has 0 in every voxel" in text


def test_wrong_number_of_axes(dataset, tmp_path):
    save(dataset.image(2), voxels(2, (12, 10)))
    assert "image must have 3 spatial axes, got shape (12, 10)" in only(dataset.verify(), "error", dataset.image(2))


def test_a_2d_preset_takes_images_and_stacks_of_slices(dataset, tmp_path):
    save(dataset.image(0), voxels(0, (12, 10)))
    save(dataset.image(1), voxels(1, (6, 10, 3)))
    datalist = Datalist(unlabeled=[{"image": str(dataset.image(i))} for i in range(2)])
    problems = verify(datalist, preset(spatial_dims=2, patch_size=(8, 8)), sections=["unlabeled"], progress=False)
    assert not [p for p in problems if p.severity == "error"]
    # the patch is compared with the slice, not with the number of slices
    assert "slice (6, 10) is smaller than the patch (8, 8)" in only(problems, "warning", dataset.image(1))


def test_5d(dataset):
    save(dataset.image(), voxels(0, (12, 10, 8, 1, 3)))  # a vector image of NIfTI
    assert "must have 1 channel(s) (MR), got 3" in only(dataset.verify(), "error", dataset.image())


def test_a_series_of_vector_images(dataset):
    save(dataset.image(), voxels(0, (12, 10, 8, 2, 3)))
    assert "at most 4 axes" in only(dataset.verify(), "error", dataset.image())


def test_label_of_another_shape(dataset):
    save(dataset.label(), mask((12, 10, 9)))
    text = only(dataset.verify(), "error", dataset.label())
    assert "label must have the shape of its image, (12, 10, 8), got (12, 10, 9)" in text


def test_2d_images(tmp_path):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "a.png")
    Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(tmp_path / "a_seg.png")
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3)).save(tmp_path / "rgb.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])

    def check(image, label, channels=("gray",)):
        datalist = Datalist(training=[{"image": str(tmp_path / image), "label": str(tmp_path / label)}])
        kind = preset(spatial_dims=2, patch_size=(4, 4), channels=list(channels))
        return verify(datalist, kind, sections=["training"], progress=False)

    assert check("a.png", "a_seg.png") == []
    assert check("rgb.png", "a_seg.png", "RGB") == []
    assert "1 channel(s) (gray), got 3" in only(check("rgb.png", "a_seg.png"), "error", tmp_path / "rgb.png")
    assert "file must be an image of a known format" in only(
        check("bad.png", "a_seg.png"), "error", tmp_path / "bad.png"
    )


# ----------------------------------------------------------------------------------------------------------- geometry


def test_affine_mismatch_and_its_tolerance(dataset):
    shifted = np.eye(4)
    shifted[0, 3] = 0.0009
    save(dataset.label(), mask(), shifted)
    assert dataset.verify() == []
    shifted[0, 3] = 0.01
    save(dataset.label(), mask(), shifted)
    assert "label must be on its image's grid, got an affine that differs (by up to 0.01)" in only(
        dataset.verify(), "error", dataset.label()
    )


def test_affine_without_volume(dataset):
    image = nib.Nifti1Image(voxels(2), None)
    image.header.set_sform(np.diag([1, 1, 0, 1]), code=1)
    nib.save(image, dataset.image(2))
    assert "header must state a valid affine" in only(dataset.verify(), "error", dataset.image(2))


def test_spacing_outlier(dataset):
    save(dataset.image(3), voxels(3), np.diag([1, 1, 3, 1]))
    text = only(dataset.verify(), "warning", dataset.image(3))
    assert "voxel spacing 1 x 1 x 3 mm is far from the others' 1 x 1 x 1 mm" in text
    # resampling takes care of small differences
    save(dataset.image(3), voxels(3), np.diag([1, 1, 1.5, 1]))
    assert len(dataset.verify()) == 1
    assert dataset.verify(spacing=[1, 1, 1]) == []


def test_orientation_is_noted_only_where_the_preset_does_not_reorient(dataset):
    save(dataset.image(3), voxels(3), np.diag([-1, -1, 1, 1]))
    assert dataset.verify(orientation="RAS") == []
    text = only(dataset.verify(orientation=None), "warning", dataset.image(3))
    assert "1 of 6 cases are stored as LPS" in text


def test_small_volume(dataset):
    save(dataset.image(3), voxels(3, (12, 7, 8)))
    text = only(dataset.verify(), "warning", dataset.image(3))
    assert "volume (12, 7, 8) is smaller than the patch (8, 8, 8) and will be padded" in text


def test_patch_is_compared_after_reorientation_and_resampling(dataset):
    # stored as (S, R, A): 8 x 12 x 10 voxels of 2 mm
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[0, 1] = affine[1, 2] = 2
    affine[3, 3] = 1
    for index in range(6):
        save(dataset.image(index), voxels(index).transpose(2, 0, 1), affine)
        save(dataset.label(index), mask().transpose(2, 0, 1), affine)
    assert dataset.verify(patch_size=(12, 10, 8)) == []
    assert dataset.verify(patch_size=(24, 20, 16), spacing=[1, 1, 1]) == []
    problems = dataset.verify(patch_size=(24, 20, 17), spacing=[1, 1, 1])
    assert "volume (24, 20, 16) is smaller" in problems[0].message


def test_equal_warnings_become_one_line(dataset):
    dataset.datalist.unlabeled += [
        {"image": save(dataset.root / f"images/more {index}.nii.gz", voxels(100 + index))} for index in range(5)
    ]
    problems = dataset.verify(patch_size=(16, 8, 8))
    assert [problem.section for problem in problems] == ["training", "unlabeled", "validation", "testing"]
    assert problems[0].message.endswith("(and 1 more case of this list)"), "told once per list"
    assert problems[1].message.endswith("(and 6 more cases of this list)")


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(dataset, value):
    array = voxels(2)
    array[1, 1, 1] = value
    save(dataset.image(2), array)
    assert "image must be finite, got 1 NaN or infinite voxels" in only(dataset.verify(), "error", dataset.image(2))


def test_constant_images_and_only_one_line_each(dataset):
    for index in (2, 3):
        save(dataset.image(index), np.full(SHAPE, 5, dtype=np.int16))
    problems = dataset.verify()
    assert [problem.file for problem in problems] == [str(dataset.image(2)), str(dataset.image(3))]
    assert "got 5 in every voxel" in problems[0].message


def test_label_values_outside_the_classes(dataset):
    save(dataset.label(), mask(value=3))
    text = only(dataset.verify(), "error", dataset.label())
    assert "label values must be among the preset's classes [0, 1], got 3" in text
    assert [str(p) for p in dataset.verify(labels={0: "b", 1: "x", 2: "y", 3: "z"}) if p.severity == "error"] == []


def test_negative_label(dataset):
    save(dataset.label(), -mask().astype(np.int16))
    assert "got -1" in only(dataset.verify(), "error", dataset.label())


def test_label_that_was_interpolated(dataset):
    save(dataset.label(), mask().astype(np.float32) * 0.5)
    assert "label must hold integers, got 0.5" in only(dataset.verify(), "error", dataset.label())
    save(dataset.label(), np.full(SHAPE, np.nan, dtype=np.float32))
    assert "label must hold integers, got nan" in only(dataset.verify(), "error", dataset.label())
    save(dataset.label(), mask().astype(np.float32))
    assert dataset.verify() == []


def test_empty_label(dataset):
    save(dataset.label(), mask() * 0)
    assert "label is empty" in only(dataset.verify(), "warning", dataset.label())


def test_class_without_any_training_label(dataset):
    problems = dataset.verify(labels={0: "background", 1: "organ", 2: "tumor"})
    assert "class 2 (tumor) is in no training label" in only(problems, "warning", "datalist")


def test_classes_of_another_preset(dataset):
    dataset.datalist.labels = {0: "background", 1: "organ", 2: "tumor"}
    assert "names the classes [0, 1, 2], the preset [0, 1]" in only(dataset.verify(), "warning", "datalist")


# --------------------------------------------------------------------------------------------------------- the lists


def test_no_unlabeled_cases(dataset):
    dataset.datalist.unlabeled = []
    assert "trains as supervised" in only(dataset.verify(), "warning", "datalist")


def test_no_training_cases(dataset):
    dataset.datalist.training = []
    dataset.datalist.path = dataset.root / "datalist.json"
    text = only(dataset.verify(), "error", dataset.root / "datalist.json")
    assert "at least one labeled training case, got 0" in text
    assert verify(dataset.datalist, preset(), sections=["validation"], progress=False) == []


def test_the_same_path_twice(dataset):
    link = dataset.root / "images/link.nii.gz"
    link.symlink_to(dataset.image(0))
    dataset.datalist.validation[0]["image"] = str(link)
    text = only(dataset.verify(), "error", dataset.image(0).resolve())
    assert "got training and validation" in text


@pytest.mark.parametrize(
    ("first", "second", "severity"),
    [
        (0, 4, "error"),  # training, validation
        (0, 5, "error"),  # training, testing
        (2, 4, "error"),  # unlabeled, validation
        (4, 5, "error"),  # validation, testing
        (0, 1, "warning"),  # training twice
        (0, 2, "warning"),  # training, unlabeled: no leak, but the scan counts twice
        (2, 3, "warning"),  # unlabeled twice
    ],
)
def test_the_same_voxels_twice(dataset, first, second, severity):
    # another name, another number type: still the same scan
    save(dataset.image(first), np.round(voxels(7) * 100).astype(np.int16))
    save(dataset.image(second), np.round(voxels(7) * 100).astype(np.float32))
    text = only(dataset.verify(), severity, dataset.image(second))
    assert f"the same voxels as {dataset.image(first)}" in text
    assert ("a leak" in text) == (severity == "error")


def test_three_copies_give_two_lines(dataset):
    for index in (0, 2, 3):
        save(dataset.image(index), voxels(7))
    assert [problem.file for problem in dataset.verify()] == [str(dataset.image(2)), str(dataset.image(3))]


def test_labels_of_unlabeled_cases_are_never_opened(dataset, monkeypatch):
    import builtins

    forbidden = {str(dataset.label(index)) for index in (2, 3)}
    for file in forbidden:
        Path(file).write_bytes(b"not a label")
    # even where a careless caller hands the label over
    dataset.datalist.unlabeled[0]["label"] = str(dataset.label(2))
    opened = []
    original = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: opened.append(str(file)) or original(file, *a, **k))
    assert dataset.verify() == []
    assert str(dataset.label(0)) in opened
    assert not forbidden & set(opened)


def test_every_problem_is_reported_in_the_order_of_the_lists(dataset):
    dataset.image(4).write_bytes(b"")
    dataset.image(0).unlink()
    save(dataset.label(1), mask(value=9))
    problems = dataset.verify()
    assert [problem.file for problem in problems] == [
        str(dataset.image(0)),
        str(dataset.label(1)),
        str(dataset.image(4)),
    ]
    assert problems == verify(dataset.datalist, preset(), workers=3, progress=False)


def test_arguments(dataset):
    with pytest.raises(ValueError, match=r"sections must be among .*, got 'train'"):
        verify(dataset.datalist, preset(), sections=["train"])
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        verify(dataset.datalist, preset(), workers=0)


def test_one_line_even_for_odd_names():
    assert "\n" not in str(Problem("error", "training", "a\nb.nii", "rule"))


# ------------------------------------------------------------------------------------------------------ one loaded case


def test_case_findings_takes_tensors():
    image, label = torch.from_numpy(voxels(0))[None], torch.from_numpy(mask())[None]
    assert case_findings(image, label, preset()) == []
    assert case_findings(image.to(torch.bfloat16), label[0], preset()) == []
    assert case_findings(image, None, preset()) == []
    image[0, 0, 0, 0] = float("nan")
    first = case_findings(image, label * 4, preset())[0]
    assert (first.severity, first.about, first.message.split(",")[0]) == ("error", "image", "image must be finite")
    assert len(case_findings(image, label * 4, preset())) == 2


def test_case_findings_refuses_one_hot_labels():
    (found,) = case_findings(voxels(0)[None], np.stack([1 - mask(), mask()]), preset())
    assert (found.severity, found.about) == ("error", "label")
    assert found.message == "label must hold one value per voxel, got 2 channels: merge them into one label map"


# ---------------------------------------------------------------------------------------------------------- real scans


@pytest.mark.data
def test_left_atrium_has_no_errors():
    root = os.environ.get("MONAI_SSL_DATA")
    if not root:
        pytest.skip("MONAI_SSL_DATA is not set")
    datalist = load_datalist("la_dev_8_56_val16.json", Path(root) / "left_atrium")
    assert datalist.counts() == {"training": 8, "unlabeled": 56, "validation": 16, "testing": 0}
    kind = preset(labels={0: "background", 1: "left atrium"}, patch_size=(112, 112, 80))
    assert [str(problem) for problem in verify(datalist, kind, progress=False)] == []


def test_gray_values_that_the_preset_cannot_be_meant_for(dataset):
    def problems(policy, window=None):
        found = dataset.verify(intensity=Intensity.model_construct(policy=policy, window=window))
        return [problem for problem in found if problem.rule == "intensity"]

    assert not problems("as_stored")
    save(dataset.image(0), voxels(0) * 100 + 5000)
    assert not problems("robust")
    assert "go into the network as stored" in only(problems("as_stored"), "warning", dataset.image(0))
    assert "voxels within the window [-5, 5], got 4" in only(problems("window", [-5, 5]), "error", dataset.image(0))


def test_sizes_are_those_that_the_network_will_see(dataset):
    def warned(**options):
        found = dataset.verify(spatial_dims=2, patch_size=(8, 8), **options)
        return any(problem.rule == "patch" for problem in found)

    assert not warned()
    assert warned(center_crop=[5.0, None])
    assert warned(spacing=[2.0, 2.0])
    save(dataset.image(0), voxels(0, (6, 10, 8)))
    save(dataset.label(0), mask((6, 10, 8)))
    assert warned()
    assert not warned(resize=[32, 32])

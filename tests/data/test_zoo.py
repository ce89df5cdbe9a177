"""One truth about files: ``check`` accepts one <=> training, prediction and evaluation read it, all the same voxels."""

from __future__ import annotations

import locale
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zoo import FLAT, SHAPE, ZOO, classes, nifti

from monai_ssl.curation.verify import verify
from monai_ssl.data import CaseDataset, DataError, load_preset, preprocessing, validation_preprocessing
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.pipelines import postprocessing, training_preprocessing
from monai_ssl.data.reading import read_label, read_volume
from monai_ssl.engines import VolumeSegmenter, WindowInferer

SOUND = [name for name, animal in ZOO.items() if animal.voxels is not None]
SICK = [name for name, animal in ZOO.items() if animal.voxels is None]


class SeesItsImage(nn.Module):
    """The class of a voxel is its gray value: a segmentation must then be the image, voxel for voxel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([-((image[:, :1] - k) ** 2) for k in range(4)], 1)


def preset_of(dims: int, channels: int):
    return load_preset(
        {
            "name": "zoo",
            "spatial_dims": dims,
            "channels": [f"c{i}" for i in range(channels)],
            "labels": {0: "background", 1: "a", 2: "b", 3: "c"},
            "patch_size": [16] * dims,
            "orientation": None,
            "intensity": {"policy": "as_stored"},
            "augmentation": {"policy": "none"},
        }
    )


def segment(folder: Path, image: Path, preset) -> Path:
    """A prediction from file to file; returns the result's file."""
    chain = preprocessing(preset)
    segmenter = VolumeSegmenter(
        "cpu",
        SeesItsImage(),
        chain,
        WindowInferer(preset.patch_size, amp="off"),
        postprocessing(preset, chain, str(folder), data_root=str(image.parent)),
        cases=[{"image": str(image)}],
        output_dir=folder,
        data_root=str(image.parent),
    )
    segmenter.run()
    (result,) = (file for file in folder.iterdir() if file.name != "predict.json")
    return result


def problems_of(entry, preset) -> list[str]:
    found = verify(Datalist(training=[entry]), preset, sections=["training"], progress=False)
    return [str(problem) for problem in found if problem.severity == "error"]


def label_of(folder: Path, name: str) -> Path:
    """A label for an image: of the same kind where that can be, else NIfTI or PNG on the same grid."""
    from PIL import Image

    animal = ZOO[name]
    folder.mkdir()
    if animal.channels == 1 and not animal.approximate:
        return animal.write(folder)
    if animal.affine is None:
        Image.fromarray(classes(animal.voxels.shape).T).save(folder / "a.png")
        return folder / "a.png"
    return nifti(folder / "a.nii.gz", classes(animal.voxels.shape), animal.affine)


@pytest.mark.parametrize("name", SOUND)
def test_what_the_check_accepts_every_command_reads(tmp_path, name):
    animal = ZOO[name]
    (tmp_path / "images").mkdir()
    image, label = animal.write(tmp_path / "images"), label_of(tmp_path / "labels", name)
    entry, preset = {"image": str(image), "label": str(label)}, preset_of(animal.voxels.ndim, animal.channels)
    if name in ("NIfTI slice as a volume",):
        preset = preset_of(2, 1)

    def same(found):
        found = np.asarray(found)
        assert found.shape == (animal.channels, *animal.voxels.shape)
        np.testing.assert_allclose(found[0].astype(float), animal.voxels, rtol=0, atol=animal.approximate or 1e-6)

    assert problems_of(entry, preset) == []
    former = locale.setlocale(locale.LC_ALL)
    volume, affine = read_volume(image)
    assert locale.setlocale(locale.LC_ALL) == former  # some library of ITK changes it
    same(volume)
    if animal.affine is not None:
        np.testing.assert_allclose(affine, animal.affine, atol=1e-4)
    expected_label = read_label(label)[0]
    if animal.channels == 1 and not animal.approximate:
        np.testing.assert_array_equal(expected_label[0], animal.voxels)

    trained = CaseDataset([entry], training_preprocessing(preset), num_workers=1)[0]
    same(trained["image"])
    np.testing.assert_array_equal(trained["label"].numpy(), expected_label)
    validated = validation_preprocessing(preset)(dict(entry))
    same(validated["image"])
    np.testing.assert_array_equal(validated["label"].numpy(), expected_label)

    result = segment(tmp_path / "out", image, preset)
    drawn, drawn_affine = read_label(result)
    if not animal.approximate:
        np.testing.assert_array_equal(drawn[0], animal.voxels)
    if affine is not None:
        np.testing.assert_allclose(drawn_affine, affine, atol=1e-4)
    assert b"SECRET" not in content(result)


@pytest.mark.parametrize("name", [n for n in SOUND if ZOO[n].channels == 1 and not ZOO[n].approximate])
def test_ignored_voxels_of_every_kind_of_label(tmp_path, name):
    animal = ZOO[name]
    (tmp_path / "images").mkdir()
    entry = {"image": str(animal.write(tmp_path / "images")), "label": str(label_of(tmp_path / "labels", name))}
    flat = name == "NIfTI slice as a volume"
    content = preset_of(2 if flat else animal.voxels.ndim, 1).model_dump()
    del content["labels"][3]
    preset = load_preset(content | {"ignore_label": 3})
    ignored: dict = {}
    problems = verify(Datalist(training=[entry]), preset, sections=["training"], progress=False, ignored=ignored)
    assert [str(problem) for problem in problems if problem.severity == "error"] == []
    assert [pair[0] for pair in ignored.values()] == [n for n in [(animal.voxels == 3).sum()] if n]
    expected = np.where(animal.voxels == 3, 255, animal.voxels)
    trained = CaseDataset([entry], training_preprocessing(preset), num_workers=1)[0]["label"]
    np.testing.assert_array_equal(trained.numpy()[0], expected)
    validated = validation_preprocessing(preset)(dict(entry))["label"]
    np.testing.assert_array_equal(np.asarray(validated)[0], expected)


def content(file: Path) -> bytes:
    import gzip

    raw = file.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


@pytest.mark.parametrize("name", SICK)
def test_what_the_check_refuses_no_command_reads(tmp_path, name):
    (tmp_path / "images").mkdir()
    file = ZOO[name].write(tmp_path / "images")
    dims = 2 if file.suffix in (".png", ".tif") else 3
    preset = preset_of(dims, 1)
    (tmp_path / "label").mkdir()
    sound_label = nifti(tmp_path / "label" / "a.nii.gz", classes(SHAPE if dims == 3 else FLAT))
    entry = {"image": str(file), "label": str(sound_label)}

    errors = problems_of(entry, preset)
    assert errors
    assert not any("Doe_Jane" in error for error in errors)
    assert all(str(file) in error and "\n" not in error and "Traceback" not in error for error in errors)
    assert not any("cannot be checked" in error for error in errors)

    with pytest.raises(DataError) as caught:
        CaseDataset([entry], training_preprocessing(preset), num_workers=1)[0]
    assert file.name in refused(caught.value)
    with pytest.raises(RuntimeError) as caught:
        validation_preprocessing(preset)(dict(entry))
    assert file.name in refused(caught.value)
    with pytest.raises(DataError, match="1 of 1 images could not be segmented") as caught:
        segment(tmp_path / "out", file, preset)
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)


def refused(error: BaseException | None) -> str:
    while error is not None and not isinstance(error, DataError):
        error = error.__cause__
    assert isinstance(error, DataError)
    assert "\n" not in str(error)
    return str(error)

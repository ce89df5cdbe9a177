"""Where only one of image and label says where it lies."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ssl.curation.propose import propose_preset
from monai_ssl.curation.split import infer_labels
from monai_ssl.curation.verify import verify
from monai_ssl.data import CaseDataset, DataError, load_preset
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.pipelines import training_preprocessing, validation_preprocessing

LPS = np.diag([-2.0, -1.0, 1.0, 1.0])


def preset_of(dims, **more):
    return load_preset({"name": "mine", "labels": {0: "background", 1: "organ"}, "spatial_dims": dims,
                        "patch_size": [16] * dims, "orientation": "RAS", **more})  # fmt: skip


def write(path, values, affine):
    """A file that states its place, or a format that cannot: the same voxels."""
    if affine is not None:
        nib.save(nib.Nifti1Image(values, affine), path.with_suffix(".nii.gz"))
        return str(path.with_suffix(".nii.gz"))
    if values.ndim == 2:
        Image.fromarray(values.T).save(path.with_suffix(".png"))
        return str(path.with_suffix(".png"))
    np.save(path.with_suffix(".npy"), values)
    return str(path.with_suffix(".npy"))


@pytest.mark.parametrize("spacing", [False, True])
@pytest.mark.parametrize("states", ["image", "label", "both", "none"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_label_lies_where_its_image_does(tmp_path, dims, states, spacing):
    shape = (24, 30, 20)[:dims]
    image, label = np.full(shape, 10, np.uint8), np.zeros(shape, np.uint8)
    corner = tuple(slice(0, 5) for _ in shape)
    image[corner], label[corner] = 200, 1
    places = [LPS if states in (which, "both") else None for which in ("image", "label")]
    entry = {"image": write(tmp_path / "a", image, places[0]), "label": write(tmp_path / "a_seg", label, places[1])}
    preset = preset_of(dims, **({"spacing": [2.0] * dims} if spacing else {}))
    item = CaseDataset([entry], training_preprocessing(preset))[0]
    assert item["image"].shape == item["label"].shape
    bright, dark = (item["image"][item["label"] == value].mean() for value in (1, 0))
    assert bright > 2 + dark  # standard deviations
    kept = CaseDataset([entry], validation_preprocessing(preset))[0]["label"]
    np.testing.assert_array_equal(np.asarray(kept)[0], label)  # scores are taken on the grid of the file
    told = [
        str(p) for p in verify(Datalist(training=[entry]), preset, ["training"], progress=False) if "place in" in str(p)
    ]
    assert len(told) == (states in ("image", "label"))


@pytest.mark.parametrize(
    ("more", "what"), [({"spacing": [0.5, 0.5]}, "resamples"), ({"center_crop": [20, 20]}, "crops")]
)
def test_millimeters_of_a_picture_that_states_none_are_told(tmp_path, more, what):
    values = np.arange(24 * 30, dtype=np.uint8).reshape(24, 30)
    entry = {"image": write(tmp_path / "a", values, None), "label": write(tmp_path / "s", values // 200, None)}

    def told(preset):
        found = verify(Datalist(training=[entry]), preset, ["training"], progress=False)
        return [problem.message for problem in found if problem.rule == "no_size"]

    (text,) = told(preset_of(2, **more))
    assert text.startswith(f"image states no voxel size, and the preset {what} in millimeters: 1 mm is taken")
    assert told(preset_of(2)) == []


def slices(folder, affine, shape=(32, 40, 9), n=2):
    folder.mkdir(exist_ok=True)
    entries = []
    for k in range(n):
        values = np.random.RandomState(k).rand(*shape).astype(np.float32)
        label = np.zeros(shape, np.uint8)
        label[5:12, 5:12] = 1
        names = [str(folder / f"{k}{end}.nii.gz") for end in ("", "_seg")]
        for name, array in zip(names, (values, label), strict=True):
            nib.save(nib.Nifti1Image(array, affine), name)
        entries.append({"image": names[0], "label": names[1]})
    return entries


# columns: stored axes; P, S, R
SAGITTAL = np.array([[0, 0, 4.0, 0], [-0.5, 0, 0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1.0]])


def orientation_problems(entries, preset):
    found = verify(Datalist(training=entries), preset, ["training"], progress=False)
    return [str(problem) for problem in found if problem.rule in ("orientation", "plane")]


def test_nobody_is_advised_to_take_slices_along_another_axis(tmp_path):
    entries = slices(tmp_path, SAGITTAL)
    proposal = propose_preset(entries, {0: "background", 1: "organ"}).preset
    assert proposal["orientation"] is None
    assert orientation_problems(entries, preset_of(2, orientation=None)) == []
    (told,) = orientation_problems(entries, preset_of(2))
    assert "stored as PSR, and 'orientation: RAS' takes their slices along another axis than the last one" in told
    assert orientation_problems(entries, preset_of(2, orientation="PSR")) == []
    others = slices(tmp_path / "axial", np.diag([0.5, 0.8, 4, 1.0]))
    assert len(orientation_problems(entries + others, preset_of(2, orientation=None))) == 2


def test_a_picture_in_another_plane_is_not_brought_to_ras(tmp_path):
    entries = slices(tmp_path, SAGITTAL, shape=(32, 40))
    proposal = propose_preset(entries, {0: "background", 1: "organ"})
    assert proposal.preset["orientation"] is None
    assert "orientation null: some pictures do not lie in an axial plane" in proposal.reasons
    (told, _) = orientation_problems(entries, preset_of(2))
    assert told.startswith("error")
    assert "a picture in space must lie in the plane of R/L and A/P to be brought to RAS, got the axes PS" in told
    CaseDataset(entries, training_preprocessing(preset_of(2, orientation=None)))[0]
    axial = slices(tmp_path / "axial", np.diag([-0.5, 0.8, 4, 1.0]), shape=(32, 40))
    assert propose_preset(axial, {0: "background", 1: "organ"}).preset["orientation"] == "RAS"
    assert orientation_problems(axial, preset_of(2)) == []


def test_masks_that_were_saved_as_jpeg_are_refused(tmp_path):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 12:28] = 255
    Image.fromarray(mask).save(tmp_path / "a.jpg", quality=75)
    with pytest.raises(DataError, match=r"a\.jpg: a label must hold its classes exactly, got \d+ values in a JPEG"):
        infer_labels([str(tmp_path / "a.jpg")])

"""The same bundles train, evaluate and segment in 2D and 3D, with two and more classes, by --dataset alone."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from monai_ssl.bundle.library import available_bundles, find_bundle, run_bundle
from monai_ssl.curation.phantom.dataset import write_phantom
from monai_ssl.metrics import read_results

NAMES = {0: "background", 1: "first", 2: "second", 3: "third"}


def write_stacks(folder: Path, n_classes: int, shape: tuple[int, ...]) -> None:
    """Stacks of a few thick slices, smaller and larger than the patch; the outer slices are empty."""
    random = np.random.RandomState(0)
    lists: dict[str, list] = {"training": [], "unlabeled": [], "validation": []}
    for i, section in enumerate(("training", "training", "unlabeled", "unlabeled", "validation")):
        sides = tuple(side + 3 * i if axis == 0 else side for axis, side in enumerate(shape))
        label = np.zeros(sides, np.uint8)
        for value in range(1, n_classes):
            label[4 + value : 9 + value, 2 * value : 2 * value + 5, 1:-1] = value
        image = (random.rand(*sides) + 2 * label).astype(np.float32)
        affine = np.diag([-1.5, -1.25, 8.0, 1.0])
        entry = {}
        for kind, array in (("image", image), ("label", label)):
            path = folder / f"{kind}s" / f"case_{i}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), path)
            if kind == "image" or section != "unlabeled":
                entry[kind] = f"{kind}s/{path.name}"
        lists[section].append(entry)
    (folder / "datalist.json").write_text(json.dumps(lists))


# what bundles have in common is tried on these: one that reads unlabeled images, one that does not
IN_FULL = ("dtc", "supervised")
# of patches that are a single voxel at the coarsest scale
OWN = {"ict": {"method#joint_pass": True}}
CASES = [("phantom 2D", 2, 2), ("phantom 2D", 2, 4), ("phantom 3D", 3, 4), ("stacks", 2, 4), ("stacks", 3, 3)]


@pytest.mark.parametrize(
    ("bundle", "data", "dims", "n_classes"),
    [(bundle, *case) for bundle in available_bundles() for case in (CASES if bundle in IN_FULL else CASES[1:3])],
)
def test_from_training_to_segmentation(tmp_path, bundle, data, dims, n_classes):
    folder = tmp_path / "data"
    if data == "stacks":
        write_stacks(folder, n_classes, (14, 40, 6) if dims == 2 else (20, 18, 17))
    else:
        write_phantom(folder, n_labeled=2, n_unlabeled=2, n_validation=1, n_testing=0, spacing=5.0, spatial_dims=dims,
                      n_classes=n_classes, progress=False)  # fmt: skip
    classes = {value: name for value, name in NAMES.items() if value < n_classes}
    preset = {
        "spatial_dims": dims,
        "labels": classes,
        "orientation": None if dims == 2 else "RAS",
        "patch_size": [16] * dims,
        "augmentation": {"policy": "practical", "flip_axes": [0], "rotate90_axes": [0, 1]},
        "window": {"overlap": 0.25, "mode": "gaussian", "batch_size": 4},
        "training": {"max_iterations": 3, "labeled_batch_size": 2, "unlabeled_batch_size": 2},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    common = {"dataset": str(tmp_path / "mine.yaml"), "dataset_dir": str(folder), "device": "cpu", "amp": "off",
              "network_def#base_channels": 2}  # fmt: skip
    run = tmp_path / "run"
    training = {"output_dir": str(run), "num_workers": 0, "val_interval": 1, "epoch_length": 3}
    run_bundle(find_bundle(bundle), ["train.yaml"], {**common, **training, **OWN.get(bundle, {})})
    terms = (run / "training.csv").read_text().splitlines()
    assert len(terms) == 4
    assert all(np.isfinite([float(value) for value in line.split(",")]).all() for line in terms[1:])
    assert "val_mean_dice" in (run / "validation.csv").read_text()

    ckpt = {"ckpt": str(run / "model.pt")}
    scored = {"output_dir": str(tmp_path / "scored"), "section": "validation"}
    run_bundle(find_bundle(bundle), ["train.yaml", "evaluate.yaml"], {**common, **scored, **ckpt})
    rows = read_results(tmp_path / "scored").rows
    assert [row["class"] for row in rows] == [classes[value] for value in range(1, n_classes)]

    entry = json.loads((folder / "datalist.json").read_text())["validation"][0]
    image = folder / entry["image"]
    output = {"output_dir": str(tmp_path / "segmented"), "dataset_dir": str(image)}
    run_bundle(find_bundle(bundle), ["inference.yaml"], {**common, **output, **ckpt})
    (written,) = (tmp_path / "segmented").rglob("*_seg.nii.gz")
    (evaluated,) = (tmp_path / "scored" / "predictions").rglob("*_seg.nii.gz")
    # evaluation and inference are one chain, and the file lies on the voxels of the image
    np.testing.assert_array_equal(nib.load(written).get_fdata(), nib.load(evaluated).get_fdata())
    assert nib.load(written).shape == nib.load(image).shape
    np.testing.assert_allclose(nib.load(written).affine, nib.load(image).affine, atol=1e-6)
    if data == "stacks":  # the volume in the results is that of the restacked volume, with its true spacing
        label = nib.load(folder / entry["label"])
        voxel = np.prod(label.header.get_zooms()) / 1000
        expected = (np.asarray(label.dataobj) == 1).sum() * voxel
        assert rows[0]["volume_ml_reference"] == pytest.approx(expected, rel=1e-4)

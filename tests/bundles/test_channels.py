"""A bundle on images of two different channels: the one with an adversarial loss, from files to a label map."""

import json

import nibabel as nib
import numpy as np
import torch
import yaml

import monai_ssl
from monai_ssl.networks import literature_network

SIDES = (16, 16, 16)  # one patch, so that a whole volume is one window


def write_cases(folder):
    """Two sequences per case: other range, other histogram; the organ is bright in the first, dark in the second."""
    random = np.random.RandomState(0)
    lists = {"training": [], "unlabeled": [], "validation": []}
    for i, section in enumerate(("training", "training", "unlabeled", "unlabeled", "validation")):
        label = np.zeros(SIDES, np.uint8)
        label[4:11, 3 + i : 9 + i, 5:12] = 1
        arrays = {
            "t1": 40 * random.rand(*SIDES) + 60.0 * label,
            "flair": 3000 * random.rand(*SIDES) ** 5 + 900.0 * (label == 0) + 200,
            "label": label,
        }
        paths = {}
        for name, array in arrays.items():
            paths[name] = f"{name}_{i}.nii.gz"
            kind = np.uint8 if name == "label" else np.float32
            nib.save(nib.Nifti1Image(array.astype(kind), np.eye(4)), folder / paths[name])
        entry = {"image": [paths["t1"], paths["flair"]]}
        lists[section].append(entry if section == "unlabeled" else entry | {"label": paths["label"]})
    (folder / "datalist.json").write_text(json.dumps(lists))


def test_from_two_files_per_case_to_a_label_map(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_cases(folder)
    preset = {
        "channels": ["t1", "flair"],
        "labels": {0: "background", 1: "organ"},
        "patch_size": list(SIDES),
        "intensity": {"policy": "zscore"},
        "augmentation": {"policy": "none"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    run = monai_ssl.train(
        "ss_net", folder, dataset=tmp_path / "mine.yaml", output=tmp_path / "run", max_iterations=3, epoch_length=3,
        val_interval=9, num_workers=0, amp="off", device="cpu", **{"network_def#base_channels": 2},
    )  # fmt: skip
    header, *rows = (run.folder / "training.csv").read_text().splitlines()
    place = header.split(",").index("smoothness")
    assert all(float(row.split(",")[place]) > 0 for row in rows)

    evaluation = monai_ssl.evaluate(run, section="validation")
    (written,) = (evaluation.folder / "predictions").rglob("*_seg.nii.gz")
    channels = [np.asarray(nib.load(folder / f"{name}_4.nii.gz").dataobj, np.float64) for name in ("t1", "flair")]
    scaled = [torch.from_numpy((x - x.mean()) / x.std()).float() for x in channels]
    network = literature_network(3, in_channels=2, out_channels=2, base_channels=2).eval()
    network.load_state_dict(torch.load(run.model, weights_only=True))
    with torch.no_grad():
        by_hand, swapped = (network(torch.stack(x)[None])[0].softmax(0) for x in (scaled, scaled[::-1]))
    found = np.asarray(nib.load(written).dataobj)
    decided = ((by_hand[1] - by_hand[0]).abs() > 1e-4).numpy()  # elsewhere rounding may tip the scale
    np.testing.assert_array_equal(found[decided], by_hand.argmax(0).numpy()[decided])
    assert decided.mean() > 0.9
    assert (by_hand - swapped).abs().max() > 1e-3  # the order of the files matters

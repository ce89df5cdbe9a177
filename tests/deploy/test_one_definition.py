"""One definition: whatever door an image comes in by, labels and probabilities are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import run
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImage, SaveImaged

from monai_ssl.engines import VolumeSegmenter
from monai_ssl.runs.predict import open_segmenter
from monai_ssl.transforms import LabelsOnImageGridd

Maps = tuple[np.ndarray, np.ndarray]


def voxels(path: Path) -> np.ndarray:
    return np.squeeze(np.asarray(nib.load(path).dataobj))


def written(folder: Path) -> Maps:
    (labels,), (probabilities,) = (list(folder.rglob(f"testing_0000_{name}.nii.gz")) for name in ("seg", "prob"))
    return voxels(labels), np.moveaxis(voxels(probabilities), -1, 0)


def predict(source: Path, image: Path, folder: Path) -> Maps:
    assert run("predict", source, image, "--output", folder, "--device", "cpu", "--probabilities") == 0
    return written(folder)


def monai_bundle(source: Path, image: Path, folder: Path) -> Maps:
    words = ["--config_file", "configs/inference.yaml", "--dataset_dir", str(image), "--output_dir", str(folder)]
    words += ["--probabilities", "True"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "monai.bundle", "run", *words]
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    return written(folder)


def in_memory(source: Path, image: Path, folder: Path) -> Maps:
    found = open_segmenter(source, {"device": "cpu"})(image, probabilities=True)
    return found.labels[0].numpy(), found.probabilities.numpy()


def parts(config: Any, source: Path) -> tuple[Compose, Any, Compose]:
    """What MONAI Label and the Deploy SDK read of a bundle; both drop the steps that write files."""
    parser = ConfigParser(config)
    parser.update({"bundle_root": str(source), "device": "cpu", "probabilities": True})
    steps = parser.get_parsed_content("postprocessing").transforms
    kept = [step for step in steps if not isinstance(step, SaveImaged)]
    assert isinstance(kept[0], LabelsOnImageGridd)
    return parser.get_parsed_content("preprocessing"), parser.get_parsed_content("inferer"), Compose(kept)


def finished(item: dict[str, Any]) -> Maps:
    return item["pred"][0].numpy(), item["prob"].numpy()


def label_app(source: Path, image: Path, folder: Path) -> Maps:
    """InferTask of the app that we write: its pre-transforms, then the engine, then its post-transforms."""
    config = ConfigParser.load_config_file(str(source / "configs" / "inference.yaml"))
    before, inferer, after = parts(config, source)
    network = open_segmenter(source, {"device": "cpu"}).network
    item = before({"image": str(image)})
    item["pred"] = VolumeSegmenter("cpu", network, Compose([]), inferer, after).infer(item)["pred"]
    return finished(after(item))


def stock_label(source: Path, image: Path, folder: Path) -> Maps:
    """MONAI Label's own task: the inferer is given the whole volume."""
    config = ConfigParser.load_config_file(str(source / "configs" / "inference.yaml"))
    before, inferer, after = parts(config, source)
    item = before({"image": str(image)})
    with torch.no_grad():
        item["pred"] = inferer(item["image"][None], open_segmenter(source, {"device": "cpu"}).network)[0]
    return finished(after(item))


def deploy_app(source: Path, image: Path, folder: Path) -> Maps:
    """The example app: configs and network out of ``model.ts``."""
    extra = {"inference.json": ""}
    network = torch.jit.load(source / "models" / "model.ts", _extra_files=extra)
    before, inferer, after = parts(json.loads(extra["inference.json"]), source)
    # the SDK takes out what loads files, by the names of the classes, and hands over a volume
    rest = [step for step in before.transforms if not type(step).__name__.startswith(("LoadImage", "SaveImage"))]
    volume = LoadImage(image_only=True)(image)
    prepared = Compose(rest)({"image": volume})
    found = VolumeSegmenter("cpu", network, before, inferer, after).infer(prepared)["pred"]
    return finished(after({"pred": found, **prepared}))


@pytest.fixture(scope="module")
def reference(trained: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Maps:
    """`monai-ssl predict RUN`."""
    labels, probabilities = predict(trained, scans / "images" / "testing_0000.nii.gz", tmp_path_factory.mktemp("run"))
    assert 0.05 < labels.mean() < 0.95
    np.testing.assert_array_equal(probabilities.argmax(0), labels)
    return labels, probabilities


@pytest.mark.parametrize(
    "door", [predict, monai_bundle, in_memory, label_app, stock_label, deploy_app], ids=lambda door: door.__name__
)
def test_same_labels_and_probabilities(
    door: Callable[[Path, Path, Path], Maps], reference: Maps, packaged: Path, scans: Path, tmp_path: Path
) -> None:
    labels, probabilities = door(packaged, scans / "images" / "testing_0000.nii.gz", tmp_path / "out")
    np.testing.assert_array_equal(labels, reference[0])
    # a scripted network may add in another order
    np.testing.assert_allclose(probabilities, reference[1], rtol=0, atol=1e-6 if door is deploy_app else 0)


def test_evaluation_gives_the_same_labels(trained: Path, reference: Maps) -> None:
    (file,) = (trained / "evaluation-testing" / "predictions").rglob("testing_0000_seg.nii.gz")
    np.testing.assert_array_equal(voxels(file), reference[0])


def test_validation_of_a_training_gives_the_same_labels(
    trained: Path, packaged: Path, scans: Path, reference: Maps
) -> None:
    """MONAI's SupervisedEvaluator with the parts of ``train.yaml``."""
    parser = ConfigParser()
    parser.read_config(str(packaged / "configs" / "train.yaml"))
    images, labels = scans / "images" / "testing_0000.nii.gz", scans / "labels" / "testing_0000.nii.gz"
    parser.update(
        {
            "device": "cpu",
            "dataset_dir": str(scans),
            "validate#dataset#data": [{"image": str(images), "label": str(labels)}],
            "network": open_segmenter(packaged, {"device": "cpu"}).network,
        }
    )
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    np.testing.assert_array_equal(evaluator.state.output[0]["pred"][0].numpy(), reference[0])

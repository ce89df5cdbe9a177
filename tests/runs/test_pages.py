"""What a newcomer sees after a training: pages, tables and lines that say what the numbers are."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import TINY, fails, run
from PIL import Image

import monai_ssl
from monai_ssl.metrics import read_results
from monai_ssl.reports import charts
from monai_ssl.runs.scoring import resolved_settings


@pytest.fixture(scope="module")
def stopped(trained: Path, tmp_path_factory) -> Path:
    """A run that was stopped after 4 of 300 iterations."""
    folder = tmp_path_factory.mktemp("stopped") / "mine"
    shutil.copytree(trained, folder)
    record = json.loads((folder / "run.json").read_text())
    record |= {"status": "started", "max_iterations": 300}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_an_unfinished_run_says_so_wherever_its_scores_are(stopped, tmp_path, capsys):
    assert run("evaluate", stopped) == 0
    assert "unfinished, weights of iteration 4 of 300" in capsys.readouterr().err
    results = stopped / "evaluation-testing"
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "mine is unfinished: weights of iteration 4 of 300." in page
    assert "mine is unfinished: weights of iteration 4 of 300." in (results / "report.md").read_text(encoding="utf-8")
    facts = json.loads((results / "summary.json").read_text())["meta"]["training"]
    assert (facts["iteration"], facts["max_iterations"], facts["status"]) == (4, 300, "started")
    with (results / "per_case.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["weights"] for row in rows} == {"unfinished: iteration 4 of 300"}
    assert "Evaluation: mine (dtc)" in page  # the folder's name says nothing of the method
    assert run("package", stopped, "--output", tmp_path / "package") == 0
    card = (tmp_path / "package" / "docs" / "README.md").read_text(encoding="utf-8")
    assert "the weights are those of iteration 4 of 300" in card
    assert "Bundle `dtc`, 4 iterations" in card


def test_a_finished_run_does_not(trained):
    with (trained / "evaluation-testing" / "per_case.csv").open() as file:
        assert "weights" not in next(csv.reader(file))
    assert "unfinished" not in (trained / "evaluation-testing" / "report.html").read_text(encoding="utf-8")


def test_results_say_what_the_training_came_to_use(trained):
    used = read_results(trained / "evaluation-testing").meta["training"]["resolved"]
    assert used["preset#patch_size"] == [32, 32, 16]
    assert used["labeled cases"].startswith("2, content ")
    assert used["unlabeled cases"].startswith("2, content ")
    assert used["network_def#base_channels"] == 2
    assert used["method#unsupervised_weight"] == 1
    assert not [value for value in used.values() if isinstance(value, str) and value.startswith(("$", "@"))]
    page = (trained / "evaluation-testing" / "report.html").read_text(encoding="utf-8")
    assert "preset#patch_size" not in page  # one run differs from none


def test_data_are_compared_by_content_and_not_by_order():
    one, two = ([["a", "x"], ["b", "y"]], [["b", "y"], ["a", "x"]])
    first, second, other = (
        resolved_settings({"labeled cases": cases})["labeled cases"] for cases in (one, two, [["a", "x"], ["b", "z"]])
    )
    assert first == second != other
    assert resolved_settings({"unlabeled cases": []}) == {"unlabeled cases": "0"}


# ------------------------------------------------------------------------------------------------- nothing is drawn


def silent(model: Path, to: Path) -> Path:
    """Weights of a network that draws background everywhere."""
    state = torch.load(model, weights_only=True)
    for key, value in state.items():
        if value.ndim == 1 and value.numel() == 2:
            state[key] = torch.tensor([1000.0, -1000.0])
    torch.save(state, to)
    return to


def test_empty_segmentations_are_said(trained, scans, tmp_path, capsys):
    weights = silent(trained / "model.pt", tmp_path / "silent.pt")
    words = ["predict", trained, scans / "images", "--output", tmp_path / "out", "--ckpt", weights]
    assert run(*words) == 0
    said = capsys.readouterr()
    assert "note: 7 of 7 segmentations are empty, nothing was drawn in " in said.err
    assert run(*words) == 0  # all there: nothing was drawn now
    assert "empty" not in capsys.readouterr().err
    image = scans / "images" / "testing_0000.nii.gz"
    done = monai_ssl.predict(trained, image, tmp_path / "one", ckpt=weights)
    assert done.empty == ("testing_0000",)
    assert monai_ssl.predict(trained, image, tmp_path / "drawn").empty == ()
    assert run("evaluate", trained, "--ckpt", weights, "--output", tmp_path / "scores") == 0
    said = capsys.readouterr()
    assert "Every prediction is empty: the network draws no left atrium." in said.out
    assert "nothing was drawn in" not in said.err  # once is enough
    page = (tmp_path / "scores" / "report.md").read_text(encoding="utf-8")
    answer = next(line for line in page.splitlines()[4:] if line)
    assert "Dice 0.0 %" in answer
    assert answer.endswith("Every prediction is empty: the network draws no left atrium.")
    assert page.index(answer) < page.index("No matched floor is given")


# -------------------------------------------------------------------------------------------------- names of arguments


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "{run}", "--against", "{run}"],
         "against: {run} holds no results (per_case.csv, summary.json); did you mean {run}/evaluation-testing?"),
        (["evaluate", "{run}", "--against", "{data}"], "against: {data} holds no results (per_case.csv, summary.json); "
         "evaluate that run first: monai-ssl evaluate RUN"),
        (["evaluate", "{run}", "--against", "nowhere"], "against: nowhere is no folder; give one that `monai-ssl "
         "evaluate` wrote"),
        (["evaluate", "{run}", "--against", "{broken}"],
         "against: {broken}/summary.json: is no summary of an evaluation; evaluate again"),
        (["report", "{new}.html", "{run}"], "method: {run} holds no results (per_case.csv, summary.json); did you mean "
         "{run}/evaluation-testing?"),
        (["report", "{new}.html", "{run}/evaluation-testing", "--floor", "no"], "floor: no is no folder; give one that "
         "`monai-ssl evaluate` wrote"),
        (["report", "{new}.html", "{run}/evaluation-testing", "--matched_floor", "{data}"],
         "matched_floor: {data} holds no results (per_case.csv, summary.json); evaluate that run first: monai-ssl "
         "evaluate RUN"),
    ],
)  # fmt: skip
def test_results_are_asked_for_under_their_own_name(words, said, trained, scans, tmp_path, capsys):
    shutil.copytree(trained / "evaluation-testing", tmp_path / "broken")
    (tmp_path / "broken" / "summary.json").write_text("{")
    places = {"run": trained, "data": scans, "broken": tmp_path / "broken", "new": tmp_path / "new"}
    assert fails(capsys, *(word.format(**places) for word in words)) == said.format(**places)
    assert not (tmp_path / "new.html").exists()


def test_a_comparison_is_named_after_its_method(trained, tmp_path):
    page = monai_ssl.report(tmp_path / "page.html", trained / "evaluation-testing")
    assert "<h1>Comparison: dtc</h1>" in page.read_text(encoding="utf-8")


def test_replacing_is_explained_for_both_doors(trained, scans, tmp_path, capsys):
    said = "with --overwrite (from Python: overwrite=True)"
    folder = tmp_path / "scans"
    for name in ("images", "labels"):
        shutil.copytree(scans / name, folder / name)
    words = ["split", folder, "--n_labeled", "2", "--n_validation", "1", "--n_testing", "1"]
    assert run(*words) == 0
    assert fails(capsys, *words).endswith(f"or replace it {said}")
    assert run(*words, "--overwrite") == 0
    assert fails(capsys, *words, "--overwrite", "false", "--preset", folder / "preset.yaml").endswith(said)
    image = scans / "images" / "testing_0000.nii.gz"
    assert run("predict", trained, image, "--output", tmp_path / "out") == 0
    other = silent(trained / "model.pt", tmp_path / "other.pt")
    assert fails(capsys, "predict", trained, image, "--output", tmp_path / "out", "--ckpt", other).endswith(said)


def test_weights_that_are_programs_are_refused_in_our_words(trained, scans, tmp_path, capsys):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "whole.pt")
    words = ["predict", trained, scans / "images", "--output", tmp_path / "out", "--ckpt", tmp_path / "whole.pt"]
    error = fails(capsys, *words)
    assert error == (
        f"{tmp_path / 'whole.pt'}: not a readable file of weights (it holds Python objects, not tensors alone, and "
        "opening such a file may run any program); save the tensors where you trust it: torch.save(net.state_dict(), "
        "FILE)"
    )


def test_the_command_in_a_record_works_from_anywhere(tiny_phantom, tmp_path, monkeypatch):
    preset = tmp_path / "own.yaml"
    monai_ssl.copy_preset("phantom", preset)
    monkeypatch.chdir(tmp_path)
    assert run("train", "supervised", tiny_phantom, *TINY[2:], "--dataset", "own.yaml", "--output", "run") == 0
    assert f"--dataset {preset}" in json.loads((tmp_path / "run" / "run.json").read_text())["command"]


# ------------------------------------------------------------------------------------------------------------ pictures


def corner(shape: tuple[int, ...]) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[(slice(1, 4), slice(12, 20), *([slice(None)] * (len(shape) - 2)))] = 1
    return label


@pytest.mark.parametrize("prediction", ["prediction.png", "prediction.nii.gz"])
def test_a_picture_stands_as_viewers_show_it(prediction, tmp_path):
    label = corner((16, 24))  # rows by columns: top right
    for name in ("image.png", "label.png", "prediction.png"):
        Image.fromarray(label * (200 if name == "image.png" else 1)).save(tmp_path / name)
    nib.save(nib.Nifti1Image(label.T, np.eye(4)), tmp_path / "prediction.nii.gz")
    arrays, _, directions = charts.load_picture(tmp_path / "image.png", (tmp_path / "label.png", tmp_path / prediction))
    for array in arrays:  # drawn from below, the first axis to the right
        assert np.array_equal(array.T[::-1] > 0, label > 0)
    assert directions == ()


@pytest.mark.parametrize("affine", [np.diag([-1.0, -1, 2, 1]), np.diag([1.0, 1, 1, 1])[[1, 0, 2, 3]], np.eye(4)])
def test_masks_without_a_place_have_the_axes_of_the_image(affine, tmp_path):
    label = corner((16, 24, 5))
    nib.save(nib.Nifti1Image(label.astype(np.float32), affine), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "label.nii.gz")
    np.save(tmp_path / "prediction.npy", label)
    files = [tmp_path / name for name in ("label.nii.gz", "prediction.npy")]
    (image, *masks), _, directions = charts.load_picture(tmp_path / "image.nii.gz", files)
    assert directions == ("LR", "PA", "IS")
    for mask in masks:
        assert np.array_equal(image, mask)


def test_previews_name_the_sides_of_the_patient(scans, monkeypatch, tmp_path):
    seen = {}
    from monai_ssl.handlers import evaluation

    monkeypatch.setattr(evaluation, "overlay_figure", lambda *a, **k: seen.update(k, arrays=a))
    monai_ssl.train("supervised", scans, dataset="phantom", output=tmp_path / "r", max_iterations=2, num_workers=0,
                    device="cpu", amp="off", **{"network_def#base_channels": 2})  # fmt: skip
    assert seen["directions"] == ("LR", "PA", "IS")
    assert len({array.shape for array in seen["arrays"]}) == 1

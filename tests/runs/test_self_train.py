"""Self-training: from a few labels and a pool to a run; and what it says of the labels that it draws."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import fails, run
from monai.data import MetaTensor

import monai_ssl
from monai_ssl.data import load_datalist, load_preset
from monai_ssl.data import reading as reading_module
from monai_ssl.errors import DataError, UsageError
from monai_ssl.runs import pseudo_labels
from monai_ssl.runs.folder import SELF_TRAINING, Run, trained_in
from monai_ssl.runs.pseudo_labels import Rules, _judged, anatomy, largest_component
from monai_ssl.runs.self_training import alarms, any_whole, class_shares
from monai_ssl.runs.warm_start import weights_file
from monai_ssl.weights import content_digest, load

TINY = {"dataset": "phantom", "max_iterations": 3, "epoch_length": 2, "val_interval": 9, "num_workers": 0, "amp": "off",
        "device": "cpu", "network_def#base_channels": 2}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A phantom whose pool has true labels, in a folder apart."""
    from monai_ssl.curation.phantom.dataset import write_phantom

    folder = tmp_path_factory.mktemp("scans")
    write_phantom(folder, n_labeled=2, n_unlabeled=4, n_validation=1, n_testing=0, spacing=5.0, progress=False,
                  reference_labels=True)  # fmt: skip
    everything = json.loads((folder / "datalist_all_labels.json").read_text())["training"]
    oracle = tmp_path_factory.mktemp("oracle")
    for entry in everything:
        if "unlabeled" in entry["image"]:
            shutil.copy(folder / entry["label"], oracle / Path(entry["image"]).name)
            (folder / entry["label"]).unlink()  # nobody can read them by accident
    return SimpleNamespace(scans=folder, oracle=oracle)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    return monai_ssl.self_train(data.scans, output=tmp_path_factory.mktemp("done") / "out", **TINY)


def table(folder):
    with open(folder / "reliability.csv", newline="") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, Any]:
    """Weights, label maps and tables: what must not depend on interruptions."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name in ("reliability.csv", "pseudo_labels.json")
        or (path.name.endswith("_seg.nii.gz") and "evaluation-" not in str(path.relative_to(folder)))
    }
    weights = {str(path.relative_to(folder)): load(path) for path in sorted(folder.rglob("model.pt"))}
    return found | {name: content_digest(value) for name, value in weights.items()}


class TestOneRound:
    def test_runs_are_ordinary(self, done, tmp_path):
        assert [run.folder.name for run in (*done.floors, *done.rounds)] == ["floor", "round-1"]
        assert done.run.complete
        assert done.run.record.bundle == "self_training"
        assert done.floors[0].record.bundle == "supervised"
        with open(done.run.folder / "training.csv") as file:
            assert all(float(row["pseudo"]) > 0 for row in csv.DictReader(file))
        assert 0 <= monai_ssl.evaluate(done.run, "validation", output=tmp_path).dice["validation_0000"] <= 1

    def test_the_folder_of_all_rounds_stands_for_the_last(self, done, tmp_path):
        assert Run.open(done.folder).folder == done.run.folder
        assert weights_file(done.folder) == done.run.model
        scores = monai_ssl.evaluate(done.folder, "validation", output=tmp_path).dice
        assert scores == monai_ssl.evaluate(done.run, "validation", output=tmp_path / "run").dice
        (tmp_path / "begun").mkdir()
        (tmp_path / "begun" / SELF_TRAINING).write_text('{"rounds": ["../../elsewhere"], "fine_tuned": null}')
        assert trained_in(tmp_path / "begun") == tmp_path / "begun" / "elsewhere"  # never out of the folder
        (tmp_path / "begun" / SELF_TRAINING).write_text('{"rounds": []')
        with pytest.raises(DataError, match=r"holds no run\.json"):
            Run.open(tmp_path / "begun")
        shutil.copytree(done.floors[0].folder, tmp_path / "begun" / "floor")
        with pytest.raises(DataError, match="has not ended; repeat its command"):
            Run.open(tmp_path / "begun")

    def test_folders_of_several_stand_for_an_ensemble_of_their_results(self, done, tmp_path, capsys):
        """On the command line, too, where the second folder was taken for scans, a section or a title."""
        other = tmp_path / "other"
        shutil.copytree(done.folder, other)
        words = ["evaluate", done.folder, other, "--section", "validation", "--device", "cpu"]
        assert run(*words, "--output", tmp_path / "scores") == 0
        meta = json.loads((tmp_path / "scores" / "summary.json").read_text())["meta"]
        assert meta["ensemble"]["members"] == [str(done.run.folder), str(other / "round-1")]
        assert run("package", done.folder, other, "--output", tmp_path / "both") == 0
        assert "**An ensemble**: 2 networks" in (tmp_path / "both" / "docs" / "README.md").read_text()
        (other / SELF_TRAINING).write_text("{}")
        assert "has not ended" in fails(capsys, *words)

    def test_every_scan_of_the_pool_has_a_label_map_on_its_grid(self, data, done):
        cases = load_datalist("datalist.json", data.scans)
        rows = table(done.labels[0])
        assert [row["case"] for row in rows] == [f"unlabeled_000{i}" for i in range(4)]
        for entry, row in zip(cases.unlabeled, rows, strict=True):
            image, drawn = nib.load(entry["image"]), nib.load(done.labels[0] / f"{row['case']}_seg.nii.gz")
            assert drawn.shape == image.shape
            np.testing.assert_allclose(drawn.affine, image.affine)
            values = np.asarray(drawn.dataobj)
            assert int(row["voxels_1"]) == (values == 1).sum()
            assert int(row["voxels_0"]) + int(row["voxels_1"]) == values.size
            for key in ("reliability", "agreement", "confidence"):
                assert 0 <= float(row[key]) <= 1

    def test_dropped_scans_do_not_teach(self, data, tmp_path):
        found = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, drop=0.5)
        rows = sorted(table(found.labels[0]), key=lambda row: float(row["reliability"]))
        assert [row["kept"] for row in rows] == ["0", "0", "1", "1"]
        state = torch.load(found.run.checkpoint, weights_only=True)["identity"]
        assert len(state["unlabeled cases"]) == 2

    def test_unsure_voxels_are_open_in_the_files_and_teach_nothing(self, data, tmp_path):
        found = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, sure=0.52)
        values = np.asarray(nib.load(found.labels[0] / "unlabeled_0000_seg.nii.gz").dataobj)
        share = (values == 255).mean()
        assert 0 < share < 1
        assert float(table(found.labels[0])[0]["unsure"]) == pytest.approx(share, abs=1e-4)
        assert found.run.complete

    def test_the_page_and_the_summary(self, done):
        text = done.page.read_text()
        assert "4 of 4 pseudo-labels are kept" in text
        assert "unlabeled_0003" in text
        summary = json.loads((done.folder / "self_training.json").read_text())
        assert summary["rounds"] == ["round-1"]
        assert set(summary["seconds"]) == {"floor", "pseudo_labels-1", "round-1"}

    def test_again_does_nothing(self, data, done):
        before = content(done.folder)
        again = monai_ssl.self_train(data.scans, output=done.folder, **TINY)
        assert content(done.folder) == before
        assert again.run.folder == done.run.folder

    def test_a_package_of_the_result_names_no_folder(self, done, tmp_path):
        package = monai_ssl.package(done.run, output=tmp_path / "bundle")
        for path in package.rglob("*"):
            if path.is_file():
                assert str(done.folder).encode() not in path.read_bytes(), path
                assert b"pseudo_labels-1" not in path.read_bytes(), path

    def test_no_label_of_the_pool_is_opened(self, data, tmp_path, monkeypatch):
        """Label files of unlabeled cases lie beside the images in many data sets."""
        scans = tmp_path / "scans"
        shutil.copytree(data.scans, scans)
        for path in data.oracle.iterdir():
            shutil.copy(path, scans / "labels" / path.name)
        opened = []
        original = reading_module.read_scan
        monkeypatch.setattr(reading_module, "read_scan", lambda path, *a, **k: (opened.append(str(path)),
                                                                               original(path, *a, **k))[1])  # fmt: skip
        monai_ssl.self_train(scans, output=tmp_path / "out", **TINY)
        assert opened
        assert not [path for path in opened if "/labels/unlabeled" in path]


def test_two_rounds_and_two_networks(data, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "anatomy", lambda *_: ((), ()))  # networks of three steps may draw nothing
    found = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, rounds=2, networks=2, seed=5)
    assert [run.folder.name for run in found.floors] == ["floor-1", "floor-2"]
    assert [run.record.overrides["seed"] for run in found.floors] == [5, 6]
    assert [run.folder.name for run in found.rounds] == ["round-1", "round-2"]
    records = [json.loads((place / "pseudo_labels.json").read_text()) for place in found.labels]
    assert [len(record["weights"]) for record in records] == [2, 1]


def test_rounds_that_begin_with_the_network_before(data, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "anatomy", lambda *_: ((), ()))  # networks of three steps may draw nothing
    found = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, rounds=2)
    begun = [run.record.overrides["init"] for run in found.rounds]
    assert begun == [str(run.model) for run in (*found.floors, found.rounds[0])]
    assert "init" not in found.floors[0].record.overrides
    again = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, rounds=2)
    assert again.run.model.stat().st_mtime_ns == found.run.model.stat().st_mtime_ns
    new = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, rounds=1, warm_start=False)
    assert "init" not in new.run.record.overrides


def test_fine_tuning_on_the_labels(data, done, tmp_path):
    shutil.copytree(done.folder, tmp_path / "out")
    found = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, fine_tune=0.4)
    record = found.run.record
    assert found.run.folder.name == "fine-tuned"
    assert (record.bundle, record.max_iterations, record.overrides["learning_rate"]) == ("supervised", 1, 0.0002)
    before, after = (torch.load(run.model, weights_only=True) for run in (found.rounds[-1], found.run))
    name = next(iter(after))
    assert not torch.equal(before[name], after[name])
    torch.testing.assert_close(before[name], after[name], atol=1e-3, rtol=0)  # it began there: one step at 0.0002
    # another share is another training, longer or shorter
    for share, iterations in ((0.7, 2), (0.4, 1)):
        again = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, fine_tune=share)
        assert again.run.record.max_iterations == iterations
        fresh = monai_ssl.train("supervised", data.scans, output=tmp_path / f"fresh{iterations}", init=found.rounds[-1],
                                **{**TINY, "max_iterations": iterations, "learning_rate": 0.0002,
                                   "lr_scheduler#warmup": 0.0})  # fmt: skip
        assert content_digest(load(again.run.model)) == content_digest(load(fresh.model))
    assert len(again.run.previous()) == 2
    again.run.acquire()
    code = ("import monai_ssl, sys; from monai_ssl.errors import DataError\n"
            f"options = {({**TINY, 'fine_tune': 0.7})!r}\n"
            f"try: monai_ssl.self_train({str(data.scans)!r}, output={str(tmp_path / 'out')!r}, **options)\n"
            "except DataError as error: print(error)")  # fmt: skip
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    again.run.release()
    assert "another training writes to" in said.stdout
    assert Run.open(tmp_path / "out").folder == again.run.folder  # nothing was moved


def test_settings_of_another_labeler_set_its_labels_aside(data, done, tmp_path, caplog):
    shutil.copytree(done.folder, tmp_path / "out")
    found = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, drop=0.5)
    assert (tmp_path / "out" / "pseudo_labels-1-previous-1" / "reliability.csv").is_file()
    assert "moved to pseudo_labels-1-previous-1" in caplog.text
    assert "unlabeled cases: " in caplog.text  # the round's former run is set aside, too
    assert (found.run.folder / "previous-1" / "model.pt").is_file()


# ------------------------------------------------------------------------------------------------ labels of others


def test_sure_voxels_that_the_network_s_grid_loses_teach_nothing(data, tmp_path):
    """Such a scan is dropped when it is drawn; the same in a map of another tool is a warning."""
    import yaml

    from monai_ssl.curation.verify import verify
    from monai_ssl.data.preset import dump_preset

    preset = yaml.safe_load(dump_preset(load_preset("phantom"))) | {"spacing": [5.0, 5.0, 20.0]}
    (tmp_path / "coarse.yaml").write_text(yaml.safe_dump(preset))
    place = tmp_path / "labels"
    place.mkdir()
    cases = load_datalist("datalist.json", data.scans)
    for entry in cases.unlabeled:
        volume = nib.load(entry["image"])
        drawn = np.full(volume.shape, 255, np.uint8)
        drawn[3, 3, 2] = 1
        nib.save(nib.Nifti1Image(drawn, volume.affine), place / Path(entry["image"]).name)
    coarse = load_preset(str(tmp_path / "coarse.yaml"))
    pool = monai_ssl.data.pseudo_labeled(cases.unlabeled, place)
    told = [
        str(p) for p in verify(cases, coarse, ["unlabeled"], drawn=pool, progress=False) if p.rule == "unknown_grid"
    ]
    assert len(told) == 4
    assert all(text.startswith("warning: ") and "the scan teaches nothing" in text for text in told)
    image = nib.load(cases.unlabeled[0]["image"])
    label = MetaTensor(torch.as_tensor(drawn)[None], affine=torch.as_tensor(image.affine))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pseudo_labels, "_judged", lambda *given: (label, {"unsure": 0.99}))
        ((_, _, _, found),) = pseudo_labels._labels([], [("a", cases.unlabeled[0])], coarse, Rules(tta=False, sure=0.9))
        assert found["unsure"] == 1
        fine = load_preset("phantom")
        ((_, _, _, found),) = pseudo_labels._labels([], [("a", cases.unlabeled[0])], fine, Rules(tta=False, sure=0.9))
        assert found["unsure"] == 0.99


def test_label_maps_of_another_tool(data, tmp_path):
    found = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, pseudo_labels=data.oracle)
    assert found.floors == []
    assert found.page is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["round-1", "self_training.json"]
    direct = monai_ssl.train("self_training", data.scans, output=tmp_path / "direct", pseudo_labels=data.oracle, **TINY)
    weights = [torch.load(run.model, weights_only=True) for run in (found.run, direct)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_classes_that_maps_of_another_tool_lack_are_told_before_the_training(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "monai_ssl.console")
    place = tmp_path / "labels"
    place.mkdir()
    for file in data.oracle.glob("*.nii.gz"):
        volume = nib.load(file)
        drawn = np.asarray(volume.dataobj).copy()
        drawn[drawn == 1] = 0
        nib.save(nib.Nifti1Image(drawn, volume.affine), place / file.name)
    found = monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, pseudo_labels=place)
    assert found.alarms[0].startswith("class 1 (")
    assert "vanishes from the pseudo-labels" in found.alarms[0]
    told = caplog.text
    assert told.index("vanishes from the pseudo-labels") < told.index("== round-1")
    stated = json.loads((tmp_path / "out" / SELF_TRAINING).read_text())["alarms"]
    assert stated[0] == found.alarms[0]
    assert stated[1:] == [f"training of round-1: {text}" for text in found.run.alarms]


@pytest.mark.parametrize("key", ["method#weight", "method#unsupervised_weight"])
def test_a_pool_that_teaches_nothing_is_refused(data, tmp_path, key):
    with pytest.raises(UsageError, match=f"--{key}: must be above 0, got 0: .*monai-ssl train self_training"):
        monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, **{key: 0})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["grid", "class", "unknown", "none"])
def test_label_maps_are_checked_before_the_training(data, tmp_path, fault, caplog):
    place = tmp_path / "labels"
    shutil.copytree(data.oracle, place)
    first = place / "unlabeled_0000.nii.gz"
    volume = nib.load(first)
    values = np.asarray(volume.dataobj).copy()
    if fault == "grid":
        values = values[:-1]
    elif fault == "class":
        values[0, 0, 0] = 7
    elif fault == "unknown":
        values[:] = 255
    else:
        for path in place.iterdir():
            path.unlink()
    if fault != "none":
        nib.save(nib.Nifti1Image(values, volume.affine), first)
    with pytest.raises(DataError, match="pseudo_labels: " if fault == "none" else "data: 1 error, nothing was trained"):
        monai_ssl.train("self_training", data.scans, output=tmp_path / "run", pseudo_labels=place, **TINY)
    if fault != "none":
        assert f"error: unlabeled: {first}: " in caplog.text
        assert "move the case to 'unlabeled'" not in caplog.text
        assert ("write it with the preset's classes" in caplog.text) == (fault == "class")
        assert "set label_map" not in caplog.text  # that of the preset is not for them
    assert not (tmp_path / "run" / "model.pt").exists()


def test_a_method_that_wants_pseudo_labels_says_so(data, tmp_path):
    with pytest.raises(DataError, match=r"^pseudo_labels: the method learns label maps of the pool: .*self-train"):
        monai_ssl.train("self_training", data.scans, output=tmp_path / "run", **TINY)
    floor = {**TINY, "method#unsupervised_weight": 0}
    assert monai_ssl.train("self_training", data.scans, output=tmp_path / "floor", **floor).complete


def test_changed_label_maps_are_another_run(data, tmp_path, caplog):
    place = tmp_path / "labels"
    shutil.copytree(data.oracle, place)
    given = {**TINY, "output": tmp_path / "run", "pseudo_labels": place}
    monai_ssl.train("self_training", data.scans, **given)
    moved = place.rename(tmp_path / "elsewhere")  # the same label maps in another place are the same
    monai_ssl.train("self_training", data.scans, **{**given, "pseudo_labels": moved})
    assert "belongs to another run" not in caplog.text
    volume = nib.load(moved / "unlabeled_0001.nii.gz")
    nib.save(nib.Nifti1Image(1 - np.asarray(volume.dataobj), volume.affine), moved / "unlabeled_0001.nii.gz")
    monai_ssl.train("self_training", data.scans, **{**given, "pseudo_labels": moved})
    assert "the label of unlabeled_0001 has changed" in caplog.text


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds: must be an integer from 1 to 10, got 0"),
        ({"networks": 1.5}, "--networks: must be an integer from 1 to 20, got 1.5"),
        ({"drop": 1}, r"--drop: must be a share in \[0, 1\), got 1"),
        ({"sure": -0.1}, r"--sure: must be a share in \[0, 1\), got -0.1"),
        ({"fine_tune": 2}, r"--fine_tune: must be a share in \[0, 1\), got 2"),
        ({"tta": "yes"}, "--tta: must be true, false or auto, got 'yes'"),
        ({"largest_component": 1}, "--largest_component: must be true, false or auto, got 1"),
        ({"unlabeled_batch_size": 0}, "--unlabeled_batch_size: must be 1 or more, got 0: .*monai-ssl train supervised"),
        ({"fine_tune": 0.1, "learning_rate": "$1e-3"}, "--fine_tune: goes with numbers for --max_iterations"),
        ({"pseudo_labels": ".", "networks": 2}, "--networks: must be left out with --pseudo_labels.*got 2"),
        ({"pseudo_labels": ".", "drop": 0.3}, "--drop: must be left out where no network labels the pool, got 0.3"),
        ({"pseudo_labels": ".", "tta": False}, "--tta: must be left out where no network labels the pool, got False"),
        ({"method#weigth": 1}, "method#weigth: .*did you mean weight"),
        ({"warm_start": "auto"}, "--warm_start: must be true or false, got 'auto'"),
        ({"max_iteration": 1}, "max_iteration: no such id.*did you mean max_iterations"),
        ({"seed": -1}, "--seed: must be an integer >= 0, got -1"),
        ({"init": "nothere"}, "init: .*nothere does not exist"),
        ({"patch_size": 32}, "--patch_size: is a key of the preset, not an option.*--dataset my.yaml"),
    ],
)
def test_options(data, tmp_path, options, message, monkeypatch):
    from monai_ssl.runs import train

    monkeypatch.setattr(train, "verified", lambda *words, **given: pytest.fail("every scan was read before"))
    with pytest.raises((UsageError, DataError), match=message):
        monai_ssl.self_train(data.scans, output=tmp_path / "out", **{**TINY, **options})
    assert not (tmp_path / "out").exists()


def test_an_option_that_its_first_training_refuses_leaves_no_folder(data, done, tmp_path):
    with pytest.raises(DataError, match="cache_gb: must be a number of gigabytes"):
        monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, cache_gb=-3)
    assert not (tmp_path / "out").exists()
    shutil.copytree(done.folder, tmp_path / "out")
    with pytest.raises(DataError, match="cache_gb: must be a number of gigabytes"):
        monai_ssl.self_train(data.scans, output=tmp_path / "out", **TINY, cache_gb=-3)
    assert Run.open(tmp_path / "out").folder.name == "round-1"  # what was there has a result


def test_no_pool(data, tmp_path):
    lists = json.loads((data.scans / "datalist.json").read_text())
    (tmp_path / "labels_only.json").write_text(json.dumps({**lists, "unlabeled": []}))
    with pytest.raises(DataError, match="there is no unlabeled image to learn from; train on labels"):
        monai_ssl.self_train(data.scans, tmp_path / "labels_only.json", output=tmp_path / "out", **TINY)


def test_flips_that_the_anatomy_forbids(data, tmp_path):
    preset = load_preset("hippocampus")
    from monai_ssl.runs.self_training import _flips

    assert _flips(load_preset("phantom"), "auto")
    assert not _flips(load_preset("phantom"), False)
    assert not _flips(preset, "auto")
    with pytest.raises(DataError, match="allows no mirroring"):
        _flips(preset, True)


# ------------------------------------------------------------------------------------------------ what labels are worth


def one_hot(*maps):
    """Certain views of two classes."""
    return [torch.nn.functional.one_hot(torch.tensor(m), 2).movedim(-1, 0).float() for m in maps]


def test_reliability_of_views_by_hand():
    a, b = [[1, 1, 1, 0]], [[1, 0, 0, 0]]
    label, row = _judged(one_hot(a, a, b), Rules(tta=True), 2)
    assert label.tolist() == [[[1, 1, 1, 0]]]  # the mean: 1, 2/3, 2/3, 0
    assert row["agreement"] == pytest.approx((1 + 1 + 2 * 1 / 4) / 3)
    p = 1 + 2 / 3 + 2 / 3
    assert row["confidence"] == pytest.approx(2 * p / (p + 3))
    assert row["reliability"] == pytest.approx((row["agreement"] + row["confidence"]) / 2)
    assert row["voxels"] == [1, 3]


def test_one_view_has_no_agreement():
    _, row = _judged(one_hot([[1, 0]]), Rules(tta=False), 2)
    assert row["agreement"] is None
    assert row["reliability"] == row["confidence"] == 1


def test_unsure_voxels_are_left_open():
    p = torch.tensor([[[0.45, 0.1, 0.9]], [[0.55, 0.9, 0.1]]])
    label, row = _judged([p], Rules(tta=False, sure=0.6), 2)
    assert label.tolist() == [[[255, 1, 0]]]
    assert row["unsure"] == pytest.approx(1 / 3)


def test_voxels_are_those_that_teach():
    p = torch.tensor([[[0.4, 0.1, 0.9]], [[0.6, 0.9, 0.1]]])
    _, row = _judged([p], Rules(tta=False, sure=0.8), 2)
    assert row["voxels"] == [1, 1]  # and the alarms see a class that vanishes because nobody is sure of it


def test_what_nobody_has_looked_at_is_not_unsure():
    """Beyond a central crop there are no probabilities."""
    p = torch.tensor([[[0.0, 0.45, 0.9, 0.0]], [[0.0, 0.55, 0.1, 0.0]]])
    label, row = _judged([p], Rules(tta=False, sure=0.6), 2)
    assert label.tolist() == [[[0, 255, 0, 0]]]
    assert row["unsure"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("n_views", [1, 4])
def test_a_scan_in_which_nothing_was_nearly_found_is_not_the_most_reliable(n_views):
    nearly = torch.tensor([[[0.51, 0.9]], [[0.49, 0.1]]])
    found = torch.tensor([[[0.2, 0.9]], [[0.8, 0.1]]])
    absent = torch.tensor([[[0.99, 0.98]], [[0.01, 0.02]]])
    values = [_judged([p] * n_views, Rules(tta=False), 2)[1]["reliability"] for p in (nearly, found, absent)]
    assert values[0] == pytest.approx(0.51)
    assert values[0] < values[1] < values[2]


def test_views_are_not_kept():
    """Their probabilities fill gigabytes where a scan is large."""
    import weakref

    alive, most = weakref.WeakSet(), 0

    def views():
        nonlocal most
        for _ in range(6):
            view = torch.rand(3, 4, 5)
            alive.add(view)
            most = max(most, len(alive))
            yield view
            del view

    label, row = _judged(views(), Rules(tta=False), 3)
    assert label.shape == (1, 4, 5)
    assert row["agreement"] is not None
    assert most <= 2


def test_scans_of_which_nothing_is_sure_or_right_are_dropped():
    rows = [{"case": name, "reliability": r, "unsure": u}
            for name, r, u in (("a", 0.9, 0.0), ("b", 0.0, 0.0), ("c", 0.8, 1.0), ("d", 0.7, 0.5))]  # fmt: skip
    assert [row["kept"] for row in pseudo_labels._kept(rows, 0.0)] == [1, 0, 0, 1]
    assert [row["kept"] for row in pseudo_labels._kept(rows, 0.5)] == [1, 0, 0, 0]


def test_largest_component_of_the_classes_that_are_one_piece():
    drawn = [[1, 1, 0, 1]]
    label, _ = _judged(one_hot(drawn), Rules(tta=False, one_piece=(1,)), 2)
    assert label.tolist() == [[[1, 1, 0, 0]]]
    label, _ = _judged(one_hot(drawn), Rules(tta=False), 2)
    assert label.tolist() == [[[1, 1, 0, 1]]]
    mask = np.eye(3, dtype=bool)  # corners connect
    assert largest_component(mask).sum() == 3


@pytest.mark.parametrize(("always", "expected"), [((1,), 0.0), ((), 1.0)])
def test_a_scan_without_what_every_scan_shows_is_not_trusted(always, expected):
    _, row = _judged(one_hot([[0, 0]], [[0, 0]]), Rules(tta=False, always=always), 2)
    assert row["reliability"] == expected


def test_anatomy_is_read_from_the_labels(tmp_path):
    preset = load_preset("hippocampus")
    whole, split_up = np.zeros((2, 12, 12, 12), np.uint8)
    whole[2:6, 2:6, 2:6], whole[7:10, 2:6, 2:6] = 1, 2
    split_up[2:6, 2:6, 2:6] = 1
    split_up[7:9, 2:4, 2:4] = split_up[7:9, 8:10, 8:10] = 2
    entries = []
    for name, values in (("a", whole), ("b", split_up)):
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
        entries.append({"image": "", "label": str(tmp_path / f"{name}.nii.gz")})
    assert anatomy(entries, preset) == ((1,), (1, 2))
    assert anatomy(entries[:1], preset) == ((1, 2), (1, 2))
    split_up[split_up == 1] = 0
    nib.save(nib.Nifti1Image(split_up, np.eye(4)), tmp_path / "b.nii.gz")
    assert anatomy(entries, preset) == ((1,), (2,))


def test_partly_annotated_scans_say_what_they_know(tmp_path):
    """Slices of an organ are no pieces of it, and where nobody looked nothing is missing."""
    organ = np.zeros((8, 8, 8), np.uint8)
    organ[2:6, 2:6, 1:7] = 1
    sparse, whole = organ.copy(), organ.copy()
    sparse[..., [2, 3, 5, 6]] = 0
    whole[7, 7] = 2
    entries = []
    for name, label, keys in (("sparse", sparse, {"slices": [0, 1, 4, 7]}), ("one", organ, {"classes": [1]}),
                              ("whole", whole, {})):  # fmt: skip
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / f"{name}.nii.gz")
        entries.append({"image": f"{name}.nii.gz", "label": str(tmp_path / f"{name}.nii.gz"), **keys})
    preset = load_preset("phantom").model_copy(update={"labels": {0: "background", 1: "organ", 2: "vessel"}})
    assert anatomy(entries, preset) == ((1, 2), (1, 2))
    drawn = [{"case": "a", "kept": "1", "voxels_0": "408", "voxels_1": "96", "voxels_2": "8"}]
    shares = class_shares(drawn, SimpleNamespace(training=entries), preset)
    # slices show more of an organ than whole scans do
    known = {1: ((96 + 96) / (512 + 512), 96 / 512), 2: (8 / 512, 8 / 512)}
    assert shares == {value: pytest.approx(both) for value, both in known.items()}
    assert alarms(drawn, shares, preset) == []
    only = SimpleNamespace(training=entries[:1])
    shares = class_shares(drawn, only, preset)
    assert shares[1] == (pytest.approx(32 / 256), pytest.approx(96 / 512))
    assert any_whole(SimpleNamespace(training=entries), preset)
    assert not any_whole(only, preset)
    # the truth of a long scan, whose organ is in a few slices of it
    long = [{**drawn[0], "voxels_0": "9992", "voxels_1": "96"}]
    assert "vanishes" in alarms(long, class_shares(long, only, preset), preset)[0]
    assert alarms(long, class_shares(long, only, preset), preset, whole=False) == []
    lost = [{**drawn[0], "voxels_1": "0"}]
    assert "vanishes" in alarms(lost, class_shares(lost, only, preset), preset, whole=False)[0]
    (found,) = alarms([{**drawn[0], "voxels_0": "0"}], {1: (0.1, 1.0)}, preset)
    assert "takes 10 times its share in the pseudo-labels: 100 % of their voxels, 10 % of the labels'" in found


def test_alarms():
    preset = load_preset("hippocampus")
    rows = [{"case": f"c{i}", "kept": "1", "voxels_0": "90", "voxels_1": "9", "voxels_2": "0" if i < 3 else "1"}
            for i in range(4)]  # fmt: skip
    found = alarms(rows, {1: (0.1, 0.09), 2: (0.1, 0.0025)}, preset)
    assert len(found) == 1
    assert found[0].startswith("class 2 (posterior hippocampus) vanishes from the pseudo-labels: 0.25 %")
    found = alarms(rows, {1: (0.1, 0.5), 2: (0.003, 0.0025)}, preset)
    assert found[0].startswith("class 1 (anterior hippocampus) takes 5 times its share")
    assert found[1].startswith("class 2 (posterior hippocampus) is missing in 3 of 4 pseudo-labels (c0, c1, c2")


# ------------------------------------------------------------------------------------------------ interruptions


# ------------------------------------------------------------------------------------------------ changed meanwhile


@pytest.fixture
def again(data, done, tmp_path):
    """A finished self-training, and its data, in folders that a test may change; `run` repeats the command."""
    shutil.copytree(data.scans, tmp_path / "scans")
    shutil.copytree(done.folder, tmp_path / "out")

    def run(**options):
        return monai_ssl.self_train(tmp_path / "scans", output=tmp_path / "out", **{**TINY, **options})

    return SimpleNamespace(
        scans=tmp_path / "scans", out=tmp_path / "out", labels=tmp_path / "out/pseudo_labels-1", run=run
    )


def turned(path, change):
    volume = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(volume.dataobj)).copy(), volume.affine), path)


def test_a_changed_image_of_the_pool_is_labeled_again(again, caplog):
    before = content(again.out)
    turned(again.scans / "images" / "unlabeled_0001.nii.gz", lambda image: image.max() - image)
    again.run()
    assert "label maps of other networks, images or settings; moved to pseudo_labels-1-previous-1" in caplog.text
    after = content(again.out)
    changed = {name for name in before if before[name] != after[name]}
    assert "floor/model.pt" not in changed
    assert {
        "pseudo_labels-1/unlabeled_0001_seg.nii.gz",
        "pseudo_labels-1/reliability.csv",
        "round-1/model.pt",
    } <= changed


def test_label_maps_depend_on_how_the_preset_looks_at_an_image():
    preset = load_preset("phantom")
    wider = preset.model_copy(update={"window": preset.window.model_copy(update={"overlap": 0.25})})
    longer = preset.model_copy(update={"training": preset.training.model_copy(update={"max_iterations": 7})})
    plain, other, same = (pseudo_labels._record([], [], p, Rules(tta=True)) for p in (preset, wider, longer))
    assert pseudo_labels._equal(plain, same)
    assert not pseudo_labels._equal(plain, other)
    former = {key: value for key, value in plain.items() if key not in ("images", "preset")}
    assert pseudo_labels._equal(former, plain)  # of a version that did not note them
    assert not pseudo_labels._equal(None, plain)


def test_a_label_map_that_is_gone_is_drawn_again(again, done, caplog):
    (again.labels / "unlabeled_0002_seg.nii.gz").unlink()
    again.run()
    assert "1 label map gone, drawn again: unlabeled_0002" in caplog.text
    assert content(again.out) == content(done.folder)


def test_a_row_without_its_label_map_counts_nothing(again, done):
    """A kill of the whole machine may leave the row, and not the file."""
    rows = [{"case": name, "agreement": 0.5, "confidence": 0.5, "unsure": 0.0, "reliability": 0.5, "voxels": [1, 1]}
            for name in ("unlabeled_0000", "unlabeled_0003")]  # fmt: skip
    (again.labels / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in ("reliability.csv", "unlabeled_0000_seg.nii.gz", "unlabeled_0003_seg.nii.gz"):
        (again.labels / name).unlink()
    again.run()
    assert content(again.out) == content(done.folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace(",", ";"), "must have the columns .*got none called case, kept"),
        (lambda text: "", "must have the columns"),
        (lambda text: text.splitlines()[0] + "\n", "must have the columns"),
        (
            lambda text: "\n".join(text.splitlines()[:3]),
            r"must have one row of each of the 4 scans of the pool, got 2 \(",
        ),
        (
            lambda text: text.replace("unlabeled_0003,", "unlabeled_0002,"),
            r"must have one row .*got 4 \(unlabeled_0003\); corr",
        ),
        (
            lambda text: text.replace("unlabeled_0003,0.", "unlabeled_0003,x0."),
            "reliability must be a number, got 'x0.",
        ),
        (lambda text: text.replace(",1,", ",yes,"), "kept must be 0 or 1, got 'yes' of unlabeled_0000"),
    ],
)
def test_an_edited_table_is_read_with_care(again, edit, message):
    table = again.labels / "reliability.csv"
    table.write_text(edit(table.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError, match=rf"reliability\.csv: {message}"):
        again.run()
    with pytest.raises(DataError, match=r"reliability\.csv: "):
        pseudo_labels.read_rows(again.labels, ["unlabeled_0000"], 2)


def test_label_maps_that_somebody_may_have_corrected_are_kept(again, done, caplog):
    """As the refusal of a damaged table advises: remove it."""
    corrected = again.labels / "unlabeled_0000_seg.nii.gz"
    turned(corrected, lambda label: np.ones_like(label))
    mine = corrected.read_bytes()
    (again.labels / "reliability.csv").unlink()
    again.run()
    assert "label maps without their reliability.csv; moved to pseudo_labels-1-previous-1" in caplog.text
    assert (again.out / "pseudo_labels-1-previous-1" / corrected.name).read_bytes() == mine
    assert {name: value for name, value in content(again.out).items() if "previous" not in name} == content(done.folder)


def test_a_pool_of_which_nothing_is_kept(again):
    table = again.labels / "reliability.csv"
    rows = [{**row, "kept": "0", "reliability": "0.5"} for row in csv.DictReader(table.read_text().splitlines())]
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(
        DataError, match=r"reliability\.csv: kept must be 1 for one scan at least, got 0 for all 4 scans"
    ):
        again.run()


def test_no_part_of_it_is_its_own_beginning(again):
    for init in (again.out, again.out / "round-1", again.out / "floor" / "model.pt"):
        with pytest.raises(DataError, match="init: must not be a part of the self-training that begins with it"):
            again.run(init=init)
    assert not list(again.out.rglob("previous*"))


def test_a_page_of_other_labels_makes_way(again, data):
    again.run(pseudo_labels=data.oracle)
    assert not (again.out / "report.html").exists()
    assert (again.out / "report-previous-1.html").is_file()


def test_records_that_cannot_be_read(again, done):
    (again.labels / "pseudo_labels.json").write_text("")
    (again.out / SELF_TRAINING).write_text("{")
    again.run()
    assert (again.out / "pseudo_labels-1-previous-1").is_dir()
    shutil.rmtree(again.out / "pseudo_labels-1-previous-1")
    assert content(again.out) == content(done.folder)


def test_changed_data_are_checked_again(again, caplog):
    turned(again.scans / "labels" / "labeled_0000.nii.gz", lambda label: label * 7)
    with pytest.raises(DataError, match="data: 1 error, nothing was trained"):
        again.run()
    assert "labeled_0000" in caplog.text
    assert not list(again.out.glob("*/previous*"))


def test_a_self_training_that_begins_anew_has_no_result(again, monkeypatch):
    """With other settings, what the folder held is not what it is going to hold."""
    took = json.loads((again.out / SELF_TRAINING).read_text())["seconds"]

    def killed(*words, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pseudo_labels, "_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            again.run(tta=False)
    with pytest.raises(DataError, match="has not ended; repeat its command"):
        Run.open(again.out)
    with pytest.raises(DataError, match=r"init: the self-training in .* has not ended; repeat its command"):
        weights_file(again.out)
    again.run()
    assert Run.open(again.out).folder == again.out / "round-1"
    assert set(json.loads((again.out / SELF_TRAINING).read_text())["seconds"]) == set(took)
    record = json.loads((again.out / "floor" / "run.json").read_text())
    (again.out / "floor" / "run.json").write_text(json.dumps({**record, "status": "started"}))
    for stands_for in (Run.open, weights_file):
        with pytest.raises(DataError, match="has not ended; repeat its command"):
            stands_for(again.out)


def test_what_is_trained_anew_is_not_said_to_be_complete(again, caplog):
    """Whether a complete run is this one is known when it has compared itself with the settings, and not before."""

    def run(**options):
        told = json.loads((again.out / SELF_TRAINING).read_text())
        told["seconds"] |= {"floor": 1000.0, "round-1": 2000.0}
        (again.out / SELF_TRAINING).write_text(json.dumps(told))
        caplog.clear()
        with caplog.at_level(logging.INFO, "monai_ssl.console"):
            again.run(**options)
        seconds = json.loads((again.out / SELF_TRAINING).read_text())["seconds"]
        complete = {line.split()[0] for line in caplog.messages if line.endswith("was complete")}
        assert not [line for line in caplog.messages if line.startswith("== ") and "complete" in line]
        return complete, seconds

    complete, seconds = run()
    assert complete == {"floor", "round-1"}
    assert (seconds["floor"], seconds["round-1"]) == (1000, 2000)
    complete, seconds = run(**{"method#weight": 0.7})  # an option of the round alone
    assert complete == {"floor"}
    assert seconds["floor"] == 1000
    assert 0 < seconds["round-1"] < 500
    complete, seconds = run(**{"method#weight": 0.7, "max_iterations": 4})  # the floor goes on, the round begins anew
    assert complete == set()
    assert 1000 < seconds["floor"] < 1500
    assert 0 < seconds["round-1"] < 500


def test_time_of_labels_that_are_there_is_kept(again):
    told = json.loads((again.out / SELF_TRAINING).read_text())
    told["seconds"]["pseudo_labels-1"] = 1234.5
    (again.out / SELF_TRAINING).write_text(json.dumps(told))
    again.run()
    assert json.loads((again.out / SELF_TRAINING).read_text())["seconds"]["pseudo_labels-1"] == 1234.5


def test_time_of_labels_before_a_kill_counts(again):
    row = {"case": "unlabeled_0001", "agreement": 0.5, "confidence": 0.5, "unsure": 0.0, "reliability": 0.5,
           "voxels": [1, 1], "seconds": 1000.0}  # fmt: skip
    (again.labels / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (again.labels / "reliability.csv").unlink()
    again.run()
    assert 1000 < json.loads((again.out / SELF_TRAINING).read_text())["seconds"]["pseudo_labels-1"] < 1100


def test_the_pool_is_checked_before_anything_is_trained(again, tmp_path, caplog):
    """Its faults would else show when the floor has been trained; a scan of the test list in it is a leak."""
    lists = json.loads((again.scans / "datalist.json").read_text())
    shutil.copy(again.scans / lists["validation"][0]["image"], again.scans / "images" / "unlabeled_0001.nii.gz")
    (again.scans / "images" / "unlabeled_0002.nii.gz").write_bytes(b"no scan")
    with pytest.raises(DataError, match="data: 2 errors, nothing was trained"):
        monai_ssl.self_train(again.scans, output=tmp_path / "new", **TINY)
    assert "a scan must not be in unlabeled and validation (a leak)" in caplog.text
    assert "unlabeled_0002.nii.gz: file must be gzip-compressed" in caplog.text
    assert not (tmp_path / "new").exists()


def test_a_leak_shows_where_the_pool_has_label_maps(again, data, caplog):
    lists = json.loads((again.scans / "datalist.json").read_text())
    for part, source in (("images", lists["validation"][0]["image"]), ("maps", lists["validation"][0]["label"])):
        (again.scans / part).mkdir(exist_ok=True)
        shutil.copy(again.scans / source, again.scans / part / "unlabeled_0001.nii.gz")
    with pytest.raises(DataError, match="data: 1 error, nothing was trained"):
        monai_ssl.train(
            "self_training", again.scans, output=again.out / "new", pseudo_labels=again.scans / "maps", **TINY
        )
    assert "a scan must not be in unlabeled and validation (a leak)" in caplog.text


def test_a_demand_that_no_voxel_meets_is_named(again):
    with pytest.raises(DataError, match=r"no voxel of the pool is as sure as --sure asks.*; lower it, or train"):
        again.run(sure=0.9999)


def test_folders_of_something_else(data, done, tmp_path):
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path / "file", "output: must be a folder, got the file"),
        (data.scans, "output: must not be the folder of the data"),
        (done.run.folder, "holds a run of self_training; give another folder"),
    ):
        with pytest.raises(DataError, match=message):
            monai_ssl.self_train(data.scans, output=output, **TINY)
    with pytest.raises(DataError, match=r"output: .* holds a self-training, whose runs are below it; give another"):
        monai_ssl.train("supervised", data.scans, output=done.folder, **TINY)


def test_the_default_folder_is_not_taken_from_other_data(data, done, tmp_path, monkeypatch):
    """Two data sets in folders of one name, trained from one place: the second trained the first's result anew."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(data.scans, tmp_path / name / "scans")
    place = tmp_path / "runs" / "self-train-phantom-scans-seed0"
    shutil.copytree(done.folder, place)
    before = content(place)
    for path in place.glob("*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset_dir": str(tmp_path / "a" / "scans")}))
    with pytest.raises(DataError, match=rf"output: {place} holds a self-training on {tmp_path}/a/scans; name a folder"):
        monai_ssl.self_train("b/scans", **TINY)
    assert content(place) == before
    assert monai_ssl.self_train("a/scans", **TINY).folder == place
    assert content(place) == before
    (tmp_path / "a" / "scans").rename(tmp_path / "a" / "moved")  # the same data may have moved
    assert monai_ssl.self_train("a/moved", output=place, **TINY).folder == place
    shutil.move(tmp_path / "a" / "moved", tmp_path / "c" / "scans")
    assert monai_ssl.self_train("c/scans", **TINY).folder == place
    assert content(place) == before


@pytest.mark.slow
def test_killed_at_any_moment(data, done, tmp_path):
    """kill -9 again and again, at moments that wander through floor, labels and round; then to the end: equal bits."""
    options = [f"--{key}={value}" for key, value in TINY.items()]
    words = [
        sys.executable,
        "-m",
        "monai_ssl",
        "self-train",
        str(data.scans),
        "--output",
        str(tmp_path / "out"),
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    kills, wait = 0, 4.0
    for _ in range(40):
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(wait)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills, wait = kills + 1, wait + 0.45
    assert kills >= 5
    assert process.returncode == 0
    assert content(tmp_path / "out") == content(done.folder)


def test_killed_between_two_labels_goes_on(data, done, tmp_path, caplog):
    """The table of what was drawn may end in the middle of a line."""
    out = tmp_path / "out"
    shutil.copytree(done.folder, out)
    place = out / "pseudo_labels-1"
    (place / "reliability.csv").unlink()
    (place / "unlabeled_0003_seg.nii.gz").unlink()
    (place / "unlabeled_0002_seg.nii.gz").unlink()
    (place / "rows.jsonl").write_text('{"case": "unlabeled_0000", "agr', encoding="utf-8")
    with caplog.at_level(logging.INFO):
        monai_ssl.self_train(data.scans, output=out, **TINY)
    assert content(out) == content(done.folder)


def test_weights_that_are_saved_again_label_no_second_time(data, done, tmp_path):
    """A finished training that is started again saves its weights: the same tensors, and a file with other bytes."""
    out = tmp_path / "out"
    shutil.copytree(done.folder, out)
    torch.save(torch.load(out / "floor" / "model.pt", weights_only=True), out / "floor" / "other name.pt")
    (out / "floor" / "other name.pt").replace(out / "floor" / "model.pt")
    before = (out / "floor" / "model.pt").read_bytes()
    assert before != (done.folder / "floor" / "model.pt").read_bytes()
    monai_ssl.self_train(data.scans, output=out, **TINY)
    assert not list(out.glob("*previous*"))
    assert not list(out.glob("*/previous*"))

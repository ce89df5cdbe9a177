"""Alarms: raised for what they are for, once, and not by an ordinary training."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import TINY, run

import monai_ssl
from monai_ssl.data.descriptor import group_difference
from monai_ssl.handlers import Alarms
from monai_ssl.handlers.alarms import matched_floors
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.methods import Supervised
from monai_ssl.runs.folder import Run
from monai_ssl.weights import content_digest, load

LABELS = {0: "background", 1: "atrium", 2: "scar"}
LIST = ("training", "unlabeled")


def validate(
    alarms: Alarms, iteration: int, drawn: Any, label: Any, total: int = 100, pseudo: Any = None, metric: float = 0.5
) -> None:
    """What an evaluator and a trainer show the handler at one validation; volumes of a few voxels."""
    evaluator = SimpleNamespace(state=SimpleNamespace(metrics={"val_mean_dice": metric}))
    method = Supervised(torch.nn.Identity())
    if pseudo is not None:
        method.note_pseudo_labels(torch.tensor(pseudo), len(LABELS))
    trainer = SimpleNamespace(state=SimpleNamespace(rank=0, iteration=iteration), total_iterations=total, stopping=0,
                              plain_method=method)  # fmt: skip
    alarms._clear(evaluator)
    evaluator.state.output = [{"pred": torch.tensor([[drawn]]), "label": torch.tensor([[label]])}]
    alarms.collect(evaluator)
    alarms.check(evaluator, trainer)


@pytest.fixture
def alarms(tmp_path):
    return Alarms(tmp_path, SimpleNamespace(), LABELS)


def kinds(alarms: Alarms) -> list[str]:
    return [alarm["kind"] for alarm in alarms.alarms]


class TestPredictions:
    def test_a_class_that_was_there_and_is_gone(self, alarms, caplog):
        caplog.set_level(logging.WARNING)
        validate(alarms, 10, [0, 1, 2, 2], [0, 1, 2, 2])
        validate(alarms, 20, [0, 1, 0, 0], [0, 1, 2, 2])
        assert kinds(alarms) == ["vanished 2"]
        assert "class 2 (scar) has vanished from the predictions on validation at iteration 20" in caplog.text
        assert "its Dice was 1.00" in caplog.text
        validate(alarms, 30, [0, 1, 2, 2], [0, 1, 2, 2])
        validate(alarms, 40, [0, 1, 0, 0], [0, 1, 2, 2])
        assert kinds(alarms) == ["vanished 2"]  # said once
        assert json.loads(alarms.path.read_text())["alarms"] == alarms.alarms

    @pytest.mark.parametrize(
        ("drawn", "label"),
        [
            ([[0, 1, 2], [0, 1, 2], [0, 0, 2]], [0, 1, 2]),  # gone: see below
            ([[0, 1, 2], [0, 0, 2], [0, 0, 2]], [0, 0, 2]),  # not in the labels either
            ([[0, 1, 2], [0, 0, 2], [0, 0, 2]], [0, IGNORE_LABEL, 2]),  # nobody knows
            ([[0, 0, 0], [0, 0, 0], [0, 1, 2]], [0, 1, 2]),  # late, but there
        ],
    )
    def test_what_is_and_what_is_no_alarm(self, alarms, drawn, label):
        for number, found in enumerate(drawn, 1):
            validate(alarms, 10 * number, found, label, total=30)
        expected = ["vanished 1"] if drawn[2][1] == 0 and label[1] == 1 else []
        assert kinds(alarms) == expected

    def test_never_drawn_is_said_in_the_second_half_only(self, alarms):
        for iteration in (10, 20, 30, 40):
            validate(alarms, iteration, [0, 1, 0], [0, 1, 2])
            assert kinds(alarms) == []
        validate(alarms, 50, [0, 1, 0], [0, 1, 2])
        assert kinds(alarms) == ["never 2"]

    def test_two_validations_are_too_few_for_never(self, alarms):
        for iteration in (2, 4):
            validate(alarms, iteration, [0, 0, 0], [0, 1, 2], total=4)
        assert kinds(alarms) == []


class TestPseudoLabels:
    def test_a_class_that_the_pool_taught_and_teaches_no_more(self, alarms):
        full, half = [0] * 500 + [1] * 300 + [2] * 300, [0] * 500 + [1] * 300
        for iteration, pseudo in ((10, full), (20, full), (30, half)):
            validate(alarms, iteration, [0, 1, 2], [0, 1, 2], pseudo=pseudo)
        assert kinds(alarms) == ["pseudo-labels vanished 2"]

    def test_a_few_voxels_and_a_pause_are_no_alarm(self, alarms):
        few, none = [0] * 500 + [1] * 300 + [2] * 3, [IGNORE_LABEL] * 800
        for iteration, pseudo in ((10, few), (20, few), (30, [0] * 500 + [1] * 300), (40, none)):
            validate(alarms, iteration, [0, 1, 2], [0, 1, 2], pseudo=pseudo)
        assert kinds(alarms) == []

    def test_a_class_of_the_labels_that_the_pool_never_teaches(self, alarms):
        for iteration in (40, 50, 60):
            validate(alarms, iteration, [0, 1, 2], [0, 1, 2], pseudo=[0] * 500 + [1] * 300)
        assert kinds(alarms) == ["pseudo-labels never 2"]

    def test_counts_are_taken_once(self):
        method = Supervised(torch.nn.Identity())
        assert method.take_pseudo_labels() is None
        for _ in range(2):
            method.note_pseudo_labels(torch.tensor([[0, 1, 1, IGNORE_LABEL]]), 3)
        assert method.take_pseudo_labels() == [2, 4, 0, 2]  # the last: left open
        assert method.take_pseudo_labels() is None


class TestResume:
    def test_what_came_after_the_starting_point_is_forgotten(self, alarms, tmp_path):
        validate(alarms, 10, [0, 1, 2], [0, 1, 2])
        validate(alarms, 20, [0, 1, 0], [0, 1, 2])
        engine = SimpleNamespace(state=SimpleNamespace(rank=0, iteration=15))
        again = Alarms(tmp_path, SimpleNamespace(), LABELS)
        again.start(engine)
        assert (kinds(again), len(again.history)) == ([], 1)
        validate(again, 20, [0, 1, 0], [0, 1, 2])
        assert kinds(again) == ["vanished 2"]  # it remembers what was before

    def test_a_damaged_file_is_as_good_as_none(self, alarms, tmp_path):
        alarms.path.write_text("{")
        alarms.start(SimpleNamespace(state=SimpleNamespace(rank=0, iteration=15)))
        assert alarms.history == []
        assert Run(tmp_path).alarms == []


# ------------------------------------------------------------------------------------------------------- real trainings


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A phantom with enough labeled scans to compare the pool with."""
    from monai_ssl.curation.phantom.dataset import write_phantom

    folder = tmp_path_factory.mktemp("alarms") / "scans"
    write_phantom(folder, n_labeled=4, n_unlabeled=20, n_validation=1, n_testing=1, spacing=5.0, progress=False)
    return folder


def train(bundle: str, scans: Path, folder: Path, *words: Any) -> Run:
    defaults = dict(zip(TINY[::2], TINY[1::2], strict=True)) | {"--check": "False", "--output": folder}
    given = defaults | dict(zip(words[::2], words[1::2], strict=True))
    assert run("train", bundle, scans, *(word for pair in given.items() for word in pair)) == 0
    return Run(folder)


class TestTraining:
    @pytest.mark.parametrize("bundle", ["weak_to_strong", "dtc"])
    def test_an_ordinary_one_raises_none(self, scans, tmp_path, bundle, capsys):
        words = ["--max_iterations", "24", "--epoch_length", "6", "--val_interval", "1"]
        words += ["--method#threshold", "0", "--method#burn_in", "0"] if bundle == "weak_to_strong" else []
        found = train(bundle, scans, tmp_path / "run", *words)
        content = json.loads((found.folder / "alarms.json").read_text())
        assert content["alarms"] == found.alarms == []
        assert len(content["history"]) == 4
        assert (content["history"][-1]["pseudo_labels"] is not None) == (bundle == "weak_to_strong")
        assert content["history"][-1]["left_open"] == (0 if bundle == "weak_to_strong" else None)
        assert "alarm" not in capsys.readouterr().err

    def test_changes_no_bit_of_the_weights(self, scans, tmp_path, monkeypatch):
        watched = train("weak_to_strong", scans, tmp_path / "watched")
        monkeypatch.setattr(Alarms, "attach", lambda self, engine: None)
        plain = train("weak_to_strong", scans, tmp_path / "plain")
        assert not (plain.folder / "alarms.json").exists()
        assert content_digest(load(watched.model)) == content_digest(load(plain.model))

    def test_a_pool_unlike_the_labels(self, scans, tmp_path, capsys):
        other = Path(shutil.copytree(scans, tmp_path / "scans"))
        for path in sorted((other / "images").glob("unlabeled_*")):
            image = nib.load(path)
            upside_down = np.asarray(image.dataobj)[:, ::-1, ::-1] ** 2
            nib.save(nib.Nifti1Image(upside_down, image.affine), path)
        found = train("dtc", other, tmp_path / "run", "--max_iterations", "2")
        assert any("the pool looks unlike the labeled scans in pose and shape" in text for text in found.alarms)
        assert "alarm: the pool looks unlike" in "".join(capsys.readouterr())
        assert len(found.alarms) <= 2
        assert train("supervised", other, tmp_path / "floor", "--max_iterations", "2").alarms == []  # it reads no pool

    def test_the_page_of_an_evaluation_says_it(self, scans, tmp_path):
        found = train("dtc", scans, tmp_path / "run")
        text = "class 1 (left atrium) has vanished from the predictions"
        content = json.loads((found.folder / "alarms.json").read_text())
        content["alarms"].append({"iteration": 4, "kind": "vanished 1", "text": text})
        (found.folder / "alarms.json").write_text(json.dumps(content))
        done = monai_ssl.evaluate(found, device="cpu")
        assert f"Alarm in the training of run: {text}." in done.page.read_text()

    def test_another_run_takes_the_folder_without_them(self, scans, tmp_path):
        found = train("dtc", scans, tmp_path / "run")
        before = (found.folder / "alarms.json").read_text()
        train("dtc", scans, tmp_path / "run", "--seed", "3")
        assert (tmp_path / "run" / "previous-1" / "alarms.json").read_text() == before


@pytest.fixture(scope="module")
def runs(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("floors")
    words = ["--max_iterations", "6", "--epoch_length", "2", "--val_interval", "1"]
    floor = train("dtc", scans, folder / "floor", *words, "--method#unsupervised_weight", "0")
    train("dtc", scans, folder / "other seed", *words, "--method#unsupervised_weight", "0", "--seed", "1")
    train("supervised", scans, folder / "supervised", *words)
    log = (floor.folder / "validation.csv").read_text().splitlines()
    rows = [line.split(",") for line in log]
    better = [[row[0], repr(min(float(row[1]) + 0.1, 1.0))] for row in rows[1:]]  # a floor that is hard to beat
    text = "\r\n".join([log[0], *(",".join(row) for row in better)])
    (floor.folder / "validation.csv").write_text(text + "\r\n")
    return SimpleNamespace(folder=folder, words=words, floor=floor)


class TestMatchedFloor:
    def test_is_found_by_what_it_is(self, runs, scans):
        method = train("dtc", scans, runs.folder / "method", *runs.words)
        assert [found.folder.name for found in matched_floors(method)] == ["floor"]
        assert matched_floors(runs.floor) == []
        assert any("points of Dice below its matched floor, floor, at its last 2 validations" in text
                   for text in method.alarms)  # fmt: skip

    def test_other_settings_or_data_are_no_matched_floor(self, runs, scans, tmp_path):
        seed = train("dtc", scans, runs.folder / "seed 2", *runs.words, "--seed", "2")
        assert matched_floors(seed) == []
        assert seed.alarms == []
        elsewhere = train("dtc", scans, tmp_path / "alone", *runs.words)
        assert elsewhere.alarms == []


@pytest.mark.parametrize("n_labeled", [3, 4, 8])
def test_samples_of_one_pool_are_hardly_ever_far_apart(n_labeled):
    generator = np.random.RandomState(0)
    found = []
    for _ in range(20):
        points = generator.randn(30, 6)
        distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
        found.append(group_difference(distances, n_labeled, regroupings=199))
    assert not any(one.p <= 0.005 and one.share >= 0.1 for one in found)
    apart = points + 4 * (np.arange(30) < n_labeled)[:, None]
    far = group_difference(np.sqrt(((apart[:, None] - apart[None]) ** 2).sum(-1)), n_labeled, regroupings=199)
    assert (far.p, far.share > 0.5) == (0.005, True)
    assert group_difference(distances, 1) is None

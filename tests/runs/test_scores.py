"""Scores belong to weights: those of a run that was trained on, or anew, are not those of the network that it holds."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import TINY, fails, run

import monai_ssl
from monai_ssl.reports import report_run
from monai_ssl.runs import Run
from monai_ssl.runs.scores import outdated
from monai_ssl.weights import content_digest, load

CARD = Path("docs/README.md")


def train(scans: Path, folder: Path, *words: object) -> None:
    assert run("train", "supervised", scans, *TINY[:2], *TINY[4:], *words, "--check", "False", "--output", folder) == 0


def changed(results: Path, **meta: object) -> None:
    """Edit where scores come from; None takes an entry away."""
    path = results / "summary.json"
    content = json.loads(path.read_text())
    content["meta"] = {key: value for key, value in (content["meta"] | meta).items() if value is not None}
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def made(tiny_phantom, tmp_path_factory):
    """A run that was evaluated, and the same after two iterations more."""
    folder = tmp_path_factory.mktemp("scores")
    train(tiny_phantom, folder / "before", "--max_iterations", 2)
    assert run("evaluate", folder / "before", "--device", "cpu") == 0
    shutil.copytree(folder / "before", folder / "after")
    train(tiny_phantom, folder / "after", "--max_iterations", 4)
    assert not Run(folder / "after").previous()
    return SimpleNamespace(before=folder / "before", after=folder / "after", scans=tiny_phantom)


@pytest.fixture
def after(made, tmp_path):
    """A copy that a test may change: what counts is the folder that scores lie in, wherever it came from."""
    return Path(shutil.copytree(made.after, tmp_path / "after"))


def test_an_evaluation_notes_what_it_scored(made):
    meta = json.loads((made.before / "evaluation-testing" / "summary.json").read_text())["meta"]
    assert meta["weights"] == content_digest(load(made.before / "model.pt"))
    assert outdated(made.before / "evaluation-testing") == ""


def test_scores_of_another_runs_weights_that_have_moved_are_left_alone(made, tmp_path):
    shutil.copytree(made.after, tmp_path / "other")
    results = tmp_path / "evaluation-validation"
    shutil.copytree(made.before, tmp_path / "own")
    words = ["evaluate", tmp_path / "own", "--ckpt", tmp_path / "other" / "model.pt", "--device", "cpu"]
    assert run(*words, "--section", "testing", "--output", tmp_path / "own" / results.name) == 0
    assert outdated(tmp_path / "own" / results.name) == ""
    shutil.move(tmp_path / "other", tmp_path / "elsewhere")
    assert outdated(tmp_path / "own" / results.name) == ""


@pytest.mark.parametrize("quick", [False, True])
def test_a_run_that_was_trained_on_is_not_what_was_scored(after, quick):
    results = after / "evaluation-testing"
    (after / "model.pt").touch()
    told = outdated(results, quick)
    assert told.startswith(f"{results} holds scores of other weights than {after / 'model.pt'} has now")
    assert told.endswith(f"score it again: monai-ssl evaluate {after}")


def test_what_nobody_can_tell_is_accepted(after, tmp_path):
    results = after / "evaluation-testing"
    elsewhere = Path(shutil.copytree(results, tmp_path / "kept" / "evaluation-testing"))
    assert outdated(elsewhere) == ""  # a record of what was
    former = json.loads((results / "summary.json").read_text())["meta"]["weights"]
    changed(results, weights=None)
    assert outdated(results) == ""  # of a former version
    changed(results, weights=former)
    (after / "model.pt").unlink()
    assert outdated(results) == ""  # a light copy of a run
    (results / "summary.json").write_text("{")
    assert outdated(results) == ""


def test_weights_that_were_named(made, tmp_path):
    """They need not be the run's own; its best ones have a file beside."""
    copy = Path(shutil.copytree(made.before, tmp_path / "run"))
    shutil.copy(made.after / "model.pt", copy / "best.pt")
    words = ["evaluate", copy, "--device", "cpu", "--ckpt"]
    assert run(*words, copy / "best.pt", "--output", copy / "evaluation-testing-best") == 0
    assert run(*words, made.after / "model.pt", "--output", copy / "evaluation-other") == 0
    assert not any(outdated(copy / f"evaluation-{name}") for name in ("testing", "testing-best", "other"))
    shutil.copy(made.before / "model.pt", copy / "best.pt")
    told = outdated(copy / "evaluation-testing-best")
    assert f"than {copy / 'best.pt'} has now" in told
    assert told.endswith(f"evaluate {copy} --ckpt {copy / 'best.pt'} --output {copy / 'evaluation-testing-best'}")


def test_comparisons_refuse_them(made, after, capsys):
    former = f"{after / 'evaluation-testing'} holds scores of other weights"
    words = ["evaluate", made.before, "--device", "cpu", "--output", after.parent / "out"]
    assert f"against: {former}" in fails(capsys, *words, "--against", after / "evaluation-testing")
    assert not (after.parent / "out").exists()  # before the work
    words = ["report", after.parent / "page.html", made.before / "evaluation-testing"]
    assert f"floor: {former}" in fails(capsys, *words, "--floor", after / "evaluation-testing")


def test_a_model_card_has_the_scores_of_its_weights(made, after, tmp_path, capsys):
    assert run("package", after, tmp_path / "former") == 0
    said = capsys.readouterr().err
    assert f"note: {after / 'evaluation-testing'} holds scores of other weights than these" in said
    assert f"package again: monai-ssl evaluate {after}" in said
    assert "has not been evaluated" in (tmp_path / "former" / CARD).read_text()
    assert run("package", after, tmp_path / "named", "--ckpt", made.before / "model.pt") == 0
    assert "| left atrium | 2 |" in (tmp_path / "named" / CARD).read_text()  # these are what was scored
    assert run("evaluate", after, "--device", "cpu") == 0
    assert run("package", after, tmp_path / "new") == 0
    assert "| left atrium | 2 |" in (tmp_path / "new" / CARD).read_text()
    assert "note: " not in capsys.readouterr().err


def test_a_model_card_and_scores_that_do_not_name_their_weights(after, tmp_path):
    results = after / "evaluation-testing"
    changed(results, weights=None)
    shutil.copytree(results, after / "evaluation-testing-again")
    monai_ssl.package(after, tmp_path / "former")
    assert "| left atrium | 2 |" in (tmp_path / "former" / CARD).read_text()
    shutil.rmtree(after / "evaluation-testing-again")
    for other in ({"ckpt": "/elsewhere/best.pt"}, {"ckpt": None, "predictions": "/elsewhere"}, {"ensemble": {"a": 1}}):
        changed(results, **other)
        folder = monai_ssl.package(after, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        assert "has not been evaluated" in (folder / CARD).read_text()


def test_scores_go_along_with_a_run_that_is_set_aside(made, after):
    assert run("evaluate", after, "--device", "cpu") == 0
    train(made.scans, after, "--max_iterations", 4, "--learning_rate", 0.02)
    assert not list(after.glob("evaluation-*"))
    (aside,) = Run(after).previous()
    assert outdated(aside / "evaluation-testing") == ""
    # its page has its own curves, though another run has its former place
    assert report_run(aside / "evaluation-testing").training_log == aside / "training.csv"
    assert report_run(made.before / "evaluation-testing").training_log == made.before / "training.csv"


def test_an_ensemble_of_runs_one_of_which_was_trained_on(made, tmp_path):
    runs = [Path(shutil.copytree(made.before, tmp_path / f"run{number}")) for number in (0, 1)]
    shutil.copy(made.after / "model.pt", runs[1])
    scored = monai_ssl.evaluate(runs, device="cpu").folder
    assert outdated(scored) == ""
    shutil.copy(made.after / "model.pt", runs[0])
    told = outdated(scored)
    assert told.startswith(f"{scored} holds scores of an ensemble with other weights than {runs[0] / 'model.pt'} has")
    assert f"evaluate {runs[0]} {runs[1]} --section testing --output {scored}" in told
    with pytest.raises(monai_ssl.DataError, match=r"method: .* holds scores of an ensemble with other weights"):
        monai_ssl.report(tmp_path / "page.html", scored)
    assert outdated(Path(shutil.copytree(scored, tmp_path / "kept" / "evaluation-testing"))) == ""
    for folder in runs:
        (folder / "model.pt").unlink()
    assert outdated(scored) == ""


def test_a_study_scores_a_run_again_whose_weights_have_changed(made, tmp_path):
    from monai_ssl.runs.study import work
    from monai_ssl.runs.study.tasks import State, Task, done

    lists = {"datalist": "datalist.json", "dataset_dir": str(made.scans)}
    task = Task("run", "train", {"bundle": "supervised", **lists}, "digest", "scores", "testing")
    folder = Path(shutil.copytree(made.before, tmp_path / "runs" / "run"))
    state = State("digest", trained=True, scores={"evaluation-testing": "scores"})
    state.write(folder)
    assert done(task, tmp_path)
    shutil.copy(made.after / "model.pt", folder)
    assert not done(task, tmp_path)
    work.train_and_score(task, tmp_path, state)
    state.write(folder)
    assert done(task, tmp_path)
    (folder / "model.pt").unlink()
    assert done(task, tmp_path)  # a light copy


@pytest.mark.slow
def test_the_demo_scores_again_what_was_trained_on(tmp_path, monkeypatch):
    from monai_ssl.curation.phantom import dataset
    from monai_ssl.runs import demo
    from monai_ssl.runs import train as training

    few = {**demo.CASES, "n_labeled": 2, "n_unlabeled": 2, "n_testing": 2}
    monkeypatch.setattr(demo, "CASES", few)
    write, tiny = dataset.write_phantom, {"network_def#base_channels": 2, "amp": "off", "device": "cpu"}
    monkeypatch.setattr(dataset, "write_phantom", lambda *words, **given: write(*words, **{**given, "spacing": 5.0}))
    monkeypatch.setattr(training, "train", functools.partial(training.train, **tiny))
    weights = []
    for iterations in (1, 2):
        demo.demo(tmp_path, iterations=iterations)
        found = sorted(tmp_path.glob("seed0/**/evaluation-testing"))
        found = [results for results in found if not results.parent.name.startswith("previous-")]
        assert len(found) == 4
        assert not any(map(outdated, found))
        weights.append([json.loads((results / "summary.json").read_text())["meta"]["weights"] for results in found])
    assert not set(weights[0]) & set(weights[1])

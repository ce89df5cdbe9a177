"""Commands of the folder ``benchmarks`` that users type."""

import importlib.util
import re
import sys
from pathlib import Path

import fire
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def random_splits():
    return script("random_splits")


def splits(module, monkeypatch, tmp_path, runs):
    """Run the command with stand-ins for training and evaluation; returns what would have been called."""
    called = []

    class Results:
        def __init__(self, folder):
            better = 10 * ("unsupervised_weight" not in str(folder))
            self.rows = [{"case": "a", "class": "body", **dict.fromkeys(module.METRICS, 50.0 + better)}]

    def train(bundle, data, datalist, **options):
        called.append(("train", bundle, datalist, options))

    for name in ("split", "evaluate"):
        monkeypatch.setattr(f"monai_ssl.{name}", lambda *args, _name=name, **options: called.append((_name, options)))
    monkeypatch.setattr("monai_ssl.train", train)
    monkeypatch.setattr(module, "read_results", Results)
    monkeypatch.setattr(module, "case_values", lambda rows, metric: {row["case"]: row[metric] for row in rows})
    sizes = ["--n_labeled", "2", "--n_testing", "1", "--splits", "2"]
    command = [str(tmp_path), "--output", str(tmp_path / "out"), *sizes, "--lr_scheduler#schedule", "poly", *runs]
    fire.Fire(module.main, command=command)
    return called


@pytest.mark.parametrize("runs", [[], ["--runs", "supervised,tac,tac:unsupervised_weight=0"]])
def test_matched_floor_of_random_splits(random_splits, monkeypatch, tmp_path, runs):
    called = splits(random_splits, monkeypatch, tmp_path, runs)
    trained = [words[1:] for words in called if words[0] == "train"]
    assert [bundle for bundle, _, _ in trained] == ["supervised", "tac", "tac"] * 2
    assert all(options["lr_scheduler#schedule"] == "poly" for _, _, options in trained)
    floors = [options for _, _, options in trained if "method#unsupervised_weight" in options]
    assert [options["method#unsupervised_weight"] for options in floors] == [0, 0]
    assert len({options["output"] for _, _, options in trained}) == 6
    assert [options["seed"] for _, _, options in trained] == [0, 0, 0, 1, 1, 1]
    assert [datalist.name for _, datalist, _ in trained] == ["split-0.json"] * 3 + ["split-1.json"] * 3
    assert [words[1]["seed"] for words in called if words[0] == "split"] == [0, 1]
    assert len([words for words in called if words[0] == "evaluate"]) == 6
    table = (tmp_path / "out" / "summary.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["supervised", "tac", "tac:unsupervised_weight=0"]
    assert "6000.00" in table[3]
    assert "5000.00" in table[4]


def test_equal_runs_of_random_splits_are_refused(random_splits, monkeypatch, tmp_path):
    # fire takes what follows a # for a comment
    with pytest.raises(SystemExit, match="runs must differ, got tac, tac"):
        splits(random_splits, monkeypatch, tmp_path, ["--runs", "tac,tac#unsupervised_weight=0"])


def test_a_protocol_trains_and_scores_in_processes_of_its_own(tiny_phantom, tmp_path, monkeypatch, capfd):
    content = """
title: tiny
description: tiny
seeds: [0]
datalist: datalist.json
options: {dataset: phantom, max_iterations: 2, epoch_length: 2, val_interval: 9, amp: "off", device: cpu,
          network_def#base_channels: 2}
runs:
  floor: {bundle: supervised}
  bad: {bundle: supervised, options: {learning_rat: 1}}
"""
    monkeypatch.syspath_prepend(FOLDER)  # where its own processes find it
    module = script("protocol")
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "tiny.yaml").write_text(content)
    monkeypatch.setattr(module, "HERE", tmp_path)
    module.run("tiny", str(tiny_phantom), str(tmp_path / "runs"), jobs_at_once=2)
    said = capfd.readouterr().out
    assert re.search(r"^floor-seed0: [\d.]+ minutes$", said, re.MULTILINE)
    assert "bad-seed0: failed with status 1" in said
    assert "did you mean learning_rate?" in (tmp_path / "runs" / "bad-seed0" / "log.txt").read_text()
    assert "left atrium: Dice" in (tmp_path / "runs" / "floor-seed0" / "log.txt").read_text()
    module.collect("tiny", str(tmp_path / "runs"), str(tmp_path / "results"))
    assert "| floor | 1 |" in (tmp_path / "results" / "README.md").read_text()
    capfd.readouterr()
    module.run("tiny", str(tiny_phantom), str(tmp_path / "runs"), only="floor")  # finished: nothing to do
    assert capfd.readouterr().out == ""

"""Commands of the folder ``benchmarks`` that users type."""

import importlib.util
from pathlib import Path

import fire
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "random_splits.py"


@pytest.fixture
def random_splits():
    spec = importlib.util.spec_from_file_location("random_splits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def splits(module, monkeypatch, tmp_path, runs):
    """Run the command with stand-ins for training and evaluation; returns what would have been called."""
    called = []

    class Results:
        def __init__(self, folder):
            better = 10 * ("unsupervised_weight" not in str(folder))
            self.rows = [{"case": "a", "class": "body", **dict.fromkeys(module.METRICS, 50.0 + better)}]

    monkeypatch.setattr(module, "call", lambda *words: called.append([str(word) for word in words]))
    monkeypatch.setattr(module, "read_results", Results)
    monkeypatch.setattr(module, "case_values", lambda rows, metric: {row["case"]: row[metric] for row in rows})
    sizes = ["--n_labeled", "2", "--n_testing", "1", "--splits", "2"]
    command = [str(tmp_path), "--output", str(tmp_path / "out"), *sizes, "--lr_scheduler#schedule", "poly", *runs]
    fire.Fire(module.main, command=command)
    return called


@pytest.mark.parametrize("runs", [[], ["--runs", "supervised,tac,tac:unsupervised_weight=0"]])
def test_matched_floor_of_random_splits(random_splits, monkeypatch, tmp_path, runs):
    called = splits(random_splits, monkeypatch, tmp_path, runs)
    trained = [words for words in called if words[0] == "train"]
    assert [words[1] for words in trained] == ["supervised", "tac", "tac"] * 2
    assert all(words[words.index("--lr_scheduler#schedule") + 1] == "poly" for words in trained)
    floors = [words for words in trained if "--method#unsupervised_weight" in words]
    assert [words[words.index("--method#unsupervised_weight") + 1] for words in floors] == ["0", "0"]
    assert len({words[words.index("--output") + 1] for words in trained}) == 6
    assert [words[words.index("--seed") + 1] for words in called if words[0] == "split"] == ["0", "1"]
    table = (tmp_path / "out" / "summary.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["supervised", "tac", "tac:unsupervised_weight=0"]
    assert "6000.00" in table[3]
    assert "5000.00" in table[4]


def test_equal_runs_of_random_splits_are_refused(random_splits, monkeypatch, tmp_path):
    # fire takes what follows a # for a comment
    with pytest.raises(SystemExit, match="runs must differ, got tac, tac"):
        splits(random_splits, monkeypatch, tmp_path, ["--runs", "tac,tac#unsupervised_weight=0"])

"""Results on disk."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch

from monai_ssl.metrics import case_metrics, environment, read_results, write_results

NAMES = ["plain", 'comma, "quote"', "line\nbreak", "ünïcode <b>", "=1+1"]


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    rows = []
    for name in NAMES:
        prediction, reference = rng.integers(0, 3, (2, 9, 8, 7))
        rows += case_metrics(prediction, reference, {1: "a", 2: "b, c"}, (0.7, 0.9, 1.1), name)
    return rows


def test_round_trip_to_the_last_digit(tmp_path, rows):
    paths = write_results(tmp_path / "new" / "folder", rows, {"command": "run", "seed": 3})
    results = read_results(tmp_path / "new" / "folder")
    assert results.rows == rows
    assert results.summary["n_cases"] == len(NAMES)
    assert results.summary["classes"]["b, c"]["dice"]["mean"] == pytest.approx(
        np.mean([row["dice"] for row in rows if row["class"] == "b, c"])
    )
    assert sorted(os.listdir(paths["summary"].parent)) == ["per_case.csv", "summary.json"]


def test_meta_is_complete(tmp_path, rows):
    write_results(tmp_path, rows, {"seed": np.int64(3), "ckpt": tmp_path / "model.pt", "dataset": "phantom"})
    meta = read_results(tmp_path).meta
    assert meta["seed"] == 3
    assert meta["dataset"] == "phantom"
    assert meta["ckpt"].endswith("model.pt")
    assert meta["command"]
    assert meta["date"].endswith("+00:00")
    assert torch.__version__.startswith(meta["versions"]["torch"].split("+")[0])
    assert {"platform", "cpu", "cores", "torch_threads", "cuda_devices"} <= set(meta["machine"])


def test_given_meta_wins(tmp_path, rows):
    write_results(tmp_path, rows, {"command": "mine", "date": "today"})
    assert (read_results(tmp_path).meta["command"], read_results(tmp_path).meta["date"]) == ("mine", "today")


def test_2d_volumes_and_strict_json(tmp_path):
    mask = np.eye(6, dtype=int)
    write_results(tmp_path, case_metrics(mask, mask, {1: "x"}, 1.0, "only"), {"loss": float("inf")})
    document = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["meta"]["loss"] is None
    assert math.isnan(read_results(tmp_path).rows[0]["volume_ml_reference"])


def test_extra_columns_are_kept(tmp_path, rows):
    write_results(tmp_path, [{**row, "fold": "2"} for row in rows], {})
    assert read_results(tmp_path).rows[0]["fold"] == "2"


def test_numpy_numbers_are_written_as_numbers(tmp_path, rows):
    write_results(tmp_path, [{**row, "dice": np.float64(row["dice"])} for row in rows], {})
    assert read_results(tmp_path).rows == rows


def test_interrupted_writing_leaves_the_old_files(tmp_path, rows, monkeypatch):
    write_results(tmp_path, rows, {"seed": 1})
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(tmp_path, rows[:2], {"seed": 2})
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_bad_folders(tmp_path, rows):
    with pytest.raises(FileNotFoundError, match=r"holds no per_case\.csv"):
        read_results(tmp_path)
    write_results(tmp_path, rows, {})
    table = tmp_path / "per_case.csv"
    table.write_text(table.read_text().replace(",ok,", ",ok,nonsense", 1))
    with pytest.raises(ValueError, match="must hold numbers"):
        read_results(tmp_path)
    table.write_text("case,dice\na,1\n")
    with pytest.raises(ValueError, match="must have the columns"):
        read_results(tmp_path)


def test_environment_is_json():
    values = environment()
    assert json.loads(json.dumps(values)) == values
    assert values["versions"]["numpy"] == np.__version__
    assert values["machine"]["cores"] >= 1


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path):
    names = ["=1+1", "+a", "-a", "@a", "\ta", "'a", "a=1", "-3"]
    rows = [
        row
        for name in names
        for row in case_metrics(np.eye(4, dtype=int), np.eye(4, dtype=int), {1: "x"}, 1.0, case=name)
    ]
    path = write_results(tmp_path, rows, {})["per_case"]
    for line in path.read_text(encoding="utf-8").splitlines()[1:-1]:
        assert line.lstrip('"')[0] not in "=+-@\t"
    assert [row["case"] for row in read_results(tmp_path).rows] == names

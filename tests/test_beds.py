"""Tables of the beds: from run folders to files, and only from files to figures."""

import csv
import json
import re

import numpy as np
import pytest
from test_benchmarks import FOLDER, script

from monai_ssl.metrics import METRICS, write_results

TITLES = {"heart": "heart, 2 labels", "knee": "knee, 1 label", "never_run": "not yet"}
# what the arms add to a case that has 0.5 with the matched floor
GAINS = {"floor": -0.05, "matched_floor": 0.0, "self_training": 0.1, "no_pool": 0.0, "oracle": 0.15, "ceiling": 0.2}


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return script("beds_tables")


def write_scores(folder, arm, repetition, mirrored, dice, classes=("a",), fold=0):
    rows = [
        dict.fromkeys(METRICS, 1.0)
        | {"case": f"fold{fold}-{number}", "label": label, "class": name, "status": "ok", "dice": value}
        for number, value in enumerate(dice)
        for label, name in enumerate(classes, 1)
    ]
    place = (
        folder / str(repetition) / arm / ("" if arm == "floor" else "scores") / ("mirrored" if mirrored else "plain")
    )
    run = {"floor": "self_training/floor", "self_training": "self_training/round-1"}.get(arm, arm)
    training = {
        "bundle": "x",
        "overrides": {"seed": repetition, "pseudo_labels": "/secret/place/labels"},
        "max_iterations": 9,
    }
    ckpt = folder / str(repetition) / run / "model.pt"
    write_results(place, rows, {"ckpt": ckpt, "test_time_augmentation": mirrored, "training": training})
    (ckpt.parent / "run.json").parent.mkdir(parents=True, exist_ok=True)
    (ckpt.parent / "run.json").write_text(json.dumps({"command": f"monai-ssl train x --output {ckpt.parent}"}))
    with (folder / str(repetition) / "log-all.txt").open("a") as log:
        print(f"1 x: y (practical), 2 training, output {ckpt.parent}", file=log)
        print("2 training: iteration 9 of 9, loss 1 (supervised 1), took 0:02:05", file=log)


def write_bed(folder, gains=GAINS, mirrored=True, repetitions=3, **options):
    base = np.random.default_rng(0).uniform(0.48, 0.52, (repetitions, 4))
    for repetition in range(repetitions):
        for arm, gain in gains.items():
            for views in (False, True)[: 1 + mirrored]:
                dice = base[repetition] + gain + 0.01 * views
                write_scores(folder, arm, repetition, views, dice, fold=repetition, **options)


def table(page, title):
    """Rows of the table below a heading, as lists of cells, by their first cell."""
    lines = page.split(title, 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows}


def test_collect_writes_files_tables_and_a_picture(tables, tmp_path, capsys):
    write_bed(tmp_path / "runs" / "heart")
    write_bed(tmp_path / "runs" / "knee", {**GAINS, "ceiling": -0.1}, mirrored=False, classes=("a", "b"))
    for repetition, gain in enumerate((0.02, 0.04)):
        write_scores(tmp_path / "runs" / "heart", "no_cutmix", repetition, False, [0.6 + gain] * 4, fold=repetition)
    results = tmp_path / "results"
    tables.collect(tmp_path / "runs", results, TITLES)
    assert capsys.readouterr().out.strip() == str(results / "README.md")
    assert (results / "gain.png").read_bytes().startswith(b"\x89PNG")

    page = (results / "README.md").read_text()
    overview = table(page, "have; the share of the gap")
    assert overview["heart, 2 labels"][0] == "3, 12"
    assert overview["heart, 2 labels"][4:] == ["50 % [50, 50]", "0 % [0, 0]", "75 % [75, 75]"]
    assert overview["knee, 1 label"][4:] == ["no gap (-10.0)"] * 3
    assert overview["mean over beds (their number)"][4:] == ["**50 %** (1)", "**0 %** (1)", "**75 %** (1)"]
    arms = table(page, "## heart")
    method = arms["**self-training, one round**"]
    assert re.fullmatch(r"\*\*\d\d\.\d\*\* \((\d\d\.\d, ){2}\d\d\.\d\)", method[0])
    assert method[3:] == ["0 of 12", "+10.0 [+10.0, +10.0]", "50 % [50, 50]", method[6], "0", method[4], method[5]]
    assert float(method[6]) == pytest.approx(float(method[0].split("**")[1]) + 1, abs=0.11)
    assert arms["self-training with weight 0 (matched floor)"][4:6] == ["–", "–"]
    assert int(arms["supervised, labels only (floor)"][3].split()[0]) == 12  # Dice below 0.5
    assert len(table(page, "## knee")["**self-training, one round**"]) == 6  # no mirrored views there
    variants = table(page, "Variants, each compared")
    assert variants["`no_cutmix`"][:2] == ["2", "63.0"]
    assert variants["`no_cutmix`"][3:] == ["–", "–", "–"]
    assert "Seconds of training as logged, several trainings at a time: floor 125, matched_floor 125" in page
    assert "never_run" not in page

    with (results / "heart" / "per_case.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 3 * 2 * 4 + 2 * 4
    record = json.loads((results / "heart" / "runs.json").read_text())
    assert len(record["environments"]) == 1
    assert len(record["runs"]) == 6 * 3 + 2
    first = record["runs"][0]
    assert (first["arm"], first["command"], first["seconds"]) == ("floor", "monai-ssl train x --output floor", 125)
    assert first["overrides"] == {"seed": 0, "pseudo_labels": "labels"}
    assert str(tmp_path) not in "".join(path.read_text() for path in results.rglob("*.*") if path.suffix != ".png")


def test_figures_come_from_the_written_files(tables, tmp_path):
    write_bed(tmp_path / "runs" / "heart")
    results = tmp_path / "results"
    tables.collect(tmp_path / "runs", results, TITLES)
    pages = (results / "README.md").read_text(), (results / "summary.json").read_text()
    (results / "FINDINGS.md").write_text("## What this shows\n\nA thing.\n")
    tables.collect(tmp_path / "elsewhere", results, TITLES)  # without the runs
    assert (results / "README.md").read_text() == f"{pages[0]}\n## What this shows\n\nA thing.\n"
    assert (results / "summary.json").read_text() == pages[1]


def test_repetitions_that_an_arm_lacks_do_not_count(tables, tmp_path):
    write_bed(tmp_path / "runs" / "heart", {key: GAINS[key] for key in ("matched_floor", "ceiling")})
    for repetition, dice in ((1, 0.9), (5, 0.1)):
        base = np.random.default_rng(0).uniform(0.48, 0.52, (3, 4))
        values = base[1] + 0.2 if repetition == 1 else [dice] * 4
        write_scores(tmp_path / "runs" / "heart", "self_training", repetition, False, values, fold=repetition)
        write_scores(tmp_path / "runs" / "heart", "self_training", repetition, True, values, fold=repetition)
    tables.collect(tmp_path / "runs", tmp_path / "results", TITLES)
    found = json.loads((tmp_path / "results" / "summary.json").read_text())["heart"]["self_training"]
    assert found["plain"]["closed"]["repetitions"] == [1]
    assert found["plain"]["closed"]["share"] == pytest.approx(1)
    assert found["plain"]["cases"] == 8
    row = table((tmp_path / "results" / "README.md").read_text(), "have; the share of the gap")["heart, 2 labels"]
    assert row[0] == "1, 4"
    assert row[5:] == ["–", "–"]


@pytest.mark.parametrize("missing", ["ceiling", "matched_floor", "self_training"])
def test_unfinished_beds_have_tables(tables, tmp_path, missing):
    write_bed(tmp_path / "runs" / "heart", {key: value for key, value in GAINS.items() if key != missing})
    tables.collect(tmp_path / "runs", tmp_path / "results", TITLES)
    row = table((tmp_path / "results" / "README.md").read_text(), "have; the share of the gap")["heart, 2 labels"]
    assert row[4] == "–"


def test_cases_must_be_the_same(tables, tmp_path):
    write_bed(tmp_path / "runs" / "heart")
    write_scores(tmp_path / "runs" / "heart", "oracle", 1, False, [0.5] * 4, fold=2)
    with pytest.raises(ValueError, match="must hold the same cases"):
        tables.collect(tmp_path / "runs", tmp_path / "results", TITLES)


def test_nothing_to_collect(tables, tmp_path):
    with pytest.raises(SystemExit, match="no scores of heart, knee, never_run below"):
        tables.collect(tmp_path, tmp_path / "results", TITLES)
    write_scores(tmp_path / "heart", "floor", 0, True, [0.5])
    (tmp_path / "heart" / "0" / "floor" / "mirrored").rename(tmp_path / "heart" / "0" / "floor" / "plain")
    with pytest.raises(SystemExit, match="was not scored with plain views"):
        tables.collect(tmp_path, tmp_path / "results", TITLES)

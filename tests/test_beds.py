"""Beds: lists that mix nothing up; tables from run folders to files, and only from files to figures."""

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from test_benchmarks import FOLDER, script

from monai_ssl.metrics import METRICS, write_results

TITLES = {"heart": "heart, 2 labels", "knee": "knee, 1 label", "heart_1": "heart, 1 label", "never_run": "not yet"}
# what the arms add to a case that has 0.5 with the matched floor
GAINS = {"floor": -0.05, "matched_floor": 0.0, "self_training": 0.1, "no_pool": 0.0, "oracle": 0.15, "ceiling": 0.2,
         "warm_start": 0.12, "warm_matched_floor": 0.04}  # fmt: skip


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module = script("beds_tables")
    others = {"heart_1": "heart"}
    beds = {name: SimpleNamespace(title=title, ceiling_of=others.get(name, "")) for name, title in TITLES.items()}
    monkeypatch.setattr(module, "BEDS", beds)
    monkeypatch.setattr("monai_ssl.metrics.results.summarize", lambda rows: {})  # slow, and not read here
    monkeypatch.setattr(module, "gap_closed", partial(module.gap_closed, n_resamples=500))
    return module


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
    tables.collect(tmp_path / "runs", results)
    assert capsys.readouterr().out.strip() == str(results / "README.md")
    assert (results / "gain.png").read_bytes().startswith(b"\x89PNG")

    page = (results / "README.md").read_text()
    overview = table(page, "have; the share of the gap")
    assert overview["heart, 2 labels"][0] == "3, 12"
    assert overview["heart, 2 labels"][4:] == ["50 % [50, 50]", "0 % [0, 0]", "75 % [75, 75]", "50 % [50, 50]"]
    assert overview["knee, 1 label"][4:] == [*["no gap (-10.0)"] * 3, "no gap (-14.0)"]
    assert overview["mean over beds (their number)"][4:] == [
        "**50 %** (1)",
        "**0 %** (1)",
        "**75 %** (1)",
        "**50 %** (1)",
    ]
    arms = table(page, "## heart")
    method = arms["**self-training, one round**"]
    assert re.fullmatch(r"\*\*\d\d\.\d\*\* \((\d\d\.\d, ){2}\d\d\.\d\)", method[0])
    assert method[3:] == ["0 of 12", "+10.0 [+10.0, +10.0]", "50 % [50, 50]", method[6], "0", method[4], method[5]]
    assert float(method[6]) == pytest.approx(float(method[0].split("**")[1]) + 1, abs=0.11)
    assert arms["self-training with weight 0 (matched floor)"][4:6] == ["–", "–"]
    assert int(arms["supervised, labels only (floor)"][3].split()[0]) == 12  # Dice below 0.5
    assert len(table(page, "## knee")["**self-training, one round**"]) == 6  # no mirrored views there
    assert "minus without a pool +10.0 [+10.0, +10.0], mirrored +10.0" in page
    assert "; minus floor +15.0 [+15.0, +15.0], mirrored +15.0" in page
    begun = "Begun with the floor's weights, in points: minus with new weights +2.0 [+2.0, +2.0], mirrored +2.0"
    assert begun in page
    assert arms["the same with weight 0 (its matched floor)"][4:6] == ["–", "–"]
    assert arms["**self-training, begun with the floor's weights**"][4:6] == ["+8.0 [+8.0, +8.0]", "50 % [50, 50]"]
    variants = table(page, "Variants, each compared")
    assert variants["no CutMix (`no_cutmix`)"][:2] == ["2", "63.0"]
    assert variants["no CutMix (`no_cutmix`)"][3:] == ["–", "–", "–"]
    assert "Seconds of training as logged, several trainings at a time: floor 125, matched_floor 125" in page
    assert "never_run" not in page

    with (results / "heart" / "per_case.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(GAINS) * 3 * 2 * 4 + 2 * 4
    record = json.loads((results / "heart" / "runs.json").read_text())
    assert len(record["environments"]) == 1
    assert len(record["runs"]) == len(GAINS) * 3 + 2
    first = record["runs"][0]
    assert (first["arm"], first["command"], first["seconds"]) == ("floor", "monai-ssl train x --output floor", 125)
    assert first["overrides"] == {"seed": 0, "pseudo_labels": "labels"}
    assert str(tmp_path) not in "".join(path.read_text() for path in results.rglob("*.*") if path.suffix != ".png")


def test_parts_of_a_bed_come_together(tables, tmp_path):
    """Trained on two machines: what one lacks stays, what both have is the newer one's."""
    write_bed(tmp_path / "runs" / "heart")
    results = tmp_path / "results"
    tables.collect(tmp_path / "runs", results)
    before = {path.name: path.read_text() for path in (results / "heart").iterdir()}
    tables.collect(tmp_path / "runs", results)
    assert {path.name: path.read_text() for path in (results / "heart").iterdir()} == before
    write_scores(tmp_path / "more" / "heart", "no_cutmix", 1, False, [0.7] * 4, fold=1)
    write_scores(tmp_path / "more" / "heart", "oracle", 1, False, [0.9] * 4, fold=1)
    tables.collect(tmp_path / "more", results)
    found = tables.scores(results / "heart" / "per_case.csv")
    assert set(found["no_cutmix"]["plain"]) == {1}
    assert [row["dice"] for row in found["oracle"]["plain"][1]] == [0.9] * 4
    assert len(found["oracle"]["plain"]) == len(found["floor"]["plain"]) == 3
    runs = json.loads((results / "heart" / "runs.json").read_text())["runs"]
    assert len(runs) == len(GAINS) * 3 + 1
    keys = [(run["arm"], run["repetition"]) for run in runs]
    assert len(set(keys)) == len(keys)


def test_figures_come_from_the_written_files(tables, tmp_path):
    write_bed(tmp_path / "runs" / "heart")
    results = tmp_path / "results"
    tables.collect(tmp_path / "runs", results)
    pages = (results / "README.md").read_text(), (results / "summary.json").read_text()
    (results / "FINDINGS.md").write_text("## What this shows\n\nA thing.\n")
    tables.collect(tmp_path / "elsewhere", results)  # without the runs
    assert (results / "README.md").read_text() == f"{pages[0]}\n## What this shows\n\nA thing.\n"
    assert (results / "summary.json").read_text() == pages[1]


def test_repetitions_that_an_arm_lacks_do_not_count(tables, tmp_path):
    write_bed(tmp_path / "runs" / "heart", {key: GAINS[key] for key in ("matched_floor", "ceiling")})
    for repetition, dice in ((1, 0.9), (5, 0.1)):
        base = np.random.default_rng(0).uniform(0.48, 0.52, (3, 4))
        values = base[1] + 0.2 if repetition == 1 else [dice] * 4
        write_scores(tmp_path / "runs" / "heart", "self_training", repetition, False, values, fold=repetition)
        write_scores(tmp_path / "runs" / "heart", "self_training", repetition, True, values, fold=repetition)
    tables.collect(tmp_path / "runs", tmp_path / "results")
    found = json.loads((tmp_path / "results" / "summary.json").read_text())["heart"]["self_training"]
    assert found["plain"]["closed"]["repetitions"] == [1]
    assert found["plain"]["closed"]["share"] == pytest.approx(1)
    assert found["plain"]["cases"] == 8
    row = table((tmp_path / "results" / "README.md").read_text(), "have; the share of the gap")["heart, 2 labels"]
    assert row[0] == "1, 4"
    assert row[5:] == ["–", "–", "–"]


@pytest.mark.parametrize("missing", ["ceiling", "matched_floor", "self_training"])
def test_unfinished_beds_have_tables(tables, tmp_path, missing):
    write_bed(tmp_path / "runs" / "heart", {key: value for key, value in GAINS.items() if key != missing})
    tables.collect(tmp_path / "runs", tmp_path / "results")
    row = table((tmp_path / "results" / "README.md").read_text(), "have; the share of the gap")["heart, 2 labels"]
    assert row[4] == "–"
    assert ("minus floor +15.0" in (tmp_path / "results" / "README.md").read_text()) is (missing != "self_training")


def test_a_bed_takes_the_ceiling_of_the_other_with_the_same_scans(tables, tmp_path):
    write_bed(tmp_path / "runs" / "heart")
    write_bed(tmp_path / "runs" / "heart_1", {key: GAINS[key] for key in ("matched_floor", "self_training")})
    tables.collect(tmp_path / "runs", tmp_path / "results")
    row = table((tmp_path / "results" / "README.md").read_text(), "have; the share of the gap")["heart, 1 label"]
    assert row[4] == "50 % [50, 50]"
    assert "ceiling" not in (tmp_path / "results" / "heart_1" / "per_case.csv").read_text()


def test_cases_must_be_the_same(tables, tmp_path):
    write_bed(tmp_path / "runs" / "heart")
    write_scores(tmp_path / "runs" / "heart", "oracle", 1, False, [0.5] * 4, fold=2)
    with pytest.raises(ValueError, match="must hold the same cases"):
        tables.collect(tmp_path / "runs", tmp_path / "results")


def test_nothing_to_collect(tables, tmp_path):
    with pytest.raises(SystemExit, match="no scores of heart, knee, "):
        tables.collect(tmp_path, tmp_path / "results")
    write_scores(tmp_path / "heart", "floor", 0, True, [0.5])
    (tmp_path / "heart" / "0" / "floor" / "mirrored").rename(tmp_path / "heart" / "0" / "floor" / "plain")
    with pytest.raises(SystemExit, match="was not scored with plain views"):
        tables.collect(tmp_path, tmp_path / "results")


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Datalists of all beds, made from tiny scans; sources list test cases, too."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("beds")
    scan = nib.Nifti1Image(np.zeros((4, 4, 4), dtype=np.uint8), np.eye(4))

    def entries(root, folder, names):
        for name in names:
            for kind in ("images", "labels"):
                (root / f"{kind}{folder}").mkdir(parents=True, exist_ok=True)
                nib.save(scan, root / f"{kind}{folder}" / f"{name}.nii.gz")
        return [{"image": f"images{folder}/{name}.nii.gz", "label": f"labels{folder}/{name}.nii.gz"} for name in names]

    def frames(numbers):
        return [f"patient{number:03d}_frame{frame:02d}" for number in numbers for frame in (1, 12)]

    content = {
        ("left_atrium", "la_8_72.json", ""): (
            [f"A{n}" for n in range(8)],
            [f"B{n}" for n in range(60)],
            ["held_apart"],
        ),
        ("hippocampus", "hippocampus_dev_full_190_val20.json", "Tr"): (
            [f"h_{n}" for n in range(84)],
            [],
            ["held_apart"],
        ),
        ("acdc", "acdc_full_70_val10.json", ""): (frames(range(52)), [], frames([98, 99])),
    }
    for (data, name, folder), (training, unlabeled, testing) in content.items():
        root = source / data
        sections = {"training": training, "unlabeled": unlabeled, "testing": testing, "validation": []}
        made = {section: entries(root, folder, names) for section, names in sections.items()}
        (root / name).write_text(json.dumps(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        module = script("beds")
        module.data(str(source), str(output), repetitions=3)
    return module, output


def patients(entries):
    return list(dict.fromkeys(Path(entry["image"]).name.split(".")[0].split("_frame")[0] for entry in entries))


def read(lists, name, repetition, suffix=""):
    module, output = lists
    return json.loads((output / module.BEDS[name].data / f"{name}-{repetition}{suffix}.json").read_text())


BED_NAMES = ("la_4", "la_2", "acdc_3", "acdc_1", "acdc_3_long", "hippocampus_3")


def test_every_bed_is_tested(lists):
    assert set(lists[0].BEDS) == set(BED_NAMES)


@pytest.mark.parametrize("name", BED_NAMES)
def test_lists_of_a_bed(lists, name):
    module, output = lists
    bed = module.BEDS[name]
    judged, chosen = [], []
    for repetition in range(3):
        few, every, own = (read(lists, name, repetition, suffix) for suffix in ("", "-all", "-no_pool"))
        labeled, pool, validation = (patients(few[key]) for key in ("training", "unlabeled", "validation"))
        assert (len(labeled), len(validation)) == (bed.labeled, bed.fold)
        assert not set(labeled) & set(pool)
        assert not set(validation) & {*labeled, *pool}
        assert patients(every["training"]) == labeled + pool
        assert every["unlabeled"] == []
        assert every["validation"] == own["validation"] == few["validation"]
        assert own["training"] == few["training"]
        assert [entry.keys() for entry in few["unlabeled"]] == [{"image"}] * len(few["unlabeled"])
        assert [Path(entry["image"]).name for entry in own["unlabeled"]] == [
            Path(entry["image"]).name.replace(".nii", "_copy.nii") for entry in few["training"]
        ]
        named = {*labeled, *pool, *validation}
        assert not named & {"held_apart", "patient098", "patient099"}
        for entry in (*every["training"], *every["validation"], *own["unlabeled"]):
            assert all((output / bed.data / path).is_file() for path in entry.values())
        judged += [entry["image"] for entry in few["validation"]]
        chosen += labeled
    assert len(set(judged)) == len(judged) >= 48
    assert len(set(chosen)) == len(chosen)  # or the choice of labels would count less often than it seems


@pytest.mark.parametrize(("few", "more"), [("la_2", "la_4"), ("acdc_1", "acdc_3")])
def test_labels_are_nested(lists, few, more):
    for repetition in range(3):
        first, second = read(lists, few, repetition), read(lists, more, repetition)
        assert second["training"][: len(first["training"])] == first["training"]
        assert first["validation"] == second["validation"]
        assert {*patients(first["training"] + first["unlabeled"])} == {
            *patients(second["training"] + second["unlabeled"])
        }
        assert lists[0].BEDS[few].ceiling_of == more  # whose scans are these


def test_longer_trainings_see_the_same_scans(lists):
    for suffix in ("", "-all", "-no_pool"):
        assert read(lists, "acdc_3_long", 1, suffix) == read(lists, "acdc_3", 1, suffix)


def test_slices_of_acdc_have_one_size(lists):
    module, output = lists
    image = nib.load(next((output / "acdc" / "images").glob("*.nii.gz")))
    assert image.shape == (module.SIDE, module.SIDE, 4)
    assert image.get_data_dtype() == np.uint8


def test_pseudo_labels_are_compared_with_the_truth(lists, tables, tmp_path):
    """Two beds, a pool each: one that is right about what it knows, and one whose floor was wrong."""
    data = lists[1]
    reliability = script("reliability")
    for bed, wrong in (("la_4", 0), ("hippocampus_3", 3)):
        place = tmp_path / "runs" / bed / "0" / "self_training" / "pseudo_labels-1"
        place.mkdir(parents=True)
        images = [data / lists[0].BEDS[bed].data / entry["image"] for entry in read(lists, bed, 0)["unlabeled"]]
        rows = ["case,reliability,kept,agreement,confidence"]
        for number, image in enumerate(images):
            name, label = image.name.split(".")[0], np.zeros(nib.load(image).shape, dtype=np.uint8)
            label[0, 0, 0] = number < wrong  # the truth is empty: one voxel makes a Dice of 0
            nib.save(nib.Nifti1Image(label, np.eye(4)), place / f"{name}_seg.nii.gz")
            rows.append(f"{name},{0.2 if number < wrong else 0.9},{int(number != 0)},,0.5")
        (place / "reliability.csv").write_text("\n".join(rows) + "\n")
    reliability.collect(str(data), str(tmp_path / "runs"), str(tmp_path / "results"))
    first = (tmp_path / "results" / "reliability.csv").read_bytes()
    shutil.rmtree(tmp_path / "runs" / "la_4")
    reliability.collect(str(data), str(tmp_path / "runs"), str(tmp_path / "results"))
    assert (tmp_path / "results" / "reliability.csv").read_bytes() == first  # beds are compared in parts
    lines = reliability.table(tmp_path / "results", {"la_4": "left atrium"})
    told = {row[0]: row[1:] for line in lines if line.startswith("|") for row in [line.strip("| ").split(" | ")]}
    n = {bed: len(read(lists, bed, 0)["unlabeled"]) for bed in ("la_4", "hippocampus_3")}
    assert told["left atrium"][:2] == ["0", str(n["la_4"])]
    assert told["left atrium"][3:] == ["–", "100.0", "100.0", "100.0", f"1 of {n['la_4'] // 10}"]
    share = 50 * 3 / n["hippocampus_3"]  # one of two classes
    assert told["hippocampus_3"][3:6] == [
        "1.00",
        f"{100 - share:.1f}",
        f"{100 - 50 * 2 / (n['hippocampus_3'] - 1):.1f}",
    ]
    assert told["hippocampus_3"][6:] == ["50.0", f"1 of {n['hippocampus_3'] // 10}"]
    with pytest.raises(SystemExit, match="no self-training of a bed"):
        reliability.collect(str(data), str(tmp_path / "nothing"), str(tmp_path / "results"))

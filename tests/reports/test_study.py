"""The report of a study: every number on the page is found again from the scores of the single scans."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
import subprocess
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import stats
from studies import EVIL, SETTINGS, Maker, whole_study
from studies import scores as score

from monai_ssl.errors import DataError
from monai_ssl.metrics import write_results
from monai_ssl.reports.study import StudyRow, StudyRun, write_study_report
from monai_ssl.reports.study.analysis import Analysis
from monai_ssl.reports.study.charts import fraction_figure
from monai_ssl.reports.study.findings import findings, splits_note, warnings
from monai_ssl.reports.study.latex import latex_text
from monai_ssl.reports.study.load import load_study
from monai_ssl.reports.study.quoted import QuotedFigure, jaccard_bounds, jaccard_check, read_quoted
from monai_ssl.reports.study.rows import ROLES
from monai_ssl.reports.study.tables import gains_table

QUOTED = """figures:
- {title: DTC, dataset: left_atrium, n_labeled: 8, n_unlabeled: 72, dice: 87.51, jaccard: 78.17, hd95: 8.23, asd: 2.36,
   source: "Paper A, Table 1", protocol: "V-Net, 6000 iterations", selection: "last weights"}
- {title: CAML, dataset: left_atrium, n_labeled: 8, n_unlabeled: 72, dice: 89.62, jaccard: 80.10, hd95: 8.76,
   source: "Paper B, Table 1", selection: "best on the test set"}
"""


def write(maker, folder=None, quoted=None, **options):
    options = {"title": "A study", "description": "What for.", "command": "monai-ssl compare s.yaml"} | options
    return write_study_report(folder or maker.folder, rows=maker.rows, runs=maker.runs, quoted=quoted, **options)


def analysis(maker):
    return Analysis(load_study(maker.rows, maker.runs))


def plain(text):
    """Numbers as Python reads them, without the marks of Markdown."""
    return text.replace("\u2212", "-").replace("\\", "")


def tables(markdown):
    """Tables of a page by heading: a list of rows (dict of cells) each."""
    found, heading, lines = {}, "", []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if lines:
            found.setdefault(heading, []).append([dict(zip(lines[0], row, strict=True)) for row in lines[2:]])
            lines = []
        if line.startswith("#"):
            heading = plain(line.lstrip("# "))
    return found


def numbers(text):
    return [float(number) for number in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?", plain(text))]


# ------------------------------------------------------------------- numbers, recomputed without the package's help


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    maker = whole_study(folder, datasets=("left_atrium",), labels=(4, 8, 16, 32))
    other = whole_study(folder, datasets=("hippocampus",), labels=(8,))
    maker.rows += other.rows
    maker.runs += other.runs
    maker.lost(next(row for row in maker.rows if row.name == "left_atrium-DTC-8-w0"), 7)
    quoted = folder / "quoted.yaml"
    quoted.write_text(QUOTED)
    page = write(maker, quoted=quoted)
    return maker, page, (folder / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scores(whole):
    """Row -> (split, seed) -> case -> class -> record, from per_case.csv alone."""
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    with (whole[1].parent / "results" / "per_case.csv").open(newline="", encoding="utf-8") as file:
        for record in csv.DictReader(file):
            found[record["row"]][record["split"], record["seed"]][record["case"]][record["class"]] = record
    return found


def row_of(maker, title, dataset, labels):
    n, m = labels.split(" / ")
    for row in maker.rows:
        if (row.title, row.dataset, row.n_labeled, row.n_unlabeled) == (title, dataset, int(n), int(m)):
            return row
    raise AssertionError((title, dataset, labels))


def matrix(scores, row, metric, label=None):
    """(trainings, cases) of one row; all trainings have the same cases here."""
    return np.array(
        [
            [
                np.mean([float(r[metric]) for name, r in by.items() if label in (None, name)])
                for _, by in sorted(cases.items())
            ]
            for _, cases in sorted(scores[row.name].items())
        ]
    )


def naive_bounds(difference, gap=None, n=4000):
    """Trainings are drawn, and the shared cases once for all of them, one resample after the other."""
    generator = np.random.default_rng(12345)
    found = []
    for _ in range(n):
        trainings = generator.integers(0, len(difference), len(difference))
        cases = generator.integers(0, difference.shape[1], difference.shape[1])
        value = difference[np.ix_(trainings, cases)].mean()
        found.append(value if gap is None else value / gap[np.ix_(trainings, cases)].mean())
    return np.quantile(found, [0.025, 0.975])


def exact_wilcoxon(difference):
    """Two-sided p-value by all assignments of signs; no ties, no zeros."""
    ranks = np.argsort(np.argsort(np.abs(difference))) + 1
    assert len(set(np.abs(difference))) == len(difference)
    observed = min(ranks[difference > 0].sum(), ranks[difference < 0].sum())
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in
            itertools.product((0, 1), repeat=len(ranks))]  # fmt: skip
    return min(1.0, 2 * float(np.mean([value <= observed for value in sums])))


def check_spread(cell, values, scale, digits):
    """A cell "mean ± sd of trainings (sd of cases)" against the values (trainings, cases)."""
    expected = [values.mean() * scale]
    expected += [values.mean(axis=1).std(ddof=1) * scale] if len(values) > 1 else []
    expected += [values.mean(axis=0).std(ddof=1) * scale]
    assert [float(x) for x in re.findall(r"[\d.]+", cell)] == pytest.approx(expected, abs=0.5000001 * 10**-digits)


COLUMNS = {
    "Dice %": ("dice", 100, 1),
    "Jaccard %": ("jaccard", 100, 1),
    "95HD mm": ("hd95_mm", 1, 2),
    "ASD mm": ("asd_mm", 1, 2),
    "95HD voxel": ("hd95_voxel", 1, 2),
    "ASD voxel": ("asd_voxel", 1, 2),
}


@pytest.mark.parametrize("dataset", ["left_atrium", "hippocampus"])
def test_every_score_on_the_page(whole, scores, dataset):
    maker, _, markdown = whole
    (table,) = tables(markdown)[dataset][:1]
    assert len(table) == sum(row.dataset == dataset for row in maker.rows)
    for line in table:
        row = row_of(maker, line["Method"], dataset, line["Labeled / unlabeled"])
        assert line["Role"] == row.role.replace("_", " ")
        assert int(line["Trainings"]) == len(scores[row.name]) > 0
        for column, (metric, scale, digits) in COLUMNS.items():
            check_spread(line[column], matrix(scores, row, metric), scale, digits)
        dice = matrix(scores, row, "dice")
        assert float(line["Median"]) == pytest.approx(100 * np.median(dice.mean(axis=0)), abs=0.0500001)
        failed = sum(
            any(float(r["dice"]) < 0.5 or r["status"] not in ("ok", "both_empty") for r in by.values())
            for cases in scores[row.name].values()
            for by in cases.values()
        )
        assert line["Failed scans"] == f"{failed} of {dice.size}"
    assert any(line["Failed scans"].startswith("2 of") for line in table) == (dataset == "left_atrium")


def test_every_class_on_the_page(whole, scores):
    maker, _, markdown = whole
    table = tables(markdown)["hippocampus"][1]
    for line in table:
        row = row_of(maker, line["Method"], "hippocampus", line["Labeled / unlabeled"])
        for label in ("anterior", "posterior"):
            check_spread(line[f"{label}: Dice %"], matrix(scores, row, "dice", label), 100, 1)
            check_spread(line[f"{label}: 95HD mm"], matrix(scores, row, "hd95_mm", label), 1, 2)
    (gains,) = tables(markdown)["hippocampus: gain over the matched floor"]
    assert len(gains) == 2
    for line in gains:
        row = row_of(maker, line["Method"], "hippocampus", line["Labeled / unlabeled"])
        floor = next(other for other in maker.rows if other.of == row.name)
        for label in ("anterior", "posterior"):
            difference = matrix(scores, row, "dice", label) - matrix(scores, floor, "dice", label)
            gain, low, high = numbers(line[f"{label}: gain, points [95% interval]"])
            assert gain == pytest.approx(100 * difference.mean(), abs=0.0500001)
            assert [low, high] == pytest.approx(100 * naive_bounds(difference), abs=0.4)


def test_every_gain_on_the_page(whole, scores):
    maker, _, markdown = whole
    (table,) = tables(markdown)["What the unlabeled scans bring"]
    assert len(table) == sum(row.role == "method" for row in maker.rows) == 10
    tests = []
    for line in table:
        row = row_of(maker, line["Method"], line["Data"], line["Labeled / unlabeled"])
        floor = next(other for other in maker.rows if other.of == row.name)
        ceiling = next(other for other in maker.rows if (other.role, other.dataset) == ("ceiling", row.dataset))
        own, below, above = (matrix(scores, each, "dice") for each in (row, floor, ceiling))
        above = np.repeat(above, len(own) // len(above), axis=0)  # one training of the ceiling stands for both seeds
        gain, low, high = numbers(line["Gain, points [95% interval]"])
        assert gain == pytest.approx(100 * (own - below).mean(), abs=0.0500001)
        assert [low, high] == pytest.approx(100 * naive_bounds(own - below), abs=0.4)
        levels = numbers(line["Dice %: matched floor, method"])
        assert levels == pytest.approx([100 * below.mean(), 100 * own.mean()], abs=0.0500001)
        share, low, high = numbers(line["Share of the gap"])
        assert share == pytest.approx(100 * (own - below).mean() / (above - below).mean(), abs=0.500001)
        assert [low, high] == pytest.approx(100 * naive_bounds(own - below, above - below), abs=2.5)
        over_cases = (own - below).mean(axis=0)
        tests.append(exact_wilcoxon(over_cases))
        assert numbers(line["Wilcoxon (Holm)"])[0] == pytest.approx(tests[-1], abs=6e-4)
        expected = [int((over_cases > 0).sum()), int((over_cases < 0).sum()), 0]
        assert numbers(line["Better / worse / equal"]) == expected
        assert numbers(line["Trainings, cases"]) == [2, 10]
    running = 0.0
    for done, number in enumerate(np.argsort(tests, kind="stable")):
        running = max(running, min(1.0, tests[number] * (len(tests) - done)))
        line = table[number]
        assert numbers(line["Wilcoxon (Holm)"])[1] == pytest.approx(running, abs=6e-3)
        low, high = numbers(line["Gain, points [95% interval]"])[1:]
        assert line["Reading"] == ("gain" if low > 0 and running < 0.05 else "no difference"), line


def test_every_further_comparison_on_the_page(whole, scores):
    maker, _, markdown = whole
    (table,) = tables(markdown)["Further comparisons"]
    kinds = set()
    for line in table:
        title, role, n = re.fullmatch(r"(.+) \((.+), (\d+) labels\)", line["b"]).groups()
        first = next(row for row in maker.rows if (row.title, row.dataset, row.n_labeled)
                     == (line["a"], line["Data"], int(line["Labels of a"])))  # fmt: skip
        second = next(row for row in maker.rows if (row.title, row.dataset, row.n_labeled, row.role.replace("_", " "))
                      == (title, line["Data"], int(n), role))  # fmt: skip
        metric, scale = ("dice", 100) if line["Metric"].startswith("Dice") else ("hd95_mm", 1)
        own, other = matrix(scores, first, metric), matrix(scores, second, metric)
        own, other = np.broadcast_arrays(own, other) if len(own) != len(other) else (own, other)
        difference = (own - other) * scale
        tolerance = 0.0500001 if metric == "dice" else 0.0050001
        assert numbers(line["Mean a - b"]) == pytest.approx([difference.mean()], abs=tolerance)
        assert numbers(line["Median a - b"]) == pytest.approx([np.median(difference.mean(axis=0))], abs=tolerance)
        bounds = naive_bounds(difference, n=1500)
        assert numbers(line["95% interval"]) == pytest.approx(bounds, abs=0.12 * (bounds[1] - bounds[0]) + tolerance)
        kinds.add((first.role, second.role, metric))
    roles = {("method", "matched_floor"), ("method", "floor"), ("matched_floor", "floor"), ("ceiling", "method")}
    expected = {(*pair, metric) for pair in roles for metric in ("dice", "hd95_mm")}
    assert kinds == expected - {("method", "matched_floor", "dice")}  # which has a table of its own


def test_every_rank_on_the_page(whole, scores):
    maker, _, markdown = whole
    (table,) = tables(markdown)["Ranks"]
    assert len(table) == 10
    for line in table:
        row = row_of(maker, line["Method"], line["Data"], line["Labeled / unlabeled"])
        rivals = [other for other in maker.rows if (other.role, other.dataset, other.n_labeled)
                  == ("method", row.dataset, row.n_labeled)]  # fmt: skip
        dice = np.array([matrix(scores, other, "dice").mean(axis=0) for other in rivals])
        ranks = 1 + (dice > dice[rivals.index(row)]).sum(axis=0)
        assert numbers(line["Mean rank [95% interval]"])[0] == pytest.approx(ranks.mean(), abs=0.0050001)
        assert line["Best on"] == f"{(ranks == 1).sum()} of 10"


def test_two_methods_are_compared_on_a_line_each(whole, scores):
    maker, _, markdown = whole
    (table,) = tables(markdown)["Every pair of methods"]
    assert len(table) == 5 * 2  # numbers of labels, metrics
    for line in table:
        first, second = (
            next(row for row in maker.rows if (row.title, row.dataset, row.n_labeled)
                 == (line[key], line["Data"], int(line["Labels"])))
            for key in ("a", "b")
        )  # fmt: skip
        metric, scale, digits = ("dice", 100, 1) if line["Metric"] == "Dice, points" else ("hd95_mm", 1, 2)
        difference = scale * (matrix(scores, first, metric) - matrix(scores, second, metric))
        assert numbers(line["Mean a - b"]) == pytest.approx([difference.mean()], abs=0.5000001 * 10**-digits)
        wins = int((difference.mean(axis=0) > 0).sum())
        assert numbers(line["a better / worse / equal"])[metric == "hd95_mm"] == wins
    assert "Wilcoxon over splits" not in markdown
    assert "Row minus column" not in markdown


def test_every_number_of_the_sentences(whole, scores):
    _, _, markdown = whole
    head = plain(markdown.split("## ")[0])
    (table,) = tables(markdown)["What the unlabeled scans bring"]
    gains = [line for line in table if line["Reading"] == "gain"]
    assert f"{len(gains)} of {len(table)} comparisons show a measurable gain in Dice over the matched floor" in head
    largest = max(gains, key=lambda line: numbers(line["Gain, points [95% interval]"])[0])
    gain, share = largest["Gain, points [95% interval]"], largest["Share of the gap"]
    assert f"{gain.split(' ')[0]} points {gain.split(' ', 1)[1]}, {share} of the gap to the ceiling" in head
    for title in ("DTC", "CAML"):
        own = [line for line in table if line["Method"] == title]
        values = sorted(numbers(line["Gain, points [95% interval]"])[0] for line in own)
        shares = sorted(numbers(line["Share of the gap"])[0] for line in own)
        n = sum(line["Reading"] == "gain" for line in own)
        assert (
            f"{title}: +{values[0]} to +{values[-1]} points over its matched floor, a measurable gain in {n} of "
            f"{len(own)} comparisons; {shares[0]:.0f} to {shares[-1]:.0f} % of the gap to the ceiling."
        ) in head
    assert "1 of 53 trainings is missing" in head
    assert "seed 7): not trained" in head


def test_where_nothing_gains_the_best_is_not_called_the_largest_difference(tmp_path):
    """A method with +0.0 was named beside one with -30 points, which is the larger difference."""
    maker = Maker(tmp_path)
    for name, title, shift in (("dtc", "DTC", 0.0), ("caml", "CAML", -0.3)):
        maker.run(maker.row(name, title=title), dice=0.8 + shift)
        maker.run(maker.row(f"{name}-w0", "matched_floor", title=f"{title} at weight 0", of=name), dice=0.8)
    write(maker)
    text = (maker.folder / "report.md").read_text(encoding="utf-8")
    assert "the highest difference is that of DTC" in plain(text)


def test_csv_files_say_the_same_with_every_digit(whole, scores):
    maker, page, _ = whole
    rows = {row.name: row for row in maker.rows}
    results = page.parent / "results"
    with (results / "summary.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    for line in summary:
        values = matrix(scores, rows[line["row"]], line["metric"], line["class"] or None)
        assert float(line["mean"]) == pytest.approx(values.mean(), rel=1e-12)
        assert float(line["sd_cases"]) == pytest.approx(values.mean(axis=0).std(ddof=1), rel=1e-9)
        assert (line["low"] == "") == bool(line["class"])
    with (results / "comparisons.csv").open(newline="") as file:
        compared = list(csv.DictReader(file))
    assert {line["class"] for line in compared} == {"", "anterior", "posterior"}
    for line in compared:
        own, other = (
            matrix(scores, rows[line[key]], line["metric"], line["class"] or None) for key in ("row", "against")
        )
        assert float(line["difference"]) == pytest.approx((own - other).mean(), abs=1e-9)
    with (results / "checks.csv").open(newline="") as file:
        checks = list(csv.DictReader(file))
    assert {line["passed"] for line in checks} == {"true"}
    assert len(checks) == 52
    with (results / "trainings.csv").open(newline="") as file:
        states = [line["state"] for line in csv.DictReader(file)]
    assert (states.count("scored"), states.count("not trained")) == (52, 1)


def test_quoted_figures_stand_beside_measured_ones(whole, scores):
    maker, page, markdown = whole
    first, second = tables(markdown)["Quoted from papers"][0]
    row = next(row for row in maker.rows if row.name == "left_atrium-DTC-8")
    assert numbers(first["Dice %: quoted, here"]) == [87.51, round(100 * matrix(scores, row, "dice").mean(), 1)]
    assert numbers(first["95HD: quoted, here"])[1] == pytest.approx(
        matrix(scores, row, "hd95_voxel").mean(), abs=0.0051
    )
    assert (first["Source"], first["Weights chosen"]) == ("Paper A, Table 1", "last weights")
    assert first["Dice and Jaccard"] == "consistent"
    assert second["Dice and Jaccard"].startswith("impossible: this Dice needs a Jaccard of at least 81.2")
    assert "Quoted: CAML, left_atrium, Paper B, Table 1: impossible" in plain(markdown.split("## ")[0])
    with (page.parent / "results" / "quoted.csv").open(newline="") as file:
        assert [line["check"][:10] for line in csv.DictReader(file)] == ["consistent", "impossible"]


def test_costs(whole):
    maker, _, markdown = whole
    (table,) = tables(markdown)["Costs"]
    assert len(table) == len(maker.rows)
    line = next(line for line in table if (line["Method"], line["Labeled / unlabeled"]) == ("DTC", "4 / 76"))
    assert line["Parameters, deployed, M"] == "9.44"
    assert line["GMAC per patch"] == "40.11"
    assert line["Patch"] == "112 × 112 × 80"
    assert line["Hours per training"] == f"{600.5 / 3600:.2f}"
    assert line["Seconds per iteration"] == f"{(600 + 601) / 600:.2f}"
    assert (line["Peak memory, GB"], line["Peak GPU memory, GB"]) == ("5.00", "–")


def test_the_hours_of_a_self_training_are_those_of_all_its_parts(tmp_path):
    from dataclasses import replace

    maker = Maker(tmp_path)
    maker.run(maker.row("self_training", title="Self-training"), 0)
    [run] = maker.runs
    chain = tmp_path / "chain"
    for name, seconds in (("floor", 200.0), ("round-1", 300.0)):
        (chain / name).mkdir(parents=True)
        (chain / name / "costs.json").write_text(
            json.dumps({"seconds": seconds, "sessions": [{"first": 1, "last": 100, "seconds": seconds}]})
        )
    told = {"floors": ["floor"], "rounds": ["round-1"], "fine_tuned": None, "pseudo_labels": ["pseudo_labels-1"]}
    (chain / "self_training.json").write_text(json.dumps({**told, "seconds": {"pseudo_labels-1": 76.0}}))
    shutil.copytree(run.run, chain / "round-1", dirs_exist_ok=True)
    (chain / "round-1" / "costs.json").write_text(
        json.dumps({"seconds": 300.0, "sessions": [{"first": 1, "last": 100, "seconds": 300.0}]})
    )
    maker.runs[:] = [replace(run, run=chain / "round-1", chain=chain)]
    write(maker)
    [[line]] = tables((maker.folder / "report.md").read_text())["Costs"]
    assert line["Hours per training"] == f"{(200 + 300 + 76) / 3600:.2f}"
    assert line["Seconds per iteration"] == "3.00"


# ---------------------------------------------------------------------------------------- every pair of methods


def scored(maker, row, values, seed=0, split="", patients=None):
    """A training of the row with these Dice values by case."""
    run = maker.run(row, seed, split, cases=list(values), curves=False)
    rows = [
        {**score(value, case, 1, "left atrium", 30 * (1 - value) ** 1.5), "patient": (patients or {}).get(case, "")}
        for case, value in values.items()
    ]
    write_results(run.evaluation, rows, {"seed": seed})


def field(folder, titles="ABCD", n_cases=20, patients=None, seeds=(0, 1), n_labeled=8, maker=None):
    """Methods that differ by noise and by less and less; the last ones alike on average."""
    maker = maker or Maker(folder)
    generator = np.random.default_rng(3)
    hard = generator.uniform(0.5, 0.9, n_cases)
    for number, title in enumerate(titles):
        row = maker.row(f"{title}-{n_labeled}", title=title, n_labeled=n_labeled)
        for seed in seeds:
            values = np.clip(hard + 0.06 / 2**number + generator.normal(0, 0.02, n_cases), 0.01, 0.99)
            scored(maker, row, {f"case{n:02d}": float(value) for n, value in enumerate(values)}, seed,
                   patients=patients)  # fmt: skip
    return maker


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def recomputed(folder):
    """(row, against, metric) -> what per_case.csv says of the pair: differences by training and case, by patient."""
    values, whose = defaultdict(dict), {}
    for line in read_csv(folder / "results" / "per_case.csv"):
        key = line["split"], line["seed"], line["case"]
        for metric in ("dice", "hd95_mm"):
            values[line["row"], metric][key] = float(line[metric])
        whose[line["case"]] = line.get("patient") or line["case"]

    def differences(row, against, metric):
        own, other = values[row, metric], values[against, metric]
        by_case, by_patient, by_split = defaultdict(list), defaultdict(list), defaultdict(list)
        for split, seed, case in own.keys() & other.keys():
            by_case[case].append(own[split, seed, case] - other[split, seed, case])
            by_split[split].append(by_case[case][-1])  # all trainings of a split have the same cases here
        by_case = {case: float(np.mean(each)) for case, each in by_case.items()}
        for case, value in by_case.items():
            by_patient[whose[case]].append(value)
        return by_case, *([float(np.mean(each)) for each in groups.values()] for groups in (by_patient, by_split))

    return differences


def after_holm(p_values):
    running, found = 0.0, {}
    for done, number in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, p_values[number] * (len(p_values) - done)))
        found[number] = running
    return [found[number] for number in range(len(p_values))]


@pytest.fixture(scope="module")
def rivals(tmp_path_factory):
    """Four methods on twenty scans of sixteen patients."""
    folder = tmp_path_factory.mktemp("rivals")
    patients = {f"case{n:02d}": f"p{n // 2}" for n in range(8)}
    write(field(folder, patients=patients))
    return folder


def test_every_pair_is_compared(rivals):
    lines = read_csv(rivals / "results" / "pairs.csv")
    differences = recomputed(rivals)
    for metric in ("dice", "hd95_mm"):
        family = [line for line in lines if line["metric"] == metric]
        assert {frozenset((line["title"], line["against_title"])) for line in family} == {
            frozenset(pair) for pair in itertools.combinations("ABCD", 2)
        }
        tests = []
        for line in family:
            by_case, by_patient, _ = differences(line["row"], line["against"], metric)
            values = np.array(list(by_case.values()))
            tests.append(stats.wilcoxon(by_patient).pvalue)
            assert float(line["difference"]) == pytest.approx(values.mean(), abs=1e-9)
            assert float(line["median_difference"]) == pytest.approx(np.median(values), abs=1e-9)
            better = values if metric == "dice" else -values
            assert [int(line[key]) for key in ("wins", "losses", "ties")] == [(better > 0).sum(), (better < 0).sum(), 0]
            assert [int(line[key]) for key in ("n_trainings", "n_cases", "n_patients", "n_tests")] == [2, 20, 16, 6]
            assert float(line["p_value"]) == pytest.approx(tests[-1], rel=1e-9)
            assert float(line["low"]) < float(line["difference"]) < float(line["high"])
            assert (line["n_splits"], line["p_splits"]) == ("", "")
        expected = after_holm(tests)
        assert [float(line["p_holm"]) for line in family] == pytest.approx(expected, rel=1e-9)
        assert min(expected) < 0.05 < max(expected)


def test_squares_of_differences(rivals):
    text = (rivals / "report.md").read_text(encoding="utf-8")
    assert "## Every pair of methods" in text
    order = [line["title"] for line in read_csv(rivals / "results" / "ranks.csv")]
    pairs = read_csv(rivals / "results" / "pairs.csv")
    for metric, name, scale, digits in (("dice", "Dice, points", 100, 1), ("hd95_mm", "95HD, mm", 1, 2)):
        heading = f"left_atrium, 8 labeled + 72 unlabeled: {name}"
        (square,) = tables(text)[heading]
        assert list(square[0]) == ["Row minus column", *order]
        assert [line["Row minus column"] for line in square] == order
        found = {(line["title"], line["against_title"]): line for line in pairs if line["metric"] == metric}
        for line, column in itertools.product(square, order):
            cell, row = line[column], line["Row minus column"]
            if row == column:
                assert cell == ""
                continue
            sign, pair = (1, found[row, column]) if (row, column) in found else (-1, found[column, row])
            assert numbers(cell)[0] == pytest.approx(
                sign * scale * float(pair["difference"]), abs=0.50001 * 10**-digits
            )
            assert cell.endswith("*") == (float(pair["p_holm"]) < 0.05)
        marked = sum(float(pair["p_holm"]) < 0.05 for pair in found.values())
        assert 0 < marked < 6
        assert f"6 pairs, {marked} with p &lt; 0.05 after Holm." in text.split(heading)[1]
    latex = (rivals / "tables.tex").read_text(encoding="utf-8")
    assert re.findall(r"\\label\{tab:(pairs-\d)\}", latex) == ["pairs-1", "pairs-2"]
    html = (rivals / "index.html").read_text(encoding="utf-8")
    assert html.count("Row minus column</th>") == 2
    # as every table: one wider than the page is moved, not the page
    assert html.count('<div class="wide"><table>') == html.count("<table>")


def test_many_squares_are_folded(tmp_path):
    maker = field(tmp_path, titles="ABC", n_labeled=4)
    field(tmp_path, titles="ABC", n_labeled=8, maker=maker)
    page = write(maker).read_text(encoding="utf-8")
    assert page.count("<details><summary>left_atrium, ") == 4
    pairs = analysis(maker).pairs
    # each number of labels and metric is a family of its own
    assert [(each.rows[0].row.n_labeled, each.metric, {gain.n_tests for gain in each.gains}) for each in pairs] == [
        (n, metric, {3}) for n in (4, 8) for metric in ("dice", "hd95_mm")
    ]


def test_too_few_cases_for_so_many_pairs(tmp_path):
    """Seven cases can tell one pair apart (p = 0.016), not six."""
    write(field(tmp_path, n_cases=7))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "6 pairs, 0 with p &lt; 0.05 after Holm: 7 cases cannot tell so many pairs apart." in text
    assert {line["reading"] for line in read_csv(tmp_path / "results" / "pairs.csv")} == {"too few cases (7) to tell"}


def test_methods_without_a_common_training_have_a_dash(tmp_path):
    maker = field(tmp_path, titles="AB")
    row = maker.row("C", title="C")
    scored(maker, row, {f"case{n:02d}": 0.8 for n in range(20)}, seed=1)
    row = maker.row("D", title="D")
    scored(maker, row, {f"case{n:02d}": 0.8 for n in range(20)}, seed=0)
    write(maker)
    square = tables((tmp_path / "report.md").read_text(encoding="utf-8"))
    lines = {
        line["Row minus column"]: line for line in square["left_atrium, 8 labeled + 72 unlabeled: Dice, points"][0]
    }
    assert lines["C"]["D"] == lines["D"]["C"] == "–"
    assert "5 pairs, " in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_equal_methods_have_no_mark(tmp_path):
    maker = Maker(tmp_path)
    for title in "ABC":
        row = maker.row(title)
        for seed in (0, 1):
            maker.run(row, seed, dice=0.8)
    write(maker)
    assert {(line["p_value"], line["ties"]) for line in read_csv(tmp_path / "results" / "pairs.csv")} == {("1.0", "10")}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| A |  | +0.0 | +0.0 |" in text


def test_one_method_has_no_pairs(tmp_path):
    write(pair(tmp_path))
    assert "Every pair of methods" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert read_csv(tmp_path / "results" / "pairs.csv") == []


def split_study(folder, number, name="split", methods="ABC", overlap=True, floors=True):
    """Methods and matched floors on random splits whose test scans overlap, or on folds."""
    maker = Maker(folder)
    generator = np.random.default_rng(5)
    hard = {f"case{n:02d}": value for n, value in enumerate(generator.uniform(0.5, 0.9, 60))}
    names = list(hard)
    drawn = [
        sorted(generator.choice(names, 6, replace=False)) if overlap else names[6 * n : 6 * n + 6]
        for n in range(number)
    ]
    kinds = [(title, lift) for title, lift in zip(methods, (0.05, 0.001, 0.0), strict=False)]
    for title, lift in kinds:
        rows = [(maker.row(title, title=title), lift)]
        if floors:
            rows.append((maker.row(f"{title}-w0", "matched_floor", title=f"{title} at weight 0", of=title), 0.0))
        for row, gain in rows:
            for place, cases in enumerate(drawn):
                for seed in (0, 1):
                    values = {case: float(hard[case] + gain + generator.normal(0, 0.01)) for case in cases}
                    scored(maker, row, values, seed, f"{name}{place}")
    return maker


def test_random_splits_are_tested_too(tmp_path):
    maker = split_study(tmp_path, 8)
    write(maker)
    differences = recomputed(tmp_path)
    lines = [line for name in ("pairs", "comparisons") for line in read_csv(tmp_path / "results" / f"{name}.csv")]
    assert len(lines) == 2 * (3 + 3)
    for line in lines:
        _, by_patient, by_split = differences(line["row"], line["against"], line["metric"])
        assert len(by_split) == int(line["n_splits"]) == 8
        assert float(line["p_splits"]) == pytest.approx(stats.wilcoxon(by_split).pvalue, rel=1e-9)
        assert float(line["p_value"]) == pytest.approx(stats.wilcoxon(by_patient).pvalue, rel=1e-9)
    least = min(float(line["p_splits"]) for line in lines)
    assert least == 2 / 2**8  # all splits say the same: 0.0078
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count("never below 0.0078 with 8 splits") == 1
    assert "over 8 splits p = 0.008)" in text
    (gains,) = tables(text)["What the unlabeled scans bring"]
    assert gains[0]["Wilcoxon over splits"] == "p = 0.008"
    below = sum(line["metric"] == "dice" and float(line["p_splits"]) < 0.05 for line in lines[:6])
    assert f"after Holm; over splits, not corrected, {below} of 3." in text
    assert 0 < below < 3


def test_the_test_over_splits_is_explained_without_floors_and_squares(tmp_path):
    write(split_study(tmp_path, 6, methods="AB", floors=False))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count("never below 0.031 with 6 splits") == 1
    (lines,) = tables(text)["Every pair of methods"]
    assert [line["Wilcoxon over splits"] for line in lines] == ["p = 0.031", "p = 0.031"]


@pytest.mark.parametrize(("number", "name", "overlap"), [(5, "split", True), (8, "fold", False)])
def test_few_splits_and_folds_are_not_tested(tmp_path, number, name, overlap):
    """Of five splits none could say anything, and folds have their test over patients."""
    found = analysis(split_study(tmp_path, number, name, methods="AB", overlap=overlap))
    gains = [*found.gains, *(gain for pairs in found.pairs for gain in pairs.gains)]
    assert {gain.n_trainings for gain in gains} == {2 * number}
    assert {(gain.n_splits, gain.p_splits) for gain in gains} == {(None, None)}
    assert splits_note(found) == ""
    assert "Wilcoxon over splits" not in gains_table(found).header


# ------------------------------------------------------------------------------------------------------- the files


def test_files_are_the_same_wherever_and_whenever_they_are_written(tmp_path):
    texts = []
    for place in ("here", "there/below"):
        maker = Maker(tmp_path / place)
        row = maker.row("dtc", title="DTC")
        floor = maker.row("w0", "matched_floor", title="DTC at weight 0", of="dtc")
        for each in (row, floor):
            maker.run(each, 0)
            maker.run(each, 1)
        (maker.folder / "figures").mkdir(parents=True, exist_ok=True)
        (maker.folder / "figures" / "label_fraction.png").write_bytes(b"of a study with more labels")
        write(maker)
        files = sorted(path for path in maker.folder.rglob("*") if path.is_file() and "runs" not in path.parts)
        texts.append({path.relative_to(maker.folder).as_posix(): path.read_bytes() for path in files})
    assert texts[0] == texts[1]
    assert {"index.html", "report.md", "tables.tex", "results/per_case.csv", "results/trainings.csv"} <= set(texts[0])
    figures = {name for name in texts[0] if name.startswith("figures/")}
    assert {"figures/gains.png", "figures/cases-1.png"} <= figures
    assert "figures/label_fraction.png" not in figures  # of one number of labels there is none
    for name in figures:
        assert texts[0][name].startswith(b"\x89PNG")
        assert f"]({name})".encode() in texts[0]["report.md"]
    for name, content in texts[0].items():
        assert str(tmp_path).encode() not in content, name
    assert b"runs/dtc--0/evaluation-testing" in texts[0]["results/trainings.csv"]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """Names with specials of HTML, Markdown, LaTeX and spreadsheets, in every place that takes one."""
    maker = Maker(tmp_path_factory.mktemp("evil"))
    row = maker.row("=1+1", dataset="<i>d</i>_1", title=EVIL, settings={"a_$b$": EVIL, "iterations": 300})
    floor = maker.row("w0", "matched_floor", "<i>d</i>_1", title=f"{EVIL} ü 中", of="=1+1",
                      settings={"a_$b$": "<x>", "iterations": 300})  # fmt: skip
    other = maker.row("b", dataset="<i>d</i>_1", title="B")
    for each in (row, floor, other):
        for seed in (0, 1):
            maker.run(each, seed, cases=[EVIL, "=case", "b", "c", "d", "e", "f"], classes=("<b>1</b>", "2 & 3_%"))
    quoted = maker.folder / "q.yaml"
    line = {"title": EVIL, "dataset": "<i>d</i>_1", "n_labeled": 8, "dice": 80.0, "source": EVIL, "protocol": EVIL}
    quoted.write_text(json.dumps({"figures": [line]}))
    return write(maker, quoted=quoted, title=EVIL, description=EVIL, command=f"train '{EVIL}'")


def test_names_are_data_on_the_page(evil):
    text = evil.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "b", "i")]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert all(re.fullmatch(r"results/\w+\.csv|tables\.tex|report\.md", link) for link in links)
    assert all((evil.parent / link).is_file() for link in links)
    assert EVIL in "".join(page.words)
    assert all(
        attrs["src"].startswith("data:image/png;base64,") and attrs["alt"] for tag, attrs in page.tags if tag == "img"
    )
    assert not re.search(r"""src="(?!data:)|url\(|@import|https?:""", text)


def test_names_are_data_in_markdown_and_csv(evil):
    text = (evil.parent / "report.md").read_text(encoding="utf-8")
    outside = "\n".join(line for line in text.splitlines() if not line.startswith("- command: "))  # a code span
    assert "<b>" not in outside
    assert not re.search(r"(?<!\\)\]\(javascript", outside)
    assert sum(len(found) for found in tables(text).values()) >= 7  # every row has the columns of its header
    for path in (evil.parent / "results").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            for cells in csv.reader(file):
                assert not any(re.match(r"[=@+]", text) for text in cells), path.name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5%", r"a\_b \& 5\%"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("−3 ± 1 – 2 × 4", r"$-$3 $\pm$ 1 -- 2 $\times$ 4"),
        ("[1, 2]", "{[}1, 2{]}"),
        ("ü é ß", "ü é ß"),
        ("ﬁ 中 Ω ½", "fi ? ? 1?2"),
        ("a\n\n b", "a b"),
    ],
)
def test_text_in_latex(text, expected):
    assert latex_text(text) == expected


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("study", ["whole", "evil"])
def test_tables_compile(request, tmp_path, study):
    page = request.getfixturevalue(study)
    folder = (page[1] if study == "whole" else page).parent
    shutil.copy(folder / "tables.tex", tmp_path)
    preamble = r"\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{booktabs}\usepackage{graphicx}"
    (tmp_path / "main.tex").write_text(
        rf"\documentclass{{article}}{preamble}\begin{{document}}\input{{tables}}\end{{document}}"
    )
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"], cwd=tmp_path,
                          capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").stat().st_size > 10_000


def test_latex_has_every_table(whole):
    text = (whole[1].parent / "tables.tex").read_text(encoding="utf-8")
    found = re.findall(r"\\label\{tab:(.+?)\}", text)
    assert found == ["results-left-atrium", "results-hippocampus", "gains", "classes-hippocampus",
                     "class-gains-hippocampus", "ranks", "costs", "quoted"]  # fmt: skip
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == len(found)


# ------------------------------------------------------------------------------------------------- honest sentences


def pair(folder, cases=10, seeds=(0,), ceiling=True, **options):
    """A method and its matched floor."""
    maker = Maker(folder)
    row = maker.row("dtc", title="DTC")
    floor = maker.row("w0", "matched_floor", title="DTC at weight 0", of="dtc")
    if ceiling:
        maker.run(maker.row("ceiling", "ceiling", n_labeled=80, title="all", n_unlabeled=0), 0, cases=cases)
    for seed in seeds:
        maker.run(row, seed, cases=cases, **options)
        maker.run(floor, seed, cases=cases)
    return maker


def test_one_seed(tmp_path):
    maker = pair(tmp_path)
    found = analysis(maker)
    (sentence,) = findings(found)
    assert "a measurable gain" in sentence
    assert "1 training each" in sentence
    assert any("Every comparison rests on one training" in text for text in warnings(found))
    write(maker)
    (line, *_) = tables((tmp_path / "report.md").read_text())["left_atrium"][0]
    assert re.fullmatch(r"[\d.]+ \([\d.]+\)", line["Dice %"])  # no deviation over trainings


@pytest.mark.parametrize(("cases", "told"), [(1, False), (2, False), (5, False), (6, True)])
def test_too_few_cases_to_tell(tmp_path, cases, told):
    maker = pair(tmp_path, cases=cases)
    (sentence,) = findings(analysis(maker))
    assert (f"too few cases ({cases}) to tell" in sentence) != told
    assert ("a measurable gain" in sentence) == told
    write(maker)
    (line,) = tables((tmp_path / "report.md").read_text())["What the unlabeled scans bring"][0]
    if cases == 1:
        assert line["Gain, points [95% interval]"].endswith(" –")


def test_more_tests_need_more_cases(tmp_path):
    """Six cases can tell by themselves, but not after a correction for two tests."""
    maker = pair(tmp_path, cases=6)
    row = maker.row("b", title="B")
    floor = maker.row("b-w0", "matched_floor", title="B at weight 0", of="b")
    for each in (row, floor):
        maker.run(each, 0, cases=6)
    assert {gain.verdict for gain in analysis(maker).gains if gain.n_tests == 2} == {"too few cases (6) to tell"}


def test_equal_rows(tmp_path):
    maker = Maker(tmp_path)
    row = maker.row("dtc", title="DTC")
    floor = maker.row("w0", "matched_floor", title="DTC at weight 0", of="dtc")
    ceiling = maker.row("c", "ceiling", n_labeled=80, title="all")
    for each in (row, floor, ceiling):
        for seed in (0, 1):
            maker.run(each, seed, dice=0.8)
    found = analysis(maker)
    gain = found.gain_of(found.study.methods[0])
    assert (gain.difference, gain.low, gain.high, gain.p_value, gain.ties) == (0, 0, 0, 1, 10)
    assert gain.verdict == "no measurable difference"
    (sentence,) = findings(found)
    assert "no gap to close" in sentence
    write(maker)


def test_the_label_fraction_curve_of_the_floor_ends_at_the_ceiling(tmp_path):
    maker = Maker(tmp_path)
    for n, role in ((4, "floor"), (4, "method"), (8, "floor"), (8, "method"), (64, "ceiling")):
        maker.run(maker.row(f"{role}-{n}", role, title=role, n_labeled=n))
    axes = fraction_figure(analysis(maker)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8", "64"]
    ends = {
        line.get_label(): line.get_xdata()[-1] for line in axes.lines if line.get_marker() not in ("None", None, "")
    }
    assert (ends["floor"], ends["method"]) == (2, 1)


def test_a_loss_is_said(tmp_path):
    (sentence,) = findings(analysis(pair(tmp_path, shift=-0.15, seeds=(0, 1))))
    assert "a measurable loss" in sentence
    assert "\u2212" in sentence


def test_failed_scans_are_in_the_sentence(tmp_path):
    (sentence,) = findings(analysis(pair(tmp_path, fail=("case01",))))
    assert "Failed scans: 1 of 10; matched floor: 0 of 10." in sentence


def test_missing_runs(tmp_path):
    maker = pair(tmp_path, seeds=(0, 1))
    row, floor = maker.rows[0], maker.rows[1]
    maker.run(row, 2)
    maker.lost(floor, 2)
    half = maker.folder / "half"
    half.mkdir()
    (half / "run.json").write_text("{}")
    maker.runs.append(StudyRun("dtc", 3, "", half, half / "evaluation-testing"))
    broken = maker.run(row, 4)
    (broken.evaluation / "summary.json").write_text("[]")
    found = analysis(maker)
    gain = found.gain_of(found.study.methods[0])
    assert gain.n_trainings == 2  # those that both have
    assert found.level(found.study.methods[0]).n_trainings == 3
    text = warnings(found)[0]
    assert text.startswith("3 of 9 trainings are missing.")
    assert "seed 2): not trained" in text
    assert "seed 3): not scored" in text
    assert "seed 4): its results cannot be read" in text


def test_nothing_is_scored_yet(tmp_path):
    maker = Maker(tmp_path)
    maker.lost(maker.row("dtc"), 0)
    maker.lost(maker.row("w0", "matched_floor", of="dtc"), 0)
    page = write(maker)
    assert "nothing can be compared" in page.read_text()


def test_without_matched_floors(tmp_path):
    maker = Maker(tmp_path)
    maker.run(maker.row("dtc"), 0)
    assert "No matched floor is given" in findings(analysis(maker))[0]
    maker = Maker(tmp_path / "b")
    maker.run(maker.row("floor", "floor"), 0)
    assert "No row of this study is a method" in findings(analysis(maker))[0]


def changed(**settings):
    return {**SETTINGS, **settings}


@pytest.mark.parametrize(
    ("role", "settings", "said"),
    [
        ("matched_floor", changed(), None),
        (
            "matched_floor",
            changed(iterations=600),
            "more than the weight of the unsupervised terms: iterations (300 and 600)",
        ),
        ("matched_floor", changed(network="UNet"), "network (VNet and UNet)"),
        ("matched_floor", {}, "batch (2+2 and not stated)"),
        ("floor", changed(network="UNet", batch="4"), None),
        ("floor", changed(precision="bfloat16"), "more than the method: precision (float32 and bfloat16)"),
        ("ceiling", changed(preset="def"), "more than method and labels: preset (abc123 and def)"),
        ("method", changed(network="UNet"), None),
        ("method", changed(iterations=100), "more than the method: iterations (300 and 100)"),
    ],
)
def test_rows_that_differ_in_more_than_the_question(tmp_path, role, settings, said):
    maker = Maker(tmp_path)
    row = maker.row("dtc", title="DTC")
    other = maker.row("other", role, title="Other", of="dtc" if role == "matched_floor" else "", settings=settings)
    for each in (row, other):
        maker.run(each, 0)
    found = [text for text in warnings(analysis(maker)) if "differ in" in text]
    if said is None:
        assert found == []
    else:
        (text,) = found
        assert f"DTC and Other differ in {said}" in text.replace(" 8 labeled", "") or said in text
    write(maker)
    has_table = "## Settings that differ" in (tmp_path / "report.md").read_text()
    assert has_table == (settings != SETTINGS)


def test_number_formats_that_trainings_came_to_use(tmp_path):
    maker = pair(tmp_path)
    record = maker.runs[1].run / "run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"precision": {"format": "bfloat16"}}))
    assert any("number format used (bfloat16 and float32)" in text for text in warnings(analysis(maker)))


def test_unfinished_trainings(tmp_path):
    maker = pair(tmp_path)
    record = maker.runs[1].run / "run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"status": "started", "iteration": 120}))
    assert any("seed 0): iteration 120 of 300" in text for text in warnings(analysis(maker)))


def test_dice_and_jaccard_that_do_not_belong_together(tmp_path):
    maker = pair(tmp_path)
    path = maker.runs[1].evaluation / "per_case.csv"
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    lines[0]["jaccard"] = lines[0]["dice"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    found = analysis(maker)
    assert [check.passed for check in found.checks].count(False) == 1
    assert any("Dice and Jaccard of 1 evaluation do not belong together (dtc)" in text for text in warnings(found))


# -------------------------------------------------------------------------------------------------- what is compared


def test_the_ceiling_lends_its_training_to_other_seeds(tmp_path):
    found = analysis(pair(tmp_path, seeds=(0, 1, 2)))
    gain = found.gain_of(found.study.methods[0])
    assert gain.borrowed
    assert gain.closed.n_repetitions == 3
    assert any("The ceiling lacks seeds" in text for text in warnings(found))
    # with all seeds of its own it lends none
    maker = pair(tmp_path / "b", seeds=(0, 1))
    maker.run(next(row for row in maker.rows if row.role == "ceiling"), 1)
    found = analysis(maker)
    assert not found.gain_of(found.study.methods[0]).borrowed


def test_folds_are_paired_by_name_and_pool_their_cases(tmp_path):
    maker = Maker(tmp_path)
    row = maker.row("dtc", title="DTC")
    floor = maker.row("w0", "matched_floor", title="DTC at weight 0", of="dtc")
    for number in range(3):
        cases = [f"case{number}{k}" for k in range(4)]
        maker.run(row, 0, f"fold{number}", cases=cases)
        maker.run(floor, 0, f"fold{number}", cases=cases)
    maker.run(row, 0, "fold3", cases=["x", "y"])
    maker.run(floor, 0, "fold3", cases=["x", "z"])  # scored on other cases: not compared
    found = analysis(maker)
    gain = found.gain_of(found.study.methods[0])
    assert (gain.n_trainings, gain.n_cases) == (3, 12)
    write(maker)


def test_controls_are_those_of_the_row(tmp_path):
    maker = Maker(tmp_path)
    for n in (4, 8):
        maker.run(maker.row(f"floor{n}", "floor", n_labeled=n), 0)
    maker.run(maker.row("other-floor", "floor", dataset="hippocampus", n_labeled=8), 0)
    maker.run(maker.row("ceiling", "ceiling", n_labeled=80), 0)
    method = maker.row("dtc", n_labeled=8)
    maker.run(method, 0)
    for role in ("matched_floor", "no_pool", "oracle", "ensemble"):
        maker.run(maker.row(f"dtc-{role}", role, n_labeled=8, of="dtc"), 0)
    lone = maker.row("lone", dataset="hippocampus", n_labeled=4)
    maker.run(lone, 0)
    study = load_study(maker.rows, maker.runs)
    rows = {row.row.name: row for row in study.rows}
    expected = {"floor": "floor8", "ceiling": "ceiling", "matched_floor": "dtc-matched_floor", "no_pool": "dtc-no_pool",
                "oracle": "dtc-oracle", "ensemble": "dtc-ensemble"}  # fmt: skip
    assert {role: study.reference(rows["dtc"], role).row.name for role in expected} == expected
    assert study.reference(rows["lone"], "floor") is None
    assert study.reference(rows["lone"], "ceiling") is None
    kinds = {(g.row.row.role, g.against.row.role) for g in Analysis(study).gains}
    assert {("oracle", "method"), ("ensemble", "method"), ("method", "no_pool"), ("ceiling", "method")} <= kinds
    # the order of the tables: floors, a method after its controls, the ceiling last
    names = [row.row.name for row in study.rows if row.row.dataset == "left_atrium"]
    assert names == [
        "floor4",
        "floor8",
        "dtc-no_pool",
        "dtc-matched_floor",
        "dtc",
        "dtc-ensemble",
        "dtc-oracle",
        "ceiling",
    ]


def test_of_two_floors_the_one_trained_alike_serves(tmp_path):
    maker = Maker(tmp_path)
    for name, iterations in (("short", 100), ("long", 300)):
        maker.row(f"floor-{name}", "floor", settings=changed(iterations=iterations))
        maker.row(name, settings=changed(iterations=iterations))
    study = load_study(maker.rows, [])
    rows = {row.row.name: row for row in study.rows}
    assert [study.reference(rows[name], "floor").row.name for name in ("short", "long")] == [
        "floor-short",
        "floor-long",
    ]


# ----------------------------------------------------------------------------------------------------------- errors


def rows_and_runs(folder):
    maker = pair(folder, ceiling=False)
    return maker, maker.rows, maker.runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, rows, runs: ([], runs), "at least one StudyRow"),
        (lambda m, rows, runs: ([*rows, rows[0]], runs), r"names of their own, got \['dtc'\]"),
        (lambda m, rows, runs: (rows[1:], runs[1:]), r"of must be the name of a row, got \['dtc'\]"),
        (
            lambda m, rows, runs: (rows, [*runs, StudyRun("x", 0, "", Path(), Path())]),
            r"name rows of the study, got \['x'\]",
        ),
        (lambda m, rows, runs: (rows, [*runs, runs[0]]), "differ in split or seed"),
        (lambda m, rows, runs: (rows, [*runs, m.run(rows[0], 5, classes=("other",))]), "the same classes"),
    ],
)
def test_what_cannot_be_a_study(tmp_path, change, message):
    rows, runs = change(*rows_and_runs(tmp_path))
    if len(runs) > 3:
        runs = list(dict.fromkeys(runs))
    with pytest.raises(ValueError, match=message):
        write_study_report(tmp_path / "out", "T", "", rows, runs, "c")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"), [("role", "control", "role must be one of"), ("n_labeled", -1, "must not be negative")]
)
def test_what_cannot_be_a_row(key, value, message):
    arguments = dict(
        zip(StudyRow.__dataclass_fields__, ("a", "A", "method", "", "d", "f", 8, 72, "testing", {}), strict=True)
    )
    with pytest.raises(ValueError, match=message):
        StudyRow(**arguments | {key: value})
    assert ROLES.index("floor") < ROLES.index("method") < ROLES.index("ceiling")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "mapping"),
        ("figures: 3", "must hold a list under 'figures'"),
        ("figures: []\nmore: 1", "nothing else"),
        ("figures: [{title: A}]", "figure 1: dataset"),
        ("figures: [{title: A, dataset: d, n_labeled: 8, dice: 120, source: s}]", "figure 1: dice"),
        ("figures: [{title: A, dataset: d, n_labeled: 8, dice: 80, source: s, iou: 3}]", "figure 1: iou"),
        ("figures: [7]", "figure 1: line"),
    ],
)
def test_quoted_files_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "q.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_quoted(path)
    assert "q.yaml" in str(error.value)


def test_missing_quoted_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_quoted(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("dice", "jaccard", "sd", "said"),
    [
        (90.0, None, None, ""),
        (90.0, 81.8, None, "consistent"),
        (90.0, 81.75, None, "consistent"),  # rounding
        (90.0, 81.0, None, "impossible: this Dice"),
        (86.03, 73.26, None, "impossible: this Dice needs a Jaccard of at least 75.5"),  # printed, and copied since
        (89.42, 80.98, None, "consistent"),
        (90.0, 91.0, None, "impossible: Jaccard is above"),
        (80.0, 75.0, 5.0, "odd"),
        (80.0, 67.1, 5.0, "consistent"),
    ],
)
def test_arithmetic_of_quoted_figures(dice, jaccard, sd, said):
    figure = QuotedFigure(title="A", dataset="d", n_labeled=8, dice=dice, jaccard=jaccard, dice_sd=sd, source="s")
    assert jaccard_check(figure).startswith(said)
    assert (jaccard_check(figure) == "") == (said == "")


def test_bounds_of_the_mean_jaccard_hold_for_any_masks():
    generator = np.random.default_rng(0)
    for _ in range(200):
        dice = generator.beta(*generator.uniform(0.2, 8, 2), generator.integers(1, 30))
        low, high = jaccard_bounds(dice.mean(), dice.var())
        assert low - 1e-12 <= (dice / (2 - dice)).mean() <= high + 1e-12


# --------------------------------------------------------------------------------------------------------- pictures


def test_the_worst_case_is_shown_in_all_rows(tmp_path):
    maker = pair(tmp_path, cases=3, seeds=(0, 1), fail=("case01",))
    data = tmp_path / "data"
    data.mkdir()
    volume = np.zeros((12, 10, 6), np.float32)
    volume[3:8, 3:8, 2:5] = 1
    entries = []
    for number in range(3):
        for name in (f"case{number:02d}.nii.gz", f"case{number:02d}_label.nii.gz"):
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), data / name)
        entries.append({"image": f"case{number:02d}.nii.gz", "label": f"case{number:02d}_label.nii.gz"})
    (data / "list.json").write_text(json.dumps({"training": [], "testing": entries}))
    for run in maker.runs:
        (run.evaluation / "predictions").mkdir()
        for number in range(3):
            nibabel.save(
                nibabel.Nifti1Image(volume, np.eye(4)), run.evaluation / "predictions" / f"case{number:02d}_seg.nii.gz"
            )
        summary = json.loads((run.evaluation / "summary.json").read_text())
        summary["meta"] |= {"datalist": str(data / "list.json"), "dataset_dir": str(data), "section": "testing"}
        (run.evaluation / "summary.json").write_text(json.dumps(summary))
    text = write(maker).read_text(encoding="utf-8")
    assert "Worst scans" in text
    assert "left_atrium, 8 labeled: case01, the lowest mean Dice over the methods (0.0 %)" in text
    shutil.rmtree(data)
    assert "Worst scans" not in write(maker).read_text(encoding="utf-8")


def test_without_logs_and_costs(tmp_path):
    maker = Maker(tmp_path)
    for role, of in (("method", ""), ("matched_floor", "method")):
        maker.run(maker.row(role, role, of=of), 0, curves=False, costs=False, record=False)
    text = write(maker).read_text(encoding="utf-8")
    assert "<h2>Costs" not in text
    assert "<h2>Training" not in text
    assert "<h2>Ranks" not in text  # one method
    assert "<h2>How many labels" not in text  # one number


def test_logs_that_cannot_be_read_are_left_out(tmp_path):
    maker = pair(tmp_path)
    (maker.runs[1].run / "validation.csv").write_text("a,b\n1,2\n")
    (maker.runs[1].run / "training.csv").write_text("")
    assert "<h2>Training" in write(maker).read_text(encoding="utf-8")


def test_an_evaluation_of_several_classes_with_an_absent_one(tmp_path):
    """A class that is in neither mask of a case: Dice and Jaccard 1, no distance."""
    maker = Maker(tmp_path)
    row = maker.row("dtc")
    run = maker.run(row, 0, classes=("a", "b"))
    rows = load_study(maker.rows, maker.runs).rows[0].trained[0].rows
    rows[1] |= {"status": "both_empty", "dice": 1.0, "jaccard": 1.0, "hd95_mm": 0.0}
    write_results(run.evaluation, rows, {})
    found = analysis(maker)
    assert all(check.passed for check in found.checks)
    assert found.failed(found.study.rows[0]) == (0, 10)

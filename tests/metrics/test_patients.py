"""Several scans of one patient are one observation, in every interval and test."""

from __future__ import annotations

import csv
from itertools import product

import numpy as np
import pytest
from scipy import stats
from torch import uint8, zeros

from monai_ssl.handlers import EvaluationResults
from monai_ssl.metrics import (
    bootstrap_interval,
    case_metrics,
    case_patients,
    compare,
    gap_closed,
    read_results,
    summarize,
)

FRAMES = ("frame01", "frame12")


def rows(values, twice=True):
    """Two equal scans of every patient, or one."""
    made = []
    for number, value in enumerate(values):
        for frame in FRAMES[: 1 + twice]:
            row = {"case": f"p{number}_{frame}", "class": "x", "status": "ok", "dice": value, "hd95_mm": 1 - value}
            made.append({**row, "patient": f"p{number}"} if twice else row)
    return made


VALUES = np.random.default_rng(0).uniform(0.5, 0.9, (2, 9)).round(3)


def test_a_second_equal_scan_of_everybody_changes_no_interval_and_no_test():
    once, twice = (compare(*(rows(values, many) for values in VALUES)) for many in (False, True))
    assert (once.n, once.n_patients, twice.n, twice.n_patients) == (9, 9, 18, 9)
    assert twice.p_value == once.p_value
    assert (twice.ci_low, twice.ci_high) == pytest.approx((once.ci_low, once.ci_high))
    unaware = compare(*([{**row, "patient": ""} for row in rows(values)] for values in VALUES))
    assert unaware.p_value < once.p_value  # what pretending to have 18 patients would say
    assert unaware.ci_high - unaware.ci_low < once.ci_high - once.ci_low

    one, two = (summarize(rows(VALUES[0], many), ["dice"]) for many in (False, True))
    assert (two["n_cases"], two["n_patients"], one["n_patients"]) == (18, 9, 9)
    for key in ("mean", "ci_low", "ci_high"):
        assert two["mean"]["dice"][key] == pytest.approx(one["mean"]["dice"][key])


@pytest.mark.parametrize("shared", [False, True])
def test_the_same_for_the_share_of_a_gap(shared):
    def arms(many):
        return [[{row["case"]: row["dice"] + lift for row in rows(values, many)} for values in VALUES]
                for lift in (0.05, 0.0, 0.1)]  # fmt: skip

    patients = case_patients(rows(VALUES[0]))
    arm, floor, ceiling = arms(False)
    arm = [{case: value + 0.01 * number for number, (case, value) in enumerate(each.items())} for each in arm]
    doubled = [{case: each[f"{case[:2]}_frame01"] for case in patients} for each in arm]
    once = gap_closed(arm, floor, ceiling, shared_cases=shared)
    twice = gap_closed(doubled, *arms(True)[1:], shared_cases=shared, patients=patients)
    assert twice.n_cases == 2 * once.n_cases
    assert twice.n_patients == once.n_patients == (9 if shared else 18)
    for key in ("gain", "gain_low", "gain_high", "share", "share_low", "share_high"):
        assert getattr(twice, key) == pytest.approx(getattr(once, key)), key


def test_patients_with_more_and_fewer_scans_by_hand():
    """A resample draws three patients with all scans; the mean is over the scans that it holds."""
    scans = {"a": [0.1], "b": [0.4, 0.6], "c": [0.9, 0.2, 0.7]}
    values = {f"{name}{number}": value for name, each in scans.items() for number, value in enumerate(each)}
    patients = {case: case[0] for case in values}
    exact = [np.mean([value for name in drawn for value in scans[name]]) for drawn in product("abc", repeat=3)]
    floor = dict.fromkeys(values, 0.0)
    for shared in (False, True):
        found = gap_closed([values], [floor], [values], patients=patients, shared_cases=shared, confidence=0.6)
        assert found.gain == pytest.approx(np.mean(list(values.values())))
        assert [found.gain_low, found.gain_high] == pytest.approx(
            [np.quantile(exact, 0.2, method="lower"), np.quantile(exact, 0.8, method="higher")]
        )
    low, high = bootstrap_interval(values.values(), patients=patients.values())
    assert min(exact) <= low < found.gain < high <= max(exact)


def test_scores_of_which_only_one_says_whose_they_are():
    """Older evaluations have no column: whichever has it tells."""
    a, b = rows(VALUES[0]), rows(VALUES[1])
    bare = [{key: value for key, value in row.items() if key != "patient"} for row in a]
    for pair in ((bare, b), (b, bare)):
        assert compare(*pair).n_patients == 9
        assert len(set(case_patients(*pair).values())) == 9


def test_a_single_value_too_few_is_named():
    with pytest.raises(ValueError, match="patients must name one per value, got 1 for 2 values"):
        bootstrap_interval([0.5, 0.6], patients=["a"])


def test_one_patient_has_no_interval():
    assert bootstrap_interval([0.1, 0.2, 0.9], patients=["p"] * 3) == (None, None)
    found = gap_closed([{"a": 0.5, "b": 0.6}], [{"a": 0.5, "b": 0.5}], [{"a": 1.0, "b": 1.0}],
                       patients={"a": "p", "b": "p"})  # fmt: skip
    assert (found.n_cases, found.n_patients, found.gain_low, found.share_low) == (2, 1, None, None)


def test_an_evaluation_says_whose_scan_it_is(tmp_path):
    from ignite.engine import Engine
    from monai.data import MetaTensor

    def run(folder, names, patients=None):
        handler = EvaluationResults(folder, {1: "x"}, patients=patients)
        engine = Engine(lambda engine, batch: batch)
        handler.attach(engine)
        label = zeros((1, 4, 4, 4), dtype=uint8)
        engine.run([[{"pred": MetaTensor(label, meta={"filename_or_obj": f"/d/{name}.nii"}), "label": label}]
                    for name in names], max_epochs=1)  # fmt: skip
        return read_results(folder)

    names = ["p1_frame01", "p1_frame12", "p2_frame01"]
    told = run(tmp_path / "names", names)
    assert [row["patient"] for row in told.rows] == ["p1", "p1", ""]
    assert (told.summary["n_cases"], told.summary["n_patients"]) == (3, 2)
    listed = run(tmp_path / "list", names, {f"/d/{name}.nii": "7" for name in names})
    assert {row["patient"] for row in listed.rows} == {"7"}
    run(tmp_path / "single", ["a", "b"])
    with (tmp_path / "single" / "per_case.csv").open(newline="") as file:
        assert "patient" not in next(csv.reader(file))


def test_what_leaves_the_house_names_nobody(tmp_path):
    """Scores in a package have numbers for cases, and for patients, too; and lines of one patient have no interval."""
    from monai_ssl.deploy.package import Scores, _copy_results
    from monai_ssl.metrics import write_results
    from monai_ssl.reports import summary_lines

    names = {"MRN5732_visit1": "MRN5732", "MRN5732_visit2": "MRN5732", "Smith": ""}
    mask = np.ones((4, 4, 4), dtype=np.uint8)
    made = [
        {**case_metrics(mask, mask, {1: "x"}, 1.0, case=case)[0], "patient": whose} for case, whose in names.items()
    ]
    folder = tmp_path / "run" / "evaluation-testing"
    write_results(folder, made, {"section": "testing"})
    _copy_results(Scores(tmp_path / "run", ()), tmp_path / "package")
    text = "".join(file.read_text() for file in (tmp_path / "package" / "testing").iterdir())
    assert "patient-001" in text
    assert "MRN" not in text
    assert "Smith" not in text

    write_results(folder, made[:2], {"section": "testing"})
    assert "95 % interval" not in summary_lines(folder)[0]
    assert "n = 2" in summary_lines(folder)[0]


def test_a_study_counts_patients(tmp_path):
    from monai_ssl.metrics import write_results
    from monai_ssl.reports.study import StudyRow, StudyRun, write_study_report
    from monai_ssl.reports.study.analysis import Analysis
    from monai_ssl.reports.study.load import load_study

    generator = np.random.default_rng(1)
    hard = generator.uniform(0.4, 0.8, 7)
    row, matched, second = (
        StudyRow(name, name, role, of, "acdc", "practical", 3, 55, "testing", {})
        for name, role, of in (("a", "method", ""), ("w", "matched_floor", "a"), ("b", "method", ""))
    )
    runs = []
    for each, lift in ((row, 0.03), (matched, 0.0), (second, 0.01)):
        for seed in (0, 1):
            folder = tmp_path / f"{each.name}{seed}" / "evaluation-testing"
            made = []
            for number, value in enumerate(hard):
                for frame in FRAMES:
                    mask = np.zeros(1000, dtype=np.uint8)
                    mask[:500] = 1
                    drawn = np.roll(mask, int(500 * (1 - min(value + lift + generator.normal(0, 0.02), 1))))
                    cube = (10, 10, 10)
                    scores = case_metrics(drawn.reshape(cube), mask.reshape(cube), {1: "x"}, 1.0,
                                          case=f"p{number}_{frame}")  # fmt: skip
                    # evaluations of former versions say nothing of patients
                    made += scores if each is matched else [{**one, "patient": f"p{number}"} for one in scores]
            write_results(folder, made, {"seed": seed})
            runs.append(StudyRun(each.name, seed, "", folder.parent, folder))
    found = Analysis(load_study([row, matched, second], runs))
    gain = found.gain_of(next(each for each in found.study.rows if each.row is row))
    assert (gain.n_cases, gain.n_patients) == (14, 7)
    values = {
        name: np.mean([[one["dice"] for one in read_results(run.evaluation).rows] for run in runs if run.row == name],
                      axis=0)
        for name in "aw"
    }  # fmt: skip
    by_patient = (values["a"] - values["w"]).reshape(7, 2).mean(1)
    assert gain.p_value == pytest.approx(stats.wilcoxon(by_patient).pvalue)
    (ranks,) = found.ranks
    assert (ranks[0].n_cases, ranks[0].n_patients) == (14, 7)

    (tmp_path / "page").mkdir()
    page = write_study_report(tmp_path / "page", "T", "", [row, matched, second], runs, "c")
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "2, 14 of 7 patients" in text
    assert "count as one observation" in text
    with (tmp_path / "page" / "results" / "summary.csv").open(newline="") as file:
        assert {(line["row"], line["n_cases"], line["n_patients"]) for line in csv.DictReader(file)} == {
            (name, "14", "7") for name in "awb"
        }
    with (tmp_path / "page" / "results" / "per_case.csv").open(newline="") as file:
        assert {line["patient"] for line in csv.DictReader(file)} == {f"p{number}" for number in range(7)}

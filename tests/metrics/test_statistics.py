"""Summaries, bootstrap intervals and paired comparisons."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from monai_ssl.metrics import (
    METRICS,
    bootstrap_interval,
    case_values,
    compare,
    holm,
    is_failed,
    read_results,
    summarize,
)


def make_rows(dice, label="x", prefix="c", **columns):
    rows = []
    for index, value in enumerate(dice):
        row = dict.fromkeys(METRICS, 1.0) | {"case": f"{prefix}{index}", "class": label, "status": "ok", "label": 1}
        row["dice"] = float(value)
        rows.append(row | {key: values[index] for key, values in columns.items()})
    return rows


def test_summary_numbers():
    rows = make_rows([0.9, 0.8, 0.4, 0.7])
    block = summarize(rows)["classes"]["x"]
    dice = block["dice"]
    assert dice["n"] == 4
    assert dice["mean"] == pytest.approx(0.7)
    assert dice["sd"] == pytest.approx(np.std([0.9, 0.8, 0.4, 0.7], ddof=1))
    assert (dice["median"], dice["min"], dice["max"]) == pytest.approx((0.75, 0.4, 0.9))
    assert dice["ci_low"] < dice["mean"] < dice["ci_high"]
    assert block["n_failed"] == 1
    assert [item["case"] for item in block["worst"]] == ["c2", "c3", "c1"]


def test_penalty_counts_in_the_mean_and_not_in_nonempty():
    rows = make_rows([0.9, 0.0], hd95_mm=[2.0, 300.0], status=["ok", "empty_prediction"])
    block = summarize(rows)["mean"]
    assert block["hd95_mm"]["mean"] == 151
    assert (block["hd95_mm_nonempty"]["mean"], block["hd95_mm_nonempty"]["n"]) == (2, 1)
    assert block["n_failed"] == 1
    assert block["status"] == {"empty_prediction": 1, "ok": 1}


def test_all_empty_summary_has_no_nonempty_mean():
    block = summarize(make_rows([0.0], status=["empty_prediction"]))["mean"]
    assert block["hd95_mm_nonempty"]["n"] == 0
    assert block["hd95_mm_nonempty"]["mean"] is None
    assert block["dice"]["sd"] is None
    assert block["dice"]["ci_low"] is None


def test_mean_over_classes_counts_cases():
    rows = make_rows([0.9, 0.8], "a") + make_rows([0.7, 0.2], "b")
    result = summarize(rows)
    assert result["n_cases"] == 2
    assert result["mean"]["dice"]["n"] == 2
    assert result["mean"]["dice"]["max"] == pytest.approx(0.8)
    assert result["mean"]["n_failed"] == 1
    assert result["classes"]["a"]["n_failed"] == 0


@pytest.mark.parametrize(
    ("status", "dice", "failed"),
    [("ok", 0.5, False), ("ok", 0.499, True), ("both_empty", 1.0, False), ("empty_reference", 0.0, True)],
)
def test_failure_rule(status, dice, failed):
    assert is_failed({"status": status, "dice": dice}) is failed


def bca(values, confidence=0.95, n_resamples=20_000):
    """Efron's bias-corrected and accelerated interval, from its formulas."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    means = values[np.random.default_rng(99).integers(0, n, (n_resamples, n))].mean(axis=1)
    bias = stats.norm.ppf(((means < values.mean()).mean() + (means <= values.mean()).mean()) / 2)
    left_out = np.array([np.delete(values, i).mean() for i in range(n)])
    pull = left_out.mean() - left_out
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    return np.quantile(means, stats.norm.cdf(bias + z / (1 - acceleration * z)))


SKEWED = [0.91, 0.90, 0.92, 0.89, 0.93, 0.88, 0.90, 0.91, 0.87, 0.92, 0.90, 0.89, 0.91, 0.93, 0.45, 0.20]


@pytest.mark.parametrize("values", [SKEWED, [-v for v in SKEWED], np.random.default_rng(0).normal(0.8, 0.1, 25)])
def test_bootstrap_equals_the_formulas(values):
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx(tuple(bca(values)), abs=0.05 * (high - low))
    narrow = bootstrap_interval(values, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_follows_the_skew():
    """Two failed cases of 16: more room below the mean than above, and more than the percentile interval gives."""
    low, high = bootstrap_interval(SKEWED)
    mean = np.mean(SKEWED)
    assert mean - low > 1.5 * (high - mean)
    percentile = stats.bootstrap(
        (SKEWED,), np.mean, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    assert low < percentile.low - 0.01
    assert high < percentile.high


def test_bootstrap_is_seeded():
    assert bootstrap_interval(SKEWED) == bootstrap_interval(tuple(SKEWED))
    assert bootstrap_interval(SKEWED, seed=1) != bootstrap_interval(SKEWED)


def test_bootstrap_edges(recwarn):
    assert bootstrap_interval([]) == (None, None)
    assert bootstrap_interval([0.5]) == (None, None)
    assert bootstrap_interval([0.3] * 4) == (0.3, 0.3)
    assert bootstrap_interval([0.2, 0.8]) == (0.2, 0.8)
    for values in ([0.1 + 0.2, 0.3, 0.3], [1.0] * 15 + [0.0], [1e-300, 2e-300, 1e-300], [0.9, 0.9, 0.9, 1e12]):
        low, high = bootstrap_interval(values)
        assert min(values) <= low <= np.mean(values) <= high <= max(values)
    assert not recwarn.list
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        bootstrap_interval([1, 2], confidence=95)
    with pytest.raises(ValueError, match="n_resamples must be at least 1"):
        bootstrap_interval([1, 2], n_resamples=0)
    with pytest.raises(ValueError, match="values must be finite, got nan"):
        bootstrap_interval([1, float("nan")])


def test_percentile_where_bca_is_not_defined(monkeypatch):
    real, asked = stats.bootstrap, []

    def undefined(*args, method, **options):
        asked.append(method)
        if method == "BCa":
            return SimpleNamespace(confidence_interval=SimpleNamespace(low=np.nan, high=np.nan))
        return real(*args, method=method, **options)

    monkeypatch.setattr(stats, "bootstrap", undefined)
    low, high = bootstrap_interval([0.41, 0.52, 0.63])
    assert asked == ["BCa", "percentile"]
    assert 0.41 <= low < high <= 0.63


@pytest.mark.parametrize("run", ["literature-dtc-seed7", "literature-floor-seed1337"])
def test_only_the_intervals_of_former_results_move(run):
    """Results of version 0.1.0 hold percentile intervals; every other number is the same, to the last digit."""
    folder = Path(__file__).parents[2] / "docs" / "results" / "la_quarter" / run
    former, now = read_results(folder).summary, summarize(read_results(folder).rows)
    assert "interval" not in former
    assert now["interval"] == "BCa bootstrap"
    for block, new in ((former["mean"], now["mean"]), (former["classes"]["left atrium"], now["mean"])):
        assert {key: block[key] for key in ("n", "n_failed", "status", "worst")} == {
            key: new[key] for key in ("n", "n_failed", "status", "worst")
        }
        for metric in METRICS:
            for key in ("n", "mean", "sd", "median", "min", "max"):
                assert new[metric][key] == pytest.approx(block[metric][key], rel=1e-12), (metric, key)
            width = block[metric]["ci_high"] - block[metric]["ci_low"]
            for key in ("ci_low", "ci_high"):
                assert abs(new[metric][key] - block[metric][key]) < 0.35 * width
        # towards the failed cases
        assert new["dice"]["ci_low"] < block["dice"]["ci_low"]
        assert new["hd95_mm"]["ci_high"] > block["hd95_mm"]["ci_high"]


def test_compare_pairs_by_name_not_by_position():
    a = make_rows([0.9, 0.8, 0.7])
    assert compare(a, make_rows([0.9, 0.8, 0.7])[::-1]).mean_difference == 0
    assert compare(a, make_rows([0.9, 0.8, 0.7])[::-1]).ties == 3


def test_compare_wilcoxon_known_data():
    # Sokal-like table: eight pairs, no ties
    a = [0.88, 0.75, 0.91, 0.83, 0.79, 0.86, 0.93, 0.70]
    b = [0.80, 0.77, 0.85, 0.78, 0.76, 0.82, 0.84, 0.71]
    result = compare(make_rows(a), make_rows(b))
    difference = np.round(np.subtract(a, b), 12)
    assert result.p_value == pytest.approx(stats.wilcoxon(difference).pvalue)
    # exact: signed ranks of the negatives are 1 and 2, so W = 3, P(W <= 3) = 5 / 2^8, two-sided
    assert result.p_value == pytest.approx(2 * 5 / 256)
    assert result.mean_difference == pytest.approx(difference.mean())
    assert result.median_difference == pytest.approx(np.median(difference))
    assert (result.wins, result.losses, result.ties) == (6, 2, 0)
    low, high = bootstrap_interval(difference)
    assert (result.ci_low, result.ci_high) == (low, high)


def test_compare_all_zero_differences():
    result = compare(make_rows([0.9, 0.8]), make_rows([0.9, 0.8]))
    assert (result.p_value, result.ties, result.ci_low, result.ci_high) == (1.0, 2, 0.0, 0.0)


def test_compare_floating_noise_is_a_tie():
    assert compare(make_rows([0.1 + 0.2]), make_rows([0.3])).ties == 1


def test_compare_lower_distance_wins():
    a, b = make_rows([0.9] * 2, hd95_mm=[1.0, 5.0]), make_rows([0.9] * 2, hd95_mm=[4.0, 6.0])
    result = compare(a, b, metric="hd95_mm")
    assert (result.wins, result.losses, result.mean_difference) == (2, 0, -2.0)


def test_compare_one_class():
    a = make_rows([0.9, 0.8], "a") + make_rows([0.1, 0.1], "b")
    b = make_rows([0.8, 0.7], "a") + make_rows([0.9, 0.9], "b")
    assert compare(a, b, label="a").wins == 2
    assert compare(a, b).wins == 0


def test_compare_refuses_different_cases_and_classes():
    with pytest.raises(ValueError, match=r"same cases, got only in rows_a: \['c2'\], only in rows_b: \[\]"):
        compare(make_rows([0.9] * 3), make_rows([0.9] * 2))
    with pytest.raises(ValueError, match=r"same classes, got only in rows_a: \['x'\], only in rows_b: \['y'\]"):
        compare(make_rows([0.9]), make_rows([0.9], "y"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        (make_rows([0.9]) * 2, "one row per case and class"),
        (make_rows([0.9, 0.8], "a") + make_rows([0.9], "b"), "every class of every case"),
        (make_rows([float("nan")]), "dice must be finite"),
    ],
)
def test_ill_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        summarize(rows)


def test_case_values_ill_arguments():
    with pytest.raises(ValueError, match="metric must be a column"):
        case_values(make_rows([0.9]), "f1")
    with pytest.raises(ValueError, match=r"label must be one of \['x'\], got 'y'"):
        case_values(make_rows([0.9]), label="y")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Holm's rule by hand
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.001, 0.0004], [0.001, 0.0008]),
    ],
)
def test_holm(given, expected):
    assert holm(given) == pytest.approx(expected)


def test_holm_is_never_kinder_than_no_correction_and_never_harsher_than_bonferroni():
    values = np.random.default_rng(0).uniform(0, 0.2, 12)
    corrected = np.array(holm(values.tolist()))
    assert (corrected >= values).all()
    assert (corrected <= np.minimum(1, 12 * values)).all()
    assert (np.diff(corrected[np.argsort(values)]) >= 0).all()


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_p_value(value):
    with pytest.raises(ValueError, match=r"p_values must be in \[0, 1\]"):
        holm([0.5, value])

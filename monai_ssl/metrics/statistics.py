"""Statistics over cases: summaries with bootstrap intervals, and paired comparisons."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
from scipy import stats

from .cases import DISTANCE_METRICS, METRICS, OVERLAP_METRICS, Row

__all__ = [
    "CONFIDENCE",
    "FAILURE_DICE",
    "RESAMPLES",
    "SEED",
    "Comparison",
    "Spread",
    "bootstrap_interval",
    "case_patients",
    "case_values",
    "check_same_cases",
    "compare",
    "holm",
    "is_failed",
    "patient_means",
    "summarize",
    "with_patients",
]

FAILURE_DICE = 0.5
"""A case fails where exactly one mask is empty, or where Dice is below this value."""


CONFIDENCE = 0.95
"""Coverage of every interval in results and reports."""
RESAMPLES = 10_000
"""Bootstrap resamples of the cases."""
SEED = 0
"""Seed of the resampling: the same cases give the same interval."""


class Spread(TypedDict):
    """One metric over the cases; a number that does not exist (the deviation of one case) is None.

    ``sd`` is the sample deviation (n − 1); ``ci_low`` and ``ci_high`` bound the mean, see :func:`bootstrap_interval`.
    """

    n: int
    mean: float | None
    sd: float | None
    median: float | None
    min: float | None
    max: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Comparison:
    """Two runs, a and b, case by case; made by :func:`compare`.

    Attributes:
        metric: the compared column.
        label: class name; None: mean over the classes of a case.
        n: number of cases.
        n_patients: number of patients; interval and test take the scans of one as one observation.
        mean_a, mean_b: means over the cases.
        mean_difference, median_difference: of a minus b.
        ci_low, ci_high: interval of the mean difference; None for fewer than two patients.
        p_value: two-sided Wilcoxon signed-rank test; 1 where all differences are zero.
        higher_is_better: whether a positive difference speaks for a.
        wins, losses, ties: cases in which a is better, worse, equal.
    """

    metric: str
    label: str | None
    n: int
    n_patients: int
    mean_a: float
    mean_b: float
    mean_difference: float
    median_difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float
    higher_is_better: bool
    wins: int
    losses: int
    ties: int


def is_failed(row: Row) -> bool:
    """Tell whether one row is a failed segmentation: exactly one mask empty, or Dice below :data:`FAILURE_DICE`.

    Example:
        >>> is_failed({"status": "ok", "dice": 0.49})
        True
    """
    return row["status"] in ("empty_prediction", "empty_reference") or row["dice"] < FAILURE_DICE


def bootstrap_interval(
    values: Iterable[float],
    confidence: float = CONFIDENCE,
    n_resamples: int = RESAMPLES,
    seed: int = SEED,
    patients: Iterable[str] | None = None,
) -> tuple[float | None, float | None]:
    """Bootstrap interval of the mean: bias-corrected and accelerated (BCa), by ``scipy.stats.bootstrap``.

    BCa follows the skew of the values, which Dice and distances have: one failed case draws the mean to one side.
    Where BCa is not defined (values that differ by rounding errors only), the percentile interval takes its place.

    Args:
        values: one finite number per case.
        confidence: coverage, in (0, 1).
        n_resamples: number of resamples of the cases, with replacement.
        seed: seed of the resampling; the same values and seed give the same interval.
        patients: the patient of every case. Scans of one patient resemble each other: a resample draws patients, each
            with all scans. None: no patient has two.

    Returns:
        Lower and upper bound, within the range of the values; both equal to the value where all are equal;
        ``(None, None)`` for fewer than two patients, where there is nothing to resample.

    Raises:
        ValueError: if ``confidence`` or ``n_resamples`` is out of range, or a value is not finite.

    Example:
        >>> bootstrap_interval([0.8, 0.8, 0.8])
        (0.8, 0.8)
        >>> bootstrap_interval([0.7, 0.9], patients=["p", "p"])
        (None, None)
    """
    check_resampling(confidence, n_resamples)
    array = np.asarray(list(values), dtype=np.float64)
    whose = None if patients is None else list(patients)
    if whose is not None and len(whose) != array.size:
        raise ValueError(f"patients must name one per value, got {len(whose)} for {array.size} values")
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite, got {array[~np.isfinite(array)][0]}")
    found = array.tolist()
    named = [str(number) for number in range(len(found))] if whose is None else whose
    groups: dict[str, list[float]] = {}
    for value, patient in zip(found, named, strict=True):
        groups.setdefault(patient, []).append(value)
    if len(groups) < 2:
        return None, None
    return _interval(tuple(tuple(values) for values in groups.values()), confidence, n_resamples, seed)


def check_resampling(confidence: float, n_resamples: int) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")


@lru_cache(maxsize=1024)  # a page asks for the same cases under several headings
def _interval(
    groups: tuple[tuple[float, ...], ...], confidence: float, n_resamples: int, seed: int
) -> tuple[float, float]:
    least, most = min(map(min, groups)), max(map(max, groups))
    if least == most:
        return least, most
    sums, sizes = np.array([sum(values) for values in groups]), np.array([len(values) for values in groups])
    # of single scans the plain mean, which is faster
    alone = bool((sizes == 1).all())
    data, statistic = ((sums,), np.mean) if alone else ((sums, sizes), _mean_of_sums)
    for method in ("BCa", "percentile"):
        # BCa divides by the cubed spread, which may be 0 in the computer's numbers
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                data,
                statistic,
                paired=not alone,
                n_resamples=n_resamples,
                batch=1000,  # so memory does not grow with the resamples
                confidence_level=confidence,
                method=method,
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        low, high = float(found.low), float(found.high)
        if math.isfinite(low) and math.isfinite(high):
            break
    # a mean of equal values can leave their range by a rounding error
    return min(max(low, least), most), min(max(high, least), most)


def _mean_of_sums(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)


def _table(rows: Sequence[Row], name: str = "rows") -> tuple[list[str], list[str], dict[tuple[str, str], Row]]:
    """Return cases, classes and the rows by (case, class), after checking that the table is complete."""
    if not rows:
        raise ValueError(f"{name} must hold at least one row, got none")
    table: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = str(row["case"]), str(row["class"])
        if key in table:
            raise ValueError(
                f"{name} must hold one row per case and class, got case {key[0]!r}, class {key[1]!r} twice"
            )
        table[key] = row
    cases = list(dict.fromkeys(case for case, _ in table))
    classes = list(dict.fromkeys(label for _, label in table))
    missing = [(case, label) for case in cases for label in classes if (case, label) not in table]
    if missing:
        raise ValueError(f"{name} must hold every class of every case, got no row for {missing[:5]}")
    return cases, classes, table


def _value(row: Row, metric: str) -> float:
    if metric not in row:
        raise ValueError(f"metric must be a column of the rows, got {metric!r}")
    value = float(row[metric])
    if not math.isfinite(value):
        raise ValueError(f"{metric} must be finite, got {value} for case {row['case']!r}, class {row['class']!r}")
    return value


def case_values(rows: Sequence[Row], metric: str = "dice", label: str | None = None) -> dict[str, float]:
    """One value per case: that of class ``label``, or the mean over all classes.

    Args:
        rows: rows of :func:`~monai_ssl.metrics.case_metrics`.
        metric: a column of the rows.
        label: class name; None for the mean over classes.

    Returns:
        Values by case name, in the order of ``rows``.

    Raises:
        ValueError: if rows are missing or duplicated, the metric or class is unknown, or a value is not finite.

    Example:
        >>> case_values([{"case": "a", "class": "x", "status": "ok", "dice": 0.9}])
        {'a': 0.9}
    """
    cases, classes, table = _table(rows)
    if label is not None and label not in classes:
        raise ValueError(f"label must be one of {classes}, got {label!r}")
    chosen = classes if label is None else [label]
    return {case: float(np.mean([_value(table[case, name], metric) for name in chosen])) for case in cases}


def case_patients(*tables: Sequence[Row]) -> dict[str, str]:
    """The patient of every case, as a column ``patient`` says; a case of which none does is a patient of its own.

    Args:
        tables: rows of one or several runs on the same scans.

    Example:
        >>> case_patients([{"case": "p_1", "patient": "p"}, {"case": "p_2", "patient": "p"}, {"case": "q"}])
        {'p_1': 'p', 'p_2': 'p', 'q': 'case:q'}
    """
    found: dict[str, str] = {}
    for row in (row for rows in tables for row in rows):
        case = str(row["case"])
        found[case] = str(row.get("patient") or found.get(case, f"case:{case}"))
    return found


def with_patients(rows: Sequence[Row], cases: Sequence[str], patients: Sequence[str]) -> list[Row]:
    """The rows with a column ``patient``, where a patient has several of the scans; else as they are.

    The column is empty for patients with one scan.

    Args:
        rows: one per case and class.
        cases: names of the cases.
        patients: of each case.

    Example:
        >>> with_patients([{"case": "a"}, {"case": "b"}], ["a", "b"], ["p", "p"])
        [{'case': 'a', 'patient': 'p'}, {'case': 'b', 'patient': 'p'}]
    """
    if len(set(patients)) == len(patients):
        return list(rows)
    known = dict(zip(cases, patients, strict=True))
    own = {patient for patient, n in Counter(patients).items() if n == 1}
    return [{**row, "patient": "" if (patient := known[str(row["case"])]) in own else patient} for row in rows]


def patient_means(values: Mapping[str, float], patients: Mapping[str, str]) -> dict[str, float]:
    """Of every patient the mean over the scans: what tests that want independent observations are given.

    Example:
        >>> patient_means({"p_1": 0.25, "p_2": 0.75, "q": 1.0}, {"p_1": "p", "p_2": "p", "q": "q"})
        {'p': 0.5, 'q': 1.0}
    """
    found: dict[str, list[float]] = {}
    for case, value in values.items():
        found.setdefault(patients.get(case, f"case:{case}"), []).append(value)
    return {patient: each[0] if len(each) == 1 else float(np.mean(each)) for patient, each in found.items()}


def _spread(values: Sequence[float], patients: Sequence[str]) -> Spread:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Spread(n=0, mean=None, sd=None, median=None, min=None, max=None, ci_low=None, ci_high=None)
    low, high = bootstrap_interval(array, patients=patients)
    return Spread(
        n=int(array.size),
        mean=float(array.mean()),
        sd=float(array.std(ddof=1)) if array.size > 1 else None,
        median=float(np.median(array)),
        min=float(array.min()),
        max=float(array.max()),
        ci_low=low,
        ci_high=high,
    )


def summarize(rows: Sequence[Row], metrics: Sequence[str] = METRICS) -> dict[str, Any]:
    """Summarize a run: every class, and the mean over classes.

    The mean over classes is taken within each case first, so ``n`` is always a number of cases. Distances appear
    twice: under their own name with the penalty for empty masks, and as ``<name>_nonempty`` over the rows where both
    masks have foreground (a kinder number, to be read next to ``n_failed``).

    Args:
        rows: rows of :func:`~monai_ssl.metrics.case_metrics` over all cases.
        metrics: columns to summarize.

    Returns:
        ``{"n_cases", "n_patients", "interval", "confidence", "n_resamples", "bootstrap_seed", "failure_dice",
        "classes": {name: block}, "mean": block}``. A block holds ``n``, ``n_failed`` (in "mean": cases with at least
        one failed class), the count of every ``status``, ``worst`` (three of ``{case, dice}``, worst first) and one
        :class:`Spread` per metric.

    Raises:
        ValueError: if rows are missing or duplicated, or a value is not finite.

    Example:
        >>> rows = [{"case": c, "class": "x", "status": "ok", "dice": d} for c, d in (("a", 0.9), ("b", 0.4))]
        >>> summarize(rows, metrics=["dice"])["mean"]["n_failed"]
        1
    """
    cases, classes, table = _table(rows)
    known = case_patients(rows)
    patients = [known[case] for case in cases]

    def block(chosen: Sequence[str]) -> dict[str, Any]:
        own = [table[case, name] for case in cases for name in chosen]
        dice = {case: float(np.mean([_value(table[case, name], "dice") for name in chosen])) for case in cases}
        worst = sorted(cases, key=lambda case: dice[case])[:3]
        result: dict[str, Any] = {
            "n": len(cases),
            "n_failed": sum(any(is_failed(table[case, name]) for name in chosen) for case in cases),
            "status": {status: sum(row["status"] == status for row in own) for status in _statuses(own)},
            "worst": [{"case": case, "dice": dice[case]} for case in worst],
        }
        for metric in metrics:
            values = [float(np.mean([_value(table[case, name], metric) for name in chosen])) for case in cases]
            result[metric] = _spread(values, patients)
            if metric in DISTANCE_METRICS:
                filled = [[row for name in chosen if (row := table[case, name])["status"] == "ok"] for case in cases]
                kept = [float(np.mean([_value(row, metric) for row in group])) for group in filled if group]
                of = [patient for patient, group in zip(patients, filled, strict=True) if group]
                result[f"{metric}_nonempty"] = _spread(kept, of)
        return result

    return {
        "n_cases": len(cases),
        "n_patients": len(set(patients)),
        "interval": "BCa bootstrap",
        "confidence": CONFIDENCE,
        "n_resamples": RESAMPLES,
        "bootstrap_seed": SEED,
        "failure_dice": FAILURE_DICE,
        "classes": {name: block([name]) for name in classes},
        "mean": block(classes),
    }


def _statuses(rows: Sequence[Row]) -> list[str]:
    return sorted({row["status"] for row in rows})


def check_same_cases(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> None:
    """Make sure that two runs were scored on the same cases and classes.

    Raises:
        ValueError: if they were not; the message names the cases or classes that only one of them has.

    Example:
        >>> check_same_cases([{"case": "p", "class": "x"}], [{"case": "p", "class": "x"}])
    """
    cases_a, classes_a, _ = _table(rows_a, "rows_a")
    cases_b, classes_b, _ = _table(rows_b, "rows_b")
    for kind, first, second in (("cases", cases_a, cases_b), ("classes", classes_a, classes_b)):
        only_a, only_b = sorted(set(first) - set(second)), sorted(set(second) - set(first))
        if only_a or only_b:
            raise ValueError(
                f"rows_a and rows_b must hold the same {kind}, got only in rows_a: {only_a}, only in rows_b: {only_b}"
            )


def compare(rows_a: Sequence[Row], rows_b: Sequence[Row], metric: str = "dice", label: str | None = None) -> Comparison:
    """Compare two runs case by case (a minus b); interval and test take the scans of a patient as one observation.

    Args:
        rows_a: rows of the first run.
        rows_b: rows of the second run, of the same cases and classes (in any order).
        metric: column to compare.
        label: class name; None for the mean over classes.

    Returns:
        Differences with their interval, the Wilcoxon test, and wins, losses and ties.

    Raises:
        ValueError: if the runs hold different cases or classes (the message names them), or values are missing.

    Example:
        >>> a = [{"case": c, "class": "x", "status": "ok", "dice": d} for c, d in (("p", 0.9), ("q", 0.8))]
        >>> b = [{"case": c, "class": "x", "status": "ok", "dice": d} for c, d in (("p", 0.7), ("q", 0.9))]
        >>> result = compare(a, b)
        >>> result.wins, result.losses
        (1, 1)
    """
    check_same_cases(rows_a, rows_b)
    values_a, values_b = case_values(rows_a, metric, label), case_values(rows_b, metric, label)
    a = np.array(list(values_a.values()))
    b = np.array([values_b[case] for case in values_a])
    difference = np.round(a - b, 12)  # a tie must not turn into a rank through floating-point noise
    higher_is_better = metric in OVERLAP_METRICS
    signed = difference if higher_is_better else -difference
    patients = case_patients(rows_a, rows_b)
    low, high = bootstrap_interval(difference, patients=[patients[case] for case in values_a])
    tested = np.round(list(patient_means(dict(zip(values_a, difference, strict=True)), patients).values()), 12)
    return Comparison(
        metric=metric,
        label=label,
        n=int(difference.size),
        n_patients=int(tested.size),
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        mean_difference=float(difference.mean()),
        median_difference=float(np.median(difference)),
        ci_low=low,
        ci_high=high,
        p_value=float(stats.wilcoxon(tested).pvalue) if tested.any() else 1.0,
        higher_is_better=higher_is_better,
        wins=int((signed > 0).sum()),
        losses=int((signed < 0).sum()),
        ties=int((signed == 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule.

    The chance of even one false discovery stays below the level at which the corrected values are read.

    Args:
        p_values: of all tests that are read together, each in [0, 1].

    Returns:
        Corrected values in the same order, at most 1.

    Raises:
        ValueError: if a value is outside [0, 1].

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    if odd := [value for value in p_values if not 0 <= value <= 1]:
        raise ValueError(f"p_values must be in [0, 1], got {odd[0]}")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for done, number in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, p_values[number] * (len(p_values) - done)))
        corrected[number] = largest
    return corrected

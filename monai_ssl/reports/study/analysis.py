"""The numbers of a study: levels, paired gains, ranks, pairs, checks and costs. No text, no picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from monai_ssl.metrics.cases import OVERLAP_METRICS
from monai_ssl.metrics.gap import GapClosed, gap_closed
from monai_ssl.metrics.statistics import bootstrap_interval, holm, is_failed, patient_means
from monai_ssl.reports.study.load import Key, LoadedRow, Study, over_trainings, paired, whose
from monai_ssl.reports.study.quoted import jaccard_bounds
from monai_ssl.reports.study.rows import RANDOM_SPLIT, Role

__all__ = ["LEVEL", "SPLITS", "Analysis", "Check", "Costs", "Gain", "Level", "Pairs", "Rank", "too_few", "verdict"]

LEVEL = 0.05
"""Below this a p-value, corrected for the number of tests, counts."""
SPLITS = 6
"""With fewer random splits no test over them can fall below :data:`LEVEL`: none is made."""

# Jaccard and Dice of one mask are functions of each other: further apart is no rounding
IDENTITY = 1e-6
GAIN, LOSS = "a measurable gain", "a measurable loss"
# metrics of the paired comparisons: what papers print, in millimeters
COMPARED = ("dice", "hd95_mm")
# who is compared with whom; each is a family of tests of its own
FAMILIES: tuple[tuple[Role, Role], ...] = (
    ("method", "matched_floor"),
    ("method", "floor"),
    ("method", "no_pool"),
    ("matched_floor", "floor"),
    ("oracle", "method"),
    ("ensemble", "method"),
    ("ceiling", "method"),
)


@dataclass(frozen=True)
class Level:
    """One metric of one row.

    Attributes:
        n_trainings, n_cases: that were scored; a case that several trainings share counts once.
        n_patients: whose cases they are.
        mean: over trainings of means over cases.
        sd_trainings: of these means (n - 1); None for one training.
        sd_cases: over cases of their mean over trainings; None for one case.
        median, least, most: of the cases' means over trainings.
        low, high: hierarchical bootstrap interval of the mean; None for one case, or where it was not asked for.
    """

    n_trainings: int
    n_cases: int
    n_patients: int
    mean: float
    sd_trainings: float | None
    sd_cases: float | None
    median: float
    least: float
    most: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Gain:
    """A row against another, over the trainings that both have.

    Attributes:
        row, against: the rows.
        metric, label: what is compared; ``label`` None is the mean over the classes.
        n_trainings, n_cases: that both have.
        n_patients: whose scans they are; interval and test take the scans of one as one observation.
        mean_row, mean_against: means over just these.
        difference: row minus other; ``low`` and ``high`` bound it (hierarchical bootstrap).
        median_difference: over cases, each the mean over trainings; so are wins, losses and ties.
        wins, losses, ties: cases on which the row is better, worse, equal.
        p_value: two-sided Wilcoxon signed-rank test over patients, each the mean of the scans; 1 where all are equal.
        p_holm: corrected for the ``n_tests`` of its family.
        n_splits: random splits that both have; None for folds, and for fewer than :data:`SPLITS`.
        p_splits: the same test over them, each the mean of its trainings and scans; not corrected.
        closed: share of the gap between ``against`` and the ceiling; None without a ceiling, or for distances.
        borrowed: whether a training of the ceiling stands for one that it lacks.
        verdict: what may be said of it.
    """

    row: LoadedRow
    against: LoadedRow
    metric: str
    label: str | None
    n_trainings: int
    n_cases: int
    n_patients: int
    mean_row: float
    mean_against: float
    difference: float
    low: float | None
    high: float | None
    median_difference: float
    wins: int
    losses: int
    ties: int
    p_value: float
    p_holm: float
    n_tests: int
    n_splits: int | None
    p_splits: float | None
    closed: GapClosed | None
    borrowed: bool
    verdict: str


@dataclass(frozen=True)
class Rank:
    """A method among the methods with as many labels of the same data.

    Attributes:
        row: the method.
        n_cases: that all of them have.
        n_patients: whose they are.
        mean: mean rank over the cases, by Dice; 1 is best, ties share.
        low, high: bootstrap interval over the patients.
        first: cases on which it is best, ties included.
        p_holm: Wilcoxon test against the method with the best mean rank, corrected; None for that one.
        friedman: p-value that all rank alike; None for fewer than three methods.
    """

    row: LoadedRow
    n_cases: int
    n_patients: int
    mean: float
    low: float | None
    high: float | None
    first: int
    p_holm: float | None
    friedman: float | None


@dataclass(frozen=True)
class Pairs:
    """Methods with as many labels of the same data, each against every other, in one metric.

    Attributes:
        rows: the methods, best mean rank first.
        metric: what is compared.
        gains: one per pair that has a training in common, the better rank first; p-values are corrected over these.
    """

    rows: tuple[LoadedRow, ...]
    metric: str
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Check:
    """Whether Dice and Jaccard of one evaluation belong together.

    Attributes:
        row, split, seed: the training.
        dice, jaccard: means over cases and classes.
        least, most: bounds of the mean Jaccard, see :func:`~monai_ssl.reports.study.quoted.jaccard_bounds`.
        deviation: largest difference of a mask's Jaccard from D / (2 - D).
        passed: whether all of this holds.
    """

    row: str
    split: str
    seed: int
    dice: float
    jaccard: float
    least: float
    most: float
    deviation: float
    passed: bool


@dataclass(frozen=True)
class Costs:
    """What the trainings of a row cost; None where no record says so.

    Attributes:
        row: the row.
        n_trainings: with a record.
        parameters, parameters_trained: of the deployed network, and of everything that is trained.
        macs: multiply-accumulates of one patch through the deployed network.
        patch: shape of that patch.
        hours: mean per training; of a self-training, floor, labeling and all rounds together.
        seconds_per_iteration: mean over everything that a training does.
        memory, gpu_memory: largest peaks, in bytes.
    """

    row: LoadedRow
    n_trainings: int
    parameters: int | None
    parameters_trained: int | None
    macs: int | None
    patch: tuple[int, ...] | None
    hours: float | None
    seconds_per_iteration: float | None
    memory: int | None
    gpu_memory: int | None


class Analysis:
    """All numbers of a study, each computed when it is first asked for.

    Args:
        study: the rows with their scores.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._levels: dict[tuple[str, str, str | None, bool], Level | None] = {}
        self._classes: dict[str, list[Gain]] = {}

    def level(
        self, row: LoadedRow, metric: str = "dice", label: str | None = None, interval: bool = True
    ) -> Level | None:
        """One metric of a row; None where nothing was scored."""
        key = row.row.name, metric, label, interval
        if key not in self._levels:
            self._levels[key] = _level(row, metric, label, interval) if row.trained else None
        return self._levels[key]

    def failed(self, row: LoadedRow) -> tuple[int, int]:
        """Failed segmentations of scans, and all of them: scans times trainings. One failed class is enough."""
        failed = sum(len({each["case"] for each in done.rows if is_failed(each)}) for done in row.trained)
        return failed, sum(len(done.cases) for done in row.trained)

    @cached_property
    def gains(self) -> list[Gain]:
        """Every comparison of the study, family by family, with corrected p-values."""
        found = []
        for first, second in FAMILIES:
            for metric in COMPARED:
                family = [
                    gain
                    for row in self.study.rows
                    if row.row.role == first
                    for other in self._opponents(row, second)
                    if (gain := self.gain(row, other, metric)) is not None
                ]
                found += _corrected(family)
        return found

    def _opponents(self, row: LoadedRow, role: Role) -> list[LoadedRow]:
        if role == "method":
            if row.row.role == "ceiling":  # serves many rows, and is compared with each
                return [other for other in self.study.methods if self.study.reference(other, "ceiling") is row]
            return [other for other in self.study.methods if other.row.name == row.row.of]
        other = self.study.reference(row, role)
        return [] if other is None else [other]

    def class_gains(self, label: str) -> list[Gain]:
        """Methods against their matched floors in one class, corrected over the rows that have it."""
        if label in self._classes:
            return self._classes[label]
        family = []
        for row in self.study.methods:
            other = self.study.reference(row, "matched_floor")
            if other is not None and label in row.classes and label in other.classes:
                gain = self.gain(row, other, "dice", label)
                family += [] if gain is None else [gain]
        self._classes[label] = _corrected(family)
        return self._classes[label]

    def gain(
        self, row: LoadedRow, other: LoadedRow, metric: str = "dice", label: str | None = None, share: bool = True
    ) -> Gain | None:
        """A row against another, not yet corrected; None where they have no training in common.

        Without ``share`` the gap to the ceiling is left out: it costs as much as all the rest.
        """
        borrow = "ceiling" in (row.row.role, other.row.role)
        if row.row.role == "ceiling":  # it lends its trainings to the other's seeds
            reverse, borrowed = paired(other, row, metric, label, borrow)
            common = {key: (second, first) for key, (first, second) in reverse.items()}
        else:
            common, borrowed = paired(row, other, metric, label, borrow)
        if not common:
            return None
        own, others = ([values[side] for values in common.values()] for side in (0, 1))
        patients = whose(row, other)
        found = gap_closed(own, others, own, shared_cases=True, patients=patients)
        closed = None
        ceiling = self.study.reference(row, "ceiling") if share else None
        if ceiling is not None and ceiling not in (row, other) and metric in OVERLAP_METRICS:
            above, lent = paired(row, ceiling, metric, label, borrow=True)
            shared = [key for key in common if key in above]
            if shared:
                trio = ([common[key][0] for key in shared], [common[key][1] for key in shared],
                        [above[key][1] for key in shared])  # fmt: skip
                closed = gap_closed(*trio, shared_cases=True, patients=patients)
                borrowed = borrowed or lent
        first, second = (over_trainings({key: values[side] for key, values in common.items()}) for side in (0, 1))
        difference = np.round([first[case] - second[case] for case in first], 12)
        better = difference if metric in OVERLAP_METRICS else -difference
        means = patient_means(dict(zip(first, difference.tolist(), strict=True)), patients)
        tested = np.round(list(means.values()), 12)
        p_value = _wilcoxon(tested)
        n_splits, p_splits = _over_splits(common)
        mean_row, mean_against = (
            float(np.mean([np.mean(list(values.values())) for values in side])) for side in (own, others)
        )
        return Gain(
            row=row,
            against=other,
            metric=metric,
            label=label,
            n_trainings=len(common),
            n_cases=len(first),
            n_patients=len(tested),
            mean_row=mean_row,
            mean_against=mean_against,
            difference=found.gain,
            low=found.gain_low,
            high=found.gain_high,
            median_difference=float(np.median(difference)),
            wins=int((better > 0).sum()),
            losses=int((better < 0).sum()),
            ties=int((better == 0).sum()),
            p_value=p_value,
            p_holm=p_value,
            n_tests=1,
            n_splits=n_splits,
            p_splits=p_splits,
            closed=closed,
            borrowed=borrowed,
            verdict="",
        )

    def gain_of(self, row: LoadedRow, role: Role = "matched_floor", metric: str = "dice") -> Gain | None:
        """The corrected comparison of a row with its control."""
        return next((g for g in self.gains if g.row is row and g.against.row.role == role and g.metric == metric), None)

    @cached_property
    def ranks(self) -> list[list[Rank]]:
        """Methods ranked by Dice, best first, for every data set and number of labels with at least two of them."""
        return [found for rows in self._rivals if (found := _ranks(rows))]

    @cached_property
    def pairs(self) -> list[Pairs]:
        """Every method against every other, for every data set, number of labels and metric."""
        place = {rank.row: number for table in self.ranks for number, rank in enumerate(table)}
        found = []
        for rivals in self._rivals:
            rows = sorted(rivals, key=lambda row: place.get(row, 0))
            for metric in COMPARED:
                every = (self.gain(one, two, metric, share=False) for one, two in combinations(rows, 2))
                family = [gain for gain in every if gain is not None]
                if family:
                    found.append(Pairs(tuple(rows), metric, tuple(_corrected(family))))
        return found

    @cached_property
    def _rivals(self) -> list[list[LoadedRow]]:
        """Scored methods with as many labels of the same data, where there are two or more."""
        tables: dict[tuple[Any, ...], list[LoadedRow]] = {}
        for row in self.study.methods:
            if row.trained:
                tables.setdefault((row.row.group, row.row.n_labeled), []).append(row)
        return [rows for rows in tables.values() if len(rows) > 1]

    @cached_property
    def checks(self) -> list[Check]:
        """The arithmetic of every evaluation."""
        return [_check(row.row.name, each) for row in self.study.rows for each in row.trained]

    @cached_property
    def costs(self) -> list[Costs]:
        """Costs of every row whose trainings recorded some; an ensemble trains nothing."""
        found = [_costs(row) for row in self.study.rows if row.row.role != "ensemble"]
        return [costs for costs in found if costs.n_trainings]


def _level(row: LoadedRow, metric: str, label: str | None, interval: bool) -> Level:
    repetitions = row.values(metric, label)
    means = [float(np.mean(list(values.values()))) for values in repetitions.values()]
    per_case = over_trainings(repetitions)
    cases, patients = np.array(list(per_case.values())), whose(row)
    low = high = None
    if interval:
        every = list(repetitions.values())
        zeros = [dict.fromkeys(values, 0.0) for values in every]
        found = gap_closed(every, zeros, every, shared_cases=True, patients=patients)
        low, high = found.gain_low, found.gain_high
    return Level(
        n_trainings=len(means),
        n_cases=len(cases),
        n_patients=len(patient_means(per_case, patients)),
        mean=float(np.mean(means)),
        sd_trainings=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        sd_cases=float(cases.std(ddof=1)) if len(cases) > 1 else None,
        median=float(np.median(cases)),
        least=float(cases.min()),
        most=float(cases.max()),
        low=low,
        high=high,
    )


def _wilcoxon(differences: np.ndarray) -> float:
    """Two-sided p-value of the signed-rank test; 1 where all differences are 0."""
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def _over_splits(
    common: Mapping[Key, tuple[Mapping[str, float], Mapping[str, float]]],
) -> tuple[int | None, float | None]:
    """Number of random splits and the p-value over them, each one value; None for too few."""
    found: dict[str, list[float]] = {}
    for (split, _), sides in common.items():
        if split.startswith(RANDOM_SPLIT):
            own, other = (float(np.mean(list(values.values()))) for values in sides)
            found.setdefault(split, []).append(own - other)
    if len(found) < SPLITS:
        return None, None
    return len(found), _wilcoxon(np.round([np.mean(each) for each in found.values()], 12))


def _corrected(family: Sequence[Gain]) -> list[Gain]:
    """The comparisons with p-values corrected for their number, and what may then be said."""
    values = holm([gain.p_value for gain in family])
    found = [replace(gain, p_holm=p, n_tests=len(family)) for gain, p in zip(family, values, strict=True)]
    return [replace(gain, verdict=verdict(gain)) for gain in found]


def too_few(gain: Gain) -> bool:
    """Whether even a difference of the same sign in all patients could not pass the corrected test."""
    return min(1.0, 2.0 ** (1 - gain.n_patients) * gain.n_tests) >= LEVEL


def verdict(gain: Gain) -> str:
    """What may be said of a comparison: a gain needs the interval and the corrected test.

    Where even a difference of the same sign in all patients could not reach :data:`LEVEL` after the correction, there
    are too few to tell, whatever the interval.
    """
    if gain.low is None or gain.high is None or too_few(gain):
        unit = "cases" if gain.n_patients == gain.n_cases else "patients"
        return f"too few {unit} ({gain.n_patients}) to tell"
    outside, significant = gain.low > 0 or gain.high < 0, gain.p_holm < LEVEL
    better = (gain.difference > 0) == (gain.metric in OVERLAP_METRICS)
    if outside and significant:
        return GAIN if better else LOSS
    if outside or significant:
        return "not conclusive: interval and test disagree"
    return "no measurable difference"


def _ranks(rows: Sequence[LoadedRow]) -> list[Rank]:
    values = [over_trainings(row.values("dice")) for row in rows]
    cases = sorted(set.intersection(*(set(each) for each in values)))
    if not cases:
        return []
    dice = np.round([[each[case] for case in cases] for each in values], 12)
    placed = stats.rankdata(-dice, axis=0, method="average")
    best = int(np.argmin(placed.mean(axis=1)))
    others = [number for number in range(len(rows)) if number != best]
    # scans of one patient are one observation to the tests
    known = whose(*rows)
    patients = [known[case] for case in cases]
    means = [patient_means(dict(zip(cases, own.tolist(), strict=True)), known) for own in dice]
    tested = np.round([list(each.values()) for each in means], 12)
    tests = [tested[number] - tested[best] for number in others]
    corrected = holm([_wilcoxon(test) for test in tests])
    friedman = None
    if len(rows) > 2 and tested.shape[1] > 1:
        friedman = 1.0 if (tested == tested[0]).all() else float(stats.friedmanchisquare(*tested).pvalue)
    p_values: dict[int, float | None] = {best: None, **dict(zip(others, corrected, strict=True))}
    found = [
        Rank(row, len(cases), tested.shape[1], float(own.mean()), *bootstrap_interval(own, patients=patients),
             int((score == dice.max(axis=0)).sum()), p_values[number], friedman)
        for number, (row, own, score) in enumerate(zip(rows, placed, dice, strict=True))
    ]  # fmt: skip
    return sorted(found, key=lambda rank: rank.mean)


def _check(name: str, each: Any) -> Check:
    dice, jaccard = (np.array([float(row[metric]) for row in each.rows]) for metric in OVERLAP_METRICS)
    least, most = jaccard_bounds(float(dice.mean()), float(dice.var()))
    deviation = float(np.abs(jaccard - dice / (2 - dice)).max())
    mean = float(jaccard.mean())
    passed = deviation <= IDENTITY and least - IDENTITY <= mean <= most + IDENTITY
    return Check(name, each.run.split, each.run.seed, float(dice.mean()), mean, least, most, deviation, passed)


def _costs(row: LoadedRow) -> Costs:
    records = [each.costs for each in row.trained if each.costs]

    def largest(key: str) -> Any:
        return max((record[key] for record in records if record.get(key) is not None), default=None)

    seconds = [float(record["seconds"]) for record in records if record.get("seconds")]
    steps = [
        sum(session["last"] - session["first"] + 1 for session in record["sessions"])
        for record in records
        if record.get("seconds") and record.get("sessions")
    ]
    whole = [float(record.get("seconds_in_all") or record["seconds"]) for record in records if record.get("seconds")]
    return Costs(
        row=row,
        n_trainings=len(records),
        parameters=largest("parameters"),
        parameters_trained=largest("parameters_trained"),
        macs=largest("macs"),
        patch=next((tuple(record["patch"]) for record in records if record.get("patch")), None),
        hours=float(np.mean(whole)) / 3600 if whole else None,
        seconds_per_iteration=sum(seconds) / sum(steps) if seconds and sum(steps) else None,
        memory=largest("peak_memory_bytes"),
        gpu_memory=largest("peak_gpu_memory_bytes"),
    )

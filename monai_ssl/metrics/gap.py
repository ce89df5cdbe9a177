"""The share of the gap between a floor and a ceiling that an arm closes, over repeated trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .statistics import CONFIDENCE, RESAMPLES, SEED, check_resampling

__all__ = ["GapClosed", "gap_closed"]


@dataclass(frozen=True)
class GapClosed:
    """How much of the gap between a floor and a ceiling an arm closes; made by :func:`gap_closed`.

    Attributes:
        n_repetitions: trainings of each arm.
        n_cases: cases that judge, over all repetitions.
        n_patients: whose they are.
        gain: arm minus floor; gain_low and gain_high bound it.
        gap: ceiling minus floor; gap_low and gap_high bound it.
        share: gain / gap, 1 where the arm reaches the ceiling; None where the gap is not above 0: there is nothing to
            close.
        share_low, share_high: interval of the share. None where a bound does not exist, because in too many resamples
            the ceiling is no better than the floor; the gain may still have one.
        without_gap: fraction of the resamples in which that is so.
    """

    n_repetitions: int
    n_cases: int
    n_patients: int
    gain: float
    gain_low: float | None
    gain_high: float | None
    gap: float
    gap_low: float | None
    gap_high: float | None
    share: float | None
    share_low: float | None
    share_high: float | None
    without_gap: float


def gap_closed(
    arm: Sequence[Mapping[str, float]],
    floor: Sequence[Mapping[str, float]],
    ceiling: Sequence[Mapping[str, float]],
    confidence: float = CONFIDENCE,
    n_resamples: int = RESAMPLES,
    seed: int = SEED,
    shared_cases: bool = False,
    patients: Mapping[str, str] | None = None,
) -> GapClosed:
    """Share of the gap between floor and ceiling that an arm closes, with a hierarchical bootstrap interval.

    A repetition is one training of each arm (a seed, with its labels) and the cases that judged it. Means are taken
    over the cases of a repetition, then over repetitions, and the share is the ratio of two such means, not the mean of
    ratios. A resample draws repetitions with replacement, and within each drawn one its patients, each with all scans,
    the same for all three arms. Bounds are percentiles. A resample in which the ceiling is no better than the floor has
    no share: it counts as beyond both bounds, which makes the interval wider, never shorter.

    With one repetition only cases are drawn, and the interval says nothing about another training. Three repetitions
    can be drawn in ten ways only: such an interval is rough, and rather too short.

    Args:
        arm: one mapping per repetition, from case name to a value of which more is better
            (:func:`~monai_ssl.metrics.case_values`).
        floor: the same repetitions and cases of the floor.
        ceiling: the same repetitions and cases of the ceiling.
        confidence: coverage, in (0, 1).
        n_resamples: number of resamples.
        seed: seed of the resampling; the same values and seed give the same interval.
        shared_cases: whether a case of the same name in two repetitions is the same scan, as with several seeds on one
            test set. Such a case is then drawn once for all repetitions of a resample: three trainings judged by ten
            scans are not judged by thirty, and the interval is as wide as ten allow.
        patients: case -> patient, of those with several scans (:func:`~monai_ssl.metrics.case_patients`).

    Returns:
        Gain, gap and share with their intervals, in the unit of the values; no intervals for a single patient in all.

    Raises:
        ValueError: if ``confidence`` or ``n_resamples`` is out of range, repetitions or cases differ between the arms
            (the message names them), there are none, or a value is not finite.

    Example:
        >>> found = gap_closed(arm=[{"a": 0.8, "b": 0.7}], floor=[{"a": 0.7, "b": 0.7}], ceiling=[{"a": 0.9, "b": 0.9}])
        >>> round(found.share, 3), round(found.share_low, 3), round(found.share_high, 3)
        (0.25, 0.0, 0.5)
    """
    check_resampling(confidence, n_resamples)
    groups = _paired(arm, floor, ceiling)
    names = [list(repetition) for repetition in arm]
    whose = [[(patients or {}).get(case, f"case:{case}") for case in cases] for cases in names]
    if shared_cases:
        n_cases, n_patients = (len({name for each in listed for name in each}) for listed in (names, whose))
    else:
        n_cases, n_patients = sum(map(len, names)), sum(len(set(each)) for each in whose)
    gain, gap = np.mean([group.mean(axis=0) for group in groups], axis=0).round(12).tolist()
    share = gain / gap if gap > 0 else None
    if n_patients < 2:
        return GapClosed(
            len(groups), n_cases, n_patients, gain, None, None, gap, None, None, share, None, None, float(gap <= 0)
        )
    if shared_cases:
        draws = _resampled_together(groups, whose, n_resamples, seed)
    else:
        draws = _resampled_means(groups, whose, n_resamples, seed)
    room = draws[:, 1] > 0
    ratio = np.divide(draws[:, 0], draws[:, 1], where=room, out=np.zeros(len(draws)))
    edges = ((1 - confidence) / 2, (1 + confidence) / 2)

    def bounds(low: np.ndarray, high: np.ndarray) -> tuple[float | None, float | None]:
        # values that were drawn: between a value and infinity there is nothing to interpolate
        found = np.quantile(low, edges[0], method="lower"), np.quantile(high, edges[1], method="higher")
        least, most = (float(value) if np.isfinite(value) else None for value in found)
        return least, most

    share_bounds = bounds(np.where(room, ratio, -np.inf), np.where(room, ratio, np.inf)) if gap > 0 else (None, None)
    return GapClosed(
        len(groups), n_cases, n_patients, gain, *bounds(draws[:, 0], draws[:, 0]), gap,
        *bounds(draws[:, 1], draws[:, 1]), share, *share_bounds, float(1 - room.mean()),
    )  # fmt: skip


def _paired(*arms: Sequence[Mapping[str, float]]) -> list[np.ndarray]:
    """For each repetition, arm minus floor and ceiling minus floor of every case, shape (cases, 2)."""
    counts = [len(repetitions) for repetitions in arms]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(f"arm, floor and ceiling must hold the same repetitions, at least one, got {counts}")
    groups = []
    for number, (arm, floor, ceiling) in enumerate(zip(*arms, strict=True)):
        odd = sorted((arm.keys() | floor.keys() | ceiling.keys()) - (arm.keys() & floor.keys() & ceiling.keys()))
        if odd or not arm:
            what = f"not in all of them: {odd[:5]}" if odd else "none"
            raise ValueError(f"arm, floor and ceiling must hold the same cases, got in repetition {number} {what}")
        values = np.array([[arm[case], ceiling[case], floor[case]] for case in arm], dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"values must be finite, got {values[~np.isfinite(values)][0]} in repetition {number}")
        # equal values must leave no gap through floating-point noise
        groups.append(np.round(values[:, :2] - values[:, 2:], 12))
    return groups


def _resampled_means(
    groups: Sequence[np.ndarray], whose: Sequence[Sequence[str]], n_resamples: int, seed: int
) -> np.ndarray:
    """Means over drawn repetitions of means over the scans of drawn patients, shape (n_resamples, 2)."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(groups), (n_resamples, len(groups)))
    means = np.empty((*drawn.shape, 2))
    for number, (group, patients) in enumerate(zip(groups, whose, strict=True)):
        places = drawn == number
        column = {patient: place for place, patient in enumerate(dict.fromkeys(patients))}
        size = len(column)
        # how often each patient is drawn: far smaller than the drawn patients themselves
        counts = generator.multinomial(size, np.full(size, 1 / size), int(places.sum()))
        own = counts[:, [column[patient] for patient in patients]]
        means[places] = own @ group / own.sum(axis=1, keepdims=True)
    return means.mean(axis=1).round(12)


def _resampled_together(
    groups: Sequence[np.ndarray], whose: Sequence[Sequence[str]], n_resamples: int, seed: int
) -> np.ndarray:
    """As :func:`_resampled_means`, where repetitions with a patient in common draw their patients together."""
    linked = _linked(whose)
    unions = [list(dict.fromkeys(name for number in members for name in whose[number])) for members in linked]
    drawn, counts = _drawn_together(len(groups), tuple(len(union) for union in unions), n_resamples, seed)
    means = np.empty((n_resamples, len(groups), 2))
    for members, union, count in zip(linked, unions, counts, strict=True):
        place = {name: column for column, name in enumerate(union)}
        for number in members:
            own = count[:, [place[name] for name in whose[number]]].astype(np.float64)
            own[own.sum(axis=1) == 0] = 1  # none of its patients was drawn: it keeps its mean
            means[:, number] = own @ groups[number] / own.sum(axis=1, keepdims=True)
    return means[np.arange(n_resamples)[:, None], drawn].mean(axis=1).round(12)


@lru_cache(maxsize=8)  # a page asks for many intervals over the same repetitions and cases
def _drawn_together(
    repetitions: int, sizes: tuple[int, ...], n_resamples: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Drawn repetitions, shape (n_resamples, repetitions), and of each set how often its patients are drawn."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, repetitions, (n_resamples, repetitions))
    return drawn, [generator.multinomial(size, np.full(size, 1 / size), n_resamples) for size in sizes]


def _linked(names: Sequence[Sequence[str]]) -> list[list[int]]:
    """Numbers of the repetitions that have a name in common, directly or through others."""
    found: list[tuple[set[str], list[int]]] = []
    for number, each in enumerate(names):
        own, members = set(each), [number]
        apart = []
        for others, linked in found:
            if own.isdisjoint(others):
                apart.append((others, linked))
            else:
                own, members = own | others, linked + members
        found = [*apart, (own, sorted(members))]
    return sorted(members for _, members in found)

"""The sentences at the head of a comparison: only from the numbers, and no more than they show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_ssl.metrics.results import read_results
from monai_ssl.metrics.statistics import Comparison, compare
from monai_ssl.reports.numbers import DASH, interval_text, metric_unit, number_text, p_value_text, plural
from monai_ssl.reports.page import Table
from monai_ssl.reports.run import ROLE_NAMES, ROLES, STATED, WEIGHT, LoadedRun, role_beside, run_name, training_of

__all__ = ["answer", "comparison_sentence", "findings", "missing_references", "summary_lines", "verdict", "warnings"]

# settings in which runs of different roles differ by definition
BY_ROLE = {
    "matched_floor": {WEIGHT},
    "floor": {"bundle", "datalist", WEIGHT, "unlabeled_batch_size", "unlabeled cases", "network_def#_target_"},
    "reference": set(),
}
BY_ROLE["ceiling"] = BY_ROLE["floor"] | {"labeled cases"}
QUESTIONS = {
    "matched_floor": "differ in more than the weight of the unsupervised terms",
    "floor": "differ in more than the method",
    "ceiling": "differ in more than method and labels",
    "reference": "differ",
}
# differences that a sentence lists; the table has all
LISTED = 8


def comparison_sentence(comparison: Comparison, name_a: str, name_b: str) -> str:
    """Say in one sentence what a paired comparison shows, and no more than it shows.

    "Gain" and "loss" need both an interval that excludes zero and p < 0.05.

    Args:
        comparison: result of :func:`~monai_ssl.metrics.compare`.
        name_a: name of the first run.
        name_b: name of the second run.

    Returns:
        The sentence, as plain text.

    Example:
        >>> result = Comparison(metric="dice", label=None, n=20, n_patients=20, mean_a=0.884, mean_b=0.881,
        ...     mean_difference=0.003, median_difference=0.002, ci_low=-0.008, ci_high=0.014, p_value=0.5,
        ...     higher_is_better=True, wins=11, losses=9, ties=0)
        >>> comparison_sentence(result, "dtc", "matched floor")
        'dtc minus matched floor: +0.3 points [−0.8, 1.4], p = 0.50, better on 11 of 20 cases: no measurable gain.'
    """
    scale, digits, unit = metric_unit(comparison.metric)
    number = number_text(comparison.mean_difference, digits, scale, sign=True)
    interval = interval_text(comparison.ci_low, comparison.ci_high, digits, scale)
    cases = f"better on {comparison.wins} of {plural(comparison.n, 'case')}"
    text = f"{name_a} minus {name_b}: {number} {unit}" + (f" {interval}" if comparison.ci_low is not None else "")
    return f"{text}, {p_value_text(comparison.p_value)}, {cases}: {verdict(comparison)}."


def verdict(comparison: Comparison) -> str:
    """What may be said of a comparison, in a few words."""
    # Wilcoxon's smallest two-sided p at 5 observations is 0.0625
    if comparison.ci_low is None or comparison.ci_high is None or comparison.n_patients < 6:
        unit = "cases" if comparison.n_patients == comparison.n else "patients"
        return f"too few {unit} ({comparison.n_patients}) to tell"
    direction = 1 if comparison.higher_is_better else -1
    outside = comparison.ci_low > 0 or comparison.ci_high < 0
    significant = comparison.p_value < 0.05
    better = comparison.mean_difference * direction > 0
    if outside and significant:
        return "a measurable gain" if better else "a measurable loss"
    if outside or significant:
        return "not conclusive (interval and test disagree)"
    return "no measurable gain"


def by_role(runs: Sequence[LoadedRun]) -> dict[str, list[LoadedRun]]:
    """Runs of every role."""
    return {role: [run for run in runs if run.role == role] for role in ROLES}


def pairs(runs: Sequence[LoadedRun]) -> list[tuple[LoadedRun, LoadedRun]]:
    """Every method against matched floor, floor, reference and ceiling; and the matched floor against the floor."""
    group = by_role(runs)
    others = ("matched_floor", "floor", "reference", "ceiling")
    found = [(method, other) for method in group["method"] for role in others for other in group[role]]
    return found + [(matched, floor) for matched in group["matched_floor"] for floor in group["floor"]]


def answer(run: LoadedRun) -> str:
    """How one run did, in one sentence."""
    block = run.summary["mean"]
    dice, n = block["dice"], block["n"]
    over = f", mean over {len(run.summary['classes'])} classes" if len(run.summary["classes"]) > 1 else ""
    text = f"{run.name}: Dice {number_text(dice['mean'], 1, 100)} %{over} on {plural(n, 'case')}"
    if n > 1:
        interval = interval_text(dice["ci_low"], dice["ci_high"], 1, 100)
        text += f" (median {number_text(dice['median'], 1, 100)}, 95 % interval of the mean {interval})"
    return f"{text}, {block['n_failed']} failed.{nothing_drawn(run.summary)}"


def nothing_drawn(summary: dict[str, Any]) -> str:
    """A sentence where predictions are empty that should not be; else nothing."""
    status = summary["mean"]["status"]
    empty = status.get("empty_prediction", 0)
    if not empty:
        return ""
    drawn = status.get("ok", 0) + status.get("empty_reference", 0)
    several = len(summary["classes"]) > 1
    if not drawn:
        if several:
            return " Every class of every prediction is empty: the network draws nothing."
        return f" Every prediction is empty: the network draws no {next(iter(summary['classes']))}."
    if several:
        return f" Predictions lack a class that the label has: {plural(empty, 'time')}."
    return f" {empty} predictions are empty." if empty > 1 else " One prediction is empty."


def warnings(runs: Sequence[LoadedRun]) -> list[str]:
    """What makes the numbers other than they look: unfinished or alarming runs, other differences than the question."""
    sentences = []
    for run in runs:
        training = run.run.training
        if training is not None and training.unfinished:
            sentences.append(
                f"{run.name} is unfinished: weights of iteration {training.iteration} of {training.max_iterations}."
            )
        if training is not None:
            sentences += [f"Alarm in the training of {run.name}: {text}." for text in training.alarms]
    for first, second in pairs(runs):
        one, two = first.run.training, second.run.training
        if one is None or two is None or first.role == "matched_floor":
            continue
        found = [
            f"{key} ({_shown(key, a)} and {_shown(key, b)})"
            for key, a, b in one.differences(two)
            if key not in BY_ROLE[second.role]
        ]
        if found:
            rest = f" and {len(found) - LISTED} more, in the table of settings" if len(found) > LISTED else ""
            one_question = second.role == "reference" and len(found) == 1
            whole = "" if one_question else " The difference of their scores is due to all of it."
            sentences.append(
                f"{first.name} and {second.name} {QUESTIONS[second.role]}: {', '.join(found[:LISTED])}{rest}.{whole}"
            )
    return sentences


def _shown(key: str, value: Any) -> str:
    return str(value) if value is not None else "unknown" if key in STATED else "default"


def settings_table(runs: Sequence[LoadedRun]) -> Table | None:
    """Settings in which the runs differ, one column per run; None where there are none."""
    known = [(run, run.run.training) for run in runs if run.run.training is not None]
    resolved = {key for _, training in known if training for key in training.resolved}
    keys = list(dict.fromkeys(key for _, training in known if training for key in training.known))
    rows = []
    for key in keys:
        values = [training.known.get(key, DASH if key in resolved else None) for _, training in known if training]
        stated = [value for value in values if value != DASH]  # what only one of several methods has is no difference
        if any(value != stated[0] for value in stated):
            rows.append([key, *(value if value == DASH else _shown(key, value) for value in values)])
    if not rows:
        return None
    return Table(["Setting", *(run.name for run, _ in known)], rows, range(len(known) + 1))


def findings(runs: Sequence[LoadedRun]) -> list[str]:
    """The answer first: of a comparison, what the method gains; of a single evaluation, how it did."""
    group = by_role(runs)
    sentences = [
        comparison_sentence(compare(first.rows, second.rows), first.name, second.name)
        for first, second in pairs(runs)
        if first.role == "method" and second.role != "ceiling"
    ]
    if group["floor"] and group["matched_floor"]:
        floor, matched = (group[role][0].summary["mean"]["dice"] for role in ("floor", "matched_floor"))
        for run in group["method"]:
            dice = run.summary["mean"]["dice"]
            total, passes, rest = (
                number_text(part, 1, 100, sign=True)
                for part in (
                    dice["mean"] - floor["mean"],
                    matched["mean"] - floor["mean"],
                    dice["mean"] - matched["mean"],
                )
            )
            median = number_text(dice["median"] - floor["median"], 1, 100, sign=True)
            sentences.append(
                f"Of the {total} Dice points between the floor and {run.name}, {passes} come with the matched floor "
                f"and {rest} with the unsupervised loss; the medians differ by {median} points."
            )
    return sentences + [answer(run) for run in group["method"] or runs]


def missing_references(runs: Sequence[LoadedRun]) -> list[str]:
    """What a comparison would need and this one lacks."""
    group = by_role(runs)
    if not group["method"]:
        return ["No run in this report uses the unlabeled images: it states results and compares nothing."]
    trainings = [run.run.training for run in group["method"]]
    if all(training is not None and not training.uses_unlabeled for training in trainings):
        return []  # floors tell what unlabeled images bring, of which these have learned nothing
    sentences = []
    if not group["matched_floor"]:
        sentences.append(
            "No matched floor is given (the same batches with the unsupervised weight at 0), so this report cannot "
            "tell a gain from the unlabeled images' loss from one of batch size, batch norm or network."
        )
    texts = {"floor": "No floor (labeled cases only) is given.", "ceiling": "No ceiling (all labels) is given."}
    absent = [text for role, text in texts.items() if not group[role]]
    return sentences + ([" ".join(absent)] if absent else [])


# ------------------------------------------------------------------------------------------------ for the terminal


def summary_lines(results: str | os.PathLike[str], against: str | os.PathLike[str] | None = None) -> list[str]:
    """A few lines about an evaluation for the terminal: one per class, and how it compares with another.

    Args:
        results: results folder.
        against: results folder of another run on the same cases.

    Returns:
        The lines.

    Example:
        >>> print(*summary_lines("runs/dtc/evaluation-testing"), sep="\\n")  # doctest: +SKIP
    """
    read = read_results(results)
    mean, classes = read.summary["mean"], read.summary["classes"]
    lines = []
    for name, block in (classes if len(classes) == 1 else {**classes, "mean": mean}).items():
        dice, hd = block["dice"], block["hd95_mm"]
        line = f"{name}: Dice {dice['mean']:.4f}"
        if dice["sd"] is not None:  # more than one case
            line += f" +- {dice['sd']:.4f} [median {dice['median']:.4f}"
            if dice["ci_low"] is not None:  # of more than one patient
                line += f"; 95 % interval {dice['ci_low']:.4f} to {dice['ci_high']:.4f}"
            line += "]"
        lines.append(f"{line}, 95HD {hd['mean']:.2f} mm, n = {dice['n']}, failed {block['n_failed']}")
    if empty := nothing_drawn(read.summary).strip():
        lines.append(empty)
    if against is not None:
        other = read_results(against)
        name_a, name_b, _ = names_beside(Path(results), read.meta, Path(against), other.meta)
        lines.append(comparison_sentence(compare(read.rows, other.rows), name_a, name_b))
    return lines


def names_beside(results: Path, meta: dict[str, Any], other: Path, other_meta: dict[str, Any]) -> tuple[str, str, str]:
    """Names of an evaluation and of one that it is compared with, and the role of the latter."""
    role = role_beside(training_of(results, meta), training_of(other, other_meta))
    return run_name(results, meta), f"{run_name(other, other_meta)} ({ROLE_NAMES[role]})", role

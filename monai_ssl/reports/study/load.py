"""A study as its folders hold it: every row with the trainings that were scored, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.metrics.cases import Row
from monai_ssl.metrics.results import read_results
from monai_ssl.metrics.statistics import case_patients, case_values
from monai_ssl.reports.run import Training, method_color, training_of
from monai_ssl.reports.study.quoted import QuotedFigure
from monai_ssl.reports.study.rows import ROLES, Role, StudyRow, StudyRun

__all__ = ["Key", "LoadedRow", "Study", "Trained", "load_study", "read_json"]

SELF_TRAINING = "self_training.json"

Key = tuple[str, int]
"""Split and seed: what two trainings that are compared have in common."""

FLOOR_COLOR, CEILING_COLOR = "#7b8794", "#009E73"
ROLE_NAMES: dict[str, str] = {
    "floor": "floor",
    "no_pool": "without pool",
    "matched_floor": "matched floor",
    "method": "method",
    "ensemble": "ensemble",
    "oracle": "oracle",
    "ceiling": "ceiling",
    "quoted": "quoted",
}


@dataclass(frozen=True, eq=False)
class Trained:
    """One training with its scores, and what its folders say of it.

    Attributes:
        run: as the study names it.
        rows: one per case and class.
        meta: of the evaluation.
        training: how it was trained, as far as anything says so.
        record: content of ``run.json``; empty where there is none.
        costs: content of ``costs.json``; empty where there is none. Of a self-training, ``seconds_in_all`` and
            ``parts`` tell what floors, labels and all rounds took together.
    """

    run: StudyRun
    rows: list[Row]
    meta: dict[str, Any]
    training: Training | None
    record: dict[str, Any]
    costs: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.run.split, self.run.seed

    @property
    def cases(self) -> frozenset[str]:
        """Names of the scored cases."""
        return frozenset(str(row["case"]) for row in self.rows)


@dataclass(frozen=True, eq=False)
class LoadedRow:
    """A row with its scored trainings, in the order of split and seed.

    Attributes:
        row: as the study names it.
        trained: its trainings.
        color: in every figure; that of its method.
    """

    row: StudyRow
    trained: tuple[Trained, ...]
    color: str

    @property
    def title(self) -> str:
        return self.row.title

    @property
    def classes(self) -> list[str]:
        """Scored classes, in the order of their values."""
        rows = self.trained[0].rows if self.trained else []
        return [name for _, name in sorted({(int(row["label"]), str(row["class"])) for row in rows})]

    def values(self, metric: str, label: str | None = None) -> dict[Key, dict[str, float]]:
        """Of every training, the value of each case: of class ``label``, or the mean over the classes."""
        return {each.key: case_values(each.rows, metric, label) for each in self.trained}


@dataclass(frozen=True)
class Study:
    """Everything that the page is made of.

    Attributes:
        rows: in the order of the tables: data set, labels, role, as given.
        missing: runs whose scores are not there, and why.
        quoted: figures of papers.
    """

    rows: list[LoadedRow]
    missing: list[tuple[StudyRun, str]]
    quoted: list[QuotedFigure]

    @property
    def groups(self) -> dict[tuple[str, str, str], list[LoadedRow]]:
        """Rows that may be compared: those of a data set, flavor and section."""
        found: dict[tuple[str, str, str], list[LoadedRow]] = {}
        for row in self.rows:
            found.setdefault(row.row.group, []).append(row)
        return found

    @property
    def methods(self) -> list[LoadedRow]:
        """Rows of methods, whether anything of them is scored or not."""
        return [row for row in self.rows if row.row.role == "method"]

    def group_name(self, group: tuple[str, str, str]) -> str:
        """The data set, with what tells it from others of the study."""
        others = list(self.groups)
        more = [group[place] for place in (1, 2) if len({other[place] for other in others}) > 1 and group[place]]
        return f"{group[0]} ({', '.join(more)})" if more else group[0]

    def reference(self, row: LoadedRow, role: Role) -> LoadedRow | None:
        """The control of a row; None where the study has none.

        One that names the row comes first. Else one that serves all: a ceiling of the same data set, any other with as
        many labels.
        """
        of = row.row.of if row.row.role != "method" and row.row.of else row.row.name
        same = [other for other in self.rows if other.row.role == role and other.row.group == row.row.group]
        own = [other for other in same if other.row.of == of and other is not row]
        serving = [other for other in same if not other.row.of and other is not row]
        if role != "ceiling":
            serving = [other for other in serving if other.row.n_labeled == row.row.n_labeled]
        # of several (variants of a study), the one trained most alike
        settings = row.row.settings
        serving.sort(key=lambda other: -sum(other.row.settings.get(key) == settings[key] for key in settings))
        return next(iter([*own, *serving]), None)


def load_study(rows: Sequence[StudyRow], runs: Sequence[StudyRun], quoted: Sequence[QuotedFigure] = ()) -> Study:
    """Read the scores of all runs.

    Raises:
        ValueError: if there is no row, names repeat, a run or control names no row, two runs of a row have the same
            seed and split, or rows of one data set were scored on other classes.
    """
    _check(rows, runs)
    missing: list[tuple[StudyRun, str]] = []
    trained: dict[str, list[Trained]] = {row.name: [] for row in rows}
    for run in runs:
        try:
            results = read_results(run.evaluation)
        except FileNotFoundError:
            missing.append((run, "not scored" if (run.run / "run.json").is_file() else "not trained"))
            continue
        except ValueError as error:
            missing.append((run, f"its results cannot be read: {error}"))
            continue
        trained[run.row].append(
            Trained(run, results.rows, results.meta, training_of(run.evaluation, results.meta),
                    read_json(run.run / "run.json"), _costs(run))
        )  # fmt: skip
    colors = _colors(rows)
    order = {name: number for number, name in enumerate(dict.fromkeys(row.dataset for row in rows))}
    place = {row.name: number for number, row in enumerate(rows)}

    def position(row: StudyRow) -> tuple[Any, ...]:
        # a ceiling serves all numbers of labels: last
        labels = (1, 0) if row.role == "ceiling" else (0, row.n_labeled)
        return order[row.dataset], row.group, labels, _rank(row, rows), place[row.name]

    loaded = [
        LoadedRow(row, tuple(sorted(trained[row.name], key=lambda each: each.key)), colors[row.name])
        for row in sorted(rows, key=position)
    ]
    _tell_patients(loaded)
    study = Study(loaded, missing, list(quoted))
    for group, members in study.groups.items():
        scored = [row for row in members if row.trained]
        for row in scored:
            odd = next((each for each in row.trained if _classes(each) != _classes(scored[0].trained[0])), None)
            if odd is not None:
                raise ValueError(
                    f"rows of {group[0]!r} must be scored on the same classes, got {_classes(scored[0].trained[0])} "
                    f"for {scored[0].row.name!r} and {_classes(odd)} for {row.row.name!r}"
                )
    return study


def _tell_patients(rows: Sequence[LoadedRow]) -> None:
    """The column `patient` for all scores of a data set, where those of any row have it: older ones lack it."""
    for dataset in {row.row.dataset for row in rows}:
        own = [row for row in rows if row.row.dataset == dataset]
        if any(score.get("patient") for row in own for each in row.trained for score in each.rows):
            known = whose(*own)
            for score in (score for row in own for each in row.trained for score in each.rows):
                score["patient"] = known[str(score["case"])]


def _check(rows: Sequence[StudyRow], runs: Sequence[StudyRun]) -> None:
    names = [row.name for row in rows]
    if not names:
        raise ValueError("rows must hold at least one StudyRow, got none")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"rows must have names of their own, got {twice} more than once")
    if lost := sorted({row.of for row in rows if row.of and row.of not in names}):
        raise ValueError(f"of must be the name of a row, got {lost}")
    if lost := sorted({run.row for run in runs if run.row not in names}):
        raise ValueError(f"runs must name rows of the study, got {lost}")
    keys = [(run.row, run.split, run.seed) for run in runs]
    if again := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise ValueError(f"runs of a row must differ in split or seed, got {again[0]} twice")


def _rank(row: StudyRow, rows: Sequence[StudyRow]) -> tuple[int, int, int]:
    """Floors, then every method after its controls, then what belongs to none."""
    methods = [other.name for other in rows if other.role == "method"]
    own = row.name if row.role == "method" else row.of
    role = ROLES.index(row.role)
    if own in methods:
        return 1, methods.index(own), role
    return (0 if role < ROLES.index("method") else 2), role, 0


def _classes(each: Trained) -> list[str]:
    return sorted({str(row["class"]) for row in each.rows})


def _colors(rows: Sequence[StudyRow]) -> dict[str, str]:
    """A color for every row: a method has the same in all data sets, and its controls have it, too."""
    titles = list(dict.fromkeys(row.title for row in rows if row.role == "method"))
    methods = {row.name: method_color(titles.index(row.title), len(titles)) for row in rows if row.role == "method"}
    serving = {"floor": FLOOR_COLOR, "ceiling": CEILING_COLOR}
    return {
        row.name: methods.get(row.name) or serving.get(row.role) or methods.get(row.of) or FLOOR_COLOR for row in rows
    }


def _costs(run: StudyRun) -> dict[str, Any]:
    """What a training cost; of a self-training, every part of it."""
    own = read_json(run.run / "costs.json")
    if run.chain is None:
        return own
    told = read_json(run.chain / SELF_TRAINING)
    names = [*told.get("floors", []), *told.get("rounds", []), *filter(None, [told.get("fine_tuned")])]
    parts = {name: read_json(run.chain / name / "costs.json").get("seconds") for name in names}
    took = told.get("seconds", {})
    parts |= {name: took.get(name) for name in told.get("pseudo_labels", []) if name in took}
    if not parts or not all(parts.values()):
        return own
    return {**own, "seconds_in_all": sum(parts.values()), "parts": parts}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def paired(
    first: LoadedRow, second: LoadedRow, metric: str, label: str | None = None, borrow: bool = False
) -> tuple[dict[Key, tuple[dict[str, float], dict[str, float]]], bool]:
    """Values of the trainings that two rows have in common: same split, same seed, same cases.

    Args:
        first: a row.
        second: another.
        metric: column of the scores.
        label: class; None for the mean over the classes.
        borrow: where ``second`` has no training of a seed, take the mean over its trainings of the same split (or of no
            split) that were scored on the same cases.

    Returns:
        Both rows' values by split and seed; and whether anything was borrowed.
    """
    one, two = first.values(metric, label), second.values(metric, label)
    found: dict[Key, tuple[dict[str, float], dict[str, float]]] = {}
    borrowed = False
    for key, values in one.items():
        other = two.get(key)
        if other is None and borrow:
            alike = [each for (split, _), each in two.items() if split in (key[0], "") and each.keys() == values.keys()]
            if alike:
                other = {case: float(np.mean([each[case] for each in alike])) for case in values}
                borrowed = True
        if other is not None and other.keys() == values.keys():
            found[key] = values, other
    return found, borrowed


def whose(*rows: LoadedRow) -> dict[str, str]:
    """The patient of every case that rows of one data set were scored on; scores of any row may say it."""
    return case_patients(*(each.rows for row in rows for each in row.trained))


def over_trainings(repetitions: Mapping[Key, Mapping[str, float]]) -> dict[str, float]:
    """Of every case the mean over the trainings that it judged."""
    found: dict[str, list[float]] = {}
    for values in repetitions.values():
        for case, value in values.items():
            found.setdefault(case, []).append(value)
    return {case: float(np.mean(found[case])) for case in sorted(found)}

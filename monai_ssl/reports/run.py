"""What a page must know about one run: its scores, its role in a comparison, how it was trained, its pictures."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_ssl.data.cases import case_names, image_files, prediction_files
from monai_ssl.data.loading import load_datalist
from monai_ssl.data.reading import LabelFile
from monai_ssl.errors import DataError
from monai_ssl.metrics.cases import Row
from monai_ssl.metrics.results import Results, read_results
from monai_ssl.metrics.statistics import case_patients, check_same_cases, summarize

__all__ = ["ROLES", "ROLE_NAMES", "LoadedRun", "Overlay", "ReportRun", "Training", "load_runs", "report_run"]

ROLE_NAMES = {
    "floor": "floor",
    "matched_floor": "matched floor",
    "reference": "reference",
    "method": "method",
    "ceiling": "ceiling",
}
ROLES = tuple(ROLE_NAMES)
# names of runs by role, where there is nothing better
TITLES = {
    "floor": "supervised (floor)",
    "matched_floor": "{bundle} at weight 0 (matched floor)",
    "reference": "{bundle} (reference)",
    "method": "{bundle}",
    "ceiling": "supervised, all labels (ceiling)",
}
WEIGHT = "method#unsupervised_weight"
# what every complete record states: where it is missing it is unknown, not the default
STATED = {"bundle", "dataset", "datalist", "flavor", "max_iterations", "test_time_augmentation"}
# entries of run.json that say where and when, not how a run was trained
NO_SETTINGS = {
    "command", "repeat", "status", "machine", "versions", "overrides", "dataset_dir", "iteration", "resolved",
    "members", "n_labeled", "alarms",
}  # fmt: skip
NO_OVERRIDES = {"num_workers", "device", "resume", "output_dir", "save_interval", "val_interval", "tensorboard"}
LOGS = ("training.csv", "validation.csv")

_ROLE_COLORS = {"floor": "#7b8794", "matched_floor": "#E69F00", "ceiling": "#009E73"}
_METHOD_COLORS = ("#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Overlay:
    """Arrays or image files of one case, for the pictures.

    Args:
        image: array (X, Y[, Z]) or path.
        label: integer label map or path.
        prediction: integer label map of this run, or path.
        spacing: voxel size per axis; None takes it from the files (arrays: 1).
    """

    image: Any
    label: Any
    prediction: Any
    spacing: Sequence[float] | None = None


@dataclass(frozen=True)
class Training:
    """How a run was trained, as far as its record says.

    Attributes:
        settings: what decides the weights, by name: bundle, data set, datalist, iterations, overridden ids.
        iteration: iterations of the scored weights; None where nobody knows.
        max_iterations: iterations that were asked for.
        n_labeled: labeled cases; None where the datalist is gone.
        alarms: what the training's alarms said.
        members: how many trainings; more than one where the mean of several networks was scored.
        resolved: what the training came to use, defaults included, as far as its checkpoint says; wins over settings.

    Example:
        >>> record = {"bundle": "dtc", "max_iterations": 300, "overrides": {"seed": 1, "device": "cpu"}}
        >>> training = Training.of(record, iteration=100)
        >>> training.settings, training.unfinished
        ({'bundle': 'dtc', 'max_iterations': 300, 'seed': 1}, True)
    """

    settings: Mapping[str, Any]
    iteration: int | None = None
    max_iterations: int | None = None
    n_labeled: int | None = None
    resolved: Mapping[str, Any] = field(default_factory=dict)
    members: int = 1
    alarms: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any], iteration: int | None = None) -> Training:
        """From the content of a ``run.json``."""
        settings = {key: value for key, value in record.items() if key not in NO_SETTINGS and value is not None}
        overrides = {key: value for key, value in record.get("overrides", {}).items() if key not in NO_OVERRIDES}
        settings = {**settings, **overrides}
        for key in ("bundle", "datalist"):  # folders differ between machines
            if key in settings:
                settings[key] = Path(str(settings[key])).name
        if "flavour" in settings:  # until version 0.1
            settings["flavor"] = settings.pop("flavour")
        if iteration is None:
            iteration = record.get("iteration")
        if iteration is None and record.get("status") == "complete":
            iteration = record.get("max_iterations")
        members = len(record.get("members") or [None])
        if members > 1:
            settings["networks averaged"] = members
        n_labeled = record.get("n_labeled")
        with contextlib.suppress(DataError, KeyError, OSError):
            n_labeled = load_datalist(record["datalist"], record["dataset_dir"]).counts()["training"]
        return cls(settings, iteration, record.get("max_iterations"), n_labeled, record.get("resolved") or {},
                   members, tuple(map(str, record.get("alarms") or ())))  # fmt: skip

    @property
    def bundle(self) -> str:
        """Name of the bundle."""
        return str(self.settings.get("bundle", "run"))

    @property
    def unfinished(self) -> bool:
        """Whether the weights are known to be those of an interrupted training."""
        return None not in (self.iteration, self.max_iterations) and self.iteration != self.max_iterations

    @property
    def unsupervised_weight(self) -> float:
        """Factor of the unsupervised terms; 1 where it was not changed."""
        value = self.settings.get(WEIGHT, 1.0)
        try:
            return float(value)
        except ValueError:  # several, of an ensemble
            return 1.0

    @property
    def uses_unlabeled(self) -> bool:
        """Whether the weights owe anything to a loss on unlabeled images."""
        return self.unsupervised_weight != 0 and not learns_from_labels_alone(self.bundle)

    @property
    def known(self) -> dict[str, Any]:
        """Settings, and what they came to be."""
        return {**self.settings, **self.resolved}

    def differences(self, other: Training) -> list[tuple[str, Any, Any]]:
        """Settings that differ, with both values; None is the default. What one record does not state is left out.

        So is what only one of two different methods has.

        Example:
            >>> one, two = (Training.of({"bundle": "dtc", "overrides": {"seed": seed}}) for seed in (1, 2))
            >>> one.differences(two)
            [('seed', 1, 2)]
        """
        mine, theirs = self.known, other.known
        stated = STATED | self.resolved.keys() | other.resolved.keys()
        return [
            (key, mine.get(key), theirs.get(key))
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key) and not (key in stated and (key not in mine or key not in theirs))
        ]


@dataclass(frozen=True)
class ReportRun:
    """One run in a report.

    Args:
        name: what the reader sees, e.g. "supervised (floor)", "dtc, weight 0 (matched floor)", "dtc".
        results: folder written by :func:`~monai_ssl.metrics.write_results`.
        role: one of ``ROLES``; None reads it from the name ("matched floor", "floor", "ceiling", else "method").
        training_log: CSV with the columns ``iteration``, ``loss``, named terms, ``lr``.
        validation_log: CSV with the columns ``iteration`` and one whose name holds "dice".
        overlays: images by case name; the report shows the method's best, median and worst case among them.
        training: how it was trained; runs that have it are compared in that, too.

    Raises:
        ValueError: if ``role`` is unknown.

    Example:
        >>> ReportRun("dtc, weight 0 (matched floor)", "outputs/floor").role
        'matched_floor'
    """

    name: str
    results: str | os.PathLike[str]
    role: str | None = None
    training_log: str | os.PathLike[str] | None = None
    validation_log: str | os.PathLike[str] | None = None
    overlays: Mapping[str, Overlay] = field(default_factory=dict)
    training: Training | None = None

    def __post_init__(self) -> None:
        role = self.role
        if role is None:
            name = self.name.lower().replace("-", " ").replace("_", " ")
            found = [key for key in ("matched_floor", "floor", "ceiling") if ROLE_NAMES[key] in name]
            role = found[0] if found else "method"
        if role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}, got {role!r}")
        object.__setattr__(self, "role", role)


@dataclass(frozen=True)
class LoadedRun:
    """A :class:`ReportRun` with its scores, their summary, and its color in every figure."""

    run: ReportRun
    results: Results
    summary: dict[str, Any]
    color: str

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def role(self) -> str:
        return self.run.role or "method"

    @property
    def rows(self) -> list[Row]:
        return self.results.rows


def method_color(number: int, total: int) -> str:
    """A color of its own for every run that has none by its role; beyond a palette, from light to dark."""
    if total <= len(_METHOD_COLORS):
        return _METHOD_COLORS[number]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["turbo"](0.05 + 0.9 * number / max(total - 1, 1)))


def load_runs(runs: Sequence[ReportRun]) -> list[LoadedRun]:
    """Read the results of all runs, in the order of :data:`ROLES`.

    Raises:
        ValueError: if there is no run, names repeat, or the runs were scored on different cases or classes.
        FileNotFoundError: if a results folder is not complete.
    """
    if not runs:
        raise ValueError("runs must hold at least one ReportRun, got none")
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise ValueError(f"runs must have names of their own, got {names}")
    loaded: list[LoadedRun] = []
    methods = 0
    tables = {run.name: read_results(run.results) for run in runs}
    if any(row.get("patient") for results in tables.values() for row in results.rows):
        known = case_patients(*(results.rows for results in tables.values()))  # scores of former versions lack it
        for row in (row for results in tables.values() for row in results.rows):
            row["patient"] = known[str(row["case"])]
    for run in sorted(runs, key=lambda item: ROLES.index(item.role or "method")):
        color = _ROLE_COLORS.get(run.role or "")
        if color is None or any(item.color == color for item in loaded):
            color, methods = method_color(methods, len(runs)), methods + 1
        results = tables[run.name]
        loaded.append(LoadedRun(run, results, summarize(results.rows), color))
    for other in loaded[1:]:
        try:
            check_same_cases(loaded[0].rows, other.rows)
        except ValueError as error:
            raise ValueError(
                f"runs must be scored on the same cases and classes, got {loaded[0].name!r} (a) and "
                f"{other.name!r} (b): {error}"
            ) from error
    return loaded


# ---------------------------------------------------------------------------------------- from a results folder


def report_run(results: str | os.PathLike[str], name: str | None = None, role: str | None = None) -> ReportRun:
    """What a page needs of one results folder: pictures, curves and settings, as far as the files are still there.

    Args:
        results: folder that an evaluation wrote.
        name: what the reader sees; None makes it from the role and the run's record.
        role: one of ``ROLES``; None: "method".

    Returns:
        The run.

    Raises:
        FileNotFoundError: if the folder holds no results.

    Example:
        >>> report_run("runs/dtc/evaluation-testing", role="method").name  # doctest: +SKIP
        'dtc'
    """
    folder = Path(results).expanduser()
    meta = read_results(folder).meta
    training = training_of(folder, meta)
    logs = [(run / log if (run := run_folder(folder, meta)) else None) for log in LOGS]
    role = role or "method"
    bundle = training.bundle if training is not None else run_name(folder, meta)
    if training is not None and training.members > 1:
        bundle += f", {training.members} networks"
    return ReportRun(
        name=name or TITLES[role].format(bundle=bundle),
        results=folder,
        role=role,
        training_log=logs[0] if logs[0] is not None and logs[0].is_file() else None,
        validation_log=logs[1] if logs[1] is not None and logs[1].is_file() else None,
        overlays=overlays_of(folder, meta),
        training=training,
    )


def run_folder(results: Path, meta: Mapping[str, Any]) -> Path | None:
    """Folder of the run whose weights were scored: that of the weights, else the one around the results.

    A run that was set aside took its scores along, and another one has its former place.
    """
    if meta.get("ensemble"):
        return None  # of many
    places = [Path(str(meta.get("ckpt", ""))).parent, results.resolve().parent]
    if places[1].parent == places[0] and places[1].name.startswith("previous-"):
        places.reverse()
    for folder in places:
        if (folder / "run.json").is_file():
            return folder
    return None


def run_name(results: Path, meta: Mapping[str, Any]) -> str:
    """A name for what was scored: the run's folder, that of the segmentations, or the bundles of an ensemble."""
    if meta.get("predictions"):
        return Path(str(meta["predictions"])).name
    if meta.get("ensemble"):  # its folder has the names of all members
        members = (meta.get("training") or {}).get("members") or []
        bundles = " + ".join(dict.fromkeys(str(facts.get("bundle")) for facts in members))
        return f"{bundles}, {len(members)} networks"
    folder = run_folder(results, meta) or results.resolve().parent
    return folder.name or "run"


def training_of(results: Path, meta: Mapping[str, Any]) -> Training | None:
    """How the scored run was trained: from the results themselves, else from its ``run.json``."""
    record = meta.get("training")
    if record is None:
        folder = None if meta.get("predictions") else run_folder(results, meta)
        if folder is None:
            return None
        try:
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    if not isinstance(record, Mapping):
        return None
    tta = {key: meta[key] for key in ("test_time_augmentation",) if key in meta}  # of the scores, not of the weights
    return Training.of({**record, **tta})


def role_beside(method: Training | None, other: Training | None) -> str:
    """Role of a run that is given as something to compare with.

    A matched floor is the method's own bundle without the unsupervised terms. A run that learned from labels only is
    a floor if it had as many of them as the method, a ceiling if it had more. Of any other run only a comparison with
    a "reference" can be said.

    Example:
        >>> method, other = (Training.of({"bundle": "dtc", "overrides": {WEIGHT: w}}) for w in (1, 0))
        >>> role_beside(method, other), role_beside(method, None)
        ('matched_floor', 'reference')
    """
    if method is None or other is None:
        return "reference"
    if other.bundle == method.bundle and other.unsupervised_weight == 0 != method.unsupervised_weight:
        return "matched_floor"
    if not learns_from_labels_alone(other.bundle):
        return "reference"
    if other.n_labeled is None or method.n_labeled is None:
        same = other.settings.get("datalist") == method.settings.get("datalist")
        return "floor" if same else "reference"
    if other.n_labeled == method.n_labeled:
        return "floor"
    return "ceiling" if other.n_labeled > method.n_labeled else "reference"


def role_text(run: LoadedRun) -> str:
    """What a run is in a comparison, and its method where its name does not say that.

    One that is evaluated by itself need not be a method that uses unlabeled images.
    """
    training = run.run.training
    if training is None:
        return ROLE_NAMES[run.role]
    text = ROLE_NAMES[run.role]
    if run.role == "method" and not training.uses_unlabeled:
        text = "labels only" if training.unsupervised_weight else "at weight 0"
    return text if training.bundle.lower() in run.name.lower() else f"{text}: {training.bundle}"


def learns_from_labels_alone(bundle: str) -> bool:
    """Whether the method of a shipped bundle looks at no unlabeled image."""
    import importlib

    import yaml

    from monai_ssl.bundle.library import find_bundle

    try:
        text = (find_bundle(bundle) / "configs" / "train.yaml").read_text(encoding="utf-8")
        module, _, name = str(yaml.safe_load(text)["method"]["_target_"]).rpartition(".")
        return not getattr(importlib.import_module(module), name).uses_unlabeled
    except (DataError, OSError, KeyError, TypeError, ImportError, AttributeError, ValueError, yaml.YAMLError):
        return False  # no shipped bundle, or another's


def overlays_of(results: Path, meta: Mapping[str, Any]) -> dict[str, Overlay]:
    """Image, label and prediction of every case that an evaluation wrote, as far as the files are still there."""
    datalist, folder = meta.get("datalist"), meta.get("dataset_dir")
    predictions = Path(meta.get("predictions") or results / "predictions")
    if not datalist or not Path(datalist).is_file() or not predictions.is_dir():
        return {}
    entries = load_datalist(datalist, folder).section(meta["section"])
    stored = {int(value): int(target) for value, target in (meta.get("label_map") or {}).items()}
    found = {}
    for name, entry, files in zip(case_names(entries), entries, prediction_files(predictions, entries), strict=True):
        if len(files) == 1 and "label" in entry:
            label = LabelFile(entry["label"], stored, meta.get("ignore_label"))
            found[name] = Overlay(image_files(entry)[0], label, files[0])
    return found

"""What should not happen in a training, said when it happens: in the log, in ``alarms.json`` and on the page."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_ssl.data.descriptor import (
    Difference,
    appearance_distances,
    descriptor_distances,
    group_difference,
    image_appearance,
    image_descriptor,
)
from monai_ssl.errors import DataError, enumerated
from monai_ssl.files import text_of_cell, write_text
from monai_ssl.handlers.log import VALIDATION
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.reports.run import WEIGHT, Training, role_beside
from monai_ssl.runs.folder import ALARMS, RECORD, Run
from monai_ssl.runs.identity import same

console = logging.getLogger("monai_ssl.console")

# Dice that a class must have had before its absence is a loss
HAD = 0.05
# voxels of a class that pseudo-labels must have had between two validations
VOXELS = 200
# Dice by which a method must lie below its matched floor, on average over the last validations
MARGIN = 0.02
LAST = 3
# a pool is unlike the labels where random regroupings of the scans hardly ever lie as far apart, and by this share
RARE, FAR = 0.001, 0.1
# scans that are compared, and labeled ones that it takes
LABELED, POOL, ENOUGH = 32, 48, 3
# settings in which a method and its matched floor may differ, or that a measurement decides
NOT_COMPARED = {WEIGHT, "precision", "layout"}


class Alarms:
    """Watches a training and raises an alarm when

    - a class that the network drew has vanished from its predictions on validation, or one that the labels have is not
      drawn at all in the second half of the training,
    - the same of the pseudo-labels that the method makes, where it notes them
      (:meth:`~monai_ssl.methods.SemiSupervisedMethod.note_pseudo_labels`),
    - the method lies below its matched floor on validation: by two points of Dice, on average over the last three
      validations of the second half, where a finished run of the floor is in a folder beside,
    - the pool looks unlike the labeled scans: measured once, before the first step, by a permutation test of the energy
      distance of small descriptors of the prepared scans.

    Alarms are rare and each is raised once. They are in ``alarms.json`` of the run folder, and reports repeat them. A
    resumed run forgets those that came after its starting point. Nothing of the training depends on this handler.

    Args:
        output_dir: folder of the run.
        evaluator: the engine that validates; attach this handler to the TRAINER, after its checkpoint's handler.
        labels: class index -> name.

    Example:
        >>> alarms = Alarms("runs/dtc", Engine(lambda engine, batch: None), {0: "background", 1: "left atrium"})
        >>> alarms.path.name
        'alarms.json'
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine, labels: Mapping[int, str]) -> None:
        self.run, self.evaluator, self.labels = Run(output_dir), evaluator, dict(labels)
        self.path = self.run.folder / ALARMS
        self.alarms: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self._counts: dict[int, list[float]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        self.evaluator.add_event_handler(Events.STARTED, self._clear)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        self.evaluator.add_event_handler(Events.COMPLETED, self.check, engine)

    # ------------------------------------------------------------------------------------------------------ the start

    def start(self, engine: Any) -> None:
        """Take up what was said before, and look at the pool where the training begins."""
        if engine.state.rank != 0:
            return
        done = engine.state.iteration
        self.alarms, self.history = self._read()
        self._forget_after(done)
        if done == 0:
            self.alarms, self.history = [], []
            self._look_at_pool(engine)
            self._write()

    def _read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return list(content["alarms"]), list(content["history"])
        except (OSError, ValueError, KeyError, TypeError):
            return [], []

    def _forget_after(self, iteration: int) -> None:
        self.alarms = [alarm for alarm in self.alarms if alarm["iteration"] <= iteration]
        self.history = [row for row in self.history if row["iteration"] <= iteration]

    def _write(self) -> None:
        if self.alarms or self.history or self.path.is_file():
            content = {"alarms": self.alarms, "history": self.history}
            write_text(self.path, json.dumps(content, indent=1) + "\n")

    def _raise(self, iteration: int, kind: str, text: str) -> None:
        """Say it, once per kind."""
        if any(alarm["kind"] == kind for alarm in self.alarms):
            return
        self.alarms.append({"iteration": iteration, "kind": kind, "text": text})
        console.warning("alarm: %s", text)

    def _look_at_pool(self, engine: Any) -> None:
        streams = engine.data_loader
        pool = streams.streams["unlabeled"][0].cases if getattr(streams, "n_unlabeled", 0) else None
        if pool is None or len(streams.labeled) < ENOUGH:
            return
        groups = [_some(streams.labeled, LABELED), _some(pool, POOL)]
        lists = zip((streams.labeled, pool), groups, strict=True)
        cases = [(scans.names[k], scans[k]["image"]) for scans, chosen in lists for k in chosen]
        n = len(groups[0])
        shapes = np.stack([image_descriptor(image) for _, image in cases])
        looks = np.stack([image_appearance(image) for _, image in cases])
        names = [name for name, _ in cases]
        for what, distances in (("pose and shape", descriptor_distances(shapes, shapes)),
                                ("gray values and size", appearance_distances(looks))):  # fmt: skip
            found = group_difference(distances, n)
            if found is not None and _is_far(found):
                farthest = [names[n + k] for k in np.argsort(-distances[n:, :n].min(1), kind="stable")[:3]]
                self._raise(0, f"pool {what}", f"the pool looks unlike the labeled scans in {what}, most of all "
                            f"{enumerated(farthest)}: of another scanner, body part or patient group? What is learned "
                            "from such scans may mislead; look at them, or label some")  # fmt: skip

    # ------------------------------------------------------------------------------------------------- every validation

    def _clear(self, engine: Engine) -> None:
        self._counts = {value: [0.0, 0.0, 0.0] for value in self.labels if value}

    def collect(self, engine: Any) -> None:
        """Count one validation case: Dice and presence of every class."""
        for item in engine.state.output or ():
            drawn, label = (torch.as_tensor(item[key])[0] for key in ("pred", "label"))
            known = label != IGNORE_LABEL
            for value, counts in self._counts.items():
                ours, theirs = (drawn == value) & known, label == value
                n_ours, n_theirs = int(ours.sum()), int(theirs.sum())
                counts[0] += n_ours
                if n_theirs:
                    counts[1] += 2 * int((ours & theirs).sum()) / (n_ours + n_theirs)
                    counts[2] += 1

    def check(self, evaluator: Any, trainer: Any) -> None:
        """Compare this validation with what was before."""
        if trainer.state.rank != 0 or getattr(trainer, "stopping", 0):
            return
        iteration, total = trainer.state.iteration, trainer.total_iterations
        self._forget_after(iteration - 1)
        values = {key: value for key, value in evaluator.state.metrics.items() if isinstance(value, (int, float))}
        metric = next(iter(values), None)
        pseudo = trainer.plain_method.take_pseudo_labels()
        self.history.append({
            "iteration": iteration,
            "metric": None if metric is None or not math.isfinite(values[metric]) else float(values[metric]),
            "classes": {str(value): {"drawn": drawn, "dice": dice / n if n else None, "cases": n}
                        for value, (drawn, dice, n) in self._counts.items()},
            "pseudo_labels": None if pseudo is None else [float(count) for count in pseudo[:-1]],
            "left_open": None if pseudo is None else float(pseudo[-1]),
        })  # fmt: skip
        second_half = 2 * iteration >= total
        for value, name in self.labels.items():
            if value:
                self._check_predictions(value, name, iteration, second_half)
                self._check_pseudo_labels(value, name, iteration, second_half)
        if second_half and metric is not None:
            self._check_floor(metric, iteration, total)
        self._write()

    def _check_predictions(self, value: int, name: str, iteration: int, second_half: bool) -> None:
        rows = [row["classes"][str(value)] for row in self.history if row["classes"].get(str(value), {}).get("cases")]
        if not rows or rows[-1]["drawn"]:
            return
        before = [row["dice"] for row in rows[:-1]]
        if before and before[-1] > HAD:
            self._raise(iteration, f"vanished {value}",
                        f"class {value} ({name}) has vanished from the predictions on validation at iteration "
                        f"{iteration}; before, its Dice was {before[-1]:.2f}")  # fmt: skip
        elif second_half and len(rows) >= LAST and not any(row["drawn"] for row in rows):
            self._raise(iteration, f"never {value}",
                        f"class {value} ({name}) is in the labels, but up to iteration {iteration} not a voxel of it "
                        "has been drawn on validation")  # fmt: skip

    def _check_pseudo_labels(self, value: int, name: str, iteration: int, second_half: bool) -> None:
        rows = [row["pseudo_labels"] for row in self.history if row["pseudo_labels"]]
        rows = [row for row in rows if sum(row) > 0 and value < len(row)]
        if not rows or rows[-1][value]:
            return
        labeled = any(row["classes"].get(str(value), {}).get("cases") for row in self.history)
        before = [row[value] for row in rows[:-1]]
        if len(before) > 1 and min(before[-2:]) > VOXELS:
            self._raise(iteration, f"pseudo-labels vanished {value}",
                        f"class {value} ({name}) has vanished from the pseudo-labels of the pool at iteration "
                        f"{iteration}: the network is being taught that it is not there")  # fmt: skip
        elif second_half and labeled and len(rows) >= LAST and not any(row[value] for row in rows):
            self._raise(iteration, f"pseudo-labels never {value}",
                        f"class {value} ({name}) is in the labels, but up to iteration {iteration} in no pseudo-label "
                        "of the pool: the network is being taught that it is not there")  # fmt: skip

    # -------------------------------------------------------------------------------------------------- matched floor

    def _check_floor(self, metric: str, iteration: int, total: int) -> None:
        own = {row["iteration"]: row["metric"] for row in self.history if row["metric"] is not None}
        recent = [k for k in sorted(own) if 2 * k >= total]
        if len(recent) < LAST and iteration < total:
            return
        for floor in matched_floors(self.run):
            theirs = validation_values(floor.folder, metric)
            common = [k for k in recent if k in theirs][-LAST:]
            if not common or common[-1] != iteration:
                continue
            difference = float(np.mean([own[k] - theirs[k] for k in common]))
            if difference < -MARGIN and _same_training(self.run, floor):
                where = f"iteration {iteration}" if len(common) == 1 else f"its last {len(common)} validations"
                self._raise(iteration, "floor",
                            f"on validation the method lies {-100 * difference:.1f} points of Dice below its matched "
                            f"floor, {floor.folder.name}, at {where}: so far the unlabeled images do harm")  # fmt: skip
                return


def matched_floors(run: Run) -> list[Run]:
    """Runs in folders beside a run that are its matched floor: the same training at an unsupervised weight of 0.

    Args:
        run: of a method; for a floor itself, or where no record says what is trained, there are none.
    """
    mine = _record(run.folder)
    if mine is None or float_or(mine.get("overrides", {}).get(WEIGHT), 1.0) == 0:
        return []
    found = []
    for path in sorted(run.folder.parent.glob(f"*/{RECORD}")):
        theirs = _record(path.parent)
        if path.parent == run.folder or theirs is None or theirs.get("bundle") != mine.get("bundle"):
            continue
        if float_or(theirs.get("overrides", {}).get(WEIGHT), 1.0) != 0:
            continue
        one, two = Training.of(mine), Training.of(theirs)
        differing = {key for key, *_ in one.differences(two)} - NOT_COMPARED
        if not differing and role_beside(one, two) == "matched_floor":
            found.append(Run(path.parent))
    return found


def validation_values(folder: Path, metric: str) -> dict[int, float]:
    """Iteration -> value of a metric, from the validation log of a run; empty where there is none."""
    try:
        with open(folder / VALIDATION, newline="", encoding="utf-8") as file:
            rows = [{text_of_cell(key): value for key, value in row.items() if key} for row in csv.DictReader(file)]
        pairs = {int(row["iteration"]): float(row[metric]) for row in rows if row.get(metric)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {iteration: value for iteration, value in pairs.items() if math.isfinite(value)}


def float_or(value: Any, default: float) -> float:
    """A number, or the default for what is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("overrides", {}), dict) else None


def _same_training(run: Run, floor: Run) -> bool:
    """Whether checkpoints say so, too: every setting and the content of every case, but for the weight."""
    try:
        mine, theirs = run.identity, floor.identity
    except DataError:
        return False
    keys = (mine.keys() | theirs.keys()) - NOT_COMPARED
    return bool(mine) and bool(theirs) and all(same(mine.get(key), theirs.get(key)) for key in keys)


def _is_far(found: Difference) -> bool:
    return found.p <= RARE and found.share >= FAR


def _some(cases: Sequence[Any], most: int) -> list[int]:
    """Numbers of at most ``most`` cases, evenly drawn."""
    return sorted(set(np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int).tolist()))

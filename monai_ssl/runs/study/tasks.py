"""One training of a study with its scores: its arguments, and what its folder says of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from monai_ssl.errors import DataError
from monai_ssl.files import write_text
from monai_ssl.runs.folder import RECORD

RUNS, FORMER, PLAN, STATE, LOG = "runs", "former", "plan.json", "study_run.json", "log.txt"


@dataclass(frozen=True)
class Task:
    """What one process does.

    Attributes:
        name: of its folder below ``runs``.
        kind: ``train`` or ``self_train``.
        arguments: of that function, without the folder.
        digest: what makes it the same training.
        scores: what makes its scores the same, given the training.
        section: list that is scored.
        weights: ``last`` or ``best``.
        iterations: of everything that it trains.
        gpus: that train together.
        floor: name of the run that a self-training's own floor repeats, or with which a control of one begins; "" for
            none.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    digest: str
    scores: str
    section: str
    weights: str = "last"
    iterations: int = 0
    gpus: int = 1
    floor: str = ""

    @property
    def bundle(self) -> str:
        """The method's bundle."""
        return str(self.arguments.get("bundle", "self_training"))

    def folder(self, study: Path) -> Path:
        """Of the run."""
        return study / RUNS / self.name

    def evaluation(self, study: Path) -> Path:
        """Folder of the scores."""
        return self.folder(study) / f"evaluation-{self.section}{'-best' if self.weights == 'best' else ''}"


@dataclass
class State:
    """What the folder of a run says of it, ``study_run.json``.

    Attributes:
        digest: of the training that is, or was, made there.
        trained: whether it is finished.
        scores: results folder -> what makes its scores the same.
        seconds: of all processes that worked on it.
        peak_memory: bytes, the most that one of them held.
        peak_gpu_memory: bytes; 0 without a GPU.
        parameters: of the network that is used.
        machine: where it was last worked on.
        error: last words of a process that failed.
    """

    digest: str = ""
    trained: bool = False
    scores: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory: int = 0
    peak_gpu_memory: int = 0
    parameters: int = 0
    machine: str = ""
    error: str = ""

    @classmethod
    def read(cls, folder: Path) -> State:
        """The state of a run's folder; an empty one where there is none, or it is damaged."""
        try:
            content = json.loads((folder / STATE).read_text(encoding="utf-8"))
            return cls(**{key: value for key, value in content.items() if key in cls.__dataclass_fields__})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Into the run's folder."""
        write_text(folder / STATE, json.dumps(asdict(self), indent=1) + "\n")


def done(task: Task, study: Path) -> bool:
    """Whether a run is trained and scored as the study wants it, and its scores are those of its weights."""
    from monai_ssl.runs.scores import outdated

    state, results = State.read(task.folder(study)), task.evaluation(study)
    scored = state.trained and state.digest == task.digest and state.scores.get(results.name) == task.scores
    there = scored and (results / "summary.json").is_file() and (results / "per_case.csv").is_file()
    return there and not outdated(results, quick=True)


def settle(tasks: Sequence[Task], study: Path) -> None:
    """Give every run the folder with its training, if there is one; what belongs to no run of the study makes way.

    A study may have changed: a row has another name, or other options. Nothing is deleted: former runs wait in
    ``former``, and come back when the study goes back.
    """
    runs, former = study / RUNS, study / FORMER
    wanted = {task.name: task.digest for task in tasks}
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        state = State.read(folder)
        if folder.is_dir() and state.digest and wanted.get(folder.name) != state.digest:
            target = former / state.digest
            if target.exists():
                target = former / f"{state.digest}-{time.time_ns()}"
            former.mkdir(parents=True, exist_ok=True)
            os.replace(folder, target)
    for name, digest in wanted.items():
        if not (runs / name).exists() and (former / digest).is_dir():
            runs.mkdir(parents=True, exist_ok=True)
            os.replace(former / digest, runs / name)


def write_plan(tasks: Sequence[Task], study: Path) -> None:
    """What the processes of the study read, those on other machines as well."""
    text = json.dumps([asdict(task) for task in tasks], indent=1, default=str) + "\n"
    if not (study / PLAN).is_file() or (study / PLAN).read_text(encoding="utf-8") != text:
        write_text(study / PLAN, text)


def read_task(study: Path, name: str) -> Task:
    """A run of the plan.

    Raises:
        DataError: when there is none of that name.
    """
    try:
        content = json.loads((study / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{study / PLAN}: cannot be read; run `monai-ssl compare {study}` again") from None
    for entry in content:
        if entry["name"] == name:
            return Task(**entry)
    raise DataError(f"{study / PLAN}: holds no run {name!r}; the study has changed, start it again")


def iterations_done(task: Task, study: Path) -> int:
    """Iterations that a run has made, all of its trainings together; quick enough to be asked every second.

    A floor that a self-training shares with another run is that one's.
    """
    folder = task.folder(study)
    places = [folder] if task.kind == "train" else [path.parent for path in folder.glob(f"*/{RECORD}")]
    return sum(
        _last_iteration(place / "training.csv") for place in places if not (task.floor and place.name == "floor")
    )


def is_labeling(task: Task, study: Path) -> bool:
    """Whether a self-training labels the pool just now: a round has labels, and no training yet."""
    folder = task.folder(study)
    return any(
        not (folder / f"round-{number}" / "training.csv").is_file()
        for path in folder.glob("pseudo_labels-*")
        if (number := path.name.rpartition("-")[2]).isdigit()
    )


def _last_iteration(log: Path) -> int:
    try:
        with open(log, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 4096, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        number = line.split(",")[0]
        if number.isdigit():
            return int(number)
    return 0

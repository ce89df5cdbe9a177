"""The run folder: its files, its record, its lock, and who may write to it."""

from __future__ import annotations

import html
import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.errors import PROGRAM, DataError
from monai_ssl.files import write_text

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from monai_ssl.data.preset import Preset
    from monai_ssl.runs.record import Record

CHECKPOINT, MODEL, BEST = "checkpoint.pt", "model.pt", "best.pt"
SELF_TRAINING = "self_training.json"
RECORD, PRESET, PRECISION, COSTS, ALARMS = "run.json", "preset.yaml", "precision.json", "costs.json", "alarms.json"
LOGS = ("training.csv", "validation.csv")
LOCK = ".lock"
# what makes way when another run takes the folder
FILES = (CHECKPOINT, MODEL, BEST, *LOGS, "tensorboard", "previews", RECORD, PRESET, PRECISION, COSTS, ALARMS)
# and folders that a run of these weights has made since: scores and rankings are those of the weights
FOLLOWING = ("evaluation-*", "ranking*")
# what the next step decides anew, whatever the training was given
NOT_INHERITED = ("flavor", "output_dir", "num_workers", "resume", "device", "ckpt", "init",
                 "pseudo_labels")  # fmt: skip

console = logging.getLogger("monai_ssl.console")


def trained_in(folder: str | os.PathLike[str]) -> Path:
    """``folder``; where a self-training in rounds ended there, the folder of the training whose network is used.

    Example:
        >>> trained_in("runs/dtc").name
        'dtc'
    """
    place = Path(folder).expanduser()
    parts = [] if (place / RECORD).is_file() else _trainings(place)
    return parts[-1] if parts else place  # its missing record will be told


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a training has written to ``folder``; of a self-training, which holds its trainings, also one that has
    not ended, so that whoever opens it can say so.

    Example:
        >>> is_run("/does/not/exist")
        False
    """
    place = Path(folder).expanduser()
    return (trained_in(place) / RECORD).is_file() or (place / SELF_TRAINING).is_file()


def _trainings(folder: Path) -> list[Path]:
    """The runs of an ended self-training, the last one last."""
    try:
        told = json.loads((folder / SELF_TRAINING).read_text(encoding="utf-8"))
        names = [*told.get("floors", ()), *told["rounds"], *([told["fine_tuned"]] if told["fine_tuned"] else [])]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []
    return [folder / Path(str(name)).name for name in names]


def _begun(folder: Path) -> list[Path]:
    """Records of the floors and rounds that a self-training has begun, whether it has ended or not."""
    return [path for name in ("floor*", "round-*") for path in folder.glob(f"{name}/{RECORD}")]


def refuse_unfinished(folder: Path, argument: str = "run") -> None:
    """Stop where a self-training stands for nothing yet.

    Args:
        folder: of anything.
        argument: that named it.

    Raises:
        DataError: for a self-training that has begun, or begun anew, and not ended: it has no result to stand for.
    """
    began = _begun(folder)
    ended = [Run(path) for path in _trainings(folder)]
    if began and not (ended and all(run.complete for run in ended if (run.folder / RECORD).is_file())):
        raise DataError(
            f"{argument}: the self-training in {folder} has not ended; repeat its command, or name one of its runs"
        )


class Run:
    """A folder in which a training writes, or wrote.

    Nothing is read or created before a property or method needs it, so a ``Run`` may name a folder that does not exist
    yet. :meth:`open` insists on a training's folder.

    Args:
        folder: of the run.

    Example:
        >>> run = Run.open("runs/dtc-phantom-seed0")  # doctest: +SKIP
        >>> run.record.bundle, run.complete  # doctest: +SKIP
        ('dtc', True)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self._held: BaseFileLock | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | Run) -> Run:
        """The run that a training left in ``folder``; of a finished self-training, its last one.

        Raises:
            DataError: when it is no folder of a training.
        """
        run = folder if isinstance(folder, Run) else cls(trained_in(folder))
        if not run.folder.is_dir():
            raise DataError(f"run: {run.folder} is no folder; train first: {PROGRAM} train BUNDLE DATASET_DIR")
        home = run.folder if isinstance(folder, Run) else Path(folder).expanduser().resolve()
        if run.folder != home or not (run.folder / RECORD).is_file():
            refuse_unfinished(home)
        for name in (RECORD, PRESET):
            if not (run.folder / name).is_file():
                raise DataError(
                    f"run: {run.folder} holds no {name}, so it is no run of `{PROGRAM} train`; name its output folder"
                )
        _ = run.record
        return run

    # ------------------------------------------------------------------------------------------------ what it holds

    @property
    def checkpoint(self) -> Path:
        """Everything that training depends on, for resuming."""
        return self.folder / CHECKPOINT

    @property
    def model(self) -> Path:
        """The weights of the network that is used."""
        return self.folder / MODEL

    @property
    def preset(self) -> Path:
        """The dataset preset with which it was trained."""
        return self.folder / PRESET

    @property
    def record(self) -> Record:
        """What was noted about the training."""
        from monai_ssl.runs.record import Record

        return Record.read(self.folder / RECORD)

    @property
    def complete(self) -> bool:
        """Whether the training came to its end."""
        return (self.folder / RECORD).is_file() and self.record.status == "complete"

    @property
    def iteration(self) -> int:
        """Iterations that the checkpoint counts as done; 0 without one.

        Raises:
            DataError: when the checkpoint cannot be read.
        """
        if not self.checkpoint.is_file():
            return 0
        done = self._state().get("iteration")
        if isinstance(done, bool) or not isinstance(done, int) or done < 0:
            raise DataError(f"{self.checkpoint}: is no checkpoint of a run (no number of iterations); move it away")
        return done

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decided the training, as its checkpoint says; empty without one, or with an old one.

        Raises:
            DataError: when the checkpoint cannot be read.
        """
        identity = self._state().get("identity") if self.checkpoint.is_file() else None
        return identity if isinstance(identity, dict) else {}

    def _state(self) -> dict[str, Any]:
        from monai_ssl.weights import load

        state = load(self.checkpoint)
        return state if isinstance(state, dict) else {}

    def weights(self, ckpt: str | os.PathLike[str] | None = None) -> Path:
        """The weights to use; says so when they are those of an unfinished training.

        Args:
            ckpt: other weights than the run's own.

        Raises:
            DataError: when there are none.
        """
        if ckpt is not None:
            path = Path(ckpt).expanduser().resolve()
            if not path.is_file():
                raise DataError(f"ckpt: {path} does not exist; check the path")
            return path
        record = self.record
        again = f"run its command again to continue: {record.command}"
        if not self.model.is_file():
            raise DataError(f"run: {self.folder} has no weights yet (stopped before the first checkpoint); {again}")
        if record.status != "complete" and self.checkpoint.is_file():
            done, total = self.iteration, record.max_iterations
            if done != total:
                console.warning("note: this run is unfinished, weights of iteration %s of %s; %s", done, total, again)
        return self.model

    def settings(self, configs: Sequence[str], overrides: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
        """The bundle's folder, and the settings of the training as far as ``configs`` know them.

        Args:
            configs: names of files in the bundle's ``configs/``.
            overrides: ids of these configs -> values that replace the training's.

        Raises:
            DataError: for an unknown bundle or id.
        """
        from monai_ssl.bundle.library import find_bundle
        from monai_ssl.bundle.overrides import check_overrides, literal, merged_config, root_id

        record = self.record
        folder = find_bundle(record.bundle)
        check_overrides(folder, configs, overrides)
        known = merged_config(folder, configs)
        settings = {key: value for key, value in record.overrides.items() if root_id(key) in known}
        for key in NOT_INHERITED:
            settings.pop(key, None)
        return folder, settings | {"dataset": literal(self.preset), **overrides}

    @property
    def alarms(self) -> list[str]:
        """What the training's alarms said, see :class:`monai_ssl.handlers.Alarms`; empty as a rule."""
        try:
            content = json.loads((self.folder / ALARMS).read_text(encoding="utf-8"))
            return [str(alarm["text"]) for alarm in content["alarms"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    # ---------------------------------------------------------------------------------------------- who may write

    def refuse_foreign(self, dataset_dir: Path, rounds: bool = False) -> None:
        """Stop before training overwrites what is not its own.

        Args:
            dataset_dir: folder of the data.
            rounds: the folder is meant for a self-training, whose runs lie below it, instead of a run.

        Raises:
            DataError: for a file, the folder of the data, of a self-training, for a run, and of a run, for a
                self-training, which would hide it, or weights and logs that no training of ours wrote.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"output: must be a folder, got the file {self.folder}")
        if self.folder == dataset_dir:
            raise DataError(f"output: must not be the folder of the data, {self.folder}; give a folder for the run")
        theirs = RECORD if rounds else SELF_TRAINING
        if (self.folder / theirs).is_file():
            what = f"a run of {self.record.bundle}" if rounds else "a self-training, whose runs are below it"
            raise DataError(f"output: {self.folder} holds {what}; give another folder")
        ours = any((self.folder / name).exists() for name in (RECORD, CHECKPOINT, _waiting(RECORD)))
        foreign = [name for name in (MODEL, *LOGS) if (self.folder / name).exists()]
        if foreign and not ours:
            raise DataError(
                f"output: {self.folder} holds a {foreign[0]} that no run of `{PROGRAM} train` wrote; give another "
                "folder"
            )

    def refuse_other_data(self, dataset_dir: Path, rounds: bool = False) -> None:
        """Stop before a folder that nobody named is taken from a run on other data.

        Args:
            dataset_dir: folder of the data.
            rounds: the folder is that of a self-training, whose runs lie below it.

        Raises:
            DataError: when the data of a run are still where they were, and not these.
        """
        for path in _begun(self.folder) if rounds else (self.folder / RECORD,):
            former = Path(Run(path.parent).record.dataset_dir) if path.is_file() else dataset_dir
            if former != dataset_dir and former.is_dir():
                what = "a self-training" if rounds else "a run"
                raise DataError(
                    f"output: {self.folder} holds {what} on {former}; name a folder for this one with --output"
                )

    def acquire(self) -> bool:
        """Become the folder's only writer; the system lets the lock go when the process ends, however it ends.

        Within one thread it may be taken twice: `train` takes it before it reads the data, and the training's own
        handler again, which is the only one to take it under ``python -m monai.bundle run``.

        Returns:
            whether this thread held it already.

        Raises:
            DataError: when another training holds it.
        """
        from filelock import FileLock, Timeout

        if self._held is not None:
            return True
        path = self.folder / LOCK
        if path.is_symlink():
            raise DataError(f"output: {path} is a link, which a training's lock never is; remove it")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path), timeout=0, is_singleton=True)
        held = lock.is_locked
        try:
            lock.acquire()
        except Timeout:
            raise DataError(f"output: another training writes to {self.folder} just now; give another folder") from None
        except NotImplementedError:  # a file system without locks
            return held
        self._held = lock
        return held

    def release(self) -> None:
        """Undo one :meth:`acquire`."""
        if self._held is not None:
            self._held.release()
            self._held = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for a block; a folder that exists only for the lock is removed again."""
        new = not self.folder.exists()
        self.acquire()
        lock = self._held
        try:
            yield
        finally:
            if lock is not None:
                lock.release(force=True)  # also what a training that failed inside has taken
                self._held = None
            if new and [path.name for path in self.folder.iterdir()] in ([], [LOCK]):
                (self.folder / LOCK).unlink(missing_ok=True)
                self.folder.rmdir()

    # --------------------------------------------------------------------------------------------- from run to run

    def announce(self, record: Record, preset: Preset) -> None:
        """Write record and preset of a training that is about to begin, under names that wait.

        A previous run in this folder is set aside with ITS record; that is known only when the training has built its
        parts and compared them with the checkpoint.
        """
        from monai_ssl.data.preset import dump_preset

        write_text(self.folder / _waiting(PRESET), dump_preset(preset))
        write_text(self.folder / _waiting(RECORD), record.text())

    def adopt(self) -> None:
        """Give the waiting files their names: this training now owns the folder."""
        for name in (RECORD, PRESET):
            if (self.folder / _waiting(name)).is_file():
                os.replace(self.folder / _waiting(name), self.folder / name)

    def settle(self) -> None:
        """After a training that may have failed at its start: what waits then must not replace a previous record."""
        if (self.folder / RECORD).exists():
            for name in (RECORD, PRESET):
                (self.folder / _waiting(name)).unlink(missing_ok=True)
        else:
            self.adopt()

    def finish(self, record: Record) -> None:
        """Note that the training came to its end."""
        record = self._with_decision(record.model_copy(update={"status": "complete"}))
        write_text(self.folder / RECORD, record.text())

    def note(self, **changes: Any) -> None:
        """Correct a record, where there is one: ``python -m monai.bundle run`` may continue a run that has one."""
        if (self.folder / RECORD).is_file():
            write_text(self.folder / RECORD, self.record.model_copy(update=changes).text())

    @property
    def decision(self) -> dict[str, Any] | None:
        """With which precision the training steps, and why; None where that has not been decided, or is damaged."""
        try:
            content = json.loads((self.folder / PRECISION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def note_decision(self, decision: Mapping[str, Any]) -> None:
        """Write down with which precision the training steps, also in its record, where there is one."""
        write_text(self.folder / PRECISION, json.dumps(decision, indent=2, default=str) + "\n")
        if (self.folder / RECORD).is_file():
            write_text(self.folder / RECORD, self._with_decision(self.record).text())

    def _with_decision(self, record: Record) -> Record:
        """The record of a training that measured, and a command that need not measure again."""
        decision = self.decision
        if decision is None:
            return record
        told = {key: decision.get(key) for key in ("format", "layout", "found", "seconds")}
        changes: dict[str, Any] = {"precision": told}
        if decision.get("found") != "given":
            options = {f"--{key}": str(value) for key, value in (decision.get("options") or {}).items()}
            words = shlex.split(record.command)
            kept = [word for word, before in zip(words, ["", *words], strict=False) if not {word, before} & {*options}]
            changes["repeat"] = shlex.join([*kept, *(word for option in options.items() for word in option)])
        return record.model_copy(update=changes)

    def set_aside(self) -> Path:
        """Move the run's files to ``previous-1`` (2, 3, ...), so that another run may begin; returns that folder.

        Its scores and rankings go along: in this folder they would be taken for those of the run that begins.
        """
        k = 1
        while (self.folder / f"previous-{k}").exists():
            k += 1
        aside = self.folder / f"previous-{k}"
        aside.mkdir()
        following = [path.name for pattern in FOLLOWING for path in self.folder.glob(pattern) if path.is_dir()]
        for name in (*following, *FILES):
            if (self.folder / name).exists():
                os.replace(self.folder / name, aside / name)
        return aside

    def previous(self) -> list[Path]:
        """Folders of the runs that were set aside, oldest first."""
        numbered = [(path.name.rpartition("-")[2], path) for path in self.folder.glob("previous-*")]
        return [path for number, path in sorted((int(n), p) for n, p in numbered if n.isdigit())]

    def sweep(self) -> None:
        """Remove what a kill in the middle of a save left behind."""
        for name in (CHECKPOINT, MODEL, BEST):
            for leftover in self.folder.glob(f".*-{name}"):
                leftover.unlink()

    # ----------------------------------------------------------------------------------------------------- to look at

    def _facts(self) -> dict[str, str]:
        if not (self.folder / RECORD).is_file():
            return {"state": "not trained"}
        record = self.record
        of = "" if record.max_iterations is None else f", {record.max_iterations} iterations"
        return {
            "bundle": Path(record.bundle).name,
            "dataset": f"{record.dataset} ({record.flavor})",
            "state": ("complete" if record.status == "complete" else "unfinished") + of,
        }

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {', '.join(self._facts().values())})"

    def _repr_html_(self) -> str:
        rows = {"folder": str(self.folder), **self._facts()}
        cells = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
        return f"<table>{cells}</table>"


def _waiting(name: str) -> str:
    """Temporary name of a record until the previous run has been archived."""
    return f".{name}.pending"

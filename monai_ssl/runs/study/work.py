"""The process that trains and scores one run of a study: ``python -m monai_ssl.runs.study.work STUDY NAME``.

Whoever starts it, on this machine or another, needs the study's folder and nothing else. It is started again as often
as it takes: a training goes on where it was, scores are made again.

Exit status: 0 done, 2 a mistake or failure (its last words are in ``study_run.json``), 130 and 143 asked to stop.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.files import write_text
from monai_ssl.interrupts import end_when_asked
from monai_ssl.runs.study.tasks import LOG, State, Task, done, read_task

if TYPE_CHECKING:
    from monai_ssl.runs.folder import Run

# seconds between two notes of how long a process has worked
NOTE = 10.0
SECONDS = "study_seconds.txt"
# arguments of a training that say what it learns from, and how it begins
DATA = ("dataset_dir", "datalist", "dataset", "seed", "gpus")


def main(words: Sequence[str] | None = None) -> int:
    """Do the run that the words name; returns the exit status."""
    parser = argparse.ArgumentParser(prog="monai_ssl.runs.study.work")
    parser.add_argument("study", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--cache_gb", type=float, default=None)
    parser.add_argument("--watched", action="store_true", help="end when the standard input does")
    given = parser.parse_args(words)
    end_when_asked()  # everything on the disk is whole at any moment
    if given.watched:
        threading.Thread(target=_end_with_input, daemon=True).start()
    return max(work(given.study.resolve(), name, given.cache_gb) for name in given.names)


def _end_with_input() -> None:
    """Whoever started this process holds the other end: when that process is gone, however it went, so is this one."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def work(study: Path, name: str, cache_gb: float | None = None) -> int:
    """Train and score one run of a study in this process; what it says goes to ``log.txt`` in the run's folder.

    Args:
        study: folder of the study.
        name: of the run.
        cache_gb: memory for prepared scans; None: as `monai-ssl train` takes it.

    Returns:
        the exit status.
    """
    from monai_ssl.errors import TrainingInterrupted, one_line
    from monai_ssl.mistakes import users_mistake

    task = read_task(study, name)
    if done(task, study):
        return 0
    folder = task.folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    _say_into(folder / LOG)
    state = State.read(folder)
    state = state if state.digest == task.digest else State()
    state.digest, state.machine, state.error = task.digest, platform.node(), ""
    state.write(folder)
    clock = _Clock(folder, state)
    try:
        train_and_score(task, study, state, cache_gb)
        status = 0
    except (TrainingInterrupted, KeyboardInterrupt):
        status = 130
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException as error:
        known = users_mistake(error)
        state.error = known or f"{type(error).__name__}: {one_line(error)}"
        print(f"failed: {state.error}", file=sys.stderr, flush=True)
        if known is None:
            import traceback

            traceback.print_exc()
        status = 2
    clock.stop()
    _note_memory(state)
    state.write(folder)
    return status


def train_and_score(task: Task, study: Path, state: State, cache_gb: float | None = None) -> None:
    """What is left to do of a run; every finished part is noted."""
    folder, results = task.folder(study), task.evaluation(study)
    run = _trained(task, study, state, cache_gb)
    if not state.trained:
        state.parameters = _parameters(run.model)
        state.trained = True
        state.write(folder)
    from monai_ssl.runs.evaluation import evaluate
    from monai_ssl.runs.folder import BEST
    from monai_ssl.runs.scores import outdated

    if state.scores.get(results.name) == task.scores and (results / "summary.json").is_file() and not outdated(results):
        return

    state.scores.pop(results.name, None)
    state.write(folder)
    scored = evaluate(
        run,
        task.section,  # type: ignore[arg-type]
        output=results,
        datalist=task.arguments["datalist"],
        dataset_dir=task.arguments["dataset_dir"],
        ckpt=run.folder / BEST if task.weights == "best" else None,
    )
    for line in scored.lines():
        print(line)
    state.scores[results.name] = task.scores


def _trained(task: Task, study: Path, state: State, cache_gb: float | None) -> Run:
    from monai_ssl.runs.folder import Run

    folder = task.folder(study)
    if state.trained:
        return Run.open(last_run(task, study))
    given: dict[str, Any] = {**task.arguments}
    if cache_gb is not None and "cache_gb" not in given:
        given["cache_gb"] = cache_gb
    if "num_workers" not in given and not _on_gpu(given):
        given["num_workers"] = 0
    if task.gpus > 1:
        given["gpus"] = task.gpus
    if task.kind == "self_train":
        from monai_ssl.runs.self_training import self_train

        if task.floor:
            _share_floor(study, task, folder)
        return self_train(output=folder, check=False, **given).run
    from monai_ssl.runs.train import train

    if task.floor:
        given["init"] = _floor(study, task, folder, given).folder
    return train(output=folder, check=False, **given)


def _floor(study: Path, task: Task, folder: Path, given: Mapping[str, Any]) -> Run:
    """The floor with which a control of a self-training begins, in a folder inside of it."""
    from monai_ssl.runs.self_training import FLOOR, floors_options
    from monai_ssl.runs.train import train

    _share_floor(study, task, folder)
    own = {key: given[key] for key in DATA if key in given}
    left = {*DATA, "bundle", "pseudo_labels", "keep_best"}
    others = {key: value for key, value in given.items() if key not in left}
    return train(FLOOR, output=folder / "floor", check=False, **own, **floors_options(others))


def last_run(task: Task, study: Path) -> Path:
    """Folder of the run whose network is scored: of a self-training, its last round."""
    from monai_ssl.runs.folder import trained_in

    folder = task.folder(study)
    if task.kind == "train":
        return folder
    last = trained_in(folder)
    return folder / "round-1" if last == folder else last  # not ended yet: the record that is missing is told


def _share_floor(study: Path, task: Task, folder: Path) -> None:
    """The floor of a self-training, or of its control, is a run of the study already: a copy of it saves a training.

    Where that run is not finished, the floor is trained here, to the same bits.
    """
    from monai_ssl.runs.folder import FILES

    other, target = read_task(study, task.floor), folder / "floor"
    if target.exists() or not State.read(other.folder(study)).trained:
        return
    waiting = folder / f".floor-{os.getpid()}"
    for left in folder.glob(".floor-*"):
        shutil.rmtree(left, ignore_errors=True)
    waiting.mkdir(parents=True)
    for name in FILES:
        source = other.folder(study) / name
        if source.is_dir():
            shutil.copytree(source, waiting / name)
        elif source.is_file():
            shutil.copyfile(source, waiting / name)
    os.replace(waiting, target)


def _on_gpu(arguments: dict[str, Any]) -> bool:
    device = arguments.get("device")
    if device is not None:
        return str(device).startswith("cuda")
    import torch

    return torch.cuda.is_available()


def _parameters(weights: Path) -> int:
    """Numbers that a network learns; statistics of norm layers are none."""
    from monai_ssl.weights import load

    statistics = ("running_mean", "running_var", "num_batches_tracked")
    content = load(weights)
    return sum(t.numel() for key, t in content.items() if hasattr(t, "numel") and not key.endswith(statistics))


def _note_memory(state: State) -> None:
    try:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        state.peak_memory = max(state.peak_memory, unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    except ImportError:  # Windows
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        state.peak_gpu_memory = max(state.peak_gpu_memory, int(torch.cuda.max_memory_allocated()))


def _say_into(path: Path) -> None:
    """Everything that this process says goes to a file; on a terminal nobody could tell several apart."""
    with open(path, "a", encoding="utf-8") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("monai_ssl").setLevel(logging.INFO)


class _Clock:
    """Counts the seconds of all processes that worked on a run, those that were killed as well."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self._former, self._start = max(state.seconds, _seconds(folder)), time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def _count(self) -> None:
        # a file of its own: the state has another writer
        while not self._end.wait(NOTE):
            self._note()
            write_text(self.folder / SECONDS, f"{self.state.seconds}\n")

    def _note(self) -> None:
        self.state.seconds = round(self._former + time.monotonic() - self._start, 1)

    def stop(self) -> None:
        """The last note; the caller writes it."""
        self._end.set()
        self._thread.join()
        self._note()


def _seconds(folder: Path) -> float:
    try:
        return float((folder / SECONDS).read_text())
    except (OSError, ValueError):
        return 0.0


if __name__ == "__main__":
    sys.exit(main())

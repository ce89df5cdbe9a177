"""Several runs of a study at once on this machine: its cores and GPUs shared out, its memory asked first."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_ssl.errors import PROGRAM, DataError, TrainingInterrupted
from monai_ssl.interrupts import StopRequest, stop_requests
from monai_ssl.machine import available_memory
from monai_ssl.runs.study.progress import Progress
from monai_ssl.runs.study.tasks import LOG, State, Task, done

console = logging.getLogger("monai_ssl.console")

# bytes that a run is taken to need before one of its method has told
FIRST_GUESS = 2_000_000_000
# seconds between two looks at the processes, and for a step and a checkpoint after Ctrl-C
LOOK, GRACE = 0.2, 300.0


@dataclass(frozen=True)
class Share:
    """What one run gets of a machine.

    Attributes:
        jobs: runs at once.
        threads: of each.
        gpus: numbers of the GPUs there are, as ``CUDA_VISIBLE_DEVICES`` names them; empty without.
        gpus_each: of a run.
        cache_gb: memory for prepared scans, of each.
    """

    jobs: int
    threads: int
    gpus: tuple[str, ...] = ()
    gpus_each: int = 1
    cache_gb: float | None = None

    def visible(self, slot: int) -> str | None:
        """The GPUs of a slot; with more slots than GPUs they share them in turn."""
        if not self.gpus:
            return None
        first = slot * self.gpus_each
        return ",".join(self.gpus[(first + number) % len(self.gpus)] for number in range(self.gpus_each))


def share(jobs: int | None, threads: int, gpus_each: int, device: object = None) -> Share:
    """Cores, GPUs and memory of this machine, shared out.

    Args:
        jobs: runs at once; None: one per GPU (or group of them), without GPUs one per ``threads`` cores.
        threads: of each run.
        gpus_each: GPUs of each run.
        device: where the runs are told to be; None: a GPU where there is one.

    Raises:
        DataError: for more GPUs than there are.

    Example:
        >>> share(2, 1, 1, "cpu").jobs
        2
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = () if device is not None and not str(device).startswith("cuda") else _gpus()
    if gpus and gpus_each > len(gpus):
        raise DataError(f"gpus: a run asks for {gpus_each}, this machine has {len(gpus)}; ask for fewer")
    several = gpus_each if not gpus else 1  # processes on cores
    at_once = jobs or (len(gpus) // gpus_each if gpus else max(cores // (threads * several), 1))
    return Share(at_once, threads, gpus, gpus_each, 0.5 * available_memory() / at_once / 1e9)


def _gpus() -> tuple[str, ...]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named) if len(named) == count else tuple(map(str, range(count)))


@dataclass
class _Working:
    task: Task
    process: subprocess.Popen[bytes]
    slot: int
    start: float


@dataclass
class Outcome:
    """How the runs ended.

    Attributes:
        failed: name of a run -> why.
    """

    failed: dict[str, str] = field(default_factory=dict)


def run_here(tasks: Sequence[Task], study: Path, given: Share, clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Do what is left of the tasks, several at once; one that fails takes no other with it.

    Args:
        tasks: in the order in which they begin. A self-training waits for the run that its floor repeats.
        study: folder of the study.
        given: what each gets.
        clock: in seconds.

    Returns:
        which failed.

    Raises:
        TrainingInterrupted: after Ctrl-C, once every run has saved its state.
    """
    outcome, waiting = Outcome(), [task for task in tasks if not done(task, study)]
    working: list[_Working] = []
    request = StopRequest()
    with Progress(tasks, study) as progress, stop_requests(request):
        try:
            while (waiting or working) and not request.signal:
                for one in [one for one in working if one.process.poll() is not None]:
                    working.remove(one)
                    _ended(one, study, outcome, progress)
                while len(working) < given.jobs and (task := _next(waiting, working, study, given)) is not None:
                    waiting.remove(task)
                    slot = next(n for n in range(given.jobs) if n not in [one.slot for one in working])
                    working.append(_Working(task, _start(task, study, given, slot), slot, clock()))
                    progress.began(task)
                progress.look([one.task.name for one in working], outcome.failed)
                time.sleep(LOOK)
            if request.signal:
                progress.say("stopping: every run ends its step and saves; once more to stop at once")
                _stop(working, request.signal)
        finally:
            for one in working:
                _kill(one.process)
    if request.signal:
        text = f"stopped; run the same command again to continue ({PROGRAM} compare {study})"
        console.info("%s", text)
        if request.signal == getattr(signal, "SIGTERM", None):
            raise SystemExit(143)
        raise TrainingInterrupted(text)
    return outcome


def environment(given: Share, slot: int) -> dict[str, str]:
    """Environment variables of a run's process."""
    found = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "MKL_NUM_THREADS": str(given.threads)}
    found.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does
    found["PYTHONUNBUFFERED"] = "1"
    if (gpus := given.visible(slot)) is not None:
        found["CUDA_VISIBLE_DEVICES"] = gpus
    return found


def command(study: Path, name: str, cache_gb: float | None = None) -> list[str]:
    """What starts the process of a run."""
    words = [sys.executable, "-m", "monai_ssl.runs.study.work", str(study), name]
    return words if cache_gb is None else [*words, "--cache_gb", f"{cache_gb:.3f}"]


def _start(task: Task, study: Path, given: Share, slot: int) -> subprocess.Popen[bytes]:
    task.folder(study).mkdir(parents=True, exist_ok=True)
    # a session of its own: Ctrl-C reaches this process alone, which asks the others once. They hold the other end of a
    # pipe, and end when this process does, however it ends
    with open(task.folder(study) / LOG, "ab") as log:
        return subprocess.Popen(
            [*command(study, task.name, given.cache_gb), "--watched"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment(given, slot),
            start_new_session=True,
        )


def _next(waiting: Sequence[Task], working: Sequence[_Working], study: Path, given: Share) -> Task | None:
    """The first that may begin: what it builds on is not under way, and there is memory."""
    under_way = {one.task.name for one in working} | {task.name for task in waiting}
    for task in waiting:
        if task.floor and task.floor in under_way:
            continue
        if working and available_memory() < _memory(task, study):
            return None
        return task
    # what they wait for was left out or failed: they make it themselves
    return None if working else next(iter(waiting), None)


def _memory(task: Task, study: Path) -> int:
    """Bytes that a run will need, by what others of its method needed."""
    known = [State.read(folder).peak_memory for folder in task.folder(study).parent.glob("*")]
    return int(1.1 * max(known, default=0)) or FIRST_GUESS


def _ended(one: _Working, study: Path, outcome: Outcome, progress: Progress) -> None:
    status, folder = one.process.returncode, one.task.folder(study)
    if one.process.stdin is not None:
        one.process.stdin.close()
    if status == 0 and done(one.task, study):
        progress.ended(one.task)
        return
    why = State.read(folder).error if status == 2 else ""
    if not why:
        why = f"was killed (signal {-status})" if status < 0 else f"ended with status {status}"
        if status == -getattr(signal, "SIGKILL", 9):
            why += ", as a rule because memory ran out; use fewer --jobs"
    outcome.failed[one.task.name] = f"{why}; see {folder / LOG}"
    progress.failed(one.task, outcome.failed[one.task.name])


def _stop(working: Sequence[_Working], number: int) -> None:
    """Ask every process to save and end; another request ends them at once."""
    for one in working:
        if one.process.poll() is None:
            one.process.send_signal(number)
    end = time.monotonic() + GRACE
    while any(one.process.poll() is None for one in working) and time.monotonic() < end:
        time.sleep(LOOK)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()

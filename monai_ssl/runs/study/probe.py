"""How long a study will take, by a few steps of each method at its own shapes."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from monai_ssl.errors import plural
from monai_ssl.runs.study.identity import digest
from monai_ssl.runs.study.local import Share, environment
from monai_ssl.runs.study.progress import duration
from monai_ssl.runs.study.tasks import Task, read_task

# steps of a probe, the first of which set up and do not count
STEPS, SETUP = 6, 2
# views of a scan of the pool that a self-training draws labels from, as a rule
VIEWS = 4


@dataclass(frozen=True)
class Speed:
    """What a probe found.

    Attributes:
        setup: seconds before the first step and around the scores.
        step: seconds of a step.
        score: seconds of scoring one case.
    """

    setup: float
    step: float
    score: float

    def seconds(self, task: Task, cases: int, pool: int) -> float:
        """Of a whole run.

        Example:
            >>> task = Task("a", "train", {}, "", "", "testing", iterations=100)
            >>> Speed(5, 0.5, 2).seconds(task, cases=10, pool=40)
            75.0
        """
        labels = VIEWS * self.score * pool if task.kind == "self_train" else 0.0
        return self.setup + self.step * task.iterations + self.score * cases + labels


def estimate(tasks: Sequence[Task], study: Path, given: Share) -> Iterator[str]:
    """Lines about how long the tasks take; each kind of run is probed once, alone.

    Args:
        tasks: what is left of a study, in its plan.
        study: its folder.
        given: how the machine is shared out.
    """
    from monai_ssl.data.loading import load_datalist

    groups: dict[str, list[Task]] = {}
    for task in tasks:
        places = ("seed", "datalist", "dataset_dir", "pseudo_labels")
        arguments = {key: value for key, value in task.arguments.items() if key not in places}
        groups.setdefault(digest([task.kind, arguments, task.iterations]), []).append(task)
    total = 0.0
    for group in groups.values():
        first = group[0]
        found = _probed(first, study, given)
        if isinstance(found, str):
            yield f"  {first.name}: cannot be trained: {found}"
            continue
        seconds = 0.0
        for task in group:
            cases = load_datalist(task.arguments["datalist"], task.arguments["dataset_dir"])
            seconds += found.seconds(task, len(cases.section(task.section)), len(cases.unlabeled))
        total += seconds
        yield (
            f"  {first.name.partition('-seed')[0]:<28} {found.step:6.2f} s a step, {found.score:5.1f} s a case: "
            f"{plural(len(group), 'run')} of {first.iterations} iterations, {duration(seconds)}"
        )
    if tasks:
        hours = duration(total / max(given.jobs, 1))
        yield f"about {hours} with {plural(given.jobs, 'run')} at once, if each is as quick as alone"


def _probed(task: Task, study: Path, given: Share) -> Speed | str:
    """The speed of a task's kind, or why it cannot be had; in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="monai_ssl-probe-") as folder:
        command = [sys.executable, "-m", "monai_ssl.runs.study.probe", str(study), task.name, folder]
        done = subprocess.run(command, env=environment(given, 0), capture_output=True, text=True)
        try:
            content = json.loads((Path(folder) / "speed.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            lines = done.stderr.strip().splitlines()
            return lines[-1] if lines else f"status {done.returncode}"
    return Speed(**content)


def probe(task: Task, folder: Path) -> Speed:
    """Train a few steps and score one case, in this process."""
    from monai_ssl.data.loading import load_datalist
    from monai_ssl.runs.evaluation import evaluate
    from monai_ssl.runs.study.cases import write_list
    from monai_ssl.runs.study.plan import ROUNDS, WEIGHT
    from monai_ssl.runs.study.work import _on_gpu
    from monai_ssl.runs.train import train

    given: dict[str, Any] = {key: value for key, value in task.arguments.items() if key not in ROUNDS}
    if task.kind == "self_train":  # the same batches and passes, without label maps that nobody has drawn yet
        given |= {"bundle": "self_training", WEIGHT: 0}
    given |= {"max_iterations": STEPS, "epoch_length": STEPS, "val_interval": 1000, "checkpoint_minutes": 1000}
    if "num_workers" not in given and not _on_gpu(given):
        given["num_workers"] = 0
    cases = load_datalist(given["datalist"], given["dataset_dir"])
    section = cases.section(task.section)
    lists = []
    for n in (1, 2):
        few = replace(cases, validation=[])
        setattr(few, task.section, section[:n])
        lists.append(write_list(few, folder / f"{n}.json"))
    given["datalist"] = str(lists[0])
    times: list[float] = []
    end = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder / "run" / "training.csv", times, end), daemon=True)
    start = time.perf_counter()
    watcher.start()
    run = train(output=folder / "run", check=False, **given)
    end.set()
    watcher.join()
    steps = [after - before for before, after in itertools.pairwise(times)][SETUP - 1 :]
    step = sum(steps) / len(steps) if steps else 0.0
    scored = []
    for number, listed in enumerate(lists[: len(section)]):
        begun = time.perf_counter()
        evaluate(run, task.section, datalist=listed, output=folder / f"scores-{number}")  # type: ignore[arg-type]
        scored.append(time.perf_counter() - begun)
    # what one case more takes; the rest is said once per run
    score = max(scored[-1] - scored[0], 0.01) if len(scored) > 1 else scored[0]
    setup = max(times[0] - start, 0.0) if times else 0.0
    return Speed(setup + max(scored[0] - score, 0.0), step, score)


def _watch(log: Path, times: list[float], end: threading.Event) -> None:
    """Note when each row of a training's log appears."""
    while not end.wait(0.002):
        try:
            rows = log.read_bytes().count(b"\n") - 1
        except OSError:
            continue
        times += [time.perf_counter()] * max(rows - len(times), 0)


def main() -> int:
    """``python -m monai_ssl.runs.study.probe STUDY NAME FOLDER``."""
    from monai_ssl.mistakes import users_mistake

    logging.getLogger("monai_ssl").setLevel(logging.ERROR)
    study, name, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    try:
        found = probe(read_task(study, name), folder)
    except Exception as error:
        words = users_mistake(error)
        if words is None:
            raise
        print(words, file=sys.stderr)
        return 2
    (folder / "speed.json").write_text(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

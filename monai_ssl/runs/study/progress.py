"""What is to be seen while a study runs: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from monai_ssl.runs.study.tasks import Task, done, is_labeling, iterations_done

console = logging.getLogger("monai_ssl.console")

# seconds between two looks on a terminal, and between two lines elsewhere
REDRAW, LINE = 1.0, 60.0


def duration(seconds: float) -> str:
    """
    Example:
        >>> duration(42), duration(150), duration(9000)
        ('42 s', '2.5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Shows the runs of a study: which are done, how far the others are, how long it takes.

    Args:
        tasks: all of the study.
        study: its folder.
        stream: where to; default: the standard error.
    """

    def __init__(self, tasks: Sequence[Task], study: Path, stream: TextIO | None = None) -> None:
        self.tasks, self.study = {task.name: task for task in tasks}, study
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self._done = {task.name for task in tasks if done(task, study)}
        self._former = {task.name: iterations_done(task, study) for task in tasks if task.name not in self._done}
        self._start = self._drawn = time.monotonic()
        self._begun: dict[str, float] = {}
        self._height = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def say(self, text: str) -> None:
        """One line, above the table."""
        self._clear()
        print(text, file=self.stream, flush=True)

    def began(self, task: Task) -> None:
        """A run was started."""
        self._begun[task.name] = time.monotonic()
        if not self.live:
            at = self._former.get(task.name, 0)
            self.say(f"{task.name}: begins" if not at else f"{task.name}: goes on at iteration {at}")

    def ended(self, task: Task) -> None:
        """A run is trained and scored."""
        self._done.add(task.name)
        took = duration(time.monotonic() - self._begun.get(task.name, self._start))
        self.say(f"{task.name}: done in {took} ({len(self._done)} of {len(self.tasks)}{self._left_text()})")

    def failed(self, task: Task, why: str) -> None:
        """A run failed."""
        self.say(f"{task.name}: FAILED: {why}")

    def look(self, working: Sequence[str], failed: Mapping[str, str]) -> None:
        """Called often; draws now and then."""
        now = time.monotonic()
        if now - self._drawn < (REDRAW if self.live else LINE):
            return
        self._drawn = now
        if not self.live:
            parts = [f"{name} {self._part(name)}" for name in working]
            self.say(f"{len(self._done)} of {len(self.tasks)} done{self._left_text()}: {', '.join(parts)}")
            return
        self._clear()
        columns, rows = shutil.get_terminal_size()
        width = max([len(name) for name in self.tasks], default=0)
        lines = [f"{name:<{width}}  {self._bar(name)}" for name in list(working)[: max(rows - 4, 1)]]
        waiting = len(self.tasks) - len(self._done) - len(working) - len(failed)
        counts = f"{len(self._done)} done, {len(working)} running, {waiting} waiting"
        lines.append(counts + (f", {len(failed)} failed" if failed else "") + self._left_text())
        print("\n".join(line[: columns - 1] for line in lines), file=self.stream, flush=True)
        self._height = len(lines)

    def _clear(self) -> None:
        if self._height:
            self.stream.write(f"\x1b[{self._height}A\x1b[J")
            self._height = 0

    def _part(self, name: str) -> str:
        total = self.tasks[name].iterations
        if is_labeling(self.tasks[name], self.study):
            return "labeling"
        made = iterations_done(self.tasks[name], self.study)
        return f"{made}/{total}" if made < total or not total else "scoring"

    def _bar(self, name: str) -> str:
        task = self.tasks[name]
        made, total = iterations_done(task, self.study), max(task.iterations, 1)
        filled = min(20 * made // total, 20)
        here = made - self._former.get(name, 0)
        took = time.monotonic() - self._begun.get(name, self._start)
        left = f"{duration(took / here * (total - made))} left" if here > 0 and made < total else ""
        return f"[{'#' * filled}{'.' * (20 - filled)}] {self._part(name):>13}  {left}"

    def _left_text(self) -> str:
        """Time left, by the iterations that all runs made since this command began."""
        made = left = 0
        for name, task in self.tasks.items():
            if name not in self._former:
                continue
            at = task.iterations if name in self._done else iterations_done(task, self.study)
            made += max(at - self._former[name], 0)
            left += max(task.iterations - at, 0)
        took = time.monotonic() - self._start
        if made < 10 or took < 5 or not left:
            return ""
        return f", about {duration(took / made * left)} left"

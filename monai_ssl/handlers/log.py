"""What a run leaves on screen and on disk while it trains."""

from __future__ import annotations

import csv
import logging
import sys
import time
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from monai_ssl.files import write_text

logger = logging.getLogger(__name__)

TRAINING, VALIDATION = "training.csv", "validation.csv"


class TrainingLog:
    """``training.csv`` (one row per iteration: loss, every term, learning rate, gradient norm), TensorBoard beside it.

    A resumed run first drops the rows behind its starting point, so the file reads as if nothing had happened.

    Args:
        output_dir: folder of the run.
        tensorboard: also write event files to ``output_dir/tensorboard``.
        interval: iterations between TensorBoard points.
    """

    def __init__(self, output_dir: str | Path, tensorboard: bool = True, interval: int = 10) -> None:
        self.path, self.interval = Path(output_dir) / TRAINING, interval
        self.tensorboard = Path(output_dir) / "tensorboard" if tensorboard else None
        self._file: Any = None
        self._writer: Any = None
        self._board: SummaryWriter | None = None
        self._fields: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def _open(self, fields: list[str], iteration: int) -> None:
        truncate(self.path, iteration, fields)
        self._fields = fields
        self._file = open(self.path, "a", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, fields)
        if self.tensorboard is not None:
            self._board = SummaryWriter(str(self.tensorboard), purge_step=iteration)

    def write(self, engine: Any) -> None:
        if engine.state.rank != 0 or not engine.state.output:
            return
        output, iteration = engine.state.output[0], engine.state.iteration
        row = {"loss": output["loss"], **output["terms"], "lr": output["lr"], "grad_norm": output["grad_norm"]}
        if self._file is None:
            self._open(["iteration", *row], iteration)
        self._writer.writerow({"iteration": iteration, **{key: repr(float(value)) for key, value in row.items()}})
        if self._board is not None and iteration % self.interval == 0:
            for key, value in row.items():
                self._board.add_scalar(f"train/{key}", value, iteration)

    def close(self, engine: Engine | None = None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None


def truncate(path: Path, iteration: int, fields: list[str]) -> None:
    """Keep the rows of a log before ``iteration``; a last line cut short by a kill is dropped as well."""
    rows: list[dict[str, str]] = []
    if path.is_file() and iteration > 1:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                complete = set(row) == set(fields) and None not in row.values()
                if complete and row["iteration"].isdigit() and int(row["iteration"]) < iteration:
                    rows.append(row)
    lines = [",".join(fields), *(",".join(row[field] for field in fields) for row in rows)]
    write_text(path, "\r\n".join(lines) + "\r\n")


class ValidationLog:
    """``validation.csv``: one row per validation with the evaluator's metrics.

    Args:
        output_dir: folder of the run.
        evaluator: the engine that validates; attach this handler to the TRAINER, whose iteration is written.
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine) -> None:
        self.path, self.evaluator = Path(output_dir) / VALIDATION, evaluator

    def attach(self, engine: Engine) -> None:
        self.evaluator.add_event_handler(Events.COMPLETED, self.write, engine)

    def write(self, evaluator: Any, trainer: Any) -> None:
        metrics = {key: value for key, value in evaluator.state.metrics.items() if isinstance(value, (int, float))}
        if trainer.state.rank != 0 or not metrics:
            return
        iteration, fields = trainer.state.iteration, ["iteration", *metrics]
        truncate(self.path, iteration, fields)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([iteration, *(repr(float(value)) for value in metrics.values())])
        logger.info("iteration %d: %s", iteration, ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))


class Progress:
    """A bar with remaining time and losses on a terminal; one quiet line every ``seconds`` elsewhere.

    Args:
        seconds: between two lines where stderr is no terminal.
        description: in front of the bar.
    """

    def __init__(self, seconds: float = 30.0, description: str = "training") -> None:
        self.seconds, self.description = seconds, description
        self._bar: tqdm | None = None
        self._last = 0.0
        self._average: float | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def update(self, engine: Any) -> None:
        if engine.state.rank != 0 or not engine.state.output:
            return
        output, iteration, total = engine.state.output[0], engine.state.iteration, engine.total_iterations
        loss = output["loss"]
        self._average = loss if self._average is None else 0.95 * self._average + 0.05 * loss
        terms = " ".join(f"{name} {value:.3f}" for name, value in output["terms"].items())
        text = f"loss {self._average:.3f} ({terms})"
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=total, initial=iteration - 1, desc=self.description, unit="it",
                                 dynamic_ncols=True, leave=True)  # fmt: skip
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
        elif time.monotonic() - self._last > self.seconds or iteration == total:
            self._last = time.monotonic()
            logger.info("%s: iteration %d of %d, %s", self.description, iteration, total, text)

    def _failed(self, engine: Engine, error: BaseException) -> None:
        self.close()
        raise error

    def close(self, engine: Engine | None = None) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class CaseProgress:
    """The same for an evaluator that goes through cases: a bar on a terminal, else one quiet line every ``seconds``.

    Args:
        total: number of cases.
        description: in front of the bar.
        seconds: between two lines where stderr is no terminal.
    """

    def __init__(self, total: int, description: str = "cases", seconds: float = 30.0) -> None:
        self.total, self.description, self.seconds = total, description, seconds
        self._bar: tqdm | None = None
        self._last = time.monotonic()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def update(self, engine: Any) -> None:
        done = engine.state.iteration
        if sys.stderr.isatty():
            self._bar = self._bar or tqdm(total=self.total, desc=self.description, unit="case", dynamic_ncols=True)
            self._bar.update(1)
        elif time.monotonic() - self._last > self.seconds or done == self.total:
            self._last = time.monotonic()
            logger.info("%s: case %d of %d", self.description, done, self.total)

    def close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

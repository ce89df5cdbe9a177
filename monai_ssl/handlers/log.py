"""What a run leaves on screen and on disk while it trains."""

from __future__ import annotations

import csv
import logging
import math
import sys
from pathlib import Path
from time import monotonic
from typing import Any

from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from monai_ssl.engines.trainer import RunEvents, SemiSupervisedTrainer
from monai_ssl.files import cell, text_of_cell, write_text
from monai_ssl.handlers.costs import TrainingCosts
from monai_ssl.progress import SECONDS, spoken
from monai_ssl.runs.folder import BEST
from monai_ssl.weights import save

logger = logging.getLogger(__name__)

TRAINING, VALIDATION = "training.csv", "validation.csv"


class TrainingLog:
    """``training.csv`` (one row per iteration: loss, every term, learning rate, gradient norm), and TensorBoard files.

    Terms and gradient norms of adversaries follow as ``name/term``. A term that a method leaves out in some iterations
    has an empty cell there; one that first comes later adds its column then.

    A resumed run first drops the rows after its starting point, so the file reads as if nothing had happened.

    Beside it lies ``costs.json``, see :class:`~monai_ssl.handlers.costs.TrainingCosts`.

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
        if isinstance(engine, SemiSupervisedTrainer):  # also where it fails
            engine.add_event_handler(RunEvents.CLOSED, self.close)
            TrainingCosts(self.path.parent).attach(engine)

    def _open(self, fields: list[str], iteration: int) -> None:
        if self._file is not None:
            self._file.close()
        self._fields = truncate(self.path, iteration, fields)
        self._file = open(self.path, "a", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, self._fields, restval="")
        if self.tensorboard is not None and self._board is None:
            self._board = SummaryWriter(str(self.tensorboard), purge_step=iteration)

    def write(self, engine: Any) -> None:
        if engine.state.rank != 0 or not engine.state.output:
            return
        output, iteration = engine.state.output[0], engine.state.iteration
        row = {"loss": output["loss"], **output["terms"], "lr": output["lr"], "grad_norm": output["grad_norm"],
               **output.get("adversaries", {})}  # fmt: skip
        if self._file is None or not row.keys() <= set(self._fields):
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


def truncate(path: Path, iteration: int, fields: list[str]) -> list[str]:
    """Keep the rows of a log before ``iteration``; a last line cut short by a kill is dropped as well.

    Returns:
        the columns of the log from here on: those of its rows, then what is new in ``fields``.
    """
    rows: list[dict[str, str]] = []
    if path.is_file() and iteration > 1:
        with open(path, newline="", encoding="utf-8") as file:
            for cells in csv.DictReader(file):
                complete = None not in cells and None not in cells.values()
                row = {text_of_cell(key): value for key, value in cells.items() if key is not None}
                if complete and row.get("iteration", "").isdigit() and int(row["iteration"]) < iteration:
                    rows.append(row)
    if rows:
        fields = [*rows[0], *(field for field in fields if field not in rows[0])]
    lines = [
        ",".join(cell(field) for field in fields),
        *(",".join(row.get(field, "") for field in fields) for row in rows),
    ]
    write_text(path, "\r\n".join(lines) + "\r\n")
    return fields


class ValidationLog:
    """``validation.csv``: one row per validation with the evaluator's metrics.

    Args:
        output_dir: folder of the run.
        evaluator: the engine that validates; attach this handler to the TRAINER, whose iteration is written.
        best: also keep the weights of the validation with the highest key metric so far, the first of equals, as
            ``best.pt``. A resumed run ends with the same file.
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine, best: bool = False) -> None:
        self.path, self.evaluator, self.best = Path(output_dir) / VALIDATION, evaluator, best

    def attach(self, engine: Engine) -> None:
        self.evaluator.add_event_handler(Events.COMPLETED, self.write, engine)

    def write(self, evaluator: Any, trainer: Any) -> None:
        metrics = {key: value for key, value in evaluator.state.metrics.items() if isinstance(value, (int, float))}
        if trainer.state.rank != 0 or not metrics or getattr(trainer, "stopping", 0):
            return
        iteration = trainer.state.iteration
        fields = truncate(self.path, iteration, ["iteration", *metrics])
        if self.best:  # before the row: a kill in between repeats the validation
            self._keep(next(iter(metrics)), float(next(iter(metrics.values()))), trainer)
        row = {"iteration": iteration, **{key: repr(float(value)) for key, value in metrics.items()}}
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, fields, restval="").writerow(row)
        logger.info("iteration %d: %s", iteration, ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))

    def _keep(self, key: str, value: float, trainer: Any) -> None:
        with open(self.path, newline="", encoding="utf-8") as file:
            former = [float(row[key]) for row in csv.DictReader(file) if row.get(key)]
        if all(value > other or math.isnan(other) for other in former) and not (math.isnan(value) and former):
            network = trainer.plain_method.network
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
            save(weights, self.path.with_name(BEST))


class Progress:
    """A bar with remaining time and losses on a terminal; one quiet line every ``seconds`` elsewhere.

    Every line says how much time is left. After ten steps, or after two that took long, one line more says how long the
    whole takes on this machine.

    Args:
        seconds: between two lines where stderr is no terminal.
        description: in front of the bar.
    """

    unit, short_unit, estimates = "iteration", "it", True

    def __init__(self, seconds: float = SECONDS, description: str = "training") -> None:
        self.seconds, self.description = seconds, description
        self._bar: tqdm | None = None
        self._said = -math.inf
        self._began: tuple[float, int] | None = None
        self._steady: tuple[float, int] | None = None
        self._estimated = False
        self._average: float | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        if isinstance(engine, SemiSupervisedTrainer):
            engine.add_event_handler(RunEvents.SETTLED, self._settled)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def total_of(self, engine: Any) -> int:
        """Number of steps of a whole run."""
        return engine.total_iterations

    def text_of(self, engine: Any) -> str | None:
        """What is said next to the count; None: nothing happened that is worth a step of the bar."""
        if not engine.state.output:
            return None
        output = engine.state.output[0]
        loss = output["loss"]
        self._average = loss if self._average is None else 0.95 * self._average + 0.05 * loss
        # significant digits: a term at the start of its ramp-up is small, not zero
        terms = " ".join(f"{name} {value:.3g}" for name, value in output["terms"].items())
        return f"loss {self._average:.4g} ({terms})"

    def _begin(self, engine: Any) -> None:
        self._began = self._began or (monotonic(), engine.state.iteration)

    def _settled(self, engine: Any) -> None:
        """What a measurement took before the first step says nothing about the others."""
        if self._began is not None:
            self._began = monotonic(), self._began[1]

    def update(self, engine: Any) -> None:
        if getattr(engine.state, "rank", 0) != 0 or (text := self.text_of(engine)) is None:
            return
        done, total, now = engine.state.iteration, self.total_of(engine), monotonic()
        self._began = self._began or (now, done)
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=total, initial=done - 1, desc=self.description, unit=self.short_unit,
                                 dynamic_ncols=True, leave=True)  # fmt: skip
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
        elif now - self._said > self.seconds or done == total:
            self._said = now
            said = [f"{self.description}: {self.unit} {done} of {total}", text, self._left(done, total, now)]
            logger.info(", ".join(part for part in said if part))
        self._estimate(done, total, now)
        self._steady = self._steady or (now, done)

    def _rate(self, done: int, now: float) -> float:
        """Seconds per step; the first one, which waits for loaders, counts only as long as it is alone."""
        for start, first in filter(None, (self._steady, self._began)):
            if done > first:
                return (now - start) / (done - first)
        return 0.0

    def _left(self, done: int, total: int, now: float) -> str:
        if done >= total:
            start, first = self._began or (now, done)
            return f"took {spoken(now - start)}" if done > first and self.estimates else ""
        rate = self._rate(done, now)
        return f"{spoken(rate * (total - done))} left" if rate else ""

    def _estimate(self, done: int, total: int, now: float) -> None:
        """Once, as soon as it can be known: what this machine takes for the whole."""
        start, first = self._steady or (now, done)
        if self._estimated or not self.estimates or done - first < 2 or (done - first < 10 and now - start < 30):
            return
        self._estimated = True
        rate = (now - start) / (done - first)
        if total > done + 10:
            whole, left = spoken(rate * total), spoken(rate * (total - done))
            text = (
                f"{self.description}: {rate:.2g} s per {self.unit} on this machine: {total} take {whole}, {left} left"
            )
            if self._bar is None:
                logger.info(text)
            else:
                self._bar.write(text, file=sys.stderr)

    def _failed(self, engine: Engine, error: BaseException) -> None:
        self.close()
        raise error

    def close(self, engine: Engine | None = None) -> None:
        self._began = self._steady = None
        self._estimated = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class CaseProgress(Progress):
    """The same for an evaluator that goes through cases.

    Args:
        total: number of cases; None: as many as the engine has before it.
        description: in front of the bar.
        seconds: between two lines where stderr is no terminal.
    """

    unit = short_unit = "case"
    estimates = False

    def __init__(self, total: int | None = None, description: str = "cases", seconds: float = SECONDS) -> None:
        super().__init__(seconds, description)
        self.total = total
        self._said = monotonic()  # a short evaluation says one line, at its end

    def total_of(self, engine: Any) -> int:
        return self.total or int(engine.state.epoch_length)

    def text_of(self, engine: Any) -> str:
        return ""

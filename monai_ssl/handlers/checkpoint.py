"""Full-state checkpoints and exact resume."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LambdaLR

from monai_ssl.bundle.resolved import building_parser
from monai_ssl.data.cases import case_names
from monai_ssl.distributed import from_first, in_group
from monai_ssl.engines import calibration
from monai_ssl.engines.trainer import RunEvents, SemiSupervisedTrainer
from monai_ssl.errors import DataError
from monai_ssl.runs import identity
from monai_ssl.runs.folder import Run
from monai_ssl.runs.state import FORMAT, read_state
from monai_ssl.weights import save

logger = logging.getLogger(__name__)

DIFFERENCES_SHOWN = 5


class RunCheckpoint:
    """Saves everything that training depends on, and takes a run up again where the last checkpoint left it.

    The state is: iteration, method (networks, teachers, memories, counters), optimizer and schedule of the method and
    of each of its adversaries, gradient scaler. With streams and dropout seeded by position, nothing else exists: a
    resumed run repeats the lost iterations bit for bit. Next to ``checkpoint.pt`` is ``model.pt``, the flat state dict
    of the deployed network.

    A checkpoint also holds the run's *identity*, everything that decides the result: all of the config as resolved, the
    preset's content, images and labels by content, seed, precision, number of processes. What may change is listed in
    :mod:`monai_ssl.runs.identity`: the length, places, device, loader processes, intervals.

    Args:
        output_dir: folder of the run.
        interval: iterations between checkpoints, >= 1. The end of the run, and where it is asked to stop (SIGINT,
            SIGTERM), is always saved.
        minutes: also save where the last checkpoint is older than this, > 0; None: only ``interval`` counts.
        resume: continue from ``checkpoint.pt`` where it belongs to the same run. A checkpoint of another run, or any
            with ``resume=False``, is moved with the run's other files to ``output_dir/previous-1`` (2, 3, ...) and
            training starts afresh: nothing is lost.
        identity: what else must be equal for two runs to be the same run, plain values.
        cases: further lists of cases that count by their content: name -> entries.

    Raises:
        DataError: when the checkpoint cannot be read, or has done more iterations than are asked for, or a warm start
            names the weights of this very run.
    """

    def __init__(
        self,
        output_dir: str | Path,
        interval: int = 100,
        resume: bool = True,
        identity: dict[str, Any] | None = None,
        minutes: float | None = None,
        cases: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be >= 1 iteration, got {interval}")
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be > 0 or None, got {minutes}")
        if not isinstance(resume, bool):  # the text "false" would be true
            raise ValueError(f"resume must be true or false, got {resume!r}")
        self.run, self.interval, self.resume, self.minutes = Run(output_dir), interval, resume, minutes
        self.identity, self.cases = dict(identity or {}), dict(cases or {})
        self._parser = building_parser()
        self._content: dict[str, Any] = {}
        self._aliases: dict[str, str] = {}
        self._held = self._supervised = False
        self._saved = monotonic()

    def attach(self, engine: Engine) -> None:
        if isinstance(engine, SemiSupervisedTrainer):  # before its data are read, and however it ends
            engine.add_event_handler(RunEvents.OPENED, self._begin)
            engine.add_event_handler(RunEvents.SETTLED, self._settled)
            engine.add_event_handler(RunEvents.CLOSED, self._end)
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.STARTED, self._attach_last)

    def _begin(self, engine: Any) -> None:
        """Become the folder's only writer, whichever door the training came through."""
        if engine.state.rank == 0:
            self._supervised = self.run.acquire()
            self._held = True

    def _end(self, engine: Any) -> None:
        if not self._held:
            return
        self.run.release()
        self._held = False
        if engine.state.iteration == engine.total_iterations and not (self._supervised or engine.stopping):
            logger.info("weights: %s", self.run.model)  # `monai-ssl train` says it itself

    def _attach_last(self, engine: Any) -> None:
        """Save after all other handlers: what a checkpoint counts as done is in the logs, also after a kill."""
        if engine.has_event_handler(self._finish, Events.COMPLETED):
            return

        def inside_an_epoch(engine: Any, _: int) -> bool:  # at its end validation comes first
            done, total = engine.state.iteration, engine.total_iterations
            if engine.stopping or done >= total:  # the end of the run has its own event
                return False
            return self._overdue() or (done % self.interval == 0 and done % engine.state.epoch_length != 0)

        def after_an_epoch(engine: Any, _: int) -> bool:
            done = engine.state.iteration
            return not engine.stopping and done < engine.total_iterations and done % self.interval == 0

        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=inside_an_epoch), self._save_inside)
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=after_an_epoch), self.save)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.STARTED, self._catch_up)

    def _overdue(self) -> bool:
        return self.minutes is not None and monotonic() - self._saved > 60 * self.minutes

    def _catch_up(self, engine: Any) -> None:
        """What follows the end of an epoch, where the run stopped in between."""
        done = engine.state.iteration
        if engine.unsettled and done % engine.state.epoch_length == 0:
            engine.fire_event(Events.EPOCH_COMPLETED)

    def restore(self, engine: Any) -> None:
        """Called when training starts: move the engine to where the previous run stopped."""
        path = self.run.checkpoint
        started = getattr(engine.plain_method.network, "started_from", None)
        if started is not None and started.file == self.run.model:
            raise DataError(
                f"init: must be another run than the one that begins, got {self.run.folder}; give another output_dir"
            )
        state = read_state(path, engine.state.device) if path.is_file() and self.resume else None
        differing = self._compare(engine, state)
        if state is not None and not differing:
            self._check_length(engine, state)
            try:
                self._continue(engine, state)
            except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
                raise DataError(
                    f"{path}: does not fit this method and network ({' '.join(str(error).split())[:240]}); give "
                    "another output_dir, or --resume false to start again"
                ) from error
            logger.info("resumed from %s at iteration %d", path, state["iteration"])
            self._warn(state["notes"])
        if in_group():
            torch.distributed.barrier()  # nobody moves the file while another process still reads it
        if engine.state.rank == 0:
            if path.exists() and not self.resume:
                logger.warning(
                    "%s: resume is off: starting again; its files are kept in %s", path, self.run.set_aside()
                )
            elif differing:
                shown = "; ".join(differing[:DIFFERENCES_SHOWN])
                more = f" (and {n} more)" if (n := len(differing) - DIFFERENCES_SHOWN) > 0 else ""
                logger.warning("%s: belongs to another run: %s%s. This one starts from the beginning; the files of the "
                               "former are kept in %s", path, shown, more, self.run.set_aside())  # fmt: skip
        engine.data_loader.start_at(engine.state.iteration)
        if started is not None and engine.state.iteration == 0 and engine.state.rank == 0:
            logger.info("%s", started)
        if engine.state.rank == 0:
            self.run.adopt()
            if not self._supervised:
                self.run.note(status="started", max_iterations=engine.total_iterations)
            self.run.sweep()
        if state is not None and not differing:
            engine.settle(identity.precision_of(state["identity"], engine))
        elif state is None and self.resume:  # killed before the first checkpoint
            engine.recorded = from_first(self.run.decision)
        self._saved = monotonic()

    def _settled(self, engine: Any) -> None:
        """Keep a decision on precision before the first step is made."""
        if engine.state.rank != 0:
            return
        self._content["identity"] |= identity.precision_facts(engine.precision)
        known = self.run.decision if engine.precision.found == "checkpoint" else None
        self.run.note_decision(known or calibration.record(engine.precision, engine.situation))

    def _compare(self, engine: Any, state: dict[str, Any] | None) -> list[str]:
        """Fill in what this run is; what makes it another one than the checkpoint's. One process reads the files."""
        precision = None if state is None else identity.precision_of(state["identity"], engine)
        if engine.state.rank == 0:
            lists = self._lists(engine)
            digests, files = identity.digests(lists, state["files"] if state else ())
            if self._parser is None:
                found, self._aliases = identity.parts(engine), {}
            else:
                found, self._aliases = identity.settings(self._parser)
            now = {**found, **identity.facts(engine, precision), **self.identity, **digests}
            plain = {key: value if _is_plain(value) else str(value) for key, value in now.items()}
            self._content = {"identity": plain, "files": files, "notes": identity.notes(engine)}
        if state is None or engine.state.rank != 0:
            return from_first([])
        names = {key: case_names([dict(case) for case in cases]) for key, cases in lists.items()}
        # earlier checkpoints say nothing of the layout, which followed the rule
        former = {**identity.precision_facts(precision or engine.choice[0]), **state["identity"]}
        return from_first(identity.differences(former, self._content["identity"], self._aliases, names))

    def _lists(self, engine: Any) -> dict[str, Sequence[Mapping[str, Any]]]:
        streams = engine.data_loader
        pool = streams.streams["unlabeled"][0].cases.entries if streams.n_unlabeled else []
        return {"labeled cases": streams.labeled.entries, "unlabeled cases": pool, **self.cases}

    def _check_length(self, engine: Any, state: dict[str, Any]) -> None:
        done, total = state["iteration"], engine.total_iterations
        if total < done:
            raise DataError(
                f"max_iterations: must be at least the {done} iterations that the run in {self.run.folder} has done, "
                f"got {total}; a shorter run needs another output_dir, or --resume false to start again"
            )

    def _warn(self, former: dict[str, Any]) -> None:
        now = self._content.get("notes", former)
        changed = [f"{key} {former[key]} -> {now[key]}" for key in former if key in now and former[key] != now[key]]
        if changed:
            logger.warning("continued with %s: the last bits of the result may differ from those of a run that was "
                           "never interrupted", ", ".join(changed))  # fmt: skip

    def _continue(self, engine: Any, state: dict[str, Any]) -> None:
        engine.plain_method.load_state_dict(state["method"])
        _load_optimizer(engine.optimizer, engine.lr_scheduler, state)
        for name, adversary in engine.adversaries.items():  # no key in checkpoints of methods without any
            _load_optimizer(adversary.optimizer, adversary.lr_scheduler, state["adversaries"][name])
        engine.grad_scaler.load_state_dict(state["grad_scaler"])
        engine.state.iteration = state["iteration"]
        engine.state.epoch = state["iteration"] // engine.state.epoch_length
        engine.unsettled = not state["settled"]

    def _save_inside(self, engine: Any) -> None:
        self.save(engine, settled=engine.state.iteration % engine.state.epoch_length != 0)

    def _finish(self, engine: Any) -> None:
        done = engine.state.iteration
        at_an_end = done == engine.total_iterations or done % engine.state.epoch_length == 0
        self.save(engine, settled=not (engine.stopping and at_an_end))
        if engine.stopping:
            engine.stopped_at = str(self.run.checkpoint)
        elif engine.state.rank == 0 and not self._supervised and done >= engine.total_iterations:
            self.run.note(status="complete")

    def save(self, engine: Any, settled: bool = True) -> None:
        """Write checkpoint and weights.

        Args:
            engine: the trainer.
            settled: whether what follows the end of an epoch, or of the run, has been done; if not, a resumed run
                begins with it.
        """
        if engine.state.rank != 0:
            return
        method = engine.plain_method
        content = {
            "format": FORMAT,
            "iteration": method.iteration,
            "settled": settled,
            **self._content,
            "method": method.state_dict(),
            **_optimizer_state(engine.optimizer, engine.lr_scheduler),
            "grad_scaler": engine.grad_scaler.state_dict(),
        }
        if engine.adversaries:
            content["adversaries"] = {
                name: _optimizer_state(a.optimizer, a.lr_scheduler) for name, a in engine.adversaries.items()
            }
        save(content, self.run.checkpoint)
        save(
            {key: value.detach().cpu().contiguous() for key, value in method.network.state_dict().items()},
            self.run.model,
        )
        self._saved = monotonic()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (str, int, float, bool, type(None)))


def _optimizer_state(optimizer: Any, lr_scheduler: Any) -> dict[str, Any]:
    return {"optimizer": optimizer.state_dict(), "lr_scheduler": _plain_state(lr_scheduler)}


def _load_optimizer(optimizer: Any, lr_scheduler: Any, state: dict[str, Any]) -> None:
    optimizer.load_state_dict(state["optimizer"])
    if lr_scheduler is not None:
        lr_scheduler.load_state_dict(state["lr_scheduler"])
        if isinstance(lr_scheduler, LambdaLR):  # a prolonged run follows its own schedule from here on
            schedule = zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
            for group, (rate, factor) in zip(optimizer.param_groups, schedule, strict=True):
                group["lr"] = rate * factor(lr_scheduler.last_epoch)


def _plain_state(scheduler: Any) -> dict[str, Any] | None:
    if scheduler is None:
        return None
    # the lambdas themselves are rebuilt from the config: only numbers are stored
    return {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(scheduler.base_lrs)
    }

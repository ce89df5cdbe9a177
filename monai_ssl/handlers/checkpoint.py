"""Full-state checkpoints and exact resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LambdaLR

from monai_ssl.errors import DataError
from monai_ssl.runs.folder import Run
from monai_ssl.runs.record import run_identity
from monai_ssl.weights import load, save

logger = logging.getLogger(__name__)


class RunCheckpoint:
    """Saves everything that training depends on, and takes a run up again where the last checkpoint left it.

    The state is: iteration, method (networks, teachers, memories, counters), optimizer and schedule of the method and
    of each of its adversaries, gradient scaler. With streams and dropout seeded by position, nothing else exists: a
    resumed run repeats the lost iterations bit for bit. Next to ``checkpoint.pt`` is ``model.pt``, the flat state dict
    of the deployed network.

    Args:
        output_dir: folder of the run.
        interval: iterations between checkpoints, >= 1. The end of the run is always saved.
        resume: continue from ``checkpoint.pt`` where it belongs to the same run. A checkpoint of another run (other
            seed, data, batch sizes, method, unsupervised weight, precision), or any with ``resume=False``, is moved
            with the run's other files to ``output_dir/previous-1`` (2, 3, ...) and training starts afresh: nothing is
            lost.
        identity: what else must be equal for two runs to be the same run, plain values. ``max_iterations`` does not
            belong here: a run may be prolonged.

    Raises:
        DataError: when the checkpoint cannot be read.
    """

    def __init__(
        self, output_dir: str | Path, interval: int = 100, resume: bool = True, identity: dict[str, Any] | None = None
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be >= 1 iteration, got {interval}")
        if not isinstance(resume, bool):  # the text "false" would be true
            raise ValueError(f"resume must be true or false, got {resume!r}")
        self.run, self.interval, self.resume = Run(output_dir), interval, resume
        self.identity = dict(identity or {})

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.STARTED, self._attach_last)

    def _begin(self, engine: Any) -> None:
        """Become the folder's only writer, whichever door the training came through."""
        if engine.state.rank == 0:
            self._supervised = self.run.acquire()

    def _end(self, engine: Any) -> None:
        if engine.state.rank == 0:
            self.run.release()
            if not self._supervised:  # `monai-ssl train` says it itself
                logger.info("weights: %s", self.run.model)

    def _attach_last(self, engine: Any) -> None:
        """Save after all other handlers: what a checkpoint counts as done is in the logs, also after a kill."""
        if engine.has_event_handler(self.save, Events.COMPLETED):
            return

        def due(engine: Any, _: int) -> bool:  # the end of the run has its own event
            return engine.state.iteration % self.interval == 0 and engine.state.iteration < engine.total_iterations

        def inside_an_epoch(engine: Any, _: int) -> bool:  # at its end validation comes first
            return due(engine, _) and engine.state.iteration % engine.state.epoch_length != 0

        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=inside_an_epoch), self.save)
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def restore(self, engine: Any) -> None:
        """Called when training starts: move the engine to where the previous run stopped."""
        path = self.run.checkpoint
        state = load(path, map_location=engine.state.device) if path.is_file() else None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # nobody moves the file while another process still reads it
        if state is not None:
            differing = self._difference(engine, state)
            if differing is None:
                try:
                    self._continue(engine, state)
                except (RuntimeError, KeyError, ValueError, TypeError) as error:
                    raise DataError(
                        f"{path}: does not fit this method and network ({' '.join(str(error).split())[:240]}); give "
                        "another output_dir, or --resume false to start again"
                    ) from error
                logger.info("resumed from %s at iteration %d", path, state["iteration"])
            elif engine.state.rank == 0:
                logger.warning("%s: %s; its files are kept in %s", path, differing, self.run.set_aside())
        engine.data_loader.start_at(engine.state.iteration)
        if engine.state.rank == 0:
            self.run.adopt()
            self.run.sweep()

    def _difference(self, engine: Any, state: dict[str, Any]) -> str | None:
        if not self.resume:
            return "resume is off: starting again"
        if not isinstance(state, dict) or not isinstance(identity := state.get("identity"), dict):
            raise DataError(f"{self.run.checkpoint}: is no checkpoint of a run; move it away")
        for key, value in run_identity(engine, self.identity).items():
            former = identity.get(key, value)
            if former != value:
                return f"belongs to a run with {key} = {former!r}, this one has {value!r}: starting again"
        return None

    def _continue(self, engine: Any, state: dict[str, Any]) -> None:
        engine.plain_method.load_state_dict(state["method"])
        _load_optimizer(engine.optimizer, engine.lr_scheduler, state)
        for name, adversary in engine.adversaries.items():  # no key in checkpoints of methods without any
            _load_optimizer(adversary.optimizer, adversary.lr_scheduler, state["adversaries"][name])
        engine.grad_scaler.load_state_dict(state["grad_scaler"])
        engine.state.iteration = state["iteration"]
        engine.state.epoch = state["iteration"] // engine.state.epoch_length

    def save(self, engine: Any) -> None:
        if engine.state.rank != 0:
            return
        method = engine.plain_method
        content = {
            "iteration": method.iteration,
            "identity": run_identity(engine, self.identity),
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

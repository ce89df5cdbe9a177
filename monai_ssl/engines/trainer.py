"""The training engine."""

from __future__ import annotations

import logging
import math
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from ignite.engine.events import EventEnum
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_ssl.data.streams import TwoStreamLoader, position_seed
from monai_ssl.distributed import any_of, average_gradients, in_group
from monai_ssl.engines import calibration
from monai_ssl.engines.adversaries import adversaries_of, learning
from monai_ssl.engines.crowding import crowded
from monai_ssl.engines.precision import (
    Precision,
    autocast,
    candidates,
    channels_last,
    on_device,
    shield_bfloat16_convolutions,
)
from monai_ssl.errors import DataError, TrainingDivergedError, TrainingInterrupted, out_of_resources
from monai_ssl.interrupts import StopRequest, stop_requests
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.methods import SemiSupervisedMethod

logger = logging.getLogger(__name__)


class RunEvents(EventEnum):
    """What Ignite has no events for: ``OPENED`` before the data are read, ``SETTLED`` once the precision is decided,
    before the first step, ``CLOSED`` however the training ends."""

    OPENED = "opened"
    SETTLED = "settled"
    CLOSED = "closed"


class SemiSupervisedTrainer(Trainer):
    """Ignite/MONAI trainer of a :class:`~monai_ssl.methods.SemiSupervisedMethod`.

    One iteration = one optimizer step: the method's named terms are summed and minimized, the schedule advances, every
    adversary of the method makes its own step on the same batch, then ``method.after_step()`` runs. Dropout and every
    other use of the torch generator is seeded by (seed, iteration, rank), so a run that was killed and resumed follows
    the same trajectory bit for bit, whatever validation or previews drew in between.

    SIGINT (Ctrl-C) and SIGTERM let the step in work end; the handlers of ``COMPLETED`` then save it, and :meth:`run`
    raises. A second one acts at once. This needs the main thread; elsewhere signals are left alone.

    The host waits for the device once per step, after everything was queued: terms and gradient norm come over
    together, and are checked before the optimizer moves. Each adversary adds one wait, a gradient scaler one more.

    Args:
        device: where to train.
        max_epochs: epochs of ``train_data_loader.epoch_length`` iterations; training ends here or at
            ``max_iterations``, whichever comes first.
        train_data_loader: two streams.
        method: the method, or a ``DistributedDataParallel`` around it.
        optimizer: of ``method.parameters()``; those of adversaries are frozen while it steps, and it skips them.
        lr_scheduler: stepped once per iteration, or None.
        max_iterations: length of the run; None: only ``max_epochs`` counts.
        seed: of everything random inside a step.
        amp: see :func:`monai_ssl.engines.precision.autocast_dtype`. ``"auto"`` is decided before the first step, on a
            CPU by a short measurement where the training is long enough, see :mod:`monai_ssl.engines.calibration`.
        accumulation_steps: the batch is cut into this many parts that are passed one after the other: less memory,
            same effective batch (batch norm and pooled losses then see one part at a time). Both batch sizes must be
            divisible by it.
        clip_gradient_norm: L2 norm to which gradients are clipped, the method's and each adversary's apart, or None.
        channels_last_weights: images and convolution weights in channels-last layout (same mathematics): ``True`` or
            ``"channels_last"``, ``False`` or ``"contiguous"``. None or ``"auto"``: where it is faster, decided like
            ``amp``. Lay out the weights of a method before you wrap it in ``DistributedDataParallel``: afterwards they
            stay as they are.
        handlers: Ignite handlers.
        **kwargs: further arguments of :class:`monai.engines.Trainer`.

    After each iteration ``engine.state.output[0]`` holds ``loss``, ``terms`` (dict of floats; a term that the method
    left out is not in it), ``grad_norm`` (before clipping), ``lr``, ``image`` and ``label`` of the labeled batch, and
    ``adversaries``: ``"<name>/<term>"`` and ``"<name>/grad_norm"`` of those that made a step.

    Raises:
        TypeError: when ``method`` is no SemiSupervisedMethod.
        ValueError: for options out of range, or adversaries without optimizers of their own.
        DataError: for a label with :data:`~monai_ssl.losses.IGNORE_LABEL` where the method does not honor it.
        TrainingDivergedError: when a term or the gradient is not finite; the weights and the last checkpoint are those
            of the last good step.
        TrainingInterrupted: a KeyboardInterrupt, after SIGINT; SystemExit after SIGTERM.
        ResourceError: when memory ran out, or a loader process was killed.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: TwoStreamLoader,
        method: SemiSupervisedMethod | DistributedDataParallel,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler | None = None,
        max_iterations: int | None = None,
        seed: int = 0,
        amp: str | bool | None = "auto",
        accumulation_steps: int = 1,
        clip_gradient_norm: float | None = None,
        channels_last_weights: bool | str | None = None,
        handlers: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.method: nn.Module = method
        plain = self.plain_method
        if not isinstance(plain, SemiSupervisedMethod):
            raise TypeError(f"method must be a SemiSupervisedMethod, got {type(plain).__name__}")
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be >= 1, got {accumulation_steps}")
        sizes = [size for _, size in train_data_loader.streams.values()]
        if any(size % accumulation_steps for size in sizes):
            raise ValueError(f"accumulation_steps must divide the batch sizes {sizes}, got {accumulation_steps}")
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if not all(0 <= rate < math.inf for rate in rates):
            raise ValueError(f"optimizer must have a finite learning rate >= 0, got {rates}")
        if clip_gradient_norm is not None and not clip_gradient_norm > 0:
            raise ValueError(f"clip_gradient_norm must be > 0 or None, got {clip_gradient_norm}")
        if plain is method:
            plain.to(
                device
            )  # what a method owns in addition to its network; parameters stay the objects the optimizer knows
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.max_iterations, self.seed = max_iterations, int(seed)
        self.accumulation_steps, self.clip_gradient_norm = accumulation_steps, clip_gradient_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # DDP's buckets assume the strides at wrapping: changing them later would permute gradients (torch 2.13)
        self.choice = candidates(amp, channels_last_weights, device, measurable=plain is method)
        # the decision, once it is made; whether it is in force; what it was before a kill, and what it rests on
        self.precision: Precision | None = None
        self.settled, self.recorded, self.situation = False, None, {}  # type: ignore[var-annotated]
        self.crowd: str | None = None
        if len(self.choice) == 1:
            self.precision = self.choice[0]
            self._lay_out()
        if torch.device(device).type == "cpu" and any(choice.dtype is torch.bfloat16 for choice in self.choice):
            shield_bfloat16_convolutions(plain)
        self.grad_scaler = torch.amp.GradScaler(torch.device(device).type, enabled=self.dtype is torch.float16)
        self.adversaries = adversaries_of(plain)  # now that parameters are where they stay
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=len(train_data_loader),
            handlers=handlers,
            decollate=False,
            event_names=[*kwargs.pop("event_names", []), RunEvents],
            **kwargs,
        )
        self.state.output = None
        self.logger.addFilter(_announces_no_end)
        self.request = StopRequest()
        # the signal for which this run ends, 0 while it goes on; whether a resumed run owes the end of its epoch; and
        # where the state of a stopped run is
        self.stopping, self.unsettled, self.stopped_at = 0, False, ""

    @property
    def plain_method(self) -> SemiSupervisedMethod:
        """The method without its distributed wrapper."""
        wrapped = isinstance(self.method, DistributedDataParallel)
        return self.method.module if wrapped else self.method  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype | None:
        """Of autocast, None for float32; what the fixed rule takes as long as it is not decided."""
        return (self.precision or self.choice[0]).dtype

    @property
    def channels_last(self) -> bool:
        """Whether images are in channels-last layout, as for :attr:`dtype`."""
        return (self.precision or self.choice[0]).channels_last

    @property
    def total_iterations(self) -> int:
        """Iterations after which the run is complete."""
        by_epochs = int(self.state.max_epochs) * int(self.state.epoch_length)
        return by_epochs if self.max_iterations is None else min(by_epochs, self.max_iterations)

    def run(self) -> None:  # type: ignore[override]
        """Train to the end; handlers such as ``RunCheckpoint`` may move the start to where a previous run stopped."""
        streams: Any = self.data_loader
        self.request, self.stopping, self.unsettled, self.stopped_at = StopRequest(), 0, False, ""
        self.settled = False
        try:
            self.fire_event(RunEvents.OPENED)
            streams.prepare()
            logger.info("%d labeled and %d unlabeled cases, %d iterations", streams.n_labeled, streams.n_unlabeled,
                        self.total_iterations)  # fmt: skip
            on_cpu = torch.device(self.state.device).type == "cpu"
            self.crowd = crowded(torch.get_num_threads()) if on_cpu else None  # before loaders have processes
            if self.crowd:
                logger.warning("%s", self.crowd)
            with stop_requests(self.request):
                # Trainer.run would make a CUDA-only scaler: ours exists already and is part of the checkpoint
                super(Trainer, self).run()
            if self.state.iteration >= self.total_iterations and not self.stopping:
                streams.close()
        except (MemoryError, RuntimeError) as error:
            if (known := out_of_resources(error)) is None:
                raise
            raise known from error
        finally:
            self.fire_event(RunEvents.CLOSED)
        if self.request.signal or self.stopping:
            self._leave(self.request.signal or self.stopping)

    def settle(self, precision: Precision) -> None:
        """Step with this precision from now on; called once in a run, by itself before the first step.

        Args:
            precision: one of ``choice``, or what a checkpoint was trained with.
        """
        undecided, self.precision, self.settled = self.precision is None, precision, True
        if undecided:
            self._lay_out()
        if self.state.rank == 0:
            logger.info("%s", calibration.told(precision))
        self.fire_event(RunEvents.SETTLED)

    def _lay_out(self) -> None:
        plain = self.plain_method
        if self.channels_last and plain is self.method:
            channels_last(plain)

    def _decide(self, batch: dict[str, Any]) -> Precision:
        """By the first batch, through a copy of the method."""
        if self.precision is not None:
            return self.precision
        found, self.situation = calibration.decide(
            self.choice, self.plain_method, self._part(batch, 0), self.state.device, self.total_iterations,
            self.recorded, {"accumulation_steps": self.accumulation_steps}, self.plain_method is self.method,
            self.crowd is not None,
        )  # fmt: skip
        return found

    def stop_now(self) -> None:
        """Called by a handler between two steps: end here, as far as this process alone can decide it."""
        if self.request.signal and not in_group():
            self.stopping = self.request.signal
            self.terminate()

    def _leave(self, number: int) -> None:
        """Say where the run stands, and end what called it."""
        name = signal.Signals(number).name
        saved = f"; {self.stopped_at} holds all of it" if self.stopped_at else ""
        done, total = self.state.iteration, self.total_iterations
        text = f"stopped by {name} after iteration {done} of {total}{saved}: run the same command again to continue"
        if self.state.rank == 0:
            logger.warning("%s", text)
        program = getattr(sys.modules.get("__main__"), "__spec__", None)
        if number != signal.SIGINT or (program is not None and program.name.startswith("monai.bundle")):
            raise SystemExit(128 + number)
        raise TrainingInterrupted(text)

    def _iteration(self, engine: Any, batch: dict[str, Any]) -> Any:
        if batch is None:
            raise ValueError("Must provide batch data for current iteration.")
        iteration = engine.state.iteration - 1  # Ignite counts from 1
        if iteration >= self.total_iterations:  # a finished run that is started again
            engine.terminate()
            engine.state.iteration = iteration  # which Ignite has counted up already
            return engine.state.output or []
        self._check_labels(batch, iteration)
        if not self.settled:
            self.settle(self._decide(batch))
        torch.manual_seed(position_seed(self.seed, 2, iteration, engine.state.rank))
        self.method.train()
        batch = {s: on_device(items, engine.state.device, self.channels_last) for s, items in batch.items()}
        self.optimizer.zero_grad(set_to_none=True)
        found: list[dict[str, Tensor]] = []
        for part in range(self.accumulation_steps):
            wait = isinstance(self.method, DistributedDataParallel) and part < self.accumulation_steps - 1
            with self.method.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with autocast(engine.state.device, self.dtype):
                    terms = self.method(*self._part(batch, part))
                self.grad_scaler.scale(self._loss(terms)).backward()
            found.append({name: term.detach() for name, term in terms.items()})
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        rate = self.optimizer.param_groups[0]["lr"]
        totals, norm = self._step(self.optimizer, self.parameters, found, iteration, batch)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        adversaries: dict[str, float] = {}
        for number, name in enumerate(self.adversaries):
            adversaries |= self._adversary_step(name, number, iteration, batch)
        self.grad_scaler.update()  # once, after every optimizer
        self.plain_method.after_step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        self.stopping = any_of(self.request.signal, engine.state.device)  # all processes after the same step
        if self.stopping or (iteration + 1 >= self.total_iterations and (iteration + 1) % engine.state.epoch_length):
            engine.terminate()  # inside an epoch; at its end Ignite stops by itself, and its epoch handlers run
        step = {
            "loss": sum(totals.values()),
            "terms": totals,
            "adversaries": adversaries,
            "grad_norm": norm,
            "lr": rate,
            "image": batch["labeled"]["image"],
            "label": batch["labeled"]["label"],
        }
        return [step]  # MONAI's convention: its handlers read the loss of the first item

    def _adversary_step(self, name: str, number: int, iteration: int, batch: dict[str, Any]) -> dict[str, float]:
        """One step of an adversary; what it logs."""
        adversary, plain = self.adversaries[name], self.plain_method
        parameters = adversary.parameters
        # its draws do not depend on how many the method made
        torch.manual_seed(position_seed(self.seed, 3, iteration, self.state.rank, number))
        plain.train()
        found: list[dict[str, Tensor]] = []
        with learning(parameters):
            for part in range(self.accumulation_steps):
                with autocast(self.state.device, self.dtype):
                    terms = plain.adversary_terms(name, *self._part(batch, part))
                if not terms:
                    return {}
                # only its own parameters, whatever else the graph reaches
                self.grad_scaler.scale(self._loss(terms)).backward(inputs=parameters)
                found.append({f"{name}/{key}": term.detach() for key, term in terms.items()})
            average_gradients(parameters)
            totals, norm = self._step(adversary.optimizer, parameters, found, iteration, batch, f" of {name!r}")
        if adversary.lr_scheduler is not None:
            adversary.lr_scheduler.step()
        return {**totals, f"{name}/grad_norm": norm}

    def _loss(self, terms: dict[str, Tensor]) -> Tensor:
        if not terms:
            raise ValueError(
                f"forward of {type(self.plain_method).__name__} must return at least one loss term, got none"
            )
        return torch.stack([t.float() for t in terms.values()]).sum() / self.accumulation_steps

    def _step(
        self,
        optimizer: Optimizer,
        parameters: Sequence[nn.Parameter],
        found: Sequence[dict[str, Tensor]],
        iteration: int,
        batch: dict[str, Any],
        whose: str = "",
    ) -> tuple[dict[str, float], float]:
        """Check terms and gradients, clip, step; the terms' means over the parts, and the norm before clipping."""
        self.grad_scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # float32 as on the device, in one transfer: the only wait of a step
        terms = [term.float() for part in found for term in part.values()]
        *values, value = torch.stack([*terms, norm.float().to(terms[0].device)]).cpu().unbind()
        totals: dict[str, Tensor] = {}
        for name, term in zip([name for part in found for name in part], values, strict=True):
            if not math.isfinite(term):
                raise TrainingDivergedError(self._message(f"loss term {name!r}", float(term), iteration, batch))
            totals[name] = totals.get(name, 0.0) + term / self.accumulation_steps
        if not self.grad_scaler.is_enabled() and not math.isfinite(value):
            raise TrainingDivergedError(self._message(f"the gradient{whose}", float(value), iteration, batch))
        if self.clip_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_gradient_norm, norm)
        self.grad_scaler.step(optimizer)
        return {name: float(total) for name, total in totals.items()}, float(value)

    def _part(self, batch: dict[str, Any], part: int) -> tuple[Any, Any]:
        """Labeled and unlabeled items of one part of the batch; None for a stream that is not there."""
        streams = (batch["labeled"], batch.get("unlabeled"))
        if self.accumulation_steps == 1:
            return streams
        return tuple(self._cut(items, part) for items in streams)  # type: ignore[return-value]

    def _cut(self, items: dict[str, Any] | None, part: int) -> dict[str, Any] | None:
        if items is None:
            return None
        size = len(items["image"]) // self.accumulation_steps
        return {key: value[part * size : (part + 1) * size] for key, value in items.items()}

    def _check_labels(self, batch: dict[str, Any], iteration: int) -> None:
        """On the loader's side of the transfer, where looking costs no wait; nothing where the method honors them."""
        label = batch["labeled"].get("label")
        if self.plain_method.honors_ignore_label or label is None or not (label == IGNORE_LABEL).any():
            return
        names = [
            name for name, item in zip(batch["labeled"]["name"], label, strict=True) if (item == IGNORE_LABEL).any()
        ]
        raise DataError(
            f"iteration {iteration}: case {', '.join(names)}: the label holds {IGNORE_LABEL}, voxels to be ignored, "
            f"which {type(self.plain_method).__name__} does not honor as it is configured; train a method that sets "
            "honors_ignore_label, use losses of monai_ssl.losses, or label these voxels"
        )

    @staticmethod
    def _message(what: str, value: float, iteration: int, batch: dict[str, Any]) -> str:
        cases = "; ".join(f"{stream}: {', '.join(items.get('name', []))}" for stream, items in batch.items())
        return (
            f"iteration {iteration}: {what} is {value}; cases in this batch: {cases}. The last checkpoint is intact. "
            "Run `monai-ssl check` on the data; else lower the learning rate, clip gradients or set amp to off."
        )


def _announces_no_end(record: logging.LogRecord) -> bool:
    """Ignite reports every exception that it passes on; whoever catches it reports it as well."""
    return "run is terminating due to exception" not in str(record.msg)

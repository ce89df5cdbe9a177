"""The training engine."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_ssl.data.streams import TwoStreamLoader, position_seed
from monai_ssl.engines.precision import (
    autocast,
    autocast_dtype,
    channels_last,
    layout,
    prefers_channels_last,
    shield_bfloat16_convolutions,
)
from monai_ssl.errors import TrainingDivergedError
from monai_ssl.methods import SemiSupervisedMethod

logger = logging.getLogger(__name__)


class SemiSupervisedTrainer(Trainer):
    """Ignite/MONAI trainer of a :class:`~monai_ssl.methods.SemiSupervisedMethod`.

    One iteration = one optimizer step: the method's named terms are summed and minimized, the schedule advances, then
    ``method.after_step()`` runs. Dropout and every other use of the torch generator is seeded by (seed, iteration,
    rank), so a run that was killed and resumed follows the same trajectory bit for bit, whatever validation or
    previews drew in between.

    Args:
        device: where to train.
        max_epochs: epochs of ``train_data_loader.epoch_length`` iterations; training ends here or at
            ``max_iterations``, whichever comes first.
        train_data_loader: two streams.
        method: the method, or a ``DistributedDataParallel`` around it.
        optimizer: of the method's parameters.
        lr_scheduler: stepped once per iteration, or None.
        max_iterations: length of the run; None: ``max_epochs`` alone counts.
        seed: of everything random inside a step.
        amp: see :func:`monai_ssl.engines.precision.autocast_dtype`.
        accumulation_steps: the batch is cut into this many parts that are passed one after the other: less memory,
            same effective batch (batch norm and pooled losses then see one part at a time). Both batch sizes must be
            divisible by it.
        clip_gradient_norm: L2 norm to which gradients are clipped, or None.
        channels_last_weights: images and convolution weights in channels-last layout (same mathematics). None: where
            it is faster, see :func:`monai_ssl.engines.precision.prefers_channels_last`. Lay out the weights of a method
            before you wrap it in ``DistributedDataParallel``: afterwards they stay as they are.
        handlers: Ignite handlers.
        **kwargs: further arguments of :class:`monai.engines.Trainer`.

    After each iteration ``engine.state.output[0]`` holds ``loss``, ``terms`` (dict of floats), ``grad_norm`` (before
    clipping), ``lr`` and ``image``, ``label`` of the labeled batch.

    Raises:
        TypeError: when ``method`` is no SemiSupervisedMethod.
        ValueError: for options out of range.
        TrainingDivergedError: when a term or the gradient is not finite; the weights and the last checkpoint are those
            of the last good step.
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
        channels_last_weights: bool | None = None,
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
        if clip_gradient_norm is not None and not clip_gradient_norm > 0:
            raise ValueError(f"clip_gradient_norm must be > 0 or None, got {clip_gradient_norm}")
        if plain is method:
            plain.to(device)  # what a method owns beside its network; parameters stay the objects the optimizer knows
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.max_iterations, self.seed = max_iterations, int(seed)
        self.accumulation_steps, self.clip_gradient_norm = accumulation_steps, clip_gradient_norm
        self.dtype = autocast_dtype(amp, device)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if channels_last_weights is None:
            channels_last_weights = prefers_channels_last(device, self.dtype)
        self.channels_last = channels_last_weights
        # a wrapped method keeps the layout that it was wrapped with: else it mixes up its gradients (torch 2.13)
        if channels_last_weights and plain is method:
            channels_last(plain)
        if torch.device(device).type == "cpu" and self.dtype is torch.bfloat16:
            shield_bfloat16_convolutions(plain)
        self.grad_scaler = torch.amp.GradScaler(torch.device(device).type, enabled=self.dtype is torch.float16)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=len(train_data_loader),
            handlers=handlers,
            decollate=False,
            **kwargs,
        )
        self.state.output = None

    @property
    def plain_method(self) -> SemiSupervisedMethod:
        """The method without its distributed wrapper."""
        wrapped = isinstance(self.method, DistributedDataParallel)
        return self.method.module if wrapped else self.method  # type: ignore[return-value]

    @property
    def total_iterations(self) -> int:
        """Iterations after which the run is complete."""
        by_epochs = int(self.state.max_epochs) * int(self.state.epoch_length)
        return by_epochs if self.max_iterations is None else min(by_epochs, self.max_iterations)

    def run(self) -> None:  # type: ignore[override]
        """Train to the end; handlers such as ``RunCheckpoint`` may move the start to where a former run stopped."""
        streams: Any = self.data_loader
        streams.prepare()
        logger.info(
            "%d labeled and %d unlabeled cases, %d iterations, %s",
            streams.n_labeled,
            streams.n_unlabeled,
            self.total_iterations,
            "float32" if self.dtype is None else str(self.dtype).removeprefix("torch."),
        )
        # Trainer.run would make a CUDA-only scaler: ours exists already and is part of the checkpoint
        super(Trainer, self).run()

    def _iteration(self, engine: Any, batch: dict[str, Any]) -> Any:
        if batch is None:
            raise ValueError("Must provide batch data for current iteration.")
        iteration = engine.state.iteration - 1  # Ignite counts from 1
        if iteration >= self.total_iterations:  # a finished run that is started again
            engine.terminate()
            return engine.state.output or []
        torch.manual_seed(position_seed(self.seed, 2, iteration, engine.state.rank))
        self.method.train()
        batch = {stream: self._to_device(items) for stream, items in batch.items()}
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part in range(self.accumulation_steps):
            labeled = self._part(batch["labeled"], part)
            unlabeled = self._part(batch["unlabeled"], part) if "unlabeled" in batch else None
            last = part == self.accumulation_steps - 1
            wait = isinstance(self.method, DistributedDataParallel) and not last
            with self.method.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with autocast(engine.state.device, self.dtype):
                    terms = self.method(labeled, unlabeled)
                loss = torch.stack([t.float() for t in terms.values()]).sum() / self.accumulation_steps
                self._check(terms, iteration, batch)
                self.grad_scaler.scale(loss).backward()
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.detach().float() / self.accumulation_steps
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.grad_scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not self.grad_scaler.is_enabled() and not math.isfinite(norm):
            raise TrainingDivergedError(self._message("the gradient", float(norm), iteration, batch))
        if self.clip_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_gradient_norm, norm)
        rate = self.optimizer.param_groups[0]["lr"]
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.plain_method.after_step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        values = torch.stack(list(totals.values())).tolist()
        if iteration + 1 >= self.total_iterations and (iteration + 1) % engine.state.epoch_length:
            engine.terminate()  # inside an epoch; at its end Ignite stops by itself, and its epoch handlers run
        step = {
            "loss": sum(values),
            "terms": dict(zip(totals, values, strict=True)),
            "grad_norm": float(norm),
            "lr": rate,
            "image": batch["labeled"]["image"],
            "label": batch["labeled"]["label"],
        }
        return [step]  # MONAI's convention: its handlers read the loss of the first item

    def _to_device(self, items: dict[str, Any]) -> dict[str, Any]:
        moved = {}
        for key, value in items.items():
            if isinstance(value, Tensor):
                value = value.to(self.state.device, non_blocking=True)
                if key == "image" and self.channels_last and value.dim() in (4, 5):
                    value = value.contiguous(memory_format=layout(value.dim()))
            moved[key] = value
        return moved

    def _part(self, items: dict[str, Any], part: int) -> dict[str, Any]:
        if self.accumulation_steps == 1:
            return items
        size = len(items["image"]) // self.accumulation_steps
        return {key: value[part * size : (part + 1) * size] for key, value in items.items()}

    def _check(self, terms: dict[str, Tensor], iteration: int, batch: dict[str, Any]) -> None:
        values = torch.stack([t.detach().float() for t in terms.values()]).tolist()
        bad = {name: value for name, value in zip(terms, values, strict=True) if not math.isfinite(value)}
        if bad:
            name, value = next(iter(bad.items()))
            raise TrainingDivergedError(self._message(f"loss term {name!r}", value, iteration, batch))

    @staticmethod
    def _message(what: str, value: float, iteration: int, batch: dict[str, Any]) -> str:
        cases = "; ".join(f"{stream}: {', '.join(items.get('name', []))}" for stream, items in batch.items())
        return (
            f"iteration {iteration}: {what} is {value}; cases in this batch: {cases}. The last checkpoint is intact. "
            "Run `monai-ssl check` on the data; else lower the learning rate, clip gradients or set amp to off."
        )

"""The number format and memory layout in which a training steps fastest, by a short measurement at its start.

What a CPU lists says little: AVX-512 BF16 halves a step on one processor and makes it slower on another. So the first
batch of a training is passed forward and backward a few times, in float32 and bfloat16, contiguous and channels-last,
through a throwaway copy of the method: nothing of the training changes. Two measurements need not agree, and then the
same seed would no longer give the same result; therefore the first decision on a kind of machine for a training of this
method and these shapes is kept in :func:`cache_folder`, and every equal training follows it.

Trainings that end before a measurement pays follow the fixed rule of :mod:`monai_ssl.engines.precision`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import monai_ssl
from monai_ssl.distributed import any_of, from_first, in_group
from monai_ssl.engines.precision import Precision, autocast, channels_last, on_device, shield_bfloat16_convolutions
from monai_ssl.files import write_text
from monai_ssl.machine import available_memory, cpu_name

logger = logging.getLogger(__name__)

# trainings below either follow the rule: about half a minute of one core for the networks of the literature
LEAST_ITERATIONS = 100
LEAST_VOXELS = 20_000_000
# bfloat16 must be so much faster than float32, and a layout than that of the rule
FORMAT_MARGIN, LAYOUT_MARGIN = 0.92, 0.95
# seconds: of the timed rounds together; of a first step that counts, of one after which fewer are made, and of the very
# first that is not made again
BUDGET, SETUP, LONG, LONGER = 4.0, 0.3, 1.5, 5.0
MOST_ROUNDS = 8
# times the fastest after which a candidate has lost: with the first step, which sets up kernels, and later
LOST_AT_FIRST, LOST = 2.0, 1.3
# the environment variable that names another folder for what is kept
FOLDER = "MONAI_SSL_CACHE"


def cache_folder() -> Path | None:
    """Where decisions are kept: ``$MONAI_SSL_CACHE``, else ``monai_ssl`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    None where the user has no folder. Whoever deletes it lets the next training measure anew.
    """
    if named := os.environ.get(FOLDER):
        return Path(named).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai_ssl"
    except RuntimeError:
        return None


def pays(iterations: int, batch: Sequence[Any]) -> bool:
    """Whether a training is long enough to measure; a matter of its options alone, never of a clock.

    Args:
        iterations: of the training.
        batch: labeled and unlabeled items of a step.

    Example:
        >>> batch = [{"image": torch.zeros(2, 1, 32, 32, 16)}, None]
        >>> pays(99, batch), pays(800, batch)
        (False, True)
    """
    voxels = sum(items["image"][:, 0].numel() for items in batch if items is not None)
    return iterations >= LEAST_ITERATIONS and iterations * voxels >= LEAST_VOXELS


def decide(
    choice: Sequence[Precision],
    method: nn.Module,
    batch: Sequence[Any],
    device: torch.device | str,
    iterations: int,
    recorded: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    relayout: bool = True,
    crowd: bool = False,
) -> tuple[Precision, dict[str, Any]]:
    """The precision of a training, the same in all its processes.

    Args:
        choice: what there is to choose from; the first is the rule's.
        method: a SemiSupervisedMethod, without distributed wrapper; it is copied, never called.
        batch: labeled and unlabeled items of one forward pass.
        device: where the method is.
        iterations: of the whole training.
        recorded: what this function decided for the training before it was killed, as :func:`record` has it.
        facts: what else the time of a step depends on.
        relayout: whether weights follow the layout of the images.
        crowd: whether other programs keep the cores busy that this one counts on: a time then says nothing.

    Returns:
        the decision; and what :func:`record` needs besides.
    """
    situation = _situation(choice, method, batch, facts or {})
    known, file = _recorded(recorded, situation, choice), _file(situation)
    if known is None and pays(iterations, batch):
        known = _kept(file, situation, choice)
    known = from_first(known)
    if known is None and pays(iterations, batch):
        seconds = {} if any_of(int(crowd), device) else _measure(choice, method, batch, device, relayout)
        # what could not be measured is kept as well: an equal training that could would end with other bits
        found = chosen(seconds, choice) if seconds else replace(choice[0], found="assumed")
        known = _keep(file, found, situation, choice)
    return from_first(known or choice[0]), situation


def chosen(seconds: Mapping[str, float], choice: Sequence[Precision]) -> Precision:
    """The fastest by more than noise: float32 unless bfloat16 saves 8 %, the rule's layout unless another saves 5 %.

    Args:
        seconds: of a step, by the name of the precision.
        choice: in the order of the rule; what was not measured is out.

    Example:
        >>> two = [Precision("bfloat16", "channels_last"), Precision("float32", "channels_last")]
        >>> chosen({"bfloat16, channels-last": 0.97, "float32, channels-last": 1.0}, two).format
        'float32'
    """
    best: dict[str, Precision] = {}
    for precision in choice:
        if precision.name in seconds:
            first = best.setdefault(precision.format, precision)
            if seconds[precision.name] < LAYOUT_MARGIN * seconds[first.name]:
                best[precision.format] = precision
    found = best.get("float32", next(iter(best.values())))
    for precision in best.values():
        if seconds[precision.name] < FORMAT_MARGIN * seconds[found.name]:
            found = precision
    return Precision(found.format, found.layout, "measured", dict(seconds))


def measure(
    choice: Sequence[Precision],
    step: Callable[[Precision], float],
    room: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, float]:
    """Seconds of a step by the name of the precision, the least of a few rounds in turn.

    The first steps set up kernels and do not count, unless they take more than 0.3 s; beyond 1.5 s one is made of each
    (two of the first, up to 5 s), and the other layout is tried with the faster format only. What has clearly lost is
    not tried again. Four seconds of timed rounds in all, or one round.

    Args:
        choice: what to try, the rule's first.
        step: makes one, and says how long it took.
        room: whether the memory allows for formats that take more; asked after the first step.
        clock: in seconds.
    """
    start = clock()
    begun = step(choice[0])
    if not room():
        return {}
    if begun > LONG or from_first(clock() - start > BUDGET):
        return _measure_long(choice, step, {choice[0].name: begun})
    start = clock()
    first = {precision.name: step(precision) for precision in choice}
    fastest, left, seconds, rounds = min(first.values()), list(choice), {}, 0
    # setting up is little beside a long step: then this was a timed round; also where others leave this one no time
    if fastest > SETUP or from_first(clock() - start > BUDGET):
        seconds, rounds = dict(first), 1
        left = [p for p in choice if first[p.name] <= LOST_AT_FIRST * fastest]
    else:
        start = clock()
    while rounds < MOST_ROUNDS and (rounds == 0 or from_first(clock() - start < BUDGET)):
        for precision in left if rounds % 2 == 0 else left[::-1]:
            seconds[precision.name] = min(step(precision), seconds.get(precision.name, float("inf")))
        fastest, rounds = min(seconds.values()), rounds + 1
        left = [p for p in left if seconds[p.name] <= LOST * fastest]
        if len(left) == 1 and rounds > 1:
            break
    return seconds


def _measure_long(
    choice: Sequence[Precision], step: Callable[[Precision], float], seconds: dict[str, float]
) -> dict[str, float]:
    first = choice[0].name
    if seconds[first] < LONGER:  # the very first step sets up more than kernels
        seconds[first] = min(seconds[first], step(choice[0]))
    for precision in choice:
        if precision.name not in seconds and precision.layout == choice[0].layout:
            seconds[precision.name] = step(precision)
    best = chosen(seconds, choice)
    for precision in choice:
        if precision.name not in seconds and precision.format == best.format:
            seconds[precision.name] = step(precision)
    return seconds


# ----------------------------------------------------------------------------------------------------- throwaway steps


class ThrowawaySteps:
    """Forward and backward passes through copies of a method, of which nothing stays."""

    def __init__(self, method: nn.Module, batch: Sequence[Any], device: torch.device | str, relayout: bool) -> None:
        self.batch, self.device, self.copies = batch, device, {}
        for layout in ("contiguous", "channels_last") if relayout else ("as it is",):
            self.copies[layout] = shield_bfloat16_convolutions(copy.deepcopy(method)).train()
        if relayout:
            channels_last(self.copies["channels_last"])
        self.before, self.first = _peak(), 0
        # the time of one thread does not count what other programs take meanwhile
        self.clock = thread_time if torch.get_num_threads() == 1 else perf_counter

    def __call__(self, precision: Precision) -> float:
        method = self.copies.get(precision.layout) or self.copies["as it is"]
        method.zero_grad(set_to_none=True)
        batch = [None if items is None else {key: _own(value) for key, value in items.items()} for items in self.batch]
        start = self.clock()
        moved = [None if items is None else on_device(items, self.device, precision.channels_last) for items in batch]
        with autocast(self.device, precision.dtype):
            terms = method(*moved)
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        seconds = self.clock() - start
        method.zero_grad(set_to_none=True)
        self.first = self.first or _peak() - self.before
        return float(from_first(seconds))

    def room(self) -> bool:
        """Whether twice as much as the first step took is there: float32 where that was bfloat16."""
        return not any_of(int(available_memory() < 1.5 * self.first), self.device)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _peak() -> int:
    """Most memory that this process ever held, in bytes; 0 where that cannot be found out."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever is drawn inside the block, the generators of torch, NumPy and Python go on as if nothing had been."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _measure(
    choice: Sequence[Precision], method: nn.Module, batch: Sequence[Any], device: torch.device | str, relayout: bool
) -> dict[str, float]:
    """Nothing where it cannot be done: a method cannot be copied, or its step fails, as the real one will."""
    seconds: dict[str, float] = {}
    with untouched_randomness():
        try:
            steps = ThrowawaySteps(method, batch, device, relayout)
            seconds = measure(choice, steps, steps.room)
        except Exception as error:  # whatever a method of somebody else raises
            logger.debug("precision was not measured: %s", error)
    return {} if any_of(int(not seconds), device) else seconds


# ------------------------------------------------------------------------------------------------------ what is kept


def record(precision: Precision, situation: Mapping[str, Any]) -> dict[str, Any]:
    """A decision as plain values, for a file."""
    return {
        "format": precision.format,
        "layout": precision.layout,
        "found": precision.found,
        "seconds": {name: float(f"{value:.4g}") for name, value in precision.seconds.items()},
        "options": precision.options,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "situation": dict(situation),
    }


def _situation(
    choice: Sequence[Precision], method: nn.Module, batch: Sequence[Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the time of a step depends on, as far as it is known: equal trainings have equal ones."""
    options = {key: value for key, value in sorted(vars(method).items())
               if not key.startswith("_") and key not in ("training", "iteration", "max_iterations")
               and isinstance(value, (bool, int, float, str, type(None)))}  # fmt: skip
    shapes = [
        {key: list(value.shape) for key, value in sorted((items or {}).items()) if isinstance(value, Tensor)}
        for items in batch
    ]
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "monai_ssl": monai_ssl.__version__,
        "processes": torch.distributed.get_world_size() if in_group() else 1,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "kernels": [torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.is_available(),
                    *(os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"))],
        "method": f"{type(method).__module__}.{type(method).__qualname__}",
        "modules": hashlib.sha256(str(method).encode()).hexdigest()[:16],
        "options": options,
        "shapes": shapes,
        "choice": [precision.name for precision in choice],
        **facts,
    }  # fmt: skip


def _file(situation: Mapping[str, Any]) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    name = hashlib.sha256(json.dumps(situation, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return folder / "precision" / f"{name}.json"


def _kept(file: Path | None, situation: Mapping[str, Any], choice: Sequence[Precision]) -> Precision | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file is not None else None
    except (OSError, ValueError):
        return None
    return _recorded(content, situation, choice)


def _recorded(content: Any, situation: Mapping[str, Any], choice: Sequence[Precision]) -> Precision | None:
    """The decision in a record; None for one of another situation, or of a training too short to measure."""
    if not isinstance(content, Mapping) or content.get("found") not in ("measured", "measured before", "assumed"):
        return None
    if content.get("situation") != json.loads(json.dumps(situation, default=str)):
        return None
    found = [p for p in choice if (p.format, p.layout) == (content.get("format"), content.get("layout"))]
    seconds = content.get("seconds")
    if not found or not isinstance(seconds, dict) or not all(isinstance(v, (int, float)) for v in seconds.values()):
        return None
    return replace(found[0], found="measured before" if seconds else "assumed", seconds=seconds)


def _keep(file: Path | None, own: Precision, situation: Mapping[str, Any], choice: Sequence[Precision]) -> Precision:
    """Keep a decision, unless an equal training that began at the same time was quicker: then take its decision."""
    if file is None or (in_group() and torch.distributed.get_rank()):
        return own
    own_file = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        write_text(own_file, json.dumps(record(own, situation), indent=1, default=str) + "\n")
        try:
            os.link(own_file, file)  # only one can do it
        except OSError:
            if (other := _kept(file, situation, choice)) is not None:
                return other
            os.replace(own_file, file)  # damaged, or a file system without links
    except OSError as error:
        logger.debug("the decision on precision could not be kept: %s", error)
    finally:
        with suppress(OSError):
            own_file.unlink(missing_ok=True)
    return own


def told(precision: Precision) -> str:
    """A decision in a line.

    Example:
        >>> seconds = {"float32, contiguous": 0.2, "bfloat16, contiguous": 1.0}
        >>> told(Precision("float32", "contiguous", "measured", seconds))
        'float32, contiguous: 0.200 s a step; bfloat16 1.000 s'
    """
    seconds = dict(precision.seconds)
    if precision.name not in seconds:
        return precision.name
    own = seconds.pop(precision.name)
    best: dict[str, float] = {}
    for name, value in seconds.items():
        form, _, layout = name.partition(", ")
        key = layout if form == precision.format else form
        best[key] = min(value, best.get(key, value))
    others = "".join(f"; {key} {value:.3f} s" for key, value in best.items())
    before = " (measured before)" if precision.found == "measured before" else ""
    return f"{precision.name}: {own:.3f} s a step{others}{before}"

"""What a training costs: parameters, operations, seconds, memory."""

from __future__ import annotations

import copy
import json
import logging
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from ignite.engine import Events
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_ssl.engines.calibration import untouched_randomness
from monai_ssl.engines.trainer import RunEvents, SemiSupervisedTrainer
from monai_ssl.files import write_text
from monai_ssl.runs.folder import COSTS

logger = logging.getLogger(__name__)


class TrainingCosts:
    """``costs.json``: what the training costs, so that methods can be compared in that, too.

    ==========================  ======================================================================================
    key                         value
    ==========================  ======================================================================================
    ``parameters``              of the deployed network
    ``parameters_trained``      that any optimizer moves: second networks, heads, adversaries; no moving averages
    ``macs``                    multiply-accumulates of one patch through the deployed network, in convolutions and
                                matrix products, as :mod:`torch.utils.flop_counter` counts; null where it cannot
    ``patch``                   shape of that patch, channels first
    ``sessions``                one per start of the run: ``first`` and ``last`` iteration, ``seconds``
    ``seconds``                 of all sessions: reading scans, steps, validations, checkpoints; steps that a kill lost
                                and a resume repeated count twice
    ``peak_memory_bytes``       most memory that the training's process held, without its loader's; null where the
                                system does not say
    ``peak_gpu_memory_bytes``   most that tensors held on its GPU; null on a CPU
    ==========================  ======================================================================================

    The file is written after the first step, then once a minute, and at the end, also where training fails. The
    operations are counted on a copy without data (torch's meta device). Of several processes the first speaks for
    itself.

    Args:
        output_dir: folder of the run.
        seconds: between two writes.
    """

    def __init__(self, output_dir: str | Path, seconds: float = 60.0) -> None:
        self.path, self.every = Path(output_dir) / COSTS, seconds
        self._began = self._wrote = 0.0
        self._costs: dict[str, Any] = {}

    def attach(self, engine: SemiSupervisedTrainer) -> None:
        engine.add_event_handler(RunEvents.OPENED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(RunEvents.CLOSED, self.close)

    def begin(self, engine: Any) -> None:
        self._began = self._wrote = monotonic()
        self._costs = {}
        if engine.state.rank == 0:
            _forget_peaks(engine.state.device)

    def step(self, engine: Any) -> None:
        if engine.state.rank != 0 or not engine.state.output:
            return
        new = not self._costs
        if new:
            self._open(engine)
        self._costs["sessions"][-1]["last"] = engine.state.iteration
        if new or monotonic() - self._wrote >= self.every:
            self._write(engine)

    def _open(self, engine: Any) -> None:
        """At the first step: now the folder is this run's, and what it holds is from its earlier sessions."""
        first = engine.state.iteration
        earlier = _read(self.path) if first > 1 else {}
        method = engine.plain_method
        moved = {id(p): p for p in engine.parameters if p.requires_grad}  # others are averages, or adversaries
        moved |= {id(p): p for adversary in engine.adversaries.values() for p in adversary.parameters}
        patch = list(engine.state.output[0]["image"].shape[1:])
        with untouched_randomness():
            macs = count_macs(method.network, patch)
        self._costs = {
            "parameters": sum(p.numel() for p in method.network.parameters()),
            "parameters_trained": sum(p.numel() for p in moved.values()),
            "macs": macs,
            "patch": patch,
            "sessions": [*earlier.get("sessions", []), {"first": first, "last": first, "seconds": 0.0}],
            "seconds": 0.0,
            "peak_memory_bytes": earlier.get("peak_memory_bytes"),
            "peak_gpu_memory_bytes": earlier.get("peak_gpu_memory_bytes"),
        }

    def close(self, engine: Any) -> None:
        if self._costs:
            self._write(engine)
            self._costs = {}

    def _write(self, engine: Any) -> None:
        costs, now = self._costs, monotonic()
        self._wrote = now
        costs["sessions"][-1]["seconds"] = round(now - self._began, 3)
        costs["seconds"] = round(sum(session["seconds"] for session in costs["sessions"]), 3)
        resident, device = _peaks(engine.state.device)
        for key, peak in (("peak_memory_bytes", resident), ("peak_gpu_memory_bytes", device)):
            costs[key] = max((value for value in (costs[key], peak) if value is not None), default=None)
        try:
            write_text(self.path, json.dumps(costs, indent=2) + "\n")
        except OSError as error:  # a full disk stops the checkpoint, which says so; costs are no reason to stop
            logger.warning("%s", error)


def count_macs(network: nn.Module, patch: list[int] | tuple[int, ...]) -> int | None:
    """Multiply-accumulates of one patch through a network, without computing anything.

    Convolutions and matrix products count; norms, activations and resampling, a few percent at most, do not.

    Args:
        network: image ``(1, *patch)`` -> logits; it stays as it is.
        patch: shape ``(C_in, *spatial)``.

    Returns:
        The number; None where the network has a part that needs data, or does not take such a patch.

    Example:
        >>> count_macs(nn.Conv2d(1, 4, 3, padding=1), [1, 8, 8])  # 8 x 8 places, 3 x 3 x 1 x 4 products
        2304
    """
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    try:
        shadow = copy.deepcopy(network, memo).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            shadow(torch.empty(1, *patch, device="meta"))
    except Exception as error:  # whatever a foreign network does with a tensor without data
        logger.debug("operations of %s cannot be counted: %s", type(network).__name__, error)
        return None
    return int(counter.get_total_flops()) // 2 or None


def _read(path: Path) -> dict[str, Any]:
    """Costs of earlier sessions; empty where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(content, dict) and isinstance(content.get("sessions"), list)
    keys = {"first", "last", "seconds"}
    if not known or not all(isinstance(each, dict) and each.keys() == keys for each in content["sessions"]):
        return {}
    return content


def _forget_peaks(device: Any) -> None:
    """From here on the peaks are those of this training, where the system can forget earlier ones."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory, nothing else
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: Any) -> tuple[int | None, int | None]:
    """Bytes of resident memory and of GPU memory; None where there is none, or the system does not say."""
    resident = None
    with suppress(ImportError):  # Windows
        import resource

        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    on_gpu = torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else None
    return resident, on_gpu

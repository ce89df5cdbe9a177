"""Warm start: a network that begins with the weights of another training."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.errors import DataError, enumerated, plural
from monai_ssl.runs.folder import MODEL, RECORD, refuse_unfinished, trained_in
from monai_ssl.weights import content_digest, load

logger = logging.getLogger(__name__)

# share of the names that a wrapper's prefix must cover: a method's state holds its network and a teacher's
WRAPPED = 1 / 3
SHOWN = 4
# names of an ensemble's networks
MEMBER, FIRST = re.compile(r"members\.(\d+)\."), "members.0."


@dataclass(frozen=True)
class WarmStart:
    """What a network began with.

    Attributes:
        file: the weights.
        content: short hash of the file; it belongs to the identity of a run.
        fitted: number of tensors of the network that came from the file.
        new: those of the network that did not.
        unused: tensors of the file that no tensor of the network took.
        text: all of that in a line.
    """

    file: Path
    content: str
    fitted: int
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    text: str = ""

    def __str__(self) -> str:
        return f"init: {self.text}"


def warm_started(network: nn.Module, init: str | os.PathLike[str] | None = None) -> nn.Module:
    """Give a network the weights of another one, as far as names and shapes fit; the rest stays as it is.

    Wrappers are seen through (``backbone.``, ``network.``, ``module.``): the V-Net of a supervised run fits into a
    network of two tasks, but for the heads.

    Args:
        network: what a method is built around; it is changed in place. Build the method afterwards, so that a teacher
            starts as a copy.
        init: folder of a run or of a packaged bundle, or a file of weights; None: nothing is done.

    Returns:
        the network, with a :class:`WarmStart` as attribute ``started_from``, which
        :class:`~monai_ssl.handlers.RunCheckpoint` reports at iteration 0 and adds to the run's identity.

    Raises:
        DataError: when there are no weights, they cannot be read, hold numbers that are not finite, or nothing fits.

    Example:
        >>> import tempfile
        >>> file = tempfile.mkdtemp() + "/old.pt"
        >>> torch.save(nn.Conv2d(1, 2, 3).state_dict(), file)
        >>> network = warm_started(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1)), file)
        >>> network.started_from.fitted, network.started_from.new
        (2, ('1.weight', '1.bias'))
    """
    if init is None:
        return network
    file = weights_file(init)
    loaded = load(file)
    content = content_digest(loaded)
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    source, names, members = _alignment(own, loaded)
    of = f" (the first of the ensemble's {members} networks)" if members else ""
    if not any(_is_weight(own[name]) for name in names.values()):
        raise DataError(_nothing_fits(network, own, file, source))
    fitted = {name: source[theirs] for theirs, name in names.items()}
    for name, value in fitted.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"init: {file}: the weights must be finite, got NaN or infinity in {name}; take others")
    network.load_state_dict({**network.state_dict(), **fitted})
    new, unused = [name for name in own if name not in fitted], [name for name in source if name not in names]
    parts = [f"{len(fitted)} of {len(own)} tensors begin as in {file}{of}"]
    parts += [f"{len(new)} new: {_modules(new, own, source)}"] if new else []
    parts += [f"{len(unused)} of the file not used: {_modules(unused, source, {})}"] if unused else []
    started = WarmStart(file, content, len(fitted), tuple(new), tuple(unused), "; ".join(parts))
    network.started_from = started  # type: ignore[assignment]
    weights = [name for name, value in own.items() if _is_weight(value)]
    if 2 * sum(name in fitted for name in weights) < len(weights):
        logger.warning("init: most weights of the network are new; is %s of the same kind of network?", file)
    return network


def weights_file(init: str | os.PathLike[str]) -> Path:
    """The file of weights that ``init`` names.

    Args:
        init: folder of a run or of a packaged bundle, or a file.

    Raises:
        DataError: when there is none.
    """
    if not isinstance(init, (str, os.PathLike)) or not os.fspath(init):
        raise DataError(f"init: must be the folder of a run, a file of weights or null, got {init!r}")
    named, place = Path(init).expanduser().resolve(), trained_in(init).resolve()
    if place.is_dir():
        if not any((named / name).is_file() for name in (RECORD, MODEL, f"models/{MODEL}")):
            refuse_unfinished(named, "init")
        for file in (place / MODEL, place / "models" / MODEL):
            if file.is_file():
                return file
        if (place / RECORD).is_file():
            raise DataError(f"init: the run {place} has no weights yet (no {MODEL}); let it train, or name another run")
        raise DataError(f"init: {place} holds no {MODEL}; name the folder of a run, or a file of weights")
    if not place.is_file():
        raise DataError(f"init: {place} does not exist; name the folder of a run, or a file of weights")
    return place


# ------------------------------------------------------------------------------------------------------ what fits what


def _is_weight(value: Tensor) -> bool:
    """Counters, biases and scales fit many networks: alone they say nothing."""
    return value.dim() >= 2


def _alignment(own: Mapping[str, Tensor], content: Any) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """The tensors of a file that fit a network best, which of them become which of its own (theirs -> ours), and of how
    many networks of an ensemble they are the first; 0: of none."""
    best: tuple[dict[str, Tensor], dict[str, str], int] = ({}, {}, 0)
    score = (-1, -1)
    for tensors, members in _collections(content):
        for strip in _wrappers(tensors):
            for add in _wrappers(own):
                names = {}
                for name, value in tensors.items():
                    ours = add + name.removeprefix(strip)
                    if name.startswith(strip) and ours in own and own[ours].shape == value.shape:
                        names[name] = ours
                reached = (sum(_is_weight(own[name]) for name in names.values()), len(names))
                if reached > score:
                    mine = {name: value for name, value in tensors.items() if name.startswith(strip)}
                    score, best = reached, (mine, names, members)
    return best


def _collections(content: Any) -> Iterator[tuple[dict[str, Tensor], int]]:
    """A file's tensors by name: the file itself, or what is in it under ``state_dict``, ``model``, ``method``, ...; of
    an ensemble first its first network, with the number of all."""
    found = False
    for part in [content, *(content.values() if isinstance(content, Mapping) else ())]:
        if isinstance(part, Mapping):
            tensors = {name: v for name, v in part.items() if isinstance(name, str) and isinstance(v, Tensor)}
            if tensors:
                found = True
                members = {match[1] for name in tensors if (match := MEMBER.match(name))}
                first = {name[len(FIRST) :]: v for name, v in tensors.items() if name.startswith(FIRST)}
                if first:
                    yield first, len(members)
                yield tensors, 0
    if not found:
        yield {}, 0


def _wrappers(tensors: Mapping[str, Tensor]) -> list[str]:
    """Starts of names, up to a dot, that many have in common; none comes first, so that it wins where others equal."""
    counts: dict[str, int] = {}
    for name in tensors:
        parts = name.split(".")
        for depth in (1, 2, 3):
            if len(parts) > depth:
                prefix = ".".join(parts[:depth]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    return ["", *(prefix for prefix, n in counts.items() if n >= WRAPPED * len(tensors))]


def _modules(names: Iterable[str], own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> str:
    """Names of tensors by their modules, with the shapes where both sides have the weight."""
    shown: dict[str, str] = {}
    for name in names:
        module = name.rpartition(".")[0] or name
        alike = (v for n, v in source.items() if f".{n}".endswith(f".{name}") or f".{name}".endswith(f".{n}"))
        there = next(alike, None)
        differs = there is not None and _is_weight(own[name]) and there.shape != own[name].shape
        text = f" ({_shape(own[name])}, there {_shape(there)})" if differs and there is not None else ""
        shown[module] = shown.get(module) or text
    return enumerated([module + text for module, text in shown.items()], SHOWN)


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"


def _nothing_fits(network: nn.Module, own: Mapping[str, Tensor], file: Path, source: Mapping[str, Tensor]) -> str:
    def first(tensors: Mapping[str, Tensor]) -> str:
        named = next(((name, value) for name, value in tensors.items() if _is_weight(value)), None)
        number = plural(len(tensors), "tensor")
        return "no weight" if named is None else f"{number}, {named[0]} {_shape(named[1])}, ..."

    return (
        f"init: no weight of {file} ({first(source)}) fits {type(network).__name__} ({first(own)}); name a run with "
        "the same kind of network, dimensions and channels, or set network_def as it was there"
    )

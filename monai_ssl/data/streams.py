"""Two-stream loading: labeled and unlabeled batches that depend on (seed, iteration, slot) and on nothing else.

The two streams are infinite and *seeded by position*: which case fills slot ``s`` of iteration ``i``, and every random
transform applied to it, is a pure function of ``(seed, stream, i, s)``. The stream is therefore the same for 0 or 8
workers, a run resumed at iteration k continues bit for bit, and with two processes of batch B the joint batch is that
of one process with batch 2B.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, MetaTensor, get_track_meta, list_data_collate, set_track_meta
from monai.transforms import Compose, Transform, convert_to_contiguous
from monai.transforms.traits import RandomizableTrait
from torch.utils.data import DataLoader, Sampler

from monai_ssl.data.cache import CaseCache, DiskFullError, plan_together
from monai_ssl.data.cases import case_names
from monai_ssl.data.content import case_keys
from monai_ssl.data.footprint import Footprint, footprint
from monai_ssl.data.mapped import Mapped
from monai_ssl.data.preset import Preset
from monai_ssl.distributed import in_group
from monai_ssl.errors import DataError, one_line, without_quotes
from monai_ssl.interrupts import outlive_requests
from monai_ssl.progress import followed


def position_seed(*position: int) -> int:
    """A 32-bit seed for a position such as ``(seed, stream, iteration, slot)``; well mixed, stable across platforms."""
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in position]).generate_state(1)[0])


class CaseDataset(Dataset):
    """Cases with everything deterministic done, once, when :meth:`prepare` is called.

    Not when it is built: bundle configs are instantiated by tools that only inspect them (property checks, MONAI
    Label's start-up), also where no data exist yet. Random transforms belong to the stream.

    Args:
        data: datalist entries ``{"image": path[, "label": path]}``.
        transform: deterministic transforms.
        num_workers: threads that prepare the cases.
        cache: keeps what is prepared, and may be shared; None: all in memory.

    Attributes:
        ready: whether the cases are prepared.

    Raises:
        ValueError: when a transform is random.
        DataError: from :meth:`prepare`, naming the case that cannot be used.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Compose | None = None,
        num_workers: int = 2,
        cache: CaseCache | None = None,
    ) -> None:
        super().__init__([], transform or Compose([]))
        for step in self.transform.flatten().transforms:  # type: ignore[attr-defined]
            if isinstance(step, RandomizableTrait):
                raise ValueError(
                    f"transform must be deterministic, got {type(step).__name__}; give it to the TwoStreamLoader"
                )
        self.entries = list(data)
        self.names = case_names(self.entries)
        self.num_workers, self.cache, self.ready = max(int(num_workers), 1), cache, False
        self._kept: list[Any] = []
        self._depths: list[int] = []

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def content_keys(self) -> list[str | None]:
        """What the prepared content of each case depends on, see :func:`monai_ssl.data.content.case_keys`."""
        return case_keys(self.entries, getattr(self.transform, "content", None))

    def footprint(self) -> Footprint:
        """What the cases take after preparation, estimated from the headers of their files."""
        preset, padded = (getattr(self.transform, name, None) for name in ("preset", "padded"))
        if not isinstance(preset, Preset):
            return Footprint(len(self), 0, len(self))
        return footprint(self.entries, preset, bool(padded))

    def prepare(self) -> None:
        """Prepare all cases, once, and say how far it has come."""
        if self.ready:
            return
        if self.cache is None:
            self.cache = CaseCache(math.inf)
        n = len(self)
        rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if in_group() else (0, 1)
        # processes that share a folder begin at different cases, and find there what others have written
        order = [(index + rank * n // size) % n for index in range(n)]
        kept: list[Any] = [None] * n
        depths = [1] * n
        try:
            with ThreadPoolExecutor(self.num_workers) as pool:
                done = zip(order, pool.map(self._prepare, order), strict=True)
                for index, (item, depth) in followed(done, "prepare", n):
                    kept[index], depths[index] = item, depth
        except DiskFullError:
            self.cache.discard()  # others on this disk need the room more
            raise
        self._kept, self._depths, self.ready = kept, depths, True

    def forget(self) -> None:
        """Let the prepared cases go; they are prepared again when one is asked for."""
        self._kept, self.ready = [], False

    @property
    def by_slice(self) -> bool:
        """Whether a 2D network learns every slice of all volumes equally often."""
        preset = getattr(self.transform, "preset", None)
        return isinstance(preset, Preset) and preset.slice_sampling == "slice"

    def first_slices(self) -> np.ndarray:
        """``(n + 1,)`` int64: the slices of case i have the numbers from entry i to entry i + 1."""
        self.prepare()
        return np.concatenate([[0], np.cumsum(self._depths)])

    def _prepare(self, index: int) -> tuple[Any, int]:
        assert self.cache is not None
        key = self.content_keys[index]
        stored = self.cache.find(key)
        item = self._load(index) if stored is None else stored.open()
        depth = int(item["image"].shape[-1]) if self.by_slice and item["image"].ndim == 4 else 1
        return self.cache.keep(item, key, getattr(self.transform, "slices", False), stored), depth

    def _load(self, index: int) -> Any:
        try:
            with _tracking():
                item = self.transform(dict(self.entries[index]), threading=True)  # type: ignore[call-arg]
            return convert_to_contiguous(item, memory_format=torch.contiguous_format)
        except DataError:
            raise
        except Exception as error:  # whatever a reader may raise on a file that it cannot read
            cause: BaseException = error
            while cause.__cause__ is not None and not isinstance(cause, DataError):  # which names the file
                cause = cause.__cause__
            raise DataError(
                f"case {self.names[index]}: cannot be loaded "
                f"({one_line(cause, 300) if isinstance(cause, DataError) else without_quotes(cause, 300)}); "
                "run `monai-ssl check` on the datalist for every problem at once"
            ) from error

    def _transform(self, index: int) -> Any:
        self.prepare()
        kept = self._kept[index]
        if isinstance(kept, Mapped):
            try:
                return kept.open()
            except (OSError, ValueError):  # somebody has cleared the folder
                return self._load(index)
        return self._load(index) if kept is None else kept


@contextmanager
def _tracking() -> Iterator[None]:
    """Preparation needs the affine, also in a loader process, see :func:`_begin_worker`."""
    former = get_track_meta()
    if not former:
        set_track_meta(True)
    try:
        yield
    finally:
        if not former:
            set_track_meta(False)


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: int, epoch: int, n: int) -> np.ndarray:
    return np.random.RandomState(position_seed(seed, stream, epoch)).permutation(n)


class _Stream:
    """Position -> item: permutations of the cases, chained forever, and random transforms seeded by position."""

    def __init__(
        self,
        cases: CaseDataset,
        transforms: Sequence[Transform],
        seed: int,
        stream: int,
        strong: Sequence[Transform] | None = None,
    ) -> None:
        self.cases, self.seed, self.stream = cases, seed, stream
        self.transform = Compose(list(transforms))
        self.strong = None if strong is None else Compose(list(strong))

    def __call__(self, position: int) -> dict[str, Any]:
        index, number = self._case(position)
        self.transform.set_random_state(position_seed(self.seed, self.stream, position, 1))
        item: Any = self.cases[index]
        if number is not None:
            item = {key: _slice(value, number) for key, value in item.items()}
        item = self.transform(item)
        item = {key: _plain(value) for key, value in item.items() if isinstance(value, torch.Tensor)}
        if "label" in item:
            item["label"] = torch.as_tensor(item["label"]).long()
        if self.strong is not None:
            # a separate seed: the weak view is the same with and without a strong one
            self.strong.set_random_state(position_seed(self.seed, self.stream, position, 2))
            strong: Any = self.strong({"image": item["image"].clone()})
            item["strong"] = _plain(strong["image"])
        return {**item, "index": torch.tensor(index), "name": self.cases.names[index]}

    def _case(self, position: int) -> tuple[int, int | None]:
        """Which case is at a position, and which of its slices where all slices are permuted."""
        if self.cases.by_slice:
            first = self.cases.first_slices()
            epoch, offset = divmod(position, int(first[-1]))
            chosen = int(_permutation(self.seed, self.stream, epoch, int(first[-1]))[offset])
            index = int(np.searchsorted(first, chosen, side="right")) - 1
            return index, chosen - int(first[index])
        epoch, offset = divmod(position, len(self.cases))
        return int(_permutation(self.seed, self.stream, epoch, len(self.cases))[offset]), None


def _slice(value: Any, number: int) -> Any:
    """A slice of a volume ``(C, H, W, D)``; what is none stays as it is."""
    return value[..., number].contiguous() if isinstance(value, torch.Tensor) and value.ndim == 4 else value


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without affine and history, which patches do not need."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _begin_worker(worker: int) -> None:
    """Plain tensors pass the transforms in two thirds of the time that tracked ones take.

    The switch is global in MONAI, so it is thrown only in loader processes, for their whole life. In the main process
    (``num_workers=0``) transforms track: another thread there, a MONAI Label server for example, may rely on it.
    """
    outlive_requests()
    set_track_meta(False)


class _TwoStreamDataset(torch.utils.data.Dataset):
    """Iteration -> one joint batch."""

    def __init__(self, streams: dict[str, tuple[_Stream, int]], rank: int, world_size: int) -> None:
        self.streams, self.rank, self.world_size = streams, rank, world_size

    def __getitem__(self, iteration: int) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for key, (stream, size) in self.streams.items():
            first = (iteration * self.world_size + self.rank) * size
            batch[key] = list_data_collate([stream(first + slot) for slot in range(size)])
        return batch


class _From(Sampler):
    """start, start + 1, start + 2, ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        iteration = self.start
        while True:
            yield iteration
            iteration += 1


class TwoStreamLoader:
    """Endless loader of ``{"labeled": {...}, "unlabeled": {...}}`` batches.

    Args:
        labeled: labeled training cases.
        unlabeled: cases without label, or None. No label of theirs is ever opened: their entries have none.
        labeled_transforms: random transforms of a labeled item, ending in tensors of equal shape, then those of
            ``method.loader_transforms()``.
        unlabeled_transforms: random transforms of an unlabeled item.
        strong_transforms: intensity transforms of the key ``image`` that make ``unlabeled["strong"]`` from the patch
            that ``unlabeled_transforms`` left, see :func:`monai_ssl.data.strong_transforms`. They must leave every
            voxel on its place. None: there is no such view. Has no influence on anything else in the batch.
        labeled_batch_size, unlabeled_batch_size: images per step AND PER PROCESS. ``unlabeled_batch_size=0``, or no
            unlabeled case: batches have no ``unlabeled`` entry.
        epoch_length: what ``len()`` says; the trainer's unit of validation and checkpointing.
        seed: of the streams.
        num_workers: loader processes; 0 loads in the main process. Has no influence on what is loaded.
        pin_memory: page-locked batches for CUDA.
        validation: cases that the training looks at beside the streams: they are prepared with the others, so that a
            bad one is found before the work, and one budget holds for all.

    Yields:
        per stream a :class:`monai_ssl.methods.Batch`: ``image`` (B, C, *patch) float32, ``label`` (B, 1, *patch) int64
        (labeled only; 255 is :data:`monai_ssl.losses.IGNORE_LABEL`), ``index`` (B,) int64 stable case index, ``name``
        list of case names, ``strong`` (B, C, *patch) float32 (unlabeled only, where asked for), other tensors that the
        transforms added.

    Raises:
        DataError: when there is no labeled case, or one cannot be loaded.
        ValueError: for a batch size or an epoch length out of range.

    Example:
        >>> loader = TwoStreamLoader(labeled, unlabeled, [crop], [crop])  # doctest: +SKIP
        >>> batch = next(iter(loader))  # doctest: +SKIP
    """

    def __init__(
        self,
        labeled: CaseDataset,
        unlabeled: CaseDataset | None,
        labeled_transforms: Sequence[Transform],
        unlabeled_transforms: Sequence[Transform] = (),
        strong_transforms: Sequence[Transform] | None = None,
        labeled_batch_size: int = 2,
        unlabeled_batch_size: int = 2,
        epoch_length: int = 100,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        validation: CaseDataset | None = None,
    ) -> None:
        for name, value, low in (
            ("labeled_batch_size", labeled_batch_size, 1),
            ("unlabeled_batch_size", unlabeled_batch_size, 0),
            ("epoch_length", epoch_length, 1),
            ("num_workers", num_workers, 0),
        ):
            if int(value) != value or value < low:
                raise ValueError(f"{name} must be an integer >= {low}, got {value}")
        self.labeled, self.unlabeled, self.validation = labeled, unlabeled, validation
        self.labeled_batch_size = int(labeled_batch_size)
        self.unlabeled_batch_size = 0 if unlabeled is None else int(unlabeled_batch_size)
        self.epoch_length, self.num_workers, self.pin_memory = int(epoch_length), int(num_workers), pin_memory
        self.streams = {"labeled": (_Stream(labeled, labeled_transforms, seed, 0), self.labeled_batch_size)}
        if unlabeled is not None and len(unlabeled) > 0 and unlabeled_batch_size > 0:
            stream = _Stream(unlabeled, unlabeled_transforms, seed, 1, strong_transforms)
            self.streams["unlabeled"] = (stream, self.unlabeled_batch_size)
        self.start = 0

    def __len__(self) -> int:
        return self.epoch_length

    @property
    def n_labeled(self) -> int:
        return len(self.labeled)

    @property
    def n_unlabeled(self) -> int:
        """Unlabeled cases that training uses."""
        return len(self.streams["unlabeled"][0].cases) if "unlabeled" in self.streams else 0

    def start_at(self, iteration: int) -> None:
        """The next ``iter()`` begins with the batch of this iteration (counted from 0).

        A resumed run says so in a handler of ``Events.STARTED``, which Ignite fires before it calls ``iter()``.
        """
        self.start = int(iteration)

    def prepare(self) -> None:
        """Load and cache all cases, before the long work starts."""
        if len(self.labeled) == 0:
            raise DataError(
                "training: there is no labeled case; check dataset_dir and datalist (`monai-ssl check` tells more)"
            )
        needs = {"labeled": self.labeled}  # in this order they get memory: what is used most comes first
        if self.validation is not None:
            needs["validation"] = self.validation
        if "unlabeled" in self.streams:
            needs["pool"] = self.streams["unlabeled"][0].cases
        plan_together(needs)
        for cases in needs.values():
            cases.prepare()

    def close(self) -> None:
        """The training is complete: let the cases go, and what was written of them for this training alone."""
        used = [cases for cases in (self.labeled, self.unlabeled, self.validation) if cases is not None]
        for cases in used:
            cases.forget()
        for cache in {id(cases.cache): cases.cache for cases in used if cases.cache is not None}.values():
            cache.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches from the iteration of :meth:`start_at` on, else from the first."""
        self.prepare()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        world_size = torch.distributed.get_world_size() if distributed else 1
        loader = DataLoader(
            _TwoStreamDataset(self.streams, rank, world_size),
            batch_size=None,
            sampler=_From(self.start),
            num_workers=self.num_workers,
            worker_init_fn=_begin_worker,
            pin_memory=self.pin_memory,
            prefetch_factor=2 if self.num_workers else None,
        )
        if self.num_workers == 0:
            return iter(loader)
        # a worker that is forked inherits what this process has not cleared away yet: if its garbage collector frees a
        # CUDA tensor of a previous training, CUDA ends the worker
        gc.collect()
        gc.freeze()
        try:
            return iter(loader)
        finally:
            gc.unfreeze()

"""Two-stream loading: labeled and unlabeled batches that depend on (seed, iteration, slot) and on nothing else.

The two streams are infinite and *seeded by position*: which case fills slot ``s`` of iteration ``i``, and every random
transform applied to it, is a pure function of ``(seed, stream, i, s)``. The stream is therefore the same for 0 or 8
workers, a run resumed at iteration k continues bit for bit, and with two processes of batch B the joint batch is that
of one process with batch 2B.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor, list_data_collate, set_track_meta
from monai.transforms import Compose, Transform
from torch.utils.data import DataLoader, Dataset, Sampler

from monai_ssl.data.cases import case_names
from monai_ssl.errors import DataError
from monai_ssl.interrupts import outlive_requests


def position_seed(*position: int) -> int:
    """A 32-bit seed for a position such as ``(seed, stream, iteration, slot)``; well mixed, stable across platforms."""
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in position]).generate_state(1)[0])


class CaseDataset(CacheDataset):
    """A ``CacheDataset`` that loads when :meth:`prepare` is called instead of when it is built.

    Bundle configs are instantiated by tools that only inspect them (property checks, MONAI Label's start-up), also
    where no data exist yet. Everything deterministic is cached; random transforms belong to the stream.

    Args:
        data: datalist entries ``{"image": path[, "label": path]}``.
        transform: deterministic transforms.
        num_workers: threads that fill the cache.

    Raises:
        DataError: from :meth:`prepare`, naming every case that cannot be used.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Compose | None = None, num_workers: int = 2) -> None:
        # random transforms make new tensors: the cache needs no copies
        super().__init__([], transform or Compose([]), progress=False, num_workers=num_workers, copy_cache=False)
        self.entries = list(data)
        self.names = case_names(self.entries)
        self._ready = False

    def __len__(self) -> int:
        return len(self.entries)

    def prepare(self) -> None:
        """Fill the cache, once; progress is shown on a terminal."""
        if not self._ready:
            self.progress = sys.stderr.isatty()
            self.set_data([dict(entry) for entry in self.entries])
            self._ready = True

    def _load_cache_item(self, idx: int) -> Any:
        try:
            return super()._load_cache_item(idx)
        except DataError:
            raise
        except Exception as error:  # whatever a reader may raise on a file that it cannot read
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise DataError(
                f"case {self.names[idx]}: cannot be loaded ({' '.join(str(cause).split())[:300]}); "
                "run `monai-ssl check` on the datalist for every problem at once"
            ) from error

    def _transform(self, index: int) -> Any:
        self.prepare()
        return super()._transform(index)


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
        n = len(self.cases)
        epoch, offset = divmod(position, n)
        index = int(_permutation(self.seed, self.stream, epoch, n)[offset])
        self.transform.set_random_state(position_seed(self.seed, self.stream, position, 1))
        item: Any = self.transform(self.cases[index])
        item = {key: _plain(value) for key, value in item.items() if isinstance(value, torch.Tensor)}
        if "label" in item:
            item["label"] = torch.as_tensor(item["label"]).long()
        if self.strong is not None:
            # a separate seed: the weak view is the same with and without a strong one
            self.strong.set_random_state(position_seed(self.seed, self.stream, position, 2))
            strong: Any = self.strong({"image": item["image"].clone()})
            item["strong"] = _plain(strong["image"])
        return {**item, "index": torch.tensor(index), "name": self.cases.names[index]}


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


class _TwoStreamDataset(Dataset):
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
    ) -> None:
        for name, value, low in (
            ("labeled_batch_size", labeled_batch_size, 1),
            ("unlabeled_batch_size", unlabeled_batch_size, 0),
            ("epoch_length", epoch_length, 1),
            ("num_workers", num_workers, 0),
        ):
            if int(value) != value or value < low:
                raise ValueError(f"{name} must be an integer >= {low}, got {value}")
        self.labeled, self.unlabeled = labeled, unlabeled
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
        for stream, _ in self.streams.values():
            stream.cases.prepare()

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

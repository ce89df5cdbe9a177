"""Memory of labeled features, by case and class (CAML's omni-correlation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.distributed import gather, in_group

__all__ = ["MemoryBank", "random_subset"]


def random_subset(n: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """``min(size, n)`` different integers below ``n``, uniformly drawn, without a permutation of all ``n``.

    Example:
        >>> random_subset(10**9, 3).unique().numel(), random_subset(2, 5).tolist()
        (3, [0, 1])
    """
    if size >= n:
        return torch.arange(n, device=device)
    if 4 * size > n:
        return torch.randperm(n, device=device)[:size]
    drawn = torch.randint(n, (2 * size,), device=device).unique()
    while len(drawn) < size:
        drawn = torch.cat([drawn, torch.randint(n, (2 * size,), device=device)]).unique()
    return drawn[torch.randperm(len(drawn), device=device)[:size]]


class MemoryBank(nn.Module):
    """One slot per labeled case; an update overwrites the slots of the cases in the batch, the others stay.

    A slot holds a random subset of at most ``capacity`` feature vectors per class together with the true number of
    vectors that it represents. :meth:`sample` draws without replacement from the union of what the slots represent: it
    first decides, by cumulative counts, how many vectors each slot contributes, and takes these from the subset. As
    long as ``capacity`` is at least the number that is drawn, every draw has exactly the distribution of drawing from
    everything (a random subset of a random subset is one); only the draws of different steps from one update are
    related, and the bank stays small: 16 cases of two classes with 32 channels take 17 MB instead of up to 2 GB.

    The bank's tensors are on the device of the features of the last update and are part of ``state_dict()``. In a
    process group, every process stores what all processes bring, so that all hold the same bank; ``update`` is a
    collective call then.

    Args:
        n_classes: number of classes, background included.
        capacity: feature vectors kept per case and class; None: all of them, in the order given (the released code).

    Raises:
        ValueError: when an argument is out of its range.

    Source: Gao et al., CAML, MICCAI 2023, section 2.3, "Memory Bank Construction"; one slot per case, overwritten with
        all features of the crop, is the released code.

    Example:
        >>> bank = MemoryBank(n_classes=2, capacity=64)
        >>> bank.update([7], [[torch.rand(64, 8), torch.rand(5, 8)]], [[1000, 5]])
        >>> prototypes, classes = bank.sample(16)
        >>> prototypes.shape, classes.unique().tolist()
        (torch.Size([16, 8]), [0])
    """

    def __init__(self, n_classes: int, capacity: int | None = 4096) -> None:
        super().__init__()
        if n_classes < 1:
            raise ValueError(f"n_classes must be >= 1, got {n_classes}")
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity must be >= 1 or None, got {capacity}")
        self.n_classes, self.capacity = n_classes, capacity
        self._slots: dict[int, tuple[list[Tensor], list[int]]] = {}

    def __len__(self) -> int:
        """Number of filled slots."""
        return len(self._slots)

    @property
    def cases(self) -> list[int]:
        """Cases with a filled slot, ascending."""
        return sorted(self._slots)

    @property
    def counts(self) -> Tensor:
        """Vectors that the slots represent, ``(slots, n_classes)`` int64, in the order of :attr:`cases`."""
        rows = [self._slots[case][1] for case in self.cases]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.n_classes)

    def features(self, case: int, of_class: int) -> Tensor:
        """What the slot holds, ``(k, D)``."""
        return self._slots[case][0][of_class]

    def choose(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Which of ``n`` vectors of a class to store: indices ``(min(n, capacity),)``."""
        return random_subset(n, n if self.capacity is None else self.capacity, device)

    @torch.no_grad()
    def update(
        self, cases: Sequence[int] | Tensor, features: Sequence[Sequence[Tensor]], counts: Sequence[Sequence[int]]
    ) -> None:
        """Overwrite slots; where a case occurs twice, the last one stays.

        Args:
            cases: numbers of the cases, ``(B,)``.
            features: per case and class the chosen vectors ``(k, D)``.
            counts: per case and class how many vectors they were chosen from, >= k.

        Raises:
            ValueError: when the numbers do not fit together.
        """
        cases = [int(case) for case in cases]
        for case, parts, numbers in zip(cases, features, counts, strict=True):
            limits = [n if self.capacity is None else min(n, self.capacity) for n in numbers]
            if [len(part) for part in parts] != limits or len(parts) != self.n_classes:
                raise ValueError(
                    f"features of case {case} must hold {limits} vectors (counts, at most the capacity) for "
                    f"{self.n_classes} classes, got {[len(part) for part in parts]}"
                )
        # one tensor for a rank, also in the exchange: every part padded to the same length
        if in_group():
            cases, features, counts = self._exchange(cases, features, counts)
        for case, parts, numbers in zip(cases, features, counts, strict=True):
            self._slots[case] = ([part.detach().float().clone() for part in parts], [int(n) for n in numbers])
        if cases:  # slots of a state that was read on another device follow
            device = features[0][0].device
            self._slots = {c: ([part.to(device) for part in parts], n) for c, (parts, n) in self._slots.items()}

    def _exchange(
        self, cases: list[int], features: Sequence[Sequence[Tensor]], counts: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[list[Tensor]], list[list[int]]]:
        """Everything that the processes of the group bring, in the order of their ranks."""
        example = features[0][0]
        numbers = torch.tensor([[case, *n] for case, n in zip(cases, counts, strict=True)], device=example.device)
        all_numbers = gather(numbers)
        longest = max(int(n[:, 1:].max()) for n in all_numbers)
        longest = longest if self.capacity is None else min(longest, self.capacity)
        padded = example.new_zeros(len(cases), self.n_classes, longest, example.shape[1], dtype=torch.float32)
        for row, parts in zip(padded, features, strict=True):
            for place, part in zip(row, parts, strict=True):
                place[: len(part)] = part
        joint: tuple[list[int], list[list[Tensor]], list[list[int]]] = ([], [], [])
        for theirs, rows in zip(all_numbers, gather(padded), strict=True):
            for (case, *n), row in zip(theirs.tolist(), rows, strict=True):
                joint[0].append(case)
                joint[1].append([part[: min(k, longest)] for k, part in zip(n, row, strict=True)])
                joint[2].append(n)
        return joint

    @torch.no_grad()
    def sample(self, per_class: int) -> tuple[Tensor, Tensor]:
        """Draw ``per_class`` vectors of every class, without replacement, each vector with equal probability.

        Args:
            per_class: how many, >= 1 and at most the capacity. A class that has fewer is left out.

        Returns:
            vectors ``(K, D)``, class by class, and their classes ``(K,)`` int64; both empty while the bank is.

        Raises:
            ValueError: when ``per_class`` is out of its range.
        """
        if per_class < 1 or (self.capacity is not None and per_class > self.capacity):
            raise ValueError(f"per_class must be from 1 to the capacity {self.capacity}, got {per_class}")
        if not self._slots:
            return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        drawn: list[Tensor] = []
        classes: list[int] = []
        cases, counts = self.cases, self.counts
        for c in range(self.n_classes):
            ends = counts[:, c].cumsum(0)
            if ends[-1] < per_class:
                continue
            slots = torch.searchsorted(ends, random_subset(int(ends[-1]), per_class), right=True)
            for case, k in zip(cases, slots.bincount(minlength=len(cases)).tolist(), strict=True):
                if k:
                    stored = self.features(case, c)
                    drawn.append(stored[random_subset(len(stored), k).to(stored.device)])
            classes.append(c)
        empty = self.features(cases[0], 0)[:0]
        of_rows = torch.tensor(classes, dtype=torch.int64).repeat_interleave(per_class).to(empty.device)
        return torch.cat([empty, *drawn]), of_rows

    def get_extra_state(self) -> dict[str, Any]:
        slots = [self._slots[case] for case in self.cases]
        vectors = [part for parts, _ in slots for part in parts]
        return {
            "cases": torch.tensor(self.cases, dtype=torch.int64),
            "counts": self.counts,
            "lengths": torch.tensor([len(part) for part in vectors], dtype=torch.int64),
            "vectors": torch.cat(vectors) if vectors else torch.empty(0, 0),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        parts = iter([part.clone() for part in state["vectors"].split(state["lengths"].tolist())])
        self._slots = {
            case: ([next(parts) for _ in counts], counts)
            for case, counts in zip(state["cases"].tolist(), state["counts"].tolist(), strict=True)
        }

    def extra_repr(self) -> str:
        return f"n_classes={self.n_classes}, capacity={self.capacity}, slots={len(self)}"

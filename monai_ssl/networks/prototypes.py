"""A memory of prototypes per class (SS-Net)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_ssl.distributed import gather, in_group

__all__ = ["PrototypeMemory"]


class PrototypeMemory(nn.Module):
    """A few features per foreground class, replaced whenever a batch offers new ones.

    The state is in buffers: it is saved and resumed with the method. In a process group all processes hold the same
    prototypes, taken in turn from what each of them offers, best first; :meth:`replace` is a collective call then, also
    for a process without a candidate.

    Args:
        n_classes: number of classes, background included, >= 2. The background has no prototypes.
        size: prototypes per class, >= 2.
        channels: of a prototype.
        rank: which candidates stay when there are more than ``size``: those with the ``"lowest"`` scores (SS-Net's
            code) or with the ``"highest"`` (its paper).

    Attributes:
        rows: ``(n_classes, size, channels)`` float32.
        counts: ``(n_classes,)`` int64, how many rows of each class are in use.

    Raises:
        ValueError: when an option is out of its range.

    Source: Wu et al., SS-Net, MICCAI 2022, section 2.2. The paper keeps the highest scores; its code sorts ascending
        and keeps the first.

    Example:
        >>> memory = PrototypeMemory(2, size=2, channels=3)
        >>> len(memory[1])
        0
        >>> memory.replace(1, torch.eye(3), torch.tensor([0.5, 0.9, 0.1]))
        >>> memory[1].tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    rows: Tensor
    counts: Tensor

    def __init__(self, n_classes: int, size: int = 32, channels: int = 32, rank: str = "lowest") -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be >= 2 (it counts the background), got {n_classes}")
        if size < 2:
            raise ValueError(f"size must be >= 2 prototypes per class, got {size}")
        if rank not in ("lowest", "highest"):
            raise ValueError(f"rank must be 'lowest' or 'highest', got {rank!r}")
        self.size, self.rank = size, rank
        self.register_buffer("rows", torch.zeros(n_classes, size, channels))
        self.register_buffer("counts", torch.zeros(n_classes, dtype=torch.long))

    def __getitem__(self, index: int) -> Tensor:
        """Prototypes of a class, ``(N, channels)`` with N from 0 to ``size``."""
        return self.rows[index, : int(self.counts[index])]

    @torch.no_grad()
    def replace(self, index: int, candidates: Tensor, scores: Tensor | None = None) -> None:
        """Replace the prototypes of a class; without a candidate the old ones stay.

        Args:
            index: class, 1 or higher.
            candidates: ``(M, channels)``.
            scores: ``(M,)``, needed when M exceeds ``size``; up to that number all stay, in the order given.
        """
        if len(candidates) > self.size:
            assert scores is not None
            candidates = candidates[scores.topk(self.size, largest=self.rank == "highest").indices]
        if in_group():
            candidates = self._of_all(candidates)
        if len(candidates) == 0:
            return
        self.rows[index, : len(candidates)] = candidates
        self.counts[index] = len(candidates)

    def _of_all(self, candidates: Tensor) -> Tensor:
        """At most ``size`` candidates of all processes, in turn."""
        padded = self.rows.new_zeros(self.size, self.rows.shape[2])
        padded[: len(candidates)] = candidates
        counts = [int(n) for n in gather(self.counts.new_tensor(len(candidates)))]
        theirs = gather(padded)
        turns = [(place, rank) for place in range(self.size) for rank, n in enumerate(counts) if place < n]
        taken = [theirs[rank][place] for place, rank in turns[: self.size]]
        return torch.stack(taken) if taken else padded[:0]

    def empty(self) -> list[int]:
        """Foreground classes without prototypes."""
        return [c for c, count in enumerate(self.counts.tolist()) if c and not count]

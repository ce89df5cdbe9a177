"""What processes that train together tell each other."""

from __future__ import annotations

import torch
from torch import Tensor


def in_group() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(x: Tensor) -> list[Tensor]:
    """``x`` of every process of the group, in the order of their ranks; a collective call, of equal shapes."""
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x)
    return parts

"""Training and evaluation mode for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

__all__ = ["evaluating"]

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def evaluating(module: Network) -> Iterator[Network]:
    """The module in evaluation mode inside the block; afterwards each of its parts in the mode it was in.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     print(network.training)
        False
        >>> network.training
        True
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training

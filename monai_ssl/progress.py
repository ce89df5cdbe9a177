"""How far work on many cases has come: a bar on a terminal, a quiet line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from time import monotonic
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
SECONDS = 30.0
"""Between two lines where stderr is no terminal."""


def followed(
    items: Iterable[Item], description: str, total: int, unit: str = "case", shown: bool = True
) -> Iterator[Item]:
    """The items, and how many are done: with a bar on a terminal, elsewhere with a line every half minute.

    Work that takes less says nothing elsewhere.

    Args:
        items: what is worked on, one after the other.
        description: in front of it.
        total: how many there are.
        unit: what they are.
        shown: False says nothing anywhere.

    Example:
        >>> list(followed("abc", "letters", 3, shown=False))
        ['a', 'b', 'c']
    """
    if shown and sys.stderr is not None and sys.stderr.isatty():
        yield from tqdm(items, description, total, unit=unit, dynamic_ncols=True)
        return
    began = said = monotonic()
    # an item is done when the next one is asked for
    for done, item in enumerate(items):
        now = monotonic()
        if shown and done and now - said > SECONDS:
            said = now
            left = spoken((now - began) / done * (total - done))
            logger.info("%s: %s %d of %d, %s left", description, unit, done, total, left)
        yield item


def spoken(seconds: float) -> str:
    """
    Example:
        >>> spoken(12.3), spoken(4000)
        ('12 s', '1:06:40')
    """
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))

"""What a header promises is compared with what is there before memory is taken for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai_ssl.errors import DataError
from monai_ssl.machine import machine_memory

# no deflate stream unpacks to more than 1032 times its size
PACKING = 1040


def check_promise(shape: Sequence[int], itemsize: int, stored: int | None = None, packed: bool = False) -> int:
    """Bytes of voxels that a header promises.

    Args:
        shape: axes, with channels.
        itemsize: bytes of one value.
        stored: bytes that the file holds for them; None where nobody knows.
        packed: they are compressed by deflate.

    Raises:
        DataError: when an axis is negative, when more is promised than there can be, or than fits into memory.

    Example:
        >>> check_promise((4, 4, 4), 2, stored=100)
        Traceback (most recent call last):
        ...
        monai_ssl.errors.DataError: file must be complete, but it is truncated (its header promises 128 bytes of \
voxels, 100 are there): copy it again
    """
    if any(side < 0 for side in shape):
        raise DataError(f"image must have axes of positive length, got shape {tuple(shape)}: export it again")
    promised = math.prod(int(side) for side in shape) * itemsize
    if stored is not None and promised > (stored * PACKING if packed else max(stored, 0)):
        there = f"{max(stored, 0)} {'compressed ' if packed else ''}are there"
        raise DataError(
            f"file must be complete, but it is truncated (its header promises {promised} bytes of voxels, {there}): "
            "copy it again"
        )
    check_memory(promised, f"its header promises {' x '.join(map(str, shape))} values")
    return promised


def check_memory(needed: float, why: str) -> None:
    """
    Raises:
        DataError: when this machine has no memory for so many bytes.
    """
    if needed > (there := machine_memory()):
        raise DataError(
            f"image must fit into memory, but {why}, {needed / 1e9:.3g} GB, and this machine has {there / 1e9:.3g} GB: "
            "is the header right?"
        )

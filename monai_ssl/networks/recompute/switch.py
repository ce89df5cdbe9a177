"""The one switch of this package, and the test that its kernels still are what they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# of the running thread or task: two trainings in one process do not see each other's switch
_ENABLED: ContextVar[bool] = ContextVar("monai_ssl_recompute", default=True)


def enabled() -> bool:
    """Whether tensors are computed again instead of kept, where that is possible."""
    return _ENABLED.get()


@contextmanager
def disabled() -> Iterator[None]:
    """Plain autograd until the block ends: more memory, the same mathematics; bits may differ by rounding.

    Example:
        >>> with disabled():
        ...     enabled()
        False
    """
    token = _ENABLED.set(False)
    try:
        yield
    finally:
        _ENABLED.reset(token)


def may_recompute(x: torch.Tensor) -> bool:
    """Whether this is a step of training on a CPU in which ``x`` takes part, with the switch on."""
    return (
        enabled()
        and torch.is_grad_enabled()
        and x.requires_grad
        and x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )

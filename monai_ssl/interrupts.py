"""Ctrl-C and SIGTERM in the middle of long work: first asked to stop, then made to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))
# how long a loader process goes on after a SIGTERM that reached the whole job, so that the step in work can end
GRACE = 10


class StopRequest:
    """Whether somebody has asked this process to stop; ``signal`` is 0 until then."""

    def __init__(self) -> None:
        self.signal = 0


@contextmanager
def stop_requests(request: StopRequest) -> Iterator[None]:
    """Inside the block, the first SIGINT or SIGTERM only notes itself in ``request``; the second acts as usual.

    Only the main thread can do this; elsewhere, and for signals that the process was told to ignore (``nohup``),
    nothing changes.
    """
    former: dict[int, object] = {}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        former.clear()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in ASKING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                former[number] = signal.signal(number, note)
    try:
        yield
    finally:
        restore()


def end_when_asked() -> None:
    """For a process that can begin again: outside a training, Ctrl-C and SIGTERM end it at once.

    An exception is no way to do so: raised in the middle of an import it is caught by whoever can do without that
    module. Inside :func:`stop_requests` the training decides, as always.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    for number in ASKING:
        signal.signal(number, end)


def outlive_requests() -> None:
    """For a loader process: Ctrl-C and a cluster's SIGTERM reach it, too, but the training decides when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):

        def later(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, GRACE)

        signal.signal(signal.SIGTERM, later)

"""Three stages with a bound on memory: read (threads), infer (here), finish (threads)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from monai_ssl.errors import DataError


@dataclass
class Outcome:
    """What became of one entry: a result, or the reason why there is none."""

    entry: Any
    result: Any = None
    problem: DataError | None = None


@dataclass
class _Case:
    entry: Any
    memory: float | None = None  # not looked at yet
    reading: Future | None = None
    finishing: Future | None = None
    problem: DataError | None = None


class Pipeline:
    """Passes entries through three stages and gives back their outcomes in order.

    While the network works on one entry, ``jobs`` threads read the next ones and finish (resample, write) the previous
    ones. As many entries are under way as fit into ``memory``, and always one. An entry that cannot be read becomes an
    outcome with a problem; every other error stops the pipeline.

    Args:
        read: entry -> item, in a thread; raises ``DataError`` where it cannot.
        infer: item -> result, in the calling thread: the network's.
        finish: result -> what the outcome holds, in a thread.
        memory_of: bytes that an entry needs from reading to finishing; 0 where nobody knows.
        jobs: threads, >= 1.
        memory: bytes for all entries under way.

    Raises:
        DataError: when ``jobs`` is below 1.

    Example:
        >>> pipeline = Pipeline(int, lambda item: item + 1, str, memory_of=len)
        >>> [outcome.result for outcome in pipeline(["1", "2", "3"])]
        ['2', '3', '4']
    """

    def __init__(
        self,
        read: Callable[[Any], Any],
        infer: Callable[[Any], Any],
        finish: Callable[[Any], Any],
        memory_of: Callable[[Any], float],
        jobs: int = 2,
        memory: float = 8e9,
    ) -> None:
        if jobs < 1:
            raise DataError(f"jobs: must be >= 1, got {jobs}")
        self.read, self.infer, self.finish, self.memory_of = read, infer, finish, memory_of
        self.jobs, self.memory = jobs, memory

    def __call__(self, entries: Sequence[Any]) -> Iterator[Outcome]:
        """Outcomes in the order of the entries; when the last one is given, everything is finished."""
        waiting = deque(_Case(entry) for entry in entries)
        being_read: deque[_Case] = deque()
        being_finished: deque[_Case] = deque()
        with ThreadPoolExecutor(self.jobs) as threads:
            try:
                while waiting or being_read or being_finished:
                    while waiting and self._has_room(waiting[0], being_read, being_finished):
                        case = waiting.popleft()
                        case.reading = threads.submit(self.read, case.entry)
                        being_read.append(case)
                    if being_read and not self._should_hand_out(being_finished):
                        case = being_read.popleft()
                        self._infer(case, threads)
                        being_finished.append(case)
                    else:
                        yield _outcome(being_finished.popleft())
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _has_room(self, case: _Case, being_read: Sequence[_Case], being_finished: Sequence[_Case]) -> bool:
        if case.memory is None:
            case.memory = self.memory_of(case.entry)
        under_way = [*being_read, *being_finished]
        used = sum(other.memory or 0.0 for other in under_way)
        return not under_way or (len(being_read) <= self.jobs and used + case.memory <= self.memory)

    def _should_hand_out(self, being_finished: Sequence[_Case]) -> bool:
        """The network continues as long as there is an item, unless a result is ready or too many are behind it."""
        return bool(being_finished) and (len(being_finished) > self.jobs or _done(being_finished[0]))

    def _infer(self, case: _Case, threads: ThreadPoolExecutor) -> None:
        assert case.reading is not None
        try:
            item = case.reading.result()
        except DataError as error:
            case.problem = error
        else:
            case.reading = None  # it holds the image
            case.finishing = threads.submit(self.finish, self.infer(item))


def _done(case: _Case) -> bool:
    return case.finishing is None or case.finishing.done()


def _outcome(case: _Case) -> Outcome:
    """Waits until the case is finished."""
    result = None if case.finishing is None else case.finishing.result()
    return Outcome(case.entry, result, case.problem)

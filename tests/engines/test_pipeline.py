"""Three stages: order, bounds, and what stops them."""

import threading
import time

import pytest

from monai_ssl.engines.pipeline import Pipeline
from monai_ssl.errors import DataError


class Stages:
    """Counts what is between reading and finishing; some entries cannot be read."""

    def __init__(self, unreadable=(), seconds=0.0):
        self.lock, self.under_way, self.most = threading.Lock(), 0, 0
        self.unreadable, self.seconds, self.threads = set(unreadable), seconds, set()

    def read(self, entry):
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.threads.add(threading.get_ident())
        if entry in self.unreadable:
            with self.lock:
                self.under_way -= 1
            raise DataError(f"{entry} is broken")
        return entry * 10

    def infer(self, item):
        assert threading.current_thread() is threading.main_thread()
        return item + 1

    def finish(self, result):
        time.sleep(self.seconds * (1 + result % 3))
        with self.lock:
            self.under_way -= 1
        return str(result)

    def pipeline(self, **options):
        return Pipeline(self.read, self.infer, self.finish, lambda entry: 1.0, **options)


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("memory", [0.5, 1.0, 3.0, 1e9])
def test_order_and_bounds(jobs, memory):
    stages = Stages(seconds=0.002)
    outcomes = list(stages.pipeline(jobs=jobs, memory=memory)(range(12)))
    assert [outcome.entry for outcome in outcomes] == list(range(12))
    assert [outcome.result for outcome in outcomes] == [str(10 * k + 1) for k in range(12)]
    assert stages.most <= max(memory, 1)
    assert stages.most <= 2 * (jobs + 1) + 1
    assert (stages.most == 1) == (memory <= 1)


def test_no_entries():
    assert list(Stages().pipeline()([])) == []


def test_what_cannot_be_read_does_not_stop_the_others():
    outcomes = list(Stages(unreadable={0, 3, 4}).pipeline()(range(6)))
    assert [str(o.problem) if o.problem else o.result for o in outcomes] == [
        "0 is broken", "11", "21", "3 is broken", "4 is broken", "51"]  # fmt: skip


@pytest.mark.parametrize("stage", ["read", "infer", "finish"])
def test_any_other_error_stops_it(stage):
    stages = Stages()

    def broken(value):
        raise OSError("disk full")

    setattr(stages, stage, broken)
    with pytest.raises(OSError, match="disk full"):
        list(stages.pipeline()(range(50)))
    assert stages.most < 10, "the rest is not even read"


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    outcomes = Stages(seconds=0.001).pipeline(jobs=3)(range(100))
    assert next(outcomes).result == "1"
    outcomes.close()
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_rejects_jobs():
    with pytest.raises(DataError, match="jobs: must be >= 1, got 0"):
        Stages().pipeline(jobs=0)

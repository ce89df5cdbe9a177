"""Whether the cores are free for a training's threads."""

from __future__ import annotations

import os
import re

import pytest

from monai_ssl.engines import crowding


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two readings of a statistics file, in which each core was idle for a share of the time between them."""

    def prepare(*shares: float) -> None:
        monkeypatch.setattr(crowding, "STATISTICS", str(tmp_path / "stat"))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(len(shares))), raising=False)
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        ticks = os.sysconf("SC_CLK_TCK")

        def write(seconds: float) -> None:
            rows = [
                f"cpu{k} 5 0 7 {100 + round(share * seconds * ticks)} 3 0 0 0 0 0" for k, share in enumerate(shares)
            ]
            (tmp_path / "stat").write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 0", *rows, "cpu9 1 1 1 1 1", "intr 5"]))

        write(0)
        monkeypatch.setattr(crowding.time, "sleep", write)

    return prepare


@pytest.mark.parametrize(
    ("idle", "threads", "said"),
    [
        ((1, 1), 2, None),
        ((1, 0.3), 2, None),
        ((0, 0), 1, None),  # one thread waits for nobody
        ((0, 0), 2, r"\(0.0 of 2 are idle\) and this training uses 2 threads, .*; OMP_NUM_THREADS=1 in front"),
        ((0.5, 0.6), 2, r"\(1.1 of 2 are idle\).* OMP_NUM_THREADS=1 "),
        ((1, 1, 0, 1), 4, r"\(3.0 of 4 are idle\).* OMP_NUM_THREADS=3 "),
    ],
)
def test_more_threads_than_idle_cores(machine, idle, threads, said):
    machine(*idle)
    found = crowding.crowded(threads, seconds=1)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(said, found), found


def test_threads_that_do_not_spin_are_no_crowd(machine, monkeypatch):
    machine(0, 0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert crowding.crowded(2, seconds=1) is None


def test_another_system_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(crowding, "STATISTICS", str(tmp_path / "none"))
    assert crowding.crowded(8, seconds=0) is None

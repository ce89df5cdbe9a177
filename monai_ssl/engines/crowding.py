"""Whether the cores that PyTorch counts on are free."""

from __future__ import annotations

import os
import time

STATISTICS = "/proc/stat"


def crowded(threads: int, seconds: float = 0.2) -> str | None:
    """A warning where this process would use more threads than there are idle cores (Linux; elsewhere none).

    Threads of OpenMP that wait for one another spin. On cores that others use as well, the one that all wait for does
    not get its turn: a step has been seen to take 25 times as long. More processes than threads are no problem.

    Args:
        threads: that this process is about to use.
        seconds: how long to look, while this process does nothing.
    """
    if threads < 2 or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return None
    before = _idle()
    time.sleep(seconds)
    after = _idle()
    if not before or before.keys() != after.keys():
        return None
    idle = sum(min((after[core] - before[core]) / (seconds * os.sysconf("SC_CLK_TCK")), 1.0) for core in before)
    if threads <= idle + 0.75:
        return None
    fit = max(round(idle), 1)
    return (
        f"other programs keep the cores busy ({idle:.1f} of {len(before)} are idle) and this training uses {threads} "
        f"threads, which may make it many times slower; OMP_NUM_THREADS={fit} in front of the command avoids that"
    )


def _idle() -> dict[str, int]:
    """Ticks that each core this process may use has been idle."""
    try:
        allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        with open(STATISTICS, encoding="ascii") as file:
            rows = [line.split() for line in file if line.startswith("cpu")]
    except (OSError, AttributeError):
        return {}
    return {row[0]: int(row[4]) + int(row[5]) for row in rows if row[0] in allowed}

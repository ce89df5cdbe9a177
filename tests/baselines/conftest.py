"""Numbers of the released comparison methods, each claimed by exactly one test.

``tests/golden/golden_baselines.npz`` holds what the released functions and loops returned. A test names the numbers it
accounts for, as patterns of the shell, and gets them from ``golden``:

    @pytest.mark.claims("mt3_*", "mt_randn3")
    def test_golden_mean_teacher_3d(golden): ...

At its end ``golden`` says which of them the test never read. Inputs that several tests need (``in3_*`` and the like)
may be read by any test. What no test can reproduce stands with its reason in ``UNCLAIMED`` of ``test_every_number.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from golden_claims import NUMBERS, Golden, claimed_by

FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def _numbers() -> Any:
    return np.load(NUMBERS)


@pytest.fixture
def golden(request: pytest.FixtureRequest, _numbers: Any) -> Iterator[Golden]:
    """The numbers; what the test claims must have been read when it ends."""
    found = Golden(_numbers)
    yield found
    patterns = [pattern for marker in request.node.iter_markers("claims") for pattern in marker.args]
    if not request.node.stash.get(FAILED, False):
        never = claimed_by(patterns, _numbers.files) - found.read
        assert not never, f"claimed and never read: {sorted(never)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A test that failed is not blamed for what it did not get to read as well."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = not report.passed
    return report

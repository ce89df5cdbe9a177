"""Tests of what the template says run on one bundle."""

from __future__ import annotations

import pytest
from commands import IN_FULL


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def again(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        folder = callspec.params.get("bundle") if callspec else None
        return bool(item.get_closest_marker("shared_config")) and folder is not None and folder.name != IN_FULL

    left_out = [item for item in items if again(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]

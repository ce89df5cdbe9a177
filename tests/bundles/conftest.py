"""Which tests of the bundles belong to the fast suite."""

from __future__ import annotations

import pytest

IN_FULL = "dtc"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        folder = callspec.params.get("bundle") if callspec else None
        if item.get_closest_marker("shared_config") and folder is not None and folder.name != IN_FULL:
            item.add_marker(pytest.mark.slow)

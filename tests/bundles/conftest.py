"""Tests of what the template says run on one bundle."""

from __future__ import annotations

import pytest
from commands import IN_FULL

# long ones are tried on the bundles of `ALWAYS`, and on the others with `pytest -m slow`
LONG = (
    "test_two_processes",
    "test_onnx_gives_the_same_logits",
    "test_inference_equals_evaluation_to_the_voxel",
    "test_evaluation_equals_validation_of_the_training",
    "test_torchscript_gives_the_same_logits",
    "test_verify_net_in_out",
    "test_overrides_of_monai_label",
    "test_from_training_to_segmentation",
)
ALWAYS = {"dtc", "caml", "self_training", "sassnet"}


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def again(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        folder = callspec.params.get("bundle") if callspec else None
        return bool(item.get_closest_marker("shared_config")) and folder is not None and folder.name != IN_FULL

    left_out = [item for item in items if again(item)]
    for item in items:
        callspec = getattr(item, "callspec", None)
        folder = callspec.params.get("bundle") if callspec else None
        name = getattr(folder, "name", folder)  # a path, or a name
        where = callspec.params.get("where", "phantom") if callspec else "phantom"
        long = item.originalname in LONG or where != "phantom"  # type: ignore[attr-defined]
        if name is not None and long and name not in ALWAYS:
            item.add_marker("slow")
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]

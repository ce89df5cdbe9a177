"""A checkpoint as it must be before anything is taken from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from monai_ssl.errors import DataError, json_type
from monai_ssl.weights import load

# 1 (no number): version 0.1, whose identity left out most of what decides a result
FORMAT = 2
KINDS: dict[str, tuple[type, ...]] = {
    "iteration": (int,),
    "settled": (bool,),
    "identity": (dict,),
    "files": (list,),
    "notes": (dict,),
    "method": (dict,),
    "optimizer": (dict,),
    "lr_scheduler": (dict, type(None)),
    "grad_scaler": (dict,),
    "adversaries": (dict,),
}
SPOKEN = {int: "an integer", bool: "a boolean", dict: "an object", list: "a list", type(None): "null"}


def read_state(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of ``checkpoint.pt``.

    Raises:
        DataError: when the file is damaged, no checkpoint of a training, or one whose parts contradict each other.
    """
    state = load(path, map_location)
    if not isinstance(state, dict) or "method" not in state or "iteration" not in state:
        raise DataError(f"{path}: is no checkpoint of a run; move it away")
    written = state.get("format", 1)
    if written != FORMAT:
        age = "an earlier" if isinstance(written, int) and written < FORMAT else "another"
        raise DataError(
            f"{path}: was written by {age} version of monai_ssl, whose checkpoints cannot be compared with this "
            "training; continue with that version, give another output_dir, or --resume false to start again"
        )
    for key, kinds in KINDS.items():
        if key not in state and key == "adversaries":
            continue
        value = state.get(key)
        if key not in state or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            got = "nothing" if key not in state else "a tensor" if isinstance(value, Tensor) else json_type(value)
            raise _damaged(path, f"{key} must be {' or '.join(SPOKEN[kind] for kind in kinds)}, got {got}")
    done = state["iteration"]
    extra = state["method"].get("_extra_state")
    counted = extra.get("iteration") if isinstance(extra, dict) else None
    if done < 0 or counted != done:
        raise _damaged(path, f"iteration is {done}, but the method has made {counted} steps")
    if not state["identity"] or "method" not in state["identity"]:
        raise _damaged(path, "identity says nothing of the run")
    return state


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: cannot be continued ({what}); restore it, give another output_dir, or --resume false to start again"
    )

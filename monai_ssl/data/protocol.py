"""How long and with which schedule a method trains on a data set: published per pair of the two, or by the preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from monai_ssl.data.preset import Preset, Training
from monai_ssl.errors import DataError


class Protocol(Training):
    """The numbers of one training; those of :class:`~monai_ssl.data.preset.Training`, and three that a paper may add.

    Attributes:
        ramp: share of the run after which the method's ramp-up has its full weight.
        method: arguments of the method that the paper sets for this data set.
        preset: keys of the preset that it sets, see :func:`~monai_ssl.data.load_preset`.
    """

    ramp: float = Field(default=1.0, gt=0)
    method: dict[str, Any] = Field(default={})
    preset: dict[str, Any] = Field(default={})


def training_protocol(preset: Preset, literature: Mapping[str, Mapping[str, Any]] | None = None) -> Protocol:
    """The published protocol where there is one, else the preset's own ``training``.

    Papers publish iterations, schedule and ramp-up per method *and* data set: CAML trains the left atrium for 15000
    iterations at a constant rate, DTC for 6000 in steps. The method's ``bundle.yaml`` says so under ``literature``; it
    counts for presets that are marked ``published`` (the flavor ``literature`` of those that ship with the package).
    What it leaves open is the preset's.

    Args:
        preset: the data set.
        literature: name of a data set -> keys of :class:`Protocol`. ``milestones`` and ``ramp`` are iterations, as
            papers print them; they become shares of ``max_iterations``, so that a run of another length has the same
            shape.

    Raises:
        DataError: for an unknown key or a value out of its range.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> published = {"left_atrium": {"max_iterations": 15000, "schedule": "constant", "ramp": 6000}}
        >>> protocol = training_protocol(load_preset("left_atrium", "literature"), published)
        >>> protocol.max_iterations, protocol.schedule, protocol.ramp, protocol.labeled_batch_size
        (15000, 'constant', 0.4, 2)
        >>> training_protocol(load_preset("left_atrium", "practical"), published).max_iterations
        6000
    """
    own = preset.training.model_dump()
    stated = dict((literature or {}).get(preset.name, {})) if preset.published else {}
    try:
        length = int(stated.get("max_iterations", own["max_iterations"]))
        if "milestones" in stated:
            stated["milestones"] = tuple(iteration / length for iteration in stated["milestones"])
        if "ramp" in stated:
            stated["ramp"] = stated["ramp"] / length
        return Protocol.model_validate(own | stated)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"literature: {preset.name}: {where}: {first['msg']} (got {first.get('input')!r}); the keys are those of "
            "monai_ssl.data.protocol.Protocol"
        ) from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise DataError(
            f"literature: {preset.name}: max_iterations, milestones and ramp must be iterations, got {stated}"
        ) from None

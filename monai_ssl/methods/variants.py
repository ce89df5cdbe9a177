"""A paper and the code released for it, as two sets of options of one method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Columns = Mapping[str | None, Mapping[str, Any]]


def of_variant(variant: str | None, columns: Columns, **given: Any) -> dict[str, Any]:
    """Options of a method: those that were given, and for each that is None the variant's.

    Args:
        variant: a key of ``columns``.
        columns: variant -> option -> value. The key None, where there is one, is a method's own default.
        **given: options of the constructor; None where the caller left them open.

    Raises:
        ValueError: for an unknown variant.

    Example:
        >>> columns = {"released": {"weight": 0.3}, "paper": {"weight": 1.0}}
        >>> of_variant("paper", columns, weight=None), of_variant("paper", columns, weight=0.5)
        ({'weight': 1.0}, {'weight': 0.5})
    """
    if variant not in columns:
        names = tuple(name for name in columns if name is not None)
        raise ValueError(f"variant must be one of {names}{' or None' if None in columns else ''}, got {variant!r}")
    return {name: columns[variant][name] if value is None else value for name, value in given.items()}

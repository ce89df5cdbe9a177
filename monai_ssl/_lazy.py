"""Names that are imported when they are used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], modules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that must be quick to import.

    Args:
        package: its ``__name__``.
        homes: public name -> the module that defines it.
        modules: submodules that are found as attributes, too.

    Returns:
        The two functions, for the package's ``__init__.py``.

    Example:
        >>> getattr_, dir_ = lazy_names("json", {"JSONDecodeError": "json.decoder"})
        >>> getattr_("JSONDecodeError").__module__
        'json.decoder'
    """

    def getattr_(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
        elif name in modules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # the next access is a plain one
        return value

    def dir_() -> list[str]:
        return sorted({*homes, *modules, *(name for name in vars(sys.modules[package]) if name.startswith("__"))})

    return getattr_, dir_

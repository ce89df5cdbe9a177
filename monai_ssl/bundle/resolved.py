"""What a bundle's config says once overrides and references are resolved, as plain values that can be compared."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai.bundle import ConfigParser


def building_parser() -> ConfigParser | None:
    """The ``ConfigParser`` that is building the component whose constructor calls this; None outside a config.

    MONAI hands a component its own arguments only, and ``python -m monai.bundle run`` hands out nothing else: the calls
    that led here are the one place where both doors, that command and ours, show the whole config.
    """
    from monai.bundle import ConfigParser

    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    return None


class ResolvedConfig:
    """Ids of a config and their values, where the objects of a program have been built from it.

    A value is resolved where it is plain (numbers, texts, lists of them). What is an object, or depends on an id that
    may change from run to run, stands as it is written: ``$max(round(@protocol.ramp * @max_iterations), 1)``.

    Args:
        parser: after its components have been built.
        varying: top-level ids whose values may differ without making another config.
        contents: top-level ids that hold one of our data models, which count by their content.
    """

    def __init__(self, parser: ConfigParser, varying: Collection[str], contents: Collection[str] = ()) -> None:
        self._parser, self._varying, self._contents = parser, set(varying), set(contents)
        self._known: dict[str, bool] = {}

    def values(self) -> dict[str, Any]:
        """Id (``method#variant``) -> value; without the varying ids themselves."""
        found: dict[str, Any] = {}
        source = self._parser.get()
        for root, node in source.items():
            if root in self._varying or root in ("imports", "_meta_"):
                continue
            if root in self._contents and hasattr(model := self._resolved(root), "model_dump"):
                leaves = _leaves(root, model.model_dump(mode="json"))
                found.update((_shown(key), value) for key, value in leaves)
                continue
            for key, leaf in _leaves(str(root), node):
                found[_shown(key)] = self._value(key, leaf)
        return found

    def aliases(self) -> dict[str, str]:
        """Ids whose value is nothing but another id's (``'@seed'``) -> that id."""
        found = {}
        for root, node in self._parser.get().items():
            for key, leaf in _leaves(str(root), node):
                if isinstance(leaf, str) and leaf.startswith("@") and len(self._references(leaf)) == 1:
                    found[_shown(key)] = _shown(self._references(leaf)[0])
        return found

    def _value(self, key: str, leaf: Any) -> Any:
        if isinstance(leaf, str) and leaf.startswith(("$", "@")) and not self._varies(key):
            value = plain(self._resolved(key))
            return leaf if value is _NOT_PLAIN else value
        value = plain(leaf)
        return f"<{type(leaf).__qualname__}>" if value is _NOT_PLAIN else value

    def _resolved(self, key: str) -> Any:
        return self._parser.ref_resolver.resolved_content.get(key, _NOT_PLAIN)

    @staticmethod
    def _references(text: str) -> list[str]:
        from monai.bundle import ReferenceResolver

        return list(ReferenceResolver.match_refs_pattern(text))

    def _varies(self, key: str) -> bool:
        """Whether a value depends on an id that may change, through any number of references."""
        root = key.split("::")[0]
        if root in self._varying or root in self._contents:
            return root in self._varying
        if key not in self._known:
            self._known[key] = False  # meanwhile: references may not run in circles, blocks may
            texts = [leaf for _, leaf in _leaves(key, self._parser.get(key)) if isinstance(leaf, str)]
            self._known[key] = any(self._varies(ref) for text in texts for ref in self._references(text))
        return self._known[key]


_NOT_PLAIN = object()


def plain(value: Any) -> Any:
    """A value as it may be stored and compared (tuples become lists), or a mark that it is an object."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()  # a number of NumPy's
    if value == "$None" if isinstance(value, str) else value is None:
        return None
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        parts = {str(key): plain(part) for key, part in value.items()}
        return _NOT_PLAIN if any(part is _NOT_PLAIN for part in parts.values()) else parts
    if isinstance(value, (list, tuple)):
        values = [plain(part) for part in value]
        return _NOT_PLAIN if any(part is _NOT_PLAIN for part in values) else values
    return _NOT_PLAIN


def _leaves(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Ids below a node; a list of plain values is a value."""
    if isinstance(node, Mapping) and node:
        for name, part in node.items():
            if name != "_desc_":
                yield from _leaves(f"{key}::{name}", part)
    elif isinstance(node, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple, str)) for part in node):
        for number, part in enumerate(part for part in node if not _reports(part)):
            yield from _leaves(f"{key}::{number}", part)
    else:
        yield key, node


def _reports(component: Any) -> bool:
    """Whether a part of a list only tells about a training: logs, tracking, our own handlers."""
    target = str(component.get("_target_", "")) if isinstance(component, Mapping) else ""
    name = target.rpartition(".")[2]
    return target.startswith("monai_ssl.handlers.") or name == "MLFlowHandler" or "Stats" in name


def _shown(key: str) -> str:
    return key.replace("::", "#")

"""What a method says about its bundle: ``bundle.yaml`` and ``method.md`` in the bundle's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monai_ssl.errors import DataError

SPEC, PAGE = "bundle.yaml", "method.md"


class _Fields(BaseModel):
    """Keys of ``bundle.yaml``; see :class:`BundleSpec`."""

    model_config = ConfigDict(extra="forbid")

    title: str
    summary: str
    description: str
    source: str = ""
    references: list[str] = []
    unlabeled: bool = True
    pseudo_labels: bool = False
    network: dict[str, Any]
    method: dict[str, Any]
    literature: dict[str, dict[str, Any]] = Field(default={})


@dataclass(frozen=True)
class Block:
    """Lines of ``bundle.yaml`` below a key, as they are, comments included.

    Attributes:
        target: the line with ``_target_``.
        arguments: the other lines.
    """

    target: str
    arguments: str


@dataclass(frozen=True)
class BundleSpec:
    """One method's own part of its bundle, read from ``bundle.yaml`` and ``method.md``.

    Attributes:
        name: name of the folder, by which the command line knows the bundle.
        title, summary, description, source, references: who it is: heading; half a sentence for the table of methods;
            two lines for the metadata; "Author et al., where, when"; full references.
        unlabeled: whether the method looks at unlabeled images.
        pseudo_labels: whether it learns label maps of the pool from a folder.
        literature: data set -> what the paper trains there, see :func:`monai_ssl.data.training_protocol`.
        blocks: key -> the lines of ``network``, ``method`` and ``literature``.
        page: heading -> text of ``method.md``; what comes before the first heading is ``Introduction``.
    """

    name: str
    title: str
    summary: str
    description: str
    source: str
    references: list[str]
    unlabeled: bool
    pseudo_labels: bool
    literature: Mapping[str, Mapping[str, Any]]
    blocks: Mapping[str, Block]
    page: Mapping[str, str]


def read_spec(folder: str | Path) -> BundleSpec:
    """Read and check what a method says about its bundle.

    Args:
        folder: the bundle's folder, with ``bundle.yaml`` and ``method.md``.

    Raises:
        DataError: when a file is missing or not readable, a key is unknown, missing or of the wrong kind.

    Example:
        >>> from monai_ssl.bundle.library import find_bundle
        >>> read_spec(find_bundle("dtc")).title
        'Dual-task consistency'
    """
    folder = Path(folder).resolve()
    text, page = _read(folder / SPEC), _read(folder / PAGE)
    try:
        content = yaml.safe_load(text)
        fields = _Fields.model_validate(content)
    except yaml.YAMLError as error:
        raise DataError(f"{folder / SPEC}: is not valid YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "bundle.yaml"
        raise DataError(f"{folder / SPEC}: {where}: {first['msg']} (got {first.get('input')!r})") from None
    lines = _blocks(text)
    blocks = {}
    for key in ("network", "method", "literature"):
        own = lines.get(key, [])
        if key in ("network", "method") and not re.match(r" +_target_:", own[0] if own else ""):
            raise DataError(f"{folder / SPEC}: {key}: the first line must be `_target_:`, the class")
        blocks[key] = Block(own[0], "\n".join(own[1:])) if key in ("network", "method") else Block("", "\n".join(own))
    shown = fields.model_dump(exclude={"network", "method"})
    return BundleSpec(name=folder.name, blocks=blocks, page=_sections(page), **shown)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); it is a part of every bundle's source") from None


def _blocks(text: str) -> dict[str, list[str]]:
    """Top-level key -> the lines below it; comments at the margin belong to nobody."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # checked by the schema
    lines = text.splitlines()
    starts = [key.start_mark.line for key, _ in root.value] + [len(lines)]
    return {
        key.value: [line for line in lines[start + 1 : end] if line.startswith(" ")]
        for (key, _), start, end in zip(root.value, starts, starts[1:], strict=False)
    }


def _sections(text: str) -> dict[str, str]:
    introduction, *rest = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    titles = ["Introduction", *rest[::2]]
    return {title: body.strip("\n") for title, body in zip(titles, [introduction, *rest[1::2]], strict=True)}

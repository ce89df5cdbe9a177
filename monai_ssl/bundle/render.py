"""Bundles from one template: ``make bundles``.

``bundles/<name>/bundle.yaml`` and ``method.md`` hold what is the method's own; the template holds what all bundles
share. Rendered together they are a complete MONAI bundle, in the same folder, committed: a clone can be used at once,
and MONAI Label reads one whole file. Nobody edits rendered files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import monai_ssl
from monai_ssl.bundle.spec import PAGE, SPEC, BundleSpec, read_spec
from monai_ssl.errors import DataError
from monai_ssl.files import write_text

TEMPLATE = Path(__file__).parent / "template"
HEAD = f"Rendered by `make bundles` from {SPEC}, {PAGE} and monai_ssl/bundle/template: edit these, not this file."
# of a bundle outside a clone
RENDER_OWN = "python -m monai_ssl.bundle.render ."
OWN_HEAD = f"Rendered by `{RENDER_OWN}` from {SPEC} and {PAGE}: edit these, not this file."
# how a first line is made a comment; files of other kinds have none
COMMENTS = {".yaml": "# {}\n", ".conf": "# {}\n", ".md": "<!-- {} -->\n"}


def render_bundle(folder: str | Path, head: str = HEAD) -> dict[str, str]:
    """All files of a bundle.

    Args:
        folder: holds ``bundle.yaml`` and ``method.md``.
        head: first line of every file that can carry a comment.

    Returns:
        path inside the bundle -> text.

    Raises:
        DataError: when the folder's own files are not as :func:`monai_ssl.bundle.spec.read_spec` wants them.

    Example:
        >>> from monai_ssl.bundle.library import find_bundle
        >>> sorted(render_bundle(find_bundle("dtc")))[:2]
        ['LICENSE', 'configs/evaluate.yaml']
    """
    spec = read_spec(folder)
    environment = _environment(spec)
    files = {}
    for path in sorted(path for path in TEMPLATE.rglob("*") if path.is_file()):
        name = path.relative_to(TEMPLATE).as_posix()
        if path.suffix == ".j2":
            name = name.removesuffix(".j2")
            text = environment.get_template(f"{name}.j2").render()
        else:
            text = path.read_text(encoding="utf-8")
        files[name] = COMMENTS.get(Path(name).suffix, "").format(head) + text
    return files


def write_bundle(folder: str | Path, target: str | Path | None = None, head: str = HEAD) -> None:
    """Write all files of a bundle into its own folder, or into another one.

    Raises:
        DataError: as :func:`render_bundle`.
    """
    for name, text in render_bundle(folder, head).items():
        path = Path(target or folder) / name
        if name.endswith(".gitkeep") and target is not None:
            continue
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def methods_table(folders: Iterable[Path]) -> str:
    """The bundles as a Markdown table: name, what the method does, whether it reads unlabeled images, source."""
    lines = ["| bundle | method | reads unlabeled images | source |", "|---|---|---|---|"]
    for spec in map(read_spec, folders):
        lines.append(f"| `{spec.name}` | {spec.summary} | {'yes' if spec.unlabeled else 'no'} | {spec.source} |")
    return "\n".join(lines) + "\n"


def place(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between ``<!-- name: ... -->`` and ``<!-- end of name -->``.

    Raises:
        DataError: when the marks are not there.
    """
    placed, n = re.subn(rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- end of {name} -->)",
                        lambda match: match[1] + content + match[2], text, flags=re.DOTALL)  # fmt: skip
    if n != 1:
        raise DataError(f"the marks `<!-- {name} -->` and `<!-- end of {name} -->` must be there once, got {n}")
    return placed


def _environment(spec: BundleSpec) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    environment.filters["names"] = lambda names: ", ".join(f"`{name}`" for name in names)
    environment.filters["without"] = _without
    environment.filters["in_words"] = _in_words
    environment.globals |= {
        **{key: value for key, value in vars(spec).items() if key not in ("blocks", "page")},
        "network": spec.blocks["network"],
        "method": spec.blocks["method"],
        "literature_lines": spec.blocks["literature"].arguments,
        "part": lambda heading: spec.page.get(heading, ""),
        "presets": _presets(),
        "version": monai_ssl.__version__,
    }
    return environment


@cache
def _presets() -> dict[int, list[str]]:
    """Dimensions -> names of the shipped presets."""
    found: dict[int, list[str]] = {2: [], 3: []}
    for path in sorted((Path(monai_ssl.__file__).parent / "data" / "presets").glob("*.yaml")):
        found[yaml.safe_load(path.read_text(encoding="utf-8"))["spatial_dims"]].append(path.stem)
    return found


def _in_words(protocol: Mapping[str, Any]) -> str:
    """A published protocol as the end of a sentence."""
    stated = dict(protocol)
    length = stated.pop("max_iterations", None)
    words = [f"{length} iterations"] if length else []
    if "schedule" in stated:
        after = ", ".join(map(str, stated.pop("milestones", ())))
        words.append(f"learning rate `{stated.pop('schedule')}`" + (f" after {after}" if after else ""))
    if "ramp" in stated:
        words.append(f"ramp-up over {stated.pop('ramp')}")
    if "labeled_batch_size" in stated:
        words.append(f"batch {stated.pop('labeled_batch_size')} + {stated.pop('unlabeled_batch_size', 0)}")
    stated |= stated.pop("method", {}) | stated.pop("preset", {})
    return ", ".join([*words, *(f"`{key}` {value}" for key, value in stated.items())])


def _without(shared: str, own: str) -> str:
    """Rows of a table, or points of a list, that the method's own page does not have."""

    def items(text: str) -> list[str]:
        return [item for item in re.split(r"^(?=\| |- )", text, flags=re.MULTILINE) if item.strip()]

    def key(item: str) -> str:
        match = re.match(r"\| (.*?) \||- (\*\*.*?\*\*)", item)
        return match[0] if match else item

    known = {key(item) for item in items(own)}
    return "".join(item for item in items(shared) if key(item) not in known)


def main(*own: str) -> None:
    """Render every bundle of a clone, and the table of methods in its README; or the folders that are named."""
    for name in own:
        write_bundle(name, head=OWN_HEAD)
    if own:
        return
    root = Path(monai_ssl.__file__).parents[1] / "bundles"
    folders = sorted(path.parent for path in root.glob(f"*/{SPEC}"))
    for folder in folders:
        write_bundle(folder)
    page = root.parent / "README.md"
    if page.is_file():
        text = page.read_text(encoding="utf-8")
        write_text(page, place(text, "methods", methods_table(folders)))
    print(f"rendered: {', '.join(folder.name for folder in folders)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

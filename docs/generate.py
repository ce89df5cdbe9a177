"""Pages of the site that are written from the code: methods, commands, API, notebooks, results, the root's pages.

``conf.py`` calls :func:`generate` before every build. What it writes is ignored by git. A file is only touched when its
text changes, so that a second build is quick.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# pages of the repository's root, and what they are called on the site
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
ROOMS = {
    "methods": "One file per method: an `nn.Module` that owns its networks and turns a batch into named loss terms.",
    "networks": "V-Net, U-Net, heads, adapters for other backbones, teachers, memories.",
    "losses": "Tensors in, a scalar out. They know no engine and no method.",
    "transforms": "What MONAI lacks: signed distance maps, the literature's augmentation, slices of volumes.",
    "data": "What training needs: datalists, presets, reading, rules, two-stream loading.",
    "curation": "What happens before training: splitting, checking, proposing a preset, phantoms, public data sets.",
    "engines": "The trainer, sliding windows, mixed precision, schedules.",
    "handlers": "What hooks into Ignite: checkpoint and resume, logs, previews, validation.",
    "metrics": "Numbers: overlap and surface metrics, statistics, result files.",
    "reports": "Pages: comparisons, data sets, model cards, figures.",
    "runs": "Training, evaluation and prediction as functions; the run folder.",
    "bundle": "MONAI bundles: finding, checking, rendering, running them.",
    "dicom": "DICOM series as archives send them: headers checked, frames in order, clean headers for what is derived.",
    "deploy": "Packaging, DICOM objects, MONAI Label, disagreement for active learning.",
}


def generate(docs: Path) -> None:
    """Write all generated pages below ``docs``."""
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        write(docs / page, links(text, ROOT / source, docs / page))
    methods(docs / "methods")
    commands(docs / "reference" / "commands.md")
    api(docs / "reference" / "api")
    notebooks(docs / "notebooks")
    results(docs / "results")


def write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def links(text: str, source: Path, page: Path) -> str:
    """Relative links of ``source`` as they must be on the site's ``page``."""
    docs = ROOT / "docs"

    def target(match: re.Match[str]) -> str:
        label, goal = match[1], match[2]
        if re.match(r"[a-z]+:|#", goal):
            return match[0]
        file, _, anchor = goal.partition("#")
        path = (source.parent / file).resolve()
        inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        bundle = re.fullmatch(r"bundles/(\w+)(/method\.md|/docs/README\.md|/?)", inside)
        if inside in ROOT_PAGES:
            path = docs / ROOT_PAGES[inside]
        elif inside == "README.md":
            path = docs / "index.md"
        elif bundle:
            path = docs / "methods" / f"{bundle[1]}.md"
        elif inside in ("docs/results", "docs/results/benchmarks", "docs/methods", "examples/notebooks"):
            path = {"examples/notebooks": docs / "notebooks"}.get(inside, docs / "results") / "index.md"
            path = docs / "methods" / "index.md" if inside == "docs/methods" else path
        elif re.fullmatch(r"examples/notebooks/\w+\.py", inside):
            path = docs / "notebooks" / f"{path.stem}.md"
        elif not path.is_file():
            return label
        there = Path(os.path.relpath(path, page.parent)).as_posix()
        return f"[{label}]({there}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```|^~~~.*?^~~~)", text, flags=re.MULTILINE | re.DOTALL)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)\s]+)\)", target, parts[index])
    return "".join(parts)


def methods(folder: Path) -> None:
    """One page per bundle: its rendered page, the way to the class, and the class itself."""
    from monai_ssl.bundle.library import available_bundles, bundles_root
    from monai_ssl.bundle.render import methods_table, render_bundle
    from monai_ssl.bundle.spec import read_spec

    names = available_bundles()
    folders = [bundles_root() / name for name in names]
    table = methods_table(folders)
    table = re.sub(r"^\| `(\w+)`", r"| [`\1`](\1.md)", table, flags=re.MULTILINE)
    write(folder / "index.md", f"""# Methods

Every method is a MONAI bundle: `monai-ssl train NAME ...`, or `python -m monai.bundle run` on its folder. Its page
tells how it works, its options, where paper and released code differ, what was measured, and when it fails.

{table}
Which one helps on your data is a question for a run with its [matched floor](../concepts/matched_floor.md), not for a
table. [How to add a method](../contributing.md).

Not here: DUWM (Wang et al., MICCAI 2020), of one of the [papers' tables](../results/papers.md). Its authors
released no code, and the paper leaves open what would have to be guessed.

```{{toctree}}
:hidden:

{chr(10).join(names)}
```
""")  # fmt: skip
    for name, bundle in zip(names, folders, strict=True):
        spec = read_spec(bundle)
        target = folder / f"{name}.md"
        text = links(render_bundle(bundle, head="")["docs/README.md"], bundle / "docs" / "README.md", target)
        text = re.sub(r"\A\s*<!--.*?-->\s*", "", text, flags=re.DOTALL)
        title, _, rest = text.partition("\n")
        blocks = yaml.safe_load((bundle / "bundle.yaml").read_text(encoding="utf-8"))
        cls, network = blocks["method"]["_target_"], blocks["network"]["_target_"]
        facts = [
            f"| command | `monai-ssl train {name} DATA` |",
            f"| class | {{py:class}}`{cls}` |",
            f"| network | {{py:obj}}`{network}` |",
            f"| reads unlabeled images | {'yes' if spec.unlabeled else 'no'} |",
            *(f"| paper | {reference} |" for reference in spec.references),
        ]
        head, mark, citation = rest.rpartition("\n## Citation")
        described = f"## The class\n\n```{{eval-rst}}\n.. autoclass:: {public(cls)}\n   :no-index:\n```\n"
        facts_table = "\n".join(["| | |", "|---|---|", *facts])
        write(target, f"{title}\n\n{facts_table}\n{head}\n\n{described}{mark}{citation}")


def commands(page: Path) -> None:
    """The command line's own help, command by command."""
    from monai_ssl import cli

    names = list(cli.COMMANDS)
    parts = ["# Commands\n", "What `monai-ssl COMMAND --help` prints. Any id of a bundle's configs is an option of",
             "`train`, `evaluate` and `predict`, too; the [pages of the methods](../methods/index.md) list some.\n",
             f"```text\n{told(cli.main, ['--help']).strip()}\n```\n"]  # fmt: skip
    for name in names:
        parts += [f"## {name}\n", f"```text\n{told(cli.main, [name, '--help']).strip()}\n```\n"]
    write(page, "\n".join(parts))


def told(function: Any, arguments: list[str]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        function(arguments)
    return output.getvalue()


def public(name: str) -> str:
    """The shortest importable name of what ``name`` names: ``monai_ssl.losses.SigmoidRampUp``."""
    parts = name.split(".")
    thing = getattr(importlib.import_module(".".join(parts[:-1])), parts[-1])
    for short in (".".join([*parts[:1], parts[-1]]), ".".join([*parts[:2], parts[-1]])):
        module, _, attribute = short.rpartition(".")
        with contextlib.suppress(AttributeError, ImportError):
            if getattr(importlib.import_module(module), attribute) is thing:
                return short
    return name


def api(folder: Path) -> None:
    """A page per room: every public class and function under the name by which it is imported."""
    import monai_ssl

    rooms = {room: text for room, text in ROOMS.items() if (ROOT / "monai_ssl" / room).is_dir()}
    missing = {m.name for m in pkgutil.iter_modules(monai_ssl.__path__) if m.ispkg} - set(rooms) - {"cli", "bundles"}
    if missing:
        raise RuntimeError(f"docs/generate.py: ROOMS has no line about {sorted(missing)}")
    front = ["# Python API\n", "Rooms by kind, with imports that go one way. The functions of `monai_ssl` itself do",
             "what the commands do; the rooms below are what they are made of.\n"]  # fmt: skip
    names = sorted(getattr(monai_ssl, "__all__", ()))
    entries = [directive(f"monai_ssl.{name}", getattr(monai_ssl, name)) for name in names]
    front += ["```{eval-rst}", *filter(None, entries), "```\n"] if entries else []
    front += ["| room | what it holds |", "|---|---|"]
    front += [f"| [`{room}`]({room}.md) | {text} |" for room, text in rooms.items()]
    front += ["", "```{toctree}", ":hidden:", "", *rooms, "```", ""]
    write(folder / "index.md", "\n".join(front))
    seen = {id(getattr(monai_ssl, name)) for name in names}
    for room, text in rooms.items():
        package = importlib.import_module(f"monai_ssl.{room}")
        lines = [f"# monai_ssl.{room}\n", f"{text}\n"]
        for module in modules(package):
            listed = [(name, thing) for name, thing in own(module) if id(thing) not in seen]
            if not listed:
                continue
            seen |= {id(thing) for _, thing in listed}
            first = (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")
            lines += [f"## {module.__name__.removeprefix(package.__name__ + '.')}\n", "```{eval-rst}"]
            lines += [f"{first}\n", *(directive(public(f"{module.__name__}.{name}"), thing) for name, thing in listed)]
            lines += ["```\n"]
        write(folder / f"{room}.md", "\n".join(lines))


def modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not any(part.startswith("_") for part in info.name.split(".")) and not info.name.endswith(".deploy.label"):
            yield importlib.import_module(info.name)


def own(module: ModuleType) -> Iterable[tuple[str, Any]]:
    """Public classes and functions that a module defines, in the order of its text."""
    found = []
    for name, thing in vars(module).items():
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__ and callable(thing):
            with contextlib.suppress(OSError, TypeError):
                found.append((inspect.getsourcelines(thing)[1], name, thing))
    return [(name, thing) for _, name, thing in sorted(found, key=lambda entry: entry[0])]


def directive(name: str, thing: Any) -> str:
    if inspect.isclass(thing):
        return f".. autoclass:: {name}\n   :members:\n"
    return f".. autofunction:: {name}\n" if callable(thing) else ""


def notebooks(folder: Path) -> None:
    """Percent scripts of ``examples/notebooks`` as pages, and as notebooks to download."""
    titles = []
    for script in sorted((ROOT / "examples" / "notebooks").glob("[0-9]*.py")):
        found = list(cells(script.read_text(encoding="utf-8")))
        page = folder / f"{script.stem}.md"
        text = "\n".join(body if kind == "markdown" else f"```python\n{body.strip()}\n```\n" for kind, body in found)
        title, _, rest = text.partition("\n")
        note = (f"```{{note}}\nA notebook: {{download}}`{script.stem}.ipynb`, or the script "
                f"`examples/notebooks/{script.name}`, which the tests run.\n```\n")  # fmt: skip
        write(page, f"{title}\n\n{note}\n{links(rest, script, page)}")
        entries = [{"cell_type": kind, "metadata": {}, "id": f"cell-{i}",
                    "source": body.strip().splitlines(keepends=True),
                    **({} if kind == "markdown" else {"execution_count": None, "outputs": []})}
                   for i, (kind, body) in enumerate(found)]  # fmt: skip
        book = {"cells": entries, "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python",
                "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}  # fmt: skip
        write(folder / f"{script.stem}.ipynb", json.dumps(book, indent=1, ensure_ascii=False) + "\n")
        titles.append(script.stem)
    if titles:  # a page without notebooks would be a promise
        write(folder / "index.md", "# Notebooks\n\nFive short tours in Python. Each runs on a laptop without a GPU.\n\n"
              "```{toctree}\n:maxdepth: 1\n\n" + "\n".join(titles) + "\n```\n")  # fmt: skip


def cells(text: str) -> Iterator[tuple[str, str]]:
    """Cells of a script in percent format: (markdown or code, text)."""
    for part in re.split(r"^(?=# %%)", text, flags=re.MULTILINE):
        head, _, body = part.partition("\n")
        if head.startswith("# %% [markdown]"):
            yield "markdown", re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE) + "\n"
        elif head.startswith("# %%") and body.strip():
            yield "code", body


def results(folder: Path) -> None:
    """A table of contents over the committed results."""
    papers = [path for path in (folder / "papers.md",) if path.is_file()]
    pages = papers + sorted(folder.glob("*/README.md"))
    speed = sorted((folder / "benchmarks").glob("*.md"))
    more = sorted(path for path in folder.glob("*/*.md")
                  if path.name not in ("README.md", "FINDINGS.md") and path.parent.name != "benchmarks")  # fmt: skip

    def lines(paths: list[Path]) -> str:
        return "\n".join(path.relative_to(folder).with_suffix("").as_posix() for path in paths)

    tree = "```{{toctree}}\n:maxdepth: 1\n{}\n{}\n```\n"
    write(folder / "index.md", "# Results\n\nFiles of the repository, written by a script together with the command "
          "and the machine. No number is quoted on other pages that is not here.\n\n"
          + tree.format("", lines([*pages, *more]))
          + "\n## Speed and memory\n\n" + tree.format("", lines(speed)))  # fmt: skip

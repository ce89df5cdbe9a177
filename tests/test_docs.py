"""Documentation that stays true: links lead somewhere, commands and their options exist, examples run."""

from __future__ import annotations

import re
import runpy
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from monai_ssl import cli
from monai_ssl.bundle import library as bundles
from monai_ssl.curation.prepare import RECIPES, build_recipe
from monai_ssl.data.preset import load_preset
from monai_ssl.runs.train import default_folder

ROOT = Path(__file__).parents[1]
# written by docs/generate.py, by benchmarks and by the release, not by hand: they may come later than what links them
SITE = ("docs/methods/", "docs/notebooks/", "docs/reference/api/", "docs/reference/commands.md",
        "docs/contributing.md", "docs/changelog.md", "docs/security.md")  # fmt: skip
LATER = ("docs/results/", "docs/images/", *SITE)
PAGES = [*sorted(ROOT.glob("*.md")),
         *(page for page in sorted((ROOT / "docs").rglob("*.md"))
           if not page.relative_to(ROOT).as_posix().startswith(("docs/results/", *SITE)))]  # fmt: skip


def name_of(page: object) -> str | None:
    return page.relative_to(ROOT).as_posix() if isinstance(page, Path) else None


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["monai-ssl"]:
                    yield page.name, words[1:]


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, part = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if path.relative_to(ROOT).as_posix().startswith(LATER):
            continue
        assert path.exists(), f"{page.name}: {target} leads nowhere"
        if part:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in map(anchor, titles), f"{page.name}: {target}: no such heading"


@pytest.mark.parametrize(
    ("page", "words"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_commands_and_options_exist(page, words):
    name, *rest = words
    if name.startswith("-"):
        return
    if name == "train" and (len(rest) == 1 or rest[1].startswith("-")):
        name = "self-train"  # a folder of scans alone: the method is ours to choose
    command = cli.COMMANDS[name]
    given = cli.parse(command, rest)
    ids = set(given) - {parameter.name for parameter in command.parameters.values()}
    if name == "prepare":
        build_recipe(RECIPES[given["dataset"]], {key: given[key] for key in ids})
    elif ids:
        config = {"train": ["train.yaml"], "predict": ["inference.yaml"]}.get(name, ["train.yaml", "evaluate.yaml"])
        own = {"train": given.get("bundle"), "self-train": "self_training"}.get(name)
        named = own if own in bundles.available_bundles() else "dtc"
        configs = ["train.yaml"] if name == "self-train" else config
        bundles.check_ids(bundles.find_bundle(named), configs, ids)


def test_the_folder_of_a_self_training_is_the_one_that_a_user_gets():
    """The guide's command names no folder; what the guide shows must be where the results are."""
    page = (ROOT / "docs/how_to/self_training.md").read_text(encoding="utf-8")
    assert "monai-ssl self-train scans --dataset my_data.yaml\n" in page
    own = load_preset({**load_preset("phantom").model_dump(), "name": "my_data"})
    found = default_folder("self-train", own, Path("scans"), 0).as_posix()
    assert set(re.findall(r"runs/self-train[\w-]*", page)) == {found}


def test_pages_use_the_command_line():
    assert len(list(commands())) > 10


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for block in blocks(page, "python"):
        exec(compile(textwrap.dedent(block), page.name, "exec"), namespace)


def test_make_targets_in_the_text_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"`make (\w+)", page.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


@pytest.mark.parametrize("page", ["README.md", "docs/concepts/matched_floor.md"])
def test_quoted_results_are_in_the_results(page):
    """Every Dice of the table of methods is the mean of a row in docs/results/la_quarter."""
    measured = re.findall(
        r"\*\*(\d\d\.\d)\*\*", (ROOT / "docs/results/la_quarter/README.md").read_text(encoding="utf-8")
    )
    rows = re.findall(
        r"^\| (?:DTC|UG-MCL|SS-Net|TAC|CAML) \|(.*)\|$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 5
    for row in rows:
        assert set(row.replace("|", " ").split()) <= set(measured), row


def test_architecture_shows_the_layers():
    layers = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))["LAYERS"]
    (picture,) = blocks(ROOT / "docs/concepts/architecture.md", "mermaid")
    shown = [tuple(node.split(", ")) for node in re.findall(r"\[(.*?)\]", picture)]
    assert shown == [tuple(room for room in layer if not room.startswith("_")) for layer in layers]

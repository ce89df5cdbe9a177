"""The notebooks of examples/notebooks run, with tiny settings; their pages of the site are made of the same cells."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples" / "notebooks").glob("[0-9]*.py"))


@pytest.fixture
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_five():
    assert len(SCRIPTS) == 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_notebook_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MONAI_SSL_NOTEBOOK_QUICK", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    matplotlib.use("Agg")
    namespace = runpy.run_path(str(script))
    sys.modules.pop("confident", None)  # a module that a notebook writes
    assert namespace["QUICK"]
    assert capsys.readouterr().out
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("notebook-")], os.listdir(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_pages_hold_all_cells(generate, script, tmp_path):
    text = script.read_text(encoding="utf-8")
    cells = list(generate.cells(text))
    assert cells[0][0] == "markdown"
    assert cells[0][1].startswith("# ")
    code = "\n".join(body for kind, body in cells if kind == "code")
    compile(code, script.name, "exec")
    # nothing of the script is lost but the marks of the cells and of comments
    lines = [line for line in text.splitlines() if not line.startswith("# %%")]
    assert "".join(body for _, body in cells).replace("#", "").split() == "\n".join(lines).replace("#", "").split()
    generate.notebooks(tmp_path)
    book = json.loads((tmp_path / f"{script.stem}.ipynb").read_text(encoding="utf-8"))
    assert [cell["cell_type"] for cell in book["cells"]] == [kind for kind, _ in cells]

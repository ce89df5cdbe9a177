"""`monai-ssl new-method`: what it writes passes all tests at once, in a clone and outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from monai_ssl.bundle.new_method import new_method
from monai_ssl.bundle.render import render_bundle
from monai_ssl.errors import DataError

ROOT = Path(__file__).parents[2]


def python(folder: Path, package: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree with a new method."""
    root = tmp_path_factory.mktemp("clone") / "monai_ssl"
    ignored = shutil.ignore_patterns("__pycache__", "*.pt", "eval")
    for name in ("bundles", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copytree(ROOT / "monai_ssl", root / "monai_ssl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "datasets.md", root / "docs")  # the bundles' pages link to it
    python(root, root, "-m", "monai_ssl", "new-method", "my_method")
    return root


def changed(root: Path) -> set[str]:
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    same = {
        name for name in files if (ROOT / name).is_file() and (ROOT / name).read_bytes() == (root / name).read_bytes()
    }
    return files - same


class TestInAClone:
    def test_touches_what_the_guide_says(self, clone):
        rendered = render_bundle(clone / "bundles" / "my_method")
        assert changed(clone) == {
            "monai_ssl/methods/my_method.py",
            "bundles/my_method/bundle.yaml",
            "bundles/my_method/method.md",
            *(f"bundles/my_method/{name}" for name in rendered),
            "tests/methods/test_my_method.py",
            "README.md",
            "CHANGELOG.md",
        }
        assert "| `my_method` |" in (clone / "README.md").read_text()
        assert "- Method `my_method`" in (clone / "CHANGELOG.md").read_text()

    def test_is_in_style(self, clone):
        ruff = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
        if not Path(ruff).is_file():
            pytest.skip("needs ruff")
        files = ["monai_ssl/methods/my_method.py", "tests/methods/test_my_method.py"]
        for words in (["check"], ["format", "--check"]):
            done = subprocess.run([ruff, *words, "--no-cache", *files], cwd=clone, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout

    def test_its_own_tests_pass(self, clone):
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
        out = python(clone, clone, *words, "tests/methods/test_my_method.py", "--doctest-modules",
                     "monai_ssl/methods/my_method.py")  # fmt: skip
        assert " passed" in out

    @pytest.mark.slow
    def test_the_tests_of_every_bundle_pass(self, clone):
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "my_method and not new_method"]
        out = python(clone, clone, *words, "tests/bundle", "tests/bundles", "tests/data/test_protocol.py",
                     "tests/engines/test_trainer.py", "tests/engines/test_distributed.py")  # fmt: skip
        assert " passed" in out

    def test_taken_name_is_refused_and_nothing_written(self, clone):
        code = "import monai_ssl.bundle.new_method as m; m.new_method('my_method')"
        with pytest.raises(AssertionError, match="exists already; choose another name"):
            python(clone, clone, "-c", code)


class TestOutsideAClone:
    def test_stands_on_its_own(self, tmp_path):
        files = new_method("own_method", tmp_path / "own_method", title="My own method")
        assert [path.name for path in files] == ["own_method.py", "bundle.yaml", "method.md", "test_own_method.py"]
        assert "# My own method (`own_method`)" in (tmp_path / "own_method" / "docs" / "README.md").read_text()
        folder = tmp_path / "own_method"
        out = python(folder, ROOT, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder))
        assert "3 passed" in out

    @pytest.mark.parametrize("name", ["Mine", "my-method", "1st", "class", ""])
    def test_names_that_are_none(self, name, tmp_path):
        with pytest.raises(DataError, match="name: must be lower-case letters"):
            new_method(name, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_folder_that_is_not_empty(self, tmp_path):
        (tmp_path / "mine").write_text("")
        with pytest.raises(DataError, match="exists and is not an empty folder"):
            new_method("own_method", tmp_path)

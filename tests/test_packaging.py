"""What a wheel and a source archive hold, and that the project's files agree with each other."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import monai_ssl
from monai_ssl.bundle.library import available_bundles, bundles_root, copy_bundle, find_bundle, is_shipped
from monai_ssl.data import available_presets

ROOT = Path(__file__).parents[1]
WEIGHTS = (".pt", ".ts", ".onnx")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist folder of a build from this tree, without network."""
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("build") is None:
        pytest.skip("needs hatchling and build")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_wheel_carries_bundles_presets_and_no_weights(archives):
    (wheel,) = archives.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for bundle in available_bundles():
        for file in ("train.yaml", "inference.yaml", "evaluate.yaml", "multi_gpu_train.yaml", "metadata.json"):
            assert f"monai_ssl/bundles/{bundle}/configs/{file}" in names
        assert f"monai_ssl/bundles/{bundle}/bundle.yaml" in names
    # `monai-ssl bundle` and `new-method` render outside a clone as well
    for folder in ("template", "scaffold"):
        files = {path for path in (ROOT / "monai_ssl" / "bundle" / folder).rglob("*") if path.is_file()}
        assert {path.relative_to(ROOT).as_posix() for path in files if path.name != ".gitkeep"} <= set(names)
    assert "monai_ssl/py.typed" in names
    templates = [*(Path(monai_ssl.__file__).parent / "reports" / "templates").iterdir()]
    assert templates
    assert {f"monai_ssl/reports/templates/{file.name}" for file in templates} <= set(names)
    assert {f"monai_ssl/data/presets/{name}.yaml" for name in available_presets()} <= set(names)
    assert not [name for name in names if name.endswith(WEIGHTS)]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"monai_ssl"}
    assert len(names) == len(set(names))


def test_source_archive_builds_the_same(archives):
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "Makefile", "bundles/dtc/configs/train.yaml"} <= names
    assert not [name for name in names if name.endswith(WEIGHTS)]


def test_bundles_are_found_beside_the_package_and_inside_it(tmp_path, monkeypatch):
    assert find_bundle("dtc") == bundles_root() / "dtc"
    package = tmp_path / "monai_ssl"
    (package / "bundles" / "own" / "configs").mkdir(parents=True)
    (package / "bundles" / "own" / "bundle.yaml").write_text("{}")
    for name in ("train.yaml", "metadata.json"):
        (package / "bundles" / "own" / "configs" / name).write_text("{}")
    monkeypatch.setattr(monai_ssl, "__file__", str(package / "__init__.py"))
    assert available_bundles() == ["own"]
    assert is_shipped(find_bundle("own"))


def test_copied_bundle_leaves_weights_behind(tmp_path):
    source = copy_bundle("dtc", tmp_path / "a")
    (source / "models" / "model.pt").write_bytes(b"weights")
    copy = copy_bundle(source, tmp_path / "b")
    assert not is_shipped(copy)
    assert not list(copy.rglob("*.pt"))
    assert (copy / "configs" / "train.yaml").is_file()


def test_version_is_said_once():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert not re.search(r"^version\b", project, re.MULTILINE)
    assert f"## [{monai_ssl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    for name in available_bundles():
        meta = json.loads((bundles_root() / name / "configs" / "metadata.json").read_text())
        assert meta["version"] == meta["required_packages_version"]["monai_ssl"] == monai_ssl.__version__


def test_extras_exist():
    text = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", text, re.DOTALL)
    assert extras is not None
    assert set(re.findall(r"^(\w+) = ", extras[1], re.MULTILINE)) == {
        "dicom",
        "label",
        "export",
        "mlflow",
        "prepare",
        "ray",
        "test",
        "dev",
        "docs",
    }


def test_make_lists_its_targets():
    out = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=True
    ).stdout
    assert {"setup", "demo", "test", "lint", "bench", "docs", "clean", "help"} <= set(
        re.findall(r"^  make (\w+)", out, re.M)
    )

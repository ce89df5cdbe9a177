"""Studies of the folder ``benchmarks`` can be planned as they are written."""

import importlib.util
import sys
from pathlib import Path

import pytest

from monai_ssl.data.preset import load_preset
from monai_ssl.runs.study.plan import check_options
from monai_ssl.runs.study.settings import checked, read_study

FOLDER = Path(__file__).parents[1] / "benchmarks"
STUDIES = sorted((FOLDER / "studies").glob("*.yaml"))


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_studies_are_valid(file, monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_SSL_DATA", str(tmp_path))
    study = checked(read_study(file), str(file))
    check_options(study)
    for data in study.data.values():
        assert Path(data.scans).is_relative_to(tmp_path)
        for flavor in study.flavors or (None,):
            assert load_preset(data.dataset, flavor).labels
    for method in study.methods.values():
        assert method.title
        assert set(method.flavors or ()) <= set(study.flavors)


def test_there_are_studies():
    assert {"acdc", "hippocampus", "la_quarter", "recipe", "tac_random_splits"} <= {file.stem for file in STUDIES}

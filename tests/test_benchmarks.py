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


def test_a_study_goes_on_elsewhere_with_its_records(tmp_path):
    from monai_ssl.runs.study.tasks import State, Task, done, write_plan

    records, here, there = script("study_records"), tmp_path / "here", tmp_path / "there"
    tasks = [Task(name, "train", {}, name, "scores", "testing") for name in ("one", "two", "three")]
    for task in tasks:
        folder = task.folder(here)
        (folder / "evaluation-testing").mkdir(parents=True)
        (folder / "model.pt").write_bytes(b"weights")
        (folder / "run.json").write_text(f'{{"dataset_dir": "{tmp_path}/scans", "run": "{folder}"}}')
        for name in ("summary.json", "per_case.csv"):
            (folder / "evaluation-testing" / name).write_text(task.name)
        ready = task.name != "three"
        State(task.name, trained=ready, scores={"evaluation-testing": "scores"} if ready else {}).write(folder)
    (here / "study.yaml").write_text("precision: {amp: bf16}\n")
    with pytest.raises(records.DataError, match="study that has begun"):
        records.keep(str(here), str(tmp_path / "none.tar.xz"))
    write_plan(tasks, here)
    file = tmp_path / "records.tar.xz"
    records.keep(str(here), str(file), hide=f"{tmp_path}/scans")
    packed = file.read_bytes()
    records.keep(str(here), str(file), hide=f"{tmp_path}/scans")
    assert file.read_bytes() == packed

    (there / "runs" / "two").mkdir(parents=True)
    State("two").write(there / "runs" / "two")  # what has begun there stays
    records.restore(str(there), str(file))
    assert [done(task, there) for task in tasks] == [True, False, False]
    assert not list(there.rglob("*.pt"))
    assert [path.name for path in (there / "runs" / "two").iterdir()] == ["study_run.json"]
    (there / "runs" / "one" / "study_run.json").unlink()  # as if it had been interrupted
    records.restore(str(there), str(file))
    assert done(tasks[0], there)
    assert (there / "runs" / "one" / "run.json").read_text() == '{"dataset_dir": "DIR", "run": "DIR/runs/one"}'
    assert (there / "study.yaml").is_file()
    file.write_bytes(packed[:100])
    with pytest.raises(records.DataError, match=r"file: .*records.tar.xz cannot be read"):
        records.restore(str(tmp_path / "new"), str(file))

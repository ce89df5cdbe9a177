"""The class that owns a run folder: names, record, lock, archive."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from monai_ssl.data import load_preset
from monai_ssl.errors import DataError
from monai_ssl.runs import Record, Run
from monai_ssl.runs.folder import FILES, LOCK
from monai_ssl.runs.record import training_command
from monai_ssl.weights import save

CONTENT = {
    "bundle": "dtc",
    "overrides": {"seed": 3, "method#unsupervised_weight": 0, "amp": "off", "device": "cpu", "output_dir": "x"},
    "dataset": "phantom",
    "flavor": "practical",
    "dataset_dir": "/data",
    "datalist": "/data/datalist.json",
    "max_iterations": 8,
    "status": "started",
    "command": "monai-ssl train dtc /data",
    "versions": {"torch": "2"},
}


SCORES = ("evaluation-testing", "evaluation-testing-best", "ranking", "ranking-previous-1")


def written(folder: Path, **changes: object) -> Run:
    """A run folder as a training leaves it."""
    run = Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run.announce(Record.model_validate({**CONTENT, **changes}), load_preset("phantom"))
    run.adopt()
    return run


# -------------------------------------------------------------------------------------------------------- the record


def test_record_is_written_and_read_whole(tmp_path):
    run = written(tmp_path / "run")
    assert json.loads((run.folder / "run.json").read_text()) == CONTENT
    assert run.record.model_dump() == CONTENT
    assert Run.open(run.folder).record == run.record
    assert load_preset(run.preset).patch_size == load_preset("phantom").patch_size
    assert not run.complete
    run.finish(run.record)
    assert run.complete
    assert json.loads((run.folder / "run.json").read_text()) == {**CONTENT, "status": "complete"}


def test_records_of_version_0_1_are_read(tmp_path):
    content = {key: value for key, value in CONTENT.items() if key != "flavor"}
    (tmp_path / "run.json").write_text(json.dumps({**content, "flavour": "literature", "overrides": {"flavour": "x"}}))
    record = Record.read(tmp_path / "run.json")
    assert record.flavor == "literature"
    assert record.overrides == {"flavor": "x"}
    assert "flavour" not in record.model_dump()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a readable JSON file"),
        ("[]", "must be a JSON object"),
        ("{}", "must hold bundle, overrides, dataset_dir, datalist; was it written by `monai-ssl train`"),
        (json.dumps({**CONTENT, "status": "perhaps"}), "status: Input should be 'started' or 'complete'"),
        (json.dumps({**CONTENT, "overrides": 3}), "overrides: Input should be a valid dictionary"),
    ],
)
def test_no_record_of_a_run(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "preset.yaml").touch()
    with pytest.raises(DataError, match=message):
        Run.open(tmp_path)


def test_command_can_be_typed():
    command = training_command("dtc", {"dataset_dir": Path("my scans"), "check": False, "x#y": None, "r": [1, 2]})
    assert command == "monai-ssl train dtc --dataset_dir 'my scans' --check false '--x#y' null --r '[1, 2]'"


# ------------------------------------------------------------------------------------------------------- the weights


def test_weights(tmp_path, caplog):
    run = written(tmp_path / "run")
    with pytest.raises(DataError, match=r"no weights yet .* run its command again to continue: monai-ssl train dtc"):
        run.weights()
    assert run.iteration == 0
    save({"w": torch.zeros(1)}, run.model)
    save({"iteration": 5}, run.checkpoint)
    assert run.iteration == 5
    assert run.weights() == run.model
    assert "note: this run is unfinished, weights of iteration 5 of 8" in caplog.text
    caplog.clear()
    run.finish(run.record)
    assert run.weights() == run.model
    assert not caplog.text
    with pytest.raises(DataError, match=r"ckpt: .*other\.pt does not exist"):
        run.weights(tmp_path / "other.pt")
    assert run.weights(run.checkpoint) == run.checkpoint


def test_settings_of_the_training_as_far_as_a_config_knows_them(tmp_path):
    run = written(tmp_path / "run")
    folder, settings = run.settings(["inference.yaml"], {"amp": "bf16"})
    assert folder.name == "dtc"
    # the method's weight and the seed are unknown to inference; device and output are decided anew
    assert settings == {"amp": "bf16", "dataset": str(run.preset)}
    _, settings = run.settings(["train.yaml"], {})
    assert settings == {"seed": 3, "method#unsupervised_weight": 0, "amp": "off", "dataset": str(run.preset)}
    with pytest.raises(DataError, match="--devise: no such id"):
        run.settings(["train.yaml"], {"devise": "cpu"})


# ---------------------------------------------------------------------------------------------------------- the lock


def test_another_process_and_another_thread_are_refused(tmp_path):
    run = Run(tmp_path / "run")
    assert not run.acquire()
    assert run.acquire()  # once is enough for a thread
    code = "import sys, monai_ssl; monai_ssl.Run(sys.argv[1]).acquire()"
    other = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True)
    assert "another training writes to" in other.stderr
    refused = []

    def elsewhere() -> None:
        try:
            Run(run.folder).acquire()
        except DataError as error:
            refused.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(refused) == 1
    run.release()
    subprocess.run([sys.executable, "-c", code, str(run.folder)], check=True)


def test_the_training_inside_takes_the_lock_again_and_a_failure_lets_go_of_it(tmp_path):
    run = Run(tmp_path / "run")

    def training() -> None:
        with run.locked():
            assert Run(run.folder).acquire()  # the handler's own object
            raise KeyError("a training that fails")

    with pytest.raises(KeyError):
        training()
    code = "import sys, monai_ssl; monai_ssl.Run(sys.argv[1]).acquire()"
    subprocess.run([sys.executable, "-c", code, str(run.folder)], check=True)


def test_a_folder_that_exists_for_the_lock_alone_is_removed(tmp_path):
    with Run(tmp_path / "new" / "run").locked():
        assert (tmp_path / "new" / "run").is_dir()
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "old").mkdir()
    with Run(tmp_path / "old").locked():
        pass
    assert (tmp_path / "old").is_dir()
    with Run(tmp_path / "used").locked():
        (tmp_path / "used" / "training.csv").touch()
    assert (tmp_path / "used" / "training.csv").is_file()


def test_a_lock_that_is_a_link_empties_nothing(tmp_path):
    (tmp_path / "precious").write_text("content")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match="is a link"):
        Run(tmp_path / "run").acquire()
    assert (tmp_path / "precious").read_text() == "content"


# ------------------------------------------------------------------------------------------------------ from run to run


def test_a_previous_run_keeps_its_record_until_it_is_set_aside(tmp_path):
    run = written(tmp_path, command="first")
    for name in FILES:
        if not (tmp_path / name).exists():
            (tmp_path / name).write_text("first")
    for name in (*SCORES, "lists"):
        (tmp_path / name).mkdir()
    run.announce(Record.model_validate({**CONTENT, "command": "second"}), load_preset("phantom"))
    assert run.record.command == "first"
    assert run.set_aside() == tmp_path / "previous-1"
    run.adopt()
    assert run.record.command == "second"
    assert Run.open(tmp_path / "previous-1").record.command == "first"
    # scores and rankings are those of the weights: in the folder of the next run they would be taken for its own
    assert {path.name for path in (tmp_path / "previous-1").iterdir()} == {*FILES, *SCORES}
    assert (tmp_path / "lists").is_dir()
    assert run.previous() == [tmp_path / "previous-1"]
    assert run.set_aside() == tmp_path / "previous-2"
    assert run.previous() == [tmp_path / "previous-1", tmp_path / "previous-2"]


def test_a_training_that_fails_at_its_start_leaves_the_previous_record(tmp_path):
    run = written(tmp_path, command="first")
    run.announce(Record.model_validate({**CONTENT, "command": "second"}), load_preset("phantom"))
    run.settle()
    assert run.record.command == "first"
    run.checkpoint.touch()  # neither does what is there from before make the next record true
    run.announce(Record.model_validate({**CONTENT, "command": "second"}), load_preset("phantom"))
    run.settle()
    assert run.record.command == "first"
    assert not list(tmp_path.glob(".*.pending"))


def test_foreign_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="must not be the folder of the data"):
        Run(tmp_path).refuse_foreign(tmp_path)
    (tmp_path / "training.csv").touch()
    with pytest.raises(DataError, match=r"holds a training\.csv that no run"):
        Run(tmp_path).refuse_foreign(tmp_path / "data")
    written(tmp_path)
    Run(tmp_path).refuse_foreign(tmp_path / "data")


def test_it_shows_itself(tmp_path):
    assert repr(Run(tmp_path)) == f"Run({str(tmp_path)!r}, not trained)"
    run = written(tmp_path / "<run>")
    assert repr(run) == f"Run({str(run.folder)!r}, dtc, phantom (practical), unfinished, 8 iterations)"
    assert "&lt;run&gt;" in run._repr_html_()
    assert "<run>" not in run._repr_html_()

"""Training through its own door: what the record says is what was trained, and errors come as they are."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from ignite.engine import Events
from monai.bundle import ConfigParser

import monai_ssl
from monai_ssl.bundle.library import bundles_root, copy_bundle
from monai_ssl.data import load_preset
from monai_ssl.errors import DataError
from monai_ssl.runs import Run
from monai_ssl.runs.train import default_folder

TINY = {"dataset": "phantom", "max_iterations": 3, "epoch_length": 2, "val_interval": 9, "num_workers": 0, "amp": "off",
        "device": "cpu", "network_def#base_channels": 2, "check": False}  # fmt: skip


@pytest.fixture(scope="module")
def first(tiny_phantom, tmp_path_factory):
    return monai_ssl.train("supervised", tiny_phantom, output=tmp_path_factory.mktemp("first") / "run", **TINY)


@pytest.fixture
def run(first, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(first.folder, tmp_path / "run")
    return Run(tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_another_learning_rate_is_another_run(run, tiny_phantom, caplog):
    before = files(run.folder)
    monai_ssl.train("supervised", tiny_phantom, output=run.folder, **TINY, learning_rate=0.5)
    assert "belongs to another run: learning_rate: 0.002 -> 0.5. This one starts from the beginning" in caplog.text
    assert files(run.folder / "previous-1").items() <= before.items()
    assert run.record.overrides["learning_rate"] == 0.5
    assert "0.5" in run.record.command
    former = Run.open(run.folder / "previous-1").record
    assert "learning_rate" not in former.overrides
    assert former.status == "complete"
    weights = [torch.load(path / "model.pt", weights_only=True) for path in (run.folder, run.folder / "previous-1")]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_cases_on_disk_train_the_same_weights(first, run, tiny_phantom, tmp_path, caplog):
    other = monai_ssl.train("supervised", tiny_phantom, output=tmp_path / "other", **TINY, cache_gb=0)
    weights = [torch.load(folder / "model.pt", weights_only=True) for folder in (first.folder, other.folder)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not (other.folder / ".prepared").exists()
    # where cases wait does not make another run, and a folder's name is taken as it is
    lasting = tmp_path / "shared #1 @x"
    monai_ssl.train("supervised", tiny_phantom, output=run.folder, **TINY, cache_gb=0, cache_dir=lasting)
    assert "another run" not in caplog.text
    assert not (run.folder / "previous-1").exists()
    assert any((lasting / ".prepared").iterdir())


@pytest.mark.parametrize("wrong", [-1, "many", float("nan"), True])
def test_a_wrong_budget_is_refused_before_the_work(tiny_phantom, tmp_path, wrong):
    with pytest.raises(DataError, match="cache_gb: must be a number of gigabytes >= 0"):
        monai_ssl.train("supervised", tiny_phantom, output=tmp_path / "run", **TINY | {"check": True}, cache_gb=wrong)
    assert not (tmp_path / "run").exists()


def test_fewer_iterations_than_done_are_refused_and_nothing_is_written(run, tiny_phantom):
    before = files(run.folder)
    with pytest.raises(DataError, match="max_iterations: must be at least the 3 iterations that the run in"):
        monai_ssl.train("supervised", tiny_phantom, output=run.folder, **{**TINY, "max_iterations": 2})
    assert files(run.folder) == before
    assert run.complete
    assert run.record.max_iterations == 3


def test_a_damaged_checkpoint_leaves_the_record(run, tiny_phantom):
    content = bytearray(run.checkpoint.read_bytes())
    content[len(content) // 2] ^= 4
    run.checkpoint.write_bytes(content)
    before = files(run.folder)
    with pytest.raises(DataError, match=r"checkpoint\.pt: not a readable file of weights .the checksum"):
        monai_ssl.train("supervised", tiny_phantom, output=run.folder, **TINY)
    assert files(run.folder) == before


def test_monai_s_own_command_keeps_the_record_true(run, tiny_phantom):
    """A run of ours, prolonged by ``python -m monai.bundle run``."""
    parser = ConfigParser()
    bundle = bundles_root() / "supervised"
    parser.read_config([str(bundle / "configs" / "train.yaml")])
    given = {**TINY, "bundle_root": str(bundle), "dataset_dir": str(tiny_phantom), "output_dir": str(run.folder)}
    del given["check"]
    parser.update({**given, "max_iterations": 4})
    trainer = parser.get_parsed_content("train#trainer")
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append((run.complete, run.record.max_iterations))
    )
    trainer.run()
    assert seen == [(False, 4)]
    assert run.complete
    assert run.iteration == 4
    assert not run.previous()


def test_a_longer_run_on_moved_data_continues(run, tiny_phantom, tmp_path, caplog):
    caplog.set_level(logging.INFO, "monai_ssl")
    shutil.copytree(tiny_phantom, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.move(run.folder, tmp_path / "elsewhere")
    again = monai_ssl.train(
        "supervised", tmp_path / "moved", output=tmp_path / "elsewhere", **{**TINY, "max_iterations": 4}
    )
    assert "resumed from" in caplog.text
    assert again.iteration == 4
    assert again.record.dataset_dir == str(tmp_path / "moved")
    assert not again.previous()


def test_another_number_of_threads_is_told(run, tiny_phantom, caplog):
    state = torch.load(run.checkpoint, weights_only=True)
    state["notes"] |= {"threads": 7, "torch": "1.0"}
    torch.save(state, run.checkpoint)
    monai_ssl.train("supervised", tiny_phantom, output=run.folder, **TINY)
    assert (
        f"continued with threads 7 -> {torch.get_num_threads()}, torch 1.0 -> {torch.__version__}: the last"
        in caplog.text
    )


def test_the_lock_is_held_before_the_data_are_read_through_every_door(tiny_phantom, tmp_path, monkeypatch):
    from monai_ssl.data import TwoStreamLoader

    parser = ConfigParser()
    bundle = bundles_root() / "supervised"
    parser.read_config([str(bundle / "configs" / "train.yaml")])
    given = {**TINY, "bundle_root": str(bundle), "dataset_dir": str(tiny_phantom), "output_dir": str(tmp_path / "run")}
    del given["check"]
    parser.update(given)
    trainer = parser.get_parsed_content("train#trainer")

    def reading(self):
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            pool.submit(Run(tmp_path / "run").acquire).result()

    monkeypatch.setattr(TwoStreamLoader, "prepare", reading)
    with pytest.raises(DataError, match=r"another training writes to .*run just now"):
        trainer.run()
    assert Run(tmp_path / "run").acquire() is False  # let go, in a process that lives on


# ------------------------------------------------------------------------------------------------- names


def test_thedefault_folder_tells_data_sets_apart(tmp_path, tiny_phantom, monkeypatch):
    own = load_preset({**load_preset("phantom").model_dump(), "name": "preset"})
    assert str(default_folder("dtc", own, Path("/a/liver"), 0)) == "runs/dtc-liver-seed0"
    assert str(default_folder("dtc", own, Path("/a/heart"), 3)) == "runs/dtc-heart-seed3"
    assert str(default_folder("dtc", load_preset("phantom"), Path("/a/heart"), 0)) == "runs/dtc-phantom-heart-seed0"
    assert str(default_folder("dtc", load_preset("phantom"), Path("/a/phantom"), 0)) == "runs/dtc-phantom-seed0"
    fold = default_folder("dtc", own, Path("/a/liver"), 0, Path("/lists/datalist-fold02.json"))
    assert str(fold) == "runs/dtc-liver-fold02-seed0"


def test_adefault_folder_is_not_taken_from_other_data(first, tiny_phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_phantom, tmp_path / "other" / tiny_phantom.name)
    folder = tmp_path / default_folder("supervised", load_preset("phantom"), tiny_phantom, 0)
    shutil.copytree(first.folder, folder)
    with pytest.raises(DataError, match=r"holds a run on .*; name a folder for this one with --output"):
        monai_ssl.train("supervised", tmp_path / "other" / tiny_phantom.name, **TINY)


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        # expressions: numbers are refused before, see tests/bundle/test_ranges.py
        ({"labeled_batch_size": "$0"}, ValueError, r"^labeled_batch_size must be an integer >= 1, got 0$"),
        ({"checkpoint_interval": "$0"}, ValueError, r"^interval must be >= 1 iteration, got 0$"),
        ({"checkpoint_minutes": "$0"}, ValueError, r"^minutes must be > 0 or None, got 0$"),
        ({"literature": {"phantom": {"x": 1}}}, DataError, r"^literature: phantom: x: "),
        # of somebody else's code: said in a line, with where it comes from
        ({"learning_rate": "$-1"}, DataError, r"^Invalid learning rate: -1 .ValueError in the bundle's config"),
        (
            {"network_def#no_such": 1},
            DataError,
            r"^--network_def#no_such: is no argument of literature_network; it has spatial_dims, ",
        ),
        ({"labels": "$1 / 0"}, DataError, r"^division by zero .ZeroDivisionError in the bundle's config"),
    ],
)
def test_a_mistake_in_a_config_reaches_python_as_it_is(tiny_phantom, tmp_path, given, kind, message):
    preset = load_preset("phantom").model_copy(update={"published": True})
    with pytest.raises(kind, match=message) as caught:
        monai_ssl.train("supervised", tiny_phantom, output=tmp_path / "run", **{**TINY, "preset": preset, **given})
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_an_id_called_method_can_be_given(tiny_phantom, tmp_path):
    config = yaml.safe_load((bundles_root() / "supervised" / "configs" / "train.yaml").read_text())
    mine = copy_bundle("supervised", tmp_path / "mine")
    del config["method"]
    config["method"] = None
    (mine / "configs" / "train.yaml").write_text(yaml.safe_dump(config))
    method = {"_target_": "monai_ssl.methods.Supervised", "network": "@network"}
    run = monai_ssl.train(mine, tiny_phantom, output=tmp_path / "run", **TINY, method=method)
    assert json.loads((run.folder / "run.json").read_text())["overrides"]["method"] == method

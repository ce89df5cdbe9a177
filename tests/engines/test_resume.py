"""A run that is killed and started again leaves the same files, bit for bit, as one that was not."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
import yaml
from builders import names
from ignite.engine import Events
from tiny_training import assert_equal, build, content, make_loader, rows, train_in_process

from monai_ssl.bundle.library import find_bundle
from monai_ssl.data import DataError
from monai_ssl.handlers import RunCheckpoint
from monai_ssl.runs.folder import CHECKPOINT, COSTS, LOCK, MODEL, PRECISION, Run

OPTIONS = {name: {"validate": True, "method": name} for name in names()}


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    """A bundle that another test trained in this process has set switches that belong to a run's identity."""
    for switch in ("deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, switch, False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Folders of complete runs of every method here."""
    folders = {}
    for method, options in OPTIONS.items():
        folders[method] = tmp_path_factory.mktemp(method)
        assert train_in_process(folders[method], options) == 0
    return folders


def check_whole(folder):
    found = rows(folder)
    assert [int(row["iteration"]) for row in found] == list(range(1, 12))
    assert [int(row["iteration"]) for row in rows(folder, "validation.csv")] == [4, 8, 11]


def compare(folder, expected):
    check_whole(expected)
    assert_equal(content(folder), content(expected))
    assert (folder / "validation.csv").read_bytes() == (expected / "validation.csv").read_bytes()


KILLS = [
    ("dtc", "in the backward pass", 2, {}),  # before the first checkpoint
    ("dtc", "in the backward pass", 5, {}),
    ("dtc", "after the step", 6, {}),  # a checkpoint is due
    ("dtc", "at the next start", 9, {"num_workers": 1}),  # just after a checkpoint; continued by a worker
    ("dtc", "in the validation", 8, {"interval": 4}),  # a checkpoint is due at the end of the epoch
    ("dtc", "while checkpoint.pt is written", 6, {}),
    ("dtc", "between checkpoint.pt and model.pt", 9, {}),
    ("dtc", "between checkpoint.pt and model.pt", 11, {}),  # training was over
    ("dtc", "in the validation", 11, {}),  # of the last iterate
    *[(name, "after the step", 7, {}) for name in names() if name != "dtc"],  # teachers, prototypes, memories
    ("supervised", "at the next start", 8, {"interval": 1}),
    ("tac", "in the backward pass", 5, {}),
    ("caml", "after the step", 6, {}),  # the memory bank of three cases is part of the checkpoint that is due
    ("caml", "in the backward pass", 8, {}),  # the memory has been overwritten since the checkpoint
]


@pytest.mark.parametrize(("method", "moment", "iteration", "more"), KILLS)
def test_killed_and_resumed(tmp_path, uninterrupted, method, moment, iteration, more):
    options = OPTIONS[method]
    written = {key: value for key, value in more.items() if key == "interval"}
    assert train_in_process(tmp_path, options | written, kill=(moment, iteration)) == -9
    assert train_in_process(tmp_path, options | more) == 0
    compare(tmp_path, uninterrupted[method])
    # nothing else is left: no former run, no half-written file
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        LOCK, CHECKPOINT, COSTS, MODEL, PRECISION, "training.csv", "validation.csv",
    ]  # fmt: skip


def test_killed_with_cases_on_disk_and_resumed_with_some_in_memory(tmp_path, uninterrupted):
    options = OPTIONS["dtc"]
    assert train_in_process(tmp_path, options | {"cache_gb": 0, "num_workers": 1}, kill=("after the step", 6)) == -9
    assert any((tmp_path / ".prepared").iterdir())
    assert train_in_process(tmp_path, options | {"cache_gb": 4e-6}) == 0
    compare(tmp_path, uninterrupted["dtc"])
    assert not (tmp_path / ".prepared").exists()


def test_killed_twice(tmp_path, uninterrupted):
    for moment, iteration in (("in the backward pass", 5), ("after the step", 10)):
        assert train_in_process(tmp_path, OPTIONS["dtc"], kill=(moment, iteration)) == -9
    assert train_in_process(tmp_path, OPTIONS["dtc"]) == 0
    compare(tmp_path, uninterrupted["dtc"])


def test_the_comparison_sees_a_difference(tmp_path, uninterrupted):
    assert train_in_process(tmp_path, OPTIONS["dtc"] | {"learning_rate": 0.0500001}) == 0
    with pytest.raises(AssertionError):
        compare(tmp_path, uninterrupted["dtc"])


def test_a_killed_run_leaves_readable_files(tmp_path):
    assert train_in_process(tmp_path, kill=("while checkpoint.pt is written", 6)) == -9
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["iteration"] == 3
    assert torch.load(tmp_path / MODEL, weights_only=True).keys() == build().plain_method.network.state_dict().keys()


# ------------------------------------------------------------------------------------------------- started again

PARTS = ("iteration", "identity", "method", "optimizer", "lr_scheduler", "grad_scaler")


@pytest.fixture
def finished(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted["dtc"], folder)
    return folder


def resume(folder, **options):
    trainer = build(folder, **(OPTIONS["dtc"] | options))
    trainer.run()
    return trainer


def test_a_finished_run_is_left_as_it_is(finished, uninterrupted):
    assert resume(finished).plain_method.iteration == 11
    compare(finished, uninterrupted["dtc"])
    assert not list(finished.glob("previous-*"))


def test_fewer_iterations_than_done_are_refused(finished, uninterrupted):
    with pytest.raises(DataError, match=r"max_iterations: must be at least the 11 iterations .* has done, got 5;"):
        resume(finished, max_iterations=5)
    compare(finished, uninterrupted["dtc"])
    assert Run(finished).acquire() is False  # nobody holds the lock of a training that failed


def test_a_finished_run_of_whole_epochs_is_left_as_it_is(tmp_path):
    build(tmp_path, max_iterations=8, validate=True).run()
    before = content(tmp_path)
    build(tmp_path, max_iterations=8, validate=True).run()
    assert_equal(content(tmp_path), before)
    # the last iterate once: neither its epoch and the end of the run, nor the second start
    assert [int(row["iteration"]) for row in rows(tmp_path, "validation.csv")] == [4, 8]


@pytest.mark.parametrize("schedule", ["constant", "poly"])
def test_a_run_can_be_prolonged(tmp_path, schedule):
    build(tmp_path, max_iterations=6, schedule=schedule).run()
    build(tmp_path, max_iterations=14, schedule=schedule).run()
    found = rows(tmp_path)
    assert [int(row["iteration"]) for row in found] == list(range(1, 15))
    assert content(tmp_path)["checkpoint"]["iteration"] == 14
    for i in range(6, 14):  # the rates are those of the longer run from its first iteration on
        expected = 0.05 * (1 - i / 14) ** 0.9 if schedule == "poly" else 0.05
        assert float(found[i]["lr"]) == pytest.approx(expected)


def test_a_constant_run_prolonged_equals_a_long_one(tmp_path):
    # nothing depends on the length: supervised, constant rate
    options = {"method": "supervised", "schedule": "constant"}
    build(tmp_path / "a", max_iterations=5, **options).run()
    build(tmp_path / "a", max_iterations=10, **options).run()
    build(tmp_path / "b", max_iterations=10, **options).run()
    assert_equal(content(tmp_path / "a"), content(tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "another run: seed: 0 -> 1"),
        ({"n_labeled": 2}, "labeled cases: 3 cases -> 2"),
        ({"n_unlabeled": 3}, "unlabeled cases: 4 cases -> 3"),
        ({"n_unlabeled": 0}, "unlabeled cases: 4 cases -> 0"),
        ({"labeled_batch_size": 1}, "labeled_batch_size: 2 -> 1"),
        ({"unlabeled_batch_size": 1}, "unlabeled_batch_size: 2 -> 1"),
        ({"amp": "bf16"}, 'precision: "float32" -> "bfloat16"'),
        ({"method": "supervised"}, 'method: "DualTaskConsistency" -> "Supervised"'),
        ({"network": {"unsupervised_weight": 0.0}}, "method#unsupervised_weight: 1.0 -> 0.0"),
        ({"learning_rate": 0.06}, "optimizer#0#lr: 0.05 -> 0.06"),
        ({"network": {"dropout": 0.1}}, "modules: "),
        ({"network": {"norm": "instance"}}, "modules: "),
        ({"network": {"variant": "paper"}}, "method#distance_weight: 0.3 -> 1.0"),
        ({"trainer": {"accumulation_steps": 2}}, "accumulation_steps: 1 -> 2"),
        ({"trainer": {"clip_gradient_norm": 1.0}}, "clip_gradient_norm: null -> 1.0"),
        ({"resume": False}, "resume is off"),
    ],
)
def test_another_run_in_the_same_folder_sets_the_former_aside(finished, uninterrupted, caplog, change, named):
    (finished / "tensorboard").mkdir()
    (finished / "previews").mkdir()
    (finished / "notes.txt").write_text("mine")
    resume(finished, max_iterations=2, **change)
    assert named in caplog.text
    compare(finished / "previous-1", uninterrupted["dtc"])
    for folder in ("tensorboard", "previews"):
        assert (finished / "previous-1" / folder).is_dir()
        assert not (finished / folder).exists()
    assert (finished / "notes.txt").read_text() == "mine"
    assert [row["iteration"] for row in rows(finished)] == ["1", "2"]
    assert content(finished)["checkpoint"]["iteration"] == 2
    # and once more
    resume(finished, max_iterations=1, seed=77)
    assert (finished / "previous-2" / CHECKPOINT).is_file()
    compare(finished / "previous-1", uninterrupted["dtc"])


def test_own_identity(tmp_path):
    def run(flavor):
        checkpoint = RunCheckpoint(tmp_path, identity={"flavor": flavor, "patch": (16, 16)})
        build(None, max_iterations=1, handlers=[checkpoint]).run()

    run("a")
    run("a")
    assert not (tmp_path / "previous-1").exists()
    run("b")
    assert (tmp_path / "previous-1").exists()


@pytest.mark.parametrize("bytes_left", [0, 100, 5000])
def test_a_damaged_checkpoint_is_named(finished, bytes_left):
    os.truncate(finished / CHECKPOINT, bytes_left)
    with pytest.raises(DataError, match=r"checkpoint\.pt: not a readable file"):
        resume(finished)
    assert (finished / "training.csv").is_file()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"identity": {}}, "identity says nothing of the run"),
        ({"identity": None}, "identity must be an object, got null"),
        ({"iteration": -3}, "iteration is -3, but the method has made 11 steps"),
        ({"iteration": 10**12}, "iteration is 1000000000000, but the method has made 11 steps"),
        ({"iteration": True}, "iteration must be an integer, got a boolean"),
        ({"iteration": 11.0}, "iteration must be an integer, got a number"),
        ({"grad_scaler": None}, "grad_scaler must be an object, got null"),
        ({"optimizer": []}, "optimizer must be an object, got a list"),
        ({"optimizer": {}}, "does not fit this method and network"),
        ({"lr_scheduler": 3}, "lr_scheduler must be an object or null, got a number"),
        ({"method": {}}, "but the method has made None steps"),
        ({"files": torch.zeros(1)}, "files must be a list, got a tensor"),
        ({"settled": 1}, "settled must be a boolean, got a number"),
        ({"format": 1}, "was written by an earlier version of monai_ssl"),
        ({"format": "x"}, "was written by another version of monai_ssl"),
        *[({key: "absent"}, "is no checkpoint of a run") for key in ("iteration", "method")],
        *[({key: "absent"}, f"{key} must be .* got nothing") for key in PARTS if key not in ("iteration", "method")],
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_continued_is_refused_in_one_line(finished, damage, named):
    state = content(finished)["checkpoint"] | damage
    torch.save({key: value for key, value in state.items() if value != "absent"}, finished / CHECKPOINT)
    before = (finished / CHECKPOINT).read_bytes()
    with pytest.raises(DataError, match=named) as caught:
        resume(finished, max_iterations=14)
    assert "\n" not in str(caught.value)
    assert str(finished / CHECKPOINT) in str(caught.value)
    assert (finished / CHECKPOINT).read_bytes() == before


def test_a_file_that_is_no_checkpoint_is_named(finished):
    shutil.copy(finished / MODEL, finished / CHECKPOINT)
    with pytest.raises(DataError, match=r"checkpoint\.pt: is no checkpoint of a run"):
        resume(finished)


def test_what_a_checkpoint_holds(uninterrupted):
    state = content(uninterrupted["dtc"])["checkpoint"]  # read with weights_only: nothing but tensors and containers
    assert set(state) == {"format", "settled", "files", "notes", *PARTS}
    assert state["iteration"] == 11
    assert state["lr_scheduler"]["last_epoch"] == 11
    assert state["method"]["_extra_state"] == {"iteration": 11}
    model = content(uninterrupted["dtc"])["model"]
    assert_equal(model, {k.removeprefix("network."): v for k, v in state["method"].items() if k.startswith("network.")})


def test_a_checkpoint_holds_the_optimizers_of_adversaries(tmp_path, uninterrupted):
    state = content(uninterrupted["toy_adversary"])["checkpoint"]
    assert state["adversaries"].keys() == {"critic"}
    assert state["adversaries"]["critic"]["optimizer"]["state"][0]["step"] == 11
    # one of before there were adversaries cannot continue such a method, and says so
    torch.save({key: value for key, value in state.items() if key != "adversaries"}, tmp_path / CHECKPOINT)
    with pytest.raises(DataError, match=r"does not fit this method and network \('adversaries'\)"):
        build(tmp_path, **OPTIONS["toy_adversary"]).run()


def test_interval():
    with pytest.raises(ValueError, match="interval must be >= 1 iteration, got 0"):
        RunCheckpoint("x", interval=0)


def test_checkpoints_come_at_the_interval_and_at_the_end(tmp_path, monkeypatch):
    saved = []
    original = RunCheckpoint.save
    monkeypatch.setattr(
        RunCheckpoint,
        "save",
        lambda self, e, settled=True: (saved.append(e.state.iteration), original(self, e, settled)),
    )
    build(tmp_path, max_iterations=11, epoch_length=4, interval=2).run()
    assert saved == [2, 4, 6, 8, 10, 11]


# ------------------------------------------------------------------------------------------------- memory, not files


def test_dropout_and_streams_do_not_depend_on_what_else_draws():
    trajectories = []
    for draws in (0, 5):
        trajectory = []

        def note(engine, trajectory=trajectory, draws=draws):
            trajectory.append(engine.state.output[0]["loss"])
            torch.rand(draws)

        trainer = build(max_iterations=5)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
        torch.manual_seed(draws)
        trainer.run()
        trajectories.append(trajectory)
    assert trajectories[0] == trajectories[1]


def test_loader_starts_where_the_run_stopped(tmp_path):
    build(tmp_path, max_iterations=6).run()
    seen = []
    trainer = build(tmp_path, max_iterations=8)
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: seen.append(engine.state.batch["labeled"]["name"])
    )
    trainer.run()
    loader = make_loader(epoch_length=4, seed=0)
    loader.start_at(6)
    batches = iter(loader)
    assert seen == [next(batches)["labeled"]["name"] for _ in range(2)]


# ------------------------------------------------------------------------------------------------- the real bundle


@pytest.fixture(scope="module")
def bundle_command(tiny_phantom, tmp_path_factory):
    """Command of a small training of the DTC bundle, given its output folder."""
    bundle = find_bundle("dtc")
    overlay = tmp_path_factory.mktemp("config") / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"network_def#base_channels": 2}))
    options = {
        "config_file": f"['{bundle}/configs/train.yaml', '{overlay}']",
        "bundle_root": bundle,
        "dataset": "phantom",
        "dataset_dir": tiny_phantom,
        "max_iterations": 6,
        "epoch_length": 4,
        "val_interval": 1,
        "checkpoint_interval": 2,
        "num_workers": 1,
        "device": "cpu",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return lambda folder: [sys.executable, "-m", "monai.bundle", "run", *words, "--output_dir", str(folder)]


@pytest.fixture(scope="module")
def whole_bundle_run(bundle_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(bundle_command(folder), check=True, capture_output=True)
    assert len(rows(folder)) == 6
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("k", [3, 5])
def test_bundle_killed_and_resumed(tmp_path, k, bundle_command, whole_bundle_run):
    log = tmp_path / "training.csv"
    process = subprocess.Popen(bundle_command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not log.is_file() or log.read_text().count("\n") <= k):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9
    subprocess.run(bundle_command(tmp_path), check=True, capture_output=True)
    assert_equal(content(tmp_path), content(whole_bundle_run))
    assert (tmp_path / "validation.csv").read_bytes() == (whole_bundle_run / "validation.csv").read_bytes()

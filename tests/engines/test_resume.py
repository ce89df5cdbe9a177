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
from monai_ssl.runs.folder import CHECKPOINT, LOCK, MODEL

OPTIONS = {name: {"validate": True, "method": name} for name in names()}


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
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, CHECKPOINT, MODEL, "training.csv", "validation.csv"]


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


@pytest.fixture
def finished(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted["dtc"], folder)
    return folder


def resume(folder, **options):
    trainer = build(folder, **(OPTIONS["dtc"] | options))
    trainer.run()
    return trainer


@pytest.mark.parametrize("max_iterations", [11, 5])
def test_a_finished_run_is_left_as_it_is(finished, uninterrupted, max_iterations):
    trainer = resume(finished, max_iterations=max_iterations)
    assert trainer.plain_method.iteration == 11
    compare(finished, uninterrupted["dtc"])
    assert not list(finished.glob("previous-*"))


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
        ({"seed": 1}, "seed = 0, this one has 1"),
        ({"n_labeled": 2}, "labeled cases"),
        ({"n_unlabeled": 3}, "unlabeled cases"),
        ({"n_unlabeled": 0}, "unlabeled cases"),
        ({"labeled_batch_size": 1}, "labeled_batch_size = 2, this one has 1"),
        ({"unlabeled_batch_size": 1}, "unlabeled_batch_size = 2, this one has 1"),
        ({"amp": "bf16"}, "precision = 'float32', this one has 'bfloat16'"),
        ({"method": "supervised"}, "method = 'DualTaskConsistency', this one has 'Supervised'"),
        ({"network": {"unsupervised_weight": 0.0}}, "unsupervised_weight = 1.0, this one has 0.0"),
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


def test_an_edited_label_makes_another_run(tmp_path):
    from monai_ssl.runs.record import cases_digest

    label = tmp_path / "a_seg.nii.gz"
    label.write_bytes(b"one")
    listed = [{"image": "a.nii.gz", "label": str(label)}]
    before = cases_digest(listed)
    assert cases_digest(listed) == before
    label.write_bytes(b"two")
    assert cases_digest(listed) != before
    assert cases_digest([{"image": ["/x/a.nii.gz", "/x/b.nii.gz"]}]) == cases_digest(
        [{"image": ["a.nii.gz", "b.nii.gz"]}]
    )
    assert cases_digest([{"image": "a"}]) != cases_digest([{"image": "b"}])


def test_the_network_of_another_architecture_is_refused(finished):
    before = content(finished)
    with pytest.raises(DataError, match=r"checkpoint\.pt: does not fit this method and network .*another output_dir"):
        resume(finished, network={"norm": "instance"})
    assert_equal(content(finished), before)


@pytest.mark.parametrize("bytes_left", [0, 100, 5000])
def test_a_damaged_checkpoint_is_named(finished, bytes_left):
    os.truncate(finished / CHECKPOINT, bytes_left)
    with pytest.raises(DataError, match=r"checkpoint\.pt: not a readable file"):
        resume(finished)
    assert (finished / "training.csv").is_file()


def test_a_file_that_is_no_checkpoint_is_named(finished):
    shutil.copy(finished / MODEL, finished / CHECKPOINT)
    with pytest.raises(DataError, match=r"checkpoint\.pt: is no checkpoint of a run"):
        resume(finished)


def test_what_a_checkpoint_holds(uninterrupted):
    state = content(uninterrupted["dtc"])["checkpoint"]  # read with weights_only: nothing but tensors and containers
    assert set(state) == {"iteration", "identity", "method", "optimizer", "lr_scheduler", "grad_scaler"}
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
    monkeypatch.setattr(RunCheckpoint, "save", lambda self, e: (saved.append(e.state.iteration), original(self, e))[1])
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

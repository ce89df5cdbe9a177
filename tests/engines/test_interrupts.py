"""Ctrl-C and SIGTERM: the step in work ends, its state is saved, and the run goes on later as if nothing had been."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from tiny_training import assert_equal, build, content, processes, rows

from monai_ssl.errors import ResourceError, TrainingInterrupted
from monai_ssl.handlers import RunCheckpoint, Validation
from monai_ssl.interrupts import StopRequest, outlive_requests, stop_requests
from monai_ssl.runs import Run

OPTIONS = {"validate": True, "interval": 100, "max_iterations": 11, "epoch_length": 4}


@pytest.fixture(autouse=True)
def _signals_act():
    # a shell starts what it puts into the background with SIGINT ignored
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


class Ask:
    """Raises a signal at a chosen moment of a chosen iteration (counted from 1)."""

    def __init__(self, moment, iteration, number=signal.SIGINT):
        self.moment, self.iteration, self.number, self.asked = moment, iteration, number, False

    def attach(self, engine):
        if self.moment == "in the validation":  # this handler stands in front of it
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.ask)
            engine.add_event_handler(Events.COMPLETED, self.ask)
        else:
            events = {"in the backward pass": IterationEvents.BACKWARD_COMPLETED,
                      "after the step": Events.ITERATION_COMPLETED,
                      "while it waits for data": Events.GET_BATCH_STARTED}  # fmt: skip
            engine.add_event_handler(events[self.moment], self.ask)

    def ask(self, engine):
        if engine.state.iteration == self.iteration and not self.asked:
            self.asked = True
            signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    build(folder, **OPTIONS).run()
    return folder


@pytest.mark.parametrize(
    ("moment", "iteration", "saved"),
    [
        ("in the backward pass", 1, 1),
        ("in the backward pass", 6, 6),
        ("in the backward pass", 8, 8),  # the last step of an epoch: its validation is owed
        ("in the backward pass", 11, 11),  # the last step of the run
        ("after the step", 6, 7),
        ("after the step", 8, 8),  # nothing but the validation is cut
        ("while it waits for data", 6, 7),
        ("in the validation", 4, 4),
        ("in the validation", 8, 8),
        ("in the validation", 11, 11),
    ],
)
def test_the_step_in_work_ends_and_nothing_is_lost(tmp_path, uninterrupted, caplog, moment, iteration, saved):
    trainer = build(tmp_path, before=[Ask(moment, iteration)], **OPTIONS)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match=f"^stopped by SIGINT after iteration {saved} of 11; .*run the same"):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert content(tmp_path)["checkpoint"]["iteration"] == saved
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1  # one line
    assert "terminating" not in caplog.text
    assert Run(tmp_path).acquire() is False  # the lock is free again
    build(tmp_path, **OPTIONS).run()
    assert_equal(content(tmp_path), content(uninterrupted))
    assert (tmp_path / "validation.csv").read_bytes() == (uninterrupted / "validation.csv").read_bytes()
    assert [row["iteration"] for row in rows(tmp_path, "validation.csv")] == ["4", "8", "11"]


def test_stopped_again_and_again(tmp_path, uninterrupted):
    for _ in range(20):  # after every single step, and in every validation
        done = content(tmp_path)["checkpoint"]["iteration"] if (tmp_path / "checkpoint.pt").exists() else 0
        try:
            build(tmp_path, before=[Ask("in the backward pass", done + 1)], **OPTIONS).run()
        except TrainingInterrupted:
            continue
        break
    assert_equal(content(tmp_path), content(uninterrupted))
    assert (tmp_path / "validation.csv").read_bytes() == (uninterrupted / "validation.csv").read_bytes()


def test_sigterm_ends_the_program_with_its_exit_code(tmp_path):
    with pytest.raises(SystemExit) as caught:
        build(tmp_path, before=[Ask("in the backward pass", 3, signal.SIGTERM)], **OPTIONS).run()
    assert caught.value.code == 143
    assert content(tmp_path)["checkpoint"]["iteration"] == 3


def test_the_second_signal_acts_at_once(tmp_path):
    asking = [Ask("in the backward pass", 3), Ask("in the backward pass", 3)]
    with pytest.raises(KeyboardInterrupt) as caught:
        build(tmp_path, before=asking, **OPTIONS).run()
    assert not isinstance(caught.value, TrainingInterrupted)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert Run(tmp_path).acquire() is False


def test_a_thread_leaves_signals_alone(tmp_path):
    seen = []
    note = lambda engine: seen.append(signal.getsignal(signal.SIGINT))  # noqa: E731
    trainer = build(None, max_iterations=1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_what_is_ignored_stays_ignored():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup, or & in a script
    try:
        request = StopRequest()
        with stop_requests(request):
            signal.raise_signal(signal.SIGINT)
        assert request.signal == 0
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_loader_process_outlives_the_first_signals():
    process = processes().Process(target=_lives)
    process.start()
    process.join(60)
    assert process.exitcode == 3


def _lives():
    outlive_requests()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 10  # but not for ever: its parent may wait for it
    os._exit(3)


# ------------------------------------------------------------------------------------------------- checkpoints by time


def test_a_checkpoint_is_written_after_some_minutes(tmp_path, uninterrupted, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr("monai_ssl.handlers.checkpoint.monotonic", lambda: clock[0])
    original = RunCheckpoint.save

    def note(self, engine, settled=True):
        saved.append((engine.state.iteration, settled))
        original(self, engine, settled)

    monkeypatch.setattr(RunCheckpoint, "save", note)
    trainer = build(tmp_path, minutes=2, before=[], **OPTIONS)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: clock.__setitem__(0, clock[0] + 61))
    trainer.run()
    assert saved == [(2, True), (4, False), (6, True), (8, False), (10, True), (11, True)]
    assert_equal(content(tmp_path), content(uninterrupted))  # and no bit of the run is another one


def test_minutes():
    with pytest.raises(ValueError, match="minutes must be > 0 or None, got 0"):
        RunCheckpoint("x", minutes=0)


def test_the_validation_that_a_kill_prevented_is_made_up_for(tmp_path, uninterrupted, monkeypatch):
    """A checkpoint by time falls on the end of an epoch; then the process dies in the validation."""
    clock = [0.0]
    monkeypatch.setattr("monai_ssl.handlers.checkpoint.monotonic", lambda: clock[0])

    def die(engine):
        if engine.state.iteration == 8:
            raise ZeroDivisionError

    trainer = build(tmp_path, minutes=1, **OPTIONS)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: clock.__setitem__(0, clock[0] + 61))
    with monkeypatch.context() as patch:
        validate = Validation.__call__
        patch.setattr(Validation, "__call__", lambda self, engine: (die(engine), validate(self, engine))[1])
        with pytest.raises(ZeroDivisionError):
            trainer.run()
    assert content(tmp_path)["checkpoint"]["settled"] is False
    build(tmp_path, **OPTIONS).run()
    assert_equal(content(tmp_path), content(uninterrupted))
    assert (tmp_path / "validation.csv").read_bytes() == (uninterrupted / "validation.csv").read_bytes()


# ------------------------------------------------------------------------------------------------ the machine gives out


def test_a_killed_loader_process_is_said_in_a_line(tmp_path):
    import multiprocessing

    def kill(engine):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        time.sleep(0.2)

    trainer = build(tmp_path, max_iterations=40, num_workers=1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), kill)
    with pytest.raises(
        ResourceError, match=r"^a loader process was killed \(Killed\), .*memory ran out; .*--num_workers"
    ):
        trainer.run()
    assert content(tmp_path)["checkpoint"]["iteration"] >= 3
    assert Run(tmp_path).acquire() is False


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (MemoryError(), "memory ran out; try --accumulation_steps 2"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out"),
        (RuntimeError("DataLoader worker (pid(s) 17) exited unexpectedly"), "a loader process was killed"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that"), "--shm-size"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_said_in_a_line(error, named):
    def fail(engine):
        raise error

    trainer = build(None, max_iterations=2)
    trainer.add_event_handler(Events.ITERATION_STARTED, fail)
    with pytest.raises(ResourceError, match=named) as caught:
        trainer.run()
    assert "\n" not in str(caught.value)


def test_other_errors_are_passed_on_as_they_are():
    def fail(engine):
        raise RuntimeError("something else")

    trainer = build(None, max_iterations=2)
    trainer.add_event_handler(Events.ITERATION_STARTED, fail)
    with pytest.raises(RuntimeError, match=r"^something else$") as caught:
        trainer.run()
    assert type(caught.value) is RuntimeError


# ------------------------------------------------------------------------------------------------- the two doors


@pytest.mark.slow
@pytest.mark.parametrize("door", ["monai_ssl", "monai.bundle"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_stops_in_one_line(tiny_phantom, tmp_path, door, number, code):
    from monai_ssl.bundle.library import find_bundle

    options = {"dataset": "phantom", "dataset_dir": tiny_phantom, "max_iterations": 100000, "val_interval": 100000,
               "num_workers": 1, "device": "cpu", "network_def#base_channels": 2}  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    config = find_bundle("dtc") / "configs" / "train.yaml"
    start = {
        "monai_ssl": ["monai_ssl", "train", "dtc", "--output", str(tmp_path / "run")],
        "monai.bundle": ["monai.bundle", "run", "--config_file", str(config), "--bundle_root", str(config.parents[1]),
                         "--output_dir", str(tmp_path / "run")],
    }[door]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", *start, *words], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    log = tmp_path / "run" / "training.csv"
    while process.poll() is None and (not log.is_file() or log.read_text().count("\n") < 4):
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal and a cluster do: the loader's processes get it, too
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    done = int(rows(tmp_path / "run")[-1]["iteration"])
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == done
    assert "Traceback" not in said
    assert "terminating" not in said
    told = [line for line in said.splitlines() if "stopped by" in line]
    assert len(told) == 1
    assert f"stopped by {signal.Signals(number).name} after iteration {done} of 100000" in told[0]

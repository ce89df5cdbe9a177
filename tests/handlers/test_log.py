"""Logs of a run: one row per iteration, whole after any interruption."""

import logging
from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from monai_ssl.handlers import CaseProgress, Progress, TrainingLog, ValidationLog
from monai_ssl.handlers.log import truncate
from monai_ssl.progress import spoken

FIELDS = ["iteration", "loss", "dice", "lr", "grad_norm"]


def trainer(n=5, start=0, rank=0, terms=("dice",), log=None):
    """An engine whose output looks like that of the trainer."""

    def step(engine, batch):
        i = engine.state.iteration
        values = {name: 1 / (i + k + 3) for k, name in enumerate(terms)}
        return [{"loss": sum(values.values()), "terms": values, "lr": 0.1 / 3, "grad_norm": i * 1e-7}]

    engine = Engine(step)
    engine.state.rank = rank
    engine.total_iterations = n
    if log is not None:
        log.attach(engine)
    # as if resumed
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "iteration", start))
    engine.run(range(n - start), max_epochs=1, epoch_length=n)
    return engine


def lines(folder, name="training.csv"):
    return (folder / name).read_text().splitlines()


def test_one_row_per_iteration(tmp_path):
    trainer(4, log=TrainingLog(tmp_path, tensorboard=False))
    found = lines(tmp_path)
    assert found[0] == ",".join(FIELDS)
    for i, line in enumerate(found[1:], start=1):
        # written so that every bit comes back
        assert [float(v) for v in line.split(",")] == [i, 1 / (i + 3), 1 / (i + 3), 0.1 / 3, i * 1e-7]
    assert len(found) == 5


def test_rows_are_on_disk_at_once(tmp_path):
    log, seen = TrainingLog(tmp_path, tensorboard=False), []
    engine = Engine(lambda e, b: [{"loss": 0.5, "terms": {"dice": 0.5}, "lr": 1, "grad_norm": 1}])
    engine.state.rank = 0
    log.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(len(lines(tmp_path))))
    engine.run(range(3), max_epochs=1)
    assert seen == [2, 3, 4]


@pytest.mark.parametrize(
    "last",
    [
        "",
        "5,0.1",
        "5,0.125,0.125,0.033,",
        "5,0.125,0.125,0.0333333333,5e",
        "5",
        "5,0.125,0.125,0.03,4e-7,7",
        "\x00\x00",
    ],
)
def test_a_resumed_run_drops_what_lies_behind_its_start(tmp_path, last):
    trainer(6, log=TrainingLog(tmp_path, tensorboard=False))
    expected = (tmp_path / "training.csv").read_bytes()
    whole = expected.decode().split("\r\n")
    # killed in iteration 5, row cut short; the checkpoint is of iteration 3
    (tmp_path / "training.csv").write_bytes(("\r\n".join(whole[:5]) + "\r\n" + last).encode())
    trainer(6, start=3, log=TrainingLog(tmp_path, tensorboard=False))
    assert (tmp_path / "training.csv").read_bytes() == expected


def test_a_fresh_run_starts_an_empty_log(tmp_path):
    trainer(6, log=TrainingLog(tmp_path, tensorboard=False))
    trainer(2, log=TrainingLog(tmp_path, tensorboard=False))
    assert len(lines(tmp_path)) == 3


def test_a_new_term_adds_its_column(tmp_path):
    trainer(3, log=TrainingLog(tmp_path, tensorboard=False))
    before = lines(tmp_path)
    trainer(6, start=3, terms=("dice", "consistency"), log=TrainingLog(tmp_path, tensorboard=False))
    found = lines(tmp_path)
    assert found[0] == "iteration,loss,dice,lr,grad_norm,consistency"
    assert [line.split(",")[0] for line in found[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert found[1:4] == [line + "," for line in before[1:]]
    assert all(line.split(",")[-1] for line in found[4:])


def test_only_the_first_process_writes(tmp_path):
    trainer(3, rank=1, log=TrainingLog(tmp_path))
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_for_a_run_that_was_over(tmp_path):
    trainer(3, log=TrainingLog(tmp_path, tensorboard=False))
    before = (tmp_path / "training.csv").read_bytes()
    log = TrainingLog(tmp_path, tensorboard=False)
    engine = Engine(lambda e, b: [])  # what the trainer gives then
    engine.state.rank = 0
    log.attach(engine)
    engine.run(range(1), max_epochs=1)
    assert (tmp_path / "training.csv").read_bytes() == before


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(7, log=TrainingLog(tmp_path, interval=3))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in FIELDS[1:]}
    points = events.Scalars("train/loss")
    assert [p.step for p in points] == [3, 6]
    assert [p.value for p in points] == pytest.approx([1 / 6, 1 / 9])


def test_truncate(tmp_path):
    path = tmp_path / "t.csv"
    truncate(path, 5, ["iteration", "x"])
    assert path.read_bytes() == b"iteration,x\r\n"
    path.write_text("iteration,x\r\n1,a\r\n2,b\r\nnonsense,c\r\n3,c\r\n")
    truncate(path, 3, ["iteration", "x"])
    assert path.read_bytes() == b"iteration,x\r\n1,a\r\n2,b\r\n"
    truncate(path, 1, ["iteration", "x"])
    assert path.read_bytes() == b"iteration,x\r\n"


# ------------------------------------------------------------------------------------------------- validation


def validate(folder, at, metrics, rank=0):
    evaluator, engine = Engine(lambda e, b: None), Engine(lambda e, b: None)
    engine.state.rank = rank
    engine.state.iteration = at
    ValidationLog(folder, evaluator).attach(engine)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(metrics))
    evaluator.run([0], max_epochs=1)


def test_validation_log(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "monai_ssl"):
        validate(tmp_path, 100, {"val_mean_dice": 1 / 3, "per_case": [1, 2]})
    validate(tmp_path, 200, {"val_mean_dice": 0.5})
    assert lines(tmp_path, "validation.csv") == ["iteration,val_mean_dice", f"100,{1 / 3!r}", "200,0.5"]
    assert "iteration 100: val_mean_dice 0.3333" in caplog.text


def test_validation_log_after_a_resume(tmp_path):
    for at, value in ((100, 0.1), (200, 0.2), (300, 0.3)):
        validate(tmp_path, at, {"dice": value})
    (tmp_path / "validation.csv").open("a").write("400,0.")
    validate(tmp_path, 200, {"dice": 0.25})
    assert lines(tmp_path, "validation.csv") == ["iteration,dice", "100,0.1", "200,0.25"]


@pytest.mark.parametrize(("rank", "metrics"), [(1, {"dice": 1.0}), (0, {})])
def test_validation_log_writes_nothing(tmp_path, rank, metrics):
    validate(tmp_path, 100, metrics, rank)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- progress


def test_progress_says_little_without_a_terminal(caplog):
    with caplog.at_level(logging.INFO, "monai_ssl"):
        trainer(20, log=Progress(seconds=3600))
    said = [r.getMessage() for r in caplog.records if r.name.startswith("monai_ssl")]
    assert len(said) <= 2
    assert said[-1].startswith("training: iteration 20 of 20, loss ")
    assert "dice 0.043" in said[-1]


def test_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    trainer(4, log=Progress())
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "4/4" in shown
    assert "dice" in shown


def test_progress_does_not_hide_an_error(monkeypatch):
    engine = Engine(lambda e, b: 1 / 0)
    engine.state.rank = 0
    Progress().attach(engine)
    with pytest.raises(ZeroDivisionError):
        engine.run(range(2), max_epochs=1)


def test_case_progress(caplog, monkeypatch, capsys):
    with caplog.at_level(logging.INFO, "monai_ssl"):
        engine = Engine(lambda e, b: None)
        CaseProgress(3, seconds=3600).attach(engine)
        engine.run(range(3), max_epochs=1)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("monai_ssl")] == ["cases: case 3 of 3"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    engine = Engine(lambda e, b: None)
    CaseProgress(3, "testing").attach(engine)
    engine.run(range(3), max_epochs=1)
    assert "3/3" in capsys.readouterr().err


def test_silent_ranks():
    engine = SimpleNamespace(state=SimpleNamespace(rank=1, output=[{"loss": 1}]), total_iterations=1)
    progress = Progress()
    progress.update(engine)
    assert progress._average is None


def lines_of(caplog, monkeypatch, n, seconds, start=0, every=0.0):
    """What a training says whose steps take ``seconds`` (a function of their number)."""
    clock = [1000.0]
    monkeypatch.setattr("monai_ssl.handlers.log.monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO, "monai_ssl")

    def step(engine, batch):
        clock[0] += seconds(engine.state.iteration)
        return [{"loss": 1.0, "terms": {"dice": 1.0}, "lr": 0.1, "grad_norm": 1.0}]

    engine = Engine(step)
    engine.state.rank, engine.total_iterations = 0, n
    Progress(every).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "iteration", start))
    engine.run(range(n - start), max_epochs=1, epoch_length=n)
    # Ignite says something itself where another test has let it
    return [record.getMessage() for record in caplog.records if record.name.startswith("monai_ssl")]


def test_every_line_says_how_much_time_is_left(caplog, monkeypatch):
    said = lines_of(caplog, monkeypatch, 5, lambda i: 20 if i == 1 else 10)
    left = [line.rpartition(", ")[2] for line in said]
    # the first step, which waits for the loaders, counts only as long as it is alone
    assert left == ["80 s left", "30 s left", "20 s left", "10 s left", "took 60 s"]


def test_a_resumed_run_counts_its_own_steps(caplog, monkeypatch):
    said = lines_of(caplog, monkeypatch, 1000, lambda i: 36, start=996)
    assert [line.rpartition(", ")[2] for line in said] == ["0:01:48 left", "72 s left", "36 s left", "took 0:02:24"]


@pytest.mark.parametrize(("seconds", "after"), [(1, 11), (20, 3)])
def test_one_line_says_what_the_whole_takes(caplog, monkeypatch, seconds, after):
    said = lines_of(caplog, monkeypatch, 6000, lambda i: seconds, every=3600)
    told = [line for line in said if " on this machine: " in line]
    left = spoken(seconds * (6000 - after))
    assert told == [
        f"training: {seconds} s per iteration on this machine: 6000 take {spoken(6000 * seconds)}, {left} left"
    ]
    assert said.index(told[0]) == 1  # right after the first


def test_short_runs_need_no_estimate(caplog, monkeypatch):
    assert not [line for line in lines_of(caplog, monkeypatch, 15, lambda i: 1) if " on this machine: " in line]

"""Precision by a short measurement: nothing of the training changes, noise decides nothing, a decision stays."""

import copy
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import names, tiny
from ignite.engine import Events
from tiny_training import WeightNorm, assert_equal, build, content, make_loader, processes
from torch.nn.parallel import DistributedDataParallel

from monai_ssl import machine
from monai_ssl.engines import WindowInferer, calibration
from monai_ssl.engines import precision as formats
from monai_ssl.engines.calibration import chosen, measure, pays, told
from monai_ssl.engines.precision import Precision, candidates
from monai_ssl.engines.trainer import RunEvents
from monai_ssl.handlers import Validation
from monai_ssl.runs import Run
from monai_ssl.runs.record import Record

CHOICE = [Precision(form, layout) for form in ("bfloat16", "float32") for layout in ("channels_last", "contiguous")]
BF_LAST, BF_PLAIN, FL_LAST, FL_PLAIN = [precision.name for precision in CHOICE]


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """Every training measures, on any processor, once per candidate; what it keeps is in a folder of the test."""
    monkeypatch.setattr(formats, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(calibration, "LEAST_ITERATIONS", 0)
    monkeypatch.setattr(calibration, "LEAST_VOXELS", 0)
    monkeypatch.setattr(calibration, "MOST_ROUNDS", 1)
    monkeypatch.setattr("monai_ssl.engines.trainer.crowded", lambda threads: None)
    monkeypatch.setenv(calibration.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept" / "precision"


def fastest(monkeypatch, name):
    """The next measurement finds this one to be the fastest by far."""
    monkeypatch.setattr(calibration, "measure", lambda choice, *_: {p.name: 1.0 + (p.name != name) for p in choice})


def no_measurement(monkeypatch):
    def refuse(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(calibration, "_measure", refuse)


# ------------------------------------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({BF_LAST: 0.5, BF_PLAIN: 0.6, FL_LAST: 1.0, FL_PLAIN: 1.1}, BF_LAST),
        ({BF_LAST: 0.93, BF_PLAIN: 0.95, FL_LAST: 1.0, FL_PLAIN: 1.1}, FL_LAST),  # noise
        ({BF_LAST: 0.91, BF_PLAIN: 0.95, FL_LAST: 1.0, FL_PLAIN: 1.1}, BF_LAST),
        ({BF_LAST: 0.247, BF_PLAIN: 0.3, FL_LAST: 0.18, FL_PLAIN: 0.155}, FL_PLAIN),  # a Xeon without AMX
        ({BF_LAST: 2.0, BF_PLAIN: 2.0, FL_LAST: 1.0, FL_PLAIN: 0.96}, FL_LAST),  # noise between layouts
        ({BF_LAST: 0.5, BF_PLAIN: 0.4, FL_LAST: 1.0, FL_PLAIN: 1.0}, BF_PLAIN),
        ({FL_LAST: 1.0, FL_PLAIN: 0.9}, FL_PLAIN),
        ({BF_LAST: 1.0, FL_LAST: 0.99}, FL_LAST),
    ],
)
def test_what_is_chosen(seconds, expected):
    found = chosen(seconds, CHOICE)
    assert (found.name, found.found, found.seconds) == (expected, "measured", seconds)


def test_noise_never_picks_a_format_slower_than_float32():
    draw = random.Random(0)
    for _ in range(500):
        true = {name: draw.uniform(0.8, 1.25) for name in (BF_LAST, BF_PLAIN, FL_LAST, FL_PLAIN)}
        noisy = {name: value * draw.uniform(1.0, 1.04) for name, value in true.items()}
        found = chosen(noisy, CHOICE)
        assert true[found.name] <= 1.1 * min(true[FL_LAST], true[FL_PLAIN])
        if found.format == "bfloat16":
            assert true[found.name] < min(true[FL_LAST], true[FL_PLAIN])


class Clock:
    """Steps that take what a table says; the first of a candidate sets up kernels on top."""

    def __init__(self, seconds, setup=0.0):
        self.seconds, self.setup, self.now, self.made = seconds, setup, 0.0, []

    def __call__(self, precision):
        took = self.seconds[precision.name] + (0 if precision.name in self.made else self.setup)
        self.made.append(precision.name)
        self.now += took
        return took


@pytest.mark.parametrize(
    ("seconds", "setup", "steps", "limit"),
    [
        ((0.03, 0.03, 0.05, 0.06), 0.2, 26, 3.0),  # the two that lost are left out after a round
        ((0.03, 0.03, 0.03, 0.03), 0.2, 37, 3.0),
        ((0.4, 0.4, 0.4, 0.4), 0.0, 13, 6.0),
        ((1.0, 1.0, 1.2, 1.2), 0.0, 5, 6.0),
        ((0.5, 0.6, 2.0, 2.0), 0.0, 13, 10.0),  # clearly lost after the first step
        ((8.0, 9.0, 16.0, 20.0), 0.0, 3, 40.0),
    ],
)
def test_a_measurement_is_short(seconds, setup, steps, limit):
    clock = Clock(dict(zip([p.name for p in CHOICE], seconds, strict=True)), setup)
    found = measure(CHOICE, clock, clock=lambda: clock.now)
    assert len(clock.made) <= steps
    assert clock.now <= limit
    assert chosen(found, CHOICE).name == chosen(clock.seconds, CHOICE).name


def test_a_long_step_is_made_once_by_three():
    clock = Clock({BF_LAST: 9.0, BF_PLAIN: 12.0, FL_LAST: 5.0, FL_PLAIN: 4.0})
    assert chosen(measure(CHOICE, clock, clock=lambda: clock.now), CHOICE).name == FL_PLAIN
    assert clock.made == [BF_LAST, FL_LAST, FL_PLAIN]


def test_what_the_very_first_step_sets_up_does_not_count():
    clock = Clock({BF_LAST: 2.0, BF_PLAIN: 2.15, FL_LAST: 4.0, FL_PLAIN: 4.0})
    once = [1.0]

    def step(precision):
        return clock(precision) + (once.pop() if once else 0)

    assert chosen(measure(CHOICE, step, clock=lambda: clock.now), CHOICE).name == BF_LAST
    assert len(clock.made) == 4


def test_nothing_larger_is_tried_without_memory_for_it():
    clock = Clock({BF_LAST: 1.0})
    assert measure(CHOICE, clock, room=lambda: False) == {}
    assert clock.made == [BF_LAST]


def test_short_trainings_do_not_measure():
    batch = [{"image": torch.zeros(2, 1, 32, 32, 16)}, {"image": torch.zeros(2, 3, 32, 32, 16)}]
    assert not pays(300, batch)
    assert pays(800, batch)
    assert pays(800, [batch[0], None])
    large = [{"image": torch.zeros(1, 1, 1).expand(4, 1, 1_000_000)}, None]
    assert not pays(99, large)
    assert pays(100, large)


@pytest.mark.parametrize(
    ("amp", "layout", "expected"),
    [
        ("auto", "auto", [BF_LAST, BF_PLAIN, FL_LAST, FL_PLAIN]),
        ("auto", "contiguous", [BF_PLAIN, FL_PLAIN]),
        ("off", None, [FL_LAST, FL_PLAIN]),
        ("bf16", "auto", [BF_LAST, BF_PLAIN]),
        ("bf16", "channels_last", [BF_LAST]),
        (False, False, [FL_PLAIN]),
    ],
)
def test_what_there_is_to_choose(amp, layout, expected, monkeypatch):
    monkeypatch.setattr(formats, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(formats, "cpu_gains_from_bfloat16", lambda: True)
    found = candidates(amp, layout, "cpu")
    assert [p.name for p in found] == expected
    assert (found[0].found == "given") == (len(expected) == 1)
    wrapped = candidates(amp, layout, "cpu", measurable=False)  # the layout of wrapped weights stays
    assert [p.name for p in wrapped] == [name for name in expected if name.split()[-1] == expected[0].split()[-1]]


def test_a_gpu_keeps_to_the_rule(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert [p.name for p in candidates("auto", "auto", "cuda")] == [BF_LAST]


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout must be auto, contiguous or channels_last, got 'fast'"):
        candidates("auto", "fast", "cpu")


def test_a_decision_in_a_line():
    assert told(
        Precision("bfloat16", "channels_last", "measured", {BF_LAST: 0.031, FL_LAST: 0.06, FL_PLAIN: 0.052})
    ) == ("bfloat16, channels-last: 0.031 s a step; float32 0.052 s")
    assert told(Precision("float32", "contiguous", "rule")) == "float32, contiguous"


@pytest.mark.parametrize(
    ("text", "name", "vendor", "gains"),
    [
        ("vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Processor\nflags\t: avx2 avx512f avx512_bf16\n",
         "Intel(R) Xeon(R) Processor (avx512_bf16, avx512)", "GenuineIntel", False),
        ("vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\nflags\t: avx2 avx512f avx512_bf16 amx_bf16\n",
         "Intel(R) Xeon(R) (amx, avx512_bf16, avx512)", "GenuineIntel", True),
        ("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t: avx2 avx512f avx512_bf16\n",
         "AMD EPYC (avx512_bf16, avx512)", "AuthenticAMD", True),
        ("vendor_id\t: GenuineIntel\nmodel name\t: Old\nflags\t: avx2\n", "Old (avx2)", "GenuineIntel", False),
    ],
)  # fmt: skip
def test_the_rule_knows_processors(tmp_path, monkeypatch, text, name, vendor, gains):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(text)
    assert machine.cpu_name(tmp_path) == name
    assert machine.cpu_vendor(tmp_path) == vendor
    features = machine.cpu_features(tmp_path)
    monkeypatch.setattr(formats, "cpu_has_bfloat16", lambda: "avx512_bf16" in features)
    monkeypatch.setattr(machine, "cpu_features", lambda: features)
    monkeypatch.setattr(machine, "cpu_vendor", lambda: vendor)
    assert formats.cpu_gains_from_bfloat16() == gains


# ------------------------------------------------------------------------------------------------- nothing changes


def state_of(method):
    parameters = {
        name: (p.detach().clone(), p.grad is None or p.grad.clone(), p.requires_grad, p.stride(), p.data_ptr())
        for name, p in method.named_parameters()
    }
    _, numbers, position, *_ = np.random.get_state()
    generators = [torch.get_rng_state(), torch.tensor(numbers.astype(np.int64)), position, list(random.getstate()[1])]
    modes = [module.training for module in method.modules()]
    state = copy.deepcopy(dict(method.state_dict()))
    return [state, {k: list(v) for k, v in parameters.items()}, generators, modes, method.iteration]


@pytest.mark.parametrize("name", names())
def test_a_measurement_changes_nothing(name, measuring):
    method = tiny(name)
    streams = make_loader(
        labeled_batch_size=2, unlabeled_batch_size=2, added=method.loader_transforms(), epoch_length=4
    )
    streams.prepare()
    batch = next(iter(streams))
    if method.strong_view:
        batch["unlabeled"]["strong"] = batch["unlabeled"]["image"].clone()
    for _ in range(2):  # memories and teachers hold something
        terms = method(batch["labeled"], batch["unlabeled"])
        sum(terms.values()).backward()
        method.after_step()
    method.eval()
    kept, before = copy.deepcopy(batch), state_of(method)
    found, situation = calibration.decide(
        candidates("auto", "auto", "cpu"), method, [batch["labeled"], batch["unlabeled"]], "cpu", 1
    )
    assert found.found == "measured"
    assert len(found.seconds) == 4
    assert_equal(state_of(method), before)
    for stream in batch:
        for key, value in batch[stream].items():
            assert (
                torch.equal(value, kept[stream][key]) if isinstance(value, torch.Tensor) else value == kept[stream][key]
            )
    assert json.loads(json.dumps(situation)) == situation  # survives a file as it is


@pytest.mark.parametrize("name", names())
def test_a_training_that_measured_equals_one_that_was_told(name, measuring, tmp_path):
    build(tmp_path / "a", method=name, amp="auto", max_iterations=5, validate=True).run()
    decided = Run(tmp_path / "a").decision
    assert decided["found"] == "measured"
    options = decided["options"]
    build(tmp_path / "b", method=name, amp=options["amp"], max_iterations=5, validate=True,
          trainer={"channels_last_weights": options["layout"]}).run()  # fmt: skip
    told_so = Run(tmp_path / "b").decision
    assert (told_so["found"], told_so["options"]) == ("given", options)
    assert_equal(content(tmp_path / "a"), content(tmp_path / "b"))


def test_a_method_that_cannot_be_copied_follows_the_rule(measuring, tmp_path):
    trainer = build(tmp_path / "run", amp="auto", max_iterations=2)
    trainer.plain_method.lock = (_ for _ in ())  # generators cannot be copied
    trainer.run()
    assert trainer.precision == trainer.choice[0]
    assert trainer.precision.found == "assumed"


def test_a_crowded_machine_follows_the_rule_and_keeps_to_it(measuring, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_ssl.engines.trainer.crowded", lambda threads: "other programs keep the cores busy")
    fastest(monkeypatch, FL_PLAIN)
    first = build(tmp_path / "a", amp="auto", max_iterations=2)
    first.run()
    assert first.precision == first.choice[0]
    monkeypatch.setattr("monai_ssl.engines.trainer.crowded", lambda threads: None)
    second = build(tmp_path / "b", amp="auto", max_iterations=2)  # an equal training must have the same bits
    second.run()
    assert second.precision == first.precision


# ------------------------------------------------------------------------------------------------- decisions stay


def run(folder, amp="auto", before_training=(), **options):
    trainer = build(folder, amp=amp, max_iterations=options.pop("max_iterations", 6), **options)
    for event, handler in before_training:
        trainer.add_event_handler(event, handler)
    trainer.run()
    return trainer


def test_equal_trainings_share_a_decision(measuring, tmp_path, monkeypatch):
    fastest(monkeypatch, FL_PLAIN)
    assert run(tmp_path / "a").precision.name == FL_PLAIN
    fastest(monkeypatch, BF_LAST)
    second = run(tmp_path / "b")
    assert second.precision.name == FL_PLAIN
    assert second.precision.found == "measured before"
    assert_equal(content(tmp_path / "a"), content(tmp_path / "b"))
    assert run(tmp_path / "c", labeled_batch_size=3).precision.name == BF_LAST  # another shape
    assert run(tmp_path / "d", method="supervised").precision.name == BF_LAST


@pytest.mark.parametrize("damage", ["{", "[]", '{"found": "measured"}', "\xff"])
def test_a_damaged_memory_is_replaced(measuring, tmp_path, monkeypatch, damage):
    fastest(monkeypatch, FL_PLAIN)
    run(tmp_path / "a")
    (file,) = measuring.iterdir()
    file.write_bytes(damage.encode("latin-1"))
    fastest(monkeypatch, BF_LAST)
    assert run(tmp_path / "b").precision.name == BF_LAST
    assert json.loads(file.read_text())["options"] == {"amp": "bf16", "layout": "channels_last"}
    assert list(measuring.iterdir()) == [file]


def test_a_memory_that_cannot_be_written_stops_nobody(measuring, tmp_path, monkeypatch):
    measuring.parent.write_text("a file where the folder should be")
    fastest(monkeypatch, FL_PLAIN)
    assert run(tmp_path / "a").precision.name == FL_PLAIN


def test_of_two_that_measure_at_once_the_first_decides(measuring, tmp_path, monkeypatch):
    situation = {"cpu": "some"}
    file = calibration._file(situation)
    first, second = (Precision(p.format, p.layout, "measured", {p.name: 1.0}) for p in (CHOICE[0], CHOICE[3]))
    assert calibration._keep(file, first, situation, CHOICE).name == BF_LAST
    assert calibration._keep(file, second, situation, CHOICE).name == BF_LAST
    assert list(measuring.iterdir()) == [file]


class KilledError(Exception):
    pass


def die(*_):
    raise KilledError


@pytest.mark.parametrize("where", [RunEvents.SETTLED, Events.ITERATION_COMPLETED(once=5)])
@pytest.mark.parametrize("forgotten", [False, True])
def test_a_killed_training_keeps_its_decision(measuring, tmp_path, monkeypatch, where, forgotten):
    fastest(monkeypatch, FL_PLAIN)
    run(tmp_path / "whole")
    shutil.rmtree(measuring)
    with pytest.raises(KilledError):
        run(tmp_path / "run", before_training=[(where, die)])
    assert Run(tmp_path / "run").decision["options"] == {"amp": "off", "layout": "contiguous"}
    if forgotten:  # on another machine, or by a user who cleans up
        shutil.rmtree(measuring)
    no_measurement(monkeypatch)
    resumed = run(tmp_path / "run")
    assert resumed.precision.name == FL_PLAIN
    assert_equal(content(tmp_path / "run"), content(tmp_path / "whole"))
    assert not Run(tmp_path / "run").previous()
    assert run(tmp_path / "run").precision.name == FL_PLAIN  # finished, started again


def test_a_training_killed_while_it_measures_left_nothing(measuring, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "measure", die)
    monkeypatch.setattr(calibration, "Exception", KeyboardInterrupt, raising=False)  # nobody survives it
    with pytest.raises(KilledError):
        run(tmp_path / "run")
    assert Run(tmp_path / "run").decision is None
    assert not measuring.exists()
    fastest(monkeypatch, FL_PLAIN)
    assert run(tmp_path / "run").precision.name == FL_PLAIN


def test_a_checkpoint_goes_before_a_decision_that_lies_around(measuring, tmp_path, monkeypatch):
    fastest(monkeypatch, FL_PLAIN)
    with pytest.raises(KilledError):
        run(tmp_path / "run", before_training=[(Events.ITERATION_COMPLETED(once=5), die)])
    decision = Run(tmp_path / "run").decision
    Run(tmp_path / "run").note_decision(decision | {"format": "bfloat16", "options": {}})
    no_measurement(monkeypatch)
    assert run(tmp_path / "run").precision.name == FL_PLAIN


def test_another_training_in_the_folder_decides_anew(measuring, tmp_path, monkeypatch):
    fastest(monkeypatch, FL_PLAIN)
    run(tmp_path / "run")
    fastest(monkeypatch, BF_LAST)
    second = run(tmp_path / "run", seed=1, labeled_batch_size=3)
    assert second.precision.name == BF_LAST
    (aside,) = Run(tmp_path / "run").previous()
    assert json.loads((aside / "precision.json").read_text())["options"]["amp"] == "off"
    assert Run(tmp_path / "run").decision["options"]["amp"] == "bf16"


def test_an_option_against_the_decision_makes_another_run(measuring, tmp_path, monkeypatch, caplog):
    fastest(monkeypatch, BF_LAST)
    run(tmp_path / "run")
    run(tmp_path / "run", amp="bf16")  # what it is
    assert not Run(tmp_path / "run").previous()
    run(tmp_path / "run", amp="off")
    assert 'precision: "bfloat16" -> "float32"' in caplog.text
    assert Run(tmp_path / "run").previous()


def test_a_checkpoint_without_a_layout_is_continued(tmp_path, caplog):
    with pytest.raises(KilledError):
        run(tmp_path, amp="off", before_training=[(Events.ITERATION_COMPLETED(once=5), die)])
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["identity"]["layout"]  # version 0.1
    torch.save(state, tmp_path / "checkpoint.pt")
    (tmp_path / "precision.json").unlink()
    trainer = build(tmp_path, amp="off", max_iterations=6)
    trainer.run()
    assert not Run(tmp_path).previous(), caplog.text


def test_the_validation_follows(measuring, tmp_path, monkeypatch):
    def validator(amp):
        found = WeightNorm(torch.nn.Linear(1, 1))
        found.inferer = WindowInferer((16, 16), amp=amp)
        return found

    fastest(monkeypatch, FL_PLAIN)
    free, bound = validator("auto"), validator("bf16")
    run(tmp_path / "run", handlers=[Validation(interval=9, validator=each) for each in (free, bound)])
    assert (free.inferer.amp, free.inferer.channels_last) == ("off", False)
    assert (bound.inferer.amp, bound.inferer.channels_last) == ("bf16", True)


def test_the_record_says_how_to_repeat_it(tmp_path):
    target = Run(tmp_path)
    record = Record(bundle="dtc", overrides={}, dataset_dir="scans", datalist="d.json",
                    command="monai-ssl train dtc --dataset_dir scans --amp auto ")  # fmt: skip
    (tmp_path / "run.json").write_text(record.text())
    found = Precision("bfloat16", "channels_last", "measured", {BF_LAST: 0.031, FL_LAST: 0.052})
    target.note_decision(calibration.record(found, {"cpu": "some"}))
    for _ in range(2):
        written = json.loads((tmp_path / "run.json").read_text())
        assert written["precision"] == {"format": "bfloat16", "layout": "channels_last", "found": "measured",
                                        "seconds": {BF_LAST: 0.031, FL_LAST: 0.052}}  # fmt: skip
        assert written["repeat"].split()[-4:] == ["--amp", "bf16", "--layout", "channels_last"]
        assert written["repeat"].count("--amp") == 1
        assert written["overrides"] == {}  # a prediction elsewhere decides for itself
        target.finish(record)


# ------------------------------------------------------------------------------------------------- processes


def _rank(rank, store, folder):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ[calibration.FOLDER] = str(folder / f"kept-{rank}")  # two machines
    formats.cpu_has_bfloat16 = lambda: True
    calibration.LEAST_ITERATIONS = calibration.LEAST_VOXELS = 0
    ours = {0: "float32, channels-last", 1: "bfloat16, channels-last"}[rank]
    step = calibration.ThrowawaySteps.__call__

    def pretended(self, precision):
        step(self, precision)
        return float(calibration.from_first(0.01 if precision.name == ours else 0.05))

    calibration.ThrowawaySteps.__call__ = pretended
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    trainer = build(folder / "run", wrap=DistributedDataParallel, amp="auto", max_iterations=3)
    trainer.run()
    state = {key: value for key, value in trainer.plain_method.state_dict().items() if key != "_extra_state"}
    torch.save({"name": trainer.precision.name, "state": state}, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_first_process_decides_for_all(tmp_path):
    started = [processes().Process(target=_rank, args=(rank, tmp_path / "store", tmp_path)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert first["name"] == second["name"] == "float32, channels-last"
    parameters = [key for key in first["state"] if "running" not in key and "num_batches" not in key]
    assert_equal([first["state"][k] for k in parameters], [second["state"][k] for k in parameters])
    assert Run(tmp_path / "run").decision["options"] == {"amp": "off", "layout": "channels_last"}
    assert Path(tmp_path / "kept-0").is_dir()
    assert not Path(tmp_path / "kept-1").exists()

"""Two processes on the CPU: the same streams, gradients and files as one process with twice the batch."""

import os

import pytest
import torch
from builders import names
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from tiny_training import assert_equal, build, content, make_loader, processes, rows
from torch.nn.parallel import DistributedDataParallel

from monai_ssl.engines import WindowInferer
from monai_ssl.losses import SigmoidRampUp

# no random transform, no dropout, instance norm: a gradient is then a mean over images
RAMP = {"ramp_up": SigmoidRampUp(5)}
PLAIN = {"deterministic": True, "network": {"dropout": 0.0, "norm": "instance"}}
PAPER = {"deterministic": True, "network": {"dropout": 0.0, "norm": "instance", "variant": "paper"}}


def observe(trainer):
    """What a training saw and did: case names, gradients of the first step, terms."""
    seen = {"labeled": [], "unlabeled": [], "gradient": {}, "loss": []}

    def names(engine):
        for key in ("labeled", "unlabeled"):
            seen[key].append(engine.state.batch[key]["name"])

    def gradients(engine):
        if not seen["gradient"]:
            named = engine.plain_method.named_parameters()
            seen["gradient"] = {n: p.grad.clone() for n, p in named if p.grad is not None}

    trainer.add_event_handler(Events.ITERATION_STARTED, names)
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, gradients)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen["loss"].append(e.state.output[0]["loss"]))
    return seen


def _rank(rank, store, folder, options, infer_after=None):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    trainer = build(folder / "run", wrap=DistributedDataParallel, **options)
    seen = observe(trainer)

    def infer(engine):
        engine.plain_method.eval()
        with torch.no_grad():
            WindowInferer((16, 16), amp="off")(torch.randn(1, 1, 20, 20), engine.plain_method.network)

    if infer_after is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=infer_after), infer)
    trainer.run()
    seen["state"] = trainer.plain_method.state_dict()
    torch.save(seen, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


def train_on_two(folder, infer_after=None, **options):
    """Train; returns what each process saw."""
    folder.mkdir(exist_ok=True)
    store = folder / "store"
    store.unlink(missing_ok=True)
    arguments = [(rank, store, folder, options, infer_after) for rank in range(2)]
    started = [processes().Process(target=_rank, args=each) for each in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every method with batch norm, dropout and random transforms, 5 iterations on two processes."""
    root = tmp_path_factory.mktemp("two")
    return {m: (root / m, train_on_two(root / m, method=m, max_iterations=5)) for m in names()}


@pytest.mark.parametrize("method", names())
def test_two_processes_train_one_network(trained, method):
    folder, (first, second) = trained[method]
    parameters = [name for name, _ in build(method=method).plain_method.named_parameters()]
    for name in parameters:
        assert torch.equal(first["state"][name], second["state"][name]), name
    assert first["state"]["_extra_state"] == second["state"]["_extra_state"] == {"iteration": 5}
    assert first["loss"] != second["loss"]  # each saw its own images
    assert_equal(content(folder / "run")["checkpoint"]["method"], first["state"])


def test_both_processes_hold_one_memory_bank(trained):
    _, (first, second) = trained["caml"]
    bank = first["state"]["bank._extra_state"]
    assert_equal(bank, second["state"]["bank._extra_state"])
    # three labeled cases, of which each process saw only its own
    assert bank["cases"].tolist() == [0, 1, 2]
    assert bank["vectors"].shape == (int(bank["lengths"].sum()), 4)
    assert bank["counts"].sum() > 0


def test_both_processes_hold_the_same_prototypes(trained):
    _, (first, second) = trained["ss_net"]
    for name in ("memory.rows", "memory.counts"):
        assert torch.equal(first["state"][name], second["state"][name])
    assert first["state"]["memory.counts"].tolist() == [0, 8]


@pytest.mark.parametrize("method", ["dtc", "supervised"])
def test_the_first_process_alone_writes(trained, method):
    folder, (first, _) = trained[method]
    found = rows(folder / "run")
    assert [int(row["iteration"]) for row in found] == [1, 2, 3, 4, 5]
    assert [float(row["loss"]) for row in found] == first["loss"]
    assert sorted(p.name for p in (folder / "run").iterdir()) == [
        ".lock", "checkpoint.pt", "costs.json", "model.pt", "precision.json", "training.csv",
    ]  # fmt: skip


def test_processes_take_disjoint_slots_of_the_joint_batch(trained):
    _, (first, second) = trained["dtc"]
    joint = iter(make_loader(seed=0, labeled_batch_size=4, unlabeled_batch_size=4))
    for i in range(5):
        batch = next(joint)
        for key in ("labeled", "unlabeled"):
            assert first[key][i] + second[key][i] == batch[key]["name"]


@pytest.mark.parametrize("layout", [None, True])
@pytest.mark.parametrize(("method", "steps"), [("dtc", 1), ("dtc", 2), ("supervised", 1)])
def test_gradient_is_that_of_the_joint_batch(tmp_path, method, steps, layout):
    # the released DTC pools Dice over the images of one process, which is no mean over images: the paper's variant is
    options = {**(PAPER if method == "dtc" else PLAIN), "method": method, "max_iterations": 1}
    one = build(**options, labeled_batch_size=4, unlabeled_batch_size=4)
    expected = observe(one)
    one.run()
    both = train_on_two(tmp_path, **options, trainer={"accumulation_steps": steps, "channels_last_weights": layout})
    for seen in both:
        assert seen["gradient"].keys() == expected["gradient"].keys()
        for name, gradient in expected["gradient"].items():
            torch.testing.assert_close(seen["gradient"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert sum(seen["loss"][0] for seen in both) / 2 == pytest.approx(expected["loss"][0], rel=1e-5)


def test_pooled_dice_sees_one_process_at_a_time(tmp_path):
    # documented in the test above: with the released variant two processes are not one with twice the batch
    one = build(**PLAIN, max_iterations=1, labeled_batch_size=4, unlabeled_batch_size=4)
    expected = observe(one)
    one.run()
    both = train_on_two(tmp_path, **PLAIN, max_iterations=1)
    assert sum(seen["loss"][0] for seen in both) / 2 == pytest.approx(expected["loss"][0], rel=0.05)
    assert sum(seen["loss"][0] for seen in both) / 2 != pytest.approx(expected["loss"][0], rel=1e-6)


def test_a_validation_in_between_does_no_harm(tmp_path, trained):
    _, (expected, _) = trained["dtc"]
    both = train_on_two(tmp_path, method="dtc", max_iterations=5, infer_after=2)
    assert both[0]["loss"] == expected["loss"]


@pytest.mark.parametrize("method", ["supervised", "caml"])
def test_resumed_on_two_processes(tmp_path, method):
    # the schedule and the ramp-up of a prolonged run are those of its own length
    options = {"method": method, "schedule": "constant", "network": RAMP if method == "caml" else {}}
    train_on_two(tmp_path / "a", **options, max_iterations=4)
    train_on_two(tmp_path / "a", **options, max_iterations=7)
    train_on_two(tmp_path / "b", **options, max_iterations=7)
    assert len(rows(tmp_path / "a" / "run")) == 7
    assert_equal(content(tmp_path / "a" / "run"), content(tmp_path / "b" / "run"))


def test_another_run_on_two_processes_sets_the_former_aside(trained):
    folder, _ = trained["supervised"]
    train_on_two(folder, method="supervised", max_iterations=2, seed=9)
    assert content(folder / "run" / "previous-1")["checkpoint"]["iteration"] == 5
    assert content(folder / "run")["checkpoint"]["iteration"] == 2

"""Costs of a training: counted by hand here, and without a trace in what is trained."""

from __future__ import annotations

import json

import pytest
import torch
from ignite.engine import Events
from tiny_training import build, content
from torch import nn

from monai_ssl.handlers import TrainingCosts, count_macs
from monai_ssl.handlers import costs as module
from monai_ssl.networks import UNet, VNet


def costs(folder):
    return json.loads((folder / "costs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("network", "patch", "expected"),
    [
        (nn.Conv2d(2, 4, 3, padding=1), (2, 8, 6), 8 * 6 * 9 * 2 * 4),
        (nn.Conv3d(1, 4, 2, stride=2), (1, 8, 8, 4), 4 * 4 * 2 * 8 * 4),
        (nn.ConvTranspose3d(4, 2, 2, stride=2), (4, 3, 3, 2), 3 * 3 * 2 * 8 * 4 * 2),  # every input voxel, once
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5)), (1, 4, 4), 16 * 2),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4), 48),
        (nn.Identity(), (1, 4, 4), None),  # nothing to count
        (nn.Conv2d(2, 4, 3), (3, 8, 6), None),  # does not take the patch
    ],
)
def test_operations_by_hand(network, patch, expected):
    assert count_macs(network, patch) == expected


@pytest.mark.parametrize("make", [lambda: UNet(2, 1, 2), lambda: VNet(spatial_dims=2, in_channels=1, out_channels=2)])
def test_counting_leaves_the_network_alone(make):
    network = make().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    assert count_macs(network, (1, 32, 32)) > 10**5
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert all(tensor.device.type == "cpu" and p.requires_grad for p in network.parameters() for tensor in [p])
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_network_that_needs_data_has_no_number():
    class Odd(nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    assert count_macs(Odd(), (1, 4, 4)) is None


@pytest.mark.parametrize("method", ["dtc", "caml", "mean_teacher"])
def test_what_is_written(tmp_path, method):
    trainer = build(tmp_path, method, max_iterations=3)
    trainer.run()
    found = costs(tmp_path)
    network = trainer.plain_method.network
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    learns = sum(p.numel() for p in trainer.plain_method.parameters() if p.requires_grad)
    assert found["parameters_trained"] == learns >= found["parameters"]
    everything = sum(p.numel() for p in trainer.plain_method.parameters())
    assert (everything > learns) == (method == "mean_teacher")  # its teacher is an average
    assert found["macs"] == count_macs(network, found["patch"]) > 0
    assert found["patch"] == list(trainer.state.output[0]["image"].shape[1:])
    (session,) = found["sessions"]
    assert (session["first"], session["last"]) == (1, 3)
    assert 0 < session["seconds"] == found["seconds"] < 60
    assert found["peak_memory_bytes"] > 10**8  # torch alone takes that
    assert found["peak_gpu_memory_bytes"] is None


def test_seconds_add_up_over_resumes(tmp_path):
    def stop(engine):
        engine.terminate()

    first = build(tmp_path, max_iterations=6)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), stop)
    first.run()
    early = costs(tmp_path)
    assert early["sessions"][-1]["last"] == 3
    build(tmp_path, max_iterations=6).run()
    found = costs(tmp_path)
    assert found["sessions"][0] == early["sessions"][0]
    assert (found["sessions"][1]["first"], found["sessions"][1]["last"]) == (4, 6)
    assert found["seconds"] == pytest.approx(sum(each["seconds"] for each in found["sessions"]), abs=2e-3)
    assert found["seconds"] > early["seconds"]
    # a finished run that is started again costs nothing
    build(tmp_path, max_iterations=6).run()
    assert costs(tmp_path) == found
    # a new run does not inherit
    build(tmp_path, max_iterations=6, resume=False).run()
    assert len(costs(tmp_path)["sessions"]) == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"sessions": 3}', '{"sessions": [{"first": 1}]}'])
def test_a_damaged_file_is_begun_again(tmp_path, damage):
    first = build(tmp_path, max_iterations=6)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.terminate())
    first.run()
    (tmp_path / "costs.json").write_text(damage)
    build(tmp_path, max_iterations=6).run()
    assert [session["first"] for session in costs(tmp_path)["sessions"]] == [4]


def test_a_training_is_the_same_with_and_without(tmp_path, monkeypatch):
    build(tmp_path / "with", max_iterations=4).run()
    monkeypatch.setattr(TrainingCosts, "attach", lambda self, engine: None)
    build(tmp_path / "without", max_iterations=4).run()
    assert not (tmp_path / "without" / "costs.json").exists()
    one, two = content(tmp_path / "with"), content(tmp_path / "without")
    assert one["training.csv"] == two["training.csv"]
    assert all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())


def test_a_failing_training_leaves_its_costs_and_a_full_disk_stops_nothing(tmp_path, monkeypatch):
    def fail(engine):
        raise RuntimeError("no more")

    trainer = build(tmp_path / "a", max_iterations=4)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail)
    with pytest.raises(RuntimeError, match="no more"):
        trainer.run()
    assert costs(tmp_path / "a")["sessions"][0]["last"] == 2

    def full(path, text):
        raise OSError("disk full")

    monkeypatch.setattr(module, "write_text", full)
    trainer = build(tmp_path / "b", max_iterations=4)
    trainer.run()
    assert trainer.state.iteration == 4


def test_written_once_in_a_while(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    trainer = build(None, max_iterations=6)
    TrainingCosts(tmp_path, seconds=60).attach(trainer)
    seen = []

    def tick(engine):
        seen.append(costs(tmp_path)["sessions"][0]["last"] if (tmp_path / "costs.json").exists() else 0)
        now[0] += 35

    trainer.add_event_handler(Events.ITERATION_COMPLETED, tick)
    trainer.run()
    assert seen == [1, 1, 3, 3, 5, 5]
    assert costs(tmp_path)["seconds"] == 210

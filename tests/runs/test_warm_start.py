"""Warm start: which weights fit, what is refused, and that a run which began with them is one run of its own."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

import monai_ssl
from monai_ssl.bundle.library import available_bundles, bundles_root
from monai_ssl.errors import DataError
from monai_ssl.runs import load, warm_started
from monai_ssl.runs.warm_start import weights_file

TINY = {"dataset": "phantom", "epoch_length": 1, "val_interval": 9, "num_workers": 0, "amp": "off", "device": "cpu",
        "network_def#base_channels": 2, "check": False}  # fmt: skip


class Network(nn.Module):
    def __init__(self, classes=2, channels=1, dims=2):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.body = nn.Sequential(conv(channels, 4, 3), nn.BatchNorm2d(4) if dims == 2 else nn.BatchNorm3d(4))
        self.head = conv(4, classes, 1)


class Wrapper(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.backbone = network
        self.other = nn.Linear(2, 2)


def saved(tmp_path, content, name="weights.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def seeded(seed, build):
    torch.manual_seed(seed)
    return build()


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


OLD = seeded(1, Network).state_dict()
CONTAINERS = {
    "a state dict": OLD,
    "under model": {"model": OLD},
    "under state_dict, with other things": {"epoch": 3, "state_dict": OLD, "optimizer": {"state": {0: {"x": 1}}}},
    "of several processes": prefixed(OLD, "module."),
    "of several processes, under network_weights": {"network_weights": prefixed(OLD, "module.")},
    "a checkpoint of a run": {
        "iteration": 7,
        "method": {**prefixed(OLD, "network."), **prefixed(seeded(2, Network).state_dict(), "teacher.network.")},
    },
    "in half precision": {name: v.half() if v.is_floating_point() else v for name, v in OLD.items()},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_where_the_tensors_are(tmp_path, kind):
    network = warm_started(seeded(3, Network), saved(tmp_path, CONTAINERS[kind]))
    assert network.started_from.fitted == len(OLD)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, OLD[name], rtol=1e-3, atol=1e-3 if "half" in kind else 0)
    again = warm_started(Wrapper(seeded(3, Network)), saved(tmp_path, CONTAINERS[kind]))
    assert again.started_from.fitted == len(OLD)
    assert again.started_from.new == ("other.weight", "other.bias")


def test_what_fits_and_what_is_new(tmp_path):
    network, untouched = seeded(3, lambda: Network(3)), seeded(3, lambda: Network(3)).state_dict()
    file = saved(tmp_path, {**OLD, "gate.weight": torch.ones(2, 2)})
    state = warm_started(network, file).state_dict()
    assert torch.equal(state["body.0.weight"], OLD["body.0.weight"])
    assert torch.equal(state["head.weight"], untouched["head.weight"])
    assert str(network.started_from) == (
        f"init: 7 of 9 tensors begin as in {file}; 2 new: head (3 x 4 x 1 x 1, there 2 x 4 x 1 x 1); 3 of the file not "
        "used: head, gate"
    )


@pytest.mark.parametrize("wrapper", ["", "backbone."])
@pytest.mark.parametrize("n", [2, 4])
def test_of_an_ensemble_the_first_network(tmp_path, n, wrapper):
    prefixes = [f"members.{k}.{wrapper}" for k in range(n)]
    members = {f"{p}{name}": v for k, p in enumerate(prefixes) for name, v in seeded(k, Network).state_dict().items()}
    network = warm_started(seeded(9, Network), saved(tmp_path, members))
    assert f" (the first of the ensemble's {n} networks)" in str(network.started_from)
    assert network.started_from.fitted == len(OLD)
    for name, value in network.state_dict().items():
        assert torch.equal(value, members[prefixes[0] + name])
    plain = warm_started(seeded(9, Network), saved(tmp_path, {"model": OLD, "method": members}))
    assert "the first of the ensemble" not in str(plain.started_from)
    assert torch.equal(plain.state_dict()["head.weight"], OLD["head.weight"])


def test_the_report_says_when_little_fits(tmp_path, caplog):
    network = nn.ModuleDict({"body": Network().body, "more": nn.Linear(3, 3), "most": nn.Linear(3, 3)})
    warm_started(network, saved(tmp_path, OLD))
    assert "init: most weights of the network are new" in caplog.text


def test_nothing_is_nothing():
    network = nn.Linear(2, 2)
    assert warm_started(network, None) is network
    assert not hasattr(network, "started_from")


NAN = {name: value / 0 if value.is_floating_point() else value for name, value in OLD.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Network(dims=3).state_dict(), r"no weight of .* \(9 tensors, body\.0\.weight 4 x 1 x 3 x 3 x 3, \.\.\.\) fits "
         r"Network \(9 tensors, body\.0\.weight 4 x 1 x 3 x 3, \.\.\.\); name a run with the same kind of network"),
        (nn.Linear(3, 3).state_dict(), r"no weight of .* \(2 tensors, weight 3 x 3, \.\.\.\) fits Network"),
        ({"body.1.weight": torch.ones(4)}, "no weight of .* fits Network"),  # a scale alone says nothing
        ({}, r"no weight of .* \(no weight\) fits Network"),
        ([1, 2], r"no weight of .* \(no weight\) fits Network"),
        (NAN, r"the weights must be finite, got NaN or infinity in body\.0\.weight"),
        (Network(), "not a readable file of weights"),  # a pickled module
    ],
)  # fmt: skip
def test_weights_that_are_refused(tmp_path, content, message):
    network = seeded(3, Network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(DataError, match=message) as caught:
        warm_started(network, saved(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_places_without_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    for place, message in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "empty", r"holds no model\.pt"),
                           (tmp_path / "begun", "has no weights yet"), ("", "must be the folder of a run"),
                           (3, "must be the folder of a run")):  # fmt: skip
        with pytest.raises(DataError, match=f"init: .*{message}"):
            weights_file(place)
    with pytest.raises(DataError, match="not a readable file of weights"):
        warm_started(Network(), tmp_path / "text.pt")
    (tmp_path / "packaged" / "models").mkdir(parents=True)
    file = saved(tmp_path / "packaged" / "models", OLD, "model.pt")
    assert weights_file(tmp_path / "packaged") == file


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def floor(tiny_phantom, tmp_path_factory):
    """A supervised run."""
    folder = tmp_path_factory.mktemp("floor") / "a #1 run"
    return monai_ssl.train("supervised", tiny_phantom, output=folder, max_iterations=2, seed=3, **TINY)


# URPC trains another network: U-Net
@pytest.mark.parametrize("bundle", [name for name in available_bundles() if name != "urpc"])
def test_every_bundle_begins_with_weights_of_another_one(floor, bundle):
    """The teacher of a method, whichever it has, starts as a copy."""
    parser = ConfigParser()
    parser.read_config(str(bundles_root() / bundle / "configs" / "train.yaml"))
    own = {key: value for key, value in TINY.items() if key != "check"}
    parser.update({**own, "dataset_dir": "/nowhere", "init": "$" + repr(str(floor.folder)).replace("#", "\\x23")})
    method = parser.get_parsed_content("method")
    weights = load(floor.model)
    assert method.network.started_from.fitted >= len(weights) - 2  # a head may have another form
    name = next(name for name in weights if name.endswith("conv.weight"))
    state = method.state_dict()
    copies = [key for key in state if key.endswith(name) and key.startswith(("network.", "teacher.", "other."))]
    assert len(copies) == (2 if hasattr(method, "teacher") else 1)
    for key in copies:
        assert torch.equal(state[key], weights[name])


def test_a_run_that_began_with_weights_is_one_run(tiny_phantom, floor, tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def train(name, **options):
        steady = {"lr_scheduler#schedule": "constant", "lr_scheduler#warmup": 0.0}
        return monai_ssl.train("supervised", tiny_phantom, output=tmp_path / name, **options, **steady, **TINY)

    whole = train("whole", init=floor, max_iterations=3)
    assert f"init: 205 of 205 tensors begin as in {floor.model}" in caplog.text
    assert whole.record.overrides["init"] == str(floor.model)
    assert different(train("cold", max_iterations=3), whole)

    # continued, from a copy of the weights: the same bits, and nothing begins again
    copied = tmp_path / "copied elsewhere.pt"
    shutil.copy(floor.model, copied)
    train("part", init=floor.folder, max_iterations=2)
    caplog.clear()
    part = train("part", init=copied, max_iterations=3)
    assert "resumed from" in caplog.text
    assert "tensors begin as" not in caplog.text
    assert part.previous() == []
    assert not different(part, whole)


def different(one: monai_ssl.Run, other: monai_ssl.Run) -> bool:
    first, second = (load(run.checkpoint)["method"] for run in (one, other))
    assert first.keys() == second.keys()
    return any(isinstance(v, torch.Tensor) and not torch.equal(v, second[name]) for name, v in first.items())


def test_other_weights_make_another_run(tiny_phantom, floor, tmp_path, caplog):
    out, weights = tmp_path / "run", tmp_path / "weights.pt"
    shutil.copy(floor.model, weights)
    train = lambda init: monai_ssl.train(  # noqa: E731
        "supervised", tiny_phantom, output=out, init=init, max_iterations=1, **TINY
    )
    first = train(weights)
    for number, init in enumerate((None, weights), 1):
        caplog.clear()
        assert len(train(init).previous()) == number
        assert "belongs to another run: init: " in caplog.text
    changed = {name: value + 0.01 if value.is_floating_point() else value for name, value in load(weights).items()}
    torch.save(changed, weights)
    assert len(train(weights).previous()) == 3
    with pytest.raises(DataError, match="init: must be another run than the one that begins"):
        train(first)
    assert len(first.previous()) == 3


def test_what_follows_needs_the_weights_no_more(tiny_phantom, floor, tmp_path):
    weights = tmp_path / "weights.pt"
    shutil.copy(floor.model, weights)
    trained = monai_ssl.train("dtc", tiny_phantom, output=tmp_path / "run", init=weights, max_iterations=1, **TINY)
    weights.unlink()
    assert len(monai_ssl.evaluate(trained).dice) == 2
    assert monai_ssl.predict(trained, tiny_phantom / "images" / "testing_0000.nii.gz", tmp_path / "out").written == 1
    folder = monai_ssl.package(trained, tmp_path / "package", name="Tiny")
    assert "init: null" in (folder / "configs" / "train.yaml").read_text()
    assert str(tmp_path) not in (folder / "configs" / "train.yaml").read_text()
    with pytest.raises(DataError, match=r"init: .*weights\.pt does not exist"):
        monai_ssl.train("dtc", tiny_phantom, output=tmp_path / "run", init=weights, max_iterations=2, **TINY)


def test_an_app_of_monai_label_knows_the_weights_by_their_whole_path(floor, tmp_path, monkeypatch):
    monkeypatch.chdir(floor.folder.parent)
    app = monai_ssl.label_app(tmp_path / "app", ["supervised"], dataset="phantom", init=floor.folder.name)
    text = (app / "model" / "supervised" / "configs" / "train.yaml").read_text()
    parser = ConfigParser()
    parser.read_config(str(app / "model" / "supervised" / "configs" / "train.yaml"))
    assert parser.get_parsed_content("init") == str(floor.model)
    assert "init: null" not in text


@pytest.mark.slow
def test_monai_s_own_command(tiny_phantom, floor, tmp_path):
    weights = tmp_path / "weights.pt"
    shutil.copy(floor.model, weights)
    own = {key: value for key, value in TINY.items() if key != "check"}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", bundles_root() / "dtc/configs/train.yaml",
               "--dataset_dir", tiny_phantom, "--output_dir", tmp_path / "run", "--max_iterations", "1"]  # fmt: skip
    command += [word for key, value in own.items() for word in (f"--{key}", str(value))]
    done = subprocess.run([*map(str, command), "--init", str(weights)], capture_output=True, text=True, check=True)
    assert f"init: 203 of 207 tensors begin as in {weights}; 4 new: segmentation_head, distance_head" in (
        done.stdout + done.stderr
    )
    failed = subprocess.run([*map(str, command), "--init", "nowhere"], capture_output=True, text=True)
    assert failed.returncode != 0
    assert "does not exist; name the folder of a run" in failed.stderr
    assert "Traceback" not in failed.stderr

"""What makes two trainings the same run, through the config of a real bundle: nothing is trained here."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from monai_ssl.bundle.library import bundles_root
from monai_ssl.bundle.overrides import merged_config, with_fitting_arguments
from monai_ssl.data import Preset, load_preset
from monai_ssl.data.loading import load_datalist
from monai_ssl.runs import identity
from monai_ssl.runs.datasets import copy_preset

BASE = {"max_iterations": 24, "epoch_length": 4, "num_workers": 0, "amp": "off", "device": "cpu",
        "network_def#base_channels": 2}  # fmt: skip


@pytest.fixture(scope="module")
def original(tiny_phantom, tmp_path_factory):
    """Data and preset of the run to which all others are compared."""
    folder = tmp_path_factory.mktemp("original")
    copy_preset("phantom", folder / "organ.yaml", "practical")
    return SimpleNamespace(data=tiny_phantom, preset=folder / "organ.yaml", output=folder / "run")


def compared(former, data, preset, output, bundle="dtc", overrides=None, **more):
    """Differences that a training finds in a checkpoint; without one, what it would write into it."""
    parser = ConfigParser()
    parser.read_config([str(bundles_root() / bundle / "configs" / "train.yaml")])
    given = {"bundle_root": str(bundles_root() / bundle), "dataset": str(preset), "dataset_dir": str(data),
             "output_dir": str(output), **BASE, **(overrides or {}), **more}  # fmt: skip
    parser.update(with_fitting_arguments(merged_config(bundles_root() / bundle, ["train.yaml"]), given))
    trainer = parser.get_parsed_content("train#trainer")
    checkpoint = parser.get_parsed_content("train#handlers")[0]
    found = checkpoint._compare(trainer, former)
    return checkpoint._content if former is None else found


@pytest.fixture(scope="module")
def former(original):
    return compared(None, **vars(original))


def edited(preset: Path, target: Path, changes: dict) -> Path:
    content = yaml.safe_load(preset.read_text())
    for key, value in changes.items():
        *blocks, last = key.split("#")
        block = content
        for name in blocks:
            block = block.setdefault(name, {})
        block[last] = value
    target.write_text(yaml.safe_dump(content))
    return target


# ------------------------------------------------------------------------------------------------- another run

SETTINGS = [
    ({"seed": 1}, "seed: 0 -> 1"),
    ({"learning_rate": 0.5}, "learning_rate: 0.002 -> 0.5"),
    ({"method#variant": "paper"}, 'method#variant: "released" -> "paper"'),
    ({"method#slope": 100.0}, "method#slope: 1500.0 -> 100.0"),
    ({"method#unsupervised_weight": 0}, "method#unsupervised_weight: 1.0 -> 0"),
    ({"method#ramp_up": None}, "method#ramp_up: (not there) -> null"),  # an argument that the config leaves out
    ({"network_def#dropout": 0.1}, "network_def#dropout: null -> 0.1"),
    ({"network_def#base_channels": 4}, "network_def#base_channels: 2 -> 4"),
    ({"network_def#norm": "instance"}, 'network_def#norm: (not there) -> "instance"'),
    ({"accumulation_steps": 2}, "accumulation_steps: 1 -> 2"),
    ({"labeled_batch_size": 1}, "labeled_batch_size: 2 -> 1"),
    ({"unlabeled_batch_size": 1}, "unlabeled_batch_size: 2 -> 1"),
    ({"amp": "bf16"}, 'precision: "float32" -> "bfloat16"'),
    ({"ramp_iterations": 5}, "ramp_iterations: "),
    ({"optimizer#momentum": 0.5}, "optimizer#momentum: 0.9 -> 0.5"),
    ({"optimizer#algorithm": "sgd"}, 'optimizer#algorithm: "adamw" -> "sgd"'),
    ({"optimizer#amsgrad": True}, "optimizer#amsgrad: (not there) -> true"),
    ({"optimizer#_target_": "torch.optim.RMSprop"}, "optimizer#_target_: "),
    ({"lr_scheduler#schedule": "cosine"}, 'lr_scheduler#schedule: "poly" -> "cosine"'),
    ({"lr_scheduler#warmup": 0.1}, "lr_scheduler#warmup: 0.05 -> 0.1"),
    ({"train#trainer#clip_gradient_norm": 1.0}, "train#trainer#clip_gradient_norm: null -> 1.0"),
    ({"layout": "contiguous"}, 'layout: "channels_last" -> "contiguous"'),
    ({"train#trainer#channels_last_weights": False}, 'layout: "channels_last" -> "contiguous"'),
    ({"train#random_transforms": "$[]"}, "train#random_transforms: "),
    ({"unlabeled_datalist": "$@cases.unlabeled[:2]"}, "unlabeled cases: 3 cases -> 2"),
    ({"unlabeled_datalist": "$@cases.unlabeled[::-1]"}, "unlabeled cases: another order of the same cases"),
    ({"initialize#1": "$torch.use_deterministic_algorithms(True)"}, "initialize#1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "named"), SETTINGS, ids=[next(iter(change)) for change, _ in SETTINGS])
def test_a_setting_that_decides_the_result_makes_another_run(original, former, change, named):
    found = compared(former, **vars(original), **change)
    assert any(text.startswith(named) for text in found), found
    # told once, by the id that was given; another optimizer also lacks an argument
    assert len(found) == 1 + ("unlabeled_datalist" in change) + ("optimizer#_target_" in change), found


PRESETS = [
    ({"patch_size": [32, 32, 32]}, "preset#patch_size"),
    ({"intensity#policy": "minmax"}, "preset#intensity#policy"),
    ({"orientation": "LPS"}, 'preset#orientation: "RAS" -> "LPS"'),
    ({"spacing": [3.0, 3.0, 3.0]}, "preset#spacing"),
    ({"augmentation#policy": "none"}, 'preset#augmentation#policy: "practical" -> "none"'),
    ({"augmentation#scale": 0.2}, "preset#augmentation#scale: 0.1 -> 0.2"),
    ({"center_crop": [50.0, None, None]}, "preset#center_crop"),
    ({"training#momentum": 0.5}, "optimizer#momentum: 0.9 -> 0.5"),
    ({"labels": {0: "background", 1: "other"}}, 'preset#labels#1: "left atrium" -> "other"'),
    ({"window#overlap": 0.7}, "preset#window#overlap: "),
]


@pytest.mark.parametrize(("change", "named"), PRESETS, ids=[next(iter(change)) for change, _ in PRESETS])
def test_another_preset_of_the_same_name_makes_another_run(original, former, tmp_path, change, named):
    preset = edited(original.preset, tmp_path / original.preset.name, change)
    found = compared(former, original.data, preset, original.output)
    assert any(text.startswith(named) for text in found), found


def test_another_bundle_is_another_run(original, former):
    found = compared(former, **vars(original), bundle="mean_teacher")
    assert 'method: "DualTaskConsistency" -> "MeanTeacher"' in found


# ------------------------------------------------------------------------------------------------- other data


@pytest.fixture
def copied(original, tmp_path):
    """The same data elsewhere, with times of their own."""
    shutil.copytree(original.data, tmp_path / "elsewhere" / "scans", copy_function=shutil.copyfile)
    return tmp_path / "elsewhere" / "scans"


def rewritten(file: Path, keep_times: bool) -> None:
    """Another content of the same size, under the same name."""
    state = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if keep_times:
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [False, True])
@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("images/labeled_0001.nii.gz", "labeled cases: the image of labeled_0001 has changed"),
        ("labels/labeled_0001.nii.gz", "labeled cases: the label of labeled_0001 has changed"),
        ("images/unlabeled_0002.nii.gz", "unlabeled cases: the image of unlabeled_0002 has changed"),
        ("labels/validation_0000.nii.gz", "validation cases: the label of validation_0000 has changed"),
        ("images/validation_0000.nii.gz", "validation cases: the image of validation_0000 has changed"),
    ],
)
def test_other_content_under_the_same_name_makes_another_run(original, copied, file, named, keep_times):
    before = compared(None, copied, original.preset, original.output)
    rewritten(copied / file, keep_times)
    assert compared(before, copied, original.preset, original.output) == [named]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda lists: lists["training"].reverse(), "labeled cases: another order of the same cases"),
        (lambda lists: lists["unlabeled"].pop(), "unlabeled cases: 3 cases -> 2"),
        (lambda lists: lists["training"].pop(), "labeled cases: 2 cases -> 1"),
        (lambda lists: lists["validation"].pop(), "validation cases: 1 cases -> 0"),
    ],
)
def test_another_list_makes_another_run(original, former, tmp_path, change, named):
    lists = json.loads((original.data / "datalist.json").read_text())
    change(lists)
    (tmp_path / "datalist.json").write_text(json.dumps(lists))
    found = compared(former, **vars(original), datalist=str(tmp_path / "datalist.json"))
    assert found == [named]


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr"])
def test_voxels_beside_their_header_count(tmp_path, suffix):
    header, voxels = tmp_path / f"a{suffix}", tmp_path / "a.raw"
    header.write_text("ElementDataFile = a.raw\n")
    voxels.write_bytes(b"one")
    first, files = identity.digests({"x": [{"image": str(header)}]})
    assert identity.digests({"x": [{"image": str(header)}]}, files)[0] == first
    voxels.write_bytes(b"two")
    assert identity.digests({"x": [{"image": str(header)}]}, files)[0] != first


def test_images_are_read_once_as_long_as_nobody_touches_them(tmp_path, monkeypatch):
    cases = [{"image": str(tmp_path / "a"), "label": str(tmp_path / "l")}, {"image": str(tmp_path / "b")}]
    for name in "abl":
        (tmp_path / name).write_bytes(name.encode())
    found, files = identity.digests({"cases": cases})
    read = []
    original = identity._digest
    monkeypatch.setattr(identity, "_digest", lambda file: (read.append(Path(file).name), original(file))[1])
    assert identity.digests({"cases": cases}, files) == (found, files)
    assert read == ["l"]  # labels are what people edit
    os.utime(tmp_path / "a")
    assert identity.digests({"cases": cases}, files)[0] == found
    assert sorted(read) == ["a", "l", "l"]


# ------------------------------------------------------------------------------------------------- the same run

FREE = [
    {"max_iterations": 48},
    {"num_workers": 3},
    {"val_interval": 7},
    {"checkpoint_interval": 1, "checkpoint_minutes": 0.5},
    {"epoch_length": 6},
    {"flavor": "practical"},
    {"learning_rate": 0.002},  # what it is anyway
    {"method#distance_weight": "$None"},
    {"optimizer#momentum": "$0.5 + 0.4"},
    {"amp": False},
    {"amp": "auto"},  # takes what the checkpoint has
    {"layout": "channels_last"},
    {"train#dataloader#num_workers": 2},
    {"device": torch.device("cpu")},
    {"finalize": ["$print('done')"]},
]


@pytest.mark.parametrize("change", FREE, ids=lambda change: next(iter(change)))
def test_what_decides_nothing_may_change(original, former, change):
    assert compared(former, **vars(original), **change) == []


def test_places_may_change(original, former, copied, tmp_path, monkeypatch):
    preset = shutil.copy(original.preset, tmp_path / original.preset.name)
    monkeypatch.chdir(copied.parent)
    assert compared(former, "scans", preset, "another run") == []


def test_both_doors_lead_to_the_same_run(original, former):
    """``monai-ssl train`` hands preset and cases on; MONAI's command lets the config load them."""
    handed = {"preset": load_preset(original.preset), "cases": load_datalist("datalist.json", original.data)}
    assert isinstance(handed["preset"], Preset)
    assert compared(former, **vars(original), overrides=handed) == []


def test_a_handler_that_only_tells_decides_nothing(original, former):
    parser = ConfigParser()
    parser.read_config([str(bundles_root() / "dtc" / "configs" / "train.yaml")])
    told = {"_target_": "MLFlowHandler", "tracking_uri": "x"}
    handlers = [*parser["train"]["handlers"], told]
    assert identity.settings(SimpleNamespaceParser({"train": {"handlers": handlers}}))[0] == {}
    other = {"_target_": "EarlyStopHandler", "patience": 3}
    found = identity.settings(SimpleNamespaceParser({"train": {"handlers": [*handlers, other]}}))[0]
    assert found == {"train#handlers#0#_target_": "EarlyStopHandler", "train#handlers#0#patience": 3}


def SimpleNamespaceParser(config):  # noqa: N802
    parser = ConfigParser(config)
    parser.parse()
    return parser


def test_identities_are_plain(former):
    assert json.loads(json.dumps(former)) == former


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [(1, 1.0, True), (1, True, False), (0, False, False), (float("nan"), float("nan"), True),
     ([1, [2]], [1, [2.0]], True), ([1], [1, 2], False), (None, 0, False), ({"a": 1}, {"a": True}, False),
     ("1", 1, False)],
)  # fmt: skip
def test_plain_values_are_equal_where_they_mean_the_same(a, b, equal):
    assert identity.same(a, b) is equal

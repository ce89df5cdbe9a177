"""The Python API as a notebook uses it, and what it shares with the command line."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import monai_ssl
from monai_ssl import cli
from monai_ssl.bundle import library, overrides
from monai_ssl.bundle.overrides import check_overrides, literal, merged_config
from monai_ssl.errors import DataError
from monai_ssl.runs import Run

TINY = {"dataset": "phantom", "max_iterations": 2, "epoch_length": 2, "val_interval": 9, "num_workers": 0, "amp": "off",
        "device": "cpu", "network_def#base_channels": 2}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return monai_ssl.train("dtc", tiny_phantom, output=tmp_path_factory.mktemp("api") / "run", **TINY)


def test_from_data_to_a_package_as_in_a_notebook(tiny_phantom, trained, tmp_path, capfd):
    split = monai_ssl.split(tiny_phantom, output=tmp_path / "list.json", n_labeled=2, n_testing=2, n_validation=1,
                            label_names={1: "left atrium"}, preset=tmp_path / "mine.yaml")  # fmt: skip
    assert split.path == tmp_path / "list.json"
    assert split.datalist.counts() == {"training": 2, "unlabeled": 3, "validation": 1, "testing": 2}
    assert split.preset == tmp_path / "mine.yaml"
    assert any(reason.startswith("patch_size") for reason in split.reasons)
    assert repr(split).startswith(f"Split({str(split.path)!r}, 2 training, 3 unlabeled")
    found = monai_ssl.check(tiny_phantom, split.path, dataset=split.preset)
    assert found.ok
    assert len(found) == len(found.warnings) > 0
    assert found[0].severity == "warning"
    assert monai_ssl.describe(tiny_phantom, output=tmp_path / "page.html").read_text().startswith("<!")

    assert trained.complete
    assert trained.iteration == 2
    assert trained.record.overrides["max_iterations"] == 2
    evaluation = monai_ssl.evaluate(trained)
    assert set(evaluation.dice) == {"testing_0000", "testing_0001"}
    assert evaluation.page.is_file()
    mean = np.mean(list(evaluation.dice.values()))
    assert repr(evaluation) == f"Evaluation({str(evaluation.folder)!r}, Dice {mean:.4f}, n = 2)"
    assert "left atrium: Dice" in evaluation._repr_html_()
    predictions = monai_ssl.predict(trained, tiny_phantom / "images" / "testing_0000.nii.gz", tmp_path / "out")
    assert (predictions.written, predictions.reused) == (1, 0)
    assert (tmp_path / "out" / "testing_0000_seg.nii.gz").is_file()
    assert monai_ssl.predict(trained, tiny_phantom / "images" / "testing_0000.nii.gz", tmp_path / "out").reused == 1
    scored = monai_ssl.evaluate(predictions=evaluation.folder / "predictions", dataset_dir=tiny_phantom,
                                dataset="phantom", output=tmp_path / "scores", against=evaluation.folder)  # fmt: skip
    assert scored.dice == evaluation.dice
    page = monai_ssl.report(tmp_path / "both.html", scored, floor=evaluation)
    assert "Comparison" in page.read_text()
    assert capfd.readouterr().out == ""  # functions return, commands print


def test_a_run_is_resumed_and_a_path_is_as_good_as_the_run(trained, tiny_phantom):
    before = trained.model.read_bytes()
    again = monai_ssl.train("dtc", str(tiny_phantom), output=str(trained.folder), **TINY)
    assert again.folder == trained.folder
    assert trained.model.read_bytes() == before
    assert not trained.previous()
    assert monai_ssl.evaluate(str(trained.folder), "validation").folder == trained.folder / "evaluation-validation"


def test_what_the_command_line_says_is_heard_by_who_listens(tiny_phantom, trained, caplog):
    with caplog.at_level(logging.INFO, "monai_ssl.console"):
        monai_ssl.train("dtc", tiny_phantom, output=trained.folder, **TINY)
    said = [record.getMessage() for record in caplog.records if record.name == "monai_ssl.console"]
    assert said[0].startswith("dtc: phantom (practical), 2 training, 3 unlabeled")
    assert any(line.startswith("warning: training: ") for line in said)


def test_a_notebook_is_left_in_peace(tiny_phantom, tmp_path):
    """In a process of its own: MONAI's handlers hold the streams that were there when it was imported."""
    code = f"import monai_ssl, sys; monai_ssl.train('dtc', sys.argv[1], output=sys.argv[2], check=False, **{TINY})"
    command = [sys.executable, "-W", "always", "-c", code, str(tiny_phantom), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "input summary" not in done.stderr
    assert "parsing config_file" not in done.stderr
    assert "Logging file" not in done.stderr


def test_the_noted_command_trains_the_same(trained, tiny_phantom, tmp_path):
    words = shlex.split(trained.record.command)
    assert words[:3] == ["monai-ssl", "train", "dtc"]
    given = cli.parse(cli.COMMANDS["train"], words[2:])
    assert Path(given["output"]) == trained.folder
    assert Path(given["dataset_dir"]) == tiny_phantom
    assert {key: given[key] for key in TINY} == TINY


@pytest.mark.parametrize("name", ["run#1", "a@b", "50%", "x::y", "it's"])
def test_paths_reach_the_code_as_typed(name, tiny_phantom, tmp_path):
    run = monai_ssl.train("supervised", tiny_phantom, output=tmp_path / name / "run", check=False, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert run.model.is_file()
    results = monai_ssl.evaluate(run).folder
    assert results == tmp_path / name / "run" / "evaluation-testing"
    assert (results / "predictions").is_dir()
    images = tmp_path / name / "images"
    images.mkdir()
    os.link(tiny_phantom / "images" / "testing_0000.nii.gz", images / "testing_0000.nii.gz")
    assert monai_ssl.predict(run, images, tmp_path / name / "out").written == 1
    assert (tmp_path / name / "out" / "testing_0000_seg.nii.gz").is_file()


def test_a_literal_is_the_path(tmp_path):
    for text in ("/a/b", "/a#b/@c", "/50%/x::y", "/it's/$x", "C:\\Users\\x"):
        value = literal(text)
        assert not any(character in value[1:] for character in "#@%:$")
        assert (eval(value[1:]) if value.startswith("$") else value) == text


def test_yaml_is_parsed_once_and_preset_and_datalist_are_loaded_once(tiny_phantom, tmp_path, monkeypatch):
    loads: dict[str, int] = {}

    def counting(module: str, name: str) -> None:
        home = importlib.import_module(module)
        original = getattr(home, name)

        def counted(*args: object, **kwargs: object) -> object:
            loads[name] = loads.get(name, 0) + 1
            return original(*args, **kwargs)

        monkeypatch.setattr(home, name, counted)
        if hasattr(monai_ssl.data, name):
            monkeypatch.setattr(monai_ssl.data, name, counted)

    counting("monai_ssl.data.preset", "load_preset")
    counting("monai_ssl.data.loading", "load_datalist")
    overrides._parsed.cache_clear()
    monai_ssl.train("dtc", tiny_phantom, output=tmp_path / "run", check=False, **TINY)
    assert loads == {"load_preset": 1, "load_datalist": 1}
    assert overrides._parsed.cache_info().misses == 1  # MONAI's own reading comes on top


def test_a_bundle_that_loads_its_preset_in_its_own_way_keeps_it(tiny_phantom, tmp_path):
    folder = library.copy_bundle("supervised", tmp_path / "mine")
    config = folder / "configs" / "train.yaml"
    text = config.read_text()
    changed = text.replace(
        "load_preset(@dataset, @flavor, @literature)", "load_preset(@dataset, @flavor, patch_size=[16, 16, 16])"
    )
    assert changed != text
    config.write_text(changed)
    settings = {**TINY, "labeled_batch_size": 4}
    run = monai_ssl.train(folder, tiny_phantom, output=tmp_path / "run", check=False, **settings)
    assert run.complete
    assert merged_config(folder, ["train.yaml"])["preset"].endswith("patch_size=[16, 16, 16])")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resume": "false"}, "--resume: must be true or false, got 'false'"),
        ({"resume": 0}, "--resume: must be true or false, got 0"),
        ({"method#auxiliary#attention": "off"}, "--method#auxiliary#attention: must be true or false, got 'off'"),
        ({"method#auxiliary#attention": None}, "--method#auxiliary#attention: must be true or false, got None"),
        ({"methode": 1}, "--methode: no such id in the bundle's configs; did you mean method?"),
        ({"train#trainer#nothing#deep": 4}, "--train#trainer#nothing#deep: no such id"),
    ],
)
def test_a_boolean_is_true_or_false(given, message):
    with pytest.raises(DataError, match=re.escape(message)):
        check_overrides(library.find_bundle("caml"), ["train.yaml"], given)


def test_other_values_pass(tmp_path):
    folder = library.find_bundle("caml")
    check_overrides(folder, ["train.yaml"], {"resume": False, "method#auxiliary#attention": False, "amp": "off",
                                             "method#unsupervised_weight": 0, "train::trainer::amp": "@amp",
                                             "checkpoint_interval": "$1 + 2", "method#ramp_step": None,
                                             "method#bank_capacity": None, "lr_scheduler": None})  # fmt: skip


def test_arguments_are_those_of_the_class_that_is_named(tmp_path):
    """Also where the same command names another class, or replaces the whole block."""
    folder = library.find_bundle("dtc")
    own = {"network_def#_target_": "monai.networks.nets.SegResNet", "network_def#init_filters": 8}
    check_overrides(folder, ["train.yaml"], own)
    check_overrides(folder, ["train.yaml"], {key.replace("#", "::"): value for key, value in own.items()})
    check_overrides(folder, ["train.yaml"], {"network_def": {"_target_": "my.Net"}, "network_def#anything": 8})
    check_overrides(folder, ["train.yaml"], {"network_def#_target_": "my.Net", "network_def#anything": 8})
    with pytest.raises(DataError, match="--network_def#init_filters: is no argument of "):
        check_overrides(folder, ["train.yaml"], {"network_def#init_filters": 8})


def test_old_spelling_is_read_with_a_warning(tiny_phantom, tmp_path):
    with pytest.warns(UserWarning, match="flavour is now spelled flavor"):
        run = monai_ssl.train(
            "supervised", tiny_phantom, output=tmp_path / "r", check=False, flavour="literature", **TINY
        )
    assert run.record.flavor == "literature"
    assert run.record.overrides["flavor"] == "literature"
    with pytest.raises(DataError, match="--flavour: is the old spelling of --flavor, which is given, too"):
        monai_ssl.train("supervised", tiny_phantom, flavour="literature", flavor="practical", **TINY)


# --------------------------------------------------------------------------------- one list of arguments for both doors


def test_tab_shows_functions_and_rooms():
    shown = [name for name in dir(monai_ssl) if not name.startswith("_")]
    assert {"train", "evaluate", "predict", "check", "describe", "split", "prepare", "package", "report"} < set(shown)
    assert {"data", "methods", "networks", "losses", "runs", "curation"} < set(shown)
    for name in shown:
        assert getattr(monai_ssl, name) is not None
    assert set(monai_ssl.__all__) == set(monai_ssl._HOMES) <= set(shown)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = monai_ssl.nonsense


@pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=lambda command: command.name)
def test_every_argument_is_typed_and_explained(command):
    function = command.function
    documentation = inspect.getdoc(function) or ""
    assert function.__annotations__.keys() >= {*inspect.signature(function).parameters, "return"}
    for name, parameter in command.parameters.items():
        key = f"**{name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        assert f"\n    {key}: " in documentation, f"{command.name}: {key} is not in the docstring"
    assert command.name == "list" or "Returns:" in documentation


def test_commands_are_functions_of_the_api():
    names = {command.function.__name__ for command in cli.COMMANDS.values()}
    of_the_shell = {"completion", "copy_bundle", "list_all", "new_method"}
    assert set(monai_ssl.__all__) - {"DataError", "Run"} == names - of_the_shell


# -------------------------------------------------------------------------------------------------- the door of MONAI


def bundle_run(tiny_phantom: Path, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    folder = library.find_bundle("supervised")
    options = {"dataset_dir": str(tiny_phantom), "output_dir": str(output), **TINY}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(folder / "configs" / "train.yaml"),
               "--bundle_root", str(folder), "--logging_file", str(folder / "configs" / "logging.conf"),
               *(word for key, value in options.items() for word in (f"--{key}", str(value))), *words]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True)


def test_monai_bundle_run_says_where_the_weights_are_and_respects_the_lock(tiny_phantom, tmp_path):
    done = bundle_run(tiny_phantom, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"weights: {tmp_path / 'run' / 'model.pt'}" in done.stdout + done.stderr
    before = (tmp_path / "run" / "model.pt").read_bytes()
    with Run(tmp_path / "run").locked():
        refused = bundle_run(tiny_phantom, tmp_path / "run", "--seed", "1")
    assert refused.returncode != 0
    assert "another training writes to" in refused.stderr
    assert (tmp_path / "run" / "model.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("previous-*"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_lock_is_held_while_data_are_read(tiny_phantom, tmp_path, monkeypatch):
    seen = []

    def reading(cases: object, preset: object, memory: object, pool: bool, pseudo_labels: object) -> None:
        assert not pool  # of no use to this method
        with pytest.raises(DataError, match="another training") as caught:
            _in_thread(lambda: Run(tmp_path / "run").acquire())
        seen.append(str(caught.value))
        raise DataError("enough")

    monkeypatch.setattr("monai_ssl.runs.train.verified", reading)
    with pytest.raises(DataError, match="enough"):
        monai_ssl.train("supervised", tiny_phantom, output=tmp_path / "run", **TINY)
    assert seen
    assert not (tmp_path / "run").exists()


def _in_thread(function):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_records_are_json(trained):
    content = json.loads((trained.folder / "run.json").read_text())
    stated = "bundle overrides dataset flavor dataset_dir datalist max_iterations status command versions machine"
    assert set(content) == {*stated.split(), "precision", "repeat"}


def test_null_replaces_a_value_of_the_config(tiny_phantom, tmp_path):
    """MONAI takes None for "not given"."""
    given: dict[str, object] = {**TINY, "output": tmp_path / "run", "check": False, "protocol": None}
    with pytest.raises(DataError, match="NoneType"):
        monai_ssl.train("dtc", tiny_phantom, **given)

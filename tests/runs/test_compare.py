"""`monai-ssl compare`: what a study file may say, which trainings it needs, and that it ends the same anyhow."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import fails, run

import monai_ssl.runs
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.loading import load_datalist
from monai_ssl.errors import DataError
from monai_ssl.runs.study import cases as study_cases
from monai_ssl.runs.study import local, work
from monai_ssl.runs.study.plan import make_plan
from monai_ssl.runs.study.settings import checked, read_study
from monai_ssl.runs.study.tasks import State, Task, done, read_task
from monai_ssl.weights import content_digest, load

TINY = {"max_iterations": 2, "epoch_length": 2, "val_interval": 9, "num_workers": 0, "amp": "off", "device": "cpu",
        "network_def#base_channels": 2}  # fmt: skip


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """2 labeled, 2 unlabeled whose labels are known, 1 validation, 2 test scans."""
    from monai_ssl.curation.phantom.dataset import write_phantom

    folder = tmp_path_factory.mktemp("heart scans")
    sizes = {"n_labeled": 2, "n_unlabeled": 2, "n_validation": 1, "n_testing": 2}
    write_phantom(folder, **sizes, spacing=5.0, progress=False, reference_labels=True)
    return folder


@pytest.fixture
def inline(monkeypatch):
    """Runs in this process, one after the other; returns the names of those that were worked on."""
    worked = []

    def run_here(tasks, study, given):
        outcome = local.Outcome()
        for task in [task for task in tasks if not done(task, study)]:
            worked.append(task.name)
            if status := work.work(study, task.name):
                outcome.failed[task.name] = f"{status} {State.read(task.folder(study)).error}"
        return outcome

    monkeypatch.setattr(local, "run_here", run_here)
    monkeypatch.setattr(work, "_say_into", lambda path: None)
    return worked


def settings(scans, **changes):
    content = {
        "data": {"heart": {"scans": str(scans), "dataset": "phantom", "all_labels": "datalist_all_labels.json"}},
        "methods": ["dtc"], "options": TINY,
    }  # fmt: skip
    return checked(content | changes, "study.yaml")


def digest(weights):
    return content_digest(load(weights))


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sedes": [1]}, "sedes: unknown key; did you mean seeds?"),
        ({"data": {"a": {"scans": "x", "datlist": "y"}}}, "data.a.datlist: unknown key; did you mean datalist?"),
        ({"methods": {"a": {"method": "dtc", "option": {}}}}, "methods.a.option: unknown key; did you mean options?"),
        ({"splits": {"number": 2, "n_test": 3}}, "splits.n_test: unknown key; did you mean n_testing?"),
        ({"references": "flor"}, "must be of floor, matched_floor, ceiling, no_pool, oracle, got 'flor'; did you mean"),
        ({"section": "test"}, "section: must be of validation, testing, training, got 'test'; did you mean testing?"),
        ({"seeds": "0,a"}, "seeds.1: must be an integer, got 'a'"),
        ({"seeds": "one"}, "study.yaml: seeds.0: must be an integer, got 'one'"),
        ({"seeds": ","}, "seeds: must not be empty, got none"),
        ({"labels": "1.5"}, "labels.0: must be an integer, got '1.5'"),
        ({"folds": 1}, "folds: must be at least 2, got 1"),
        ({"splits": 8}, "splits: must be a mapping of names to values, got 8"),
        ({"options": [1]}, "options: must be a mapping of names to values, got [1]"),
        ({"methods": {"dtc": {"seeds": [0, 0]}}}, "methods.dtc.seeds: must differ, got 0, 0"),
        ({"methods": {"dtc": {"seeds": [-1]}}}, "methods.dtc.seeds: must be from 0"),
        ({"methods": {"dtc": {"labels": [0]}}, "labels": [2]}, "methods.dtc.labels: must be at least 1, got 0"),
        (
            {"methods": {"dtc": {"labels": [9]}}, "labels": [2, 4]},
            "labels: must be among those of the study (2, 4), got 9",
        ),
        ({"methods": {"dtc": {"flavors": ["x"]}}, "flavors": ["y"]}, "must be among those of the study (y), got x"),
        ({"data": {"a": {"scans": "x", "labels": [2, 2]}}}, "data.a.labels: must differ, got 2, 2"),
        ({"seeds": [1, 1]}, "seeds: must differ, got 1, 1"),
        ({"labels": [0]}, "labels: must be at least 1, got 0"),
        ({"methods": ["dtc", "dtc"]}, "must differ, got dtc, dtc"),
        ({"methods": {"floor": {"method": "dtc"}}}, "floor is the name of a reference"),
        ({"options": {"seed": 3}}, "options: seed: give seeds"),
        ({"methods": {"a b": {"method": "dtc"}}}, "a name must be letters, digits"),
        ({"weights": "best", "section": "validation"}, "they cannot be scored on it"),
        ({"splits": {"number": 2, "n_testing": 1}}, "splits: need labels"),
        ({"splits": {"number": 2, "n_testing": 0}, "labels": [1]}, "n_testing must be at least 1"),
        ({"splits": {"number": 2, "n_testing": 1}, "labels": [1], "folds": 2}, "give one of the two"),
        ({"data": {}}, "data: must not be empty, got none"),
    ],
)
def test_mistakes_in_a_study_are_told_with_what_was_meant(change, told):
    content = {"data": {"a": {"scans": "x"}}, "methods": ["dtc"]}
    with pytest.raises(DataError) as caught:
        checked(content | change, "study.yaml")
    assert told in str(caught.value)
    assert str(caught.value).startswith("study.yaml: ")


def test_all_mistakes_are_told_at_once(scans, tmp_path):
    with pytest.raises(DataError, match=r"2 mistakes: section.*seeds\?"):
        checked({"data": {"a": {"scans": "x"}}, "methods": ["dtc"], "sedes": 1, "section": "x"}, "study.yaml")
    methods = {"a": {"method": "dtcc"}, "b": {"method": "dtc", "options": {"method#slop": 1}}}
    with pytest.raises(DataError) as caught:
        make_plan(settings(scans, methods=methods, options={"max_iteration": 2}), tmp_path)
    assert all(word in str(caught.value) for word in ("3 mistakes", "did you mean dtc?", "slope", "max_iterations?"))


def test_paths_of_a_study_file_are_relative_to_it_and_may_hold_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    file = tmp_path / "s.yaml"
    file.write_text("data: {a: {scans: $SCANS/a, dataset: my.yaml}, b: {scans: b, dataset: phantom}}\nmethods: [dtc]\n")
    data = read_study(file)["data"]
    assert data["a"] == {"scans": str(tmp_path / "elsewhere" / "a"), "dataset": str(tmp_path / "my.yaml")}
    assert data["b"] == {"scans": str(tmp_path / "b"), "dataset": "phantom"}
    monkeypatch.delenv("SCANS")
    with pytest.raises(DataError, match="the environment variable SCANS is not set"):
        read_study(file)


def _absolute(entry, folder):
    names = entry if isinstance(entry, dict) else {"image": entry}
    return {key: str(folder / value) for key, value in names.items()}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "must be a folder of scans, a study's folder or a STUDY.yaml"),
        (["SCANS", "--methods", "dtcc"], "did you mean dtc?"),
        (["SCANS", "--labels", "9"], "has 2 labeled scans for training, got 9"),
        (["SCANS", "--section", "tests"], "section: must be testing, validation or training"),
        (["SCANS", "--jobs", "-1"], "--jobs: must be an integer >= 0"),
        (["SCANS", "--n_testing", "2"], "--n_testing: goes with --splits"),
        (["SCANS", "--learning_rat", "1"], "did you mean learning_rate?"),
        (["SCANS", "--patch_size", "32"], "options: --patch_size: is a key of the preset, not an option"),
        (["SCANS", "--dataset", "phantoom"], "phantom"),
        (["SCANS", "--datalist", "none.json"], "none.json"),
        (["SCANS", "--quoted", "none.yaml"], "quoted: "),
        (["SCANS", "--rounds", "0"], "options: --rounds: must be an integer from 1 to 10, got 0"),
        (["SCANS", "--drop", "7"], "options: --drop: must be a share in [0, 1), got 7"),
        (["SCANS", "--methods", "cps", "--method#unsupervised_weight", "-1"], "unsupervised_weight: must be a finite"),
        (["SCANS", "--methods", "dtc", "--method#variant", "foo"], "methods.dtc: variant"),
        (["SCANS", "--methods", "ict", "--method#variant", "foo"], "is no argument of InterpolationConsistency"),
        (["SCANS", "--methods", "mc_net", "--network_def#decoders", "7"], "methods.mc_net: decoders"),
        (
            ["SCANS", "--methods", "cps", "--weights", "best", "--datalist", "no_validation.json"],
            "has no validation case",
        ),
        (["SCANS", "--methods", "cps", "--datalist", "bare_tests.json"], "'testing' has 2 cases without label"),
        (["SCANS", "--output", "file.txt"], "output: must be a folder, new or a study's, got the file"),
        (["SCANS", "--output", "other"], "other, which holds notes.txt; give another --output"),
        (["empty.yaml"], "must be a mapping of keys to values"),
        (["number.yaml"], "data.a.datalist: must be text, got 3"),
        (["idle.yaml"], "methods.dtc: none of its labels and flavors is one of the study"),
        (["precision.yaml"], "precision: --amp: must be auto"),
        (["SCANS", "--sedes", "1"], "unknown option --sedes; did you mean --seeds?"),
    ],
)
def test_mistakes_on_the_command_line(words, told, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = json.loads((scans / "datalist.json").read_text())
    here = {"dataset_dir": str(scans)}
    whole = {key: [_absolute(entry, scans) for entry in value] if isinstance(value, list) else value
             for key, value in cases.items()} | here  # fmt: skip
    bare = [{"image": entry["image"]} for entry in whole["testing"]]
    Path("no_validation.json").write_text(json.dumps(whole | {"validation": []}))
    Path("bare_tests.json").write_text(json.dumps(whole | {"validation": [], "testing": bare}))
    Path("other").mkdir()
    for name in ("other/notes.txt", "file.txt", "empty.yaml"):
        Path(name).write_text("")
    data = {"scans": str(scans), "dataset": "phantom"}
    for name, change in {
        "number": {"data": {"a": data | {"datalist": 3}}},
        "idle": {"methods": {"dtc": {"flavors": ["practical"]}}},
        "precision": {"precision": {"amp": "foo"}},
    }.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"data": {"a": data}, "methods": ["dtc"]} | change))
    words = [str(scans) if word == "SCANS" else word for word in words]
    given = [] if "--dataset" in words or words[0].endswith(".yaml") else ["--dataset", "phantom"]
    assert told in fails(capsys, "compare", *words, *given)
    assert not list(tmp_path.glob("studies/*/runs"))


def test_paths_of_the_command_hold_when_the_study_is_called_from_elsewhere(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("bundle", "cps", "mine") == 0
    (tmp_path / "lists").mkdir()
    cases = json.loads((scans / "datalist.json").read_text())
    (tmp_path / "lists" / "own.json").write_text(json.dumps(cases))
    (tmp_path / "quoted.yaml").write_text(
        "figures: [{title: CPS, dataset: phantom, n_labeled: 2, dice: 80.0, source: a paper}]\n"
    )
    words = ["--methods", "mine", "--datalist", "lists/own.json", "--quoted", "quoted.yaml"]
    assert run("compare", scans, "--dataset", "phantom", "--jobs", "0", *words) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run("compare", tmp_path / "studies" / scans.name, "--jobs", "0") == 0
    assert capsys.readouterr().out.count("mine-matched_floor") == 2


# ------------------------------------------------------------------------------------------------------- plan


def test_rows_and_what_they_learn_from(scans, tmp_path):
    study = settings(scans, methods=["dtc", "self_training"], references="all", labels=[1, 2], seeds=[0, 1])
    plan = make_plan(study, tmp_path)
    rows = {row.name: row for row in plan.rows}
    for n in (1, 2):
        assert (rows[f"dtc-n{n}"].n_labeled, rows[f"dtc-n{n}"].n_unlabeled) == (n, 4 - n)
        assert rows[f"dtc-n{n}-matched_floor"].of == rows[f"dtc-n{n}-no_pool"].of == f"dtc-n{n}"
        assert rows[f"floor-n{n}"].of == ""
        assert f"self_training-n{n}-oracle" in rows
        assert f"dtc-n{n}-oracle" not in rows
    assert rows["ceiling"].n_labeled == 4
    assert any("no oracle for dtc" in remark for remark in plan.remarks)
    lists = {n: load_datalist(tmp_path / "lists" / f"heart-n{n}.json", scans) for n in (1, 2)}
    assert lists[1].training == lists[2].training[:1]  # nested
    assert {"image": lists[2].training[1]["image"]} in lists[1].unlabeled
    no_pool = load_datalist(tmp_path / "lists" / "heart-n2-no_pool.json", scans)
    originals = [Path(entry["image"]).read_bytes() for entry in no_pool.training]
    assert [Path(entry["image"]).read_bytes() for entry in no_pool.unlabeled] == originals
    everything = load_datalist(tmp_path / "lists" / "heart-all.json", scans)
    assert (len(everything.training), len(everything.unlabeled)) == (4, 0)
    held = {entry["image"] for entry in (*everything.validation, *everything.testing)}
    assert not held & {entry["image"] for entry in everything.training}
    oracle = plan.tasks["self_training-n1-oracle-seed0"]
    assert len(list(Path(oracle.arguments["pseudo_labels"]).glob("*_seg.nii.gz"))) == 3
    assert plan.tasks["self_training-n1-matched_floor-seed0"].arguments["method#unsupervised_weight"] == 0
    assert plan.tasks["self_training-n1-seed1"].floor == "floor-n1-seed1"
    # its controls begin where its rounds do
    assert oracle.floor == plan.tasks["self_training-n1-matched_floor-seed0"].floor == "floor-n1-seed0"
    assert plan.tasks["dtc-n1-matched_floor-seed0"].floor == ""


def test_controls_of_a_self_training_begin_where_its_rounds_do(scans, tmp_path):
    def planned(**options):
        methods = {"self_training": {"options": options}}
        return make_plan(settings(scans, methods=methods, references=["matched_floor"], labels=[1]), tmp_path)

    warm, cold = planned(), planned(warm_start=False)
    given = planned(init="weights.pt")  # the floor begins there, and the control with the floor
    assert given.tasks["self_training-matched_floor-seed0"].floor
    assert given.tasks["self_training-seed0-floor"].arguments["init"] == "weights.pt"
    assert not any("one round" in remark for remark in warm.remarks)
    assert any("one round of steps" in remark for remark in planned(rounds=2).remarks)
    floors = {name: task.floor for name, task in warm.tasks.items()}
    own = "self_training-seed0-floor"  # no row of its own shows a floor, and it is trained once all the same
    assert floors == {own: "", "self_training-seed0": own, "self_training-matched_floor-seed0": own}
    assert warm.tasks["self_training-seed0"].iterations == cold.tasks["self_training-seed0"].iterations / 2
    several = planned(networks=2)
    assert several.tasks["self_training-seed0"].floor == ""  # two of its own, of other seeds
    assert warm.shared == cold.shared == 0
    assert {task.floor for task in cold.tasks.values()} == {""}
    assert len({plan.tasks["self_training-matched_floor-seed0"].digest for plan in (warm, cold)}) == 2


def test_labels_beyond_those_of_a_row_are_no_missing_pool(scans, tmp_path, monkeypatch):
    """All labels are known: the check reads them all, and the pool is what a row leaves unlabeled."""
    from monai_ssl.runs import train
    from monai_ssl.runs.study import compare as command

    warned = []
    monkeypatch.setattr(train.console, "warning", lambda form, *values: warned.append(form % values))
    content = json.loads((scans / "datalist_all_labels.json").read_text())
    (tmp_path / "all.json").write_text(json.dumps({**content, "unlabeled": []}))
    data = {"scans": str(scans), "dataset": "phantom", "datalist": str(tmp_path / "all.json")}
    with pytest.raises(DataError, match="has no unlabeled image to learn from; give fewer labels"):
        make_plan(settings(scans, data={"heart": data}), tmp_path)
    plan = make_plan(settings(scans, data={"heart": data}, labels=[1]), tmp_path)
    command._check_data(plan, tmp_path)
    assert not [text for text in warned if "there are no unlabeled cases" in text]


def test_what_two_rows_share_is_trained_once(scans, tmp_path):
    methods = {"dtc": None, "same": {"method": "dtc", "options": {"method#variant": "released", "max_iterations": 2.0}},
               "other": {"method": "dtc", "options": {"network_def#dropout": 0.4}},
               "plain": {"method": "supervised"}}  # fmt: skip
    plan = make_plan(settings(scans, methods=methods, labels=[2]), tmp_path)
    task = {run.row: run.task for run in plan.runs}
    assert task["same"] == task["dtc"] == "dtc-seed0"
    assert task["same-matched_floor"] == task["dtc-matched_floor"]
    assert task["other"] == "other-seed0"
    assert task["plain"] == task["floor"]
    assert "plain-matched_floor" not in task
    assert len(plan.tasks) == 6
    assert plan.shared == 3


def test_a_matched_floor_that_several_methods_share_is_trained_once(scans, tmp_path):
    methods = {"dan": None, "mean_teacher": None, "ua_mt": None, "tcse": None, "ict": None,
               "gated": {"method": "dan", "options": {"network_def#gates": True}},
               "moved": {"method": "tcse", "options": {"method#transformed": "student"}},
               "bare": {"method": "mean_teacher", "options": {"method#include_background": False}}}  # fmt: skip
    plan = make_plan(settings(scans, methods=methods, labels=[2]), tmp_path)
    task = {run.row: run.task for run in plan.runs}
    shared = task["dan-matched_floor"]
    assert task["mean_teacher-matched_floor"] == task["tcse-matched_floor"] == shared
    assert len({task[name] for name in ("dan", "mean_teacher", "tcse")}) == 3
    # UA-MT leaves the background out in 3D, as one of the others does when told
    assert task["ua_mt-matched_floor"] == task["bare-matched_floor"] != shared
    for other in ("ict", "gated", "moved", "ua_mt"):
        assert task[f"{other}-matched_floor"] != shared


def test_the_preset_of_a_row_is_that_of_its_methods_paper():
    """SS-Net's paper keeps the largest component, the others do not: a page says that the two differ."""
    from monai_ssl.bundle.library import find_bundle
    from monai_ssl.bundle.overrides import merged_config
    from monai_ssl.data import load_preset
    from monai_ssl.runs.study.identity import resolved

    found = {}
    for flavor in ("literature", "practical"):
        preset = load_preset("left_atrium", flavor)
        for name in ("ss_net", "dtc"):
            config = merged_config(find_bundle(name), ["train.yaml"])
            found[flavor, name] = resolved(config, preset)["preset"]
    assert found["literature", "ss_net"] == {**found["literature", "dtc"], "largest_component": True}
    assert not found["literature", "dtc"]["largest_component"]
    assert found["practical", "ss_net"] == found["practical", "dtc"]


def test_the_identity_is_the_content(scans, tmp_path):
    def digests(**changes):
        return {name: task.digest for name, task in make_plan(settings(scans, **changes), tmp_path).tasks.items()}

    first = digests()
    assert digests() == first
    assert digests(options={**TINY, "num_workers": 2, "checkpoint_interval": 1}) == first
    changed = digests(options={**TINY, "method#slope": 9})
    assert changed["dtc-seed0"] != first["dtc-seed0"]
    assert changed["floor-seed0"] == first["floor-seed0"]
    assert digests(section="validation")["dtc-seed0"] == first["dtc-seed0"]
    assert digests(weights="best")["dtc-seed0"] != first["dtc-seed0"]


def test_variants_flavors_and_methods_of_their_own(scans, tmp_path):
    methods = {"dtc": {"title": "DTC", "seeds": [3], "flavors": ["practical"]}, "tac": {"references": []}}
    variants = {"small": {}, "wide": {"network_def#base_channels": 4}}
    study = settings(scans, methods=methods, variants=variants, flavors=["literature", "practical"], labels=[2])
    plan = make_plan(study, tmp_path)
    names = [row.name for row in plan.rows]
    assert "dtc-practical-wide-matched_floor" in names
    assert not any(name.startswith("dtc-literature") for name in names)
    assert {"tac-literature-small", "floor-practical-wide", "ceiling-practical-wide"} <= set(names)
    assert "floor-literature-wide" not in names  # nobody there asks for one
    assert [run.seed for run in plan.runs if run.row == "dtc-practical-wide"] == [3]
    wide = next(row for row in plan.rows if row.name == "dtc-practical-wide")
    network = wide.settings["network"].split()[:3]
    assert (wide.title, network) == ("DTC [wide]", ["literature_dual_task_network", "base_channels", "4"])


def test_folds_score_every_labeled_case_once():
    entries = [{"image": f"/d/{name}.nii", "label": f"/d/{name}_seg.nii"} for name in "abcdefg"]
    found = study_cases.folded(Datalist(training=entries[:5], validation=entries[5:]), 3, "validation")
    assert [name for name, _ in found] == ["fold1", "fold2", "fold3"]
    scored = [entry for _, cases in found for entry in cases.validation]
    assert sorted(map(str, scored)) == sorted(map(str, entries))
    for _, fold in found:
        assert not [entry for entry in fold.training if entry in fold.validation]
        assert fold.training == [entry for entry in entries if entry in fold.training]
    with pytest.raises(DataError, match="4 folds need 8 labeled cases, got 7"):
        study_cases.folded(Datalist(training=entries), 4, "validation")


def test_what_the_folds_of_a_study_share_is_said_once(scans, tmp_path, monkeypatch, caplog):
    from monai_ssl.runs import train
    from monai_ssl.runs.study import compare as command

    def verified(cases, preset, pool):
        train.console.warning("the pool holds %d scans", 5)
        train.console.warning("%d scans learn", len(cases.training))

    monkeypatch.setattr(train, "verified", verified)
    monkeypatch.setattr(train.console, "propagate", True)
    plan = make_plan(settings(scans, splits={"number": 3, "n_testing": 2}, labels=[2]), tmp_path)
    lists = [cases for _, cases in plan.lists]
    assert len(lists) > 1
    with caplog.at_level("WARNING", train.console.name):
        command._check_data(plan, tmp_path)
    assert caplog.messages.count("the pool holds 5 scans") == 1
    assert len(set(caplog.messages)) == len(caplog.messages) > 1
    train.console.warning("the pool holds %d scans", 5)  # of another command: it is heard
    assert caplog.messages.count("the pool holds 5 scans") == 2


def test_random_splits_and_an_index_of_folds(scans, tmp_path):
    splits = {"number": 3, "n_testing": 2, "n_validation": 1}
    plan = make_plan(settings(scans, splits=splits, labels=[1, 2], methods=["dtc"]), tmp_path)
    drawn = []
    for number in range(3):
        one, two = (load_datalist(tmp_path / "lists" / f"heart-split{number}-n{n}.json", scans) for n in (1, 2))
        assert one.testing == two.testing
        assert one.training == two.training[:1]
        assert (len(two.testing), len(two.validation), len(two.training)) == (2, 1, 2)
        drawn.append(sorted(entry["image"] for entry in two.testing))
    assert len(set(map(tuple, drawn))) > 1
    assert {run.split for run in plan.runs} == {"split0", "split1", "split2"}
    index = {"folds": [{"fold": 1, "datalist": "datalist.json"}, {"fold": 2, "datalist": "datalist_all_labels.json"}]}
    (scans / "folds.json").write_text(json.dumps(index))
    data = {"heart": {"scans": str(scans), "dataset": "phantom", "datalist": "folds.json"}}
    plan = make_plan(settings(scans, data=data, methods=["supervised"], labels=[2]), tmp_path)
    assert {run.split for run in plan.runs} == {"fold1", "fold2"}


# ------------------------------------------------------------------------------------------------------- a study


def tiny(words):
    """Options of a tiny training that the words do not give themselves."""
    return [str(word) for key, value in TINY.items() if f"--{key}" not in words for word in (f"--{key}", value)]


def compare(scans, output, *words):
    given = ["--dataset", "phantom", "--all_labels", "datalist_all_labels.json", "--output", output]
    return run("compare", scans, *given, *tiny(words), *words)


@pytest.mark.slow
def test_a_study_from_beginning_to_end(scans, tmp_path, inline, capsys):
    output = tmp_path / "study"
    words = ["--methods", "dtc,self_training", "--references", "all", "--labels", "2", "--jobs", "1"]
    assert compare(scans, output, *words) == 0
    rows = ["floor", "dtc", "dtc-matched_floor", "dtc-no_pool", "self_training", "self_training-matched_floor",
            "self_training-no_pool", "self_training-oracle", "ceiling"]  # fmt: skip
    assert inline == [f"{row}-seed0" for row in rows]
    table = rows_of(output / "results" / "per_case.csv")
    assert {line["row"] for line in table} == set(rows)
    assert {line["case"] for line in table} == {"testing_0000", "testing_0001"}
    one = rows_of(output / "runs" / "dtc-seed0" / "evaluation-testing" / "per_case.csv")
    assert [line["dice"] for line in table if line["row"] == "dtc"] == [line["dice"] for line in one]
    runs = {line["row"]: line for line in rows_of(output / "results" / "runs.csv")}
    assert {line["state"] for line in runs.values()} == {"done"}
    assert float(runs["dtc"]["seconds"]) > 0
    assert int(runs["dtc"]["parameters"]) > 1000
    assert runs["dtc"]["precision"] == "float32"
    # the floor of the self-training is the study's
    floors = [output / "runs" / name / "model.pt" for name in ("floor-seed0", "self_training-seed0/floor")]
    assert floors[0].read_bytes() == floors[1].read_bytes()
    for name in ("self_training-matched_floor-seed0", "self_training-oracle-seed0"):
        record = json.loads((output / "runs" / name / "run.json").read_text())
        assert record["overrides"]["init"] == str(output / "runs" / name / "floor" / "model.pt")
        assert (output / "runs" / name / "floor" / "model.pt").read_bytes() == floors[0].read_bytes()
    stated = yaml.safe_load((output / "study.yaml").read_text())
    assert stated["options"]["max_iterations"] == 2
    assert Path(stated["data"][next(iter(stated["data"]))]["scans"]) == scans

    # again: nothing is trained, and the tables are the same to the byte
    before = {path: path.read_bytes() for path in (output / "results").glob("*.csv")}
    inline.clear()
    assert run("compare", output) == 0
    assert inline == []
    assert {path: path.read_bytes() for path in (output / "results").glob("*.csv")} == before

    # another option of one method: its runs alone are new; what is no longer in the study waits elsewhere, and returns
    changed = yaml.safe_load((output / "study.yaml").read_text())
    changed["methods"]["dtc"]["options"] = {"method#slope": 9.0}
    del changed["methods"]["self_training"]
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(changed))
    assert run("compare", file, "--output", output) == 0
    assert inline == ["dtc-seed0", "dtc-matched_floor-seed0", "dtc-no_pool-seed0"]
    assert {line["row"] for line in rows_of(output / "results" / "per_case.csv")} == {*rows[:4], "ceiling"}
    inline.clear()
    assert compare(scans, output, *words) == 0
    assert inline == []
    assert {path: path.read_bytes() for path in (output / "results").glob("*.csv")} == before
    capsys.readouterr()
    assert run("compare", output, "--jobs", 0) == 0
    assert "9 done, 0 to do" in capsys.readouterr().out

    # on another machine, without weights: what a report needs of a finished run is small
    kept = ("study_run.json", "run.json", "costs.json", "self_training.json", "*.csv", "evaluation-*")
    elsewhere = tmp_path / "another machine"
    for file in (path for name in kept for path in (output / "runs").rglob(name) if path.is_file()):
        (elsewhere / file.relative_to(output)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, elsewhere / file.relative_to(output))
    for folder in (output / "runs").rglob("evaluation-*"):
        shutil.copytree(folder, elsewhere / folder.relative_to(output), dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("predictions"))  # fmt: skip
    shutil.copyfile(output / "study.yaml", elsewhere / "study.yaml")
    assert not [*elsewhere.rglob("*.pt"), *elsewhere.rglob("*.nii.gz")]
    assert compare(scans, elsewhere, *words) == 0
    assert inline == []
    assert {path.name: path.read_bytes() for path in (elsewhere / "results").glob("*.csv")} == {
        path.name: content for path, content in before.items()
    }


def test_one_that_fails_is_reported_and_the_rest_goes_on(scans, tmp_path, inline, capsys, monkeypatch):
    from monai_ssl.runs import train as training

    trained = training.train

    def fail_once(bundle, *args, **options):
        if bundle == "dtc":
            raise DataError("the scans are gone")
        return trained(bundle, *args, **options)

    monkeypatch.setattr(training, "train", fail_once)
    output = tmp_path / "study"
    assert compare(scans, output, "--methods", "dtc", "--references", "floor") == 1
    said = capsys.readouterr()
    assert "failed: dtc-seed0: 2 the scans are gone" in said.err
    assert {line["row"]: line["state"] for line in rows_of(output / "results" / "runs.csv")} == {
        "floor": "done", "dtc": "failed"}  # fmt: skip
    assert {line["row"] for line in rows_of(output / "results" / "per_case.csv")} == {"floor"}
    monkeypatch.setattr(training, "train", trained)
    inline.clear()
    assert run("compare", output) == 0
    assert inline == ["dtc-seed0"]


def test_best_weights_are_picked_by_validation_and_scored_on_test(scans, tmp_path, inline):
    output = tmp_path / "study"
    words = ["--methods", "supervised", "--references", "none", "--weights", "best", "--val_interval", "1"]
    assert compare(scans, output, *words, "--max_iterations", "8", "--epoch_length", "2") == 0
    folder = output / "runs" / "supervised-seed0"
    dice = [float(line["val_mean_dice"]) for line in rows_of(folder / "validation.csv")]
    assert len(dice) == 4
    meta = json.loads((folder / "evaluation-testing-best" / "summary.json").read_text())["meta"]
    assert Path(meta["ckpt"]).name == "best.pt"
    best, last = (monai_ssl.runs.load(folder / name) for name in ("best.pt", "model.pt"))
    same = all(bool((best[key] == last[key]).all()) for key in last)
    assert same == (dice.index(max(dice)) == 3)


def test_two_at_once_in_one_folder_are_refused(scans, tmp_path, capsys):
    from filelock import FileLock

    output = tmp_path / "study"
    output.mkdir()
    with FileLock(str(output / ".lock")):
        told = fails(capsys, "compare", scans, "--dataset", "phantom", "--methods", "dtc", "--output", output)
    assert "another `monai-ssl compare` works in" in told


def test_bad_scans_are_found_before_the_first_training(scans, tmp_path, inline, capsys):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(scans, broken)
    label = next((broken / "labels").glob("labeled_0001*"))
    label.write_bytes(b"nothing")
    assert compare(broken, tmp_path / "study", "--methods", "dtc") == 2
    assert inline == []
    assert "labeled_0001" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- processes


def test_share_of_a_machine():
    share = local.Share(4, 1, ("0", "1"), 1)
    assert [share.visible(slot) for slot in range(4)] == ["0", "1", "0", "1"]
    assert local.Share(1, 1, ("4", "7"), 2).visible(0) == "4,7"
    assert local.Share(2, 1).visible(0) is None
    assert local.share(None, 1, 1, "cpu").jobs >= 1
    assert local.environment(local.Share(1, 3), 0)["OMP_NUM_THREADS"] == "3"


def test_memory_is_asked_before_a_run_begins(tmp_path, monkeypatch):
    tasks = [Task(name, "train", {}, name, "", "testing") for name in "ab"]
    State(digest="x", peak_memory=1000).write(tasks[0].folder(tmp_path))
    monkeypatch.setattr(local, "available_memory", lambda: 1050)
    working = [local._Working(tasks[0], None, 0, 0.0)]
    assert local._next(tasks[1:], [], tmp_path, local.Share(2, 1)) is tasks[1]  # alone it must try
    assert local._next(tasks[1:], working, tmp_path, local.Share(2, 1)) is None
    monkeypatch.setattr(local, "available_memory", lambda: 1200)
    assert local._next(tasks[1:], working, tmp_path, local.Share(2, 1)) is tasks[1]


def test_a_self_training_waits_for_its_floor(tmp_path):
    floor = Task("floor", "train", {}, "f", "", "testing")
    later = Task("self", "self_train", {}, "s", "", "testing", floor="floor")
    assert local._next([later, floor], [], tmp_path, local.Share(1, 1)) is floor
    assert local._next([later], [local._Working(floor, None, 0, 0.0)], tmp_path, local.Share(2, 1)) is None
    assert local._next([later], [], tmp_path, local.Share(1, 1)) is later


def tables_of(study):
    """What a report is made of, without what differs from start to start: seconds, memory, machine."""
    names = ("per_case.csv", "summary.csv", "comparisons.csv")
    return {name: (study / "results" / name).read_bytes() for name in names}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(scans, tmp_path, inline):
    """The whole study with SIGKILL, its runs with it, at five random moments; then the same command."""
    words = ["--methods", "dtc,self_training", "--references", "floor", "--seeds", "0,1,2",
             "--max_iterations", "40", "--epoch_length", "4", "--checkpoint_interval", "3"]  # fmt: skip
    assert compare(scans, tmp_path / "whole", *words) == 0
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "monai_ssl", "compare", str(scans), "--dataset", "phantom", "--all_labels",
               "datalist_all_labels.json", "--output", str(output), *tiny(words), *words, "--jobs", "2"]  # fmt: skip

    def logged():
        return sum(path.stat().st_size for path in output.glob("runs/**/training.csv"))

    rng, killed = random.Random(time.time_ns()), 0
    for _ in range(5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        begun = logged()
        while process.poll() is None and logged() <= begun:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed == 5
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert tables_of(output) == tables_of(tmp_path / "whole")
    models = {path.relative_to(output): digest(path) for path in output.glob("runs/**/model.pt")}
    assert len(models) >= 9
    assert models == {path: digest(tmp_path / "whole" / path) for path in models}


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(scans, tmp_path):
    plan = make_plan(settings(scans, references="none", options={**TINY, "max_iterations": 100000}), tmp_path)
    from monai_ssl.runs.study.tasks import write_plan

    write_plan(list(plan.tasks.values()), tmp_path)
    task = read_task(tmp_path, "dtc-seed0")
    process = local._start(task, tmp_path, local.Share(1, 1), 0)
    end = time.monotonic() + 120
    while not (task.folder(tmp_path) / "training.csv").is_file() and time.monotonic() < end:
        assert process.poll() is None, (task.folder(tmp_path) / "log.txt").read_text()
        time.sleep(0.1)
    process.stdin.close()  # as the system does when this process dies
    assert process.wait(timeout=30) == -signal.SIGKILL


# ------------------------------------------------------------------------------------------------------- clusters


def test_slurm_scripts_do_what_they_say(scans, tmp_path, capsys):
    output, bin_folder = tmp_path / "my study", tmp_path / "bin"
    words = ["--methods", "dtc", "--references", "floor", "--engine", "slurm"]
    assert compare(scans, output, *words) == 0
    said = capsys.readouterr().out
    assert f"next: bash '{output}/slurm/submit.sh'" in said
    bin_folder.mkdir()
    log = tmp_path / "submitted"
    (bin_folder / "sbatch").write_text(f'#!/bin/bash\necho "$@" >> {log}\necho "17;cluster"\n')
    (bin_folder / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", output / "slurm" / "submit.sh", "--partition", "gpu"], env=environment, check=True)
    first, second = log.read_text().splitlines()
    assert first == f"--parsable --partition gpu {output}/slurm/array.sh"
    assert second == f"--dependency=afterany:17 {output}/slurm/report.sh"
    script = (output / "slurm" / "array.sh").read_text()
    assert "#SBATCH --array=0-1" in script
    assert "--gres" not in script  # device cpu
    assert (output / "slurm" / "runs.txt").read_text().splitlines() == ["floor-seed0", "dtc-seed0"]
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0"}
    subprocess.run(["bash", output / "slurm" / "array.sh"], env=environment, check=True)
    subprocess.run(["bash", output / "slurm" / "report.sh"], env=environment, check=True)
    states = {line["row"]: line["state"] for line in rows_of(output / "results" / "runs.csv")}
    assert states == {"floor": "done", "dtc": "waiting"}


def test_without_ray_the_extra_is_named(scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    told = fails(capsys, "compare", scans, "--dataset", "phantom", "--methods", "dtc", "--engine", "ray", "--output",
                 tmp_path / "s", "--check", "false")  # fmt: skip
    assert 'pip install "monai_ssl[ray]"' in told


@pytest.mark.slow
def test_on_a_ray_cluster_a_lost_worker_takes_no_run_with_it(scans, tmp_path, inline):
    """Two workers on this machine; the process of one is killed in the middle of its run."""
    ray = pytest.importorskip("ray")
    from monai_ssl.runs.study.ray_cluster import run_on_ray
    from monai_ssl.runs.study.tasks import write_plan

    options = {**TINY, "max_iterations": 30, "epoch_length": 10, "checkpoint_interval": 3}
    plan = make_plan(settings(scans, references="floor", options=options), tmp_path / "a")
    tasks = list(plan.tasks.values())
    write_plan(tasks, tmp_path / "a")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    killed = []

    def kill_one():
        import psutil

        while not list((tmp_path / "a").glob("runs/*/checkpoint.pt")):
            time.sleep(0.05)
        for process in psutil.Process().children(recursive=True):
            if "ray::in_a_process" in " ".join(process.cmdline()):
                killed.append(process.pid)
                process.kill()
                return

    import threading

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        assert run_on_ray(tasks, tasks, tmp_path / "a", 1, 1, "cpu") == {}
    finally:
        thread.join()
        ray.shutdown()
    assert killed
    assert all(done(task, tmp_path / "a") for task in tasks)
    make_plan(settings(scans, references="floor", options=options), tmp_path / "b")
    write_plan(tasks, tmp_path / "b")
    for task in tasks:
        assert work.work(tmp_path / "b", task.name) == 0
        models = [digest(task.folder(tmp_path / place) / "model.pt") for place in "ab"]
        assert models[0] == models[1]
    for place in "ab":
        (tmp_path / place / "study.yaml").write_text(settings(scans, references="floor", options=options).text())
        assert run("compare", tmp_path / place, "--jobs", "0") == 0
    assert tables_of(tmp_path / "a") == tables_of(tmp_path / "b")


# ------------------------------------------------------------------------------------------------------- to look at


def test_progress_on_a_terminal_and_elsewhere(tmp_path):
    import io

    from monai_ssl.runs.study.progress import Progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    tasks = [Task(name, "train", {}, name, "", "testing", iterations=40) for name in ("dtc-seed0", "floor-seed0")]
    for stream in (Terminal(), io.StringIO()):
        with Progress(tasks, tmp_path, stream) as progress:
            progress.began(tasks[0])
            tasks[0].folder(tmp_path).mkdir(parents=True, exist_ok=True)
            (tasks[0].folder(tmp_path) / "training.csv").write_text("iteration,loss\n1,0.5\n10,0.4\n")
            progress._drawn -= 100
            progress.look(["dtc-seed0"], {})
            progress.ended(tasks[0])
            progress.failed(tasks[1], "no memory; see log.txt")
        said = stream.getvalue()
        assert "10/40" in said
        assert "FAILED: no memory; see log.txt" in said
        assert ("\x1b[" in said) == stream.isatty()
        assert ("0 done, 1 running, 1 waiting" in said) == stream.isatty()
        (tasks[0].folder(tmp_path) / "training.csv").unlink()


def test_progress_of_a_self_training_whose_floor_another_run_trained(tmp_path):
    import io

    from monai_ssl.runs.folder import RECORD
    from monai_ssl.runs.study.progress import Progress

    task = Task("self", "self_train", {}, "s", "", "testing", floor="floor", iterations=40)
    folder = task.folder(tmp_path)
    with Progress([task], tmp_path, io.StringIO()) as progress:
        assert progress._part("self") == "0/40"
        for made, place in ((40, "floor"), (0, "pseudo_labels-1")):
            (folder / place).mkdir(parents=True)
            (folder / place / RECORD).write_text("{}")
            (folder / place / "training.csv").write_text(f"iteration,loss\n{made},0.5\n")
        assert progress._part("self") == "labeling"
        (folder / "round-1").mkdir()
        (folder / "round-1" / RECORD).write_text("{}")
        for made, said in ((7, "7/40"), (40, "scoring")):
            (folder / "round-1" / "training.csv").write_text(f"iteration,loss\n{made},0.5\n")
            assert progress._part("self") == said


@pytest.mark.slow
def test_dry_run_tells_how_long_it_takes_and_trains_nothing(scans, tmp_path, capsys):
    output = tmp_path / "study"
    words = ["--methods", "dtc", "--references", "none", "--max_iterations", "500", "--dry_run"]
    assert compare(scans, output, *words) == 0
    said = capsys.readouterr().out
    assert "1 training, 0 done, 1 to do, 500 iterations" in said
    assert "s a step" in said
    assert "at once" in said
    assert not (output / "runs").exists()


def test_a_probe_measures_steps_and_scores(scans, tmp_path):
    from monai_ssl.runs.study.probe import Speed, probe

    options = {key: value for key, value in TINY.items() if key not in ("max_iterations", "epoch_length")}
    plan = make_plan(settings(scans, references="none", options=options), tmp_path)
    found = probe(plan.tasks["dtc-seed0"], tmp_path / "probe")
    assert isinstance(found, Speed)
    assert min(found.step, found.score, found.setup) > 0

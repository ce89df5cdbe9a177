"""The command line as its users meet it: what it prints, what it writes, how it fails."""

from __future__ import annotations

import csv
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_ssl import cli
from monai_ssl.errors import DataError, UsageError
from monai_ssl.mistakes import users_mistake
from monai_ssl.runs import Run
from monai_ssl.runs.demo import NAMES

TINY = ["--dataset", "phantom", "--max_iterations", "4", "--epoch_length", "2", "--val_interval", "2",
        "--network_def#base_channels", "2", "--num_workers", "0", "--amp", "off", "--device", "cpu"]  # fmt: skip
COMMANDS = [
    "demo",
    "split",
    "prepare",
    "preset",
    "check",
    "describe",
    "train",
    "self-train",
    "compare",
    "evaluate",
    "predict",
    "rank",
    "report",
    "package",
    "bundle",
    "label-app",
    "new-method",
    "list",
    "completion",
]


def run(*words: Any) -> int:
    """Exit status of a command, in this process."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def fails(capsys: pytest.CaptureFixture[str], *words: Any, status: int = 2) -> str:
    """The one line with which a command must fail."""
    capsys.readouterr()
    assert run(*words) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    # beside it: what the check found, and lines of the log, which begin with the time
    lines = [line for line in error.splitlines() if not re.match(r"warning:|error:|\d\d:\d\d:\d\d ", line)]
    assert len(lines) == 1, error
    assert lines[0].startswith("monai-ssl: error: ")
    return lines[0].removeprefix("monai-ssl: error: ")


@pytest.fixture
def phantom(tiny_phantom: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_phantom, tmp_path / "phantom data"))


@pytest.fixture(scope="module")
def trained(tiny_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "a run"
    assert run("train", "dtc", tiny_phantom, *TINY, "--output", folder) == 0
    return folder


def parse(name: str, *words: str) -> dict[str, Any]:
    """Arguments that a command's function would get."""
    return cli.parse(cli.COMMANDS[name], list(words))


def replace_image(path: Path, array: np.ndarray | None = None) -> None:
    image = nib.load(path)
    data = np.asarray(image.dataobj) if array is None else array
    nib.save(nib.Nifti1Image(data, image.affine), path)


class TestHelp:
    @pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
    def test_overview_names_every_command_and_nothing_else(self, words, capsys):
        assert run(*words) == 0
        out = capsys.readouterr().out
        assert re.findall(r"^  ([\w-]+)\s{2,}\S", out, re.MULTILINE) == COMMANDS
        assert max(map(len, out.splitlines())) <= 145

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("form", ["{} --help", "help {}", "{} -h"])
    def test_every_command_explains_its_arguments(self, command, form, capsys):
        assert run(*form.format(command).split()) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: monai-ssl {command}")
        assert not {"SYNOPSIS", "GROUP", "FLAGS"} & set(out.split())
        if command not in ("list", "completion"):
            assert "arguments:" in out

    def test_help_wins_over_other_words_and_bundle_ids(self, capsys):
        assert run("train", "dtc", "--max_iterations", "3", "--help") == 0
        assert "--method#unsupervised_weight 0" in " ".join(capsys.readouterr().out.split())

    def test_version(self, capsys):
        assert run("--version") == 0
        assert capsys.readouterr().out.startswith("monai-ssl 0.")

    def test_list(self, capsys):
        assert run("list") == 0
        out = capsys.readouterr().out
        assert "dtc" in out
        assert "left_atrium" in out

    def test_module_is_the_same_program(self):
        done = subprocess.run(
            [sys.executable, "-m", "monai_ssl", "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("monai-ssl 0.")


class TestReadingArguments:
    def test_values_are_read_as_annotated(self):
        got = parse("train", "dtc", "2024_01", "--output=007", "--check", "False", "--seed", "3",
                    "--method#unsupervised_weight", "0", "--learning_rate", "-1", "--amp", "off")  # fmt: skip
        assert got == {"bundle": "dtc", "dataset_dir": "2024_01", "output": "007", "check": False, "seed": 3,
                       "method#unsupervised_weight": 0, "learning_rate": -1, "amp": "off"}  # fmt: skip

    @pytest.mark.parametrize(("text", "value"), [("False", False), ("true", True), ("yes", True), ("auto", "auto")])
    def test_options_that_are_a_word_or_a_boolean(self, text, value):
        """They could be given from Python alone: every word stayed text, and text was refused."""
        from monai_ssl.runs.self_training import check_rounds

        given = parse("self-train", "scans", "--tta", text, "--largest_component", text)
        assert given == {"dataset_dir": "scans", "tta": value, "largest_component": value}
        check_rounds(tta=given["tta"], largest_component=given["largest_component"])

    def test_hyphens_flags_and_mappings(self):
        got = parse("split", "d", "--n-labeled", "4", "--overwrite", "--label-names", "{1: left atrium}")
        assert got == {"source": "d", "n_labeled": 4, "overwrite": True, "label_names": {1: "left atrium"}}
        assert parse("split", "d", "--output", "None") == {"source": "d", "output": None}
        assert parse("predict", "r", "i", "--memory_gb", "0.5")["memory_gb"] == 0.5
        assert parse("label-app", "app", "--bundles", "dtc, caml") == {"output": "app", "bundles": ["dtc", "caml"]}
        assert parse("train", "--bundle", "dtc", "--dataset_dir", "d") == {"bundle": "dtc", "dataset_dir": "d"}

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("true", True),
            ("false", False),
            ("null", None),
            ("False", False),
            ("TRUE", True),
            ("None", None),
            ("off", "off"),
            ("falsehood", "falsehood"),
            ("1e-3", 1e-3),
            ("[1, false]", [1, False]),
            ("{a: null}", {"a": None}),
        ],
    )
    def test_yaml_words_mean_what_they_mean_in_a_config(self, text, value):
        assert parse("train", "dtc", "d", "--method#auxiliary#attention", text)["method#auxiliary#attention"] == value

    def test_former_spellings_are_read_with_a_warning(self):
        for name in ("train", "check", "preset", "label-app"):
            words = ["x"] * sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD
                                for p in cli.COMMANDS[name].parameters.values())  # fmt: skip
            with pytest.warns(UserWarning, match="--flavour is now spelled --flavor"):
                assert parse(name, *words, "--flavour", "practical")["flavor"] == "practical"
        with pytest.warns(UserWarning, match="whole_tumour is now spelled whole_tumor"):
            assert parse("prepare", "brats2019", "a", "b", "--target", "whole_tumour")["target"] == "whole_tumor"
        with pytest.raises(UsageError, match="--flavor: given twice"), pytest.warns(UserWarning, match="spelled"):
            parse("train", "dtc", "d", "--flavor", "literature", "--flavour", "practical")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["trian"], "unknown command 'trian': did you mean train?"),
            (["train"], "train: missing BUNDLE; usage: monai-ssl train BUNDLE DATASET_DIR [OPTIONS]"),
            (["train", "dtc"], "train: missing DATASET_DIR"),
            (["check", "d", "--datset", "phantom"], "check: unknown option --datset; did you mean --dataset?"),
            (["train", "dtc", "d", "--datset", "phantom"], "train: unknown option --datset; did you mean --dataset?"),
            (["split", "d", "--seed", "one"], "--seed: must be an integer, got 'one'"),
            (["split", "d", "--overwrite", "perhaps"], "--overwrite: must be True or False, got 'perhaps'"),
            (["split", "d", "--label_names", "organ"], "--label_names: must look like"),
            (["split", "d", "--seed", "1", "--seed", "2"], "--seed: given twice"),
            (["list", "all"], "list: too many arguments, from 'all' on"),
            (["evaluate", "a", "b"], "section: must be testing, validation or training, got 'b'; as a run it would"),
            (["check", ""], "--dataset_dir: must not be empty"),
            (["evaluate"], "evaluate: give either RUN or --predictions DIR"),
            (["demo", "--seeds", "0"], "seeds: must be >= 1, got 0"),
            (["prepare", "acd", "d"], "dataset: 'acd' is not a data set that can be prepared, did you mean acdc?"),
            (["prepare", "acdc", "d"], "prepare: missing OUTPUT; usage: monai-ssl prepare acdc SOURCE OUTPUT"),
            (["train", "dtc", "d", "--amp", "maybe"], "--amp: must be auto, off, bf16 or fp16, got 'maybe'"),
            (
                ["train", "dtc", "d", "--layout", "nchw"],
                "--layout: must be auto, contiguous or channels_last, got 'nchw'",
            ),
            (["help", "nonsense"], "unknown command 'nonsense'"),
            (["evaluate", "r", "--section", "test"], "section: must be testing, validation or training, got 'test'"),
            (["predict", "r", "i", "--memory_gb", "much"], "--memory_gb: must be a number, got 'much'"),
        ],
    )
    def test_mistakes_are_one_line(self, words, message, capsys):
        assert message in fails(capsys, *words)


@pytest.mark.parametrize("words", [["predict", "a", "c", "images"], ["package", "a", "b", "c", "new"]])
def test_a_misspelled_run_among_runs_is_named(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "run.json").write_text("{}")
    assert f"{words[0]}: c is no run, there is no such folder" in fails(capsys, *words)


@pytest.mark.parametrize("words", [["predict", "a", "c", "images"], ["package", "a", "b", "c", "new"]])
def test_a_misspelled_run_among_self_trainings_is_named(words, self_trainings, capsys):
    assert f"{words[0]}: c is no run, there is no such folder" in fails(capsys, *words)


@pytest.fixture
def self_trainings(tmp_path, monkeypatch):
    """Folders a and b of self-trainings that have ended, one c-d of one that has not; they hold no run.json."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name, "round-1").mkdir(parents=True)
        Path(name, "round-1", "run.json").write_text("{}")
        Path(name, "self_training.json").write_text('{"rounds": ["round-1"], "fine_tuned": null}')
    Path("c-d").mkdir()
    Path("c-d", "self_training.json").write_text('{"seconds": {}}')


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["predict", "a", "b", "images"], {"run": ["a", "b"], "images": "images"}),
        (["evaluate", "a", "b"], {"run": ["a", "b"]}),
        (["rank", "a", "b"], {"run": ["a", "b"]}),
        (["package", "a", "b/round-1", "--output", "pk"], {"run": ["a", "b/round-1"], "output": "pk"}),
        (["package", "a", "c-d", "pk"], {"run": ["a", "c-d"], "output": "pk"}),  # which will be said to be unfinished
        (["evaluate", "a", "validation"], {"run": "a", "section": "validation"}),
        (["rank", "a", "images"], {"run": "a", "images": "images"}),
    ],
)
def test_several_self_trainings_are_several_runs(words, given, self_trainings):
    """The second was taken for a folder of scans, a section, or the title of a package."""
    assert parse(*words) == given


class TestMistakesBeforeTraining:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ["--dataset", "phantm"],
                "dataset: must be one of acdc, brats2019, hippocampus, left_atrium, mscmrseg2019, pancreas_ct, phantom",
            ),
            (["--dataset", "phantom", "--flavor", "practicle"], "flavor: phantom.yaml offers literature, practical"),
            (
                ["--max_iteration", "4"],
                "--max_iteration: no such id in the bundle's configs; did you mean max_iterations?",
            ),
            (
                ["--method#variannt", "paper"],
                "--method#variannt: is no argument of DualTaskConsistency; did you mean variant?",
            ),
            (["--method#variant", "null"], "--method#variant: must not be null; leave it away for the default"),
            (
                ["--method#distance_weight", "much"],
                "--method#distance_weight: must be a finite number >= 0, got 'much'",
            ),
            (["--method#distance_weight", "true"], "--method#distance_weight: must be a number, got True"),
            (["--method", "null"], "--method: is a block of settings, give one of them: --method#ID VALUE, got None"),
            (["--optimizer#nesterov", "maybe"], "--optimizer#nesterov: must be true or false, got 'maybe'"),
            (["--network_def#base_channels", "null"], "--network_def#base_channels: must not be null"),
            (["--train#trainer#nothing#deep", "4"], "no such id"),
            (["--datalist", "other.json"], "datalist must be an existing JSON file, got 'other.json'"),
            (["--output_dir", "x"], "--output_dir: give it as --output"),
            (
                ["--dataset", "phantom", "--labeled_batch_size", "0"],
                "--labeled_batch_size: must be an integer >= 1, got 0",
            ),
            (
                ["--dataset", "phantom", "--method#variant", "new"],
                "variant must be one of ('released', 'paper'), got 'new'",
            ),
            (["--resume", "maybe"], "--resume: must be true or false, got 'maybe'"),
            (["--resume", "null"], "--resume: must be true or false, got None"),
            (["--method#unsupervised_weight", "false"], "--method#unsupervised_weight: must be a number, got False"),
            (
                ["--dataset", "phantom", "--max_iterations", "0"],
                "--max_iterations: must be an integer >= 1, got ",
            ),
            (
                ["--dataset", "phantom", "--max_iterations", "two"],
                "--max_iterations: must be an integer >= 1, got 'two'",
            ),
            (["--seed", "true"], "--seed: must be a number, got True"),
            (["--dataset", "phantom", "--amp", "bf61"], "--amp: must be auto, off, bf16 or fp16, got 'bf61'"),
            (["--dataset", "phantom", "--device", "cuda:99"], "--device: no CUDA GPU is to be seen here"),
            (["--dataset", "phantom", "--device", "gpu"], "--device: must be cpu, cuda, cuda:0, ... or mps, got 'gpu'"),
            (["--patch_size", "16,16,16"], "--patch_size: is a key of the preset, not an option"),
            (["--flip_axes", "[0]"], "--flip_axes: is a key of the preset, not an option"),
            (["--outptu", "x"], "unknown option --outptu; did you mean --output?"),
        ],
    )
    def test_options(self, words, message, tiny_phantom, tmp_path, capsys):
        if "cuda:99" in words and torch.cuda.is_available():
            pytest.skip("another message with a GPU")
        error = fails(capsys, "train", "dtc", tiny_phantom, "--output", tmp_path / "run", *words)
        assert message in error
        assert not (tmp_path / "run" / "model.pt").exists()

    def test_unknown_bundle(self, tiny_phantom, capsys):
        error = fails(capsys, "train", "dtcc", tiny_phantom, *TINY)
        assert "bundle: must be one of" in error
        assert "did you mean dtc?" in error

    def test_missing_folder(self, tmp_path, capsys):
        assert "must be an existing folder" in fails(capsys, "train", "dtc", tmp_path / "none", *TINY)
        assert "must be an existing folder" in fails(capsys, "check", tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_no_training_case(self, phantom, tmp_path, capsys):
        content = json.loads((phantom / "datalist.json").read_text())
        (phantom / "datalist.json").write_text(json.dumps({**content, "training": []}))
        assert "'training' has no case" in fails(capsys, "train", "dtc", phantom, *TINY, "--output", tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_bad_data_stop_training_with_all_problems(self, phantom, tmp_path, capsys):
        image = phantom / "images" / "unlabeled_0001.nii.gz"
        image.write_bytes(image.read_bytes()[:200])
        label = phantom / "labels" / "labeled_0000.nii.gz"
        replace_image(label, 7 * np.asarray(nib.load(label).dataobj))
        capsys.readouterr()
        assert run("train", "dtc", phantom, *TINY, "--output", tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 2
        assert "labeled_0000.nii.gz: label values must be among the preset's classes [0, 1], got 7" in lines[0]
        assert "unlabeled_0001.nii.gz: file must be complete" in lines[1]
        assert error.splitlines()[-1].startswith("monai-ssl: error: data: 2 errors, nothing was trained")
        assert not (tmp_path / "run").exists()

    def test_without_check_the_loader_still_stops(self, phantom, tmp_path, capsys):
        (phantom / "images" / "labeled_0001.nii.gz").write_bytes(b"no image")
        error = fails(capsys, "train", "dtc", phantom, *TINY, "--output", tmp_path / "run", "--check", "False")
        assert "case labeled_0001: cannot be loaded" in error
        assert not (tmp_path / "run" / "model.pt").exists()

    def test_warnings_are_merged(self, tiny_phantom, tmp_path, capsys):
        assert run("train", "supervised", tiny_phantom, *TINY, "--output", tmp_path / "run") == 0
        captured = capsys.readouterr()
        shown = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
        assert len(shown) == 1  # five small volumes, one line; the pool is not read, since the method has no use for it
        assert "(and 4 more like this)" in shown[0]

    def test_foreign_output_folders_are_refused(self, tiny_phantom, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert "must be a folder" in fails(capsys, "train", "dtc", tiny_phantom, *TINY, "--output", tmp_path / "file")
        assert "folder of the data" in fails(capsys, "train", "dtc", tiny_phantom, *TINY, "--output", tiny_phantom)
        (tmp_path / "model.pt").write_bytes(b"somebody's weights")
        error = fails(capsys, "train", "dtc", tiny_phantom, *TINY, "--output", tmp_path)
        assert "holds a model.pt that no run" in error
        assert (tmp_path / "model.pt").read_bytes() == b"somebody's weights"

    @pytest.mark.skipif(
        not sys.platform.startswith("linux") or os.environ.get("CI_NO_PROC") == "1", reason="needs /proc"
    )
    def test_folder_that_cannot_be_written(self, tiny_phantom, capsys):
        error = fails(capsys, "train", "dtc", tiny_phantom, *TINY, "--output", "/proc/run", "--check", "False")
        assert error.startswith("/proc/run: ")

    def test_two_trainings_in_one_folder(self, tiny_phantom, tmp_path, capsys):
        script = "import sys, monai_ssl; run = monai_ssl.Run(sys.argv[1]); run.acquire(); print(flush=True); input()"
        command = [sys.executable, "-c", script, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            error = fails(capsys, "train", "dtc", tiny_phantom, *TINY, "--output", tmp_path)
            other.communicate(b"\n")
        assert "another training writes to" in error
        assert run("train", "supervised", tiny_phantom, *TINY, "--output", tmp_path, "--check", "False") == 0

    def test_full_disk(self, tiny_phantom, tmp_path, capsys, monkeypatch):
        def full(content: Any, path: Path) -> None:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

        monkeypatch.setattr(torch, "save", full)
        error = fails_after_log(capsys, "train", "dtc", tiny_phantom, *TINY, "--output", tmp_path / "run")
        assert "checkpoint.pt: cannot write" in error
        assert not list((tmp_path / "run").glob("*.pt"))
        assert not list((tmp_path / "run").glob(".*.pt"))


def fails_after_log(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """Like :func:`fails` for errors that come when training has begun to report."""
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


class TestTrain:
    def test_what_it_says_and_writes(self, tiny_phantom, tmp_path, capsys):
        assert run("train", "dtc", tiny_phantom, *TINY, "--output", tmp_path / "run") == 0
        captured = capsys.readouterr()
        assert captured.out.splitlines() == [
            f"dtc: phantom (practical), 2 training, 3 unlabeled, 1 validation, 2 testing, output {tmp_path / 'run'}",
            f"weights: {tmp_path / 'run' / 'model.pt'}",
            f"next: monai-ssl evaluate {tmp_path / 'run'} --section validation",
        ]
        assert "input summary" not in captured.err
        assert len(captured.err.splitlines()) < 10
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["status"] == "complete"
        assert record["max_iterations"] == 4
        assert record["overrides"]["network_def#base_channels"] == 2
        assert (tmp_path / "run" / "preset.yaml").is_file()
        assert not list((tmp_path / "run").glob(".*.pending"))

    def test_a_new_process_says_no_more(self, tiny_phantom, tmp_path):
        """MONAI is imported while the command runs there, and brings its own handlers."""
        command = [
            sys.executable,
            "-m",
            "monai_ssl",
            "train",
            "supervised",
            str(tiny_phantom),
            *TINY,
            "--check",
            "False",
        ]
        done = subprocess.run([*command, "--output", str(tmp_path / "run")], capture_output=True, text=True, check=True)
        assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == ["supervised", "weights", "next"]
        assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in done.stderr.splitlines()), done.stderr

    def test_finished_run_typed_again_keeps_its_files(self, trained, tiny_phantom, capsys):
        before = {name: (trained / name).read_bytes() for name in ("model.pt", "training.csv")}
        assert run("train", "dtc", tiny_phantom, *TINY, "--output", trained) == 0
        assert before == {name: (trained / name).read_bytes() for name in before}
        assert not (trained / "previous-1").exists()

    def test_other_settings_set_the_former_run_aside_with_its_record(self, tiny_phantom, tmp_path):
        for seed in (0, 1):
            assert run("train", "supervised", tiny_phantom, *TINY, "--output", tmp_path / "run", "--seed", seed) == 0
        records = [json.loads((tmp_path / "run" / part / "run.json").read_text()) for part in ("previous-1", ".")]
        assert [record["overrides"]["seed"] for record in records] == [0, 1]
        assert (tmp_path / "run" / "previous-1" / "preset.yaml").is_file()

    def test_own_bundle_and_own_preset(self, tiny_phantom, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert run("bundle", "supervised", "my bundle") == 0
        assert not list(Path("my bundle").rglob("*.pt"))
        assert "exists and is not an empty folder" in fails(capsys, "bundle", "supervised", "my bundle")
        assert run("preset", "phantom", "my preset.yaml") == 0
        assert "exists already" in fails(capsys, "preset", "phantom", "my preset.yaml")
        assert "must be a .yaml file" in fails(capsys, "preset", "phantom", "my preset")
        words = [word if word != "phantom" else "my preset.yaml" for word in TINY]
        assert run("train", "my bundle", tiny_phantom, *words) == 0
        folder = tmp_path / "runs" / f"my bundle-{tiny_phantom.name}-seed0"
        assert json.loads((folder / "run.json").read_text())["bundle"] == str(tmp_path / "my bundle")
        monkeypatch.chdir(tiny_phantom)  # nothing depends on where one stands
        assert run("evaluate", folder, "--section", "validation") == 0

    def test_killed_run_says_how_far_it_got_and_resumes(self, tiny_phantom, tmp_path, trained, capsys):
        folder = tmp_path / "run"
        words = [*TINY, "--output", folder, "--max_iterations=100000", "--val_interval=100000"]
        words = [str(word) for i, word in enumerate(words) if word not in ("--max_iterations", "--val_interval")
                 and words[i - 1] not in ("--max_iterations", "--val_interval")]  # fmt: skip
        command = [sys.executable, "-m", "monai_ssl", "train", "dtc", str(tiny_phantom), *words]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while not (folder / "model.pt").exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "started"
        assert (folder / "preset.yaml").is_file()
        done = Run(folder).iteration
        capsys.readouterr()
        assert run("evaluate", folder, "--section", "validation") == 0
        note = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("note: "))
        assert f"unfinished, weights of iteration {done} of 100000" in note
        page = (folder / "evaluation-validation" / "report.html").read_text()
        assert f"is unfinished: weights of iteration {done} of 100000." in page
        meta = json.loads((folder / "evaluation-validation" / "summary.json").read_text())["meta"]
        assert (meta["training"]["iteration"], meta["training"]["max_iterations"]) == (done, 100000)
        assert "train dtc" in note
        total = str(done + 2)
        words = [word.replace("100000", total) if word.startswith("--max_iterations") else word for word in words]
        assert run("train", "dtc", tiny_phantom, *words) == 0
        with open(folder / "training.csv", newline="") as file:
            assert [int(row["iteration"]) for row in csv.DictReader(file)] == list(range(1, done + 3))
        assert json.loads((folder / "run.json").read_text())["max_iterations"] == done + 2

    def test_run_without_checkpoint_yet(self, trained, tmp_path, capsys):
        for name in ("run.json", "preset.yaml"):
            shutil.copyfile(trained / name, tmp_path / name)
        assert "has no weights yet" in fails(capsys, "evaluate", tmp_path)

    def test_interrupted_by_the_keyboard(self, monkeypatch, capsys):
        def interrupted(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("monai_ssl.bundle.library.find_bundle", interrupted)
        assert run("train", "dtc", "data") == 130
        assert "run the same command again to resume" in capsys.readouterr().err


class TestEvaluateAndPredict:
    def test_overrides_of_the_training_carry_over(self, trained, capsys):
        capsys.readouterr()
        assert run("evaluate", trained) == 0  # base_channels 2: the default network would not fit
        captured = capsys.readouterr()
        assert "left atrium: Dice" in captured.out
        assert "n = 2" in captured.out
        assert captured.out.splitlines()[-1] == f"report: {trained / 'evaluation-testing' / 'report.html'}"
        assert "note" not in captured.err
        names = {path.name for path in (trained / "evaluation-testing").iterdir()}
        assert {"per_case.csv", "summary.json", "report.html", "predictions"} <= names

    def test_predictions_lie_on_the_grid_and_score_alike(self, trained, tiny_phantom, tmp_path, capsys):
        assert run("evaluate", trained) == 0
        assert run("predict", trained, tiny_phantom / "images", tmp_path / "out") == 0
        assert "8 segmentations: " in capsys.readouterr().out
        image = nib.load(tiny_phantom / "images" / "testing_0000.nii.gz")
        result = nib.load(tmp_path / "out" / "testing_0000_seg.nii.gz")
        assert result.shape == image.shape
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-4)
        assert result.get_data_dtype() == np.uint8
        words = ["--predictions", tmp_path / "out", "--dataset_dir", tiny_phantom, "--dataset", "phantom"]
        assert run("evaluate", *words, "--against", trained / "evaluation-testing") == 0
        rows = [
            (folder / "per_case.csv").read_text()
            for folder in (tmp_path / "out/evaluation", trained / "evaluation-testing")
        ]
        assert rows[0] == rows[1]
        assert "too few cases" in capsys.readouterr().out

    def test_results_below_the_images_are_no_images_and_a_link_keeps_its_name(
        self, trained, tiny_phantom, tmp_path, capsys
    ):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a#1.nii.gz").symlink_to(tiny_phantom / "images" / "testing_0000.nii.gz")
        for _ in range(2):
            assert run("predict", trained, tmp_path / "in", "--output", tmp_path / "in" / "out@1") == 0
        assert "0 segmentations" in capsys.readouterr().out.splitlines()[-1]
        assert run("predict", trained, tmp_path / "in" / "a#1.nii.gz", "--output", tmp_path / "one") == 0
        found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*_seg*"))
        assert found == ["in/out@1/a#1_seg.nii.gz", "one/a#1_seg.nii.gz"]

    def test_one_image_probabilities_and_other_weights(self, trained, tiny_phantom, tmp_path):
        image = tiny_phantom / "images" / "testing_0000.nii.gz"
        words = ["--probabilities", "True", "--ckpt", trained / "model.pt"]
        assert run("predict", trained, image, tmp_path / "out", *words) == 0
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "testing_0000_seg.nii.gz",
            "testing_0000_prob.nii.gz",
            "predict.json",
        }

    def test_report_page(self, trained, tmp_path, capsys):
        assert run("evaluate", trained) == 0
        results = trained / "evaluation-testing"
        assert run("report", tmp_path / "page.html", results, "--floor", results, "--title", "Two runs") == 0
        assert "Two runs" in (tmp_path / "page.html").read_text()
        assert "must be an .html file" in fails(capsys, "report", tmp_path / "page", results)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["evaluate", "{tmp}/none"], "is no folder; train first"),
            (["evaluate", "{tmp}"], "holds no run.json"),
            (["evaluate", "{run}", "--section", "test"], "section: must be testing, validation or training"),
            (["evaluate", "{run}", "--ckpt", "{tmp}/none.pt"], "ckpt: {tmp}/none.pt does not exist"),
            (["evaluate", "{run}", "--against", "{tmp}/none"], "none"),
            (["evaluate", "{run}", "--dataset_dir", "{tmp}/none"], "must be an existing folder"),
            (["evaluate", "{run}", "--devise", "cpu"], "--devise: no such id in the bundle's configs; did you mean"),
            (["evaluate", "{run}", "--predictions", "{tmp}"], "give either RUN or --predictions"),
            (["evaluate", "--predictions", "{tmp}"], "--predictions needs --dataset_dir"),
            (["evaluate", "--predictions", "{tmp}", "--dataset_dir", "{data}", "--dataset", "phantom"],
             "no testing_0000_seg.nii.gz or testing_0000.nii.gz for case testing_0000"),
            (["predict", "{run}", "{tmp}/none", "{tmp}/out"], "images: {tmp}/none does not exist"),
            (["predict", "{run}", "{tmp}", "{tmp}/out"], "images: no image below {tmp}"),
            (["predict", "{run}", "{data}/images", "{data}/images"], "output: must not be the folder of the images"),
            (["predict", "{run}", "{data}/images", "{data}/datalist.json"], "output: must be a folder"),
        ],
    )  # fmt: skip
    def test_mistakes_are_one_line(self, words, message, trained, tiny_phantom, tmp_path, capsys):
        places = {"tmp": tmp_path, "run": trained, "data": tiny_phantom}
        assert message.format(**places) in fails(capsys, *(word.format(**places) for word in words))

    def test_corrupt_image_is_named_and_leaves_no_half_file(self, trained, phantom, tmp_path, capsys):
        (phantom / "images" / "testing_0001.nii.gz").write_bytes(b"no image")
        error = fails_after_log(capsys, "predict", trained, phantom / "images", tmp_path / "out")
        assert "testing_0001.nii.gz" in error
        for path in (tmp_path / "out").glob("*.nii.gz"):
            assert np.asarray(nib.load(path).dataobj).ndim == 3

    def test_weights_of_another_network_or_unsafe(self, trained, tmp_path, tiny_phantom, capsys):
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
        images = tiny_phantom / "images"
        words = ["predict", trained, images, tmp_path / "out", "--ckpt"]
        assert "does not fit the network" in fails(capsys, *words, tmp_path / "other.pt")
        torch.save(Path("pickled"), tmp_path / "unsafe.pt")
        assert "not a readable file of weights" in fails(capsys, *words, tmp_path / "unsafe.pt")
        assert not (tmp_path / "out").exists()

    def test_predictions_on_another_grid(self, trained, phantom, tmp_path, capsys):
        shutil.copytree(phantom / "labels", tmp_path / "predictions")
        words = [
            "evaluate",
            "--predictions",
            tmp_path / "predictions",
            "--dataset_dir",
            phantom,
            "--dataset",
            "phantom",
        ]
        assert run(*words) == 0
        file = tmp_path / "predictions" / "testing_0001.nii.gz"
        replace_image(file, np.asarray(nib.load(file).dataobj)[:-1])
        assert "shape must be the label's" in fails(capsys, *words)
        file.write_bytes(b"nothing")
        assert f"{file}: file must be" in fails(capsys, *words)


class TestFoldersThatCannotBeWritten:
    """One short line with file, reason and next step: MONAI would tell of missing libraries, with all tracebacks."""

    @pytest.fixture
    def read_only(self, monkeypatch):
        """Nothing can be written, and as on a read-only file system nothing can be removed, be it there or not."""
        import nibabel

        def refused(self_or_image: Any, *words: Any, **options: Any) -> None:
            place = words[0] if words and isinstance(words[0], (str, Path)) else self_or_image
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))

        monkeypatch.setattr(nibabel, "save", refused)
        monkeypatch.setattr(Path, "unlink", refused)

    @pytest.mark.parametrize(
        ("words", "file"),
        [
            (["evaluate", "{run}", "--output", "{tmp}/out"], "out/predictions/images/testing_0000_seg.nii.gz"),
            (["predict", "{run}", "{data}/images", "{tmp}/out", "--uncertainty"], "out/labeled_0000_seg.nii.gz"),
            (["rank", "{run}", "--output", "{tmp}/out"], "out/segmentations/unlabeled_0000_seg.nii.gz"),
        ],
    )
    def test_results(self, words, file, trained, tiny_phantom, tmp_path, read_only, capsys):
        places = {"tmp": tmp_path, "run": trained, "data": tiny_phantom}
        error = fails_after_log(capsys, *(word.format(**places) for word in words), "--device", "cpu")
        assert error == (
            f"monai-ssl: error: {tmp_path / file}: cannot write (Read-only file system); the previous file, if any, is "
            "intact; name another --output, where you may write"
        )

    @pytest.mark.parametrize(
        "words",
        [
            ["evaluate", "{run}", "--output", "{tmp}/out"],
            ["predict", "{run}", "{data}/images", "{tmp}/out"],
            ["rank", "{run}", "--output", "{tmp}/out"],
            ["package", "{run}", "{tmp}/out"],
            ["train", "dtc", "{data}", *TINY, "--output", "{tmp}/out", "--check", "no"],
            ["self-train", "{data}", *TINY, "--output", "{tmp}/out", "--check", "no"],
        ],
    )
    def test_folders(self, words, trained, tiny_phantom, tmp_path, monkeypatch, capsys):
        made = os.mkdir

        def refused(path: Any, *words: Any, **options: Any) -> None:
            if str(path).startswith(str(tmp_path)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            made(path, *words, **options)

        monkeypatch.setattr(os, "mkdir", refused)
        places = {"tmp": tmp_path, "run": trained, "data": tiny_phantom}
        error = fails_after_log(capsys, *(word.format(**places) for word in words))
        assert error.startswith(f"monai-ssl: error: {tmp_path}/out")
        assert re.search(r"Permission denied\)?(; .* is intact)?; name another --output, where you may write$", error)

    def test_tracebacks_in_the_text_of_an_error_are_left_out(self):
        """MONAI's own savers say so in bundles of one's own."""
        lines = ["SaveImage cannot find a suitable writer for a.nii.gz.", "   Please install ...",
                 "Traceback (most recent call last):", "  File ...", "OSError: Read-only file system"]  # fmt: skip
        error = RuntimeError("Failed to evaluate")
        error.__cause__ = RuntimeError("\n".join(lines))
        said = users_mistake(error)
        assert said.startswith(f"{lines[0]} {lines[-1]} (RuntimeError in the bundle's config")
        error.__cause__ = RuntimeError("a" * 3000)
        assert len(users_mistake(error)) < 620


class TestCheckAndSplit:
    def test_check(self, tiny_phantom, phantom, capsys):
        assert run("check", tiny_phantom, "--dataset", "phantom") == 0
        *_, memory, last = capsys.readouterr().out.splitlines()
        assert memory.startswith("prepared for training: labeled ")
        assert "0 errors, " in last
        (phantom / "images" / "testing_0000.nii.gz").unlink()
        assert run("check", phantom, "--dataset", "phantom") == 1
        out = capsys.readouterr().out.splitlines()
        assert out[-1].startswith(
            f"{phantom / 'datalist.json'}: 2 training, 3 unlabeled, 1 validation, 2 testing; 1 error,"
        )
        assert any(line.startswith("error: testing: ") for line in out)

    def test_split_proposes_a_preset_that_checks_and_trains(self, phantom, tmp_path, capsys):
        words = ["split", "--images", phantom / "images", "--labels", phantom / "labels", "--n_validation", 1]
        out = tmp_path / "d.json"
        assert run(*words, "--output", out) == 0
        text = capsys.readouterr().out
        assert f"{out}: 4 training, 3 unlabeled, 1 validation, 0 testing" in text
        assert "classes: 0 background, 1 class 1" in text
        for word in ("spatial_dims 3", "spacing null", "patch_size", "intensity robust", "training: "):
            assert f"  - {word}" in text
        assert f"next: monai-ssl check {tmp_path} --datalist d.json --dataset {tmp_path / 'preset.yaml'}" in text
        assert run("check", tmp_path, "--datalist", "d.json", "--dataset", tmp_path / "preset.yaml") == 0
        # an edited preset is kept
        (tmp_path / "preset.yaml").write_text("mine")
        assert run(*words, "--output", tmp_path / "e.json") == 0
        assert "exists already and is kept" in capsys.readouterr().out
        assert (tmp_path / "preset.yaml").read_text() == "mine"
        assert "exists already" in fails(
            capsys, *words, "--output", tmp_path / "f.json", "--preset", tmp_path / "preset.yaml"
        )
        assert "give either SOURCE or --images" in fails(capsys, "split")

    def test_prepare(self, tmp_path, capsys):
        import nibabel as nib
        import numpy as np

        for patient in ("patient099", "patient011"):
            for frame in (1, 9):
                image = np.random.RandomState(frame + int(patient[-3:])).rand(150, 140, 4).astype(np.float32)
                for array, end in ((image, ""), ((image > 0.9).astype(np.uint8), "_gt")):
                    path = tmp_path / "in" / patient / f"{patient}_frame{frame:02d}{end}.nii.gz"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 8, 1])), path)
        words = ["prepare", "acdc", "--source", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1]
        assert run(*words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("note: patient099: Info.cfg does not say") for line in lines)
        counts = "2 training, 0 unlabeled, 0 validation, 2 testing; 4 converted, 0 from before, 0 skipped; 0 errors"
        assert lines[-2] == f"{tmp_path / 'out' / 'datalist.json'}: {counts}"
        assert lines[-1] == f"next: monai-ssl train dtc {tmp_path / 'out'} --dataset acdc --flavor practical"
        assert run(*words) == 0
        assert "0 converted, 4 from before" in capsys.readouterr().out
        assert "'acdk' is not a data set that can be prepared, did you mean acdc?" in fails(
            capsys, "prepare", "acdk", "a", "b"
        )
        assert "--crop: is no option of acdc" in fails(capsys, *words, "--crop", "none")

    def test_split_is_reproducible_and_keeps_what_is_there(self, phantom, tmp_path, capsys):
        words = ["split", phantom, "--n_labeled", 2, "--n_testing", 1, "--n_validation", 1]
        assert "exists already" in fails(capsys, *words)
        for name in ("a.json", "b.json"):
            assert run(*words, "--output", tmp_path / name, "--label_names", "{1: left atrium}") == 0
        assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
        assert capsys.readouterr().out.startswith(
            f"{tmp_path / 'a.json'}: 2 training, 4 unlabeled, 1 validation, 1 testing"
        )
        assert json.loads((tmp_path / "a.json").read_text())["labels"] == {"0": "background", "1": "left atrium"}
        assert "n_labeled must be" in fails(capsys, *words[:2], "--n_labeled", 50, "--output", tmp_path / "c.json")
        assert not (tmp_path / "c.json").exists()


class TestErrors:
    def test_bugs_keep_their_traceback(self, monkeypatch):
        def broken() -> None:
            raise KeyError("a bug")

        monkeypatch.setattr("monai_ssl.cli.commands.list_all", broken)
        with pytest.raises(KeyError, match="a bug"):
            cli.main(["list"])

    def test_debugging_shows_the_traceback(self, monkeypatch):
        monkeypatch.setenv("MONAI_SSL_DEBUG", "1")
        with pytest.raises(DataError):
            cli.main(["check", "/does/not/exist"])

    def test_out_of_memory_says_what_to_do(self):
        assert "--accumulation_steps 2" in str(users_mistake(torch.OutOfMemoryError("CUDA out of memory")))

    def test_no_state_is_left_behind(self, tiny_phantom, capsys):
        import logging
        import warnings

        before = list(logging.root.handlers), list(warnings.filters)
        run("check", tiny_phantom, "--dataset", "phantom")
        assert before == (list(logging.root.handlers), list(warnings.filters))


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert run("demo", "--output", tmp_path / "demo", "--iterations", 2) == 0
    assert "Report: " in capsys.readouterr().out
    assert (tmp_path / "demo" / "seed0" / "report.html").is_file()
    dice = json.loads((tmp_path / "demo" / "summary.json").read_text())["dice"]
    assert {name: list(by_seed) for name, by_seed in dice.items()} == {name: ["0"] for name in NAMES.values()}
    assert "| seed 0 | mean |" in (tmp_path / "demo" / "summary.md").read_text()


class TestPhantom:
    def test_prepare_writes_scans_that_check_and_are_kept(self, tmp_path, capsys):
        words = ["prepare", "phantom", tmp_path / "p", "--n_labeled", 1, "--n_validation", 0, "--n_testing", 0]
        assert run(*words) == 0
        assert "1 training, 40 unlabeled, 0 validation, 0 testing" in capsys.readouterr().out
        assert "--n_labeled" not in fails(capsys, *words[:3], "--n_testing", 3)  # another phantom is there
        assert "--crop: has no meaning for phantom" in fails(capsys, *words[:3], "--crop", "none")

    def test_other_data_sets_need_both_folders(self, tmp_path, capsys):
        assert "missing OUTPUT; usage: monai-ssl prepare acdc SOURCE OUTPUT" in fails(
            capsys, "prepare", "acdc", tmp_path
        )

    def test_training_without_it_names_the_command(self, tmp_path, capsys):
        error = fails(capsys, "train", "dtc", tmp_path / "none", "--dataset", "phantom")
        assert f"`monai-ssl prepare phantom {tmp_path / 'none'}` writes one" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["SCANS"], True),
        (["SCANS", "--seed", "1"], True),
        (["--dataset", "my.yaml", "SCANS"], True),  # options stand in any order, as of every command
        (["--seed=1", "SCANS", "--check", "no"], True),
        (["--seed", "1", "dtc", "SCANS"], False),
        (["--seed", "1", "BUNDLE"], False),
        (["--bundle", "dtc", "SCANS"], False),
        (["--check", "SCANS"], False),  # the value of an option
        (["dtc", "SCANS"], False),
        (["BUNDLE", "SCANS"], False),
        (["BUNDLE", "--seed", "1"], False),  # the scans are missing, and the message says so
        (["SCANS", "--dataset_dir", "SCANS"], False),
        (["--dataset-dir=SCANS", "SCANS"], False),
        (["dtc"], False),
        (["--seed", "1"], False),
        ([], False),
        (["/does/not/exist"], False),
    ],
)
def test_a_training_without_a_method(words, expected, tmp_path):
    from monai_ssl.cli.dispatch import _names_no_method

    (tmp_path / "scans").mkdir()
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "train.yaml").touch()
    places = {"SCANS": str(tmp_path / "scans"), "BUNDLE": str(tmp_path / "bundle")}
    assert _names_no_method([places.get(word, word) for word in words]) is expected


def test_a_training_of_nothing_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for word in ("scnas", "dct"):
        for words in ([word, "--seed", "3"], ["--seed", "3", word]):
            with pytest.raises(SystemExit):
                cli.main(["train", *words])
            assert f"got '{word}', which is neither; usage: monai-ssl train" in capsys.readouterr().err
    for words in (["dtc"], ["--seed", "3", "dtc"]):
        with pytest.raises(SystemExit):
            cli.main(["train", *words])
        assert "missing DATASET_DIR" in capsys.readouterr().err


def test_a_training_without_a_method_trains_itself(tmp_path, monkeypatch, capsys):
    from monai_ssl.runs import self_training

    seen = {}

    @functools.wraps(self_training.self_train)
    def reached(**given):
        seen.update(given)
        raise DataError("reached")

    monkeypatch.setattr(self_training, "self_train", reached)
    (tmp_path / "scans").mkdir()
    for place in (0, 2, 4):
        words = ["--dataset", "phantom", "--seed", "3"]
        words.insert(place, str(tmp_path / "scans"))
        seen.clear()
        with pytest.raises(SystemExit):
            cli.main(["train", *words])
        assert seen == {"dataset_dir": str(tmp_path / "scans"), "dataset": "phantom", "seed": 3}
        said = capsys.readouterr().err
        assert "no method is named: self-training" in said
        assert "reached" in said


@pytest.mark.parametrize("n_labeled", [7, 8, 30])
def test_many_labels_are_no_case_for_self_training_and_it_says_so(n_labeled, tmp_path, monkeypatch, capsys):
    from monai_ssl.runs import self_training

    @functools.wraps(self_training.self_train)
    def reached(**given):
        raise DataError("reached")

    monkeypatch.setattr(self_training, "self_train", reached)
    scans = tmp_path / "my scans"
    scans.mkdir()
    training = [{"image": f"{number}.nii.gz", "label": f"{number}_seg.nii.gz"} for number in range(n_labeled)]
    lists = {"training": training, "unlabeled": [{"image": "pool.nii.gz"}], "validation": [], "testing": []}
    (scans / "few.json").write_text(json.dumps(lists))
    for entry in (*training, *lists["unlabeled"]):
        for file in entry.values():
            (scans / file).touch()
    words = [scans, "--datalist", "few.json", "--dataset", "phantom"]
    assert "reached" in fails_after_log(capsys, "train", *words, "--rounds", "2")
    assert run("train", *words, "--rounds", "2") == 2
    said = capsys.readouterr().out
    told = (
        f"note: self-training is trained, on {n_labeled} labeled scans; from 8 on, no gain over training on the labels "
        "alone could be measured, and that takes less than half of the time: monai-ssl train supervised "
        f"'{scans}' --datalist few.json --dataset phantom\n"
    )
    assert said == (told if n_labeled >= 8 else "")
    for other in (["self-train", *words], ["train", *words, "--pseudo_labels", "theirs"]):  # asked for; not measured
        assert run(*other) == 2
        assert "no gain" not in capsys.readouterr().out

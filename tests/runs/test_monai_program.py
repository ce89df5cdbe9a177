"""Mistakes where MONAI's own command is the program, in a line; elsewhere exceptions stay what they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monai_ssl.cli.commands import COMMANDS
from monai_ssl.cli.parsing import parse
from monai_ssl.errors import DataError
from monai_ssl.mistakes import users_mistake
from monai_ssl.runs import say_mistakes_in_a_line
from monai_ssl.runs.monai_program import refuse_words_of_yaml

ROOT = Path(__file__).parents[2]


def bundle(*words, **environment):
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(ROOT / "bundles" / "dtc"), *words]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        ("train.yaml", ["--dataset_dir", "none"], "error: training: there is no labeled case; check dataset_dir"),
        (
            "train.yaml",
            ["--resume", "false"],
            "error: --resume: MONAI's command reads Python's words; write False, not",
        ),
        ("inference.yaml", ["--ckpt", "none.pt"], "error: ckpt: none.pt does not exist"),
    ],
)
def test_the_reason_is_the_last_line_and_the_only_one(config, words, message, tmp_path):
    done = bundle("--config_file", ROOT / "bundles" / "dtc" / "configs" / config, "--output_dir", tmp_path, *words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method#detach_target", "false"], "--method#detach_target: .* write False, not false"),
        (["--method#bank_capacity=null"], "--method#bank_capacity: .* write None, not null"),
        (["--network_def#gates", "TRUE"], "--network_def#gates: .* write True, not TRUE"),
        (["--seed", "1", "--x", "[1, [true]]"], "--x: .* write True, not true"),
        (["--x", "{a: false}"], "--x: .* write False, not false"),
    ],
)
def test_words_of_yaml_are_refused(words, message):
    with pytest.raises(DataError, match=message):
        refuse_words_of_yaml(["run", *words])


def test_other_words_pass():
    refuse_words_of_yaml(
        ["run", "--resume", "False", "--amp", "off", "--dataset=false_alarms.yaml", "--x", "null_model"]
    )
    refuse_words_of_yaml(["run", "true", "--method#ramp_up", "$None", "--flag"])


@pytest.mark.parametrize("key", ["method#auxiliary#attention", "method#detach_target", "resume", "network_def#gates"])
@pytest.mark.parametrize(("word", "value"), [("false", False), ("true", True), ("False", False)])
def test_our_command_reads_both(key, word, value):
    assert parse(COMMANDS["train"], ["caml", "scans", f"--{key}", word])[key] is value


def test_debugging_shows_the_traceback(tmp_path):
    config = ROOT / "bundles" / "dtc" / "configs" / "train.yaml"
    words = ["--config_file", config, "--output_dir", tmp_path, "--dataset_dir", "none"]
    done = bundle(*words, MONAI_SSL_DEBUG="1")
    assert "Traceback" in done.stderr


def test_other_programs_keep_their_hook():
    former = sys.excepthook
    say_mistakes_in_a_line()
    assert sys.excepthook is former


def test_a_batch_of_one_voxel_is_explained():
    error = ValueError("Expected more than 1 value per channel when training, got input size [1, 4, 1, 1, 1]")
    assert "use a patch of twice the size" in str(users_mistake(error))

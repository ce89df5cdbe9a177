"""`monai-ssl train --gpus 2`: one training in two processes, an ordinary run folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import TINY, fails, run

from monai_ssl.bundle.library import find_bundle
from monai_ssl.errors import DataError
from monai_ssl.runs.folder import Run
from monai_ssl.runs.together import check_gpus


@pytest.mark.parametrize(
    ("gpus", "device", "told"),
    [
        (0, None, "must be an integer >= 1, got 0"),
        (True, None, "must be an integer >= 1, got True"),
        (2, "cuda:1", "goes with --device cuda or cpu"),
    ],
)
def test_mistakes(gpus, device, told):
    with pytest.raises(DataError, match=told):
        check_gpus(gpus, find_bundle("dtc"), device)


def test_a_bundle_without_the_overlay_trains_on_one_gpu(tmp_path):
    check_gpus(1, tmp_path, "cuda:1")
    with pytest.raises(DataError, match=r"has no configs/multi_gpu_train\.yaml"):
        check_gpus(2, tmp_path, None)


def test_two_processes_make_an_ordinary_run(tiny_phantom, tmp_path, capsys):
    folder = tmp_path / "a run"
    assert run("train", "dtc", tiny_phantom, *TINY, "--gpus", 2, "--output", folder) == 0
    record = Run.open(folder).record
    assert record.status == "complete"
    assert "--gpus 2" in record.command
    assert Run.open(folder).identity["processes"] == 2
    assert not list(folder.glob(".together*"))
    assert run("evaluate", folder, "--section", "testing") == 0
    # what a process calls a user's mistake is the command's own: fewer iterations than the run has done
    shorter = [word if word != "4" else "2" for word in TINY]
    told = fails(capsys, "train", "dtc", tiny_phantom, *shorter, "--gpus", 2, "--output", folder)
    assert "must be at least the 4 iterations" in told


@pytest.mark.slow
def test_every_training_of_a_self_training_is_shared(tiny_phantom, tmp_path, capsys):
    assert run("self-train", tiny_phantom, *TINY, "--gpus", 2, "--output", tmp_path / "rounds") == 0
    for name in ("floor", "round-1"):
        assert Run.open(tmp_path / "rounds" / name).identity["processes"] == 2
    told = fails(capsys, "self-train", tiny_phantom, *TINY, "--gpus", 0, "--output", tmp_path / "rounds")
    assert "--gpus: must be an integer >= 1, got 0" in told


@pytest.mark.slow
def test_the_processes_end_with_the_command(tiny_phantom, tmp_path):
    folder = tmp_path / "run"
    words = [word if word != "4" else "100000" for word in TINY]
    command = [
        sys.executable,
        "-m",
        "monai_ssl",
        "train",
        "dtc",
        tiny_phantom,
        *words,
        "--gpus",
        "2",
        "--output",
        folder,
    ]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 200
        while not (folder / "checkpoint.pt").is_file() and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 30
        while _alive(folder) and time.monotonic() < end:
            time.sleep(0.1)
        assert not _alive(folder)
    finally:
        process.kill()


def _alive(folder):
    """Processes of the training, on a system that shows them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"monai_ssl.runs.together" in (text := path.read_bytes()) and os.fsencode(folder) in text:
                found.append(path.parent.name)
        except OSError:
            continue
    return found

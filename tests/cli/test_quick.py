"""Help, lists and typing errors come at once: they load neither PyTorch nor MONAI nor the numeric libraries."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "monai", "ignite", "numpy", "scipy", "nibabel", "matplotlib")
# runs a command and says which of the heavy packages it has loaded
PROBE = f"""
import sys
from monai_ssl.cli import main
try:
    main(sys.argv[1:])
finally:
    print("loaded:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""
WORDS = [
    ["--help"],
    ["--version"],
    ["list"],
    *([command, "--help"] for command in ("demo", "split", "prepare", "preset", "check", "describe", "train")),
    *([command, "--help"] for command in ("evaluate", "predict", "report", "package", "bundle", "label-app", "list")),
    ["trian"],
    ["train"],
    ["train", "dtcc", "."],
    ["train", "dtc", ".", "--max_iteration", "4"],
    ["train", "dtc", ".", "--resume", "maybe"],
    ["train", "dtc", ".", "--datset", "phantom"],
    ["train", "dtc", ".", "--dataset", "phantm"],
    ["train", "dtc", "/does/not/exist"],
    ["check", ".", "--dataset", "phantm"],
    ["split", ".", "--seed", "one"],
    ["evaluate", "."],
    ["evaluate"],
    ["evaluate", ".", "--section", "test"],
    ["predict", "run"],
    ["report", "page", "results"],
]


def cpu_seconds(*command: str) -> float:
    """User time of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, capture_output=True, check=False)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_no_heavy_package_is_loaded(words, tmp_path):
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1].strip() == "loaded:", done.stderr
    assert done.returncode == (0 if words[0] in ("--help", "--version", "list") or words[-1] == "--help" else 2)
    assert "Traceback" not in done.stderr


def test_the_probe_sees_what_a_command_loads(tiny_phantom):
    command = [sys.executable, "-c", PROBE, "check", str(tiny_phantom), "--dataset", "phantom"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "numpy" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [["--help"], ["train", "dtcc", "."], ["train", "dtc", ".", "--max_iteration", "4"]])
def test_answers_take_a_moment(words, tmp_path):
    # against a machine's own pace: half a second where Python with pydantic and PyYAML takes 0.16 s to start
    baseline = min(cpu_seconds(sys.executable, "-c", "import pydantic.main, yaml") for _ in range(3))
    taken = min(cpu_seconds(sys.executable, "-m", "monai_ssl", *words) for _ in range(3))
    assert taken < max(3 * baseline, 0.5), f"{taken:.2f} s, baseline {baseline:.2f} s"


def test_importing_the_package_loads_nothing(tmp_path):
    code = f"import sys, monai_ssl; print([name for name in {HEAVY} if name in sys.modules], len(dir(monai_ssl)) > 20)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_large_pages_are_asked_for_before_pytorch_is_loaded(tmp_path):
    """PyTorch reads the variable at its first allocation; importing the package leaves it alone."""
    code = (
        "import os, sys, monai_ssl, monai_ssl.cli; assert 'THP_MEM_ALLOC_ENABLE' not in os.environ\n"
        "monai_ssl.cli.main(['--version'])\n"
        "assert os.environ['THP_MEM_ALLOC_ENABLE'] == '1' and 'torch' not in sys.modules"
    )
    environment = {"PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)

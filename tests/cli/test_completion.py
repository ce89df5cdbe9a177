"""What the tabulator key completes."""

import shutil
import subprocess

import pytest

from monai_ssl.cli.completion import completion


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["com"], {"compare", "completion"}),
        (["train", "self"], {"self_training"}),
        (["compare", "scans", "--methods", "dtc,ug"], {"dtc,ug_mcl"}),
        (["compare", "scans", "--ref"], {"--references"}),
        (["compare", "scans", "--engine", ""], {"local", "ray", "slurm"}),
        (["compare", "scans", "--references", "floor,o"], {"floor,oracle"}),
        (["evaluate", "run", "--sec"], {"--section"}),
        (["check", "scans", "--dataset", "left_"], {"left_atrium"}),
        (["train", "dtc", "scans"], set()),  # a file
    ],
)
def test_completion(words, completed, tmp_path):
    (tmp_path / "completion.sh").write_text(completion())
    quoted = " ".join(f"'{word}'" for word in ["monai-ssl", *words])
    script = (
        f'source "$1"; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _monai_ssl; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script, "-", tmp_path / "completion.sh"], capture_output=True, text=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) == completed

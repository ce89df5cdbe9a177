"""A study as an array of jobs of a SLURM cluster: plain scripts, one array task per run, and a job for the report."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from monai_ssl.errors import PROGRAM, plural
from monai_ssl.files import write_text
from monai_ssl.runs.study.tasks import Task

console = logging.getLogger("monai_ssl.console")

FOLDER, NAMES, ARRAY, REPORT, SUBMIT = "slurm", "runs.txt", "array.sh", "report.sh", "submit.sh"
# of a job; who knows better edits the script, or gives options to submit.sh
HOURS, MEMORY_GB = 4, 16


def write_scripts(tasks: Sequence[Task], study: Path, gpus: int, threads: int, device: object = None) -> str:
    """Write ``slurm/array.sh``, ``slurm/report.sh`` and ``slurm/submit.sh`` into the study's folder.

    A run that the cluster ends is queued again and goes on; none waits for another: a self-training whose floor is not
    there yet trains it itself, to the same bits.

    Args:
        tasks: what is left to do.
        study: its folder, on a disk that all machines see.
        gpus: of one run.
        threads: of one run.
        device: where the runs are told to be; ``cpu`` asks for no GPU.

    Returns:
        the command that submits them.
    """
    folder = study / FOLDER
    write_text(folder / NAMES, "".join(f"{task.name}\n" for task in tasks))
    own, python = shlex.quote(str(study)), shlex.quote(sys.executable)
    resources = [f"#SBATCH --cpus-per-task={max(threads, 1) * (gpus if device == 'cpu' else 1) + (device != 'cpu')}",
                 f"#SBATCH --mem={MEMORY_GB}G", f"#SBATCH --time={HOURS:02d}:00:00"]  # fmt: skip
    if device != "cpu":
        resources.insert(0, f"#SBATCH --gres=gpu:{gpus}")
    array = [
        "#!/bin/bash",
        f"# Written by `{PROGRAM} compare --engine slurm`: {plural(len(tasks), 'run')}, an array task each.",
        "#SBATCH --job-name=compare",
        f"#SBATCH --array=0-{len(tasks) - 1}",
        "#SBATCH --requeue",
        "#SBATCH --signal=TERM@120",
        f"#SBATCH --output={study / FOLDER}/%A_%a.log",
        *resources,
        f"export OMP_NUM_THREADS={threads} THP_MEM_ALLOC_ENABLE=1",
        f'name=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(folder / NAMES))})',
        # SLURM's warning goes to this process, so that a step can end; then the job is queued again
        f'exec {python} -m monai_ssl.runs.study.work {own} "$name"',
    ]
    report = [
        "#!/bin/bash",
        "# Tables and report of what is done, after all tasks of the array have ended.",
        "#SBATCH --job-name=compare-report --cpus-per-task=1 --mem=8G --time=01:00:00",
        f"#SBATCH --output={study / FOLDER}/report.log",
        f"exec {python} -m monai_ssl compare {own} --jobs 0",
    ]
    submit = [
        "#!/bin/bash",
        "# Options of sbatch for the array (--partition, --account, --time, ...) may follow.",
        "set -e",
        f'id=$(sbatch --parsable "$@" {shlex.quote(str(folder / ARRAY))})',
        f'sbatch --dependency="afterany:${{id%%;*}}" {shlex.quote(str(folder / REPORT))}',
    ]
    for name, lines in ((ARRAY, array), (REPORT, report), (SUBMIT, submit)):
        write_text(folder / name, "\n".join(lines) + "\n")
    console.info("%s: edit its resources, then submit", folder / ARRAY)
    return f"bash {shlex.quote(str(folder / SUBMIT))} [options of sbatch]"

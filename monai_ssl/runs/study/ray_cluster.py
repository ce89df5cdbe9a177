"""The runs of a study on the machines of a Ray cluster, or on all cores and GPUs of this one.

Ray decides where a run goes; the run itself is the same process as everywhere, and writes into the study's folder,
which all machines must see under the same path. A machine that is lost takes no run with it: Ray starts the run
elsewhere, and it goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_ssl.errors import DataError
from monai_ssl.runs.study.local import command
from monai_ssl.runs.study.progress import Progress
from monai_ssl.runs.study.tasks import LOG, State, Task, done

console = logging.getLogger("monai_ssl.console")

# how often a run may lose its machine, and seconds between two looks
LOSSES, LOOK = 100, 0.5


def import_ray() -> Any:
    """The package Ray.

    Raises:
        DataError: when it is not installed, naming the extra.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError(
            f'engine: ray needs the package Ray ({error}); install it: pip install "monai_ssl[ray]", or use --engine '
            "local"
        ) from None
    return ray


def run_on_ray(
    left: Sequence[Task],
    tasks: Sequence[Task],
    study: Path,
    threads: int,
    gpus: int,
    device: object = None,
    ray: Any = None,
) -> dict[str, str]:
    """Do what is left of the tasks on a cluster; ``RAY_ADDRESS`` names one, else this machine becomes one.

    Args:
        left: what is not done.
        tasks: all of the study.
        study: its folder.
        threads: cores of each run.
        gpus: of each run, where the cluster has GPUs.
        device: where the runs are told to be.
        ray: the package; None: it is imported.

    Returns:
        name of a run that failed -> why.

    Raises:
        DataError: without Ray.
    """
    ray = ray or import_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING)
    failed: dict[str, str] = {}
    try:
        there = ray.cluster_resources()
        on_gpu = device != "cpu" and there.get("GPU", 0) >= gpus
        needs = {"num_cpus": threads * (1 if on_gpu else gpus), "num_gpus": gpus if on_gpu else 0}
        if there.get("CPU", 0) < needs["num_cpus"]:
            cores = f"{there.get('CPU', 0):g}"
            raise DataError(f"engine: the Ray cluster has {cores} cores, a run needs {needs['num_cpus']}")
        remote = ray.remote(max_retries=LOSSES, **needs)(in_a_process)
        waiting = {remote.remote(str(study), task.name, threads): task for task in left}
        with Progress(tasks, study) as progress:
            while waiting:
                ended, _ = ray.wait(list(waiting), timeout=LOOK)
                for reference in ended:
                    task = waiting.pop(reference)
                    try:
                        status = ray.get(reference)
                        why = "" if status == 0 else State.read(task.folder(study)).error or f"ended with {status}"
                    except Exception as error:  # whatever Ray says of a run that it cannot start
                        why = " ".join(str(error).split())[:300]
                    if done(task, study):
                        progress.ended(task)
                    else:
                        failed[task.name] = f"{why}; see {task.folder(study) / LOG}"
                        progress.failed(task, failed[task.name])
                progress.look([task.name for task in waiting.values() if _begun(task, study)], failed)
    finally:
        if started:
            ray.shutdown()
    return failed


def _begun(task: Task, study: Path) -> bool:
    return State.read(task.folder(study)).digest == task.digest


def in_a_process(study: str, name: str, threads: int) -> int:
    """One run, on whatever machine this is; it ends when the worker that waits for it is lost.

    Returns:
        its exit status.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    words = [*command(Path(study), name), "--watched"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.kill()

"""One training in several processes of this machine, a GPU each: what ``--gpus 2`` starts.

Each process runs the bundle with its overlay ``multi_gpu_train.yaml`` and finds in its environment what ``torchrun``
sets. They end when the one that started them does, however that ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ssl.errors import DataError, ResourceError, TrainingInterrupted
from monai_ssl.files import write_text
from monai_ssl.interrupts import StopRequest, end_when_asked, stop_requests

OVERLAY = "multi_gpu_train.yaml"
SETTINGS, WORDS = ".together.json", ".together-error.txt"
# seconds for the others, when one has failed
FAREWELL = 5.0


def check_gpus(gpus: Any, bundle: Path, device: Any) -> None:
    """Whether so many processes can train together here.

    Args:
        gpus: how many.
        bundle: its folder.
        device: that was asked for.

    Raises:
        DataError: when they cannot.

    Example:
        >>> check_gpus(0, Path("bundles/dtc"), None)
        Traceback (most recent call last):
        ...
        monai_ssl.errors.DataError: --gpus: must be an integer >= 1, got 0
    """
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 1:
        raise DataError(f"--gpus: must be an integer >= 1, got {gpus!r}")
    if gpus == 1:
        return
    if not (bundle / "configs" / OVERLAY).is_file():
        raise DataError(f"--gpus: the bundle {bundle.name} has no configs/{OVERLAY}, so it trains on one GPU only")
    if device not in (None, "cpu", "cuda"):
        raise DataError(f"--gpus: goes with --device cuda or cpu, every process takes one GPU; got {device!r}")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() and device != "cpu" else 0
    if count and gpus > count:
        raise DataError(f"--gpus: this machine has {count}, got {gpus}; ask for fewer")


def train_together(bundle: Path, settings: Mapping[str, Any], folder: Path, gpus: int) -> None:
    """Run a bundle's training in several processes; returns when it is finished.

    Args:
        bundle: its folder.
        settings: ids of its configs -> values, plain ones.
        folder: of the run.
        gpus: processes; without GPUs on the CPU.

    Raises:
        DataError: for what one of them calls a user's mistake.
        ResourceError: when one of them ended otherwise.
        TrainingInterrupted: when the training was asked to stop, and has saved.
    """
    given = {key: value for key, value in settings.items() if key != "device"}
    write_text(folder / SETTINGS, json.dumps(given, default=str) + "\n")
    (folder / WORDS).unlink(missing_ok=True)
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", "1")
    if settings.get("device") == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(gpus),
                    "LOCAL_WORLD_SIZE": str(gpus)}  # fmt: skip
    command = [sys.executable, "-m", "monai_ssl.runs.together", str(bundle), str(folder)]
    request, processes, asked = StopRequest(), [], 0
    with stop_requests(request):
        try:
            for rank in range(gpus):
                own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                # a session of their own: they are asked to stop once, by this process
                processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=own, start_new_session=True))
            while any(process.poll() is None for process in processes):
                if request.signal and not asked:
                    asked = request.signal
                    for process in processes:
                        process.send_signal(asked)
                if any(process.returncode for process in processes) and not asked:
                    _wait(processes, FAREWELL)  # the others may have to say why
                    break
                time.sleep(0.1)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
            (folder / SETTINGS).unlink(missing_ok=True)
    if request.signal:
        if request.signal == signal.SIGTERM:
            raise SystemExit(143)
        raise TrainingInterrupted("stopped")
    if any(process.returncode for process in processes):
        if (folder / WORDS).is_file():
            words = (folder / WORDS).read_text(encoding="utf-8").strip()
            (folder / WORDS).unlink()
            raise DataError(words)
        raise ResourceError(
            f"one of the {gpus} processes of the training ended with an error, see above; the last checkpoint is "
            "intact: run the same command again to continue"
        )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(0.1)


def main() -> int:
    """One of the processes."""
    from monai_ssl.bundle.library import run_bundle
    from monai_ssl.mistakes import users_mistake

    bundle, folder = Path(sys.argv[1]), Path(sys.argv[2])
    end_when_asked()
    threading.Thread(target=_end_with_input, daemon=True).start()
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.ERROR)
    logging.getLogger("monai_ssl").setLevel(logging.INFO if first else logging.ERROR)
    logging.getLogger("monai_ssl.engines.trainer.SemiSupervisedTrainer").setLevel(logging.ERROR)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    try:
        run_bundle(bundle, ["train.yaml", OVERLAY], settings)
    except TrainingInterrupted:
        return 130
    except Exception as error:
        words = users_mistake(error)
        if words is None:
            raise
        if first or not (folder / WORDS).exists():
            write_text(folder / WORDS, f"{words}\n")
        print(f"error: {words}", file=sys.stderr)
        return 2
    return 0


def _end_with_input() -> None:
    """The training that started this process holds the other end: when it is gone, nobody waits for this one."""
    try:
        while os.read(0, 1024):
            pass
    except OSError:
        return
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


if __name__ == "__main__":
    sys.exit(main())

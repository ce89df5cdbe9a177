"""A pool larger than memory: what training holds of it, and whether it waits for the disk.

    python benchmarks/pool.py [--parts budget,streaming] [--workers 2] [--folder /data/scratch]

``budget``: 2,000 volumes of 64 x 64 x 64 voxels train by `monai-ssl train` once with all in memory and once within a
budget (``cache_gb``). What counts is the highest sum of the proportional set sizes (PSS, what Linux charges a process
for, shared pages divided among those that share them) of the training process and its loader processes. Both must end
with the same weights, bit for bit.

``streaming``: DTC steps on left-atrium patches drawn from 500 volumes of 256 x 256 x 128 voxels that are all on disk
(``cache_gb: 0``). Their pages are dropped from the system's memory before the steps, so that the first reading of each
is a reading of the disk. Each batch is compared, bit for bit, with one from cases that were prepared in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
import yaml
from scipy.ndimage import zoom

sys.path.insert(0, str(Path(__file__).parent))
from loading import TimedLoader
from step import OUTPUT, bundle, trainer, write

from monai_ssl.data import CaseDataset, TwoStreamLoader, load_preset
from monai_ssl.data.cache import CaseCache
from monai_ssl.data.pipelines import random_transforms, training_preprocessing
from monai_ssl.transforms import SignedDistanceMapd

GB = 1e9
TARGETS = {"peak_gb": 1.5, "share_waiting": 0.05}
LABELED = 4


def main(
    parts: str = "budget,streaming",
    workers: int = 2,
    small: str = "2000x64x64x64",
    large: str = "500x256x256x128",
    cache_gb: float = 0.3,
    iterations: int = 40,
    steps: int = 12,
    folder: str | None = None,
    output: str = str(OUTPUT),
) -> None:
    """Measure and write ``pool_budget`` and ``pool_streaming`` (.json, .md) into ``output``.

    Args:
        parts: which ones, comma-separated.
        workers: loader processes.
        small: scans and voxels of the first part.
        large: scans and voxels of the second part; three times its bytes are needed on the disk.
        cache_gb: budget of the first part, in GB.
        iterations: of each training of the first part.
        steps: timed steps of the second part, after two that start the workers.
        folder: for the scans, removed at the end; default: the system's temporary folder.
        output: folder of the results.
    """
    for part in parts if isinstance(parts, (tuple, list)) else parts.split(","):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            if part == "budget":
                budget(Path(place), small, cache_gb, iterations, workers, Path(output))
            elif part == "streaming":
                streaming(Path(place), large, steps, workers, Path(output))
            else:
                raise SystemExit(f"parts must be among budget, streaming, got {part}")


# ------------------------------------------------------------------------------------------------------- the budget


def budget(folder: Path, size: str, cache_gb: float, iterations: int, workers: int, output: Path) -> None:
    """Train within memory and within a budget; compare peaks and weights."""
    count, *sides = (int(n) for n in size.split("x"))
    write_scans(folder / "scans", count, sides)
    patch = [min(48, side) for side in sides]
    preset = {"name": "pool", "labels": {0: "background", 1: "organ"}, "patch_size": patch}
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
    rows: dict[str, dict[str, float]] = {}
    weights = {}
    for name, budget_gb in (("memory", 1000.0), ("budget", cache_gb)):
        run = folder / name
        options = ["--dataset", folder / "preset.yaml", "--output", run, "--max_iterations", iterations,
                   "--cache_gb", budget_gb, "--num_workers", workers, "--network_def#base_channels", 8]  # fmt: skip
        words = [sys.executable, "-m", "monai_ssl", "train", "mean_teacher", folder / "scans", *options]
        start = time.perf_counter()
        process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)
        peak = Peak(process.pid)
        if process.wait() != 0:
            raise SystemExit(f"{name}: training failed")
        rows[name] = {**peak.close(), "cache_gb": budget_gb, "seconds": time.perf_counter() - start}
        state = torch.load(run / "model.pt", weights_only=True)
        weights[name] = digest({key: value for key, value in state.items() if isinstance(value, torch.Tensor)})
    held = 4 * count * int(np.prod(sides)) / GB
    results = {"rows": rows, "pool_gb": held, "same_weights": weights["memory"] == weights["budget"]}
    record = {
        "what": f"mean teacher on a pool of {count:,} volumes of {' x '.join(map(str, sides))} voxels "
        f"({held:.1f} GB after preparation), {iterations} iterations, {workers} loader processes",
        "targets": {"peak_gb": TARGETS["peak_gb"]},
        "results": results,
    }
    lines = ["| prepared scans | peak of all processes, GB | of it, pages of files | target | weights |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, row in rows.items():
        target = f"< {TARGETS['peak_gb']}" if name == "budget" else ""
        same = "equal, bit for bit" if results["same_weights"] else "DIFFERENT"
        text = "all in memory" if name == "memory" else f"`cache_gb` {cache_gb}, the rest mapped from disk"
        lines.append(f"| {text} | {row['peak_gb']:.2f} | {row['file_gb']:.2f} | {target} | {same} |")
    write(output / "pool_budget", record, lines, "Memory of a large pool")


# ----------------------------------------------------------------------------------------------------- the streaming


def streaming(folder: Path, size: str, steps: int, workers: int, output: Path) -> None:
    """Draw batches from cases on disk beside training steps; note the waiting, compare the batches."""
    count, *sides = (int(n) for n in size.split("x"))
    write_scans(folder / "scans", count, sides)
    preset = load_preset("left_atrium", "literature")
    cases = json.loads((folder / "scans" / "datalist.json").read_text())
    entries = {
        name: [{key: str(folder / "scans" / file) for key, file in entry.items()} for entry in cases[name]]
        for name in ("training", "unlabeled")
    }
    cache = CaseCache(0, run_folder=folder / "run")
    peak = Peak(os.getpid())
    start = time.perf_counter()
    loader = NotingLoader(**streams(entries, preset, CaseDataset, cache), num_workers=workers, epoch_length=steps + 3)
    loader.prepare()
    preparing = time.perf_counter() - start
    forget_pages(folder)
    trainer(bundle("dtc", preset.patch_size), loader, "auto").run()
    found = peak.close()
    waits, totals = loader.waits[2:], loader.totals[2:]
    again = iter(TwoStreamLoader(**streams(entries, preset, InMemory, None), num_workers=0))
    same = [note == digest(next(again)) for note in loader.notes]
    results = {
        "share_waiting": sum(waits) / sum(totals),
        "seconds_step": statistics.median(totals),
        "seconds_waiting": statistics.median(waits),
        "seconds_waiting_most": max(waits),
        "seconds_to_prepare": preparing,
        "same_batches": f"{sum(same)} of {len(same)}",
        "pool_gb": 4 * count * int(np.prod(sides)) / GB,
        **found,
    }
    record = {
        "what": f"DTC on patches of 112 x 112 x 80 from {count} volumes of {' x '.join(map(str, sides))} voxels, "
        f"all on disk ({results['pool_gb']:.1f} GB), {workers} loader processes, pages dropped before the first step",
        "workers": workers,
        "steps": len(totals),
        "targets": {"share_waiting": TARGETS["share_waiting"]},
        "results": results,
    }
    lines = [
        "| s per step | waiting for data | longest | share | target | batches equal to those from memory | peak, GB |",
        "|---|---|---|---|---|---|---|",
        f"| {results['seconds_step']:.2f} | {results['seconds_waiting']:.4f} | {max(waits):.4f} | "
        f"{100 * results['share_waiting']:.2f} % | < {100 * TARGETS['share_waiting']:.0f} % | "
        f"{results['same_batches']} | {found['peak_gb']:.2f} |",
    ]
    write(output / "pool_streaming", record, lines, "Scans streamed from disk")


def streams(entries: Any, preset: Any, kind: type[CaseDataset], cache: CaseCache | None) -> dict[str, Any]:
    """The two streams of DTC's bundle."""
    return {
        "labeled": kind(entries["training"], training_preprocessing(preset), cache=cache),
        "unlabeled": kind(entries["unlabeled"], training_preprocessing(preset, label=False), cache=cache),
        "labeled_transforms": [*random_transforms(preset), SignedDistanceMapd("label", n_classes=2)],
        "unlabeled_transforms": random_transforms(preset, label=False),
    }


class NotingLoader(TimedLoader):
    """Notes what the batches hold, too, while the clock stands still."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in super().__iter__():
            self.notes.append(digest(batch))  # counts for the step, not for the waiting
            yield batch


class InMemory(CaseDataset):
    """Prepares a case when it is asked for, and keeps none: no cache has a part in it."""

    def prepare(self) -> None:
        self.ready = True

    def _transform(self, index: int) -> Any:
        return self._load(index)


# ------------------------------------------------------------------------------------------------------------- tools


def write_scans(folder: Path, count: int, sides: list[int]) -> None:
    """Smooth volumes, no two alike, as uncompressed NIfTI of 16 bits; four labels; a datalist."""
    folder.mkdir()
    random = np.random.RandomState(0)
    smooth = [
        zoom(random.randn(*(side // 8 for side in sides)), 8, order=1, grid_mode=True, mode="grid-wrap")
        for _ in range(4)
    ]
    smooth = [(300 * volume / volume.std()).astype(np.int16) for volume in smooth]

    def one(index: int) -> None:
        noise = np.random.RandomState(index).randint(-50, 50, sides[-1], dtype=np.int16)
        nib.save(nib.Nifti1Image(smooth[index % 4] + noise, np.eye(4)), folder / f"scan{index:04d}.nii")
        if index < LABELED:
            mask = (smooth[index % 4] > 200).astype(np.uint8)
            nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / f"label{index:04d}.nii")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(count + LABELED)))
    pairs = [{"image": f"scan{i:04d}.nii", "label": f"label{i:04d}.nii"} for i in range(LABELED)]
    pool_entries = [{"image": f"scan{i:04d}.nii"} for i in range(LABELED, count + LABELED)]
    (folder / "datalist.json").write_text(json.dumps({"training": pairs, "unlabeled": pool_entries}))


def forget_pages(folder: Path) -> None:
    """Ask the system to drop what it holds of the files, after they are on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def digest(value: Any) -> str:
    """Of all tensors in nested dictionaries."""
    found = hashlib.blake2b(digest_size=16)

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            for key in sorted(part):
                found.update(str(key).encode())
                walk(part[key])
        elif isinstance(part, torch.Tensor):
            found.update(part.contiguous().numpy().tobytes())

    walk(value)
    return found.hexdigest()


class Peak:
    """Samples what a process and its children take, four times a second, until it is closed."""

    def __init__(self, process: int) -> None:
        self.process, self.best = process, {"peak_gb": 0.0, "anonymous_gb": 0.0, "file_gb": 0.0}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done.wait(0.25):
            found = [memory(process) for process in family(self.process)]
            total = sum(part["Pss"] for part in found) / GB
            if total > self.best["peak_gb"]:
                shared = sum(part["Pss_File"] for part in found) / GB
                self.best = {"peak_gb": total, "anonymous_gb": total - shared, "file_gb": shared}

    def close(self) -> dict[str, float]:
        """The highest total, and how much of it were pages of files, which the system may drop."""
        self.done.set()
        self.thread.join()
        return self.best


def family(process: int) -> list[int]:
    """A process and everything that it has started."""
    found = [process]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def memory(process: int) -> dict[str, int]:
    """Bytes by kind; all zero when the process has ended."""
    found = {"Pss": 0, "Pss_File": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = 1024 * int(rest.split()[0])
    return found


if __name__ == "__main__":
    fire.Fire(main)

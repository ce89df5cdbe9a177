"""Waiting for data: share of the training step that DTC at left-atrium patch size spends waiting for its loader.

    python benchmarks/loading.py [--iterations 8] [--num_workers 2] [--amp auto]

The real chain: two streams, literature augmentation, crops of 112 x 112 x 80, signed distance maps in the workers; the
cases are smooth random arrays of the size of left-atrium scans.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Events
from scipy.ndimage import gaussian_filter
from step import OUTPUT, write

from monai_ssl.data import CaseDataset, TwoStreamLoader, load_preset
from monai_ssl.engines import SemiSupervisedTrainer
from monai_ssl.methods import DualTaskConsistency
from monai_ssl.networks import DualTaskVNet
from monai_ssl.transforms import SignedDistanceMapd


def cases(folder: Path, n: int) -> list[dict[str, str]]:
    """Scans of 192 x 144 x 88 voxels with a blob as label."""
    entries = []
    for i in range(n):
        noise = gaussian_filter(np.random.RandomState(i).randn(48, 36, 22), 4)
        image = np.kron(noise / noise.std(), np.ones((4, 4, 4))).astype(np.float32)
        entry = {"image": str(folder / f"image{i}.nii.gz"), "label": str(folder / f"label{i}.nii.gz")}
        nib.save(nib.Nifti1Image(image, np.diag([0.625, 0.625, 0.625, 1.0])), entry["image"])
        nib.save(nib.Nifti1Image((image > 1.2).astype(np.uint8), np.diag([0.625, 0.625, 0.625, 1.0])), entry["label"])
        entries.append(entry)
    return entries


def main(
    iterations: int = 8, num_workers: int = 2, threads: int = 2, amp: str = "auto", output: str = str(OUTPUT)
) -> None:
    """Measure; write loading.json and loading.md."""
    torch.set_num_threads(threads)
    preset = load_preset("left_atrium", "literature")
    with tempfile.TemporaryDirectory() as folder:
        entries = cases(Path(folder), 6)
        loader = TwoStreamLoader(
            CaseDataset(entries[:2], preset.training_preprocessing()),
            CaseDataset([{"image": e["image"]} for e in entries[2:]], preset.training_preprocessing(label=False)),
            [*preset.random_transforms(), SignedDistanceMapd("label")],
            preset.random_transforms(label=False),
            epoch_length=iterations,
            num_workers=num_workers,
        )
        method = DualTaskConsistency(DualTaskVNet())
        trainer = SemiSupervisedTrainer(
            "cpu", 1, loader, method, torch.optim.SGD(method.parameters(), lr=0.01), amp=amp, max_iterations=iterations
        )
        times: dict[str, list[float]] = {"waiting": [], "step": []}
        clock = {"last": time.perf_counter()}

        def lap(engine: Any, name: str) -> None:
            now = time.perf_counter()
            times[name].append(now - clock["last"])
            clock["last"] = now

        def begin(engine: Any) -> None:
            clock["last"] = time.perf_counter()

        trainer.add_event_handler(Events.GET_BATCH_STARTED, begin)
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lap, "waiting")
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lap, "step")
        trainer.run()
    # the first iterations fill the loader's queue and warm the step up
    waiting, step = (statistics.mean(times[name][2:]) for name in ("waiting", "step"))
    share = waiting / (waiting + step)
    record = {
        "waiting_seconds": waiting,
        "step_seconds": step,
        "share": share,
        "target": 0.05,
        "what": f"DTC, batch 2+2 of 112 x 112 x 80, {num_workers} loader workers, {threads} threads, amp {amp}",
    }
    lines = [
        "| waiting s | step s | share of the step spent waiting | target |",
        "|---|---|---|---|",
        f"| {waiting:.3f} | {step:.2f} | {100 * share:.1f} % | < 5 % |",
    ]
    write(Path(output) / "loading", record, lines, "Waiting for data")


if __name__ == "__main__":
    fire.Fire(main)

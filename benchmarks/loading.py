"""Share of a training step that waits for data: DTC on left-atrium patches, augmentation and distance maps in workers.

    python benchmarks/loading.py [--workers 2] [--threads 2] [--steps 4]

The data set is random but smooth, NIfTI files in a temporary folder; the loader, the augmentation, the distance maps
and the trainer are those of the DTC bundle with the ``literature`` flavor of the preset ``left_atrium``.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from inference import smooth_volume
from scipy.ndimage import gaussian_filter
from step import OUTPUT, bundle, trainer, write

from monai_ssl.data import CaseDataset, TwoStreamLoader, load_preset
from monai_ssl.data.pipelines import random_transforms, training_preprocessing
from monai_ssl.transforms import SignedDistanceMapd

TARGET = 0.05


def main(
    workers: int = 2,
    threads: int = 2,
    steps: int = 4,
    size: str = "192x160x88",
    amp: str = "auto",
    output: str = str(OUTPUT),
) -> None:
    """Measure and write ``loading.json`` and ``loading.md`` into ``output``.

    Args:
        workers: loader processes.
        threads: of PyTorch in the training process.
        steps: timed steps, after one that starts the workers.
        size: of the volumes.
        amp: number format, see ``monai_ssl.engines.autocast_dtype``.
        output: folder.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    preset = load_preset("left_atrium", "literature")
    with tempfile.TemporaryDirectory() as folder:
        labeled = [write_case(Path(folder), f"labeled{i}", size, label=True) for i in range(4)]
        unlabeled = [write_case(Path(folder), f"unlabeled{i}", size, label=False) for i in range(4)]
        options: dict[str, Any] = {
            "labeled": CaseDataset(labeled, training_preprocessing(preset)),
            "unlabeled": CaseDataset(unlabeled, training_preprocessing(preset, label=False)),
            "labeled_transforms": [*random_transforms(preset), SignedDistanceMapd("label", n_classes=2)],
            "unlabeled_transforms": random_transforms(preset, label=False),
        }
        alone = iter(TwoStreamLoader(**options, num_workers=0))
        start = time.perf_counter()
        for _ in range(3):
            next(alone)
        preparing = (time.perf_counter() - start) / 3
        loader = TimedLoader(**options, epoch_length=steps + 2, num_workers=workers)
        trainer(bundle("dtc", preset.patch_size), loader, amp).run()
    waits, totals = loader.waits[1:], loader.totals[1:]
    shares = [wait / total for wait, total in zip(waits, totals, strict=True)]
    results = {
        "share_waiting": sum(waits) / sum(totals),
        "seconds_step": statistics.median(totals),
        "seconds_waiting": statistics.median(waits),
        "seconds_to_prepare_a_batch": preparing,
        "shares": shares,
    }
    record = {
        "what": "DTC on patches of 112 x 112 x 80, batch of 2 labeled and 2 unlabeled, loader processes at work",
        "workers": workers,
        "threads": threads,
        "steps": steps,
        "targets": {"share_waiting": TARGET},
        "results": results,
    }
    lines = [
        "| loader processes | s per step | waiting for data | share | target | s to prepare a batch in one process |",
        "|---|---|---|---|---|---|",
        f"| {workers} | {results['seconds_step']:.2f} | {results['seconds_waiting']:.4f} | "
        f"{100 * results['share_waiting']:.2f} % | < {100 * TARGET:.0f} % | {preparing:.2f} |",
    ]
    write(Path(output) / "loading", record, lines, "Waiting for data")


def write_case(folder: Path, name: str, size: str, label: bool) -> dict[str, str]:
    """An image and, if asked for, a blob as its label; the datalist entry."""
    entry = {"image": str(folder / f"{name}.nii.gz")}
    image = smooth_volume(size)
    nib.save(nib.Nifti1Image(image, np.eye(4)), entry["image"])
    if label:
        entry["label"] = str(folder / f"{name}_label.nii.gz")
        blobs = gaussian_filter(image, 8)
        grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in image.shape), indexing="ij")
        mask = sum(g**2 for g in grid) + blobs / blobs.std() / 8 < 0.3  # one body with an uneven surface
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), entry["label"])
    return entry


class TimedLoader(TwoStreamLoader):
    """Notes how long each batch kept the training waiting, and the time from batch to batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.waits: list[float] = []
        self.totals: list[float] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches)
            got = time.perf_counter()
            yield batch
            end = time.perf_counter()
            self.waits.append(got - start)
            self.totals.append(end - start)
            print(f"step {len(self.totals)}: {end - start:.2f} s, waited {got - start:.4f} s", flush=True)


if __name__ == "__main__":
    fire.Fire(main)

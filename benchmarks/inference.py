"""Inference of one left-atrium scan: the released test script's way, ours with its windows, ours with the fast default.

    python benchmarks/inference.py [--run RUN --dataset_dir DIR --datalist FILE] [--threads 2]

All three apply the same weights. With a trained run, the mean Dice of both window settings on the datalist's validation
cases is reported as well.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from plain import sliding_window
from step import OUTPUT, write
from torch import nn

from monai_ssl.data import load_datalist, load_preset
from monai_ssl.engines import WindowInferer
from monai_ssl.handlers import load_network
from monai_ssl.metrics import dice_score
from monai_ssl.networks import DualTaskVNet

SHAPE = (192, 144, 88)  # median left-atrium scan


class OneLogit(nn.Module):
    """What the plain script applies: the foreground logit of the deployed network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x)
        return logits[:, 1:] - logits[:, :1]


def inferer(flavour: str, amp: str) -> WindowInferer:
    """The inferer that the bundles build from the preset `left_atrium`."""
    preset = load_preset("left_atrium", flavour)
    w = preset.window
    return WindowInferer(preset.patch_size, w.stride, w.overlap, w.mode, w.batch_size, amp)


def main(
    run: str | None = None,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    threads: int = 2,
    repeats: int = 1,
    output: str = str(OUTPUT),
) -> None:
    """Measure; write inference.json and inference.md."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = DualTaskVNet().eval()
    if run is not None:
        load_network(network, Path(run) / "model.pt")
    image = torch.rand(1, 1, *SHAPE)
    plain_network, patch = OneLogit(network), (112, 112, 80)
    ways: dict[str, Any] = {
        "released way: 18 x 18 x 4, window by window": lambda: sliding_window(
            plain_network, image[0, 0].numpy(), patch, (18, 18, 4)
        ),
        "ours, 18 x 18 x 4, float32": lambda: inferer("literature", "off")(image, network)[0, 1].numpy(),
        "ours, 18 x 18 x 4, automatic precision": lambda: inferer("literature", "auto")(image, network)[0, 1].numpy(),
        "ours, fast default windows, automatic precision": lambda: inferer("practical", "auto")(image, network)[
            0, 1
        ].numpy(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    outputs = {}
    with torch.inference_mode():
        network(torch.rand(1, 1, 32, 32, 32))
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                outputs[name] = way()
                seconds[name].append(time.perf_counter() - start)
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    names = list(ways)
    plain = statistics.median(seconds[names[0]])
    record: dict[str, Any] = {"shape": SHAPE, "threads": threads, "run": run and Path(run).name, "ways": {}}
    lines = ["| windows | s | ratio | mean difference of the probability |", "|---|---|---|---|"]
    for name in names:
        median = statistics.median(seconds[name])
        difference = float(np.abs(outputs[name] - outputs[names[0]]).mean())
        record["ways"][name] = {"seconds": median, "ratio": median / plain, "difference": difference}
        lines.append(f"| {name} | {median:.1f} | {median / plain:.3f} | {difference:.1e} |")
    if run is not None and dataset_dir is not None and datalist is not None:
        record["dice"] = _dice(network, dataset_dir, datalist)
        lines += ["", "Mean Dice on the validation cases with the weights of the run:", ""]
        lines += [f"- {name}: {100 * value:.2f}" for name, value in record["dice"].items()]
    record["what"] = (
        f"one scan of {SHAPE[0]} x {SHAPE[1]} x {SHAPE[2]} voxels, patches 112 x 112 x 80, {threads} threads"
    )
    write(Path(output) / "inference", record, lines, "Inference of one left-atrium scan")


def _dice(network: nn.Module, dataset_dir: str, datalist: str) -> dict[str, float]:
    """Both window settings on the same images, intensities as the run was trained (preset's literature flavour)."""
    preprocessing = load_preset("left_atrium", "literature").validation_preprocessing()
    found: dict[str, list[float]] = {}
    for entry in load_datalist(datalist, dataset_dir).require("validation"):
        item: Any = preprocessing(entry)
        label = item["label"][0].numpy() > 0
        for name, way in {
            "literature windows, float32": inferer("literature", "off"),
            "fast default windows, automatic precision": inferer("practical", "auto"),
        }.items():
            with torch.inference_mode():
                probability = way(item["image"][None].as_tensor(), network)[0, 1].numpy()
            found.setdefault(name, []).append(dice_score(probability > 0.5, label))
        print(Path(entry["image"]).name, *(f"{values[-1]:.4f}" for values in found.values()), flush=True)
    return {name: float(np.mean(values)) for name, values in found.items()}


if __name__ == "__main__":
    fire.Fire(main)

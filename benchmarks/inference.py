"""Seconds to segment one left-atrium scan: the plain loop, ours with the literature's windows, ours with the fast ones.

    python benchmarks/inference.py [--image scan.nii.gz] [--threads 2] [--repeats 1]
    python benchmarks/inference.py --run runs/dtc --dataset_dir DIR --datalist FILE

All three run the same weights, in turn. With ``--run`` the network of that run also segments the validation cases of
the datalist with both window settings, and the mean Dice of both stands beside the times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from plain_dtc import PlainVNet, sliding_window
from step import OUTPUT, write
from torch import Tensor, nn

from monai_ssl.data import Preset, load_datalist, load_preset
from monai_ssl.data.pipelines import preprocessing
from monai_ssl.data.preset import Window
from monai_ssl.engines import WindowInferer
from monai_ssl.metrics import dice_score
from monai_ssl.networks import DualTaskVNet, VNet
from monai_ssl.weights import load_network

ROWS = {"plain": "plain loop", "literature": "ours, the literature's windows", "fast": "ours, fast windows (default)"}
TARGETS = {"fast_time_ratio": 0.1, "fast_dice_loss_points": 0.3}


def main(
    image: str | None = None,
    size: str = "192x144x88",
    threads: int = 2,
    repeats: int = 1,
    amp: str = "auto",
    run: str | None = None,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    output: str = str(OUTPUT),
) -> None:
    """Measure and write ``inference.json`` and ``inference.md`` into ``output``.

    Args:
        image: NIfTI file; None: a smooth random volume.
        size: of that volume.
        threads: of PyTorch.
        repeats: timed runs of each.
        amp: number format of ours, see ``monai_ssl.engines.autocast_dtype``.
        run: folder that ``monai-ssl train`` wrote; its network is used for the Dice comparison.
        dataset_dir, datalist: data of that comparison.
        output: folder.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    scan = smooth_volume(size) if image is None else nib.load(image).get_fdata(dtype=np.float32)
    results = measure(scan, repeats, amp)
    record: dict[str, Any] = {
        "what": f"one scan of {' x '.join(map(str, scan.shape))} voxels, window 112 x 112 x 80, weights in memory",
        "threads": threads,
        "repeats": repeats,
        "image": Path(image).name if image else f"smooth random volume {size}",
        "targets": TARGETS,
        "results": results,
    }
    lines = [
        "| | windows | s | ratio | mean (largest) difference of the probability from the plain loop |",
        "|---|---|---|---|---|",
    ]
    for name, row in results.items():
        difference = "" if name == "plain" else f"{row['mean_difference']:.1e} ({row['largest_difference']:.1e})"
        lines.append(
            f"| {ROWS[name]} | {row['windows']} | {row['seconds']:.2f} | {row['time_ratio']:.3f} | {difference} |"
        )
    lines += ["", f"Target: fast windows in at most {TARGETS['fast_time_ratio']} of the plain loop's time."]
    if run is not None:
        record["dice"] = dice = compare_dice(Path(run), dataset_dir, datalist, amp)
        lines += [
            "",
            f"Mean Dice of `{dice['run']}` on {dice['cases']} validation cases: {100 * dice['literature']:.2f} with the "  # noqa: E501
            f"literature's windows, {100 * dice['fast']:.2f} with the fast ones (target: a loss below "
            f"{TARGETS['fast_dice_loss_points']} points); {dice['seconds_literature']:.2f} and "
            f"{dice['seconds_fast']:.2f} s per case.",
        ]
    write(Path(output) / "inference", record, lines, "Cost of segmenting a scan")


def smooth_volume(size: str) -> np.ndarray:
    """A volume of zero mean and unit variance whose neighbors resemble each other."""
    sides = [int(side) for side in size.split("x")]
    coarse = torch.randn(1, 1, *(max(side // 8, 2) for side in sides))
    volume = nn.functional.interpolate(coarse, size=sides, mode="trilinear")[0, 0] + 0.1 * torch.randn(sides)
    return ((volume - volume.mean()) / volume.std()).numpy()


def window_inferer(preset: Preset, window: Window, amp: str) -> WindowInferer:
    """The inferer as the bundles build it."""
    return WindowInferer(
        roi_size=preset.patch_size,
        stride=window.stride,
        overlap=window.overlap,
        mode=window.mode,
        sw_batch_size=window.batch_size,
        amp=amp,
    )


def measure(scan: np.ndarray, repeats: int, amp: str) -> dict[str, dict[str, Any]]:
    """Times and probabilities of the three, in turn."""
    literature, practical = (load_preset("left_atrium", flavor) for flavor in ("literature", "practical"))
    ours = DualTaskVNet()
    settle(ours, literature.patch_size)
    plain = PlainVNet()
    copy_weights(ours, plain)
    volume = torch.from_numpy(scan)[None, None]
    count = {"n": 0}

    def counted(network: nn.Module) -> Callable[..., Any]:
        handle = network.register_forward_hook(lambda *_: count.update(n=count["n"] + 1))
        return handle.remove

    def run_ours(window: Window, preset: Preset) -> np.ndarray:
        with torch.inference_mode():
            return window_inferer(preset, window, amp)(volume, ours)[0, 1].numpy()

    assert literature.window.stride is not None
    patch, stride = literature.patch_size, literature.window.stride
    runs: dict[str, tuple[nn.Module, Callable[[], np.ndarray]]] = {
        "plain": (plain, lambda: sliding_window(plain, scan, patch, stride)),
        "literature": (ours, lambda: run_ours(literature.window, literature)),
        "fast": (ours, lambda: run_ours(practical.window, practical)),
    }
    ours.eval()
    plain.eval()
    run_ours(practical.window, practical)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, np.ndarray] = {}
    windows: dict[str, int] = {}
    for _ in range(repeats):
        for name, (network, function) in runs.items():
            count["n"] = 0
            remove = counted(network)
            start = time.perf_counter()
            found[name] = function()
            times[name].append(time.perf_counter() - start)
            remove()
            windows[name] = count["n"]
            print(f"{ROWS[name]}: {windows[name]} windows, {times[name][-1]:.2f} s", flush=True)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "windows": windows[name],
            "seconds": median[name],
            "time_ratio": median[name] / median["plain"],
            "mean_difference": float(np.abs(found[name] - found["plain"]).mean()),
            "largest_difference": float(np.abs(found[name] - found["plain"]).max()),
            "times": times[name],
        }
        for name in runs
    }


@torch.no_grad()
def settle(network: nn.Module, patch: tuple[int, ...]) -> None:
    """Running statistics of a few random patches, so that an untrained network is no constant."""
    network.train()
    for _ in range(2):
        network(torch.from_numpy(smooth_volume("x".join(str(side // 2 // 16 * 16) for side in patch)))[None, None])


def copy_weights(ours: nn.Module, plain: nn.Module) -> None:
    """The same weights in the plain network; both list the trunk in the same order."""
    source = ours.state_dict()
    trunk = [value for key, value in source.items() if key.startswith("backbone.")]
    heads = [source[f"{head}_head.{kind}"] for head in ("distance", "segmentation") for kind in ("weight", "bias")]
    plain.load_state_dict(dict(zip(plain.state_dict(), trunk + heads, strict=True)))


def compare_dice(run: Path, dataset_dir: str | None, datalist: str | None, amp: str) -> dict[str, Any]:
    """Mean Dice of a trained run on the validation cases, with its own windows and with the fast ones."""
    preset = load_preset(run / "preset.yaml")
    weights = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
    dual = any(key.startswith("backbone.") for key in weights)
    network: nn.Module = (
        DualTaskVNet(preset.spatial_dims, preset.in_channels, preset.n_classes)
        if dual
        else VNet(preset.spatial_dims, preset.in_channels, preset.n_classes)
    )
    load_network(network, run / "model.pt")
    network.eval()
    entries = load_datalist(datalist, dataset_dir).require("validation")
    settings = {"literature": preset.window, "fast": load_preset("left_atrium", "practical").window}
    dice: dict[str, list[float]] = {name: [] for name in settings}
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    prepare = preprocessing(preset, label=True)
    for entry in entries:
        item: Any = prepare(dict(entry))
        image: Tensor = item["image"].as_tensor()[None]
        label = np.asarray(item["label"][0])
        for name, window in settings.items():
            start = time.perf_counter()
            with torch.inference_mode():
                prediction = window_inferer(preset, window, amp)(image, network).argmax(1)[0].numpy()
            seconds[name].append(time.perf_counter() - start)
            classes = range(1, preset.n_classes)
            dice[name].append(float(np.mean([dice_score(prediction == c, label == c) for c in classes])))
        name = Path(str(entry["image"])).name
        print(f"{name}: Dice {dice['literature'][-1]:.4f}, fast {dice['fast'][-1]:.4f}", flush=True)
    return {
        "run": run.name,
        "cases": len(entries),
        "windows": {name: window.model_dump(mode="json") for name, window in settings.items()},
        **{name: float(np.mean(values)) for name, values in dice.items()},
        **{f"seconds_{name}": statistics.median(values) for name, values in seconds.items()},
        "per_case": dice,
    }


if __name__ == "__main__":
    fire.Fire(main)

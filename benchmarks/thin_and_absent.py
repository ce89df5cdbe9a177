"""Thin and absent classes, slice by slice: the labels, the distance maps, and what trained runs make of them.

    python benchmarks/thin_and_absent.py --data DIR/acdc --runs studies/acdc/runs --output docs/results/acdc

Reads the runs of ``monai-ssl compare benchmarks/studies/acdc.yaml``. A class is *absent* from a slice without a voxel
of it; *thin* where no voxel of it is more than ``THIN`` pixels away from the outside. Labels are counted on labeled
training slices and on validation slices, all else on the latter. Writes ``thin_and_absent.md``, ``.json`` and ``.png``.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import fire
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import torch
from monai.transforms import KeepLargestConnectedComponent
from PIL import Image
from scipy.ndimage import distance_transform_edt

sys.path.insert(0, str(Path(__file__).parent))
from step import write

from monai_ssl.bundle.library import find_bundle
from monai_ssl.data import load_datalist
from monai_ssl.data.cases import case_names
from monai_ssl.losses import SmoothHeaviside
from monai_ssl.metrics import case_metrics
from monai_ssl.reports.figures import class_color, draw_outline, draw_slice
from monai_ssl.runs.predict import open_segmenter
from monai_ssl.transforms.signed_distance import signed_distance_map

THIN = 3.0
GROUPS = ("floor", "dtc-matched_floor", "dtc", "ceiling")
KINDS = ("absent", "thin", "thick")
MEASURES = ("distance head's Dice", "agreement", "consistency term", "mean distance", "mean distance of the label")
SIDE = 128


def main(data: str, runs: str, output: str = "docs/results/acdc", datalist: str = "acdc_7_63_val10.json") -> None:
    """Measure, draw, write.

    Args:
        data: folder of the prepared data set.
        runs: folder of the finished runs.
        output: folder of the results.
        datalist: of the runs.
    """
    cases = load_datalist(datalist, data)
    names = {c: cases.labels[c] for c in sorted(cases.labels) if c}
    training = [_volume(entry["label"]) for entry in cases.require("training")]
    validation = cases.require("validation")
    labels = dict(zip(case_names(validation), (_volume(e["label"]) for e in validation), strict=True))
    record: dict[str, Any] = {
        "what": f"slices in which a class is absent, thin (nowhere deeper than {THIN:g} pixels) or thick",
        "census": {
            "training, labeled": census(training, names),
            "validation": census(list(labels.values()), names),
        },
        "predictions": {},
    }
    found: dict[str, dict[str, Path]] = {}
    for group in GROUPS:
        folders = sorted(Path(runs).glob(f"{group}-seed*/evaluation-validation/predictions"))
        if folders:
            found[group] = {folder.parents[1].name.rsplit("seed", 1)[1]: folder for folder in folders}
    for group, folders in found.items():
        predictions = [_predictions(folder, labels) for folder in folders.values()]
        record["predictions"][group] = {
            "seeds": list(folders),
            "classes": _mean([compare(labels, p, names) for p in predictions]),
            "components": _mean([components(labels, p, names) for p in predictions]),
        }
    heads = [two_heads(folder.parents[1], validation, labels, names) for folder in found.get("dtc", {}).values()]
    if heads:
        record["two_heads"] = {"seeds": list(found["dtc"]), "classes": _mean([h[0] for h in heads])}
        images = {n: e["image"] for n, e in zip(labels, validation, strict=True)}
        shown = [
            (_volume(images[name]), labels[name], distances,
             {g: _predictions(next(iter(f.values())), [name])[name] for g, f in found.items()})
            for name, distances in heads[0][1].items()
        ]  # fmt: skip
        figure(Path(output) / "thin_and_absent.png", shown, names)
    write(
        Path(output) / "thin_and_absent",
        record,
        tables(record, bool(heads)),
        "Thin and absent classes: ACDC, slice by slice",
    )


def _volume(path: Any) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def _predictions(folder: Path, names: Any) -> dict[str, np.ndarray]:
    files = {f.name.split(".")[0].removesuffix("_seg"): f for f in folder.rglob("*.nii.gz")}
    return {name: _volume(files[Path(name).name]) for name in names}


def kind_of(mask: np.ndarray) -> str:
    """``absent``, ``thin`` or ``thick``: one class in one slice."""
    if not mask.any():
        return "absent"
    return "thin" if distance_transform_edt(np.pad(mask, 1)).max() <= THIN else "thick"


def census(volumes: list[np.ndarray], names: dict[int, str]) -> dict[str, dict[str, float]]:
    """Per class: slices of each kind, median area, and how far inside its deepest pixel lies."""
    rows = {}
    for c, name in names.items():
        masks = [v[..., k] == c for v in volumes for k in range(v.shape[-1])]
        kinds = [kind_of(mask) for mask in masks]
        depth = [distance_transform_edt(np.pad(m, 1)).max() for m in masks if m.any()]
        rows[name] = {
            "slices": len(masks),
            **{kind: kinds.count(kind) for kind in KINDS},
            "all boundary": int(sum(d <= 1 for d in depth)),
            "median area": float(np.median([m.sum() for m in masks if m.any()])),
            "median depth": float(np.median(depth)),
        }
    return rows


def compare(
    labels: dict[str, np.ndarray], predictions: dict[str, np.ndarray], names: dict[int, str]
) -> dict[str, dict[str, float]]:
    """Per class: false alarms in slices without it, misses and mean slice Dice in slices with it."""
    rows = {}
    for c, name in names.items():
        absent, missed = [], 0
        dice: dict[str, list[float]] = {"thin": [], "thick": []}
        for case, label in labels.items():
            for k in range(label.shape[-1]):
                truth, found = label[..., k] == c, predictions[case][..., k] == c
                kind = kind_of(truth)
                if kind == "absent":
                    absent.append(int(found.sum()))
                else:
                    missed += not found.any()
                    dice[kind].append(2.0 * (truth & found).sum() / (truth.sum() + found.sum()))
        alarms = [n for n in absent if n]
        rows[name] = {
            "absent": len(absent),
            "false alarms": len(alarms),
            "pixels per false alarm": float(np.mean(alarms)) if alarms else 0.0,
            "present": sum(map(len, dice.values())),
            "missed": missed,
            **{f"dice {kind}": float(np.mean(v)) if v else float("nan") for kind, v in dice.items()},
        }
    return rows


def components(
    labels: dict[str, np.ndarray], predictions: dict[str, np.ndarray], names: dict[int, str]
) -> dict[str, dict[str, float]]:
    """Per class: Dice and 95HD of the volumes as they are, and with the largest component of each class alone."""
    clean = KeepLargestConnectedComponent(list(names), is_onehot=False)
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in names.values()}
    for case, label in labels.items():
        as_is = predictions[case]
        largest = clean(torch.from_numpy(as_is.astype(np.int64))[None])[0].numpy().astype(np.int64)
        for what, prediction in (("as is", as_is), ("largest", largest)):
            for row in case_metrics(prediction, label, names, 1.0):
                for metric in ("dice", "hd95_voxel"):
                    rows[row["class"]].setdefault(f"{metric} {what}", []).append(row[metric])
    return {name: {key: float(np.mean(v)) for key, v in values.items()} for name, values in rows.items()}


@torch.no_grad()
def two_heads(
    run: Path, validation: list[dict], labels: dict[str, np.ndarray], names: dict[int, str]
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """What DTC's two heads say of the center of every slice; distances of the cases with fewest and most absences."""
    preset = run / "preset.yaml"
    overrides = {"dataset": str(preset), "ckpt": str(run / "model.pt"), "device": "cpu"}
    segmenter = open_segmenter(find_bundle("dtc"), overrides)
    heaviside = SmoothHeaviside(1500.0)
    sums: dict[tuple[str, str], list[tuple[float, ...]]] = {(n, k): [] for n in names.values() for k in KINDS}

    def absences(name: str) -> int:
        label = labels[name]
        return sum(not (label[..., k] == c).any() for c in names for k in range(label.shape[-1]))

    distances: dict[str, np.ndarray] = {min(labels, key=absences): np.zeros(0), max(labels, key=absences): np.zeros(0)}
    for (case, label), entry in zip(labels.items(), validation, strict=True):
        image = segmenter.prepare(entry["image"])["image"].as_tensor()
        image, place = _central(image)
        logits, raw = segmenter.network.tasks(image.permute(3, 0, 1, 2).float())
        p, d = logits.softmax(1)[:, 1:], raw.tanh()
        soft = heaviside(d)
        if case in distances:
            distances[case] = np.full((len(names), *label.shape), np.nan, dtype=np.float32)
            distances[case][:, place[0], place[1]] = d.permute(1, 2, 3, 0).numpy()
        for k in range(label.shape[-1]):
            for i, (c, name) in enumerate(names.items()):
                truth = label[..., k] == c
                inside = truth[place[0], place[1]]
                first, second = (p[k, i] > 0.5).numpy(), (soft[k, i] > 0.5).numpy()
                both = first.sum() + second.sum()
                agreement = 2.0 * (first & second).sum() / both if both else 1.0
                size = second.sum() + inside.sum()
                dice = 2.0 * (second & inside).sum() / size if size else 1.0
                gap = float((p[k, i] - soft[k, i]).square().mean())
                target = float(signed_distance_map(inside).mean())
                sums[name, kind_of(truth)].append((float(dice), float(agreement), gap, float(d[k, i].mean()), target))
    rows = {
        name: {
            f"{what} {kind}": float(np.mean([v[j] for v in sums[name, kind]])) if sums[name, kind] else float("nan")
            for kind in KINDS
            for j, what in enumerate(MEASURES)
        }
        for name in names.values()
    }
    return rows, distances


def _central(image: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """The center of ``(1, H, W, D)``, sides cut down to multiples of 16 not above 128, and where it lies."""
    place = []
    for size in image.shape[1:3]:
        side = min(SIDE, size // 16 * 16)
        first = (size - side) // 2
        place.append(slice(first, first + side))
    return image[:, place[0], place[1]], (place[0], place[1])


def _mean(scores: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {n: {k: float(np.mean([s[n][k] for s in scores])) for k in scores[0][n]} for n in scores[0]}


def tables(record: dict[str, Any], heads: bool) -> list[str]:
    """The three tables of the page."""

    def head(*columns: str) -> list[str]:
        return ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]

    lines = ["## Labels", "", "All boundary: slices with no pixel deeper than 1, where the distance map is 0 inside."]
    lines += head("slices", "class", "absent", "thin", "thick", "all boundary", "median area, pixels", "median depth")
    for where, rows in record["census"].items():
        for name, r in rows.items():
            lines.append(
                f"| {where} ({r['slices']}) | {name} | {r['absent']} | {r['thin']} | {r['thick']} | "
                f"{r['all boundary']} | {r['median area']:.0f} | {r['median depth']:.1f} |"
            )
    lines += ["", "## Segmentations", "", "Validation slices, means over seeds. Dice of a slice, not of the volume."]
    columns = (
        "run (seeds)",
        "class",
        "absent: false alarms",
        "pixels each",
        "present: missed",
        "Dice thin",
        "Dice thick",
    )
    lines += head(*columns)
    for group, entry in record["predictions"].items():
        for name, r in entry["classes"].items():
            lines.append(
                f"| {group} ({len(entry['seeds'])}) | {name} | {r['false alarms']:.1f} of {r['absent']:.0f} | "
                f"{r['pixels per false alarm']:.0f} | {r['missed']:.1f} of {r['present']:.0f} | "
                f"{100 * r['dice thin']:.1f} | {100 * r['dice thick']:.1f} |"
            )
    lines += ["", "## Far false alarms", ""]
    lines += ["Volumes: Dice and 95HD (pixels), as they are and with the largest component of each class alone."]
    lines += head("run (seeds)", "class", "Dice as is", "largest", "95HD as is", "largest")
    for group, entry in record["predictions"].items():
        for name, r in entry["components"].items():
            dice = [f"{100 * r[f'dice {what}']:.1f}" for what in ("as is", "largest")]
            hd95 = [f"{r[f'hd95_voxel {what}']:.2f}" for what in ("as is", "largest")]
            lines.append(f"| {group} ({len(entry['seeds'])}) | {name} | {' | '.join([*dice, *hd95])} |")
    if heads:
        lines += ["", "## DTC's two heads", ""]
        lines += ["Central 128 x 128 pixels of the validation slices: absent / thin / thick. Two empty masks: Dice 1."]
        columns = ("class", "Dice of the distance head", "Dice between the heads", "consistency term x 1000")
        lines += head(*columns, "mean distance", "of the label")
        for name, r in record["two_heads"]["classes"].items():
            scales = zip(MEASURES, (100, 100, 1000, 1, 1), (1, 1, 1, 2, 2), strict=True)
            cells = [" / ".join(f"{scale * r[f'{what} {kind}']:.{n}f}" for kind in KINDS) for what, scale, n in scales]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", "![apex, middle and base](thin_and_absent.png)"]
    return lines


def figure(path: Path, shown: list[tuple], names: dict[int, str]) -> None:
    """First, middle and last slice: label, distance maps of the label, distances of the head, segmentations.

    Args:
        path: of the picture.
        shown: per case image, label, distances of the head, segmentations by run.
        names: of the classes.
    """
    rows = [(case, k) for case in shown for k in (0, case[1].shape[-1] // 2, case[1].shape[-1] - 1)]
    columns = 1 + 2 * len(names) + len(shown[0][3])
    fig, axes = plt.subplots(len(rows), columns, figsize=(1.9 * columns, 2.0 * len(rows)), layout="constrained")

    def outlined(ax: Any, image: np.ndarray, segmentation: np.ndarray, title: str) -> None:
        draw_slice(ax, image, (1, 1), title)
        for c in names:
            if (segmentation == c).any():
                draw_outline(ax, segmentation == c, class_color(c))

    for row, ((image, label, distances, predictions), k) in zip(axes, rows, strict=True):
        center = np.argwhere((label > 0).any(-1)).mean(0).astype(int)
        here = (*(slice(max(c - 48, 0), c + 48) for c in center), k)
        cells = iter(row)
        outlined(next(cells), image[here], label[here], f"slice {k}: label")
        of_label = [signed_distance_map(label[..., k] == c)[here[:2]] for c in names]
        for source, maps in (("label's", of_label), ("head's", [d[here] for d in distances])):
            for name, values in zip(names.values(), maps, strict=True):
                ax = next(cells)
                ax.imshow(values.T, cmap="RdBu", vmin=-1, vmax=1, origin="lower")
                ax.set_axis_off()
                ax.set_title(f"{source} d: {name}", fontsize=8)
        for group, prediction in predictions.items():
            outlined(next(cells), image[here], prediction[here], group.replace("_", " "))
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=70)
    plt.close(fig)
    Image.open(buffer).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    fire.Fire(main)

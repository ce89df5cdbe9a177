"""Does the reliability of a pseudo-label tell how good it is? The pools of `beds.py`, with their true labels.

    python benchmarks/reliability.py --data beds --runs runs/beds --results docs/results/gain
    python benchmarks/beds_tables.py --runs runs/beds --results docs/results/gain   # shows the table

True labels are read after the training, here only. ``reliability.csv`` has a row per scan of a pool: bed, repetition,
reliability with its parts, whether the scan was kept, and the Dice of its pseudo-label, mean over classes.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
from beds import BEDS
from scipy.stats import spearmanr

from monai_ssl.data import load_preset
from monai_ssl.data.cases import case_names
from monai_ssl.files import cell, text_of_cell, write_text
from monai_ssl.metrics.overlap import dice_score

TABLE = "reliability.csv"
PRESETS = Path(__file__).parent / "presets"
COLUMNS = ("bed", "repetition", "case", "kept", "reliability", "agreement", "confidence", "dice")


def collect(data: str, runs: str, results: str) -> None:
    """Write the table; what it holds of other beds and repetitions stays.

    Args:
        data: what `beds.py data` wrote.
        runs: what `beds.py run` wrote.
        results: folder of the table.
    """
    target = Path(results) / TABLE
    rows = {(row["bed"], row["repetition"], row["case"]): row for row in read(target)}
    new = 0
    for drawn in sorted(Path(runs).glob("*/*/self_training/pseudo_labels-1/reliability.csv")):
        name, repetition = drawn.parts[-5:-3]
        if name not in BEDS:
            continue
        found = compared(drawn.parent, Path(data) / BEDS[name].data, name, int(repetition))
        former = [key for key in rows if key[:2] == (name, repetition)]
        for key in former:
            del rows[key]
        rows |= {(name, repetition, row["case"]): row for row in found}
        new += len(found)
    if not new:
        raise SystemExit(
            f"runs: no self-training of a bed below {runs}; `beds.py run --arms self_training` comes first"
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    order = sorted(rows.values(), key=lambda row: (list(BEDS).index(row["bed"]), int(row["repetition"]), row["case"]))
    writer.writerows({key: cell(str(row[key])) for key in COLUMNS} for row in order)
    write_text(target, text.getvalue())
    print(target)


def read(table: Path) -> list[dict[str, str]]:
    """Rows of the table; none where there is no table."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [{key: text_of_cell(value) for key, value in row.items()} for row in csv.DictReader(file)]


def compared(drawn: Path, place: Path, bed: str, repetition: int) -> list[dict[str, Any]]:
    """One row per scan of the pool."""
    with (drawn / "reliability.csv").open(newline="", encoding="utf-8") as file:
        told = {row["case"]: row for row in csv.DictReader(file)}
    entries = json.loads((place / f"{bed}-{repetition}.json").read_text(encoding="utf-8"))["unlabeled"]
    n_classes = load_preset(str(PRESETS / f"{BEDS[bed].preset}.yaml"), flavor="practical").n_classes
    rows = []
    for name, entry in zip(case_names(entries), entries, strict=True):
        truth = _read(place / entry["image"].replace("images", "labels", 1))
        guess = _read(drawn / f"{name}_seg.nii.gz")
        dice = np.mean([dice_score(guess == value, truth == value) for value in range(1, n_classes)])
        own = {key: told[name][key] for key in ("case", "kept", "reliability", "agreement", "confidence")}
        rows.append({"bed": bed, "repetition": str(repetition), **own, "dice": f"{dice:.4f}"})
    return rows


def _read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def table(results: Path, titles: dict[str, str]) -> list[str]:
    """Lines of Markdown; none where nothing was compared."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in read(results / TABLE):
        groups.setdefault((row["bed"], row["repetition"]), []).append(row)
    if not groups:
        return []
    lines = [
        "", "## Does reliability find bad pseudo-labels?", "",
        "Pseudo-labels of the floors against the true labels of the pool, which no training has read. The rank",
        f"correlation is Spearman's; every scan is in [{TABLE}]({TABLE}).", "",
        "| bed | repetition | scans | reliability, median | rank correlation with Dice | Dice of all | of the kept | "
        "of the dropped | dropped, of the worst tenth by Dice |",
        "|---" * 9 + "|",
    ]  # fmt: skip
    for (bed, repetition), rows in groups.items():
        reliability, dice = (np.array([float(row[key]) for row in rows]) for key in ("reliability", "dice"))
        kept = np.array([row["kept"] == "1" for row in rows])
        worst = np.argsort(dice, kind="stable")[: len(rows) // 10]
        means = [f"{100 * dice[chosen].mean():.1f}" if chosen.any() else "–" for chosen in (kept | ~kept, kept, ~kept)]
        varied = len(set(reliability)) > 1 and len(set(dice)) > 1
        order = f"{spearmanr(reliability, dice).statistic:.2f}" if varied else "–"
        found = f"{(~kept[worst]).sum()} of {len(worst)}"
        cells = [titles.get(bed, bed), repetition, len(rows), f"{np.median(reliability):.2f}", order, *means, found]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    fire.Fire(collect)

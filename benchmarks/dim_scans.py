"""Where the runs of LA-quarter gain and lose: the dimmest validation scans and the others.

    python benchmarks/dim_scans.py --data DIR/la_quarter [--study studies/la_quarter] [--output docs/results/la_quarter]

Reads the table of cases that ``monai-ssl compare benchmarks/studies/la_quarter.yaml`` wrote. Scans are sorted by the
mean of the stored gray values inside the atrium; the last column is the rank correlation of that mean with the Dice,
means over seeds. Writes ``dim_scans.md`` and ``.json``.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parent))
from step import write

from monai_ssl.data import load_datalist
from monai_ssl.data.cases import case_names
from monai_ssl.files import text_of_cell


def main(
    data: str,
    study: str = "studies/la_quarter",
    output: str = "docs/results/la_quarter",
    dimmest: int = 4,
    datalist: str = "la_dev_8_56_val16.json",
) -> None:
    """Measure and write.

    Args:
        data: folder of the data set.
        study: folder of the study.
        output: folder of the table.
        dimmest: how many scans count as dim.
        datalist: of the study.
    """
    entries = load_datalist(datalist, data).require("validation")
    gray = {}
    for name, entry in zip(case_names(entries), entries, strict=True):
        image, label = (np.asarray(nib.load(entry[key]).dataobj) for key in ("image", "label"))
        gray[name] = float(image[label > 0].mean())
    order = sorted(gray, key=gray.__getitem__)
    record: dict[str, Any] = {
        "what": f"mean Dice of the {dimmest} dimmest of {len(order)} validation scans and of the others",
        "gray value of the atrium": {name: gray[name] for name in order},
        "runs": {},
    }
    found: dict[tuple[str, str], dict[str, float]] = {}
    titles: dict[str, str] = {}
    with open(Path(study) / "results" / "per_case.csv", newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):  # one class
            titles[line["row"]] = text_of_cell(line["title"])
            found.setdefault((line["row"], line["seed"]), {})[text_of_cell(line["case"])] = float(line["dice"])
    for (group, seed), dice in found.items():
        row = {
            "dim": float(np.mean([dice[n] for n in order[:dimmest]])),
            "others": float(np.mean([dice[n] for n in order[dimmest:]])),
            "rank correlation": float(spearmanr([gray[n] for n in order], [dice[n] for n in order]).statistic),
        }
        record["runs"].setdefault(group, {})[seed] = row
    columns = "run | seeds | dimmest: Dice (each seed) | others: Dice (each seed) | rank correlation"
    lines = [f"| {columns} |", "|---|---|---|---|---|"]
    for group, seeds in record["runs"].items():
        values = list(seeds.values())
        cells = [
            f"**{100 * np.mean([v[k] for v in values]):.1f}** ({', '.join(f'{100 * v[k]:.1f}' for v in values)})"
            for k in ("dim", "others")
        ]
        correlation = np.mean([v["rank correlation"] for v in values])
        lines.append(f"| {group}: {titles[group]} | {len(values)} | {' | '.join(cells)} | {correlation:.2f} |")
    write(Path(output) / "dim_scans", record, lines, "LA-quarter: dim scans and the others")


if __name__ == "__main__":
    fire.Fire(main)

"""TAC's protocol: the same ratio of labeled, unlabeled and test cases in 8 random splits, every method on each.

    python benchmarks/random_splits.py DATA --output runs/splits --n_labeled 16 --n_testing 20 \
        --runs "supervised,tac,tac:unsupervised_weight=0" [--splits 8] [--dataset left_atrium] [any id of the bundles]

Writes one datalist and one run per split and method, and `summary.md`: mean and standard deviation over the means of
the splits, and the paired Wilcoxon test of the last method against each other one on these means. With 8 splits the
smallest two-sided p is 0.0078; with 5 it cannot fall below 0.06. Cases of different splits are not independent (the
test sets overlap), so nothing is pooled over them. Finished runs are skipped, killed ones go on where they were.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fire
import numpy as np
from scipy.stats import wilcoxon

import monai_ssl
from monai_ssl.cli.parsing import config_value
from monai_ssl.files import write_text
from monai_ssl.metrics import case_values, read_results

METRICS = {"dice": 100, "jaccard": 100, "hd95_voxel": 1, "asd_voxel": 1}


def main(
    data: str,
    output: str,
    n_labeled: int,
    n_testing: int,
    runs: str = "supervised,tac,tac:unsupervised_weight=0",
    splits: int = 8,
    **options: Any,
) -> None:
    """Run and summarize.

    Args:
        data: folder with images and labels.
        output: folder of splits, runs and summary.
        n_labeled: labeled cases per split; the other cases that are not for testing become unlabeled.
        n_testing: test cases per split.
        runs: bundles, comma-separated; options of the block `method` follow after colons.
        splits: how many random splits; the split's number is also the seed of the training.
        **options: ids of the bundles' configs, for example --dataset left_atrium --max_iterations 2000.
    """
    names = list(runs) if isinstance(runs, (tuple, list)) else str(runs).split(",")
    if len(set(names)) < len(names):
        raise SystemExit(f"runs must differ, got {', '.join(names)}")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does: large tensors in large pages
    root = Path(output).resolve()
    means: dict[str, dict[str, list[float]]] = {name: {metric: [] for metric in METRICS} for name in names}
    for split in range(splits):
        datalist = root / f"split-{split}.json"
        if not datalist.is_file():
            monai_ssl.split(data, datalist, n_labeled=n_labeled, n_testing=n_testing, n_validation=0, seed=split)
        for name in names:
            rows = read_results(one(name, split, datalist, Path(data).resolve(), root, options)).rows
            for metric in METRICS:
                means[name][metric].append(float(np.mean(list(case_values(rows, metric).values()))))
            write_text(root / "summary.md", "\n".join(table(means)) + "\n")
    print(*table(means), root / "summary.md", sep="\n")


def one(name: str, split: int, datalist: Path, data: Path, root: Path, options: dict[str, Any]) -> Path:
    """Train and evaluate one method on one split; returns the results' folder."""
    bundle, *settings = name.split(":")
    folder = root / f"{name.replace(':', '-').replace('=', '-')}-split-{split}"
    results = folder / "evaluation-testing"
    if not (results / "summary.json").is_file():
        pairs = (setting.split("=", 1) for setting in settings)
        given = {**options, **{f"method#{key}": config_value(value) for key, value in pairs}}
        monai_ssl.evaluate(monai_ssl.train(bundle, data, datalist, output=folder, seed=split, **given))
    return results


def table(means: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = ["| method | splits | Dice | Jaccard | 95HD voxel | ASD voxel | Dice: Wilcoxon p of the last method |"]
    lines.append("|---|---|---|---|---|---|---|")
    *_, last = means
    for name, values in means.items():
        cells = [
            f"{scale * np.mean(values[m]):.2f} ± {scale * np.std(values[m], ddof=1):.2f}" if len(values[m]) > 1 else "–"
            for m, scale in METRICS.items()
        ]
        n = len(values["dice"])
        p = ""
        if name != last and n > 1 and n == len(means[last]["dice"]):
            p = f"{wilcoxon(means[last]['dice'], values['dice']).pvalue:.4f}"
        lines.append(f"| {name} | {n} | {' | '.join(cells)} | {p} |")
    return lines


if __name__ == "__main__":
    fire.Fire(main)

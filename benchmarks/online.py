"""Does the online form work from a finished floor? `weak_to_strong` from the floor's weights and from the beginning.

    MONAI_SSL_DATA=DIR monai-ssl compare benchmarks/studies/label_fraction.yaml --output runs/label_fraction
    python benchmarks/online.py --study runs/label_fraction --output runs/online --results docs/results/online

Lists, floors and seeds are those of the study with four labels; everything else is the method's default. Scores go to
``per_case.csv`` (one row per arm, seed and case), their means to ``README.md``, beside the study's rows.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire

import monai_ssl
from monai_ssl.files import cell, write_text
from monai_ssl.metrics import read_results

HERE = Path(__file__).parent
SEEDS = (1337, 2024, 7)
ARMS = {
    "from_floor": "weak-to-strong, from the floor's weights",
    "from_floor_matched": "the same with weight 0 (its matched floor)",
    "from_scratch": "weak-to-strong, from the beginning",
}
ROWS = {
    "floor-n4": "supervised, labels only (floor)",
    "self_training-n4-matched_floor": "self-training with weight 0",
    "self_training-n4": "self-training, one round",
    "ceiling": "supervised, 64 labels",
}


def main(study: str, output: str, results: str, arms: str = ",".join(ARMS)) -> None:
    """Train what is missing, score the last iterate, write the table of what is done.

    Args:
        study: folder of the study ``label_fraction``.
        output: folder of the runs.
        results: folder of table and scores.
        arms: comma-separated.
    """
    source, target = Path(study).resolve(), Path(output).resolve()
    for arm in arms if isinstance(arms, (tuple, list)) else arms.split(","):
        for seed in SEEDS:
            run = target / f"{arm}-seed{seed}"
            if not (run / "evaluation-validation" / "per_case.csv").is_file():
                _train(source, run, arm, seed)
            write(source, target, Path(results))


def _train(source: Path, run: Path, arm: str, seed: int) -> None:
    options: dict[str, Any] = {}
    if arm != "from_scratch":
        options["init"] = source / "runs" / f"floor-n4-seed{seed}"
    if arm == "from_floor_matched":
        options["method#unsupervised_weight"] = 0
    trained = monai_ssl.train(
        "weak_to_strong", dataset_dir=_scans(source), datalist=source / "lists" / "la_quarter-n4.json",
        dataset=str(HERE / "presets" / "la_quarter.yaml"), flavor="practical", seed=seed, output=run, num_workers=0,
        amp="bf16", layout="channels_last", check=False, device="cpu", **options,
    )  # fmt: skip
    monai_ssl.evaluate(trained, "validation")


def _scans(study: Path) -> Path:
    from monai_ssl.runs.folder import Run

    return Path(str(Run.open(study / "runs" / "floor-n4-seed1337").record.dataset_dir))


def _scores(source: Path, target: Path) -> Iterator[tuple[str, int, str, float]]:
    """Arm, seed, case, Dice."""
    places = dict.fromkeys(ROWS, source / "runs") | dict.fromkeys(ARMS, target)
    for arm, place in places.items():
        for seed in SEEDS:
            folder = place / f"{arm}-seed{seed}" / "evaluation-validation"
            if (folder / "per_case.csv").is_file():
                for row in read_results(folder).rows:
                    yield arm, seed, str(row["case"]), float(row["dice"])


def write(source: Path, target: Path, results: Path) -> None:
    """``per_case.csv`` and ``README.md``."""
    found = list(_scores(source, target))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("arm", "seed", "case", "dice"))
    writer.writerows([[arm, seed, cell(case), repr(dice)] for arm, seed, case, dice in found])
    lines = ["| training | Dice (each seed) | worst case | failed cases |", "|---|---|---|---|"]
    for arm, title in (ROWS | ARMS).items():
        by_seed = {seed: [row[3] for row in found if row[:2] == (arm, seed)] for seed in SEEDS}
        means = [100 * statistics.mean(values) for values in by_seed.values() if values]
        every = [value for values in by_seed.values() for value in values]
        if means:
            failed = f"{sum(value < 0.5 for value in every)} of {len(every)}"
            lines.append(f"| {title} | **{statistics.mean(means):.1f}** ({', '.join(f'{m:.1f}' for m in means)}) | "
                         f"{100 * min(every):.0f} | {failed} |")  # fmt: skip
    head = (
        "# Online pseudo-labels from a finished floor\n\n"
        "Left atrium at 2.5 mm, 4 labels and 60 unlabeled scans, 16 validation cases, flavor `practical`, 800 "
        "iterations, three seeds, last iterate, no mirrored views. Four rows are those of [the label-fraction curve]"
        "(../label_fraction/README.md). Written by `python benchmarks/online.py`.\n\n"
    )
    findings = results / "FINDINGS.md"
    text = "\n" + findings.read_text(encoding="utf-8") if findings.is_file() else ""
    write_text(results / "per_case.csv", buffer.getvalue())
    write_text(results / "README.md", head + "\n".join(lines) + "\n" + text)


if __name__ == "__main__":
    fire.Fire(main)

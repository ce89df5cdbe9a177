"""The demonstration: does semi-supervision help? On synthetic data, in minutes, from nothing to a report."""

from __future__ import annotations

import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

from monai_ssl.errors import DataError
from monai_ssl.files import write_text

console = logging.getLogger("monai_ssl.console")

# What is compared, in the order of training: (role, all labels?). Same recipe, same number of iterations, last iterate.
RUNS: tuple[tuple[str, bool], ...] = (("method", False), ("matched_floor", False), ("ceiling", True))
NAMES = {
    "floor": "supervised, few labels (floor)",
    "matched_floor": "self-training, weight 0 (matched floor)",
    "method": "self-training",
    "ceiling": "supervised, all labels (ceiling)",
}
CASES: dict[str, Any] = {"n_labeled": 4, "n_unlabeled": 40, "n_validation": 0, "n_testing": 20}
ITERATIONS = 800
INTRO = """Synthetic scans of a left-atrium-like organ at 2.5 mm, written by monai_ssl.curation.phantom: 4 scans with
labels and 40 without. All runs follow the recipe that we recommend; the last iterate is scored on 20 held-out scans.
The floor learns from the 4 labels only. Self-training lets the floor label the 40 scans, drops the least reliable
tenth, and trains the floor on with both, for as many steps again. The matched floor begins there, too, and makes as
many steps with as many images, but the pseudo-labels weigh nothing: what self-training gains over IT is due to them,
the rest to more steps, strong changes and batch norm that sees unlabeled images. The ceiling has the labels of all 44
training scans, and as many steps as the floor."""


def demo(output: str | Path = "demo", seeds: int = 1, seed: int = 0, iterations: int | None = None) -> Path:
    """Write a synthetic data set, train with and without unlabeled images, compare, write a report.

    Repeat it to resume after an interruption.

    Args:
        output: folder for data, runs and report.
        seeds: number of repetitions, each with its own phantoms and initial weights (each takes minutes).
        seed: first seed.
        iterations: iterations per training; default: 800.

    Returns:
        path of the (last) HTML report.

    Raises:
        DataError: for numbers out of range.
    """
    if seeds < 1:
        raise DataError(f"seeds: must be >= 1, got {seeds}")
    start = time.monotonic()
    output = Path(output).expanduser().resolve()
    table: dict[str, dict[int, list[float]]] = {}
    pages = []
    for number in range(seed, seed + seeds):
        page, dice = _one_seed(output, number, iterations or ITERATIONS)
        pages.append(page)
        for role, values in dice.items():
            table.setdefault(role, {})[number] = values
        _tell_table(dice, f"seed {number}: Dice on {CASES['n_testing']} held-out phantoms")
    if seeds > 1:
        console.info("\nmean Dice over %d seeds", seeds)
        for role, by_seed in table.items():
            means = [statistics.mean(values) for values in by_seed.values()]
            each = ", ".join(f"{100 * m:.1f}" for m in means)
            console.info("%s", f"  {NAMES[role]:<40}{100 * statistics.mean(means):6.1f}   ({each})")
    _write_summary(output, table, iterations or ITERATIONS)
    console.info("\n%.1f minutes. Report: %s", (time.monotonic() - start) / 60, pages[-1])
    return pages[-1]


def _one_seed(output: Path, seed: int, iterations: int) -> tuple[Path, dict[str, list[float]]]:
    from monai_ssl.curation.phantom.dataset import write_phantom
    from monai_ssl.metrics import case_values, read_results
    from monai_ssl.reports import comparison_report
    from monai_ssl.runs.evaluation import evaluate
    from monai_ssl.runs.scores import outdated
    from monai_ssl.runs.self_training import self_train
    from monai_ssl.runs.train import train

    folder = output / f"seed{seed}"
    data = folder / "data"
    console.info("[1/5] phantoms -> %s", data)
    write_phantom(data, **CASES, spacing=2.5, seed=seed, reference_labels=True)
    common: dict[str, Any] = {
        "dataset_dir": data, "dataset": "phantom", "seed": seed, "max_iterations": iterations, "num_workers": 0,
        "flavor": "practical", "check": False,  # the phantoms are in order, and the ceiling is meant to have no pool
    }  # fmt: skip
    results: dict[str, Path] = {}
    for number, (role, all_labels) in enumerate(RUNS, start=2):
        began = time.monotonic()
        console.info("[%d/5] %s: %d iterations", number, f"floor, then {NAMES[role]}" if role == "method"
                     else NAMES[role], iterations)  # fmt: skip
        if role == "method":
            done = self_train(output=folder / "self_training", **common)
            trained = {"floor": done.floors[0], "method": done.run}
            begun = done.floors[0].folder
        elif role == "matched_floor":
            weightless: dict[str, Any] = {"method#unsupervised_weight": 0, "init": begun}
            trained = {role: train("self_training", output=folder / role, **common, **weightless)}
        else:
            listed: dict[str, Any] = {"datalist": "datalist_all_labels.json"} if all_labels else {}
            trained = {role: train("supervised", output=folder / role, **common, **listed)}
        for name, run in trained.items():
            results[name] = run.folder / "evaluation-testing"
            if (results[name] / "summary.json").is_file() and not outdated(results[name]):
                continue
            for line in evaluate(run, "testing").lines():
                console.info("%s", line)
        console.info("      %.0f s", time.monotonic() - began)
    console.info("[5/5] report")
    results = {role: results[role] for role in NAMES}
    page = comparison_report(folder / "report.html", f"monai_ssl demo, seed {seed}", results, names=NAMES, intro=INTRO)
    return page, {role: list(case_values(read_results(path).rows, "dice").values()) for role, path in results.items()}


def _write_summary(output: Path, table: dict[str, dict[int, list[float]]], iterations: int) -> None:
    """``summary.json`` and ``summary.md``: Dice of every run and seed."""
    from monai_ssl.metrics import environment

    found = environment()
    settings = {"iterations": iterations, **CASES}
    content = {"settings": settings, "dice": {NAMES[role]: by_seed for role, by_seed in table.items()}, **found}
    write_text(output / "summary.json", json.dumps(content, indent=1) + "\n")
    seeds = list(table["method"])
    again = f" --seeds {len(seeds)}" * (len(seeds) > 1) + f" --seed {seeds[0]}" * (seeds[0] != 0)
    lines = [
        "# Demo",
        "",
        f"Written by `monai-ssl demo{again}`: {found['machine']['cpu']}, {found['machine']['cores']} cores, PyTorch "
        f"{found['versions']['torch']}. {' '.join(INTRO.split())} {iterations} iterations; the seed decides phantoms "
        "and initial weights.",
        "",
        f"Dice in percent, mean over {CASES['n_testing']} cases [failed: Dice below 50]:",
        "",
        "| run | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |",
        "|---|" + "---|" * (len(seeds) + 1),
    ]
    for role, by_seed in table.items():
        cells = [f"{100 * statistics.mean(values):.1f} [{sum(v < 0.5 for v in values)}]" for values in by_seed.values()]
        mean = 100 * statistics.mean(statistics.mean(values) for values in by_seed.values())
        lines.append(f"| {NAMES[role]} | {' | '.join(cells)} | **{mean:.1f}** |")
    write_text(output / "summary.md", "\n".join(lines) + "\n")


def _tell_table(dice: dict[str, list[float]], title: str) -> None:
    console.info("\n%s", title)
    console.info("%s", f"  {'':<40}{'mean':>6}{'median':>8}{'failed':>8}")
    for role, values in dice.items():
        failed = sum(value < 0.5 for value in values)
        mean, median = 100 * statistics.mean(values), 100 * statistics.median(values)
        console.info("%s", f"  {NAMES[role]:<40}{mean:6.1f}{median:8.1f}{failed:8d}")

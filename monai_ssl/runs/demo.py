"""The demonstration: does semi-supervision help? On synthetic data, in minutes, from nothing to a report."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.errors import DataError
from monai_ssl.files import write_text

# What is compared: (role, bundle, all labels?, further settings). Same labels, same number of iterations, last iterate.
RUNS: tuple[tuple[str, str, bool, dict[str, Any]], ...] = (
    ("floor", "supervised", False, {}),
    ("matched_floor", "dtc", False, {"method#unsupervised_weight": 0}),
    ("method", "dtc", False, {}),
    ("ceiling", "supervised", True, {}),
)
NAMES = {
    "floor": "supervised, few labels (floor)",
    "matched_floor": "DTC, weight 0 (matched floor)",
    "method": "DTC",
    "ceiling": "supervised, all labels (ceiling)",
}
CASES: dict[str, Any] = {"n_labeled": 4, "n_unlabeled": 40, "n_validation": 0, "n_testing": 20}
ITERATIONS = 800
INTRO = """Synthetic scans of a left-atrium-like organ at 2.5 mm, written by monai_ssl.curation.phantom: 4 scans with
labels and 40 without. All runs make the same number of optimizer steps under the literature's protocol; the last
iterate is scored on 20 held-out scans. The floor learns from the 4 labels alone. The matched floor is DTC's own
network, batch and passes with the weight of the consistency term at 0: what DTC gains over IT is due to the method, the
rest to batch size and batch norm that sees unlabeled images. The ceiling has the labels of all 44 training scans."""


def run_demo(output: Path, seeds: int = 1, first_seed: int = 0, iterations: int | None = None) -> Path:
    """Write phantoms, train floor, matched floor, DTC and ceiling, evaluate, compare, report.

    Interrupted, it continues where it was.

    Args:
        output: folder for everything.
        seeds: repetitions, each with its own phantoms and initial weights.
        first_seed: seed of the first.
        iterations: per training; default :data:`ITERATIONS`.

    Returns:
        path of the (last) HTML report.

    Raises:
        DataError: for numbers out of range.
    """
    if seeds < 1:
        raise DataError(f"seeds: must be >= 1, got {seeds}")
    start = time.monotonic()
    output = output.expanduser().resolve()
    table: dict[str, dict[int, list[float]]] = {}
    pages = []
    for seed in range(first_seed, first_seed + seeds):
        page, dice = _one_seed(output, seed, iterations or ITERATIONS)
        pages.append(page)
        for role, values in dice.items():
            table.setdefault(role, {})[seed] = values
        _print_table(dice, f"seed {seed}: Dice on {CASES['n_testing']} held-out phantoms")
    if seeds > 1:
        print(f"\nmean Dice over {seeds} seeds")
        for role, by_seed in table.items():
            means = [np.mean(values) for values in by_seed.values()]
            print(f"  {NAMES[role]:<36}{100 * np.mean(means):6.1f}   ({', '.join(f'{100 * m:.1f}' for m in means)})")
    _write_summary(output, table, iterations or ITERATIONS)
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes. Report: {pages[-1]}")
    return pages[-1]


def _one_seed(output: Path, seed: int, iterations: int) -> tuple[Path, dict[str, list[float]]]:
    from monai_ssl.cli import Commands
    from monai_ssl.curation.phantom.dataset import write_phantom
    from monai_ssl.metrics import case_values, read_results
    from monai_ssl.runs.evaluate import comparison_report

    folder = output / f"seed{seed}"
    data = folder / "data"
    print(f"[1/6] phantoms -> {data}", flush=True)
    write_phantom(data, **CASES, spacing=2.5, seed=seed, reference_labels=True)
    results: dict[str, Path] = {}
    commands = Commands()
    for number, (role, bundle, all_labels, settings) in enumerate(RUNS, start=2):
        run = folder / role
        results[role] = run / "evaluation-testing"
        print(f"[{number}/6] {NAMES[role]}: {iterations} iterations", flush=True)
        if (results[role] / "summary.json").is_file():
            continue
        began = time.monotonic()
        commands.train(
            bundle,
            dataset_dir=str(data),
            datalist="datalist_all_labels.json" if all_labels else "datalist.json",
            dataset="phantom",
            output=str(run),
            seed=seed,
            max_iterations=iterations,
            num_workers=0,
            flavor="literature",
            check=False,  # the phantoms are in order, and the floor is meant to have no unlabeled images
            **settings,
        )
        commands.evaluate(str(run), section="testing")
        print(f"      {time.monotonic() - began:.0f} s", flush=True)
    print("[6/6] report", flush=True)
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
        cells = [f"{100 * np.mean(values):.1f} [{sum(v < 0.5 for v in values)}]" for values in by_seed.values()]
        mean = 100 * np.mean([np.mean(values) for values in by_seed.values()])
        lines.append(f"| {NAMES[role]} | {' | '.join(cells)} | **{mean:.1f}** |")
    write_text(output / "summary.md", "\n".join(lines) + "\n")


def _print_table(dice: dict[str, list[float]], title: str) -> None:
    print(f"\n{title}")
    print(f"  {'':<36}{'mean':>6}{'median':>8}{'failed':>8}")
    for role, values in dice.items():
        failed = sum(value < 0.5 for value in values)
        print(f"  {NAMES[role]:<36}{100 * np.mean(values):6.1f}{100 * np.median(values):8.1f}{failed:8d}")
    sys.stdout.flush()

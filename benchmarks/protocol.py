"""Train and evaluate the runs of a protocol, several at a time, and collect their results.

    python benchmarks/protocol.py run la_quarter --data DIR/la_quarter --output runs/la_quarter --jobs 2
    python benchmarks/protocol.py collect la_quarter --output runs/la_quarter --results docs/results/la_quarter

Every run is `monai_ssl.train` and `monai_ssl.evaluate` in a process of its own, one thread each; a run that is killed
continues where it was, a finished one is skipped. The last iterate is evaluated, on the validation cases.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fire
import matplotlib.pyplot as plt
import numpy as np
import yaml

import monai_ssl
from monai_ssl.files import write_text
from monai_ssl.metrics import case_values, environment, read_results

HERE = Path(__file__).parent


def jobs(protocol: str) -> tuple[dict, list[tuple[str, dict[str, Any]]]]:
    """The protocol's YAML and its runs as (name, arguments of `monai_ssl.train`), seeds outermost."""
    content = yaml.safe_load((HERE / "protocols" / f"{protocol}.yaml").read_text())
    found = []
    for seed in content["seeds"]:
        for name, run in content["runs"].items():
            if seed not in run.get("seeds", content["seeds"]):
                continue
            options = {**content.get("options", {}), **run.get("options", {}), "seed": seed}
            options = {
                key: value.replace("BENCHMARKS", str(HERE)) if isinstance(value, str) else value
                for key, value in options.items()
            }
            datalist = run.get("datalist", content["datalist"])
            found.append((f"{name}-seed{seed}", {"bundle": run["bundle"], "datalist": datalist, **options}))
    return content, found


def run(protocol: str, data: str, output: str, jobs_at_once: int = 1, only: str = "") -> None:
    """Train and evaluate; ``only``: comma-separated beginnings of run names."""
    _, todo = jobs(protocol)
    beginnings = tuple(str(only).split(",")) if isinstance(only, str) else tuple(only)  # fire makes tuples of a,b
    chosen = [job for job in todo if job[0].startswith(beginnings)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does: large tensors in large pages
    with ThreadPoolExecutor(jobs_at_once) as pool:
        list(pool.map(lambda job: _one(*job, Path(data).resolve(), Path(output).resolve()), chosen))


def _one(name: str, arguments: dict[str, Any], data: Path, output: Path) -> None:
    folder = output / name
    if (folder / "evaluation-validation" / "summary.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # one that fails, or is killed, takes no other with it
    process = get_context("spawn").Process(target=train_and_score, args=(arguments, data, folder))
    process.start()
    process.join()
    if process.exitcode:
        print(f"{name}: failed with status {process.exitcode}; see {folder / 'log.txt'}", flush=True)
    else:
        print(f"{name}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


def train_and_score(arguments: dict[str, Any], data: Path, folder: Path) -> None:
    """One run; what it says goes to ``log.txt``."""
    with open(folder / "log.txt", "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("monai_ssl").setLevel(logging.INFO)
    trained = monai_ssl.train(dataset_dir=data, output=folder, num_workers=0, **arguments)
    for line in monai_ssl.evaluate(trained, "validation").lines():
        print(line)


def collect(protocol: str, output: str, results: str) -> None:
    """Copy every finished run's result files, and write ``README.md`` and ``summary.json`` with a table over seeds."""
    content, todo = jobs(protocol)
    source, target = Path(output), Path(results)
    table: dict[str, dict[str, dict[str, float]]] = {}
    by_class: dict[str, list[dict[str, tuple[float, float, float]]]] = {}
    for name, _ in todo:
        evaluation = source / name / "evaluation-validation"
        if not (evaluation / "summary.json").is_file():
            continue
        (target / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(evaluation / "per_case.csv", target / name / "per_case.csv")
        summary = relative(json.loads((evaluation / "summary.json").read_text()))
        write_text(target / name / "summary.json", json.dumps(summary, indent=1) + "\n")
        record = json.loads((source / name / "run.json").read_text())
        record = {k: relative(v) for k, v in record.items() if k not in {"dataset_dir", "datalist"}}
        write_text(target / name / "run.json", json.dumps(record, indent=1) + "\n")
        _thin(source / name / "training.csv", target / name / "training.csv")
        group, seed = name.rsplit("-seed", 1)
        rows = read_results(evaluation).rows
        dice = np.array(list(case_values(rows, "dice").values()))
        table.setdefault(group, {})[seed] = {
            "dice": float(dice.mean()),
            "sd": float(dice.std(ddof=1)),
            "median": float(np.median(dice)),
            "failed": int((dice < 0.5).sum()),
            "jaccard": float(np.mean(list(case_values(rows, "jaccard").values()))),
            "hd95_voxel": float(np.mean(list(case_values(rows, "hd95_voxel").values()))),
            "asd_voxel": float(np.mean(list(case_values(rows, "asd_voxel").values()))),
        }
        classes = list(dict.fromkeys(str(row["class"]) for row in rows))
        by_class.setdefault(group, []).append({c: _class_row(rows, c) for c in classes})
    lines = [f"# {content['title']}", "", content["description"].strip(), "",
             f"Written by `python benchmarks/protocol.py collect {protocol}`; {_machine()}.", "",
             "| run | seeds | Dice, mean over seeds (each seed) | median | failed cases (Dice < 0.5) | Jaccard | 95HD voxel | ASD voxel |",  # noqa: E501
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for group, seeds in table.items():
        values = list(seeds.values())
        mean = {k: float(np.mean([v[k] for v in values])) for k in values[0]}
        each = ", ".join(f"{100 * v['dice']:.1f} ± {100 * v['sd']:.1f}" for v in values)
        failed = ", ".join(str(v["failed"]) for v in values)
        text = content["runs"][group].get("title", group)
        lines.append(
            f"| {text} | {len(values)} | **{100 * mean['dice']:.1f}** ({each}) | {100 * mean['median']:.1f} | "
            f"{failed} | "
            f"{100 * mean['jaccard']:.1f} | {mean['hd95_voxel']:.2f} | {mean['asd_voxel']:.2f} |"
        )
    lines += _class_table(by_class, content["runs"])
    options = {group: content["runs"][group].get("options", {}) for group in table}
    shown = [group for group in table if options[group].get("method#unsupervised_weight") != 0]
    curves({group: [target / f"{group}-seed{seed}" for seed in table[group]] for group in shown}, target / "curves.png")
    lines += ["", "![Loss terms of every run](curves.png)", "",
              "Loss terms as they enter the sum, weights included: means over seeds and 50 iterations."]  # fmt: skip
    findings = target / "FINDINGS.md"
    if findings.is_file():
        lines += ["", findings.read_text(encoding="utf-8").strip()]
    write_text(target / "README.md", "\n".join(lines) + "\n")
    write_text(
        target / "summary.json", json.dumps({"protocol": protocol, "runs": table, **environment()}, indent=1) + "\n"
    )
    print(target / "README.md")


def curves(groups: dict[str, list[Path]], path: Path, smooth: int = 5) -> None:
    """One panel per run with its loss terms over the iterations, on a logarithmic axis; each with its own legend."""
    columns = min(3, len(groups))
    shape = (-(-len(groups) // columns), columns)
    figure, panels = plt.subplots(*shape, figsize=(4.4 * columns, 3.9 * shape[0]), squeeze=False, layout="constrained")
    for panel in panels.flat[len(groups) :]:
        panel.axis("off")
    for panel, (group, folders) in zip(panels.flat, groups.items(), strict=False):
        runs = [np.atleast_1d(np.genfromtxt(folder / "training.csv", delimiter=",", names=True)) for folder in folders]
        for term in runs[0].dtype.names:
            if term not in {"iteration", "lr"} and not term.endswith("grad_norm"):  # also those of adversaries
                values = np.mean([run[term] for run in runs], axis=0)
                width = min(smooth, len(values))
                rolling = np.convolve(values, np.ones(width) / width, "valid")
                if (rolling > 0).any():
                    panel.semilogy(
                        runs[0]["iteration"][width - 1 :], rolling, label=term, lw=2 if term == "loss" else 1
                    )
        panel.set_title(group, fontsize=12, loc="left")
        # below: terms fill the panel
        panel.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
        panel.tick_params(labelsize=9)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _class_row(rows: list[dict], name: str) -> tuple[float, float, float]:
    return tuple(float(np.mean(list(case_values(rows, m, name).values()))) for m in ("dice", "hd95_voxel", "asd_voxel"))


def _class_table(by_class: dict[str, list[dict[str, tuple[float, float, float]]]], runs: dict) -> list[str]:
    """Dice / 95HD / ASD of every class, means over cases and seeds; nothing where there is one class."""
    classes = list(next(iter(by_class.values()))[0]) if by_class else []
    if len(classes) < 2:
        return []
    lines = ["", "Per class: Dice / 95HD voxel / ASD voxel, means over cases and seeds.", "",
             f"| run | {' | '.join(classes)} |", "|---" * (1 + len(classes)) + "|"]  # fmt: skip
    for group, seeds in by_class.items():
        cells = []
        for c in classes:
            dice, hd95, asd = np.mean([seed[c] for seed in seeds], axis=0)
            cells.append(f"{100 * dice:.1f} / {hd95:.2f} / {asd:.2f}")
        lines.append(f"| {runs[group].get('title', group)} | {' | '.join(cells)} |")
    return lines


def _machine() -> str:
    found = environment()
    machine, versions = found["machine"], found["versions"]
    return f"{machine['cpu']}, one thread per run, PyTorch {versions['torch']}, MONAI {versions['monai']}"


def relative(value: object) -> object:
    """Without the folders of one machine."""
    if isinstance(value, str) and "/" in value:
        return " ".join(Path(word).name if word.startswith("/") else word for word in value.split(" "))
    if isinstance(value, list):
        return [relative(v) for v in value]
    return {k: relative(v) for k, v in value.items()} if isinstance(value, dict) else value


def _thin(source: Path, target: Path, every: int = 10) -> None:
    """Means over ``every`` iterations of a training log."""
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    keys = list(rows[0])
    lines = [",".join(keys)]
    for first in range(0, len(rows), every):
        block = rows[first : first + every]
        lines.append(",".join(
            block[-1][k] if k == "iteration" else f"{np.mean([float(r[k]) for r in block]):.5g}" for k in keys
        ))  # fmt: skip
    write_text(target, "\n".join(lines) + "\n")


if __name__ == "__main__":
    fire.Fire({"run": run, "collect": collect})

"""Made-up studies: folders with per_case.csv, summary.json and what trainings record, from a few numbers each."""

from __future__ import annotations

import json

import numpy as np

from monai_ssl.metrics import write_results
from monai_ssl.reports.study import StudyRow, StudyRun

EVIL = r"<b>DTC</b> & 50% $x_1$ \textbf{y} #1 ~^ | `c` [l](javascript:x)"
SETTINGS = {"preset": "abc123", "iterations": 300, "precision": "float32", "network": "VNet", "batch": "2+2"}
# how far rows are from a perfect mask
ERRORS = {"floor": 0.25, "no_pool": 0.22, "matched_floor": 0.18, "method": 0.12, "ensemble": 0.10, "oracle": 0.09,
          "ceiling": 0.06}  # fmt: skip


def scores(dice, case, label, name, distance=None):
    """A row as an evaluation writes it, of a mask with this Dice."""
    distance = 40.0 * (1 - dice) if distance is None else distance
    return {
        "case": case, "label": label, "class": name, "status": "ok" if dice > 0 else "empty_prediction",
        "dice": float(dice), "jaccard": float(dice / (2 - dice)), "hd95_mm": distance, "asd_mm": distance / 4,
        "assd_mm": distance / 4, "hd95_voxel": distance / 2, "asd_voxel": distance / 8,
        "volume_ml_prediction": 10.0, "volume_ml_reference": 11.0,
    }  # fmt: skip


class Maker:
    """Puts a study together below a folder; every number follows from names and seeds."""

    def __init__(self, folder):
        self.folder, self.rows, self.runs = folder, [], []

    def row(self, name, role="method", dataset="left_atrium", n_labeled=8, title=None, of="", n_unlabeled=72,
            settings=None, section="testing", flavor="practical"):  # fmt: skip
        row = StudyRow(name, title or name, role, of, dataset, flavor, n_labeled, n_unlabeled, section,
                       SETTINGS if settings is None else settings)  # fmt: skip
        self.rows.append(row)
        return row

    def run(self, row, seed=0, split="", cases=10, classes=("left atrium",), shift=0.0, dice=None, record=True,
            fail=(), costs=True, curves=True):  # fmt: skip
        """Train and score: ``dice`` sets all values, else they follow from role, labels, case and seed."""
        run = self.folder / "runs" / f"{row.name}-{split}-{seed}".replace("/", "_").replace("<", "")[:40]
        evaluation = run / "evaluation-testing"
        names = [f"case{number:02d}" for number in range(cases)] if isinstance(cases, int) else list(cases)
        generator = np.random.default_rng([seed, len(split), int(1000 * ERRORS[row.role]), row.n_labeled])
        hard = np.random.default_rng(7).gamma(2.0, 0.5, 400)  # the same scans are hard for all
        rows = []
        for number, case in enumerate(names):
            for label, name in enumerate(classes, start=1):
                error = ERRORS[row.role] * hard[number] * (1 + 0.1 * label) * (8 / max(row.n_labeled, 1)) ** 0.3
                value = 1 - error - 0.01 * abs(generator.standard_normal()) + shift
                value = float(np.clip(value if dice is None else dice, 0.01, 0.99))
                rows.append(scores(0.0 if case in fail else value, case, label, name, 90.0 if case in fail else None))
        meta = {"seed": seed, "dataset": row.dataset, "date": "2026-01-01T00:00:00+00:00", "command": "evaluate",
                "versions": {"torch": "2.13.0", "monai": "1.5.1", "monai_ssl": "0.2.0"},
                "machine": {"cpu": "Some CPU", "cuda_devices": []}}  # fmt: skip
        write_results(evaluation, rows, meta)
        if record:
            content = {"bundle": "dtc", "overrides": {"seed": seed}, "dataset": row.dataset, "flavor": row.flavor,
                       "dataset_dir": "/data", "datalist": "/data/list.json", "max_iterations": 300,
                       "status": "complete", "precision": {"format": "float32"}, "versions": meta["versions"],
                       "machine": meta["machine"]}  # fmt: skip
            (run / "run.json").write_text(json.dumps(content))
        if costs:
            seconds = 600.0 + seed
            content = {"parameters": 9_440_000, "parameters_trained": 9_441_000, "macs": 40_108_687_360,
                       "patch": [1, 112, 112, 80], "sessions": [{"first": 1, "last": 300, "seconds": seconds}],
                       "seconds": seconds, "peak_memory_bytes": 5 * 10**9, "peak_gpu_memory_bytes": None}  # fmt: skip
            (run / "costs.json").write_text(json.dumps(content))
        if curves:
            lines = [f"{i},{0.9 - 0.5 / (1 + i / 50) - 0.01 * seed}" for i in range(50, 301, 50)]
            (run / "validation.csv").write_text("iteration,val_mean_dice\n" + "\n".join(lines) + "\n")
            steps = [
                f"{i},{1 / (1 + i / 40)},{0.8 / (1 + i / 40)},{0.2 / (1 + i / 40)},0.01,1.0" for i in range(1, 301)
            ]
            (run / "training.csv").write_text(
                "iteration,loss,dice,consistency,lr,grad_norm\n" + "\n".join(steps) + "\n"
            )
        self.runs.append(StudyRun(row.name, seed, split, run, evaluation))
        return self.runs[-1]

    def lost(self, row, seed, split=""):
        run = self.folder / "runs" / f"lost-{seed}"
        self.runs.append(StudyRun(row.name, seed, split, run, run / "evaluation-testing"))


def whole_study(
    folder, datasets=("left_atrium", "hippocampus"), labels=(4, 8, 16, 32), seeds=(0, 1), methods=("DTC", "CAML")
):
    """Two data sets (one and two classes), four numbers of labels, floors, matched floors, ceilings."""
    maker = Maker(folder)
    for dataset in datasets:
        classes = ("left atrium",) if dataset == "left_atrium" else ("anterior", "posterior")
        ceiling = maker.row(f"{dataset}-ceiling", "ceiling", dataset, 80, "all labels", n_unlabeled=0)
        maker.run(ceiling, 0, classes=classes)
        for n in labels:
            floor = maker.row(f"{dataset}-floor-{n}", "floor", dataset, n, "supervised", n_unlabeled=80 - n)
            for seed in seeds:
                maker.run(floor, seed, classes=classes, fail=("case03",) if n == 4 else ())
            for number, method in enumerate(methods):
                row = maker.row(f"{dataset}-{method}-{n}", "method", dataset, n, method, n_unlabeled=80 - n)
                matched = maker.row(f"{dataset}-{method}-{n}-w0", "matched_floor", dataset, n, f"{method} at weight 0",
                                    row.name, 80 - n)  # fmt: skip
                for seed in seeds:
                    maker.run(row, seed, classes=classes, shift=-0.02 * number)
                    maker.run(matched, seed, classes=classes, shift=-0.02 * number)
    return maker

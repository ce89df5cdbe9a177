"""Tables and report of a study, from the folders of its runs."""

from __future__ import annotations

import csv
import io
import json
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ssl.errors import DataError
from monai_ssl.files import cell, write_text
from monai_ssl.metrics.results import read_results
from monai_ssl.metrics.statistics import case_values
from monai_ssl.reports.study import StudyRow, StudyRun, write_study_report
from monai_ssl.runs.folder import RECORD
from monai_ssl.runs.study.plan import Plan
from monai_ssl.runs.study.settings import StudySettings
from monai_ssl.runs.study.tasks import State, Task, done
from monai_ssl.runs.study.work import last_run

console = logging.getLogger("monai_ssl.console")

RESULTS, TABLE = "results", "runs.csv"
RUN = ("row", "role", "method", "seed", "split", "trained_as", "state", "options", "iterations", "precision",
       "parameters", "seconds", "peak_memory_mb", "peak_gpu_memory_mb", "machine", "cpu", "python", "torch", "monai",
       "monai_ssl")  # fmt: skip


def collect(study: StudySettings, plan: Plan, folder: Path, command: str) -> Path | None:
    """Write ``results/runs.csv``, and the report with its tables of the runs that are done, in the plan's order.

    Args:
        study: what was asked for.
        plan: its rows and runs; what else lies in the folder is left out.
        folder: of the study.
        command: what to type to make it again.

    Returns:
        path of the page; None where nothing is done yet.
    """
    rows = {row.name: row for row in plan.rows}
    runs: list[StudyRun] = []
    facts: list[dict[str, Any]] = []
    for run in plan.runs:
        task, row = plan.tasks[run.task], rows[run.row]
        ready = done(task, folder)
        facts.append(_facts(row, run.seed, run.split, task, folder, ready))
        if not ready:
            continue
        chain = task.folder(folder) if task.kind == "self_train" else None
        runs.append(StudyRun(run.row, run.seed, run.split, last_run(task, folder), task.evaluation(folder), chain))
    write_text(folder / RESULTS / TABLE, _csv(facts, RUN))
    if not runs:
        return None
    title = study.title or f"Comparison: {', '.join(study.data)}"
    used = [_as_trained(row, plan, folder) for row in plan.rows if any(run.row == row.name for run in runs)]
    known = {row.name for row in used}
    used = [row for row in used if not row.of or row.of in known]
    known = {row.name for row in used}
    runs = [run for run in runs if run.row in known]
    quoted = None if study.quoted is None else Path(study.quoted)
    return write_study_report(folder, title, study.description, used, runs, command, quoted)


def _as_trained(row: StudyRow, plan: Plan, folder: Path) -> StudyRow:
    """The row with the precision that its runs stepped with, where that was theirs to decide."""
    from dataclasses import replace

    found = set()
    for run in plan.runs:
        if run.row == row.name and done(plan.tasks[run.task], folder):
            found.add(_precision(_record(last_run(plan.tasks[run.task], folder))))
    told = ", ".join(sorted(found - {""}))
    return replace(row, settings={**row.settings, "precision": told or row.settings.get("precision")})


def _record(run: Path) -> dict[str, Any]:
    try:
        content = json.loads((run / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _precision(record: Mapping[str, Any]) -> str:
    told = record.get("precision")
    return str(told.get("format", "")) if isinstance(told, Mapping) else ""


def _facts(row: StudyRow, seed: int, split: str, task: Task, folder: Path, ready: bool) -> dict[str, Any]:
    """One line of ``runs.csv``."""
    state, record = State.read(task.folder(folder)), _record(last_run(task, folder))
    versions, machine = record.get("versions") or {}, record.get("machine") or {}
    hidden = ("bundle", "dataset_dir", "datalist", "seed", "dataset", "flavor", "pseudo_labels")
    options = {key: value for key, value in task.arguments.items() if key not in hidden}
    return {
        "row": row.name,
        "role": row.role,
        "method": task.bundle,
        "seed": seed,
        "split": split,
        "trained_as": task.name,
        "state": "done" if ready else "failed" if state.error else "waiting" if not state.digest else "begun",
        "options": json.dumps(options, sort_keys=True, default=str) if options else "",
        "iterations": task.iterations,
        "precision": _precision(record),
        "parameters": state.parameters or "",
        "seconds": state.seconds or "",
        "peak_memory_mb": round(state.peak_memory / 1e6) or "",
        "peak_gpu_memory_mb": round(state.peak_gpu_memory / 1e6) or "",
        "machine": state.machine,
        "cpu": machine.get("cpu") or "",
        **{key: versions.get(key) or "" for key in ("python", "torch", "monai", "monai_ssl")},
    }


def _csv(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        writer.writerow([_cell(line.get(key, "")) for key in columns])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    return cell(value) if isinstance(value, str) and not value.startswith("'") else value


def summary(plan: Plan, folder: Path) -> Iterator[str]:
    """A line per row: mean Dice over cases of every run, and over runs."""
    for row in plan.rows:
        means, n = [], 0
        for run in plan.runs:
            task = plan.tasks[run.task]
            if run.row == row.name and done(task, folder):
                try:
                    values = list(case_values(read_results(task.evaluation(folder)).rows, "dice").values())
                except (OSError, ValueError) as error:
                    raise DataError(f"{task.evaluation(folder)}: cannot be read ({error}); remove it and start again"
                                    ) from None  # fmt: skip
                means.append(100 * statistics.fmean(values))
                n = len(values)
        if means:
            each = ", ".join(f"{mean:.1f}" for mean in means)
            mean = statistics.fmean(means)
            yield f"  {row.name:<32} {row.n_labeled:>3} labels  Dice {mean:5.1f}  ({each}; {n} cases)"

"""One page that tells honestly how a method did: HTML (nothing outside the file, no script) and Markdown.

A report compares every method with three references: the *floor* (the labeled cases only), the *matched floor* (the
method's own passes with the weight of its unsupervised terms at 0) and the *ceiling* (all labels). Only the
difference from the matched floor says what the unlabeled images taught.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ssl.files import write_atomically
from monai_ssl.metrics.cases import Row
from monai_ssl.metrics.results import read_results
from monai_ssl.metrics.statistics import FAILURE_DICE, case_values, compare, is_failed
from monai_ssl.reports.charts import case_figure, curves_figure, overlay_figures
from monai_ssl.reports.findings import (
    findings,
    missing_references,
    names_beside,
    pairs,
    settings_table,
    verdict,
    warnings,
)
from monai_ssl.reports.numbers import (
    MINUS,
    PATIENT_NOTE,
    interval_text,
    metric_unit,
    number_text,
    p_value_text,
    scans_text,
)
from monai_ssl.reports.page import Picture, Table, render_html, render_markdown
from monai_ssl.reports.run import LoadedRun, ReportRun, load_runs, report_run, role_text, run_name

__all__ = ["comparison_report", "report_evaluation", "write_report"]

READING = (
    f"All values are means over cases (in brackets: medians). The interval is a 95 % bootstrap interval of the mean "
    f"(BCa); with few cases and rare failures it is too narrow. A failed case has exactly one empty mask, or Dice "
    f"below {FAILURE_DICE:g}. Where the prediction or the reference is empty, every distance is the image diagonal: a "
    f"missed structure never counts as a perfect distance. 95HD is the 95th percentile of both directed surface "
    f"distance sets pooled, ASD runs from the prediction to the reference (both as in medpy)"
)
VOXEL_NOTE = "; 'voxel' ignores the spacing, as the literature prints it."
SAME_NOTE = (
    ". Distances in voxels, as the literature prints them, are the same here: voxels measure 1 mm, or files state "
    "no size."
)
ROLES_TEXT = (
    "Floor: the labeled cases only. Matched floor: the method's own passes with the weight of its unsupervised terms "
    "at 0; the difference from it is what the unlabeled images' loss brings. Ceiling: trained with all labels."
)
COMPARISON_NOTE = (
    "'Gain' or 'loss' is said only where the bootstrap interval of the paired difference excludes zero and the "
    "two-sided Wilcoxon signed-rank test gives p < 0.05. For 95HD a negative difference is the better one. The tests "
    "are not corrected for their number, and one seed says little: repeat before you conclude."
)
CASE_CAPTION = (
    "One dot per case, one line through the same case in every run; the diamond and bar are the mean and its 95 % "
    "interval. The dashed line marks failure."
)
OVERLAY_NOTE = (
    "The slice with the largest cross-section of the label, cropped around the outlines. Letters at the edges, where "
    "files state directions, name the patient's left (L), right (R), back (P) and front (A)."
)
CASE_NOTE = "Worst case of {name} first. * marks the penalty distance (or zero where both masks are empty)."


def write_report(
    path: str | os.PathLike[str], title: str, runs: Sequence[ReportRun], intro: str = ""
) -> tuple[Path, Path]:
    """Write the report of several runs over the same cases as HTML and as Markdown.

    The HTML file needs no other: pictures are embedded, there is no script and no outside resource. The
    Markdown twin holds the same sentences and tables without pictures. All names are treated as data and escaped.

    Args:
        path: HTML file to write; its folder is created. The Markdown file has the same name, with the ending ``.md``.
        title: heading.
        runs: runs to show; they are put in the order floor, matched floor, reference, methods, ceiling.
        intro: one paragraph of plain text under the title (dataset, question asked).

    Returns:
        Paths of the HTML and the Markdown file.

    Raises:
        ValueError: if there is no run, names repeat, runs differ in their cases or classes, a log lacks a column, or
            ``path`` ends in ``.md``.
        FileNotFoundError: if a results folder is not complete.

    Example:
        >>> write_report(  # doctest: +SKIP
        ...     "report.html", "DTC on the left atrium",
        ...     [ReportRun("supervised (floor)", "out/floor"), ReportRun("dtc", "out/dtc"),
        ...      ReportRun("dtc, weight 0 (matched floor)", "out/matched"), ReportRun("ceiling", "out/ceiling")])
    """
    page = Path(path)
    twin = page.with_suffix(".md")
    if twin == page:
        raise ValueError(f"path must be an HTML file, got {str(path)!r}: the Markdown file takes the ending .md")
    loaded = load_runs(runs)
    focus = next((run for run in loaded if run.role == "method"), loaded[-1])
    classes = list(focus.summary["classes"])
    several = classes if len(classes) > 1 else []
    n_cases, n_patients = focus.summary["n_cases"], focus.summary["n_patients"]
    counted = scans_text(n_cases, n_patients)
    compared = pairs(loaded)
    worst = ", ".join(
        f"{item['case']} ({number_text(item['dice'], 1, 100)})" for item in focus.summary["mean"]["worst"]
    )
    text: dict[str, Any] = {
        "title": title,
        "subtitle": f"{intro + ' ' if intro else ''}{counted}, {', '.join(classes)}.",
        "warnings": warnings(loaded),
        "findings": findings(loaded),
        "missing": missing_references(loaded),
        "headline": headline_table(loaded),
        "classes": [(label, headline_table(loaded, label)) for label in several],
        "reading": [
            ROLES_TEXT,
            READING + (SAME_NOTE if voxels_are_millimeters(loaded) else VOXEL_NOTE),
            *([PATIENT_NOTE] if n_patients < n_cases else []),
        ],
        "comparison": comparison_table(compared) if compared else None,
        "class_comparisons": [(label, comparison_table(compared, label)) for label in several],
        "comparison_note": COMPARISON_NOTE,
        "worst": f"Lowest Dice of {focus.name}: {worst}.",
        "cases": case_table(loaded, focus),
        "case_note": CASE_NOTE.format(name=focus.name),
        "settings": settings_table(loaded),
        "sources": [(run.name, provenance(run)) for run in loaded],
    }
    curves = curves_figure(loaded)
    pictures = {
        "every_case": Picture(case_figure(loaded), CASE_CAPTION, "Dice and 95HD of every case in every run"),
        "overlays": [Picture(figure, caption, caption) for caption, figure in overlay_figures(loaded, focus)],
        "overlay_note": OVERLAY_NOTE,
        "curves": curves and Picture(curves, "Bold: running mean; pale: single steps.", "Training curves"),
    }
    write_atomically(
        {
            page: render_html("comparison.html.j2", **text, **pictures),
            twin: render_markdown("comparison.md.j2", **text),
        }
    )
    return page, twin


# ----------------------------------------------------------------------------------------- from results folders


def report_evaluation(results: str | os.PathLike[str], against: str | os.PathLike[str] | None = None) -> Path:
    """Write ``report.html`` (and ``report.md``) into a results folder.

    Args:
        results: folder that an evaluation wrote.
        against: results folder of another run on the same cases. Its role (matched floor, floor, ceiling, or just a
            reference) is read from the records of both runs.

    Returns:
        Path of the page.

    Raises:
        ValueError: if the two were scored on different cases.
        FileNotFoundError: if a folder holds no results.

    Example:
        >>> report_evaluation("runs/dtc/evaluation-testing", "runs/dtc-w0/evaluation-testing")  # doctest: +SKIP
    """
    folder = Path(results).expanduser()
    meta = read_results(folder).meta
    name = run_name(folder, meta)
    runs = [report_run(folder, name, "method")]
    training = runs[0].training
    method = f" ({training.bundle})" if training is not None and training.bundle not in name else ""
    if against is not None:
        other = Path(against).expanduser()
        _, name_b, role = names_beside(folder, meta, other, read_results(other).meta)
        runs.append(report_run(other, name_b, role))
    return write_report(folder / "report.html", f"Evaluation: {name}{method}", runs)[0]


def comparison_report(
    path: str | os.PathLike[str],
    title: str,
    results: Mapping[str, str | os.PathLike[str]],
    names: Mapping[str, str] | None = None,
    intro: str = "",
) -> Path:
    """Write one page from the results folders of floor, matched floor, method and ceiling.

    Args:
        path: HTML file to write.
        title: heading.
        results: results folder by role.
        names: what the reader sees, by role; a missing name is made from the run's record.
        intro: one paragraph under the title.

    Returns:
        Path of the page.

    Raises:
        ValueError: as :func:`write_report`.
        FileNotFoundError: if a folder holds no results.

    Example:
        >>> comparison_report("page.html", "DTC", {"method": "runs/dtc/evaluation-testing"})  # doctest: +SKIP
    """
    runs = [report_run(folder, (names or {}).get(role), role) for role, folder in results.items()]
    return write_report(path, title, runs, intro)[0]


# -------------------------------------------------------------------------------------------------------- tables


def voxels_are_millimeters(runs: Sequence[LoadedRun]) -> bool:
    """Whether every distance is the same in millimeters and in voxels."""
    return all(
        math.isclose(row[f"{name}_mm"], row[f"{name}_voxel"], rel_tol=1e-9, abs_tol=1e-9)
        for run in runs
        for row in run.rows
        for name in ("hd95", "asd")
    )


def headline_table(runs: Sequence[LoadedRun], label: str | None = None) -> Table:
    """Scores of every run: of class ``label``, or means over the classes."""
    columns = {"hd95_mm": "95HD mm", "hd95_voxel": "95HD voxel", "asd_mm": "ASD mm", "asd_voxel": "ASD voxel"}
    if voxels_are_millimeters(runs):
        columns = {key: name for key, name in columns.items() if key.endswith("_mm")}
    header = [
        "Run",
        "Role",
        "Dice %: mean ± sd [median]",
        "95% interval",
        "Jaccard %",
        *columns.values(),
        "Failed cases",
    ]
    rows = []
    for run in runs:
        block = run.summary["mean"] if label is None else run.summary["classes"][label]
        dice = block["dice"]
        mean, sd, median = (number_text(dice[key], 1, 100) for key in ("mean", "sd", "median"))
        rows.append(
            [
                run.name,
                role_text(run),
                f"{mean} ± {sd} [{median}]",
                interval_text(dice["ci_low"], dice["ci_high"], 1, 100),
                number_text(block["jaccard"]["mean"], 1, 100),
                *(f"{number_text(block[key]['mean'], 2)} [{number_text(block[key]['median'], 2)}]" for key in columns),
                f"{block['n_failed']} of {block['n']}",
            ]
        )
    marked = [number for number, run in enumerate(runs) if run.role == "method"] if len(runs) > 1 else []
    return Table(header, rows, (0, 1), [run.color for run in runs], marked)


def comparison_table(compared: Sequence[tuple[LoadedRun, LoadedRun]], label: str | None = None) -> Table:
    """Paired differences of Dice and 95HD."""
    header = [
        "a", "b", "Metric", f"Mean a {MINUS} b", "95% interval", f"Median a {MINUS} b", "Wilcoxon",
        "a better / worse / equal", "Reading",
    ]  # fmt: skip
    rows = []
    for first, second in compared:
        for metric, name in (("dice", "Dice,\u00a0points"), ("hd95_mm", "95HD,\u00a0mm")):
            result = compare(first.rows, second.rows, metric, label)
            scale, digits, _ = metric_unit(metric)
            rows.append(
                [
                    first.name,
                    second.name,
                    name,
                    number_text(result.mean_difference, digits, scale, sign=True),
                    interval_text(result.ci_low, result.ci_high, digits, scale),
                    number_text(result.median_difference, digits, scale, sign=True),
                    p_value_text(result.p_value),
                    f"{result.wins} / {result.losses} / {result.ties}",
                    verdict(result),
                ]
            )
    return Table(header, rows, (0, 1, 2, 8))


def case_table(runs: Sequence[LoadedRun], focus: LoadedRun) -> Table:
    """Dice and 95HD of every case and class in every run, worst case of ``focus`` first."""
    classes = list(focus.summary["classes"])
    dice = case_values(focus.rows, "dice")
    several = len(classes) > 1
    header = ["Case", *(["Class"] if several else [])]
    header += [f"{run.name}: Dice %" for run in runs] + [f"{run.name}: 95HD mm" for run in runs]
    tables = [{(row["case"], row["class"]): row for row in run.rows} for run in runs]
    rows = []
    for case in sorted(dice, key=lambda name: dice[name]):
        for label in classes:
            found = [table[case, label] for table in tables]
            cells = [case, *([label] if several else [])]
            cells += [number_text(row["dice"], 1, 100) + _mark(row) for row in found]
            cells += [number_text(row["hd95_mm"], 2) + ("" if row["status"] == "ok" else " *") for row in found]
            rows.append(cells)
    return Table(header, rows, (0, 1) if several else (0,))


def _mark(row: Row) -> str:
    if row["status"] != "ok":
        return f" ({row['status'].replace('_', ' ')})"
    return " (failed)" if is_failed(row) else ""


def provenance(run: LoadedRun) -> list[tuple[str, str]]:
    """Where the numbers of a run come from: command, seed, data, weights, versions, machine."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(item)}" for key, item in value.items() if item not in (None, [], "", {}))
        if isinstance(value, (list, tuple)):
            return ", ".join(text(item) for item in value)
        return str(value)

    first = ("command", "seed", "dataset", "ckpt", "date", "versions", "machine")
    meta = run.results.meta
    keys = [key for key in first if key in meta] + [key for key in meta if key not in first]
    if isinstance(meta.get("training"), Mapping):  # what it came to use is compared above, and in summary.json
        meta = {**meta, "training": {key: value for key, value in meta["training"].items() if key != "resolved"}}
    return [(key, text(meta[key])) for key in keys if meta[key] is not None]

"""One page that tells honestly how a method did: HTML (nothing outside the file, no script) and Markdown.

A report sets every method beside three references: the *floor* (the labeled cases alone), the *matched floor* (the
method's own passes with the weight of its unsupervised terms at 0) and the *ceiling* (all labels). Only the
difference from the matched floor says what the unlabeled images taught.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from monai_ssl.files import write_atomically
from monai_ssl.metrics.cases import OVERLAP_METRICS, Row
from monai_ssl.metrics.results import read_results
from monai_ssl.metrics.statistics import (
    FAILURE_DICE,
    Comparison,
    bootstrap_interval,
    case_values,
    check_same_cases,
    compare,
    is_failed,
    summarize,
)
from monai_ssl.reports.figures import INK, comparison_figure, new_figure, plain_text, style_axes
from monai_ssl.reports.page import (
    _CSS,
    _ROLE_NAMES,
    ROLES,
    Overlay,
    ReportRun,
    Table,
    _escape,
    _html_figure,
    _html_table,
    _Loaded,
    _markdown_table,
    _markdown_text,
)

__all__ = ["ROLES", "Overlay", "ReportRun", "comparison_sentence", "write_report"]

_ROLE_COLORS = {"floor": "#7b8794", "matched_floor": "#E69F00", "ceiling": "#009E73"}
_METHOD_COLORS = ("#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_NO_TERM = ("iteration", "step", "epoch", "lr", "learning_rate", "time", "seconds")
MINUS, DASH = "\u2212", "–"


# ------------------------------------------------------------------------------------------------ numbers as text
def _number(value: float | None, digits: int = 1, scale: float = 1.0, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{round(value * scale, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: no "-0.0"
    return text.replace("-", MINUS)


def _interval(low: float | None, high: float | None, digits: int = 1, scale: float = 1.0) -> str:
    return DASH if low is None else f"[{_number(low, digits, scale)}, {_number(high, digits, scale)}]"


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def _scale(metric: str) -> tuple[float, int, str]:
    if metric in OVERLAP_METRICS:
        return 100.0, 1, "points"
    return 1.0, 2, "mm" if metric.endswith("_mm") else "voxels"


def comparison_sentence(comparison: Comparison, name_a: str, name_b: str) -> str:
    """Say in one sentence what a paired comparison shows, and no more than it shows.

    "Gain" and "loss" need both an interval that excludes zero and p < 0.05.

    Args:
        comparison: result of :func:`~monai_ssl.metrics.compare`.
        name_a: name of the first run.
        name_b: name of the second run.

    Returns:
        The sentence, as plain text.

    Example:
        >>> result = Comparison(metric="dice", label=None, n=20, mean_a=0.884, mean_b=0.881, mean_difference=0.003,
        ...     median_difference=0.002, ci_low=-0.008, ci_high=0.014, p_value=0.5, higher_is_better=True, wins=11,
        ...     losses=9, ties=0)
        >>> comparison_sentence(result, "dtc", "matched floor")
        'dtc minus matched floor: +0.3 points [−0.8, 1.4], p = 0.50, better on 11 of 20 cases: no measurable gain.'
    """
    scale, digits, unit = _scale(comparison.metric)
    number = _number(comparison.mean_difference, digits, scale, sign=True)
    cases = f"better on {comparison.wins} of {comparison.n} cases"
    text = f"{name_a} minus {name_b}: {number} {unit} {_interval(comparison.ci_low, comparison.ci_high, digits, scale)}"
    return f"{text}, {_p_value(comparison.p_value)}, {cases}: {_verdict(comparison)}."


def _verdict(comparison: Comparison) -> str:
    if comparison.ci_low is None or comparison.ci_high is None or comparison.n < 6:
        return f"too few cases ({comparison.n}) to tell"  # Wilcoxon's smallest two-sided p at 5 cases is 0.0625
    direction = 1 if comparison.higher_is_better else -1
    outside = comparison.ci_low > 0 or comparison.ci_high < 0
    significant = comparison.p_value < 0.05
    better = comparison.mean_difference * direction > 0
    if outside and significant:
        return "a measurable gain" if better else "a measurable loss"
    if outside or significant:
        return "not conclusive (interval and test disagree)"
    return "no measurable gain"


# --------------------------------------------------------------------------------------------------------- tables


def _headline(runs: Sequence[_Loaded], label: str | None) -> Table:
    header = [
        "Run", "Role", "Dice %: mean ± sd [median]", "95% interval", "Jaccard %", "95HD mm", "95HD voxel", "ASD mm",
        "ASD voxel", "Failed cases",
    ]  # fmt: skip
    body = []
    for run in runs:
        block = run.summary["mean"] if label is None else run.summary["classes"][label]
        dice = block["dice"]
        body.append(
            [
                run.name,
                _ROLE_NAMES[run.run.role or "method"],
                f"{_number(dice['mean'], 1, 100)} ± {_number(dice['sd'], 1, 100)} [{_number(dice['median'], 1, 100)}]",
                _interval(dice["ci_low"], dice["ci_high"], 1, 100),
                _number(block["jaccard"]["mean"], 1, 100),
                *(
                    f"{_number(block[key]['mean'], 2)} [{_number(block[key]['median'], 2)}]"
                    for key in ("hd95_mm", "hd95_voxel", "asd_mm", "asd_voxel")
                ),
                f"{block['n_failed']} of {block['n']}",
            ]
        )
    return header, body


def _pairs(runs: Sequence[_Loaded]) -> list[tuple[_Loaded, _Loaded]]:
    """Every method against floor, matched floor and ceiling; and the matched floor against the floor."""
    by_role = {role: [run for run in runs if run.run.role == role] for role in ROLES}
    pairs = [(m, b) for m in by_role["method"] for r in ("matched_floor", "floor", "ceiling") for b in by_role[r]]
    return pairs + [(m, b) for m in by_role["matched_floor"] for b in by_role["floor"]]


def _comparison_table(pairs: Sequence[tuple[_Loaded, _Loaded]], label: str | None) -> Table:
    header = [
        "a", "b", "Metric", "Mean a " + MINUS + " b", "95% interval", "Median a " + MINUS + " b", "Wilcoxon",
        "a better / worse / equal", "Reading",
    ]  # fmt: skip
    body = []
    for first, second in pairs:
        for metric, name in (("dice", "Dice,\u00a0points"), ("hd95_mm", "95HD,\u00a0mm")):
            result = compare(first.rows, second.rows, metric, label)
            scale, digits, _ = _scale(metric)
            body.append(
                [
                    first.name,
                    second.name,
                    name,
                    _number(result.mean_difference, digits, scale, sign=True),
                    _interval(result.ci_low, result.ci_high, digits, scale),
                    _number(result.median_difference, digits, scale, sign=True),
                    _p_value(result.p_value),
                    f"{result.wins} / {result.losses} / {result.ties}",
                    _verdict(result),
                ]
            )
    return header, body


def _case_table(runs: Sequence[_Loaded], focus: _Loaded) -> Table:
    classes = list(focus.summary["classes"])
    dice = case_values(focus.rows, "dice")
    header = ["Case", *(["Class"] if len(classes) > 1 else [])]
    header += [f"{run.name}: Dice %" for run in runs] + [f"{run.name}: 95HD mm" for run in runs]
    tables = [{(row["case"], row["class"]): row for row in run.rows} for run in runs]
    body = []
    for case in sorted(dice, key=lambda name: dice[name]):
        for label in classes:
            rows = [table[case, label] for table in tables]
            cells = [case, *([label] if len(classes) > 1 else [])]
            cells += [_number(row["dice"], 1, 100) + _mark(row) for row in rows]
            cells += [_number(row["hd95_mm"], 2) + ("" if row["status"] == "ok" else " *") for row in rows]
            body.append(cells)
    return header, body


def _mark(row: Row) -> str:
    if row["status"] != "ok":
        return f" ({row['status'].replace('_', ' ')})"
    return " (failed)" if is_failed(row) else ""


def _findings(runs: Sequence[_Loaded], pairs: Sequence[tuple[_Loaded, _Loaded]]) -> list[str]:
    """The sentences at the head of the report, from the numbers alone."""
    if not any(run.run.role == "method" for run in runs):
        return ["No run in this report uses the unlabeled images: it states results and compares nothing."]
    sentences = [
        comparison_sentence(compare(first.rows, second.rows), first.name, second.name)
        for first, second in pairs
        if first.run.role == "method" and second.run.role != "ceiling"
    ]
    by_role = {role: [run for run in runs if run.run.role == role] for role in ROLES}
    if not by_role["matched_floor"]:
        sentences.append(
            "No matched floor is given (the same batches with the unsupervised weight at 0), so this report cannot "
            "tell a gain from the unlabeled images' loss from one of batch size, batch norm or network."
        )
    elif by_role["floor"]:
        floor = by_role["floor"][0].summary["mean"]["dice"]
        matched = by_role["matched_floor"][0].summary["mean"]["dice"]
        for run in by_role["method"]:
            dice = run.summary["mean"]["dice"]
            total, passes, rest = (
                _number(part, 1, 100, sign=True)
                for part in (
                    dice["mean"] - floor["mean"],
                    matched["mean"] - floor["mean"],
                    dice["mean"] - matched["mean"],
                )
            )
            median = _number(dice["median"] - floor["median"], 1, 100, sign=True)
            sentences.append(
                f"Of the {total} Dice points between the floor and {run.name}, {passes} come with the matched floor "
                f"and {rest} with the unsupervised loss; the medians differ by {median} points."
            )
    if not by_role["floor"]:
        sentences.append("No floor (labeled cases alone) is given.")
    if not by_role["ceiling"]:
        sentences.append("No ceiling (all labels) is given.")
    return sentences


# -------------------------------------------------------------------------------------------------------- figures
def _read_log(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a CSV of numbers; empty cells are NaN."""
    with Path(path).open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        names = [name for name in (reader.fieldnames or []) if name]
        records = list(reader)
    if "iteration" not in names:
        raise ValueError(f"log must have a column 'iteration', got {names} in {Path(path).name!r}")
    columns: dict[str, np.ndarray] = {}
    for name in names:
        try:
            columns[name] = np.array([float(record[name] or "nan") for record in records], dtype=np.float64)
        except (TypeError, ValueError):
            if name == "iteration":
                raise ValueError(f"log column 'iteration' must hold numbers, in {Path(path).name!r}") from None
    return columns


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over 1/40 of the curve (centerd, shorter at the ends)."""
    half = max(0, len(values) // 80)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _draw_curve(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, name: str) -> None:
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if not x.size:
        return
    if x.size > 80:
        axes.plot(x, y, color=color, linewidth=0.6, alpha=0.18)
        y = _smooth(y)
    axes.plot(x, y, color=color, linewidth=1.8, label=plain_text(name))


def _curves_figure(runs: Sequence[_Loaded]) -> Figure | None:
    logs = {run.name: _read_log(run.run.training_log) for run in runs if run.run.training_log is not None}
    checks = {run.name: _read_log(run.run.validation_log) for run in runs if run.run.validation_log is not None}
    colors = {run.name: run.color for run in runs}
    panels: list[tuple[str, str, list[tuple[np.ndarray, np.ndarray, str, str]], bool]] = []
    total = [(log["iteration"], log["loss"], colors[name], name) for name, log in logs.items() if "loss" in log]
    if total:
        panels.append(("Total loss", "loss", total, False))
    validation = []
    for name, log in checks.items():
        column = next((key for key in log if "dice" in key.lower()), None)
        if column is None:
            raise ValueError(f"validation_log must have a column whose name holds 'dice', got {list(log)}")
        validation.append((log["iteration"], log[column] * 100, colors[name], name))
    if validation:
        panels.append(("Validation Dice", "Dice %", validation, True))
    palette = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7b8794")
    for run in runs:
        log = logs.get(run.name, {})
        terms = [key for key in log if key != "loss" and key.lower() not in _NO_TERM]
        if run.run.role == "method" and terms:
            curves = [(log["iteration"], log[key], palette[i % len(palette)], key) for i, key in enumerate(terms)]
            panels.append((f"Loss terms, weighted: {run.name}", "loss", curves, False))
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(5.2 * columns, 3.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, ylabel, curves, dots) in zip(grid, panels, strict=False):
        for x, y, color, name in curves:
            _draw_curve(axes, x, y, color, name)
            if dots and len(x) <= 60:
                axes.plot(x, y, "o", color=color, markersize=3.2)
        style_axes(axes, title, "iteration", ylabel)
        axes.legend(fontsize=8, frameon=False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _case_figure(runs: Sequence[_Loaded]) -> Figure:
    figure = new_figure(max(7.2, 2.3 * len(runs) + 3.2), 3.9)
    panels = figure.subplots(1, 2)
    for axes, metric, title, scale in (
        (panels[0], "dice", "Dice % (higher is better)", 100.0),
        (panels[1], "hd95_mm", "95HD mm (lower is better)", 1.0),
    ):
        values = [case_values(run.rows, metric) for run in runs]
        lines = np.array([[value[case] * scale for value in values] for case in values[0]])
        positions = np.arange(len(runs))
        # a small fixed offset per case keeps equal values apart
        offset = np.linspace(-0.09, 0.09, len(lines)) if len(lines) > 1 else np.zeros(1)
        for shift, line in zip(offset, lines, strict=True):
            axes.plot(positions + shift, line, color="#9aa5b1", linewidth=0.7, alpha=0.55, zorder=1)
        for position, run, column in zip(positions, runs, lines.T, strict=True):
            axes.scatter(position + offset, column, s=17, color=run.color, alpha=0.85, linewidths=0, zorder=2)
            low, high = bootstrap_interval(column)
            if low is not None:
                axes.plot([position + 0.22] * 2, [low, high], color=INK, linewidth=2, zorder=3)
            axes.scatter([position + 0.22], [column.mean()], s=34, marker="D", color=INK, linewidths=0, zorder=4)
        style_axes(axes, title)
        axes.set_xticks(positions, [_wrap(plain_text(run.name)) for run in runs], color=INK)
        axes.set_xlim(-0.4, len(runs) - 0.5)
        if metric == "dice":
            axes.axhline(FAILURE_DICE * 100, color="#b44", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
            axes.set_ylim(min(45.0, float(lines.min()) - 3), min(101.5, float(lines.max()) + 4))
        elif lines.min() > 0 and lines.max() > 20 * np.median(lines):
            # one penalty distance would press all other cases into a line
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
            style_axes(axes, title, ylabel="logarithmic scale")
        else:
            axes.set_ylim(bottom=0)
    return figure


def _wrap(text: str, width: int = 16) -> str:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return "\n".join(lines)


def _load_volume(value: Any) -> tuple[np.ndarray, list[float] | None]:
    """Return array and spacing; files are brought to the closest canonical orientation."""
    if not isinstance(value, (str, os.PathLike)):
        return value, None
    volume: Any = nibabel.as_closest_canonical(nibabel.load(os.fspath(value)))
    array = np.squeeze(np.asanyarray(volume.dataobj))
    return array, [float(step) for step in volume.header.get_zooms()[: array.ndim]]


def _overlay_figures(runs: Sequence[_Loaded], focus: _Loaded) -> list[tuple[str, Figure]]:
    dice = case_values(focus.rows, "dice")
    ranked = [case for case in sorted(dice, key=lambda name: dice[name]) if case in focus.run.overlays]
    if not ranked:
        return []
    scope = "" if len(ranked) == len(dice) else f" of the {len(ranked)} cases with images"
    picks = {"Best": ranked[-1], "Median": ranked[len(ranked) // 2], "Worst": ranked[0]}
    names = {int(row["label"]): str(row["class"]) for row in focus.rows}
    figures = []
    shown: set[str] = set()
    for kind, case in picks.items():
        if case in shown:
            continue
        shown.add(case)
        own = focus.run.overlays[case]
        image, spacing = _load_volume(own.image)
        predictions: dict[str, Any] = {}
        for run in runs:
            if case in run.run.overlays:
                value = case_values(run.rows, "dice")[case]
                title = f"{_wrap(run.name, 28)}\nDice {_number(value, 1, 100)}"
                predictions[title] = _load_volume(run.run.overlays[case].prediction)[0]
        figure = comparison_figure(image, _load_volume(own.label)[0], predictions, own.spacing or spacing, names)
        figures.append((f"{kind} case of {focus.name}{scope}: {case}", figure))
    return figures


# ----------------------------------------------------------------------------------------------------------- page

_READING = (
    f"All values are means over cases (in brackets: medians). The interval is a 95 % bootstrap interval of the mean. "
    f"A failed case has exactly one empty mask, or Dice below {FAILURE_DICE:g}. Where the prediction or the reference "
    f"is empty, every distance is the image diagonal: a missed structure never counts as a perfect distance. 95HD is "
    f"the 95th percentile of both directed surface distance sets pooled, ASD runs from the prediction to the "
    f"reference (both as in medpy); 'voxel' ignores the spacing, as the literature prints it."
)
_ROLES_TEXT = (
    "Floor: the labeled cases alone. Matched floor: the method's own passes with the weight of its unsupervised terms "
    "at 0; the difference from it is what the unlabeled images' loss brings. Ceiling: trained with all labels."
)


def _provenance(run: _Loaded) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(item)}" for key, item in value.items() if item not in (None, [], ""))
        if isinstance(value, (list, tuple)):
            return ", ".join(text(item) for item in value)
        return str(value)

    first = ("command", "seed", "dataset", "ckpt", "date", "versions", "machine")
    meta = run.results.meta
    keys = [key for key in first if key in meta] + [key for key in meta if key not in first]
    return [(key, text(meta[key])) for key in keys if meta[key] is not None]


def _load(runs: Sequence[ReportRun]) -> list[_Loaded]:
    if not runs:
        raise ValueError("runs must hold at least one ReportRun, got none")
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise ValueError(f"runs must have names of their own, got {names}")
    loaded: list[_Loaded] = []
    methods = 0
    for run in sorted(runs, key=lambda item: ROLES.index(item.role or "method")):
        color = _ROLE_COLORS.get(run.role or "")
        if color is None or any(item.color == color for item in loaded):
            color, methods = _METHOD_COLORS[methods % len(_METHOD_COLORS)], methods + 1
        results = read_results(run.results)
        loaded.append(_Loaded(run, results, summarize(results.rows), color))
    for other in loaded[1:]:
        try:
            check_same_cases(loaded[0].rows, other.rows)
        except ValueError as error:
            raise ValueError(
                f"runs must be scored on the same cases and classes, got {loaded[0].name!r} (a) and "
                f"{other.name!r} (b): {error}"
            ) from error
    return loaded


def write_report(
    path_html: str | os.PathLike[str],
    title: str,
    runs: Sequence[ReportRun],
    intro: str = "",
    path_markdown: str | os.PathLike[str] | None = None,
) -> tuple[Path, Path]:
    """Write the report of several runs over the same cases as HTML and as Markdown.

    The HTML file needs nothing beside itself: pictures are embedded, there is no script and no outside resource. The
    Markdown twin holds the same sentences and tables without pictures. All names are treated as data and escaped.

    Args:
        path_html: file to write; its folder is created.
        title: heading.
        runs: runs to show; they are put in the order floor, matched floor, methods, ceiling.
        intro: one paragraph of plain text under the title (dataset, question asked).
        path_markdown: the Markdown file; None takes ``path_html`` with the ending ``.md``.

    Returns:
        Paths of the HTML and the Markdown file.

    Raises:
        ValueError: if there is no run, names repeat, runs differ in their cases or classes, or a log lacks a column.
        FileNotFoundError: if a results folder is not complete.

    Example:
        >>> write_report(  # doctest: +SKIP
        ...     "report.html", "DTC on the left atrium",
        ...     [ReportRun("supervised (floor)", "out/floor"), ReportRun("dtc", "out/dtc"),
        ...      ReportRun("dtc, weight 0 (matched floor)", "out/matched"), ReportRun("ceiling", "out/ceiling")])
    """
    page = Path(path_html)
    twin = page.with_suffix(".md") if path_markdown is None else Path(path_markdown)
    if twin == page:
        raise ValueError(f"path_markdown must differ from path_html, got {str(path_html)!r} for both")
    loaded = _load(runs)
    focus = next((run for run in loaded if run.run.role == "method"), loaded[-1])
    classes = list(focus.summary["classes"])
    pairs = _pairs(loaded)
    findings = _findings(loaded, pairs)
    worst = ", ".join(f"{item['case']} ({_number(item['dice'], 1, 100)})" for item in focus.summary["mean"]["worst"])
    parts: list[str] = []
    text: list[str] = [f"# {_markdown_text(title)}"]

    def paragraph(value: str, kind: str = "") -> None:
        parts.append(f'<p class="{kind}">{_escape(value)}</p>' if kind else f"<p>{_escape(value)}</p>")
        text.append(_markdown_text(value))

    def heading(value: str, level: int = 2) -> None:
        parts.append(f"<h{level}>{_escape(value)}</h{level}>")
        text.append("#" * level + " " + _markdown_text(value))

    def table(value: Table, text_columns: Sequence[int], marked: Sequence[_Loaded] = ()) -> None:
        parts.append(_html_table(value, text_columns, marked))
        text.append(_markdown_table(value))

    parts.append(f"<h1>{_escape(title)}</h1>")
    number = focus.summary["n_cases"]
    paragraph(
        f"{intro + ' ' if intro else ''}{number} case{'s' if number != 1 else ''}, {', '.join(classes)}.", "muted"
    )
    parts.append('<div class="findings">')
    for sentence in findings:
        paragraph(sentence)
    parts.append("</div>")

    heading("Results" if len(classes) == 1 else "Results, mean over classes")
    table(_headline(loaded, None), (0, 1), loaded)
    paragraph(_ROLES_TEXT, "note")
    paragraph(_READING, "note")
    if len(classes) > 1:
        for label in classes:
            heading(label, 3)
            table(_headline(loaded, label), (0, 1), loaded)

    if pairs:
        heading("Paired comparison, case by case")
        table(_comparison_table(pairs, None), (0, 1, 2, 8))
        paragraph(
            "'Gain' or 'loss' is said only where the bootstrap interval of the paired difference excludes zero and the "
            "two-sided Wilcoxon signed-rank test gives p < 0.05. For 95HD a negative difference is the better one. The "
            "tests are not corrected for their number, and one seed says little: repeat before you conclude.",
            "note",
        )
        if len(classes) > 1:
            for label in classes:
                heading(label, 3)
                table(_comparison_table(pairs, label), (0, 1, 2, 8))

    heading("Every case")
    caption = (
        "One dot per case, one line through the same case in every run; the diamond and bar are the mean and its 95 % "
        "interval. The dashed line marks failure."
    )
    parts.append(_html_figure(_case_figure(loaded), caption, "Dice and 95HD of every case in every run", scroll=True))
    paragraph(f"Lowest Dice of {focus.name}: {worst}.")

    overlays = _overlay_figures(loaded, focus)
    if overlays:
        parts.append("<h2>Best, median and worst case</h2>")
        parts.append(
            '<p class="note">The slice with the largest cross-section of the label, cropped around the outlines.</p>'
        )
        parts += [_html_figure(figure, title_, title_, scroll=True) for title_, figure in overlays]

    curves = _curves_figure(loaded)
    if curves is not None:
        parts.append("<h2>Training</h2>")
        parts.append(_html_figure(curves, "Bold: running mean; pale: single steps.", "Training curves", scroll=True))

    heading("Table of cases")
    cases = _case_table(loaded, focus)
    parts.append(f"<details{' open' if len(cases[1]) <= 30 else ''}><summary>{len(cases[1])} rows</summary>")
    table(cases, (0, 1) if len(classes) > 1 else (0,))
    parts.append("</details>")
    paragraph(
        "Worst case of the method first. * marks the penalty distance (or zero where both masks are empty).", "note"
    )

    parts.append("<footer><strong>Where the numbers come from</strong>")
    text.append("## Where the numbers come from")
    for run in loaded:
        records = _provenance(run)
        parts.append(f"<h3>{_escape(run.name)}</h3><dl>")
        parts += [f"<dt>{_escape(key)}</dt><dd><code>{_escape(value)}</code></dd>" for key, value in records]
        parts.append("</dl>")
        text.append(f"### {_markdown_text(run.name)}")
        text.append("\n".join(f"- {_markdown_text(key)}: {_markdown_text(value)}" for key, value in records))
    parts.append("</footer>")

    document = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(title)}</title><style>{_CSS}</style></head><body><main>\n" + "\n".join(parts) + "\n</main>"
        "</body></html>\n"
    )
    write_atomically({page: document, twin: "\n\n".join(text) + "\n"})
    return page, twin

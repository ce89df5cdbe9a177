"""Figures of a comparison: training curves, every case in every run, best, median and worst case."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from monai_ssl.data.reading import LabelFile, read_volume
from monai_ssl.files import text_of_cell
from monai_ssl.metrics.statistics import FAILURE_DICE, bootstrap_interval, case_patients, case_values
from monai_ssl.reports.figures import (
    GRID,
    INK,
    class_color,
    comparison_figure,
    new_figure,
    plain_text,
    style_axes,
    upright,
)
from monai_ssl.reports.numbers import number_text
from monai_ssl.reports.run import LoadedRun

__all__ = ["case_figure", "curves_figure", "overlay_figures", "read_log"]

# where a training notes the pseudo-labels that it made, beside its log
ALARMS = "alarms.json"
# columns of a training log that are no terms of the loss; a part of an adversary's has its name before it: name/term
NO_TERM = {"loss", "iteration", "step", "epoch", "lr", "learning_rate", "grad_norm", "time", "seconds"}
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7b8794")
# more runs than this stand below each other, where their names have room
BESIDE = 6


# title, label of the y-axis, curves (x, y, color, name), whether single points are marked
Panel = tuple[str, str, list[tuple[np.ndarray, np.ndarray, str, str]], bool]


def read_log(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
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
            numbers = [float(record[name] or "nan") for record in records]
            columns[text_of_cell(name)] = np.array(numbers, dtype=np.float64)
        except (TypeError, ValueError):
            if name == "iteration":
                raise ValueError(f"log column 'iteration' must hold numbers, in {Path(path).name!r}") from None
    return columns


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean over 1/40 of the curve (centered, shorter at the ends)."""
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
        y = smoothed(y)
    axes.plot(x, y, color=color, linewidth=1.8, label=plain_text(name))


def curves_figure(runs: Sequence[LoadedRun]) -> Figure | None:
    """Loss and validation Dice of all runs, the loss terms of every method, and what its pseudo-labels hold; None
    without logs.

    Raises:
        ValueError: if a log lacks its columns.
    """
    logs = {run.name: read_log(run.run.training_log) for run in runs if run.run.training_log is not None}
    checks = {run.name: read_log(run.run.validation_log) for run in runs if run.run.validation_log is not None}
    colors = {run.name: run.color for run in runs}
    panels: list[Panel] = []
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
    for run in runs:
        if run.role == "method" and run.name in logs:
            panels += _term_panels(run.name, logs[run.name])
            panels += _pseudo_label_panels(run)
    if not panels:
        return None
    columns = min(3 if len(panels) > 6 else 2, len(panels))
    rows = math.ceil(len(panels) / columns)
    legend = max(len(curves) for _, _, curves, _ in panels)
    figure = new_figure((4.2 if columns == 3 else 5.2) * columns, (3.1 + 0.16 * max(0, legend - BESIDE)) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, ylabel, curves, dots) in zip(grid, panels, strict=False):
        for x, y, color, name in curves:
            _draw_curve(axes, x, y, color, name)
            if dots and len(x) <= 60:
                axes.plot(x, y, "o", color=color, markersize=3.2)
        style_axes(axes, wrapped(title, 44), "iteration", ylabel)
        if not axes.get_legend_handles_labels()[0]:
            continue  # no curve has a finite value
        if len(curves) <= BESIDE:
            axes.legend(fontsize=8, frameon=False)
        else:  # below, where it covers nothing
            axes.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _term_panels(name: str, log: dict[str, np.ndarray]) -> list[Panel]:
    """The terms of a method's loss, and those of every adversary, which has an optimizer and a loss of its own."""
    groups: dict[str, list[str]] = {}
    for key in log:
        owner, _, term = key.rpartition("/")
        if term.lower() not in NO_TERM:
            groups.setdefault(owner, []).append(key)
    panels = []
    for owner, keys in groups.items():
        shown = [(log["iteration"], log[key], PALETTE[i % len(PALETTE)], key.rpartition("/")[2])
                 for i, key in enumerate(keys)]  # fmt: skip
        title = f"Terms of {owner}: {name}" if owner else f"Loss terms, weighted: {name}"
        panels.append((title, "loss", shown, False))
    return panels


def _pseudo_label_panels(run: LoadedRun) -> list[Panel]:
    """What a method taught of the pool between two validations: the share of its voxels, and how they divide over the
    classes. Empty for methods that note no pseudo-labels."""
    path = run.run.training_log
    try:
        history = (
            [] if path is None else json.loads(Path(path).with_name(ALARMS).read_text(encoding="utf-8"))["history"]
        )
        rows = [row for row in history if row.get("pseudo_labels") and row.get("left_open") is not None]
        x = np.array([row["iteration"] for row in rows], dtype=np.float64)
        taught = np.array([row["pseudo_labels"] for row in rows], dtype=np.float64)
        left_open = np.array([row["left_open"] for row in rows], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if not len(rows):
        return []
    total = taught.sum(1)
    kept, shares = (100 * part / np.where(of > 0, of, np.nan) for part, of in ((total, total + left_open),
                                                                               (taught.T, total)))  # fmt: skip
    named = list(dict.fromkeys(str(row["class"]) for row in run.rows))
    names = ["", *named] if len(named) == len(shares) - 1 else [f"class {value}" for value in range(len(shares))]
    classes = [(x, share, class_color(value), names[value]) for value, share in enumerate(shares)]
    return [(f"Voxels of the pool that teach: {run.name}", "% of all", [(x, kept, run.color, "kept")], True),
            (f"Classes of the pseudo-labels: {run.name}", "% of the kept voxels", classes[1:], True)]  # fmt: skip


def case_figure(runs: Sequence[LoadedRun]) -> Figure:
    """Dice and 95HD of every case in every run: a dot per case, a line through the same case.

    Runs stand beside each other, many below each other.
    """
    beside = len(runs) <= BESIDE
    figure = new_figure(max(7.2, 2.3 * len(runs) + 3.2), 3.9) if beside else new_figure(11, 1.2 + 0.42 * len(runs))
    panels = figure.subplots(1, 2, sharey=not beside)
    patients = case_patients(*(run.rows for run in runs))
    for axes, metric, title, scale in (
        (panels[0], "dice", "Dice % (higher is better)", 100.0),
        (panels[1], "hd95_mm", "95HD mm (lower is better)", 1.0),
    ):
        values = [case_values(run.rows, metric) for run in runs]
        lines = np.array([[value[case] * scale for value in values] for case in values[0]])
        style_axes(axes, title)
        _draw_cases(axes, runs, lines, [patients[case] for case in values[0]], beside)
        _scale_cases(axes, lines, metric, beside, title)
    return figure


def _draw_cases(
    axes: Axes, runs: Sequence[LoadedRun], lines: np.ndarray, patients: Sequence[str], beside: bool
) -> None:
    """Dots, lines, mean and interval. ``lines`` (cases, runs)."""

    def at(position: Any, value: Any) -> tuple[Any, Any]:
        return (position, value) if beside else (value, position)

    positions = np.arange(len(runs))
    # a small fixed offset per case keeps equal values apart
    offset = np.linspace(-0.09, 0.09, len(lines)) if len(lines) > 1 else np.zeros(1)
    for shift, line in zip(offset, lines, strict=True):
        axes.plot(*at(positions + shift, line), color="#9aa5b1", linewidth=0.7, alpha=0.55, zorder=1)
    for position, run, column in zip(positions, runs, lines.T, strict=True):
        axes.scatter(
            *at(position + offset, column), s=17, color=run.color, alpha=0.85, linewidths=0, zorder=2, clip_on=False
        )
        low, high = bootstrap_interval(column, patients=patients)
        if low is not None:
            axes.plot(*at([position + 0.22] * 2, [low, high]), color=INK, linewidth=2, zorder=3)
        axes.scatter(
            *at([position + 0.22], [column.mean()]), s=34, marker="D", color=INK, linewidths=0, zorder=4, clip_on=False
        )
    names = [wrapped(plain_text(run.name), 16 if beside else 40) for run in runs]
    if beside:
        axes.set_xticks(positions, names, color=INK)
        axes.set_xlim(-0.4, len(runs) - 0.5)
    else:
        axes.set_yticks(positions, names, color=INK)
        axes.set_ylim(len(runs) - 0.5, -0.5)


def _scale_cases(axes: Axes, lines: np.ndarray, metric: str, beside: bool, title: str) -> None:
    """The axis of the values: Dice within 0 and 100 with the line of failure in view, distances from 0."""
    limit, line = (axes.set_ylim, axes.axhline) if beside else (axes.set_xlim, axes.axvline)
    if not beside:
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
    if metric == "dice":
        failed = FAILURE_DICE * 100
        line(failed, color="#b44", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.6)
        limit(max(0.0, min(failed - 5, float(lines.min()) - 3)), min(100.0, max(failed + 5, float(lines.max()) + 4)))
    elif lines.min() > 0 and lines.max() > 20 * np.median(lines):
        # one penalty distance would press all other cases into a line
        (axes.set_yscale if beside else axes.set_xscale)("log")
        axis = axes.yaxis if beside else axes.xaxis
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
        style_axes(axes, title, "" if beside else "logarithmic scale", "logarithmic scale" if beside else "")
    else:
        limit(0, max(1.0, 1.05 * float(lines.max())))


def wrapped(text: str, width: int = 16) -> str:
    """``text`` in lines of about ``width`` letters."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return "\n".join(lines)


def load_picture(value: Any, others: Sequence[Any] = ()) -> tuple[list[np.ndarray], list[float] | None, Sequence[str]]:
    """An image and label maps on its grid: arrays as they are, files turned upright.

    Of several channels the first is taken. A file that states no place in space has the axes of the image.

    Args:
        value: the image, array or file.
        others: label maps, arrays or files.

    Returns:
        Image and label maps, the spacing (None where nothing states it), and the directions of the axes (empty where
        nothing states them).
    """
    arrays: list[np.ndarray] = []
    spacing, place = None, None
    directions: Sequence[str] = ()
    for number, part in enumerate((value, *others)):
        if not isinstance(part, (str, os.PathLike)):
            arrays.append(part)
            continue
        volume, affine = part.read() if isinstance(part, LabelFile) else read_volume(os.fspath(part))
        if number == 0:
            place = affine
        arrays.append(upright(volume[0], place if number == 0 or affine is None or place is None else affine)[0])
        if number == 0:
            _, spacing, directions = upright(volume[0], place)
    return arrays, spacing, directions


def overlay_figures(runs: Sequence[LoadedRun], focus: LoadedRun) -> list[tuple[str, Figure]]:
    """Best, median and worst case of ``focus`` in all runs, with captions; empty where no images are known."""
    dice = case_values(focus.rows, "dice")
    ranked = [case for case in sorted(dice, key=lambda name: dice[name]) if case in focus.run.overlays]
    if not ranked:
        return []
    scope = "" if len(ranked) == len(dice) else f" of the {len(ranked)} cases with images"
    picks: dict[str, str] = {}
    for kind, case in (("Best", ranked[-1]), ("Median", ranked[len(ranked) // 2]), ("Worst", ranked[0])):
        picks.setdefault(case, kind)
    names = {int(row["label"]): str(row["class"]) for row in focus.rows}
    figures = []
    for case, kind in picks.items():
        own = focus.run.overlays[case]
        titles, files = [], []
        for run in runs:
            if case in run.run.overlays:
                value = case_values(run.rows, "dice")[case]
                titles.append(f"{wrapped(run.name, 28)}\nDice {number_text(value, 1, 100)}")
                files.append(run.run.overlays[case].prediction)
        (image, label, *masks), spacing, directions = load_picture(own.image, (own.label, *files))
        predictions = dict(zip(titles, masks, strict=True))
        figure = comparison_figure(image, label, predictions, own.spacing or spacing, names, directions)
        figures.append((f"{kind} case of {focus.name}{scope}: {case}", figure))
    return figures

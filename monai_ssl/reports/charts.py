"""Figures of a comparison: training curves, every case in every run, best, median and worst case."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from monai_ssl.data.reading import read_volume
from monai_ssl.files import text_of_cell
from monai_ssl.metrics.statistics import FAILURE_DICE, bootstrap_interval, case_values
from monai_ssl.reports.figures import INK, comparison_figure, new_figure, plain_text, style_axes, upright
from monai_ssl.reports.numbers import number_text
from monai_ssl.reports.run import LoadedRun

__all__ = ["case_figure", "curves_figure", "overlay_figures", "read_log"]

# columns of a training log that are no terms of the loss
NO_TERM = {"iteration", "step", "epoch", "lr", "learning_rate", "grad_norm", "time", "seconds"}


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


def _smooth(values: np.ndarray) -> np.ndarray:
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
        y = _smooth(y)
    axes.plot(x, y, color=color, linewidth=1.8, label=plain_text(name))


def curves_figure(runs: Sequence[LoadedRun]) -> Figure | None:
    """Loss and validation Dice of all runs, and the loss terms of every method; None without logs.

    Raises:
        ValueError: if a log lacks its columns.
    """
    logs = {run.name: read_log(run.run.training_log) for run in runs if run.run.training_log is not None}
    checks = {run.name: read_log(run.run.validation_log) for run in runs if run.run.validation_log is not None}
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
        terms = [key for key in log if key != "loss" and key.lower() not in NO_TERM]
        if run.role == "method" and terms:
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


def case_figure(runs: Sequence[LoadedRun]) -> Figure:
    """Dice and 95HD of every case in every run: a dot per case, a line through the same case."""
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
            axes.scatter(
                position + offset, column, s=17, color=run.color, alpha=0.85, linewidths=0, zorder=2, clip_on=False
            )
            low, high = bootstrap_interval(column)
            if low is not None:
                axes.plot([position + 0.22] * 2, [low, high], color=INK, linewidth=2, zorder=3)
            axes.scatter([position + 0.22], [column.mean()], s=34, marker="D", color=INK, linewidths=0, zorder=4)
        style_axes(axes, title)
        axes.set_xticks(positions, [wrapped(plain_text(run.name)) for run in runs], color=INK)
        axes.set_xlim(-0.4, len(runs) - 0.5)
        if metric == "dice":
            axes.axhline(FAILURE_DICE * 100, color="#b44", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.6)
            axes.set_ylim(max(0.0, min(45.0, float(lines.min()) - 3)), min(100.0, float(lines.max()) + 4))
        elif lines.min() > 0 and lines.max() > 20 * np.median(lines):
            # one penalty distance would press all other cases into a line
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
            style_axes(axes, title, ylabel="logarithmic scale")
        else:
            axes.set_ylim(bottom=0)
    return figure


def wrapped(text: str, width: int = 16) -> str:
    """``text`` in lines of about ``width`` letters."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return "\n".join(lines)


def load_picture(value: Any) -> tuple[np.ndarray, list[float] | None, Sequence[str]]:
    """Array, spacing and directions of an image or label map: an array as it is, a file turned upright.

    Of several channels the first is taken. Spacing is None and directions are empty where nothing states them.
    """
    if not isinstance(value, (str, os.PathLike)):
        return value, None, ()
    volume, affine = read_volume(os.fspath(value))
    return upright(volume[0], affine)


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
        image, spacing, directions = load_picture(own.image)
        predictions: dict[str, Any] = {}
        for run in runs:
            if case in run.run.overlays:
                value = case_values(run.rows, "dice")[case]
                title = f"{wrapped(run.name, 28)}\nDice {number_text(value, 1, 100)}"
                predictions[title] = load_picture(run.run.overlays[case].prediction)[0]
        label = load_picture(own.label)[0]
        figure = comparison_figure(image, label, predictions, own.spacing or spacing, names, directions)
        figures.append((f"{kind} case of {focus.name}{scope}: {case}", figure))
    return figures

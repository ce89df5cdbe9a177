"""Figures of a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_ssl.errors import DataError
from monai_ssl.metrics.statistics import FAILURE_DICE, case_values
from monai_ssl.reports.charts import load_picture, read_log, smoothed, wrapped
from monai_ssl.reports.figures import GRID, INK, MUTED, comparison_figure, new_figure, plain_text, style_axes
from monai_ssl.reports.numbers import number_text
from monai_ssl.reports.run import Overlay, overlays_of
from monai_ssl.reports.study.analysis import GAIN, LOSS, Analysis
from monai_ssl.reports.study.findings import role_name
from monai_ssl.reports.study.load import LoadedRow, Study, Trained, over_trainings

__all__ = [
    "case_figures",
    "fraction_figure",
    "gains_figure",
    "gallery",
    "learning_figure",
    "loss_figure",
    "ranks_figure",
]

# figures of overlays on a page, and panels beside each other
PICTURES, COLUMNS = 8, 2
# a row's marker tells its role where color tells its method
MARKERS = {"floor": "s", "no_pool": "v", "matched_floor": "o", "method": "o", "ensemble": "D", "oracle": "^",
           "ceiling": "s", "quoted": "x"}  # fmt: skip
FILLED = {"floor", "method", "ensemble", "ceiling"}


def _grid(panels: int, width: float, height: float, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure of ``panels`` axes; those left over are hidden."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = new_figure(width * columns, height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for empty in axes[panels:]:
        empty.set_visible(False)
    return figure, axes[:panels]


def _across(axes: Axes) -> None:
    """Grid lines for values that run from left to right."""
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def gains_figure(analysis: Analysis) -> Figure | None:
    """Gain of every method over its matched floor with its interval, one line each; None where there is none."""
    gains = [gain for row in analysis.study.methods if (gain := analysis.gain_of(row)) is not None]
    if not gains:
        return None
    figure = new_figure(8.2, 1.1 + 0.34 * len(gains))
    axes = figure.subplots()
    style_axes(axes, "Gain over the matched floor", "Dice points", "")
    _across(axes)
    axes.axvline(0, color=MUTED, linewidth=1)
    names = []
    for place, gain in enumerate(gains):
        solid = gain.verdict in (GAIN, LOSS)
        if gain.low is not None and gain.high is not None:
            axes.plot([100 * gain.low, 100 * gain.high], [place] * 2, color=gain.row.color, linewidth=2.4)
        axes.plot(100 * gain.difference, place, "o", markersize=7.5, color=gain.row.color,
                  markerfacecolor=gain.row.color if solid else "white", markeredgewidth=1.8)  # fmt: skip
        names.append(
            f"{gain.row.title}, {analysis.study.group_name(gain.row.row.group)}, {gain.row.row.n_labeled} labeled"
        )
    axes.set_yticks(range(len(gains)), [wrapped(plain_text(name), 54) for name in names], color=INK)
    axes.set_ylim(len(gains) - 0.5, -0.5)
    return figure


def fraction_figure(analysis: Analysis) -> Figure | None:
    """Dice against the number of labels with bands, a panel per data set; None where no data set has two numbers."""
    panels = []
    for group, rows in analysis.study.groups.items():
        scored = [row for row in rows if row.trained and row.row.role != "quoted"]
        curves = _curves(scored)
        if any(len(curve) > 1 for curve in curves):
            ceilings = [row for row in scored if row.row.role == "ceiling"]
            panels.append((analysis.study.group_name(group), curves, ceilings))
    if not panels:
        return None
    figure, grid = _grid(len(panels), 5.6, 4.3)
    for axes, (name, curves, ceilings) in zip(grid, panels, strict=True):
        style_axes(axes, name, "labeled cases", "Dice %")
        # the ceiling is the floor with all labels: its curve ends there
        curves = [curve + [row for row in ceilings if curve[0].row.role == "floor"] for curve in curves]
        counts = sorted({row.row.n_labeled for curve in curves for row in curve})
        place = {count: number for number, count in enumerate(counts)}
        for row in ceilings:
            level = analysis.level(row)
            if level is not None:
                axes.axhline(100 * level.mean, color=row.color, linewidth=1.6, linestyle=(0, (1, 1.5)),
                             label=plain_text(f"{row.title} ({row.row.n_labeled})"))  # fmt: skip
        for curve in curves:
            first = curve[0]
            levels = [(place[row.row.n_labeled], level) for row in curve if (level := analysis.level(row)) is not None]
            x = [number for number, _ in levels]
            low = [100 * (level.mean if level.low is None else level.low) for _, level in levels]
            high = [100 * (level.mean if level.high is None else level.high) for _, level in levels]
            main = first.row.role in FILLED
            axes.fill_between(x, low, high, color=first.color, alpha=0.13 if main else 0.05, linewidth=0)
            axes.plot(x, [100 * level.mean for _, level in levels], marker=MARKERS[first.row.role], markersize=5.5,
                      color=first.color, linewidth=1.9 if main else 1.3, linestyle="-" if main else "--",
                      markerfacecolor=first.color if main else "white", label=plain_text(first.title))  # fmt: skip
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def _curves(rows: Sequence[LoadedRow]) -> list[list[LoadedRow]]:
    """Rows of one title and role, by number of labels."""
    found: dict[tuple[str, str], list[LoadedRow]] = {}
    for row in rows:
        if row.row.role != "ceiling":
            found.setdefault((row.row.role, row.title), []).append(row)
    return [sorted(curve, key=lambda row: row.row.n_labeled) for curve in found.values()]


def case_figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """For every data set, the Dice of every case in every row, as dots and a box: a panel per number of labels."""
    for group in analysis.study.groups:
        tables = list(_tables(analysis.study, group))
        if not tables:
            continue
        most = max(len(rows) for _, rows in tables)
        figure, grid = _grid(len(tables), 9.2 if len(tables) == 1 else 6.4, 1.0 + 0.44 * most)
        for axes, (name, rows) in zip(grid, tables, strict=True):
            _draw_cases(axes, analysis, name, rows)
        yield analysis.study.group_name(group), figure


def _tables(study: Study, only: tuple[str, str, str] | None = None) -> Iterator[tuple[str, list[LoadedRow]]]:
    """Scored rows of a data set with one number of labels, with what serves all of them."""
    for group, rows in study.groups.items():
        if only not in (None, group):
            continue
        scored = [row for row in rows if row.trained]
        counts = sorted({row.row.n_labeled for row in scored if row.row.role != "ceiling"})
        if not counts and scored:
            yield study.group_name(group), scored
        for count in counts:
            yield (
                f"{study.group_name(group)}, {count} labeled",
                [row for row in scored if row.row.role == "ceiling" or row.row.n_labeled == count],
            )


def _draw_cases(axes: Axes, analysis: Analysis, name: str, rows: Sequence[LoadedRow]) -> None:
    style_axes(axes, name, "Dice % (mean over trainings)", "")
    _across(axes)
    lowest = 100.0
    for place, row in enumerate(rows):
        values = 100 * np.array(list(over_trainings(row.values("dice")).values()))
        lowest = min(lowest, float(values.min()))
        offset = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
        if len(values) > 3:
            pale = {"color": "#c3cad2"}
            axes.boxplot(values, positions=[place], widths=0.62, orientation="horizontal", showfliers=False,
                         boxprops=pale, whiskerprops=pale, capprops=pale, manage_ticks=False, zorder=1,
                         medianprops={"color": INK, "linewidth": 1.6})  # fmt: skip
        axes.scatter(
            values,
            place + offset,
            s=20,
            marker=MARKERS[row.row.role],
            edgecolors=row.color,
            facecolors=row.color if row.row.role in FILLED else "none",
            alpha=0.8,
            linewidths=0.8,
            zorder=2,
        )
        level = analysis.level(row)
        if level is not None:
            axes.plot(
                100 * level.mean, place, marker="|", markersize=17, markeredgewidth=2.2, color=row.color, zorder=3
            )
    axes.axvline(FAILURE_DICE * 100, color="#b44", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.6)
    axes.set_xlim(max(-1.0, min(FAILURE_DICE * 100 - 5, lowest - 3)), 101)
    axes.set_yticks(range(len(rows)), [wrapped(plain_text(row.title), 30) for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def ranks_figure(analysis: Analysis) -> Figure | None:
    """Mean ranks with their intervals, a panel per data set and number of labels; None where nothing is ranked."""
    tables = analysis.ranks
    if not tables:
        return None
    most = max(len(table) for table in tables)
    figure, grid = _grid(len(tables), 5.2, 1.0 + 0.36 * most)
    for axes, table in zip(grid, tables, strict=True):
        row = table[0].row
        name = f"{analysis.study.group_name(row.row.group)}, {row.row.n_labeled} labeled"
        style_axes(axes, name, "mean rank over cases (1 is best)", "")
        _across(axes)
        for place, rank in enumerate(table):
            if rank.low is not None and rank.high is not None:
                axes.plot([rank.low, rank.high], [place] * 2, color=rank.row.color, linewidth=2.4)
            axes.plot(rank.mean, place, "o", markersize=7, color=rank.row.color)
        axes.set_yticks(range(len(table)), [wrapped(plain_text(rank.row.title), 30) for rank in table], color=INK)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xlim(0.8, len(table) + 0.2)
        axes.set_xticks(range(1, len(table) + 1))
    return figure


# -------------------------------------------------------------------------------------------------- while training


def _log(each: Trained, name: str) -> dict[str, np.ndarray]:
    """Columns of a log of a training; empty where there is none that can be read."""
    path = Path(each.run.run) / name
    try:
        return read_log(path) if path.is_file() else {}
    except (ValueError, OSError):
        return {}


def learning_figure(study: Study) -> Figure | None:
    """Dice on the validation list while training: bold the mean over trainings, pale each; None without logs."""
    panels = []
    for name, rows in _tables(study):
        curves = [(row, found) for row in rows if (found := _validations(row))]
        if curves:
            panels.append((name, curves))
    if not panels:
        return None
    most = max(len(curves) for _, curves in panels)
    figure, grid = _grid(len(panels), 5.6, 3.3 + 0.11 * most)
    for axes, (name, curves) in zip(grid, panels, strict=True):
        style_axes(axes, name, "iteration", "validation Dice %")
        for row, found in curves:
            main = row.row.role in FILLED
            for x, y in found:
                axes.plot(x, 100 * y, color=row.color, linewidth=0.7, alpha=0.3)
            x, y = _mean_curve(found)
            axes.plot(x, 100 * y, color=row.color, linewidth=2.0 if main else 1.4, linestyle="-" if main else "--",
                      label=plain_text(row.title))  # fmt: skip
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


def _validations(row: LoadedRow) -> list[tuple[np.ndarray, np.ndarray]]:
    found = []
    for each in row.trained:
        log = _log(each, "validation.csv")
        column = next((key for key in log if "dice" in key.lower()), None)
        if column is not None and len(log["iteration"]):
            found.append((log["iteration"], log[column]))
    return found


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the curves at the iterations that all of them have."""
    common = sorted(set.intersection(*({float(x) for x in curve} for curve, _ in curves)))
    values = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves]
    return np.array(common), np.array([np.mean([each[x] for each in values]) for x in common])


def loss_figure(study: Study) -> Figure | None:
    """The loss of every training, running means, a panel per title of a method or control; None without logs."""
    titles: dict[tuple[str, str], list[tuple[LoadedRow, list[tuple[np.ndarray, np.ndarray]]]]] = {}
    for row in study.rows:
        logs = [_log(each, "training.csv") for each in row.trained]
        curves = [(log["iteration"], log["loss"]) for log in logs if "loss" in log and len(log["loss"])]
        if curves:
            titles.setdefault((row.row.role, row.title), []).append((row, curves))
    if not titles:
        return None
    figure, grid = _grid(len(titles), 3.8, 2.7, 3)
    for axes, ((_, title), rows) in zip(grid, titles.items(), strict=True):
        style_axes(axes, wrapped(title, 34), "iteration", "loss")
        places = list(dict.fromkeys((row.row.dataset, row.row.n_labeled) for row, _ in rows))
        for row, curves in rows:
            shade = 0.35 + 0.65 * (places.index((row.row.dataset, row.row.n_labeled)) + 1) / len(places)
            for x, y in curves:
                keep = np.isfinite(y)
                axes.plot(x[keep], smoothed(y[keep]), color=row.color, linewidth=1.1, alpha=shade)
    return figure


# -------------------------------------------------------------------------------------------------------- pictures


def gallery(study: Study) -> Iterator[tuple[str, Figure]]:
    """The worst case of every data set and number of labels, by mean Dice over the methods, in all rows.

    One training of each row is shown, the same split and seed for all where they have it. Nothing where predictions or
    images are not on the disk any more.
    """
    shown = 0
    for name, rows in _tables(study):
        judged = [row for row in rows if row.row.role == "method"] or rows
        values = [over_trainings(row.values("dice")) for row in judged]
        cases = sorted(set.intersection(*(set(each) for each in values)))
        for case in sorted(cases, key=lambda case: float(np.mean([each[case] for each in values]))):
            figure = _case_picture(rows, judged[0], case)
            if figure is not None:
                dice = number_text(float(np.mean([each[case] for each in values])), 1, 100)
                yield f"{name}: {case}, the lowest mean Dice over the methods ({dice} %)", figure
                shown += 1
                break
        if shown == PICTURES:
            return


def _case_picture(rows: Sequence[LoadedRow], first: LoadedRow, case: str) -> Figure | None:
    chosen = next((each for each in first.trained if case in each.cases), None)
    key = None if chosen is None else chosen.key
    panels: dict[str, Overlay] = {}
    names: dict[int, str] = {}
    for row in rows:
        having = [each for each in row.trained if case in each.cases]
        each = next((each for each in having if each.key == key), having[0] if having else None)
        overlay = None if each is None else _overlay(each, case)
        if each is None or overlay is None:
            continue
        names |= {int(score["label"]): str(score["class"]) for score in each.rows}
        dice = number_text(case_values(each.rows, "dice")[case], 1, 100)
        title = f"{wrapped(row.title, 24)}\n{role_name(row)}, Dice {dice}"
        panels[title if title not in panels else f"{title} ({row.row.name})"] = overlay
    if not panels:
        return None
    own = next(iter(panels.values()))
    files = [overlay.prediction for overlay in panels.values()]
    try:
        (image, label, *masks), spacing, directions = load_picture(own.image, (own.label, *files))
        predictions = dict(zip(panels, masks, strict=True))
        return comparison_figure(image, label, predictions, own.spacing or spacing, names, directions)
    except (OSError, ValueError, DataError):  # files that changed since they were scored
        return None


def _overlay(each: Trained, case: str) -> Overlay | None:
    try:
        return overlays_of(each.run.evaluation, each.meta).get(case)
    except (OSError, KeyError, ValueError, DataError):
        return None

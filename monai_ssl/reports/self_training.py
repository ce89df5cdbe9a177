"""One page about pseudo-labels: how reliable they are, which teach, what the classes look like."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monai_ssl.data.cases import Entry
from monai_ssl.data.preset import Preset
from monai_ssl.data.pseudo_labels import pseudo_label_preset
from monai_ssl.errors import enumerated
from monai_ssl.files import write_text
from monai_ssl.reports.dataset import ROW, CaseStatistics, case_statistics, picture_figure
from monai_ssl.reports.figures import new_figure, style_axes
from monai_ssl.reports.page import Picture, Table, render_html

KEPT, DROPPED = "#0072B2", "#D55E00"
ROWS = 2  # of pictures per group


@dataclass
class Labeling:
    """Pseudo-labels of one round.

    Attributes:
        name: of the round.
        rows: of its ``reliability.csv``.
        entries: case -> ``{"image": ..., "label": file of the pseudo-label}``.
        shares: class -> its share of the voxels in labels and in kept pseudo-labels.
        alarms: sentences.
        preset: tells the voxels that were left open from a class.
    """

    name: str
    rows: Sequence[Mapping[str, str]]
    entries: Mapping[str, Entry]
    shares: Mapping[int, tuple[float, float]]
    alarms: Sequence[str] = field(default_factory=list)
    preset: Preset | None = None


def report_self_training(page: Path, title: str, labels: Mapping[int, str], rounds: Sequence[Labeling]) -> Path:
    """Write the page; the file needs no other.

    Args:
        page: the HTML file.
        title: heading.
        labels: class -> name.
        rounds: the pseudo-labels, first round first.
    """
    sections = [_section(labeling, labels) for labeling in rounds]
    write_text(page, render_html("self_training.html.j2", title=title, sections=sections))
    return page


def _section(labeling: Labeling, labels: Mapping[int, str]) -> dict[str, object]:
    rows = sorted(labeling.rows, key=_reliability)
    kept = [row for row in rows if row["kept"] == "1"]
    dropped = [row for row in rows if row["kept"] == "0"]
    # the least reliable of a small pool are all that there are: no scan is shown twice
    surest = kept[ROWS * ROW :][::-1]
    groups = (("Dropped: they teach nothing", dropped, dropped), ("Least reliable of the kept", kept, kept),
              ("Most reliable", surest, kept))  # fmt: skip
    pictures = [_pictures(shown, caption, len(group), labeling, labels) for caption, shown, group in groups if shown]
    return {
        "name": labeling.name,
        "alarms": list(labeling.alarms),
        "findings": _findings(rows, kept, dropped),
        "chart": Picture(_chart(rows), "One dot per scan of the pool, sorted; orange: dropped.",
                         "Reliability of the pseudo-label of every scan"),
        "classes": _class_table(labeling.shares, labels),
        "pictures": [picture for picture in pictures if picture is not None],
        "cases": _case_table(rows, labels),
    }  # fmt: skip


def _reliability(row: Mapping[str, str]) -> tuple[float, str]:
    return float(row["reliability"]), row["case"]


def _findings(
    rows: Sequence[Mapping[str, str]], kept: Sequence[Mapping[str, str]], dropped: Sequence[Mapping[str, str]]
) -> list[str]:
    values = [float(row["reliability"]) for row in rows]
    found = [f"{len(kept)} of {len(rows)} pseudo-labels are kept. Reliability: median {statistics.median(values):.2f}, "
             f"lowest {values[0]:.2f}, highest {values[-1]:.2f}."]  # fmt: skip
    if dropped:
        found.append(f"Dropped, as least reliable: {enumerated([row['case'] for row in dropped])}. Of these scans the "
                     "network is least sure: annotating them teaches most.")  # fmt: skip
    open_share = sum(float(row["unsure"]) for row in kept) / max(len(kept), 1)
    if open_share > 0:
        found.append(f"{100 * open_share:.1f} % of the voxels of the kept scans are left open and teach nothing.")
    return found


def _chart(rows: Sequence[Mapping[str, str]]) -> Figure:
    figure = new_figure(12.5, 3.2)
    axes = figure.subplots()
    values = [float(row["reliability"]) for row in rows]
    colors = [KEPT if row["kept"] == "1" else DROPPED for row in rows]
    axes.scatter(range(1, len(rows) + 1), values, c=colors, s=22)
    axes.set_ylim(min(0.5, *values) - 0.02, 1.01)
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # there is no scan 1.5
    style_axes(axes, "Reliability", "scans, least reliable first")
    return figure


def _class_table(shares: Mapping[int, tuple[float, float]], labels: Mapping[int, str]) -> Table:
    rows = []
    for value, (labeled, drawn) in shares.items():
        ratio = f"{drawn / labeled:.2f}" if labeled > 0 else "-"
        rows.append([f"{value} {labels[value]}", f"{100 * labeled:.2f}", f"{100 * drawn:.2f}", ratio])
    return Table(["class", "% of the voxels in labels", "in kept pseudo-labels", "ratio"], rows)


def _pictures(
    rows: Sequence[Mapping[str, str]], caption: str, total: int, labeling: Labeling, labels: Mapping[int, str]
) -> Picture | None:
    shown: list[CaseStatistics] = []
    read = None if labeling.preset is None else pseudo_label_preset(labeling.preset)
    for row in rows[: ROWS * ROW]:
        entry = labeling.entries.get(row["case"])
        if entry is not None:
            name = f"{row['case']}: {float(row['reliability']):.2f}"
            shown.append(case_statistics("training", name, entry, picture=True, preset=read))
    shown = [case for case in shown if case.picture is not None]
    if not shown:
        return None
    of = f": {len(shown)} of {total}" if len(shown) < total else ""
    return Picture(picture_figure(shown, labels), caption + of, f"Pseudo-labels: {caption}")


def _case_table(rows: Sequence[Mapping[str, str]], labels: Mapping[int, str]) -> Table:
    header = ["case", "reliability", "kept", "agreement of views", "confidence", "% left open",
              *(f"voxels {name}" for value, name in sorted(labels.items()) if value)]  # fmt: skip
    cells = []
    for row in rows:
        voxels = [row[f"voxels_{value}"] for value in sorted(labels) if value]
        cells.append([row["case"], f"{float(row['reliability']):.3f}", "yes" if row["kept"] == "1" else "no",
                      row["agreement"] and f"{float(row['agreement']):.3f}", f"{float(row['confidence']):.3f}",
                      f"{100 * float(row['unsure']):.1f}", *voxels])  # fmt: skip
    return Table(header, cells, text_columns=(0, 2))

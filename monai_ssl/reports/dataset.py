"""One page that shows what a data set looks like: sizes, spacings, intensities, class volumes, pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, ScalarFormatter

from monai_ssl.data.cases import case_names
from monai_ssl.data.datalist import SECTIONS, Datalist
from monai_ssl.data.preset import Preset
from monai_ssl.errors import DataError, figure
from monai_ssl.files import write_text
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.progress import followed
from monai_ssl.reports.case import PERCENTILES, CaseStatistics, case_statistics
from monai_ssl.reports.figures import (
    INK,
    class_color,
    classes_in,
    draw_outline,
    draw_slice,
    new_figure,
    plain_text,
    shade_ignored,
    style_axes,
)
from monai_ssl.reports.page import Picture, Table, render_html

COLORS = {"training": "#0072B2", "unlabeled": "#7b8794", "validation": "#E69F00", "testing": "#009E73"}
NAMES = {"training": "labeled training", "unlabeled": "unlabeled", "validation": "validation", "testing": "test"}
# pictures per list; the numbers are of all cases
PICTURES = 12
ROW = 6
SIZE_CAPTION = "One dot per case. Sizes are millimeters where files state them."
PICTURE_NOTE = (
    "The slice with the largest label, else the middle one. Where the file states its orientation, letters at the "
    "edges name the patient's left (L), right (R), back (P), front (A), feet (I) and head (S)."
)


def describe(
    datalist: Datalist,
    output: str | Path,
    title: str | None = None,
    workers: int = 2,
    pictures: int = PICTURES,
    preset: Preset | None = None,
) -> Path:
    """Write an HTML page about a data set; the file needs no other.

    Every scan is read once, one per worker in memory. Shows, by list: shapes, spacings, orientations, intensities,
    volumes of the classes, and thumbnails with the outlines of the labels.

    Args:
        datalist: the cases.
        output: the HTML file.
        title: heading; None takes the datalist's folder.
        workers: threads.
        pictures: thumbnails per list, evenly drawn.
        preset: tells what the values of label files mean (``label_map``, ``ignore_label``); None: they are classes.

    Returns:
        Path of the page.

    Raises:
        DataError: when there is no case, or ``output`` is no ``.html`` file.

    Example:
        >>> describe(load_datalist("datalist.json", "scans"), "scans.html")  # doctest: +SKIP
        PosixPath('scans.html')
    """
    page = Path(output).expanduser()
    if page.suffix.lower() not in {".html", ".htm"}:
        raise DataError(f"output: must be an .html file, got {str(output)!r}")
    jobs = []
    for section in SECTIONS:
        entries = datalist.section(section)
        drawn = set(np.linspace(0, len(entries) - 1, min(pictures, len(entries))).round().astype(int).tolist())
        names = case_names(entries)
        jobs += [(section, names[i], entry, i in drawn, preset) for i, entry in enumerate(entries)]
    if not jobs:
        raise DataError(f"{datalist.path or datalist.dataset_dir}: there is no case to describe")
    with ThreadPoolExecutor(workers) as pool:
        cases = list(followed(pool.map(lambda job: case_statistics(*job), jobs), "describe", len(jobs)))
    labels = datalist.labels or {value: f"class {value}" for value in sorted(_classes(cases) | {0})}
    heading = title or (datalist.path.parent.name if datalist.path else "data set")
    write_text(page, _page(heading, datalist, cases, labels))
    return page


# ------------------------------------------------------------------------------------------------------------ the page


def _page(title: str, datalist: Datalist, cases: Sequence[CaseStatistics], labels: Mapping[int, str]) -> str:
    good = [case for case in cases if not case.error]
    counts = ", ".join(f"{n} {NAMES[section]}" for section, n in datalist.counts().items() if n)
    classes = ", ".join(f"{value} {name}" for value, name in sorted(labels.items()))
    measured = any(case.voxels for case in good)
    pictures = []
    for section in SECTIONS:
        shown = [case for case in good if case.section == section and case.picture is not None]
        if shown:
            total = sum(case.section == section for case in cases)
            caption = f"{NAMES[section]}: {len(shown)} of {total}" if len(shown) < total else NAMES[section]
            pictures.append(Picture(picture_figure(shown, labels), caption, f"pictures: {caption}"))
    return render_html(
        "dataset.html.j2",
        title=title,
        subtitle=f"{counts}. Classes: {classes}. {_description(datalist)}",
        findings=_findings(cases, labels),
        lists=_list_table(good) if good else None,
        sizes=good and Picture(_size_figure(good), SIZE_CAPTION, "Sizes and gray values of every case"),
        volumes=_class_table(good, labels) if measured else None,
        volume_figure=measured
        and Picture(
            _class_figure(good, labels), "One dot per labeled case.", "Volume of every class in every labeled case"
        ),
        pictures=pictures,
        picture_note=PICTURE_NOTE,
        cases=_case_table(cases, labels),
        source=str(datalist.path or datalist.dataset_dir or ""),
    )


def _description(datalist: Datalist) -> str:
    """What a datalist says of itself, without the counts that `monai-ssl split` begins with: the page has them."""
    counts = ", ".join(f"{n} {section}" for section, n in datalist.counts().items())
    rest = datalist.description.removeprefix(f"{counts}; ")
    return rest[:1].upper() + rest[1:]


def _classes(cases: Sequence[CaseStatistics]) -> set[int]:
    return {value for case in cases for value in case.voxels or {}}


def _volume(case: CaseStatistics, value: int) -> float:
    """Millilitres, or voxels where the file states no voxel size."""
    voxels = (case.voxels or {}).get(value, 0)
    return voxels * float(np.prod(case.spacing)) / 1000 if case.spacing is not None else float(voxels)


def _unit(cases: Sequence[CaseStatistics]) -> str:
    if any(case.spacing is None for case in cases):
        return "voxels"
    return "ml" if all(len(case.shape) == 3 for case in cases) else "cm"


def _range(values: Sequence[float], digits: int = 3) -> str:
    texts = [f"{value:.{digits}g}" for value in (min(values), float(np.median(values)), max(values))]
    return texts[0] if texts[0] == texts[-1] else " – ".join(texts)


def _findings(cases: Sequence[CaseStatistics], labels: Mapping[int, str]) -> list[str]:
    """What somebody should know before training, from the numbers."""
    good = [case for case in cases if not case.error]
    bad = [case for case in cases if case.error]
    sentences = [
        f"{len(good)} of {len(cases)} cases could be read." if bad else f"All {len(cases)} cases could be read."
    ]
    sentences += [f"{case.name} ({NAMES[case.section]}): {case.error}" for case in bad[:5]]
    if len(bad) > 5:
        sentences.append(f"{len(bad) - 5} more cases could not be read; see the table.")
    known = [case.spacing for case in good if case.spacing is not None]
    if good and not known:
        sentences.append("The files do not state their voxel size: distances can only be given in voxels.")
    elif known and len({len(spacing) for spacing in known}) == 1:
        ratio = np.max(known, axis=0) / np.min(known, axis=0)
        if ratio.max() > 1.25:
            sentences.append(
                f"Voxel sizes differ by up to a factor of {ratio.max():.2f}: consider 'spacing' in the preset."
            )
    codes = Counter(case.orientation for case in good if case.orientation)
    if len(codes) > 1:
        shown = ", ".join(f"{n} {code}" for code, n in codes.most_common())
        sentences.append(f"Files are stored in {len(codes)} orientations ({shown}): the preset must bring them to one.")
    highs = [case.values[-1] for case in good]
    if highs and min(highs) > 0 and max(highs) / min(highs) > 5:
        sentences.append(f"Gray values are not comparable between cases (99.5th percentile from {min(highs):.3g} to "
                         f"{max(highs):.3g}): normalize each scan by itself.")  # fmt: skip
    labeled = [case for case in good if case.voxels is not None]
    for value, name in sorted(labels.items()):
        asked = [case for case in labeled if case.classes is None or value in case.classes]
        absent = [case.name for case in asked if not (case.voxels or {}).get(value)]
        if value and labeled and len(absent) == len(asked):
            sentences.append(f"Class {value} ({name}) occurs in no label.")
        elif value and absent:
            sentences.append(f"Class {value} ({name}) is absent from {len(absent)} of {len(asked)} labels "
                             f"({', '.join(absent[:3])}{', ...' * (len(absent) > 3)}).")  # fmt: skip
    ignored = [case for case in labeled if case.ignored]
    if ignored:
        shares = [100 * case.ignored / float(np.prod(case.shape)) for case in ignored]
        sentences.append(
            f"In {len(ignored)} of {len(labeled)} labels, voxels are ignored because nobody knows their class: "
            f"{sum(case.ignored for case in ignored):,} voxels, {_range(shares, 2)} % of a label. Shares of classes "
            "are those of the other voxels."
        )
    if unknown := sorted(_classes(cases) - set(labels)):
        sentences.append(f"Labels hold values without a name: {', '.join(map(str, unknown[:8]))}.")
    shares = [case.empty_slices for case in labeled if case.empty_slices is not None]
    if shares:
        of_known = "known " if ignored else ""
        sentences.append(f"{100 * float(np.mean(shares)):.0f} % of the {of_known}slices (along the last stored axis) "
                         "of labeled cases hold no label.")  # fmt: skip
    return sentences


def _list_table(cases: Sequence[CaseStatistics]) -> Table:
    header = ["List", "Cases", "Shape (min – median – max)", "Orientation", "Read as", "Spacing mm", "Channels"]
    body = []
    for section in SECTIONS:
        group = [case for case in cases if case.section == section]
        if not group:
            continue
        dims = sorted({len(case.shape) for case in group})
        same = len(dims) == 1
        shape = (
            " × ".join(f"({_range([case.shape[i] for case in group])})" for i in range(dims[0])) if same else "mixed"
        )
        known = [case.spacing for case in group if case.spacing is not None]
        spacing = "not stated"
        if known and same:
            spacing = " × ".join(f"({_range([entry[i] for entry in known])})" for i in range(dims[0]))
        codes = Counter(case.orientation or "–" for case in group)
        types = Counter(case.dtype for case in group)
        body.append([
            NAMES[section], str(len(group)), shape, ", ".join(f"{c} ({n})" for c, n in codes.most_common(3)),
            ", ".join(f"{t} ({n})" for t, n in types.most_common(3)), spacing,
            _range([case.n_channels for case in group]),
        ])  # fmt: skip
    return Table(header, body, (0, 3, 4))


def _class_table(cases: Sequence[CaseStatistics], labels: Mapping[int, str]) -> Table:
    unit = _unit(cases)
    header = ["Class", "List", "Cases with it", f"Volume {unit} (min – median – max)", "Share of the image %, median"]
    body = []
    for value, name in sorted(labels.items()):
        for section in SECTIONS:
            group = [case for case in cases if case.section == section and case.voxels is not None]
            having = [case for case in group if (case.voxels or {}).get(value)]
            if value and group:
                share = [
                    100 * (case.voxels or {}).get(value, 0) / max(float(np.prod(case.shape)) - case.ignored, 1)
                    for case in group
                ]
                volumes = _range([_volume(case, value) for case in having]) if having else "–"
                body.append([name, NAMES[section], f"{len(having)} of {len(group)}", volumes,
                             f"{float(np.median(share)):.3g}"])  # fmt: skip
    return Table(header, body, (0, 1))


def _case_table(cases: Sequence[CaseStatistics], labels: Mapping[int, str]) -> Table:
    foreground = [value for value in sorted(labels) if value]
    unit = _unit([case for case in cases if not case.error] or cases)
    header = ["Case", "List", "Shape", "Spacing mm", "Orientation", "Read as", "0.5 – 50 – 99.5 %"]
    header += [f"{labels[value]} {unit}" for value in foreground]
    some = any(case.ignored for case in cases)
    header += ["Ignored %"] * some
    body = []
    for case in cases:
        if case.error:
            body.append([case.name, NAMES[case.section], f"not read: {case.error}"] + [""] * (len(header) - 3))
            continue
        spacing = "–" if case.spacing is None else " × ".join(f"{s:.3g}" for s in case.spacing)
        gray = " – ".join(f"{case.values[i]:.3g}" for i in (0, 2, 4))
        volumes = ["" if case.voxels is None else f"{_volume(case, value):.3g}" for value in foreground]
        volumes += ["" if case.voxels is None else figure(100 * case.ignored / float(np.prod(case.shape)))] * some
        body.append([case.name, NAMES[case.section], " × ".join(map(str, case.shape)), spacing, case.orientation or "–",
                     case.dtype, gray, *volumes])  # fmt: skip
    return Table(header, body, (0, 1, 4, 5))


# ------------------------------------------------------------------------------------------------------------- figures


def _strips(
    figure_axes: Any, cases: Sequence[CaseStatistics], columns: Sequence[tuple[str, Callable[[CaseStatistics], Any]]]
) -> None:
    """One strip of dots per column, cases of the four lists side by side in their colors."""
    sections = [section for section in SECTIONS if any(case.section == section for case in cases)]
    for position, (_, value) in enumerate(columns):
        for place, section in enumerate(sections):
            values = np.array([v for case in cases if case.section == section and (v := value(case)) is not None])
            if not values.size:
                continue
            center = position + (place - (len(sections) - 1) / 2) * 0.8 / len(sections)
            spread = np.linspace(-0.3, 0.3, len(values)) / len(sections) if len(values) > 1 else np.zeros(1)
            figure_axes.scatter(center + spread, np.sort(values), s=11, color=COLORS[section], alpha=0.8, linewidths=0)
    figure_axes.set_xticks(range(len(columns)), [plain_text(name) for name, _ in columns], color=INK)
    figure_axes.set_xlim(-0.6, len(columns) - 0.4)


def _legend(figure: Figure, cases: Sequence[CaseStatistics]) -> None:
    handles = [Line2D([], [], marker="o", linestyle="", color=COLORS[section], label=NAMES[section])
               for section in SECTIONS if any(case.section == section for case in cases)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)


def _size_figure(cases: Sequence[CaseStatistics]) -> Figure:
    figure = new_figure(12.5, 3.6)
    first, second, third = figure.subplots(1, 3)
    stated = all(case.spacing is not None for case in cases)

    def side(axis: int, millimeters: bool) -> Callable[[CaseStatistics], float | None]:
        def value(case: CaseStatistics) -> float | None:
            if axis >= len(case.shape):
                return None
            return case.shape[axis] * (case.spacing[axis] if millimeters and case.spacing is not None else 1.0)

        return value

    dims = max(len(case.shape) for case in cases)
    _strips(first, cases, [(f"axis {axis + 1}", side(axis, False)) for axis in range(dims)])
    style_axes(first, "Shape, voxels")
    first.set_ylim(bottom=0)
    _strips(second, cases, [(f"axis {axis + 1}", side(axis, True)) for axis in range(dims)])
    style_axes(second, "Field of view, mm" if stated else "Field of view (some files state no voxel size)")
    second.set_ylim(bottom=0)
    _strips(third, cases, [(f"{p:g} %", lambda case, i=i: case.values[i]) for i, p in enumerate(PERCENTILES)])  # type: ignore[misc]
    highs = [case.values[-1] for case in cases]
    style_axes(third, "Gray values, percentiles of each case")
    if min(highs) > 0 and max(highs) / min(highs) > 50:
        third.set_yscale("symlog", linthresh=min(highs))
        if min(case.values[0] for case in cases) >= 0:
            third.set_ylim(bottom=0)
        style_axes(third, "Gray values, percentiles (logarithmic)")
    _legend(figure, cases)
    return figure


def _class_figure(cases: Sequence[CaseStatistics], labels: Mapping[int, str]) -> Figure:
    labeled = [case for case in cases if case.voxels is not None]
    foreground = [value for value in sorted(labels) if value]

    def volume(value: int) -> Callable[[CaseStatistics], float | None]:
        return lambda case: _volume(case, value) or None

    figure = new_figure(12.5, 3.4)
    axes = figure.subplots()
    _strips(axes, labeled, [(labels[value], volume(value)) for value in foreground])
    volumes = [v for case in labeled for value in foreground if (v := _volume(case, value))]
    wide = bool(volumes) and max(volumes) > 20 * min(volumes)
    if wide:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    style_axes(axes, f"Volume, {_unit(labeled)}{' (logarithmic scale)' if wide else ''}")
    _legend(figure, labeled)
    return figure


def picture_figure(cases: Sequence[CaseStatistics], labels: Mapping[int, str]) -> Figure:
    rows = -(-len(cases) // ROW)
    ratio = max(
        gray.shape[1] * aspect[1] / (gray.shape[0] * aspect[0])
        for gray, _, aspect, _ in (case.picture for case in cases if case.picture is not None)
    )
    figure = new_figure(2.05 * ROW, min(3.0, 2.0 * ratio + 0.25) * rows + 0.35)
    grid = figure.subplots(rows, ROW, squeeze=False).ravel()
    values: set[int] = set()
    shaded = None
    for axes, case in zip(grid, cases, strict=False):
        assert case.picture is not None
        gray, label, aspect, directions = case.picture
        name = case.name if len(case.name) <= 24 else f"{case.name[:11]}…{case.name[-11:]}"
        draw_slice(axes, gray, aspect, name, directions)
        if label is not None:
            if case.ignored and (label == IGNORE_LABEL).any():
                shaded = shade_ignored(axes, label == IGNORE_LABEL)
                label = np.where(label == IGNORE_LABEL, 0, label)
            present = classes_in(label)
            values |= set(present)
            for value in sorted(present, key=lambda item: -int((label == item).sum())):
                draw_outline(axes, label == value, class_color(value), level=0.5 if len(present) == 1 else 0.75)
    for axes in grid[len(cases) :]:
        axes.set_visible(False)
    if values or shaded is not None:
        handles: list[Any] = [
            Line2D([], [], color=class_color(v), linewidth=2.2, label=plain_text(labels.get(v, f"value {v}")))
            for v in sorted(values)
        ]
        handles += [] if shaded is None else [shaded]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8.5, frameon=False
        )
    return figure

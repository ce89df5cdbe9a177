"""The tables of a study: of text for the page, Markdown and LaTeX, and with every digit as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai_ssl.files import cell
from monai_ssl.metrics.cases import METRICS
from monai_ssl.reports.numbers import DASH, MINUS, interval_text, metric_unit, number_text, p_value_text, plural
from monai_ssl.reports.page import Table
from monai_ssl.reports.study.analysis import LEVEL, Analysis, Gain, Level, Pairs, too_few
from monai_ssl.reports.study.findings import role_name, scope, share_text, used_settings
from monai_ssl.reports.study.load import LoadedRow, Study
from monai_ssl.reports.study.quoted import QuotedFigure, jaccard_check, quoted_cells

__all__ = [
    "class_gains_table",
    "classes_table",
    "costs_table",
    "csv_files",
    "further_table",
    "gains_table",
    "pairs_table",
    "quoted_table",
    "ranks_table",
    "results_table",
    "settings_table",
    "square_tables",
]

# column: its name, and the factor and digits of the numbers
OVERLAPS = {"dice": ("Dice %", 100.0, 1), "jaccard": ("Jaccard %", 100.0, 1)}
DISTANCES = {
    "hd95_mm": ("95HD mm", 1.0, 2),
    "asd_mm": ("ASD mm", 1.0, 2),
    "hd95_voxel": ("95HD voxel", 1.0, 2),
    "asd_voxel": ("ASD voxel", 1.0, 2),
}
# beside a difference of which the corrected test gives less than LEVEL
MARK = "*"
# methods from which on a square is easier to read than a line per pair
SQUARE = 3
# more classes than this have their Dice only
CLASSES_WITH_DISTANCE = 4


def labels_text(row: LoadedRow) -> str:
    """Labeled and unlabeled cases, as papers print them."""
    return f"{row.row.n_labeled} / {row.row.n_unlabeled}"


def spread_text(level: Level | None, digits: int, scale: float) -> str:
    """Mean ± deviation over trainings (deviation over cases); what does not exist is left out."""
    if level is None:
        return DASH
    text = number_text(level.mean, digits, scale)
    if level.sd_trainings is not None:
        text += f" ± {number_text(level.sd_trainings, digits, scale)}"
    if level.sd_cases is not None:
        text += f" ({number_text(level.sd_cases, digits, scale)})"
    return text


def distances_shown(rows: Sequence[LoadedRow]) -> dict[str, tuple[str, float, int]]:
    """Distances in millimeters, and in voxels where that is something else."""
    scores = [row for loaded in rows for each in loaded.trained for row in each.rows]
    same = all(abs(row[f"{name}_mm"] - row[f"{name}_voxel"]) < 1e-9 for row in scores for name in ("hd95", "asd"))
    return {key: value for key, value in DISTANCES.items() if key.endswith("_mm") or not same}


def results_table(analysis: Analysis, rows: Sequence[LoadedRow]) -> Table:
    """Scores of the rows of one data set, means over the classes."""
    columns = {**OVERLAPS, **distances_shown(rows)}
    names = [name for name, _, _ in columns.values()]
    header = ["Method", "Labeled / unlabeled", names[0], "Median", "Failed scans", "Trainings", *names[1:], "Role"]
    lines = []
    for row in rows:
        levels = {key: analysis.level(row, key) for key in columns}
        dice = levels["dice"]
        cells = [spread_text(levels[key], digits, scale) for key, (_, scale, digits) in columns.items()]
        failed, scored = analysis.failed(row)
        lines.append([
            row.title, labels_text(row), cells[0], DASH if dice is None else number_text(dice.median, 1, 100),
            f"{failed} of {scored}" if scored else DASH, str(len(row.trained)), *cells[1:], role_name(row),
        ])  # fmt: skip
    return Table(header, lines, (0, len(header) - 1), [row.color for row in rows], _methods(rows))


def _methods(rows: Sequence[LoadedRow]) -> list[int]:
    return [number for number, row in enumerate(rows) if row.row.role == "method"]


def classes_table(analysis: Analysis, rows: Sequence[LoadedRow], classes: Sequence[str]) -> Table:
    """Scores of every class."""
    columns = [("dice", *OVERLAPS["dice"])]
    if len(classes) <= CLASSES_WITH_DISTANCE:
        columns.append(("hd95_mm", *DISTANCES["hd95_mm"]))
    header = [
        "Method",
        "Role",
        "Labeled / unlabeled",
        *(f"{name}: {text}" for name in classes for _, text, _, _ in columns),
    ]
    lines = [
        [row.title, role_name(row), labels_text(row),
         *(spread_text(analysis.level(row, key, name, interval=False), digits, scale)
           for name in classes for key, _, scale, digits in columns)]
        for row in rows
    ]  # fmt: skip
    return Table(header, lines, (0, 1), [row.color for row in rows], _methods(rows))


def gains_table(analysis: Analysis) -> Table | None:
    """Methods against their matched floors; None where there is nothing to compare."""
    gains = [gain for row in analysis.study.methods if (gain := analysis.gain_of(row)) is not None]
    header = ["Method", "Data", "Labeled / unlabeled", "Reading", "Gain, points [95% interval]",
              "Dice %: matched floor, method", "Share of the gap", "Wilcoxon (Holm)", "Better / worse / equal",
              "Trainings, cases"]  # fmt: skip
    lines = [
        [
            gain.row.title, analysis.study.group_name(gain.row.row.group), labels_text(gain.row), reading(gain),
            gain_text(gain),
            f"{number_text(gain.mean_against, 1, 100)}, {number_text(gain.mean_row, 1, 100)}", share_text(gain),
            tests_text(gain), f"{gain.wins} / {gain.losses} / {gain.ties}",
            f"{gain.n_trainings}, {gain.n_cases}"
            + (f" of {plural(gain.n_patients, 'patient')}" if gain.n_patients < gain.n_cases else ""),
        ]
        for gain in gains
    ]  # fmt: skip
    _add_splits(header, lines, gains)
    return Table(header, lines, (0, 1, 3), [gain.row.color for gain in gains]) if lines else None


def _add_splits(header: list[str], lines: list[list[str]], gains: Sequence[Gain]) -> None:
    """The test over random splits as last column, where there is one."""
    if any(gain.p_splits is not None for gain in gains):
        header.append("Wilcoxon over splits")
        for line, gain in zip(lines, gains, strict=True):
            line.append(DASH if gain.p_splits is None else p_value_text(gain.p_splits))


def gain_text(gain: Gain) -> str:
    """A difference of Dice in points, with its interval."""
    return f"{number_text(gain.difference, 1, 100, sign=True)} {interval_text(gain.low, gain.high, 1, 100)}"


def reading(gain: Gain) -> str:
    """The verdict in the fewest words."""
    return (
        gain.verdict.removeprefix("a measurable ").removesuffix(" to tell").removesuffix(": interval and test disagree")
    )


def tests_text(gain: Gain) -> str:
    """P-value of the test, in brackets as corrected."""
    return f"{p_value_text(gain.p_value)} ({p_value_text(gain.p_holm).removeprefix('p = ').removeprefix('p ')})"


def further_table(analysis: Analysis) -> Table | None:
    """All other comparisons, and 95HD."""
    header = ["a", "b", "Data", "Labels of a", "Metric", f"Mean a {MINUS} b", "95% interval", f"Median a {MINUS} b",
              "Wilcoxon (Holm)", "a better / worse / equal", "Reading"]  # fmt: skip
    # which have a table of their own
    above = ("method", "matched_floor", "dice")
    gains = [gain for gain in analysis.gains if (gain.row.row.role, gain.against.row.role, gain.metric) != above]
    lines = []
    for gain in gains:
        role = role_name(gain.against)
        told = "" if role in gain.against.title.lower() else f"{role}, "
        other = f"{gain.against.title} ({told}{gain.against.row.n_labeled} labels)"
        lines.append([gain.row.title, other, *_difference_cells(analysis, gain)])
    _add_splits(header, lines, gains)
    return Table(header, lines, (0, 1, 2, 4, 10)) if lines else None


def _difference_cells(analysis: Analysis, gain: Gain) -> list[str]:
    """What a line about two rows says of their difference."""
    scale, digits, _ = metric_unit(gain.metric)
    return [
        analysis.study.group_name(gain.row.row.group), str(gain.row.row.n_labeled), metric_text(gain.metric),
        number_text(gain.difference, digits, scale, sign=True), interval_text(gain.low, gain.high, digits, scale),
        number_text(gain.median_difference, digits, scale, sign=True), tests_text(gain),
        f"{gain.wins} / {gain.losses} / {gain.ties}", reading(gain),
    ]  # fmt: skip


def metric_text(metric: str) -> str:
    """A compared metric and the unit of its differences."""
    return f"{'Dice' if metric == 'dice' else '95HD'}, {metric_unit(metric)[2]}"


def class_gains_table(analysis: Analysis, classes: Sequence[str], group: tuple[str, str, str]) -> Table | None:
    """Gain over the matched floor in every class of a data set."""
    found: dict[str, dict[str, Gain]] = {}
    for name in classes:
        for gain in analysis.class_gains(name):
            if gain.row.row.group == group:
                found.setdefault(gain.row.row.name, {})[name] = gain
    rows = [row for row in analysis.study.methods if row.row.name in found]
    header = ["Method", "Labeled / unlabeled"]
    for name in classes:
        header += [f"{name}: gain, points [95% interval]", f"{name}: reading"]
    lines = []
    for row in rows:
        line = [row.title, labels_text(row)]
        for name in classes:
            gains = found[row.row.name]
            line += [gain_text(gains[name]), reading(gains[name])] if name in gains else [DASH, DASH]
        lines.append(line)
    text = (0, *range(3, len(header), 2))
    return Table(header, lines, text, [row.color for row in rows]) if lines else None


def ranks_table(analysis: Analysis) -> Table | None:
    """Mean ranks; None where no two methods have as many labels of the same data."""
    header = ["Method", "Data", "Labeled / unlabeled", "Cases", "Mean rank [95% interval]", "Best on",
              "Against the first", "All alike (Friedman)"]  # fmt: skip
    lines, colors = [], []
    for table in analysis.ranks:
        for rank in table:
            lines.append([
                rank.row.title, analysis.study.group_name(rank.row.row.group), labels_text(rank.row), str(rank.n_cases),
                f"{number_text(rank.mean, 2)} {interval_text(rank.low, rank.high, 2)}",
                f"{rank.first} of {rank.n_cases}",
                "first" if rank.p_holm is None else p_value_text(rank.p_holm),
                DASH if rank.friedman is None else p_value_text(rank.friedman),
            ])  # fmt: skip
            colors.append(rank.row.color)
    return Table(header, lines, (0, 1), colors) if lines else None


def square_tables(analysis: Analysis) -> list[tuple[str, str, Table]]:
    """A square of differences per metric, where three methods or more have as many labels of the same data.

    Returns:
        Heading, sentence and table of each.
    """
    return [
        (f"{scope(analysis.study, pairs.rows[0])}: {metric_text(pairs.metric)}", pairs_sentence(pairs), _square(pairs))
        for pairs in analysis.pairs
        if len(pairs.rows) >= SQUARE
    ]


def _square(pairs: Pairs) -> Table:
    scale, digits, _ = metric_unit(pairs.metric)
    cells: dict[tuple[LoadedRow, LoadedRow], str] = {}
    for gain in pairs.gains:
        mark = MARK if gain.p_holm < LEVEL else ""
        for places, sign in (((gain.row, gain.against), 1), ((gain.against, gain.row), -1)):
            cells[places] = f"{number_text(sign * gain.difference, digits, scale, sign=True)}{mark}"
    lines = [
        [row.title, *("" if row is other else cells.get((row, other), DASH) for other in pairs.rows)]
        for row in pairs.rows
    ]
    return Table(["Row minus column", *(row.title for row in pairs.rows)], lines, (0,), [r.color for r in pairs.rows])


def pairs_sentence(pairs: Pairs) -> str:
    """How many pairs the tests tell apart, and whether they could."""
    gains = pairs.gains
    marked = sum(gain.p_holm < LEVEL for gain in gains)
    text = f"{plural(len(gains), 'pair')}, {marked} with p < {LEVEL:g} after Holm"
    if all(too_few(gain) for gain in gains):
        unit = "case" if all(gain.n_patients == gain.n_cases for gain in gains) else "patient"
        text += f": {plural(max(gain.n_patients for gain in gains), unit)} cannot tell so many pairs apart"
    over = [gain.p_splits for gain in gains if gain.p_splits is not None]
    if over:
        text += f"; over splits, not corrected, {sum(p < LEVEL for p in over)} of {len(over)}"
    return f"{text}."


def pairs_table(analysis: Analysis) -> Table | None:
    """The pairs where just two methods have as many labels of the same data, a line each."""
    gains = [gain for pairs in analysis.pairs if len(pairs.rows) < SQUARE for gain in pairs.gains]
    header = ["a", "b", "Data", "Labels", "Metric", f"Mean a {MINUS} b", "95% interval", f"Median a {MINUS} b",
              "Wilcoxon (Holm)", "a better / worse / equal", "Reading"]  # fmt: skip
    lines = [[gain.row.title, gain.against.title, *_difference_cells(analysis, gain)] for gain in gains]
    _add_splits(header, lines, gains)
    return Table(header, lines, (0, 1, 2, 4, 10)) if lines else None


def costs_table(analysis: Analysis) -> Table | None:
    """What trainings cost; None where none recorded it."""
    header = ["Method", "Data", "Labeled / unlabeled", "Parameters, deployed, M", "Parameters, trained, M",
              "GMAC per patch", "Patch", "Hours per training", "Seconds per iteration", "Peak memory, GB",
              "Peak GPU memory, GB"]  # fmt: skip
    lines, colors = [], []
    for costs in analysis.costs:
        row = costs.row
        lines.append([
            row.title, analysis.study.group_name(row.row.group), labels_text(row),
            number_text(costs.parameters, 2, 1e-6), number_text(costs.parameters_trained, 2, 1e-6),
            number_text(costs.macs, 2, 1e-9),
            DASH if costs.patch is None else " × ".join(str(side) for side in costs.patch[1:]),
            number_text(costs.hours, 2), number_text(costs.seconds_per_iteration, 2),
            number_text(costs.memory, 2, 1e-9), number_text(costs.gpu_memory, 2, 1e-9),
        ])  # fmt: skip
        colors.append(row.color)
    return Table(header, lines, (0, 1), colors) if lines else None


def quoted_table(analysis: Analysis) -> Table | None:
    """Published figures, each beside the row of the same title, data and labels; None without any."""
    quoted = analysis.study.quoted
    if not quoted:
        return None
    header = ["Quoted", "Data", "Labeled / unlabeled", "Dice %: quoted, here", "Jaccard %: quoted, here",
              "95HD: quoted, here", "ASD: quoted, here", "Unit", "Source", "Protocol", "Weights chosen",
              "Dice and Jaccard"]  # fmt: skip
    lines = []
    for figure in quoted:
        row = beside(analysis.study, figure)
        cells = []
        for name, scale, digits in (("dice", 100, 1), ("jaccard", 100, 1), ("hd95", 1, 2), ("asd", 1, 2)):
            metric = name if name in OVERLAPS else f"{name}_{figure.distance_unit}"
            level = None if row is None else analysis.level(row, metric)
            here = number_text(None if level is None else level.mean, digits, scale)
            cells.append(f"{number_text(getattr(figure, name), 2)}, {here}")
        lines.append([
            figure.title, figure.dataset, f"{figure.n_labeled} / {figure.n_unlabeled}", *cells, figure.distance_unit,
            figure.source, figure.protocol or DASH, figure.selection, jaccard_check(figure) or DASH,
        ])  # fmt: skip
    return Table(header, lines, (0, 1, 7, 8, 9, 10, 11))


def beside(study: Study, figure: QuotedFigure) -> LoadedRow | None:
    """The measured row that a quoted figure is put beside."""
    for row in study.rows:
        mine = row.row
        if (mine.title, mine.dataset, mine.n_labeled) == (figure.title, figure.dataset, figure.n_labeled):
            return row
    return None


def settings_table(study: Study) -> Table | None:
    """Settings in which rows differ; None where there are none."""
    rows = [(row, used_settings(row)) for row in study.rows if row.row.role != "quoted"]
    keys = list(dict.fromkeys(key for _, settings in rows for key in settings))
    keys = [key for key in keys if len({str(settings.get(key)) for _, settings in rows}) > 1]
    if not keys:
        return None
    lines = [
        [row.title, study.group_name(row.row.group), labels_text(row),
         *(str(settings[key]) if key in settings else DASH for key in keys)]
        for row, settings in rows
    ]  # fmt: skip
    return Table(["Method", "Data", "Labeled / unlabeled", *keys], lines, range(len(keys) + 3))


# ------------------------------------------------------------------------------------------------------------- CSV


def csv_text(fields: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    """A table with every digit; what does not exist is empty."""

    def text(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        return repr(float(value)) if isinstance(value, float) else cell(str(value))

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([cell(field) for field in fields])
    writer.writerows([text(line.get(field)) for field in fields] for line in lines)
    return buffer.getvalue()


ROW_FIELDS = ("row", "title", "role", "of", "dataset", "flavor", "section", "n_labeled", "n_unlabeled")


def _row_cells(row: LoadedRow) -> dict[str, Any]:
    mine = row.row
    values = (mine.name, mine.title, mine.role, mine.of, mine.dataset, mine.flavor, mine.section, mine.n_labeled,
              mine.n_unlabeled)  # fmt: skip
    return dict(zip(ROW_FIELDS, values, strict=True))


def csv_files(analysis: Analysis, folder: Path) -> dict[str, str]:
    """Content of ``results/*.csv`` by name.

    Args:
        analysis: of the study.
        folder: of the study, from which the folders of runs are named.
    """
    study = analysis.study
    return {
        "per_case.csv": _per_case(study),
        "summary.csv": _summary(analysis),
        "comparisons.csv": _comparisons(analysis),
        "pairs.csv": _pairs(analysis),
        "ranks.csv": _ranks(analysis),
        "costs.csv": _costs(analysis),
        "checks.csv": _checks(analysis),
        "trainings.csv": _trainings(study, folder),
        "settings.csv": _settings(study),
        **({"quoted.csv": _quoted(study)} if study.quoted else {}),
    }


def _per_case(study: Study) -> str:
    numbers = (*METRICS, "volume_ml_prediction", "volume_ml_reference")
    lines = [
        {**_row_cells(row), "split": each.run.split, "seed": each.run.seed, **score}
        for row in study.rows
        for each in row.trained
        for score in each.rows
    ]
    whose = ["patient"] if any(line.get("patient") for line in lines) else []
    return csv_text([*ROW_FIELDS, "split", "seed", "case", *whose, "label", "class", "status", *numbers], lines)


def _summary(analysis: Analysis) -> str:
    lines = []
    for row in analysis.study.rows:
        failed, scored = analysis.failed(row)
        for label in (None, *(row.classes if len(row.classes) > 1 else [])):
            for metric in METRICS:
                level = analysis.level(row, metric, label, interval=label is None)
                if level is not None:
                    more = {"failed": failed, "scored": scored} if label is None else {}
                    lines.append({**_row_cells(row), "class": label, "metric": metric, **asdict(level), **more})
    fields = [*ROW_FIELDS, "class", "metric", "n_trainings", "n_cases", "n_patients", "mean", "sd_trainings",
              "sd_cases", "median", "least", "most", "low", "high", "failed", "scored"]  # fmt: skip
    return csv_text(fields, lines)


DIFFERENCE_FIELDS = ("n_trainings", "n_cases", "n_patients", "mean_row", "mean_against", "difference", "low", "high",
                     "median_difference", "wins", "losses", "ties", "p_value", "p_holm", "n_tests", "n_splits",
                     "p_splits")  # fmt: skip


def _comparisons(analysis: Analysis) -> str:
    several = {name for row in analysis.study.rows if len(row.classes) > 1 for name in row.classes}
    gains = [*analysis.gains, *(gain for name in sorted(several) for gain in analysis.class_gains(name))]
    shares = ("gap", "gap_low", "gap_high", "share", "share_low", "share_high")
    lines = [
        {**_row_cells(gain.row), "against": gain.against.row.name, "against_role": gain.against.row.role,
         "metric": gain.metric, "class": gain.label, **{key: getattr(gain, key) for key in DIFFERENCE_FIELDS},
         **({key: getattr(gain.closed, key) for key in shares} if gain.closed is not None else {}),
         "reading": gain.verdict}
        for gain in gains
    ]  # fmt: skip
    fields = [*ROW_FIELDS, "against", "against_role", "metric", "class", *DIFFERENCE_FIELDS, *shares, "reading"]
    return csv_text(fields, lines)


def _pairs(analysis: Analysis) -> str:
    lines = [
        {**_row_cells(gain.row), "against": gain.against.row.name, "against_title": gain.against.title,
         "metric": gain.metric, **{key: getattr(gain, key) for key in DIFFERENCE_FIELDS}, "reading": gain.verdict}
        for pairs in analysis.pairs
        for gain in pairs.gains
    ]  # fmt: skip
    return csv_text([*ROW_FIELDS, "against", "against_title", "metric", *DIFFERENCE_FIELDS, "reading"], lines)


def _ranks(analysis: Analysis) -> str:
    numbers = ("n_cases", "n_patients", "mean", "low", "high", "first", "p_holm", "friedman")
    lines = [
        {**_row_cells(rank.row), **{key: getattr(rank, key) for key in numbers}}
        for table in analysis.ranks
        for rank in table
    ]
    return csv_text([*ROW_FIELDS, *numbers], lines)


def _costs(analysis: Analysis) -> str:
    numbers = ("n_trainings", "parameters", "parameters_trained", "macs", "hours", "seconds_per_iteration", "memory",
               "gpu_memory")  # fmt: skip
    lines = [
        {**_row_cells(costs.row), **{key: getattr(costs, key) for key in numbers},
         "patch": None if costs.patch is None else "x".join(str(side) for side in costs.patch)}
        for costs in analysis.costs
    ]  # fmt: skip
    return csv_text([*ROW_FIELDS, *numbers, "patch"], lines)


def _checks(analysis: Analysis) -> str:
    fields = ("row", "split", "seed", "dice", "jaccard", "least", "most", "deviation", "passed")
    return csv_text(fields, [asdict(check) for check in analysis.checks])


def _trainings(study: Study, folder: Path) -> str:
    """Every training and its state; folders relative to the study's, or their names where they are elsewhere."""
    rows = {row.row.name: row for row in study.rows}
    states = [(each.run, "scored") for row in study.rows for each in row.trained] + list(study.missing)
    place = {name: number for number, name in enumerate(rows)}
    states.sort(key=lambda state: (place[state[0].row], state[0].split, state[0].seed))

    def relative(path: Path) -> str:
        found = Path(os.path.relpath(path, folder))
        return path.name if ".." in found.parts else found.as_posix()

    lines = [
        {**_row_cells(rows[run.row]), "split": run.split, "seed": run.seed, "state": state.partition(":")[0],
         "run": relative(run.run), "evaluation": relative(run.evaluation)}
        for run, state in states
    ]  # fmt: skip
    return csv_text([*ROW_FIELDS, "split", "seed", "state", "run", "evaluation"], lines)


def _settings(study: Study) -> str:
    lines = [
        {**_row_cells(row), "setting": key, "value": str(value)}
        for row in study.rows
        for key, value in used_settings(row).items()
    ]
    return csv_text([*ROW_FIELDS, "setting", "value"], lines)


def _quoted(study: Study) -> str:
    lines = [quoted_cells(figure) for figure in study.quoted]
    return csv_text(list(lines[0]), lines)

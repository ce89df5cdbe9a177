"""One page about which scans to annotate next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_ssl.data.cases import Entry
from monai_ssl.errors import enumerated
from monai_ssl.files import write_text
from monai_ssl.reports.dataset import ROW, CaseStatistics, case_statistics, picture_figure
from monai_ssl.reports.numbers import plural
from monai_ssl.reports.page import Picture, Table, render_html

ROWS = 2  # of pictures per group
WORDS = {
    "method": "The model's two opinions of every scan were compared: its two tasks, its network and its teacher, or "
    "its two networks.",
    "members": "The networks of the ensemble were compared with one another.",
    "": "The model has one opinion only, so scans are ordered by its uncertainty alone.",
}


def report_ranking(
    page: Path,
    title: str,
    labels: Mapping[int, str],
    rows: Sequence[Mapping[str, str]],
    opinions: str,
    n_labeled: int,
    first: Sequence[str],
    problems: Mapping[str, str],
    entries: Mapping[str, Entry],
) -> Path:
    """Write the page; the file needs no other.

    Args:
        page: the HTML file.
        title: heading.
        labels: class -> name.
        rows: of ``ranking.csv``, most worth annotating first.
        opinions: ``"method"``, ``"members"`` or ``""``, see :class:`monai_ssl.deploy.rank.Ranking`.
        n_labeled: labeled scans that were compared with the pool.
        first: names of the scans to begin with.
        problems: case -> why it could not be read.
        entries: case -> ``{"image": ..., "label": file of the model's segmentation}``.
    """
    groups = [
        ("Most worth annotating", [row for row in rows if row["case"] in set(first)] + _rest(rows, first)),
        ("Unlike every labeled scan", [row for row in rows if "outlier" in row["mark"]]),
        ("Near-duplicates, each beside its twin where that is in the pool", _twins(rows)),
        ("Least worth annotating: the model is sure of these", list(reversed(rows))),
    ]
    pictures = [picture for caption, group in groups if (picture := _pictures(group, caption, entries, labels))]
    context = {
        "findings": _findings(rows, opinions, n_labeled, first),
        "problems": [f"{name} could not be read: {text}" for name, text in problems.items()],
        "pictures": pictures,
        "scans": _case_table(rows, labels),
    }
    write_text(page, render_html("ranking.html.j2", title=title, **context))
    return page


def _twins(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    by_name = {row["case"]: row for row in rows}
    pairs = [(row, by_name.get(row["near_duplicate_of"])) for row in rows if row["near_duplicate_of"]]
    return [row for pair in pairs for row in pair if row is not None]


def _rest(rows: Sequence[Mapping[str, str]], first: Sequence[str]) -> list[Mapping[str, str]]:
    return [row for row in rows if row["case"] not in set(first) and not row["near_duplicate_of"]]


def _findings(rows: Sequence[Mapping[str, str]], opinions: str, n_labeled: int, first: Sequence[str]) -> list[str]:
    if not rows:
        return ["No scan could be read."]
    found = [f"Annotate first: {enumerated(list(first), 5)}.", WORDS[opinions]]
    outliers = [row["case"] for row in rows if "outlier" in row["mark"]]
    twins = [row for row in rows if row["near_duplicate_of"]]
    empty = [row["case"] for row in rows if "nothing drawn" in row["mark"]]
    if outliers:
        look, what = ("looks", "it is") if len(outliers) == 1 else ("look", "they are")
        found.append(
            f"{plural(len(outliers), 'scan')} of the pool {look} unlike every labeled one: {enumerated(outliers, 5)}. "
            f"See what {what} first: either such scans belong to the task, then one of them should be annotated soon, "
            "or they do not, then they should leave the pool."
        )
    if twins:
        pairs = [f"{row['case']} (of {row['near_duplicate_of']})" for row in twins]
        found.append(
            f"{plural(len(twins), 'near-duplicate')}: {enumerated(pairs, 5)}. Annotating the second of two teaches "
            "little. If they are of one patient, both must be on one side of the split."
        )
    if empty:
        found.append(
            f"The model draws nothing in {enumerated(empty, 5)}: where the organ is there, annotate such a scan."
        )
    if not n_labeled:
        found.append("No labeled scan was at hand to compare with, so no scan is marked as unlike them.")
    elif not outliers and not twins:
        found.append(f"No scan is a near-duplicate, or unlike the {plural(n_labeled, 'labeled scan')}.")
    return found


def _pictures(
    rows: Sequence[Mapping[str, str]], caption: str, entries: Mapping[str, Entry], labels: Mapping[int, str]
) -> Picture | None:
    shown: list[CaseStatistics] = []
    for row in rows[: ROWS * ROW]:
        name = f"{row['rank']}. {row['case']}"
        # as if it had a label, which is the model's
        shown.append(case_statistics("training", name, entries[row["case"]], picture=True))
    shown = [case for case in shown if case.picture is not None]
    if not shown:
        return None
    of = f": {len(shown)} of {len(rows)}" if len(shown) < len(rows) else ""
    return Picture(picture_figure(shown, labels), caption + of, f"scans, {caption}")


def _case_table(rows: Sequence[Mapping[str, str]], labels: Mapping[int, str]) -> Table:
    drawn = [(value, name) for value, name in sorted(labels.items()) if value]
    header = ["scan", "rank", "score", "disagreement", "uncertainty", "mark", "nearest labeled", "distance",
              *(f"voxels {name}" for _, name in drawn)]  # fmt: skip
    cells = []
    for row in rows:
        mark = row["mark"]
        if row["near_duplicate_of"]:
            mark = mark.replace("near-duplicate", f"near-duplicate of {row['near_duplicate_of']}")
        cells.append([row["case"], row["rank"], row["score"], row["disagreement"] or "-", row["uncertainty"], mark,
                      row["nearest_labeled"] or "-", row["distance"] or "-",
                      *(row.get(f"voxels_{value}", "-") for value, _ in drawn)])  # fmt: skip
    marked = [number for number, row in enumerate(rows) if row["mark"]]
    return Table(header, cells, text_columns=(0, 5, 6), marked=marked)

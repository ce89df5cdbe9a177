"""The page of a study, its Markdown and LaTeX twins, and the tables behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from monai_ssl.files import write_atomically
from monai_ssl.metrics.statistics import FAILURE_DICE
from monai_ssl.reports.numbers import PATIENT_NOTE
from monai_ssl.reports.page import Picture, Table, render_html, render_markdown
from monai_ssl.reports.study import charts, tables
from monai_ssl.reports.study.analysis import LEVEL, Analysis
from monai_ssl.reports.study.findings import facts, findings, splits_note, warnings
from monai_ssl.reports.study.latex import latex_file, latex_table
from monai_ssl.reports.study.load import load_study
from monai_ssl.reports.study.quoted import read_quoted
from monai_ssl.reports.study.rows import StudyRow, StudyRun

__all__ = ["write_page"]

ROLES_TEXT = (
    "Floor: the supervised network on the labeled scans only. Matched floor: the method's own network, batches and "
    "passes with the weight of its unsupervised terms at 0; the difference from it is what the unlabeled scans' loss "
    "brings, and nothing else is. Ceiling: trained with all labels. Share of the gap: gain over the matched floor, "
    "divided by the distance from matched floor to ceiling; 100 % would make the missing labels superfluous."
)
SPREAD_NOTE = (
    "Mean over trainings of the mean over scans ± standard deviation over trainings (in brackets: over scans, each "
    "the mean of its trainings); with one training or one scan that deviation does not exist. Trainings differ in "
    "seed and, in studies with folds or random splits, in their scans. A failed scan has a class with exactly one "
    f"empty mask, or Dice below {FAILURE_DICE:g}; they are counted over all trainings. A missed structure counts with "
    "the image diagonal as distance. 95HD is the 95th percentile of both directed surface distance sets pooled, ASD "
    "runs from prediction to reference; 'voxel' ignores the spacing, as papers do."
)
GAINS_NOTE = (
    "Only trainings of the same split and seed are compared. Intervals are 95 % of a hierarchical bootstrap: "
    "trainings are drawn, and patients, each for all trainings that share the scans. With two or three trainings they "
    "are rough and rather too short. The test is Wilcoxon's signed-rank test over patients, each the mean of trainings "
    "and scans, two-sided; Holm's correction covers all rows of this table. A gain or loss is said only where interval "
    "and corrected test agree. 'Too few cases to tell': not even the same sign in all patients could pass the "
    "corrected test."
)
FURTHER_NOTE = (
    "a minus b; for 95HD a negative difference is the better one. Holm's correction covers comparisons of the same "
    "kind (method against floor in Dice, ...), each kind by itself."
)
FOREST_NOTE = "Dice points with their 95 % interval. Filled: a gain or loss that interval and test agree on."
CLASS_NOTE = "Holm's correction covers all rows of one class."
RANK_NOTE = (
    "Rank of every method on every scan by its mean Dice over the trainings; 1 is best, equal values share. The "
    "interval is a BCa bootstrap over patients. 'Against the first' is Wilcoxon's test against the method with the "
    "best mean rank, after Holm; methods with p of 0.05 or more cannot be told from it. Friedman's test asks whether "
    "all rank alike."
)
PAIRS_NOTE = (
    "Row minus column over the trainings and scans that both have, best mean rank first; for 95HD a negative "
    f"difference is the better one. {tables.MARK}: Wilcoxon's test over patients gives p < {LEVEL:g} after Holm's "
    "correction, which covers all pairs of one square. The more methods, the more a pair has to show: two that no mark "
    "tells apart may still differ. Intervals, p-values and better and worse scans of every pair are in "
    "results/pairs.csv."
)
PAIR_NOTE = (
    "a minus b over the trainings and scans that both have, the better mean rank first; for 95HD a negative difference "
    "is the better one."
)
COST_NOTE = (
    "Parameters of the network that is deployed, and of everything that optimizers train. GMAC: multiply-accumulates "
    "of one patch through the deployed network, convolutions and matrix products only, in 10⁹. Hours and seconds "
    "include reading, validation and checkpoints, on the machines below, which may have done other work; the hours of "
    "a self-training are those of its floor, its labeling and all its rounds. Memory is "
    "the largest peak of a training's own process; GB are 10⁹ bytes."
)
QUOTED_NOTE = (
    "Quoted figures were not measured here. They come from other data, splits, code and rules for choosing the "
    "weights; a figure chosen on the test set is too high. For one mask Jaccard = D / (2 − D), which is convex, so a "
    "mean Jaccard is never below that of the mean Dice."
)
LEARNING_NOTE = "Bold: mean over trainings; pale: each training; dashed: controls. Test scans are not seen here."
LOSS_NOTE = "Running means, one line per training; darker: more labels. Every method sums up terms of its own."
CASE_NOTE = (
    "One mark per scan, the upright line is the mean, the box spans the quartiles around the median. Dashed: "
    "failure. Hollow marks are controls."
)
GALLERY_NOTE = (
    "The slice with the largest cross-section of the label, cropped around the outlines. One training of each row, "
    "the same seed for all where they have it. Letters at the edges name the patient's left (L), right (R), back (P) "
    "and front (A)."
)
FRACTION_NOTE = (
    "Bands: 95 % interval (hierarchical bootstrap over trainings and patients). Dashed: controls. Dotted: ceiling."
)
FILES_NOTE = (
    "Every number on this page can be computed from results/per_case.csv, which has one line per training, scan and "
    "class; costs, settings and quoted figures have tables of their own."
)
FILES = {
    "per_case.csv": "scores of every training, scan and class",
    "summary.csv": "means, deviations, intervals of every row, metric and class",
    "comparisons.csv": "paired differences, tests, shares of the gap",
    "pairs.csv": "every method against every other with as many labels: paired differences, tests",
    "ranks.csv": "mean ranks",
    "costs.csv": "parameters, operations, time, memory",
    "checks.csv": "Dice and Jaccard of every training against each other",
    "trainings.csv": "every training, and whether it was scored",
    "settings.csv": "settings of every row",
    "quoted.csv": "quoted figures",
}


def write_page(
    folder: Path,
    title: str,
    description: str,
    rows: Sequence[StudyRow],
    runs: Sequence[StudyRun],
    command: str,
    quoted: Path | None = None,
) -> Path:
    """See :func:`~monai_ssl.reports.study.write_study_report`."""
    folder = Path(folder)
    figures = [] if quoted is None else read_quoted(Path(quoted))
    analysis = Analysis(load_study(rows, runs, figures))
    study = analysis.study
    groups = [(study.group_name(group), group, members) for group, members in study.groups.items()]
    numbers = tables.csv_files(analysis, folder)
    classes = {name: _classes(members) for name, _, members in groups}
    several = any(score.get("patient") for row in study.rows for each in row.trained for score in each.rows)
    text: dict[str, Any] = {
        "title": title,
        "description": description,
        "warnings": warnings(analysis),
        "findings": findings(analysis),
        "roles_text": ROLES_TEXT,
        "gains": tables.gains_table(analysis),
        "gains_note": f"{GAINS_NOTE} {PATIENT_NOTE}" if several else GAINS_NOTE,
        "results": [(name, tables.results_table(analysis, members)) for name, _, members in groups],
        "spread_note": SPREAD_NOTE,
        "classes": [
            (name, tables.classes_table(analysis, members, classes[name]),
             tables.class_gains_table(analysis, classes[name], group))
            for name, group, members in groups
            if len(classes[name]) > 1
        ],
        "class_note": CLASS_NOTE,
        "further": tables.further_table(analysis),
        "further_note": FURTHER_NOTE,
        "ranks": tables.ranks_table(analysis),
        "rank_note": RANK_NOTE,
        "squares": tables.square_tables(analysis),
        "squares_note": PAIRS_NOTE,
        "pairs": tables.pairs_table(analysis),
        "pairs_note": PAIR_NOTE,
        "costs": tables.costs_table(analysis),
        "cost_note": COST_NOTE,
        "quoted": tables.quoted_table(analysis),
        "quoted_note": QUOTED_NOTE,
        "settings": tables.settings_table(study),
        "arithmetic": _arithmetic(analysis),
        "files_note": FILES_NOTE,
        "files": [(f"results/{name}", FILES[name]) for name in numbers],
        "command": command,
        "facts": facts(study),
    }  # fmt: skip
    # once, where the test over splits is first seen
    place = next((key for key in ("gains", "squares", "pairs") if text[key]), "further")
    text[f"{place}_note"] = " ".join(filter(None, [text[f"{place}_note"], splits_note(analysis)]))
    pictures: dict[str, Any] = {
        "gains_picture": _picture(charts.gains_figure(analysis), FOREST_NOTE, "Gains over the matched floors"),
        "fractions": _picture(charts.fraction_figure(analysis), FRACTION_NOTE, "Dice against the number of labels"),
        "cases": _pictures(charts.case_figures(analysis)),
        "case_note": CASE_NOTE,
        "ranks_picture": _picture(charts.ranks_figure(analysis), "Mean rank with its 95 % interval.", "Mean ranks"),
        "gallery": _pictures(charts.gallery(study)),
        "gallery_note": GALLERY_NOTE,
        "learning": _picture(charts.learning_figure(study), LEARNING_NOTE, "Validation Dice while training"),
        "losses": _picture(charts.loss_figure(study), LOSS_NOTE, "Loss of every training"),
    }  # fmt: skip
    # those that go into a paper, as files: Markdown shows them, too
    names = {"gains": "gains_picture", "label_fraction": "fractions", "ranks": "ranks_picture", "learning": "learning"}
    drawn = {f"figures/{name}.png": pictures[key] for name, key in names.items() if pictures[key] is not None}
    drawn |= {f"figures/cases-{number}.png": picture for number, picture in enumerate(pictures["cases"], 1)}
    text["figures"] = [(path, picture.alternative) for path, picture in drawn.items()]
    for former in (folder / "figures").glob("*.png"):
        if f"figures/{former.name}" not in drawn:
            former.unlink()
    page = folder / "index.html"
    write_atomically(
        {
            **{folder / "results" / name: content for name, content in numbers.items()},
            **{folder / path: picture.png for path, picture in drawn.items()},
            folder / "tables.tex": _latex(title, text),
            folder / "report.md": render_markdown("study.md.j2", **text),
            page: render_html("study.html.j2", **text, **pictures),
        }
    )
    return page


def _classes(members: Sequence[Any]) -> list[str]:
    return next((row.classes for row in members if row.trained), [])


def _picture(figure: Figure | None, caption: str, alternative: str) -> Picture | None:
    return None if figure is None else Picture(figure, caption, alternative)


def _pictures(figures: Iterable[tuple[str, Figure]]) -> list[Picture]:
    return [Picture(figure, caption, caption) for caption, figure in figures]


def _arithmetic(analysis: Analysis) -> str:
    checks = analysis.checks
    if not checks:
        return ""
    passed = sum(check.passed for check in checks)
    return (
        f"Arithmetic: in {passed} of {len(checks)} evaluations every Jaccard is D / (2 \u2212 D) of its Dice, and the "
        "mean Jaccard is not below that of the mean Dice (it is convex), nor above it by more than twice the variance "
        "of Dice."
    )


def _latex(title: str, text: dict[str, Any]) -> str:
    """All tables; of the further comparisons and settings the CSV files are enough."""
    found: list[str] = []

    def add(table: Table | None, caption: str, label: str, column: int | None = None) -> None:
        if table is not None:
            changes = [] if column is None else [
                number for number, (one, two) in enumerate(zip(table.rows, table.rows[1:], strict=False), start=1)
                if one[column] != two[column]
            ]  # fmt: skip
            found.append(latex_table(table, f"{title}: {caption}", label, changes))

    spread = "mean ± sd over trainings (over cases)"
    for name, table in text["results"]:
        add(table, f"{name}, {spread}.", f"results-{name}", 1)
    corrected = "Wilcoxon's test over patients with Holm's correction"
    tests = f"95 % intervals of a hierarchical bootstrap, {corrected}"
    add(text["gains"], f"gain over the matched floor, {tests}.", "gains", 1)
    for name, table, gains in text["classes"]:
        add(table, f"{name}, every class, {spread}.", f"classes-{name}", 2)
        add(gains, f"{name}, gain over the matched floor in every class.", f"class-gains-{name}", 1)
    add(text["ranks"], "ranks by Dice.", "ranks", 2)
    for number, (heading, _, square) in enumerate(text["squares"], start=1):
        add(square, f"{heading}, row minus column; {tables.MARK}: p < {LEVEL:g}, {corrected}.", f"pairs-{number}")
    add(text["costs"], "costs of training.", "costs", 1)
    add(text["quoted"], "quoted figures, not measured here, beside those measured.", "quoted", 1)
    return latex_file(found)

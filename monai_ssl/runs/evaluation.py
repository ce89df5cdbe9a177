"""Scoring a run, or a folder of segmentations, and the pages about the scores."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monai_ssl.errors import PROGRAM, DataError, UsageError, enumerated
from monai_ssl.runs.folder import Run

if TYPE_CHECKING:
    from monai_ssl.metrics import Results


@dataclass(frozen=True)
class Evaluation:
    """Scores of one run on one list of cases.

    Attributes:
        folder: with per_case.csv, summary.json, report.html and, for a run, predictions/.
        against: results folder with which it was compared.
    """

    folder: Path
    against: Path | None = None

    @cached_property
    def results(self) -> Results:
        """Rows (one per case and class), summary and meta data, as the files hold them."""
        from monai_ssl.metrics import read_results

        return read_results(self.folder)

    @property
    def page(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice over the classes of every case."""
        from monai_ssl.metrics import case_values

        return case_values(self.results.rows, "dice")

    def lines(self) -> list[str]:
        """A few lines for people: one per class, and how it compares."""
        from monai_ssl.reports import summary_lines

        return summary_lines(self.folder, self.against)

    def __repr__(self) -> str:
        values = list(self.dice.values())
        return f"Evaluation({str(self.folder)!r}, Dice {sum(values) / len(values):.4f}, n = {len(values)})"

    def _repr_html_(self) -> str:
        lines = "<br>".join(html.escape(line) for line in self.lines())
        return f"<p>{lines}</p><p><code>{html.escape(str(self.page))}</code></p>"


def evaluate(
    run: str | Path | Run | Sequence[str | Path | Run] | None = None,
    section: Literal["testing", "validation", "training"] = "testing",
    output: str | Path | None = None,
    dataset_dir: str | Path | None = None,
    datalist: str | Path | None = None,
    predictions: str | Path | None = None,
    dataset: str | Path | None = None,
    against: str | Path | None = None,
    ckpt: str | Path | None = None,
    **overrides: Any,
) -> Evaluation:
    """Score a trained run, several as one, or a folder of segmentations, on the original grid of the labels.

    Writes per_case.csv, summary.json and report.html; with `against` also interval and paired Wilcoxon test.

    Args:
        run: folder that `monai-ssl train` wrote (or give `predictions`). Several, one after the other, are scored as an
            ensemble: the mean of their class probabilities.
        section: list of the datalist that is scored: testing, validation or training.
        output: folder for results; default: RUN/evaluation-SECTION; of several runs ensemble-NAMES/evaluation-SECTION
            beside them.
        dataset_dir: folder of the data; default: the training's.
        datalist: default: the training's.
        predictions: score these files (named CASE_seg.nii.gz or like the images) instead of running a network.
        dataset: preset that names the classes, with `predictions`; default: left_atrium.
        against: results folder of another run on the same cases (RUN/evaluation-testing).
        ckpt: other weights than RUN/model.pt.
        **overrides: ids of the bundle's configs, with RUN: device, amp, ...

    Returns:
        the scores.

    Raises:
        DataError: when the run, its weights, the list or a file is missing or does not fit.

    Example:
        >>> evaluate("runs/dtc-left_atrium-seed0", against="runs/floor/evaluation-testing")  # doctest: +SKIP
    """
    if (run is None) == (predictions is None):
        raise UsageError("evaluate: give either RUN or --predictions DIR")
    if section not in ("testing", "validation", "training"):
        raise UsageError(f"section: must be testing, validation or training, got {section!r}")
    if predictions is not None and overrides:
        raise UsageError(f"evaluate: unknown option --{next(iter(overrides))} (with --predictions)")
    from monai_ssl.runs.ensemble import members_of

    members = members_of(run)
    if members is not None and ckpt is not None:
        raise UsageError("evaluate: --ckpt goes with one run")
    run = None if run is None else members.runs[0] if members is not None else Run.open(run)  # type: ignore[arg-type]
    other = None if against is None else scored("against", against)  # before the work, not after it
    if run is not None:
        from monai_ssl.bundle.overrides import handed_on, literal, merged_config
        from monai_ssl.data.loading import load_datalist

        configs = ["train.yaml", "evaluate.yaml"]
        folder, settings = (members or run).settings(configs, overrides)
        data = Path(dataset_dir or run.record.dataset_dir).expanduser().resolve()
        cases = load_datalist(datalist or run.record.datalist, data)
        entries = cases.require(section)
        if members is not None and section != "training":
            members.refuse_known_cases(entries, section, cases.known_patients())
        settings = handed_on(merged_config(folder, configs), cases=cases) | settings
        settings |= {"dataset_dir": literal(data), "datalist": literal(str(cases.path)), "section": section}

    from monai_ssl.reports import report_evaluation
    from monai_ssl.runs.scoring import evaluate_ensemble, evaluate_predictions, evaluate_run

    if run is None:
        results = evaluate_predictions(
            predictions, str(dataset or "left_atrium"), dataset_dir, datalist, section, output  # type: ignore[arg-type]
        )  # fmt: skip
    else:
        target = None if output is None else Path(output)
        if members is None:
            results = evaluate_run(folder, run.folder, settings | {"ckpt": literal(run.weights(ckpt))}, target)
        else:
            with members.weights_file() as file:
                results = evaluate_ensemble(folder, members, settings | {"ckpt": literal(file)}, target)
    report_evaluation(results, other)
    return Evaluation(results, other)


def scored(argument: str, place: str | Path | Evaluation) -> Path:
    """The folder of results that an argument names.

    Raises:
        DataError: when it holds none, naming those of a run, they cannot be read, or they lie in the folder of a run
            whose weights are others by now.
    """
    from monai_ssl.metrics import read_results
    from monai_ssl.runs.scores import outdated

    folder = place.folder if isinstance(place, Evaluation) else Path(place).expanduser()
    if not folder.is_dir():
        raise DataError(f"{argument}: {folder} is no folder; give one that `{PROGRAM} evaluate` wrote")
    try:
        read_results(folder)
    except FileNotFoundError:
        inside = sorted(str(path.parent) for path in folder.glob("*/summary.json"))
        hint = f"did you mean {enumerated(inside)}?" if inside else f"evaluate that run first: {PROGRAM} evaluate RUN"
        raise DataError(f"{argument}: {folder} holds no results (per_case.csv, summary.json); {hint}") from None
    except ValueError as error:
        raise DataError(f"{argument}: {error}") from None
    if former := outdated(folder):
        raise DataError(f"{argument}: {former}")
    return folder


def report(
    output: str | Path,
    method: str | Path | Evaluation,
    floor: str | Path | Evaluation | None = None,
    matched_floor: str | Path | Evaluation | None = None,
    ceiling: str | Path | Evaluation | None = None,
    title: str | None = None,
) -> Path:
    """One page from the results folders of floor, matched floor, method and ceiling.

    Args:
        output: path of the HTML file.
        method: results folder (with per_case.csv) of the method.
        floor: of the run on only the labeled cases.
        matched_floor: of the method's run with --method#unsupervised_weight 0.
        ceiling: of the supervised run with all labels.
        title: of the page; default: Comparison and the name of the method.

    Returns:
        path of the page.

    Raises:
        DataError: when `output` is no .html file, or a folder holds no results.

    Example:
        >>> report("page.html", evaluate(run), floor=evaluate(floor))  # doctest: +SKIP
    """
    page = Path(output).expanduser()
    if page.suffix.lower() not in {".html", ".htm"}:
        raise DataError(f"output: must be an .html file, got {os.fspath(output)!r}")

    from monai_ssl.reports import comparison_report

    given = {"floor": floor, "matched_floor": matched_floor, "method": method, "ceiling": ceiling}
    folders = {role: scored(role, place) for role, place in given.items() if place is not None}
    if title is None:
        from monai_ssl.reports import report_run

        title = f"Comparison: {report_run(folders['method']).name}"
    return comparison_report(page, title, folders)

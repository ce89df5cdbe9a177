"""The sentences of a study: who gains what, and what makes the numbers other than they look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai_ssl.errors import enumerated
from monai_ssl.reports.numbers import DASH, interval_text, number_text, p_value_text, plural
from monai_ssl.reports.study.analysis import GAIN, LOSS, Analysis, Gain
from monai_ssl.reports.study.load import ROLE_NAMES, LoadedRow, Study
from monai_ssl.reports.study.quoted import jaccard_check
from monai_ssl.reports.study.rows import Role

__all__ = ["facts", "findings", "gain_sentence", "scope", "share_text", "splits_note", "used_settings", "warnings"]

# differences or rows in one sentence, and sentences of a kind; tables have all
LISTED = 8
# comparisons that get a sentence of their own; of more, methods do
TOLD = 4
# in what rows of two roles may differ without a word: it is what is asked, or follows from it
BATCH = {"batch", "labeled_batch_size", "unlabeled_batch_size"}
BY_ROLE: dict[Role, set[str]] = {
    "matched_floor": set(),
    "no_pool": set(),
    "floor": BATCH | {"network"},
    "ceiling": BATCH | {"network"},
    "method": BATCH | {"network"},
}
QUESTIONS: dict[Role, str] = {
    "matched_floor": "more than the weight of the unsupervised terms",
    "no_pool": "more than the pool",
    "floor": "more than the method",
    "ceiling": "more than method and labels",
    "method": "more than the method",
}


def points(value: float | None) -> str:
    """A difference of Dice in points, signed."""
    return number_text(value, 1, 100, sign=True)


def share_text(gain: Gain) -> str:
    """Share of the gap that a gain closes, in percent, with its interval; a dash without a ceiling."""
    closed = gain.closed
    if closed is None:
        return DASH
    if closed.share is None:
        return f"no gap ({points(closed.gap)})"
    bounds = [DASH if value is None else number_text(value, 0, 100) for value in (closed.share_low, closed.share_high)]
    return f"{number_text(closed.share, 0, 100)} % [{', '.join(bounds)}]"


def scope(study: Study, row: LoadedRow) -> str:
    """Data and number of labels of a row."""
    return f"{study.group_name(row.row.group)}, {row.row.n_labeled} labeled + {row.row.n_unlabeled} unlabeled"


def gain_sentence(analysis: Analysis, gain: Gain) -> str:
    """What a method gains over its matched floor, and what share of the gap that is."""
    study, row = analysis.study, gain.row
    interval = f" {interval_text(gain.low, gain.high, 1, 100)}" if gain.low is not None else ""
    tests = f" after Holm over {gain.n_tests} tests" if gain.n_tests > 1 else ""
    splits = "" if gain.p_splits is None else f"; over {gain.n_splits} splits {p_value_text(gain.p_splits)}"
    counted = f"{gain.wins} of {plural(gain.n_cases, 'case')}, {plural(gain.n_trainings, 'training')} each"
    text = (
        f"{scope(study, row)}: {row.title} reaches Dice {number_text(gain.mean_row, 1, 100)} %, "
        f"{points(gain.difference)} points{interval} over its matched floor: {gain.verdict} "
        f"({p_value_text(gain.p_holm)}{tests}, better on {counted}{splits})."
    )
    closed, ceiling = gain.closed, study.reference(row, "ceiling")
    if closed is not None and ceiling is not None:
        if closed.share is None:
            text += f" The ceiling is not above the matched floor ({points(closed.gap)} points): no gap to close."
        else:
            text += (
                f" That is {share_text(gain)} of the {number_text(closed.gap, 1, 100)} points between matched floor "
                f"and ceiling ({ceiling.row.n_labeled} labels)."
            )
    failed, others = analysis.failed(row), analysis.failed(gain.against)
    if failed[0] or others[0]:
        text += f" Failed scans: {failed[0]} of {failed[1]}; matched floor: {others[0]} of {others[1]}."
    return text


def splits_note(analysis: Analysis) -> str:
    """What the test over random splits is; empty where there is none."""
    gains = [*analysis.gains, *(gain for pairs in analysis.pairs for gain in pairs.gains)]
    numbers = sorted({gain.n_splits for gain in gains if gain.n_splits is not None})
    if not numbers:
        return ""
    least = " or ".join(f"{2.0 ** (1 - number):.2g} with {number} splits" for number in numbers)
    return (
        "Wilcoxon over splits: the same test with one value per random split, the mean of its trainings and scans. It "
        f"is not corrected, and never below {least}. Splits share scans and are not independent: the test over "
        "patients decides."
    )


def findings(analysis: Analysis) -> list[str]:
    """The answer in one sentence, then for every comparison; of many, for every method."""
    gains = [gain for row in analysis.study.methods if (gain := analysis.gain_of(row)) is not None]
    if not gains:
        return [_without_floors(analysis.study)]
    if len(gains) == 1:
        return [gain_sentence(analysis, gains[0])]
    sentences = [_answer(analysis.study, gains)]
    if len(gains) <= TOLD:
        return sentences + [gain_sentence(analysis, gain) for gain in gains]
    titles = list(dict.fromkeys(gain.row.title for gain in gains))
    by_title = [[gain for gain in gains if gain.row.title == title] for title in titles]
    by_title.sort(key=lambda own: -sum(gain.verdict == GAIN for gain in own) / len(own))
    sentences += [_method_sentence(own) for own in by_title[:LISTED]]
    if len(by_title) > LISTED:
        sentences.append(f"{len(by_title) - LISTED} more methods are in the table.")
    return sentences


def _answer(study: Study, gains: Sequence[Gain]) -> str:
    """How many gains there are, and the highest difference in full."""
    n_gain, n_loss = (sum(gain.verdict == kind for gain in gains) for kind in (GAIN, LOSS))
    few = sum(gain.verdict.startswith("too few") for gain in gains)
    text = (
        f"{n_gain or 'None'} of {len(gains)} comparisons {'show' if n_gain > 1 else 'shows'} a measurable gain in Dice "
    )
    text += "over the matched floor"
    counts = ((n_loss, "a measurable loss"), (few, "too few cases to tell"))
    more = [f"{number} {what}" for number, what in counts if number]
    text += f" ({', '.join(more)})" if more else ""
    best = max(gains, key=lambda gain: (gain.verdict == GAIN, gain.difference))
    interval = f" {interval_text(best.low, best.high, 1, 100)}" if best.low is not None else ""
    which = "largest" if n_gain else "highest difference"  # with its sign: losses may be larger
    text += f"; the {which} is that of {best.row.title} ({scope(study, best.row)}): "
    text += f"{points(best.difference)} points{interval}"
    if best.closed is not None and best.closed.share is not None:
        text += f", {share_text(best)} of the gap to the ceiling"
    return f"{text}." if n_gain else f"{text}, {best.verdict}."


def _method_sentence(gains: Sequence[Gain]) -> str:
    """All comparisons of one method."""
    least, most = min(gain.difference for gain in gains), max(gain.difference for gain in gains)
    n_gain, n_loss = (sum(gain.verdict == kind for gain in gains) for kind in (GAIN, LOSS))
    span = points(least) if points(least) == points(most) else f"{points(least)} to {points(most)}"
    text = f"{gains[0].row.title}: {span} points over its matched floor, "
    text += f"a measurable gain in {n_gain} of {len(gains)} comparisons"
    text += f", a measurable loss in {n_loss}" if n_loss else ""
    shares = [gain.closed.share for gain in gains if gain.closed is not None and gain.closed.share is not None]
    if shares:
        low, high = (number_text(value, 0, 100) for value in (min(shares), max(shares)))
        text += (
            f"; {low} % of the gap to the ceiling" if low == high else f"; {low} to {high} % of the gap to the ceiling"
        )
    return f"{text}."


def _without_floors(study: Study) -> str:
    if not study.methods:
        return "No row of this study is a method that uses unlabeled scans: it states results and compares nothing."
    if not any(study.reference(row, "matched_floor") for row in study.methods):
        return (
            "No matched floor is given (the same batches with the unsupervised weight at 0): this study cannot tell a "
            "gain from the unlabeled scans' loss from one of batch size, batch norm or network."
        )
    return "No method has a scored training in common with its matched floor yet: nothing can be compared."


# -------------------------------------------------------------------------------------------------------- warnings


def used_settings(row: LoadedRow) -> dict[str, Any]:
    """What the row was given, and the number format that its trainings came to step in."""
    formats = sorted({str(each.record["precision"]["format"]) for each in row.trained if _has_format(each.record)})
    return {**row.row.settings, **({"number format used": " and ".join(formats)} if formats else {})}


def _has_format(record: Mapping[str, Any]) -> bool:
    precision = record.get("precision")
    return isinstance(precision, Mapping) and precision.get("format") is not None


def warnings(analysis: Analysis) -> list[str]:
    """Missing and unfinished trainings, rows that differ in more than the question, numbers that cannot be."""
    study = analysis.study
    return [
        *_missing(study),
        *_unfinished(study),
        *_differences(study),
        *_impossible(analysis),
        *_few_trainings(analysis),
    ]


def _missing(study: Study) -> list[str]:
    if not study.missing:
        return []
    rows = {row.row.name: row for row in study.rows}
    told = []
    for run, reason in study.missing[:LISTED]:
        row = rows[run.row]
        split = f", {run.split}" if run.split else ""
        told.append(f"{row.title} ({scope(study, row)}{split}, seed {run.seed}): {reason}")
    more = f"; and {len(study.missing) - LISTED} more" if len(study.missing) > LISTED else ""
    total = len(study.missing) + sum(len(row.trained) for row in study.rows)
    return [
        f"{len(study.missing)} of {plural(total, 'training')} {'is' if len(study.missing) == 1 else 'are'} missing. "
        f"{'; '.join(told)}{more}. Rows are compared over the trainings that both have."
    ]


def _unfinished(study: Study) -> list[str]:
    found = []
    for row in study.rows:
        for each in row.trained:
            if each.training is not None and each.training.unfinished:
                found.append(
                    f"{row.title} ({scope(study, row)}, seed {each.run.seed}): iteration {each.training.iteration} of "
                    f"{each.training.max_iterations}"
                )
    if not found:
        return []
    more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return [f"Unfinished trainings are scored as they are: {'; '.join(found[:LISTED])}{more}."]


def _differences(study: Study) -> list[str]:
    """One sentence per pair of titles and difference, for all data and numbers of labels in which it occurs."""
    found: dict[str, list[str]] = {}
    for row, other, role in _pairs(study):
        one, two = used_settings(row), used_settings(other)
        parts = [
            f"{key} ({_shown(one.get(key))} and {_shown(two.get(key))})"
            for key in sorted(one.keys() | two.keys())
            if one.get(key) != two.get(key) and key not in BY_ROLE[role]
        ]
        if parts:
            text = f"{row.title} and {other.title} differ in {QUESTIONS[role]}: {enumerated(parts, LISTED)}"
            found.setdefault(text, []).append(scope(study, row))
    sentences = [
        f"{text}. The difference of their scores is due to all of it ({'; '.join(dict.fromkeys(places))})."
        for text, places in list(found.items())[:LISTED]
    ]
    if len(found) > LISTED:
        sentences.append(
            f"{len(found) - LISTED} more pairs of rows differ in their settings; see the table of settings."
        )
    return sentences


def _pairs(study: Study) -> Iterable[tuple[LoadedRow, LoadedRow, Role]]:
    """Rows that are read against each other."""
    roles: tuple[Role, ...] = ("matched_floor", "no_pool", "floor", "ceiling")
    for row in study.methods:
        for role in roles:
            other = study.reference(row, role)
            if other is not None:
                yield row, other, role
    for rows in study.groups.values():
        methods = [row for row in rows if row.row.role == "method"]
        for number, row in enumerate(methods):
            same = [other for other in methods[:number] if other.row.n_labeled == row.row.n_labeled]
            if same:  # against the first: what all have in common is said once
                yield same[0], row, "method"


def _shown(value: Any) -> str:
    return "not stated" if value is None else str(value)


def _impossible(analysis: Analysis) -> list[str]:
    sentences = []
    failed = [check for check in analysis.checks if not check.passed]
    if failed:
        names = enumerated(sorted({check.row for check in failed})[:LISTED])
        sentences.append(
            f"Dice and Jaccard of {plural(len(failed), 'evaluation')} do not belong together ({names}): Jaccard of a "
            "mask is D / (2 \u2212 D). Score them again."
        )
    for figure in analysis.study.quoted:
        said = jaccard_check(figure)
        if said not in ("", "consistent"):
            sentences.append(f"Quoted: {figure.title}, {figure.dataset}, {figure.source}: {said}.")
    return sentences


def _few_trainings(analysis: Analysis) -> list[str]:
    gains = [gain for row in analysis.study.methods if (gain := analysis.gain_of(row)) is not None]
    once = sum(gain.n_trainings == 1 for gain in gains)
    sentences = []
    if once:
        who = "Every comparison rests" if once == len(gains) else f"{once} of {len(gains)} comparisons rest"
        sentences.append(
            f"{who} on one training of each row: {'their intervals say' if once > 1 else 'its interval says'} nothing "
            "about another seed. Repeat with more seeds before you conclude."
        )
    if any(gain.borrowed for gain in gains):
        sentences.append(
            "The ceiling lacks seeds that methods have: there, the mean over its trainings stands for it, and the "
            "interval of the share is too narrow."
        )
    return sentences


def facts(study: Study) -> list[str]:
    """Machines and versions behind the numbers, each with its number of trainings."""
    found: dict[str, int] = {}
    for row in study.rows:
        for each in row.trained:
            source = each.record if "versions" in each.record else each.meta
            versions, machine = source.get("versions") or {}, source.get("machine") or {}
            device = ", ".join(machine.get("cuda_devices") or []) or machine.get("cpu") or "unknown machine"
            packages = ", ".join(
                f"{name} {versions[name]}" for name in ("monai_ssl", "monai", "torch", "python") if versions.get(name)
            )
            text = f"{device}{f' ({packages})' if packages else ''}"
            found[text] = found.get(text, 0) + 1
    return [f"{text}: {plural(number, 'training')}" for text, number in sorted(found.items())]


def role_name(row: LoadedRow) -> str:
    """Role of a row in words."""
    return ROLE_NAMES[row.row.role]

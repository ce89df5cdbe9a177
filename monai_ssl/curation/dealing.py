"""Dealing cases to the lists of a datalist: seeded, by patient, the same on every machine."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.cases import Entry, case_name, case_names, image_files, name_order, split_suffix
from monai_ssl.errors import DataError, enumerated


def deal(
    names: Collection[str], n_testing: int, n_validation: int, seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Shuffle names and deal them to testing, then validation, then training.

    The order is ``numpy.random.RandomState(seed).permutation`` over the sorted names. The stream of ``RandomState`` is
    frozen: the split is the same with every NumPy.

    Args:
        names: of patients or cases, in any order.
        n_testing, n_validation: how many of them.
        seed: 0 to 2**32 - 1.

    Returns:
        names for testing, for validation and all others, each in shuffled order.

    Example:
        >>> deal(["a", "b", "c", "d"], n_testing=1, n_validation=0, seed=0)
        (['c'], [], ['d', 'b', 'a'])
    """
    ordered = sorted(names)
    order = [ordered[index] for index in np.random.RandomState(seed).permutation(len(ordered))]
    return order[:n_testing], order[n_testing : n_testing + n_validation], order[n_testing + n_validation :]


@dataclass(frozen=True)
class Sides:
    """Names on the sides of one split, each in shuffled order; ``rest`` trains, or joins the unlabeled pool."""

    testing: list[str]
    validation: list[str]
    rest: list[str]


def deal_folds(names: Collection[str], n_testing: int, n_validation: int | None, folds: int, seed: int) -> list[Sides]:
    """Deal names to testing, which all folds share, and to the validation lists of the folds, which share nothing.

    The order is that of :func:`deal`. In every fold the others follow from behind its validation list on, around the
    circle: the first few of them, which have labels, differ from fold to fold. The first fold is what :func:`deal`
    gives for as many validation names.

    Args:
        names: of patients or cases, in any order.
        n_testing: how many of them are for testing.
        n_validation: names per validation list; None deals all names that testing leaves.
        folds: how many folds.
        seed: 0 to 2**32 - 1.

    Returns:
        the sides of every fold.

    Example:
        >>> for fold in deal_folds("abcdef", n_testing=1, n_validation=None, folds=2, seed=0):
        ...     print(fold)
        Sides(testing=['f'], validation=['c', 'b'], rest=['d', 'a', 'e'])
        Sides(testing=['f'], validation=['d', 'a', 'e'], rest=['c', 'b'])
    """
    testing, _, order = deal(names, n_testing, 0, seed)
    if n_validation is None:
        starts = [number * len(order) // folds for number in range(folds + 1)]
    else:
        starts = [number * n_validation for number in range(folds + 1)]
    return [Sides(testing, order[start:end], order[end:] + order[:start]) for start, end in itertools.pairwise(starts)]


@dataclass(frozen=True)
class Numbers:
    """How many labeled cases (or patients) each list gets; None: all that the others leave."""

    labeled: int | None
    validation: int | None
    testing: int


def settled_numbers(
    total: int, n_labeled: int | None, n_validation: int | None, n_testing: int, unit: str = "cases"
) -> Numbers:
    """The numbers that were asked for, checked, and the default for those that were not.

    Args:
        total: labeled cases there are.
        n_labeled: None takes all that validation and testing leave.
        n_validation: None takes a fifth of the labeled ones, as far as ``n_labeled`` leaves some.
        n_testing: test cases.
        unit: what is counted, for messages.

    Raises:
        DataError: when there are not that many.

    Example:
        >>> settled_numbers(20, None, None, 4)
        Numbers(labeled=12, validation=4, testing=4)
    """
    testing = count("n_testing", n_testing, 0, total - 1, f" ({total} {unit} have labels and one must train)")
    if n_labeled is not None:
        rule = f" ({total} {unit} have labels, {testing} are for testing)"
        n_labeled = count("n_labeled", n_labeled, 1, total - testing, rule)
    least = n_labeled if n_labeled is not None else 1
    if n_validation is None:
        # a fifth, but never at the cost of the labels that were asked for
        validation = min(max(1, round(0.2 * total)), total - testing - least)
    else:
        rule = f" ({total} {unit} have labels, {testing} are for testing, {least} for training)"
        validation = count("n_validation", n_validation, 0, total - testing - least, rule)
    return Numbers(total - testing - validation if n_labeled is None else n_labeled, validation, testing)


def folds_numbers(
    total: int, n_labeled: int | None, n_validation: int | None, n_testing: int, folds: int, unit: str = "cases"
) -> Numbers:
    """The numbers that were asked for of a cross-validation, checked.

    Args:
        total: labeled cases there are.
        n_labeled: labeled training cases of every fold.
        n_validation: validation cases of every fold; the lists share no case.
        n_testing: test cases, the same in every fold.
        folds: how many.
        unit: what is counted, for messages.

    Raises:
        DataError: when there are not that many.

    Example:
        >>> folds_numbers(20, 8, None, 4, 5)
        Numbers(labeled=8, validation=None, testing=4)
    """
    folds = count("folds", folds, 2, total, f" ({total} {unit} have labels)")
    testing = count("n_testing", n_testing, 0, total - folds, f" ({total} {unit} have labels, one per fold validates)")
    if n_validation is None:
        largest = -(-(total - testing) // folds)
    else:
        rule = f" ({total} {unit} have labels, {testing} are for testing, and {folds} folds share none)"
        n_validation = largest = count("n_validation", n_validation, 1, (total - testing) // folds, rule)
    if n_labeled is not None:
        rule = f" ({total} {unit} have labels, {testing} are for testing, up to {largest} of a fold for validation)"
        n_labeled = count("n_labeled", n_labeled, 1, total - testing - largest, rule)
    return Numbers(n_labeled, n_validation, testing)


def count(argument: str, value: Any, least: int, most: int | None = None, rule: str = "") -> int:
    """``value``, an integer from ``least`` to ``most``; anything else is a :class:`DataError`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise DataError(f"{argument} must be an integer of at least {least}, got {value!r}: choose another number")
    if most is not None and value > most:
        raise DataError(f"{argument} must be at most {most}{rule}, got {value}: ask for fewer")
    return int(value)


def by_patient(
    entries: Sequence[Entry], root: Path, pattern: str | None, table: str | Path | None
) -> dict[str, list[Entry]]:
    """Cases by patient; without pattern and table every case is a separate patient.

    Args:
        entries: the cases.
        root: folder of the images.
        pattern: regular expression that finds the patient in a case's name or path.
        table: a CSV file with the columns ``case`` and ``patient``.

    Raises:
        DataError: when a case has no patient, or pattern or table are malformed.
    """
    if table is not None:
        if pattern is not None:
            raise DataError("patient_pattern and patients both say who the patient is: give one of the two")
        return _patients_of_table(entries, root, Path(table).expanduser())
    if pattern is None:
        single: dict[str, list[Entry]] = {}
        for entry in entries:
            single.setdefault(name_order(os.path.relpath(image_files(entry)[0], root)), []).append(entry)
        return single
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise DataError(
            f"patient_pattern must be a regular expression, got {pattern!r} ({error}): correct it"
        ) from error
    groups: dict[str, list[Entry]] = {}
    missed = []
    for entry in entries:
        # the name first; where every patient has a folder, the path below the images
        relative = os.path.relpath(image_files(entry)[0], root).replace(os.sep, "/")
        match = compiled.search(name_order(case_name(entry))) or compiled.search(name_order(relative))
        patient = "" if match is None else next((group for group in match.groups() if group), match[0])
        if not patient:
            missed.append(case_name(entry))
        groups.setdefault(patient, []).append(entry)
    if missed:
        raise DataError(
            f"patient_pattern must find the patient in every name, got {pattern!r}, which misses {len(missed)} of "
            f"{len(entries)}: {enumerated(missed)}; correct it"
        )
    return groups


def _patients_of_table(entries: Sequence[Entry], root: Path, path: Path) -> dict[str, list[Entry]]:
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise DataError(f"patients: {path} is a workbook; save the sheet as CSV and name that file")
    try:
        text = _decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"patients: {path} must be a CSV file that can be read ({type(error).__name__})") from error
    lines = text.splitlines()
    separators = [mark for mark in (";", "\t", ",") if lines and mark in lines[0]]
    rows = csv.DictReader(lines, delimiter=separators[0] if separators else ",", skipinitialspace=True)
    rows.fieldnames = [str(name or "").strip().strip('"').lower() for name in rows.fieldnames or ()]
    if not {"case", "patient"} <= set(rows.fieldnames):
        shown = ", ".join(rows.fieldnames) or "none"
        raise DataError(f"{path}: must have the columns case and patient, got {shown[:100]}: add a line of headings")
    known: dict[str, str] = {}
    for row in rows:
        given, patient = (row["case"] or "").strip(), (row["patient"] or "").strip()
        if not given and not patient:  # an empty line of the sheet
            continue
        case = name_order(split_suffix(given.replace("\\", "/").rstrip("/"))[0])
        if not case or not patient:
            raise DataError(f"{path}: line {rows.line_num} must name a case and a patient, and one is empty")
        if known.setdefault(case, patient) != patient:
            raise DataError(f"{path}: a case has one patient, got two in line {rows.line_num} and before")
    last = [case.rpartition("/")[2] for case in known]
    files = {name: patient for name, patient in zip(last, known.values(), strict=True) if last.count(name) == 1}
    groups: dict[str, list[Entry]] = {}
    missed = []
    for entry, names in zip(entries, _names_in_tables(entries, root), strict=True):
        # the very name or path, else the file's name in a path of another machine
        patient = next((table[name] for table in (known, files) for name in names if name in table), None)
        if patient is None:
            missed.append(names[0] if names else case_name(entry))
        groups.setdefault(patient or "", []).append(entry)
    if missed:
        raise DataError(
            f"{path}: must name the patient of every case, misses {len(missed)} of {len(entries)}: {enumerated(missed)}"
        )
    return groups


def _names_in_tables(entries: Sequence[Entry], root: Path) -> list[list[str]]:
    """By what names a table may call each case: its own, its path, its folder; none that two cases share."""
    candidates = []
    for entry, unique in zip(entries, case_names(entries), strict=True):
        file = Path(os.path.abspath(image_files(entry)[0]))
        place = Path(os.path.relpath(file, root)).as_posix()
        parts = [*root.parts[1:], *place.split("/")]
        paths = ["/".join(parts[first:]) for first in range(len(parts))]
        own = [case_name(entry), unique, *(split_suffix(path)[0] for path in paths[::-1])]
        folders = ["/".join(parts[first:-1]) for first in range(len(parts) - 1)][::-1]
        candidates.append(list(dict.fromkeys(map(name_order, [*own, *folders]))))
    shared = Counter(name for names in candidates for name in names)
    return [[name for name in names if shared[name] == 1] for names in candidates]


def _decoded(content: bytes) -> str:
    """Text as Excel and LibreOffice write it: UTF-8 with and without a mark, UTF-16, or the code page of old Windows.

    Raises:
        UnicodeDecodeError: when it is none of these.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def with_labels(groups: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Patients of whom a case has a label."""
    return [name for name, group in groups.items() if any("label" in entry for entry in group)]


def lists_of(
    groups: Mapping[str, Sequence[Entry]], sides: Sides, n_labeled: int | None
) -> tuple[dict[str, list[Entry]], list[str]]:
    """The four lists of a datalist, and the names of cases that are in none.

    Args:
        groups: cases by patient, see :func:`by_patient`.
        sides: where the patients with labels are.
        n_labeled: how many of ``sides.rest`` train, the first ones; those beyond become unlabeled. None: all.

    Returns:
        the lists; and unlabeled scans of patients in validation or testing, which would be a leak in the pool.
    """
    side = dict.fromkeys(sides.testing, "testing") | dict.fromkeys(sides.validation, "validation")
    side |= dict.fromkeys(sides.rest[:n_labeled], "training")
    labeled = (*sides.testing, *sides.validation, *sides.rest)
    lists: dict[str, list[Entry]] = {"training": [], "unlabeled": [], "validation": [], "testing": []}
    left_out = []
    for name in (*labeled, *sorted(set(groups) - set(labeled))):
        section = side.get(name, "unlabeled")
        for entry in sorted(groups[name], key=lambda entry: name_order(image_files(entry)[0])):
            if section != "unlabeled" and "label" in entry:
                lists[section].append(dict(entry))
            elif section in ("validation", "testing"):
                left_out.append(case_name(entry))
            else:
                lists["unlabeled"].append({"image": entry["image"]})
    return lists, left_out

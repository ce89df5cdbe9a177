"""Which scans are of one patient: as a datalist says, or as names do.

Scans of one patient are not independent. They belong on one side of a split, and intervals and tests count them once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_ssl.data.cases import Entry, case_name, case_names, image_files

# before the name of a case whose patient nobody names, so that it is nobody else's
OWN = "case:"
# what tells one scan of a patient from another, at the end of a name or before further words
_VISITS = ("visit", "session", "ses", "timepoint", "time", "tp", "frame", "phase", "scan", "baseline", "followup",
           "day", "week", "month", "year", "rep", "run")  # fmt: skip
_VISIT = re.compile(rf"(?i)(?<=[^\W_])[-_. /]?({'|'.join(_VISITS)})[-_. ]?\d*(?=$|[-_. /])")


def visits(names: Sequence[str]) -> dict[str, list[str]]:
    """Cases whose names say that they are scans of one patient: what the names share -> the names.

    Args:
        names: of cases, or their paths with ``/`` between folders.

    Example:
        >>> visits(["MRN5732_visit1", "MRN5732_visit2", "MRN5801_visit1", "case_07"])
        {'MRN5732': ['MRN5732_visit1', 'MRN5732_visit2']}
    """
    groups: dict[str, list[str]] = {}
    told: dict[str, set[str]] = {}
    for name in names:
        match = _VISIT.search(name)
        if match is not None:
            groups.setdefault(name[: match.start()], []).append(name)
            told.setdefault(name[: match.start()], set()).add(match[0])
    if len(groups) == 1 and len(groups) < len(names) == sum(map(len, groups.values())):
        return {}  # what all names share is no patient
    # several files in one folder "scan" need not be one patient's
    one_folder = {patient for patient, texts in told.items() if len(texts) == 1 and min(texts).startswith("/")}
    return {patient: found for patient, found in groups.items() if len(found) > 1 and patient not in one_folder}


def visit_names(entries: Sequence[Entry]) -> list[str]:
    """What :func:`visits` should look at: the cases' names, or their paths where only folders tell of visits.

    Args:
        entries: the cases, of one data set.
    """
    names = [case_name(entry) for entry in entries]
    if not entries or (len(set(names)) == len(names) and visits(names)):
        return names
    parents = [Path(os.path.abspath(image_files(entry)[0])).parent for entry in entries]
    try:
        root = os.path.commonpath(parents)
    except ValueError:  # on two drives of Windows
        return [(parent / name).as_posix() for parent, name in zip(parents, names, strict=True)]
    return [parent.relative_to(root).joinpath(name).as_posix() for parent, name in zip(parents, names, strict=True)]


def visit_pattern(names: Sequence[str]) -> str:
    """A regular expression that finds the patient in names of :func:`visits`, and in names without a visit.

    Example:
        >>> re.search(visit_pattern(["a1_ses-02", "a1_ses-03"]), "b7_ses-01")[1]
        'b7'
        >>> re.search(visit_pattern(["a1/ses-02", "a1/ses-03"]), "b7/ses-01/t1.nii.gz")[1]
        'b7'
    """
    matches = [match for name in names if (match := _VISIT.search(name))]
    words = "|".join(sorted({match[1].lower() for match in matches}))
    if any("/" in name for name in names):
        # a slash, which no case's name holds: the path is searched
        return rf"(?i)^(.+?)(?:[-_. ]?/?(?:{words})[-_. ]?\d*(?:/|[-_. ].*/)|/(?:{words})[-_. ]?\d*\.|/[^/]*$)"
    return rf"(?i)^(.+?)(?:[-_. ]?(?:{words})[-_. ]?\d*(?:$|[-_. ].*))?$"


def told_patients(entries: Sequence[Entry], declared: Mapping[str, str] | None = None) -> dict[str, str]:
    """The patient of every case of which a datalist or names tell.

    Names count where they cannot mean a site or a kind of scan instead: of such there are few with many scans each, of
    patients many with few. Where a datalist declares some patients, names only tell who else is one of them.

    Args:
        entries: all cases of a data set; a part of them may hold too few names to tell.
        declared: first image file of a case -> patient, as the datalist says.

    Returns:
        first image file of a case -> patient.

    Example:
        >>> entries = [{"image": f"/d/{name}.nii"} for name in ("p1_frame01", "p1_frame12", "p2_frame01", "x")]
        >>> told_patients(entries)
        {'/d/p1_frame01.nii': 'p1', '/d/p1_frame12.nii': 'p1'}
        >>> told_patients(entries, {"/d/p1_frame01.nii": "7", "/d/x.nii": "8"})
        {'/d/p1_frame01.nii': '7', '/d/x.nii': '8', '/d/p1_frame12.nii': '7'}
    """
    files = [image_files(entry)[0] for entry in entries]
    names = visit_names(entries)
    file_of = dict(zip(names, files, strict=True))
    groups = visits(names)
    found = {file: declared[file] for file in files if file in declared} if declared else {}
    if found:
        for members in groups.values():
            known = {found[file_of[name]] for name in members if file_of[name] in found}
            if len(known) == 1:
                patient = known.pop()
                for name in members:
                    found.setdefault(file_of[name], patient)
        return found
    stems = {name[: match.start()] for name in names if (match := _VISIT.search(name))}
    if groups and len(stems) >= max(map(len, groups.values())):
        return {file_of[name]: patient for patient, members in groups.items() for name in members}
    return {}


def patients_of(entries: Sequence[Entry], known: Mapping[str, str] | None = None) -> list[str]:
    """The patient of every case; one of whom nothing is known is a patient of its own.

    Args:
        entries: cases.
        known: first image file of a case -> patient (:meth:`~monai_ssl.data.Datalist.known_patients`); None: as names
            of these cases tell.

    Returns:
        in the order of ``entries``, a text for each; cases of one patient have the same.

    Example:
        >>> patients_of([{"image": "/d/a.nii"}, {"image": "/d/b.nii"}], {"/d/a.nii": "7", "/d/b.nii": "7"})
        ['7', '7']
        >>> patients_of([{"image": "/d/a.nii"}])
        ['case:a']
    """
    told = told_patients(entries) if known is None else known
    names = case_names(entries)
    return [told.get(image_files(entry)[0], OWN + name) for entry, name in zip(entries, names, strict=True)]

"""Which scans are of one patient: as a datalist says, or as names do.

Scans of one patient are not independent. They belong on one side of a split, and intervals and tests count them once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_ssl.data.cases import Entry, case_name, case_names, image_files

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
    root = os.path.commonpath(parents)
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


def patients_of(entries: Sequence[Entry], declared: Mapping[str, str] | None = None) -> list[str]:
    """The patient of every case; one of whom nothing is known is a patient of its own, called as the case.

    Args:
        entries: of one or of several lists of a data set.
        declared: first image file of a case -> patient, as the datalist says
            (:attr:`~monai_ssl.data.Datalist.patients`). Where it says nothing of any case, names tell (:func:`visits`).

    Returns:
        names in the order of ``entries``.

    Example:
        >>> patients_of([{"image": f"/d/{name}.nii"} for name in ("p1_frame01", "p1_frame12", "p2_frame01")])
        ['p1', 'p1', 'p2_frame01']
        >>> patients_of([{"image": "/d/a.nii"}, {"image": "/d/b.nii"}], {"/d/a.nii": "7", "/d/b.nii": "7"})
        ['7', '7']
    """
    files = [image_files(entry)[0] for entry in entries]
    own = case_names(entries)
    if declared and any(file in declared for file in files):
        return [declared.get(file, name) for file, name in zip(files, own, strict=True)]
    looked_at = visit_names(entries)
    told = {name: patient for patient, names in visits(looked_at).items() for name in names}
    return [told.get(name, case) for name, case in zip(looked_at, own, strict=True)]

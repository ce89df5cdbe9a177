"""Published splits: small files of identifiers, or sizes and a seed where no list was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monai_ssl.curation.dealing import deal
from monai_ssl.data.loading import PATIENT
from monai_ssl.errors import DataError, enumerated

SPLIT_DIR = Path(__file__).parent / "splits"


@dataclass(frozen=True)
class Split:
    """Which patients are for training (in the order of "the first N labeled"), validation and testing.

    Attributes:
        training, validation, testing: identifiers of patients (of cases, where a patient is one case).
        n_labeled: published number of labeled patients.
        origin: where the division is from, for the datalist.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...] = ()
    testing: tuple[str, ...] = ()
    n_labeled: int | None = None
    origin: str = ""


def available_splits() -> list[str]:
    """Names of the lists that ship with the package."""
    return sorted(path.stem for path in SPLIT_DIR.glob("*.yaml"))


def load_split(name: str | Path) -> Split:
    """Read a list of identifiers.

    Args:
        name: one of :func:`available_splits`, or the path of your own YAML with the keys ``training``, ``validation``,
            ``testing`` (lists of identifiers) and ``n_labeled``.

    Raises:
        DataError: when there is no such list or it is malformed.

    Example:
        >>> split = load_split("acdc")
        >>> len(split.training), len(split.validation), len(split.testing), split.training[0]
        (70, 10, 20, 'patient099')
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = SPLIT_DIR / f"{name}.yaml"
        if not path.is_file():
            raise DataError(
                f"split: must be one of {', '.join(available_splits())} or the path of a .yaml, got {name!r}"
            )
    try:
        # BaseLoader: identifiers such as 1E05 stay what they are
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(f"{path}: cannot read the split ({error.strerror}); check the path") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None
    keys = ("training", "validation", "testing")
    lists = {key: content.get(key) or [] for key in keys} if isinstance(content, dict) else {}
    if not lists or not lists["training"] or not all(isinstance(value, list) for value in lists.values()):
        raise DataError(f"{path}: a split must map training, validation and testing to lists, training not empty")
    everyone = [str(item) for value in lists.values() for item in value]
    if repeated := sorted({item for item in everyone if everyone.count(item) > 1}):
        raise DataError(f"{path}: an identifier may appear once, got {enumerated(repeated)} twice")
    number = content.get("n_labeled")
    if number is not None and not (str(number).isdigit() and int(number) > 0):
        raise DataError(f"{path}: n_labeled must be a positive integer, got {number!r}")
    return Split(
        **{key: tuple(str(item) for item in lists[key]) for key in keys},
        n_labeled=None if number is None else int(number),
        origin=f"published list {path.stem}" if path.parent == SPLIT_DIR else f"list {path.name}",
    )


def seeded_split(
    patients: Sequence[str], n_testing: int, n_validation: int = 0, n_labeled: int | None = None, seed: int = 2024
) -> Split:
    """Shuffle the patients and deal them to testing, validation and training: see :func:`deal`.

    Raises:
        DataError: when nobody would be left for training.

    Example:
        >>> seeded_split(["a", "b", "c", "d"], n_testing=1, seed=0)
        Split(training=('d', 'b', 'a'), validation=(), testing=('c',), n_labeled=None, origin='seed 0')
    """
    if n_testing + n_validation >= len(patients):
        raise DataError(
            f"split: {n_testing} for testing and {n_validation} for validation leave none of {len(patients)} for "
            "training; ask for fewer (--n_testing, --n_validation)"
        )
    testing, validation, training = deal(patients, n_testing, n_validation, seed)
    return Split(tuple(training), tuple(validation), tuple(testing), n_labeled, f"seed {seed}")


def sections(
    split: Split, cases: Mapping[str, Sequence[dict[str, Any]]], n_labeled: int | None, n_validation: int | None
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Entries of the four lists of a datalist, and remarks on whom the split names and the data lack.

    Args:
        split: who is where.
        cases: entries by patient; an entry without ``label`` can only be unlabeled.
        n_labeled: labeled patients, the first of the training list that have labels; None takes the published number.
        n_validation: patients for validation, the last of the training list, where the split has none; 0 for none.

    Raises:
        DataError: when more labeled patients are asked for than there are.
    """
    remarks = []
    listed = [*split.training, *split.validation, *split.testing]
    if absent := [patient for patient in listed if patient not in cases]:
        remarks.append(f"{len(absent)} of {len(listed)} patients of the split ({split.origin}) have no usable case: "
                       f"{enumerated(absent, 10)}")  # fmt: skip
    if extra := sorted(set(cases) - set(listed)):
        remarks.append(f"{len(extra)} patients are not in the split ({split.origin}) and left out: "
                       f"{enumerated(extra, 10)}")  # fmt: skip
    training = [patient for patient in split.training if patient in cases]
    validation = [patient for patient in split.validation if patient in cases]
    if n_validation and split.validation:
        raise DataError(f"n_validation: the split ({split.origin}) has its own validation patients; leave it out")
    if n_validation:
        if n_validation >= len(training):
            raise DataError(f"n_validation: must be below the {len(training)} training patients, got {n_validation}")
        training, validation = training[:-n_validation], training[-n_validation:]
    able = [patient for patient in training if any("label" in entry for entry in cases[patient])]
    wanted = n_labeled if n_labeled is not None else min(split.n_labeled or len(able), len(able))
    if not 1 <= wanted <= len(able):
        raise DataError(f"n_labeled: must be from 1 to the {len(able)} training patients with labels, got {wanted}")
    labeled = set(able[:wanted])
    result: dict[str, list[dict[str, Any]]] = {"training": [], "unlabeled": [], "validation": [], "testing": []}
    several = any(len(entries) > 1 for entries in cases.values())
    for patient in training:
        whose = {PATIENT: patient} if several else {}
        for entry in cases[patient]:
            if patient in labeled and "label" in entry:
                result["training"].append({**entry, **whose})
            else:
                result["unlabeled"].append({"image": entry["image"], **whose})
    bare = []
    for section, patients in (("validation", validation), ("testing", split.testing)):
        for patient in patients:
            for entry in cases.get(patient, ()):
                if "label" in entry:
                    result[section].append({**entry, PATIENT: patient} if several else entry)
                else:
                    bare.append(patient)
    if bare:
        remarks.append(f"{len(bare)} cases for validation or testing have no label and are left out: "
                       f"{enumerated(sorted(set(bare)), 10)}")  # fmt: skip
    return result, remarks

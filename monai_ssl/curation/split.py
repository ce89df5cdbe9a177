"""Write datalists: choose, once and reproducibly, which cases are labeled, unlabeled, for validation and testing."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.curation.dealing import (
    Numbers,
    Sides,
    by_patient,
    count,
    deal,
    deal_folds,
    folds_numbers,
    lists_of,
    settled_numbers,
    with_labels,
)
from monai_ssl.curation.layouts import described, modality_names
from monai_ssl.curation.pairing import find_folders, images_folder, is_decathlon, pair
from monai_ssl.data.cases import Entry, image_files
from monai_ssl.data.loading import PATIENT, fold_datalists, load_datalist
from monai_ssl.data.partial import DRAWN, KEYS
from monai_ssl.data.patients import patients_of, visit_names, visit_pattern, visits
from monai_ssl.data.reading import read_label
from monai_ssl.data.rules import map_advice
from monai_ssl.errors import OVERWRITE, DataError, enumerated
from monai_ssl.files import write_bytes
from monai_ssl.labels import IGNORE_LABEL

__all__ = ["SplitRequest", "infer_labels", "make_split"]

# beyond this many values, a "label" is an image that was taken for one
MAX_CLASSES = 256


@dataclass(frozen=True)
class SplitRequest:
    """What to make a datalist of, and how many cases go where.

    A folder may hold a Decathlon ``dataset.json``; ``imagesTr`` and ``labelsTr``, with or without nnU-Net's
    ``dataset.json``; ``images`` and ``labels``; images and labels side by side (``*_seg``, ``label_*``), one file per
    modality as BraTS has them; a BIDS data set; or images only, with ``labels`` naming the other folder.

    Names pair where they are equal after the words for image and label are dropped: ``a_0000`` with ``a``,
    ``a_image`` with ``a_seg``, ``img12`` with ``label12``. ``a_0000``, ``a_0001`` next to a label ``a`` are the
    channels of one case. Images without label become unlabeled. So do labeled cases beyond ``n_labeled``; their
    label files are neither opened nor named in the datalist. Of a Decathlon ``dataset.json``, images that are next to
    the listed ones join the unlabeled pool, and those of its ``test`` list are left out: they belong to the challenge.

    The labeled cases are shuffled only by ``seed`` (not by the file system's order or the place of the folder) and
    dealt to testing, validation, training and the unlabeled pool, in this order: with the same seed and the same
    ``n_validation`` and ``n_testing``, a larger ``n_labeled`` contains the smaller one.

    With ``folds`` there is a datalist per fold, ``datalist-fold1.json`` and so on, and an index of them,
    ``datalist-folds.json``. Testing is the same in all of them, every other labeled case validates in exactly one
    (with ``n_validation``: in one at most), and the labeled cases of a fold are the next ones in the shuffled order, so
    that they differ from fold to fold as well. Within a fold a larger ``n_labeled`` contains the smaller one.

    Attributes:
        source: a folder, searched with its subfolders, or a Decathlon ``dataset.json``.
        labels: folder of the labels, where it is not found by its name.
        output: the datalist; None writes ``datalist.json`` into the folder (next to the ``dataset.json``). With
            ``folds`` the name to which ``-fold1`` and so on are added.
        n_labeled: labeled training cases; None takes all that validation and testing leave.
        n_validation: validation cases; None takes a fifth of the labeled ones, as far as ``n_labeled`` leaves some.
        n_testing: test cases.
        folds: how many datalists of a cross-validation to write, at least 2; None: one datalist. ``n_validation`` then
            counts the validation cases of every fold; None deals all labeled cases that testing leaves.
        seed: of the shuffle.
        patient_pattern: regular expression that finds the patient in the case's name (its first group, or all of
            it), such as ``patient\\d+``; then the three numbers count *patients*, and no patient is on two sides.
        patients: instead of a pattern, a CSV file with the columns ``case`` (the case's name, with or without file
            suffix) and ``patient``.
        label_names: names of the classes by value; None takes those of the ``dataset.json``, else finds the values in
            the labels of the training part.
        label_map: value in the label files -> class, where they hold other numbers (masks of 0 and 255).
        ignore_label: value in the label files of voxels whose class nobody knows; None takes that of nnU-Net's
            ``dataset.json``.
        slices: ``"drawn"``: only the slices that hold a label were annotated, in every label; becomes a key of the
            entries, see :class:`monai_ssl.data.partial.Annotated`.
        description: text for the datalist; None describes the split.
        overwrite: replace an existing ``output``.

    Example:
        >>> request = SplitRequest("scans", n_labeled=8, n_validation=4, patient_pattern=r"patient\\d+")
        >>> request.write()  # doctest: +SKIP
        PosixPath('scans/datalist.json')
    """

    source: str | Path
    labels: str | Path | None = None
    output: str | Path | None = None
    n_labeled: int | None = None
    n_validation: int | None = None
    n_testing: int = 0
    folds: int | None = None
    seed: int = 0
    patient_pattern: str | None = None
    patients: str | Path | None = None
    label_names: Mapping[int, str] | None = None
    label_map: Mapping[int, int] | None = None
    ignore_label: int | None = None
    slices: str | None = None
    description: str | None = None
    overwrite: bool = False

    def write(self) -> Path:
        """Write the datalist. Paths in it are relative where the file lies below the datalist's folder, else absolute.

        Returns:
            path of the datalist; with ``folds`` of the index, whose datalists :func:`fold_datalists` gives.

        Raises:
            DataError: if the source is of no known form, a folder is missing or without images, names cannot be paired,
                more cases are asked for than are labeled, the pattern does not fit, ``output`` exists, or labels do not
                hold integers.
        """
        given = Path(self.source).expanduser()
        if given.is_file():
            if given.suffix.lower() != ".json":
                raise DataError(
                    f"source must be a folder or a dataset.json, got the file {given}: name the folder around it"
                )
            if self.labels is not None:
                raise DataError(
                    f"labels must be left out with a JSON source, got {str(self.labels)!r}: {given.name} names them"
                )
            return self._write(self._of_decathlon(given))
        if not given.is_dir():
            raise DataError(
                f"source must be an existing folder or dataset.json, got {str(self.source)!r}: check the path"
            )
        if self.labels is None and is_decathlon(given / "dataset.json"):
            return self._write(self._of_decathlon(given / "dataset.json"))
        return self._write(self._of_folder(given))

    def _of_folder(self, given: Path) -> _Source:
        if self.labels is None:
            images, labels = (Path(os.path.abspath(folder)) for folder in find_folders(given))
        else:
            # the images are in the folder that is named, or in a folder inside it
            labels = _folder("labels", self.labels)
            images = Path(os.path.abspath(images_folder(given)))
        target = self._target(Path(os.path.abspath(given)))
        entries = pair(images, labels)
        told = described(given) if self.labels is None else None
        for remark in told.remarks if told else ():
            warnings.warn(remark)
        first = image_files(entries[0])
        channels = (told.channels if told else []) or (modality_names(first) if len(first) > 1 else [])
        names = told.labels or None if told else None
        return _Source(entries, images, target, names, None, channels, told.ignore_label if told else None)

    def _of_decathlon(self, file: Path) -> _Source:
        listed = load_datalist(file)
        assert listed.path is not None
        if listed.validation or any("label" in entry for entry in listed.testing):
            raise DataError(
                f"{listed.path}: must list all labeled cases in 'training', got {len(listed.validation)} for "
                f"validation, {len(listed.testing)} for testing: it is a split already; use it, or start "
                "from the folder"
            )
        folder = listed.path.parent
        target = self._target(folder)
        entries = listed.training + listed.unlabeled
        return _Source(entries, folder, target, listed.labels or None, listed.description or None, listed.channels,
                       patients=listed.patients)  # fmt: skip

    def _write(self, source: _Source) -> Path:
        # who goes where
        groups = by_patient(source.entries, source.root, self.patient_pattern, self.patients)
        unit = "cases" if self.patient_pattern is None and self.patients is None else "patients"
        if unit == "cases" and source.patients:
            unit, groups = "patients", {}
            for entry, patient in zip(source.entries, patients_of(source.entries, source.patients), strict=True):
                groups.setdefault(patient, []).append(entry)
        if unit == "cases":
            names = visit_names(source.entries)
            if found := visits(names):
                some = enumerated([name for group in found.values() for name in group], 3)
                warnings.warn(
                    f"{len(found)} patients seem to have several scans ({some}): so that none is on two sides, pass "
                    f"--patient_pattern '{visit_pattern(names)}'"
                )
        total = len(with_labels(groups))
        if not total:
            text = f"must hold labeled cases, got {len(source.entries)} images and no label"
            raise DataError(f"{source.root}: {text}: add labels")
        seed = count("seed", self.seed, 0, 2**32 - 1)
        if self.folds is None:
            numbers = settled_numbers(total, self.n_labeled, self.n_validation, self.n_testing, unit)
            splits = [Sides(*deal(with_labels(groups), numbers.testing, numbers.validation or 0, seed))]
        else:
            numbers = folds_numbers(total, self.n_labeled, self.n_validation, self.n_testing, self.folds, unit)
            splits = deal_folds(with_labels(groups), numbers.testing, numbers.validation, self.folds, seed)
        dealt = [lists_of(groups, sides, numbers.labeled) for sides in splits]
        if left_out := list(dict.fromkeys(name for _, names in dealt for name in names)):
            warnings.warn(
                f"{len(left_out)} unlabeled images of patients in validation or testing are left out (using them would "
                f"be a leak): {enumerated(left_out)}"
            )

        if self.slices not in (None, DRAWN):
            raise DataError(
                f"slices must be {DRAWN!r}, got {self.slices!r}: list others in the entries of the datalist"
            )
        every = [entry for lists, _ in dealt for entries in lists.values() for entry in entries]
        for entry in (entry for entry in every if self.slices and "label" in entry):
            entry["slices"] = self.slices

        # what the classes are called; only labels that a training will read are opened
        label_names = source.label_names if self.label_names is None else self.label_names
        if label_names is None:
            ignored = source.ignore_label if self.ignore_label is None else self.ignore_label
            files = dict.fromkeys(str(entry["label"]) for lists, _ in dealt for entry in lists["training"])
            label_names = infer_labels(files, self.label_map, ignored)
        labels = _names(label_names)

        # numbers stand for the patients: a table may call them what no file should
        patients = {
            image_files(entry)[0]: str(number)
            for number, name in enumerate(sorted(groups) if unit == "patients" else (), 1)
            for entry in groups[name]
        }
        record = self._record(numbers, unit)
        contents = []
        for number, (lists, _) in enumerate(dealt, 1):
            fold = {} if self.folds is None else {"fold": number, "folds": self.folds}
            description = source.description if self.description is None else self.description
            if description is None:
                description = self._described(lists, unit, number)
            contents.append({
                "description": description,
                "labels": {str(value): labels[value] for value in sorted(labels)},
                "numClasses": len(labels),
                **({"modality": {str(i): name for i, name in enumerate(source.channels)}} if source.channels else {}),
                "split": record | fold,
                **{section: [_relative(entry, source.target.parent, patients) for entry in lists[section]]
                   for section in lists},
            })  # fmt: skip
        if self.folds is None:
            _write_json(source.target, contents[0])
            return source.target
        return self._write_folds(source.target, contents, record)

    def _write_folds(self, target: Path, contents: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> Path:
        """The datalists, then the index: as long as there is none, the folds are not complete."""
        index, *files = _fold_files(target, len(contents))
        if index.is_file():
            former = fold_datalists(index)
            index.unlink()
            for path in set(former) - set(files):  # of a split into more folds
                path.unlink(missing_ok=True)
        for path, content in zip(files, contents, strict=True):
            _write_json(path, content)
        sections = ("training", "unlabeled", "validation", "testing")
        folds = [
            {"fold": number, "datalist": path.name, **{section: len(content[section]) for section in sections}}
            for number, (path, content) in enumerate(zip(files, contents, strict=True), 1)
        ]
        _write_json(index, {"folds": folds, "split": {**record, "folds": len(contents)}})
        return index

    def _target(self, folder: Path) -> Path:
        named = folder / "datalist.json" if self.output is None else Path(self.output).expanduser()
        path = Path(os.path.abspath(named))
        if path.is_dir() or path.suffix.lower() != ".json":
            raise DataError(
                f"output must be a .json file, got {str(self.output)!r}: add a file name such as datalist.json"
            )
        if self.folds is not None:
            count("folds", self.folds, 2)
        for file in [path] if self.folds is None else _fold_files(path, self.folds):
            if file.exists() and not self.overwrite:
                raise DataError(f"output {file} exists already: choose another name, or replace it with {OVERWRITE}")
        return path

    def _described(self, lists: Mapping[str, Sequence[Entry]], unit: str, fold: int) -> str:
        text = ", ".join(f"{len(lists[section])} {section}" for section in lists) + f"; seed {self.seed}"
        if self.folds is not None:
            text += f", fold {fold} of {self.folds}"
        if unit == "cases":
            return text
        by = self.patient_pattern or ("as listed" if self.patients is None else Path(self.patients).name)
        return f"{text}, split by patient ({by})"

    def _record(self, numbers: Numbers, unit: str) -> dict[str, Any]:
        return {
            "seed": int(self.seed),
            "n_labeled": numbers.labeled,
            "n_validation": numbers.validation,
            "n_testing": numbers.testing,
            "unit": unit,
            "patient_pattern": self.patient_pattern,
            "patients": None if self.patients is None else Path(self.patients).name,
        }


@dataclass(frozen=True)
class _Source:
    """What was found: cases, the folder that they are in, the file to write, and what the source says itself."""

    entries: Sequence[Entry]
    root: Path
    target: Path
    label_names: Mapping[int, str] | None = None
    description: str | None = None
    channels: Sequence[str] = ()
    ignore_label: int | None = None
    patients: Mapping[str, str] = field(default_factory=dict)


def make_split(source: str | Path, **options: Any) -> Path:
    """``SplitRequest(source, **options).write()``.

    Args:
        source: the folder or the ``dataset.json``.
        **options: see :class:`SplitRequest`.

    Returns:
        path of the datalist.

    Raises:
        DataError: see :meth:`SplitRequest.write`.

    Example:
        >>> make_split("Task04_Hippocampus", n_labeled=10, n_validation=20)  # doctest: +SKIP
        PosixPath('Task04_Hippocampus/datalist.json')
    """
    return SplitRequest(source, **options).write()


def infer_labels(
    label_files: Iterable[str | Path], label_map: Mapping[int, int] | None = None, ignore_label: int | None = None
) -> dict[int, str]:
    """Classes that occur in label files: ``{0: "background", 1: "class 1", ...}``.

    Args:
        label_files: the files to read, all of them.
        label_map: value in the files -> class.
        ignore_label: value in the files that is no class.

    Returns:
        A name for every value, in ascending order, 0 always among them.

    Raises:
        DataError: if a file cannot be read, holds other than integers from 0, or too many values to be a label.

    Example:
        >>> infer_labels(["labels/a.nii.gz", "labels/b.nii.gz"])  # doctest: +SKIP
        {0: 'background', 1: 'class 1', 2: 'class 2'}
    """
    found: set[int] = {0}
    for file in label_files:
        try:
            array, _ = read_label(file, label_map, ignore_label)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        values = np.unique(array)
        if ignore_label is not None:
            values = values[values != IGNORE_LABEL]
        if not np.isfinite(values).all() or not np.array_equal(values, np.round(values)) or values.min(initial=0) < 0:
            odd = next(value for value in values if not np.isfinite(value) or value != np.round(value) or value < 0)
            raise DataError(
                f"{file}: a label must hold integers from 0, got {odd:g}: is it the label? If it was interpolated, "
                "resample it with nearest neighbor"
            )
        if len(values) > 2 and Path(file).suffix.lower() in (".jpg", ".jpeg"):
            raise DataError(
                f"{file}: a label must hold its classes exactly, got {len(values)} values in a JPEG, which changes "
                "them: threshold the masks and write them as PNG"
            )
        if len(values) > MAX_CLASSES:
            raise DataError(f"{file}: a label must hold few values, got {len(values)}: is it an image?")
        found.update(int(value) for value in values)
    if sorted(found) != list(range(len(found))):
        warnings.warn(
            f"label values should be 0, 1, 2, ... without gaps, got {sorted(found)}: pass --label_map "
            f"'{{{map_advice(sorted(found))}}}', --ignore_label {max(found)} if nobody knows the class of "
            "these voxels, or label_names if a class is merely absent from the training part"
        )
    return {value: "background" if value == 0 else f"class {value}" for value in sorted(found)}


def _folder(argument: str, value: str | Path) -> Path:
    path = Path(os.path.abspath(Path(value).expanduser()))
    if not path.is_dir():
        raise DataError(f"{argument} must be an existing folder, got {str(value)!r}: check the path")
    return path


def _fold_files(target: Path, folds: int) -> list[Path]:
    """The index, and the datalist of every fold."""
    width = len(str(folds))
    names = ["folds", *(f"fold{number:0{width}d}" for number in range(1, folds + 1))]
    return [target.with_name(f"{target.stem}-{name}.json") for name in names]


def _names(label_names: Any) -> dict[int, str]:
    rule = 'label_names must map values to names, like {1: "organ"}'
    if not isinstance(label_names, Mapping):
        raise DataError(f"{rule}, got {label_names!r}: correct it")
    names = {0: "background"}
    for value, name in label_names.items():
        if not re.fullmatch(r"\d+", str(value)) or not isinstance(name, str):
            raise DataError(f"{rule}, got {{{value!r}: {name!r}}}: correct it")
        names[int(value)] = name
    return names


def _relative(entry: Entry, folder: Path, patients: Mapping[str, str]) -> Entry:
    def one(file: str) -> str:
        path = Path(file)
        return path.relative_to(folder).as_posix() if folder in path.parents else path.as_posix()

    written = {
        key: value if key in KEYS else [one(file) for file in value] if isinstance(value, list) else one(value)
        for key, value in entry.items()
    }
    patient = patients.get(image_files(entry)[0])
    return written if patient is None else {**written, PATIENT: patient}


def _write_json(target: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:  # file names that are no Unicode survive only escaped
        encoded = (json.dumps(content, indent=1) + "\n").encode("ascii")
    try:
        write_bytes(target, encoded)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise DataError(f"output {target} cannot be written ({reason}): choose a folder that you may write") from error

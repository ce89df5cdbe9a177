"""Which scans each run of a study learns from, written as datalists into the study's folder.

Sets of labels are nested: the first N of the list. What a run may not know joins its pool, without the label. The
controls have pools of their own: copies of the labeled scans (``no_pool``), or the true labels (``oracle``).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.data.cases import Entry, case_names, image_files, result_suffix, split_suffix
from monai_ssl.data.datalist import SECTIONS, Datalist
from monai_ssl.data.loading import PATIENT, load_datalist
from monai_ssl.data.patients import patients_of
from monai_ssl.errors import DataError, enumerated, plural
from monai_ssl.files import write_text
from monai_ssl.reports.study.rows import RANDOM_SPLIT
from monai_ssl.runs.study.settings import DataSettings, SplitSettings, StudySettings

if TYPE_CHECKING:
    from monai_ssl.data.preset import Preset

LISTS, COPIES, TRUE_LABELS = "lists", "pool_copies", "true_labels"


@dataclass(frozen=True)
class Deal:
    """The cases of one data set in one split.

    Attributes:
        name: of the split or fold; "" where the datalist itself is taken.
        cases: all labels that a training may know are in ``training``.
        labels: image files of a case -> its labeled entry, of everything but what is scored.
    """

    name: str
    cases: Datalist
    labels: Mapping[tuple[str, ...], Entry]

    def with_labels(self, n: int) -> Datalist:
        """The first ``n`` labeled cases; the others join the pool without their labels."""
        away = [{"image": entry["image"]} for entry in self.cases.training[n:]]
        return replace(self.cases, training=self.cases.training[:n], unlabeled=[*self.cases.unlabeled, *away])

    def judges(self, section: str) -> list[str]:
        """The patient of every scored case."""
        return patients_of(self.cases.section(section), self.cases.known_patients())

    def all_labels(self) -> Datalist:
        """Every case whose label is known, and no pool."""
        known = [dict(found) for entry in self.cases.unlabeled if (found := self.labels.get(_key(entry)))]
        return replace(self.cases, training=[*self.cases.training, *known], unlabeled=[])

    def everything(self) -> Datalist:
        """Every case, labeled where anybody knows the label: what is checked before the first training."""
        rest = [entry for entry in self.cases.unlabeled if _key(entry) not in self.labels]
        return replace(self.all_labels(), unlabeled=rest)


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(os.path.abspath(file) for file in image_files(entry))


# ------------------------------------------------------------------------------------------------------- deals


def deals(name: str, data: DataSettings, study: StudySettings, folder: Path) -> list[Deal]:
    """The splits or folds of a data set; one without a name where the study asks for none.

    Args:
        name: of the data set in the study.
        data: where it is.
        study: what is asked for.
        folder: of the study.

    Raises:
        DataError: when a list or label is missing.
    """
    scans = Path(data.scans)
    if not scans.is_dir():
        raise DataError(f"data.{name}.scans: must be an existing folder, got {scans}")
    beside = _labels_beside(scans)
    if study.splits is not None:
        most = max(data.labels or study.labels)
        found = [_random(name, scans, study.splits, number, most, folder) for number in range(study.splits.number)]
    elif data.folds:
        found = [(f"fold{number}", load_datalist(fold, scans)) for number, fold in enumerate(data.folds, 1)]
    elif index := _index(data.datalist, scans):
        found = [(f"fold{number}", load_datalist(fold, scans)) for number, fold in enumerate(index, 1)]
    else:
        cases = load_datalist(data.datalist, scans)
        found = [("", cases)] if study.folds is None else folded(cases, study.folds, study.section)
    given = {} if data.all_labels is None else _labeled(load_datalist(data.all_labels, scans))
    return [_deal(split, cases, given or beside, study.section) for split, cases in found]


def _index(datalist: str, scans: Path) -> list[Path]:
    """The datalists that an index of folds names, see `monai-ssl split --folds`; none where it is a datalist."""
    for path in (scans / datalist, Path(datalist).expanduser()):
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8-sig"))
            except ValueError:
                return []  # whoever reads it as a datalist says what is wrong
            folds = content.get("folds") if isinstance(content, dict) and "training" not in content else None
            named = [fold.get("datalist") for fold in folds or () if isinstance(fold, dict)]
            return [path.parent / name for name in named if isinstance(name, str)]
    return []


def _deal(split: str, cases: Datalist, others: Mapping[tuple[str, ...], Entry], section: str) -> Deal:
    cases.require("training")
    cases.require(section)
    held = {_key(entry) for entry in (*cases.validation, *cases.testing)}
    known = {key: entry for key, entry in others.items() if key not in held} | _labeled(cases)
    return Deal(split, cases, known)


def _labeled(cases: Datalist) -> dict[tuple[str, ...], Entry]:
    return {_key(entry): entry for entry in cases.training if "label" in entry}


def _labels_beside(scans: Path) -> dict[tuple[str, ...], Entry]:
    """Labeled cases that a folder holds, whether a list names them or not; none where names do not pair."""
    from monai_ssl.curation.pairing import find_folders, pair

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return {_key(entry): entry for entry in pair(*find_folders(scans)) if "label" in entry}
        except DataError:
            return {}


def _random(
    name: str, scans: Path, splits: SplitSettings, number: int, n_labeled: int, folder: Path
) -> tuple[str, Datalist]:
    """One random split of all labeled cases of a folder, the test set drawn first."""
    from monai_ssl.runs.datasets import split

    path = folder / LISTS / f"{name}-split{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = split(
        scans,
        path,
        n_labeled=n_labeled,
        n_validation=splits.n_validation,
        n_testing=splits.n_testing,
        seed=splits.seed + number,
        patient_pattern=splits.patient_pattern,
        patients=splits.patients,
        preset=folder / LISTS / f".{name}-proposed.yaml",
        overwrite=True,
    )
    return f"{RANDOM_SPLIT}{number}", replace(made.datalist, dataset_dir=Path(os.path.abspath(scans)))


def folded(cases: Datalist, number: int, section: str) -> list[tuple[str, Datalist]]:
    """The labeled cases for training and validation dealt to folds; each fold is scored once and teaches otherwise.

    Patient ``i`` of the lists belongs to fold ``i mod number``, so that the order of the rest, and with it the nested
    sets of labels, stay those of the list. Unlabeled scans of patients that judge leave the pool of that fold.

    Raises:
        DataError: when there are fewer than two patients per fold.
    """
    labeled = [*cases.training, *cases.validation]
    known = cases.known_patients()
    every = patients_of([*labeled, *cases.unlabeled], known)
    patients, of_pool = every[: len(labeled)], every[len(labeled) :]
    order = list(dict.fromkeys(patients))
    if len(order) < 2 * number:
        unit = "labeled cases" if len(order) == len(labeled) else "patients with labels"
        told = "" if unit == "labeled cases" else f", as {'the list says' if cases.patients else 'names tell'}"
        advice = "ask for fewer" + (f", or say whose scans they are with {PATIENT!r}" if told else "")
        raise DataError(f"folds: {number} folds need {2 * number} {unit}, got {len(order)}{told}; {advice}")
    found = []
    for fold in range(number):
        judges = set(order[fold::number])
        out = [entry for entry, patient in zip(labeled, patients, strict=True) if patient in judges]
        rest = [entry for entry, patient in zip(labeled, patients, strict=True) if patient not in judges]
        pool = [entry for entry, patient in zip(cases.unlabeled, of_pool, strict=True) if patient not in judges]
        dealt = replace(cases, training=rest, unlabeled=pool, validation=[])
        setattr(dealt, section if section != "training" else "validation", out)
        found.append((f"fold{fold + 1}", dealt))
    return found


# ------------------------------------------------------------------------------------------------------- files


def write_list(cases: Datalist, path: Path) -> Path:
    """A datalist as a file, paths relative to the folder of the data; an equal file is left alone."""
    content: dict[str, Any] = {"description": cases.description}
    if cases.labels:
        content["labels"] = {str(value): name for value, name in cases.labels.items()}
    if cases.channels:
        content["modality"] = {str(number): name for number, name in enumerate(cases.channels)}
    known = _on_one_side(cases)
    for section in SECTIONS:
        content[section] = [
            _relative(entry, cases.dataset_dir)
            | ({PATIENT: patient} if (patient := known.get(image_files(entry)[0])) else {})
            for entry in cases.section(section)
        ]
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def _on_one_side(cases: Datalist) -> dict[str, str]:
    """Known patients, but for those whom only names tell and a user has put on two sides: `check` warns of them."""
    known = cases.known_patients()
    sides: dict[str, set[str]] = {}
    for section in SECTIONS:
        for entry in cases.section(section):
            if patient := known.get(image_files(entry)[0]):
                sides.setdefault(patient, set()).add("training" if section == "unlabeled" else section)
    return {file: patient for file, patient in known.items() if len(sides[patient]) == 1}


def _relative(entry: Entry, folder: Path | None) -> Entry:
    def one(file: str) -> str:
        path = Path(file)
        return path.relative_to(folder).as_posix() if folder is not None and path.is_relative_to(folder) else file

    return {
        key: [one(file) for file in value] if key == "image" and isinstance(value, list)
        else one(value) if key in ("image", "label") else value
        for key, value in entry.items()
    }  # fmt: skip


def labeled_as_pool(cases: Datalist, folder: Path) -> Datalist:
    """A pool of copies of the labeled scans: what a method gains from it, it gains without further scans.

    Copies, because no case may be in two lists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pool: list[Entry] = []
    for name, entry in zip(case_names(cases.training), cases.training, strict=True):
        copies = [_copy(Path(file), folder, f"{name}_copy", number) for number, file in enumerate(image_files(entry))]
        pool.append({"image": copies if isinstance(entry["image"], list) else copies[0]})
    return replace(cases, unlabeled=pool)


def _copy(source: Path, folder: Path, name: str, number: int) -> str:
    from monai_ssl.runs.identity import HEADERS

    if source.is_dir() or source.name.lower().endswith(HEADERS):
        # a series, or a header that names the file of its voxels: they stay together under their own names
        target = folder / f"{name}-{number}"
        if not target.is_dir():
            waiting = target.with_name(f".{target.name}-{os.getpid()}")
            if source.is_dir():
                shutil.copytree(source, waiting)
            else:
                waiting.mkdir()
                for file in source.parent.glob(f"{source.stem}.*"):
                    shutil.copyfile(file, waiting / file.name)
            waiting.rename(target)
        return str(target if source.is_dir() else target / source.name)
    target = folder / f"{name}{f'-{number}' if number else ''}{split_suffix(source.name)[1] or source.suffix}"
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        waiting = target.with_name(f".{os.getpid()}-{target.name}")
        shutil.copyfile(source, waiting)
        os.replace(waiting, target)
    return str(target)


def true_labels(deal: Deal, pool: Sequence[Entry], folder: Path, preset: Preset) -> Path:
    """A folder of the pool's true labels, as pseudo-labels are kept: classes of the preset, 255 where nobody knows.

    Raises:
        DataError: when a case of the pool has no label that anybody knows, or one of a part of it only.
    """
    from monai_ssl.data.partial import Annotated
    from monai_ssl.data.reading import read_label
    from monai_ssl.data.writing import write_nifti, write_picture

    known = [deal.labels.get(_key(entry)) for entry in pool]
    names = case_names(pool)
    if missing := [name for name, entry in zip(names, known, strict=True) if entry is None]:
        raise DataError(
            f"oracle: needs the true labels of the pool, {plural(len(missing), 'scan')} have none "
            f"({enumerated(missing, 3)}); leave the reference out, or name a datalist with all labels (all_labels)"
        )
    for name, entry in zip(names, known, strict=True):
        assert entry is not None
        if not Annotated.of(entry).whole:
            raise DataError(f"oracle: case {name} is labeled in part; leave the reference out")
        source = Path(str(entry["label"]))
        suffix = result_suffix(Path(image_files(entry)[0]).name)
        target = folder / f"{name}_seg{suffix}"
        if target.is_file() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns:
            continue
        import numpy as np

        values, affine = read_label(source, preset.label_map, preset.ignore_label)
        array = np.asarray(values[0]).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        if suffix != ".nii.gz":
            write_picture(target, array)
        else:
            write_nifti(target, array, np.eye(4) if affine is None else np.asarray(affine))
    return folder


def pool_has_labels(deal: Deal, pool: Sequence[Entry]) -> bool:
    """Whether the true label of every case of a pool is known."""
    return bool(pool) and all(_key(entry) in deal.labels for entry in pool)

"""Write datalists: choose, once and reproducibly, which cases are labeled, unlabeled, for validation and testing."""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.cases import IMAGE_SUFFIXES, Entry, case_name, image_files, split_suffix
from monai_ssl.data.loading import load_datalist
from monai_ssl.data.reading import read_label
from monai_ssl.errors import DataError, enumerated

__all__ = ["infer_labels", "make_split", "split_folder", "split_msd"]

FOLDER_PAIRS = (
    ("imagesTr", "labelsTr"),
    ("images", "labels"),
    ("image", "label"),
    ("imgs", "labels"),
    ("images", "masks"),
    ("images", "segmentations"),
    ("img", "lab"),
    ("img", "seg"),
)
# words that tell image from label and do not belong to the name of the case
IMAGE_WORDS = frozenset({"image", "images", "img", "im", "vol", "volume", "scan"})
LABEL_WORDS = frozenset(
    {"label", "labels", "lab", "lbl", "seg", "segmentation", "segmentations", "mask", "masks", "gt", "groundtruth"}
)
# beyond this many values, a "label" is an image that was taken for one
MAX_CLASSES = 256


def make_split(
    source: str | Path,
    labels: str | Path | None = None,
    output: str | Path | None = None,
    n_labeled: int | None = None,
    n_validation: int | None = None,
    n_testing: int = 0,
    seed: int = 0,
    patient_pattern: str | None = None,
    patients: str | Path | None = None,
    label_names: Mapping[int, str] | None = None,
    description: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a datalist from whatever the user has: a folder of scans or a Decathlon ``dataset.json``.

    A folder may hold a Decathlon ``dataset.json``; ``imagesTr`` and ``labelsTr``; ``images`` and ``labels``; images
    and labels side by side (``*_seg``, ``label_*``); or images only, with ``labels`` naming the other folder.

    Args:
        source: the folder or the ``dataset.json``.
        labels: folder of the labels, where it is not found by its name.
        output, n_labeled, n_validation, n_testing, seed, patient_pattern, patients: see :func:`split_folder`.
        label_names, description, overwrite: see :func:`split_folder`.

    Returns:
        Path of the datalist.

    Raises:
        DataError: if the source is of no known form, or as :func:`split_folder` and :func:`split_msd` do.

    Example:
        >>> make_split("Task04_Hippocampus", n_labeled=10, n_validation=20)  # doctest: +SKIP
        PosixPath('Task04_Hippocampus/datalist.json')
    """
    given = Path(source).expanduser()
    common: dict[str, Any] = {
        "output": output,
        "n_labeled": n_labeled,
        "n_validation": n_validation,
        "n_testing": n_testing,
        "seed": seed,
        "patient_pattern": patient_pattern,
        "patients": patients,
        "label_names": label_names,
        "description": description,
        "overwrite": overwrite,
    }
    if given.is_file():
        if given.suffix.lower() != ".json":
            raise DataError(
                f"source must be a folder or a dataset.json, got the file {given}: name the folder around it"
            )
        if labels is not None:
            raise DataError(f"labels must be left out with a JSON source, got {str(labels)!r}: {given.name} names them")
        return split_msd(given, **common)
    if not given.is_dir():
        raise DataError(f"source must be an existing folder or dataset.json, got {str(source)!r}: check the path")
    if labels is None and _is_msd(given / "dataset.json"):
        return split_msd(given / "dataset.json", **common)
    images, found = _find_folders(given)
    if output is None:
        common["output"] = given / "datalist.json"
    return split_folder(images, found if labels is None else labels, **common)


def _is_msd(path: Path) -> bool:
    """True for a Decathlon dataset.json; nnU-Net's has the same name and no list of cases."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError:
        return False
    except ValueError as error:
        raise DataError(f"{path}: must be a JSON file ({error}): correct it or move it away") from error
    return isinstance(content, dict) and isinstance(content.get("training"), list)


def _find_folders(root: Path) -> tuple[Path, Path]:
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    for images, labels in FOLDER_PAIRS:
        if images.lower() in folders and labels.lower() in folders:
            return folders[images.lower()], folders[labels.lower()]
    for images, labels in FOLDER_PAIRS:
        if images.lower() in folders:
            raise DataError(
                f"{root}: holds {folders[images.lower()].name} but no folder of labels such as {labels}: name it with "
                "--labels"
            )
    return root, root


def split_folder(
    images: str | Path,
    labels: str | Path | None = None,
    output: str | Path | None = None,
    n_labeled: int | None = None,
    n_validation: int | None = None,
    n_testing: int = 0,
    seed: int = 0,
    patient_pattern: str | None = None,
    patients: str | Path | None = None,
    label_names: Mapping[int, str] | None = None,
    description: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Pair images with labels by name, divide them and write the datalist.

    Names pair where they are equal after the words for image and label are dropped: ``a_0000`` with ``a``,
    ``a_image`` with ``a_seg``, ``img12`` with ``label12``. ``a_0000``, ``a_0001`` beside a label ``a`` are the
    channels of one case. Images without label become unlabeled. So do labeled cases beyond ``n_labeled``; their
    label files are neither opened nor named in the datalist.

    The labeled cases are shuffled by ``seed`` alone (not by the file system's order or the place of the folder) and
    dealt to testing, validation, training and the unlabeled pool, in this order: with the same seed and the same
    ``n_validation`` and ``n_testing``, a larger ``n_labeled`` contains the smaller one.

    Args:
        images: folder of the images, searched with its subfolders.
        labels: folder of the labels; None or the same folder where both lie together.
        output: the datalist; None writes ``datalist.json`` into the common folder of images and labels.
        n_labeled: labeled training cases; None takes all that validation and testing leave.
        n_validation: validation cases; None takes a fifth of the labeled ones, as far as ``n_labeled`` leaves some.
        n_testing: test cases.
        seed: of the shuffle.
        patient_pattern: regular expression that finds the patient in the case's name (its first group, or all of
            it), such as ``patient\\d+``; then the three numbers count *patients*, and no patient is on two sides.
        patients: instead of a pattern, a CSV file with the columns ``case`` (the case's name, with or without file
            suffix) and ``patient``.
        label_names: names of the classes by value; None finds the values in the labels of the training part.
        description: text for the datalist; None describes the split.
        overwrite: replace an existing ``output``.

    Returns:
        Path of the datalist. Paths in it are relative where the file lies below the datalist's folder, else absolute.

    Raises:
        DataError: if a folder is missing or without images, names cannot be paired, more cases are asked for than
            are labeled, the pattern does not fit, ``output`` exists, or labels do not hold integers.

    Example:
        >>> split_folder("images", "labels", n_labeled=8, n_validation=4, patient_pattern=r"patient\\d+")
        ... # doctest: +SKIP
        PosixPath('datalist.json')
    """
    image_dir = _folder("images", images)
    label_dir = image_dir if labels is None else _folder("labels", labels)
    if output is None:
        output = Path(os.path.commonpath([image_dir, label_dir])) / "datalist.json"
    target = _target(output, overwrite)
    entries = _pair(image_dir, label_dir)
    return _deal(
        entries, image_dir, target, n_labeled, n_validation, n_testing, seed, patient_pattern, patients, label_names,
        description,
    )  # fmt: skip


def split_msd(
    dataset_json: str | Path,
    output: str | Path | None = None,
    n_labeled: int | None = None,
    n_validation: int | None = None,
    n_testing: int = 0,
    seed: int = 0,
    patient_pattern: str | None = None,
    patients: str | Path | None = None,
    label_names: Mapping[int, str] | None = None,
    description: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Divide the labeled cases of a Medical Segmentation Decathlon ``dataset.json``.

    Images that lie beside the listed ones without being listed join the unlabeled pool. The images of its ``test``
    list, which have no labels, are left out: they belong to the challenge.

    Args:
        dataset_json: the file; its ``labels`` become the datalist's.
        output: the datalist; None writes ``datalist.json`` beside ``dataset_json``.
        n_labeled, n_validation, n_testing, seed, patient_pattern, patients, label_names, description, overwrite: see
            :func:`split_folder`.

    Returns:
        Path of the datalist.

    Raises:
        DataError: if the file is no dataset.json, already holds a validation list, or as :func:`split_folder` does.

    Example:
        >>> split_msd("Task04_Hippocampus/dataset.json", n_labeled=10)  # doctest: +SKIP
        PosixPath('Task04_Hippocampus/datalist.json')
    """
    source = load_datalist(Path(dataset_json).expanduser())
    assert source.path is not None
    if source.validation or any("label" in entry for entry in source.testing):
        raise DataError(
            f"{source.path}: must list all labeled cases in 'training', got {len(source.validation)} for validation, "
            f"{len(source.testing)} for testing: it is a split already; use it, or start from the folder"
        )
    target = _target(source.path.parent / "datalist.json" if output is None else output, overwrite)
    names = source.labels if label_names is None else label_names
    entries = source.training + source.unlabeled
    if description is None and source.description:
        description = source.description
    return _deal(
        entries,
        source.path.parent,
        target,
        n_labeled,
        n_validation,
        n_testing,
        seed,
        patient_pattern,
        patients,
        names or None,
        description,
    )


def infer_labels(label_files: Iterable[str | Path]) -> dict[int, str]:
    """Classes that occur in label files: ``{0: "background", 1: "class 1", ...}``.

    Args:
        label_files: the files to read, all of them.

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
            array, _ = read_label(file)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        values = np.unique(array)
        if not np.isfinite(values).all() or not np.array_equal(values, np.round(values)) or values.min() < 0:
            odd = next(value for value in values if not np.isfinite(value) or value != np.round(value) or value < 0)
            raise DataError(
                f"{file}: a label must hold integers from 0, got {odd:g}: is it the label? If it was interpolated, "
                "resample it with nearest neighbor"
            )
        if len(values) > MAX_CLASSES:
            raise DataError(f"{file}: a label must hold few values, got {len(values)}: is it an image?")
        found.update(int(value) for value in values)
    if sorted(found) != list(range(len(found))):
        warnings.warn(
            f"label values should be 0, 1, 2, ... without gaps, got {sorted(found)}: remap the label files, or pass "
            "label_names if a class is merely absent from the training part"
        )
    return {value: "background" if value == 0 else f"class {value}" for value in sorted(found)}


# ------------------------------------------------------------------------------------------------ finding and pairing


def _folder(argument: str, value: str | Path) -> Path:
    path = Path(os.path.abspath(Path(value).expanduser()))
    if not path.is_dir():
        raise DataError(f"{argument} must be an existing folder, got {str(value)!r}: check the path")
    return path


def _target(output: str | Path, overwrite: bool) -> Path:
    path = Path(os.path.abspath(Path(output).expanduser()))
    if path.is_dir() or path.suffix.lower() != ".json":
        raise DataError(f"output must be a .json file, got {str(output)!r}: add a file name such as datalist.json")
    if path.exists() and not overwrite:
        raise DataError(f"output {path} exists already: choose another name, or pass overwrite to replace it")
    return path


def _order(text: str) -> str:
    # macOS stores decomposed characters: the split must not depend on the file system
    return unicodedata.normalize("NFC", text)


def _scan(root: Path) -> list[str]:
    """Image files below ``root``, as relative POSIX paths in an order that is the same everywhere."""
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if len(Path(folder).relative_to(root).parts) >= 8:  # links that run in circles
            subfolders.clear()
        found += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in names
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)
        ]
    return sorted(found, key=_order)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", _order(text).lower())


def _key(relative: str) -> tuple[str, ...]:
    """What identifies a case in a file name, with its subfolder and without the words for image and label."""
    folder, _, name = relative.rpartition("/")
    words = [word for word in _words(split_suffix(name)[0]) if word not in IMAGE_WORDS | LABEL_WORDS]
    return (*(word for word in _words(folder) if word not in IMAGE_WORDS | LABEL_WORDS), "/", *words)


def _stem(relative: str) -> str:
    folder, _, name = relative.rpartition("/")
    return _order(f"{folder}/{split_suffix(name)[0]}")


def _pair(image_dir: Path, label_dir: Path) -> list[Entry]:
    images = _scan(image_dir)
    if image_dir == label_dir:
        labels = [name for name in images if set(_words(split_suffix(Path(name).name)[0])) & LABEL_WORDS]
        images = [name for name in images if name not in set(labels)]
        if not labels:
            raise DataError(
                f"{image_dir}: holds no labels that their names tell from images (like *_seg.nii.gz): put them into a "
                "folder of their own and name it with --labels"
            )
    else:
        labels = _scan(label_dir)
        # the folder of the labels may lie inside the folder of the images
        inside = {str(label_dir / name) for name in labels}
        images = [name for name in images if str(image_dir / name) not in inside]
    if not images:
        raise DataError(
            f"images must be a folder with images ({', '.join(IMAGE_SUFFIXES[:4])}, ...), got none in {image_dir}"
        )
    if not labels:
        raise DataError(f"labels must be a folder with label files, got none in {label_dir}: check the path")

    exact = {_stem(name) for name in images} & {_stem(name) for name in labels}
    groups = None if exact else _channels(images, image_dir)
    # nnU-Net's numbers are channels only beside labels that are named without them
    stems = {_stem(name) for name in labels}
    if groups is not None and not any(base in stems for base in groups):
        groups = None
    cases = [(base, files) for base, files in groups.items()] if groups else [(_stem(name), [name]) for name in images]

    by_stem: dict[str, list[str]] = {}
    by_key: dict[tuple[str, ...], list[str]] = {}
    for name in labels:
        by_stem.setdefault(_stem(name), []).append(name)
        by_key.setdefault(_key(name), []).append(name)
    case_keys: dict[tuple[str, ...], list[str]] = {}
    for base, _ in cases:
        if base not in by_stem:
            case_keys.setdefault(_key(base), []).append(base)

    entries, used = [], set()
    for base, files in cases:
        paths = [str(image_dir / name) for name in files]
        entry: Entry = {"image": paths if len(paths) > 1 else paths[0]}
        found = by_stem.get(base) or by_key.get(_key(base), [])
        if len(found) > 1:
            raise DataError(
                f"{paths[0]}: must have one label, got {enumerated(found)}: keep one of them in {label_dir}"
            )
        if found and base not in by_stem and len(case_keys[_key(base)]) > 1:
            rivals = [rival.lstrip("/") for rival in case_keys[_key(base)]]
            raise DataError(f"{label_dir / found[0]}: fits several images, {enumerated(rivals)}: rename it after one")
        if found:
            entry["label"] = str(label_dir / found[0])
            if found[0] in used:
                raise DataError(
                    f"{label_dir / found[0]}: fits several images, {paths[0]} among them: rename it after one"
                )
            used.add(found[0])
        entries.append(entry)
    if not used:
        raise DataError(
            f"no label fits an image by name, got images like {Path(images[0]).name} in {image_dir}, labels like "
            f"{Path(labels[0]).name} in {label_dir}: give both the same name"
        )
    if left := [name for name in labels if name not in used]:
        warnings.warn(f"{label_dir}: {len(left)} labels have no image and are left out: {enumerated(left)}")
    return entries


def _channels(images: Sequence[str], image_dir: Path) -> dict[str, list[str]] | None:
    """Cases with nnU-Net's channel numbers (``a_0000``, ``a_0001``), None where the names are built otherwise."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in images:
        match = re.fullmatch(r"(.+)_(\d{4})", _stem(name))
        if match is None:
            return None
        groups.setdefault(match[1], []).append((int(match[2]), name))
    numbers = {tuple(number for number, _ in sorted(group)) for group in groups.values()}
    widest = max(numbers, key=len)
    if widest != tuple(range(len(widest))):
        return None
    for base, group in groups.items():
        got = [number for number, _ in sorted(group)]
        if tuple(got) != widest:
            text = f"must have the channels {', '.join(f'{n:04d}' for n in widest)} as other cases do"
            raise DataError(
                f"{image_dir}/{base.lstrip('/')}: {text}, got {got}: add the missing files or remove the case"
            )
    return {base: [name for _, name in sorted(group)] for base, group in groups.items()}


# ------------------------------------------------------------------------------------------------ dealing and writing


def _count(argument: str, value: Any, least: int, most: int | None = None, rule: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise DataError(f"{argument} must be an integer of at least {least}, got {value!r}: choose another number")
    if most is not None and value > most:
        raise DataError(f"{argument} must be at most {most}{rule}, got {value}: ask for fewer")
    return int(value)


def _groups(
    entries: Sequence[Entry], root: Path, pattern: str | None, table: str | Path | None
) -> dict[str, list[Entry]]:
    """Cases by patient, in an order that depends on names alone."""
    if table is not None:
        if pattern is not None:
            raise DataError("patient_pattern and patients both say who the patient is: give one of the two")
        return _groups_of_table(entries, Path(table).expanduser())
    if pattern is None:
        single: dict[str, list[Entry]] = {}
        for entry in entries:
            single.setdefault(_order(os.path.relpath(image_files(entry)[0], root)), []).append(entry)
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
        match = compiled.search(_order(case_name(entry))) or compiled.search(_order(relative))
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


def _groups_of_table(entries: Sequence[Entry], path: Path) -> dict[str, list[Entry]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"patients: {path} must be a CSV file in UTF-8 that can be read ({error})") from error
    rows = csv.DictReader(text.splitlines(), delimiter=";" if ";" in text.partition("\n")[0] else ",")
    if not {"case", "patient"} <= set(rows.fieldnames or ()):
        raise DataError(
            f"{path}: must have the columns case and patient, got {', '.join(rows.fieldnames or ()) or 'none'}"
        )
    known: dict[str, str] = {}
    for row in rows:
        case = _order(split_suffix(Path((row["case"] or "").strip()).name)[0])
        patient = (row["patient"] or "").strip()
        if not case or not patient:
            raise DataError(f"{path}: line {rows.line_num} must name a case and a patient, got {row['case']!r} and "
                            f"{row['patient']!r}")  # fmt: skip
        if known.setdefault(case, patient) != patient:
            raise DataError(f"{path}: a case has one patient, got {known[case]} and {patient} for {case}")
    groups: dict[str, list[Entry]] = {}
    missed = []
    for entry in entries:
        name = _order(case_name(entry))
        if name not in known:
            missed.append(name)
        groups.setdefault(known.get(name, ""), []).append(entry)
    if missed:
        raise DataError(
            f"{path}: must name the patient of every case, misses {len(missed)} of {len(entries)}: {enumerated(missed)}"
        )
    return groups


def _deal(
    entries: Sequence[Entry],
    root: Path,
    target: Path,
    n_labeled: int | None,
    n_validation: int | None,
    n_testing: int,
    seed: int,
    patient_pattern: str | None,
    patients: str | Path | None,
    label_names: Mapping[int, str] | None,
    description: str | None,
) -> Path:
    groups = _groups(entries, root, patient_pattern, patients)
    unit = "cases" if patient_pattern is None and patients is None else "patients"
    labeled = sorted(name for name, group in groups.items() if any("label" in entry for entry in group))
    total = len(labeled)
    if not total:
        raise DataError(f"{root}: must hold labeled cases, got {len(entries)} images and no label: add labels")
    _count("seed", seed, 0, 2**32 - 1)
    n_testing = _count("n_testing", n_testing, 0, total - 1, f" ({total} {unit} have labels and one must train)")
    if n_labeled is not None:
        left = total - n_testing
        n_labeled = _count(
            "n_labeled", n_labeled, 1, left, f" ({total} {unit} have labels, {n_testing} are for testing)"
        )
    if n_validation is None:
        # a fifth, but never at the cost of the labels that were asked for
        reserve = n_labeled if n_labeled is not None else 1
        n_validation = min(max(1, round(0.2 * total)), total - n_testing - reserve)
    else:
        used = n_testing + (n_labeled if n_labeled is not None else 1)
        rule = f" ({total} {unit} have labels, {n_testing} are for testing, {used - n_testing} for training)"
        n_validation = _count("n_validation", n_validation, 0, total - used, rule)
    if n_labeled is None:
        n_labeled = total - n_testing - n_validation

    # RandomState's stream is frozen: the split stays the same with every NumPy
    order = [labeled[index] for index in np.random.RandomState(seed).permutation(total)]
    ends = np.cumsum([n_testing, n_validation, n_labeled])
    side = dict.fromkeys(order[: ends[0]], "testing")
    side |= dict.fromkeys(order[ends[0] : ends[1]], "validation")
    side |= dict.fromkeys(order[ends[1] : ends[2]], "training")
    lists: dict[str, list[Entry]] = {"training": [], "unlabeled": [], "validation": [], "testing": []}
    dropped = []
    for name in (*order, *sorted(set(groups) - set(order))):
        for entry in sorted(groups[name], key=lambda entry: _order(image_files(entry)[0])):
            section = side.get(name, "unlabeled")
            if section == "unlabeled" or "label" not in entry:
                if section in ("validation", "testing"):
                    # an unlabeled scan of a held-out patient would be trained on
                    dropped.append(case_name(entry))
                    continue
                lists["unlabeled"].append({"image": entry["image"]})
            else:
                lists[section].append(entry)
    if dropped:
        warnings.warn(
            f"{len(dropped)} unlabeled images of patients in validation or testing are left out (using them would "
            f"be a leak): {enumerated(dropped)}"
        )
    if label_names is None:
        label_names = infer_labels(entry["label"] for entry in lists["training"])
    labels = _names(label_names)
    if description is None:
        description = ", ".join(f"{len(lists[section])} {section}" for section in lists)
        description = f"{description}; seed {seed}" + (
            f", split by patient ({patient_pattern or Path(str(patients)).name})" if unit == "patients" else ""
        )
    content = {
        "description": description,
        "labels": {str(value): labels[value] for value in sorted(labels)},
        "numClasses": len(labels),
        "split": {
            "seed": int(seed),
            "n_labeled": n_labeled,
            "n_validation": n_validation,
            "n_testing": n_testing,
            "unit": unit,
            "patient_pattern": patient_pattern,
            "patients": None if patients is None else Path(patients).name,
        },
        **{section: [_relative(entry, target.parent) for entry in lists[section]] for section in lists},
    }
    _write(target, content)
    return target


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


def _relative(entry: Entry, folder: Path) -> Entry:
    def one(file: str) -> str:
        path = Path(file)
        return path.relative_to(folder).as_posix() if folder in path.parents else path.as_posix()

    return {
        key: [one(file) for file in value] if isinstance(value, list) else one(value) for key, value in entry.items()
    }


def _write(target: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:  # file names that are no Unicode survive only escaped
        encoded = (json.dumps(content, indent=1) + "\n").encode("ascii")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(encoded)
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(
            f"output {target} cannot be written ({error.strerror}): choose a folder that you may write"
        ) from error

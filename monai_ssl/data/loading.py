"""Reading a datalist: one JSON file, or what a folder holds."""

from __future__ import annotations

import json
import os
import re
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai_ssl.data.cases import Entry, case_name, image_files, real_path, repeated_names
from monai_ssl.data.datalist import SECTIONS, Datalist
from monai_ssl.data.pool import find_pool
from monai_ssl.errors import DataError, enumerated, json_type, shortened

DEFAULT_NAMES = ("datalist.json", "dataset.json")


# key of an entry: whose scan it is; scans of one patient are on one side, and count once in intervals and tests
PATIENT = "patient"
LONGEST = 200

# how else people call the lists, for the advice in an error
OTHER_NAMES = {
    "labeled": "training",
    "labelled": "training",
    "train": "training",
    "val": "validation",
    "valid": "validation",
}


def load_datalist(
    datalist: str | Path | None = None, dataset_dir: str | Path | None = None, strict: bool = True
) -> Datalist:
    """Read a MONAI/Decathlon datalist and find the unlabeled pool.

    ``training`` and ``validation`` hold ``{"image", "label"}``, ``unlabeled`` and ``testing`` ``{"image"}`` or plain
    file names (``testing`` may have labels). ``image`` may be a list of files, one per channel. Where a label covers a
    part of its scan only, the entry says so with ``classes``, ``slices`` and ``slice_axis``, see
    :class:`monai_ssl.data.partial.Annotated`. ``patient``, a text, says which entries are scans of one patient. The
    ``test`` list of a Medical Segmentation Decathlon ``dataset.json`` is read as ``testing``. Where entries of
    ``training`` have a ``fold`` (Auto3DSeg) and there is no list ``validation``, fold 0 validates. Paths may have been
    written on Windows.

    Where ``unlabeled`` is missing, the pool is every image in the folders (below ``dataset_dir``) that hold listed
    images, of a listed image's file type, that is in no list and is no label. Where images and labels share a
    folder, a file whose name is built like those of the listed labels (``*_seg.nii.gz``, ``label_*``) counts as a
    label. ``"unlabeled": []`` means none. No image or label file is opened here.

    Args:
        datalist: the JSON file, or its bare name inside ``dataset_dir``; None looks there for ``datalist.json``,
            ``dataset.json`` or the only JSON file.
        dataset_dir: folder of the relative paths in the JSON; None takes the JSON's own folder.
        strict: with False, a missing ``dataset_dir`` or ``datalist`` gives empty lists, so that a configuration can
            be built without the data. What is there must be right in either case.

    Returns:
        The lists, with absolute paths.

    Raises:
        DataError: if a file or folder is missing (``strict``), the JSON is not one, lacks ``training``, has entries
            of a wrong type or with unknown keys, or if a case is in two places or a patient on two sides.

    Example:
        >>> load_datalist("datalist.json", "/does/not/exist", strict=False).counts()
        {'training': 0, 'unlabeled': 0, 'validation': 0, 'testing': 0}
    """
    folder = None if dataset_dir is None or str(dataset_dir) == "" else _absolute(Path(dataset_dir).expanduser())
    if folder is not None and not folder.is_dir():
        if strict:
            what = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"dataset_dir must be an existing folder, but {folder} {what}: check --dataset_dir")
        return Datalist(dataset_dir=folder)
    path = _find_json(datalist, folder, strict)
    if path is None:
        return Datalist(dataset_dir=folder)
    folder = folder or path.parent
    content = _read_json(path)

    result = Datalist(
        labels=_read_labels(content.get("labels"), path),
        channels=_read_channels(content.get("modality") or content.get("channel_names")),
        description=str(content.get("description", "")),
        path=path,
        dataset_dir=folder,
    )
    lists = _find_lists(content, path)
    _validate_fold(lists)
    dropped: list[str] = []
    for section, entries in lists.items():
        setattr(result, section, _read_section(section, entries, folder, path, dropped, result.patients))
    if dropped:
        warnings.warn(
            f"{path}: 'unlabeled' must hold images only, got {len(dropped)} entries with a label "
            f"({enumerated(dropped)}): these labels are ignored and never opened; move the entries to 'training' "
            "to learn from them",
            stacklevel=2,
        )
    _check_duplicates(result, path)
    _check_patients(result, path)
    if "unlabeled" not in lists:
        result.unlabeled = _without_judges(find_pool(result, folder), result)
    return result


def fold_datalists(index: str | Path) -> list[Path]:
    """The datalists of a cross-validation, in the order of its folds.

    Args:
        index: what ``monai-ssl split --folds`` wrote, ``datalist-folds.json``.

    Raises:
        DataError: when the file is no such index, or names a file outside its folder.

    Example:
        >>> fold_datalists("scans/datalist-folds.json")  # doctest: +SKIP
        [PosixPath('scans/datalist-fold1.json'), PosixPath('scans/datalist-fold2.json')]
    """
    path = _absolute(Path(index).expanduser())
    folds = _read_json(path).get("folds") if path.is_file() else None
    names = [fold.get("datalist") if isinstance(fold, dict) else None for fold in folds or ()]  # type: ignore[union-attr]
    if not isinstance(folds, list) or not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise DataError(f"{path}: must be the index of a cross-validation; write one with `monai-ssl split --folds 5`")
    return [path.parent / str(name) for name in names]


def _absolute(path: Path) -> Path:
    # not resolve(): a user's links stay as they wrote them
    return Path(os.path.abspath(path))


def _find_json(datalist: str | Path | None, folder: Path | None, strict: bool) -> Path | None:
    if datalist is None or str(datalist) == "":
        if folder is None:
            if strict:
                raise DataError("datalist and dataset_dir are both missing: give --dataset_dir or --datalist")
            return None
        found = sorted(folder.glob("*.json"))
        for name in DEFAULT_NAMES:
            if folder / name in found:
                return folder / name
        if len(found) == 1:
            return found[0]
        if not strict:
            return None
        if found:
            names = enumerated([file.name for file in found], 12)
            raise DataError(f"datalist must be named, as {folder} holds {len(found)} JSON files: choose from {names}")
        raise DataError(f"datalist is missing and {folder} holds no JSON file: write one with `monai-ssl split`")
    given = Path(datalist).expanduser()
    places = [_absolute(given)]
    if folder is not None and not given.is_absolute():
        # a bare name means the file next to the data; a path means the path
        places.insert(
            0 if given.parent == Path() and not str(datalist).startswith(".") else 1, _absolute(folder / given)
        )
    for place in places:
        if place.is_file():
            return place
    if not strict:
        return None
    raise DataError(
        f"datalist must be an existing JSON file, got {str(datalist)!r}: looked for {' and '.join(map(str, places))}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := repeated_names(key for key, _ in pairs):
            raise DataError(f"{path}: a key may appear once, got {enumerated(sorted(repeated))} twice: merge the two")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: must be a JSON file, got {error.msg} in line {error.lineno}, column {error.colno}: correct it"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be a JSON file in UTF-8, got other bytes: is it the right file?") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: must be a JSON file, got a number that is too long: is it the right file?") from None
    except RecursionError as error:
        raise DataError(f"{path}: must be a JSON file, got one nested too deeply: is it the right file?") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check its permissions") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: must hold an object with 'training', got {json_type(content)}: see the datalist format"
        )
    return content


def _find_lists(content: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    """The four lists as they are in the JSON, ``test`` taken as ``testing``; a misspelled list must not pass."""
    content = dict(content)
    if "test" in content:
        test = content.pop("test")
        if test and content.get("testing"):
            raise DataError(f"{path}: has both 'test' and 'testing': merge them into 'testing'")
        content["testing"] = content.get("testing") or test
    for key, value in content.items():
        if key in SECTIONS:
            continue
        # a list of cases under another name would be silently ignored
        close = OTHER_NAMES.get(key.lower()) or next(iter(get_close_matches(key.lower(), SECTIONS, 1, 0.7)), None)
        cases = isinstance(value, list) and any(isinstance(item, dict) and "image" in item for item in value)
        if cases or (close and isinstance(value, list)):
            advice = f"did you mean {close!r}?" if close else f"the lists are {', '.join(SECTIONS)}"
            raise DataError(f"{path}: unknown list {key[:60]!r}: {advice}")
    if "training" not in content and isinstance(content.get("folds"), list):
        names = enumerated([str(fold.get("datalist")) for fold in content["folds"] if isinstance(fold, dict)], 12)
        raise DataError(f"{path}: is the index of a cross-validation, no datalist: name that of a fold, {names}")
    if "training" not in content:
        raise DataError(
            f"{path}: must hold a list 'training', got the keys {enumerated(sorted(content), 12) or '(none)'}: "
            "is it a datalist? Write one with `monai-ssl split`"
        )
    lists = {section: content[section] for section in SECTIONS if section in content}
    for section, entries in lists.items():
        if not isinstance(entries, list):
            raise DataError(f"{path}: {section!r} must be a list, got {json_type(entries)}: write [] for none")
    return lists


def _read_labels(labels: Any, path: Path) -> dict[int, str]:
    if labels is None:
        return {}
    rule = f'{path}: \'labels\' must map values to names, like {{"0": "background", "1": "organ"}}'
    if isinstance(labels, list):
        labels = {str(index): name for index, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise DataError(f"{rule}, got {json_type(labels)}: correct it or leave it out")
    if labels and all(isinstance(value, int) and not isinstance(value, bool) for value in labels.values()):
        labels = {str(value): name for name, value in labels.items()}  # nnU-Net writes {name: value}
    result = {}
    for value, name in labels.items():
        if not re.fullmatch(r"\d+", str(value)) or not isinstance(name, str):
            raise DataError(f"{rule}, got {shortened({str(value): name})}: correct it or leave it out")
        if name != "ignore":  # nnU-Net's name of voxels that nobody knows, which are no class
            result[int(value)] = name
    return dict(sorted(result.items()))


def _read_channels(names: Any) -> list[str]:
    """Names by number; whatever else stands there is no matter of ours."""
    if not isinstance(names, dict) or not all(re.fullmatch(r"\d{1,4}", str(key)) for key in names):
        return []
    ordered = sorted(names.items(), key=lambda item: int(item[0]))
    return [name for _, name in ordered] if all(isinstance(name, str) for _, name in ordered) else []


def _validate_fold(lists: dict[str, list[Any]]) -> None:
    """Auto3DSeg numbers folds within ``training`` instead of listing what validates: by its custom, fold 0 does."""
    entries = lists["training"]
    folds = [entry.get("fold") for entry in entries if isinstance(entry, dict)]
    if len(folds) != len(entries) or not any(fold is not None for fold in folds):
        return
    plain = [{key: value for key, value in entry.items() if key != "fold"} for entry in entries]
    if "validation" not in lists and 0 < folds.count(0) < len(folds):
        lists["validation"] = [entry for entry, fold in zip(plain, folds, strict=True) if fold == 0]
        plain = [entry for entry, fold in zip(plain, folds, strict=True) if fold != 0]
    lists["training"] = plain


def _read_section(
    section: str, entries: list[Any], folder: Path, path: Path, dropped: list[str], patients: dict[str, str]
) -> list[Entry]:
    from monai_ssl.data.partial import KEYS, Annotated  # needs NumPy, which a typing error need not wait for

    result = []
    for index, entry in enumerate(entries):
        where = f"{path}: {section}[{index}]"
        if isinstance(entry, str) and section in ("unlabeled", "testing"):
            entry = {"image": entry}
        if not isinstance(entry, dict):
            form = '{"image": ...}' if section in ("unlabeled", "testing") else '{"image": ..., "label": ...}'
            raise DataError(f"{where} must be an object {form}, got {json_type(entry)}: {shortened(entry)}")
        if unknown := sorted(set(entry) - {"image", "label", PATIENT, *KEYS}):
            close = get_close_matches(unknown[0].lower(), ("image", "label", PATIENT, *KEYS), 1)
            advice = f"did you mean {close[0]!r}?" if close else f"remove it (partly labeled: {enumerated(KEYS)})"
            raise DataError(
                f"{where} may hold 'image', 'label' and 'patient' only, got {enumerated(unknown)}: {advice}"
            )
        try:
            partly = not Annotated.of(entry).whole
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if partly and "label" not in entry:
            raise DataError(
                f"{where}: {enumerated([key for key in KEYS if key in entry])} must go with a 'label', got none"
            )
        if "image" not in entry:
            raise DataError(f"{where} must hold 'image', got {shortened(entry)}: add the path of the scan")
        image = entry["image"]
        if isinstance(image, list):
            if not image:
                raise DataError(f"{where}: 'image' must name a file, got an empty list: give one file per channel")
            files = [_resolve(file, folder, where, "image") for file in image]
            clean: Entry = {"image": files if len(files) > 1 else files[0]}
        else:
            clean = {"image": _resolve(image, folder, where, "image")}
        if section == "unlabeled":
            if "label" in entry:
                dropped.append(case_name(clean))
        elif "label" in entry:
            clean["label"] = _resolve(entry["label"], folder, where, "label")
            clean |= {key: entry[key] for key in KEYS if entry.get(key) is not None}
        elif section != "testing":
            raise DataError(
                f"{where} must hold 'label', got only an image, {shortened(image)}: add the label or move the entry to "
                "'unlabeled'"
            )
        if entry.get(PATIENT) is not None:
            patients[image_files(clean)[0]] = _patient(entry[PATIENT], where)
        result.append(clean)
    return result


def _patient(value: Any, where: str) -> str:
    rule = f"{where}: {PATIENT!r} must be a text of 1 to {LONGEST} characters"
    if not isinstance(value, str):
        raise DataError(f"{rule}, got {json_type(value)}: write it in quotes")
    text = unicodedata.normalize("NFC", value.strip())
    if not 0 < len(text) <= LONGEST or not text.isprintable():
        kind = "characters that nobody can print" if 0 < len(text) <= LONGEST else f"{len(text)}"
        raise DataError(f"{rule}, got {kind}: give a short name or number")
    return text


def _resolve(file: Any, folder: Path, where: str, key: str) -> str:
    if not isinstance(file, str) or not file.strip() or "\0" in file:
        form = "a path or a list of paths" if key == "image" else "one path"
        raise DataError(f"{where}: {key!r} must be {form}, got {shortened(file)}: correct the entry")
    try:
        os.fsencode(file)
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: {key!r} must be a path, got characters that no file has: correct the entry"
        ) from None
    place = folder / file
    if "\\" in file and os.sep == "/" and not os.path.exists(place):  # written on Windows
        place = folder / file.replace("\\", "/")
    return os.path.abspath(place)


def _check_duplicates(datalist: Datalist, path: Path) -> None:
    places: dict[str, list[str]] = {}
    label_sections: dict[str, list[str]] = {}
    image_places: dict[str, str] = {}
    for section in SECTIONS:
        for index, entry in enumerate(datalist.section(section)):
            for file in image_files(entry):
                places.setdefault(real_path(file), []).append(f"{section}[{index}]")
                image_places[real_path(file)] = f"{section}[{index}]"
            if "label" in entry:
                label_sections.setdefault(real_path(entry["label"]), []).append(section)
    if repeated := {file: found for file, found in places.items() if len(found) > 1}:
        cases = [f"{Path(file).name} in {' and '.join(found)}" for file, found in repeated.items()]
        raise DataError(
            f"{path}: a scan may be in one place only (a case in two lists is a leak), got {len(cases)} more than "
            f"once: {enumerated(cases)}: keep one entry of each"
        )
    for file, sections in label_sections.items():
        if file in image_places:
            raise DataError(f"{path}: {Path(file).name} is the image of {image_places[file]} and a label: correct one")
        if len(set(sections)) > 1:
            raise DataError(
                f"{path}: the label {Path(file).name} is in {' and '.join(dict.fromkeys(sections))} (a leak): keep one"
            )


def _check_patients(datalist: Datalist, path: Path) -> None:
    """Scans of one patient on two sides, where the JSON says who the patients are."""
    sides: dict[str, dict[str, str]] = {}
    for section in SECTIONS:
        for entry in datalist.section(section):
            patient = datalist.patients.get(image_files(entry)[0])
            if patient is not None:
                side = "training" if section == "unlabeled" else section
                sides.setdefault(patient, {}).setdefault(side, f"{case_name(entry)} ({section})")
    if leaks := [" and ".join(found.values()) for found in sides.values() if len(found) > 1]:
        raise DataError(
            f"{path}: scans of one patient may be on one side only (all else is a leak), got {len(leaks)} on several: "
            f"{enumerated(leaks, 3)}: move them to one list, or correct {PATIENT!r}"
        )


def _without_judges(pool: list[Entry], datalist: Datalist) -> list[Entry]:
    """The pool without further scans of patients of whom the JSON says that they validate or test."""
    if not datalist.patients:
        return pool
    known = replace(datalist, unlabeled=pool).known_patients()
    judges = {known.get(image_files(entry)[0]) for entry in (*datalist.validation, *datalist.testing)} - {None}
    out = [entry for entry in pool if known.get(image_files(entry)[0]) in judges]
    if out:
        warnings.warn(
            f"{datalist.path}: {len(out)} unlabeled images of patients in validation or testing are left out of the "
            f"pool (using them would be a leak): {enumerated([case_name(entry) for entry in out], 3)}",
            stacklevel=3,
        )
    return [entry for entry in pool if entry not in out]

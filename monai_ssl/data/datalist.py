"""Datalists: which scans are labelled, unlabelled, for validation and for testing (MONAI/Decathlon JSON)."""

from __future__ import annotations

import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

__all__ = ["SECTIONS", "DataError", "Datalist", "case_name", "case_names", "image_files", "load_datalist"]

Entry = dict[str, Any]

SECTIONS = ("training", "unlabeled", "validation", "testing")
DEFAULT_NAMES = ("datalist.json", "dataset.json")
# how else people call the lists, for the advice in an error
OTHER_NAMES = {
    "labeled": "training",
    "labelled": "training",
    "train": "training",
    "val": "validation",
    "valid": "validation",
}
# what image folders hold; the longest suffix first, so that ".nii.gz" is not read as ".gz"
IMAGE_SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".mha",
    ".mhd",
    ".nrrd",
    ".nhdr",
    ".hdr",
    ".dcm",
    ".png",
    ".jpeg",
    ".jpg",
    ".bmp",
    ".tiff",
    ".tif",
    ".npy",
    ".npz",
)


class DataError(ValueError):
    """The user's data are not what they must be; the message names the file, the rule, the value and the next step.

    Example:
        >>> raise DataError("split.json: 'training' must be a list, got a string: write [] for none")
        Traceback (most recent call last):
        ...
        monai_ssl.data.datalist.DataError: split.json: 'training' must be a list, got a string: write [] for none
    """


@dataclass
class Datalist:
    """The cases of one dataset, as absolute paths.

    Attributes:
        training: labelled cases, ``{"image": path or list of paths, "label": path}``.
        unlabeled: cases without label, ``{"image": ...}``; never carries a ``label`` key.
        validation: labelled cases on which a checkpoint may be picked.
        testing: held-out cases; the label is optional.
        labels: name of every class by its value, 0 = background; empty where the JSON names none.
        description: free text of the JSON.
        path: the JSON file, None where there was none (``strict=False``).
        dataset_dir: the folder against which relative paths were resolved.

    Example:
        >>> Datalist(training=[{"image": "/d/a.nii.gz", "label": "/d/a_seg.nii.gz"}]).counts()
        {'training': 1, 'unlabeled': 0, 'validation': 0, 'testing': 0}
    """

    training: list[Entry] = field(default_factory=list)
    unlabeled: list[Entry] = field(default_factory=list)
    validation: list[Entry] = field(default_factory=list)
    testing: list[Entry] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    description: str = ""
    path: Path | None = None
    dataset_dir: Path | None = None

    def section(self, name: str) -> list[Entry]:
        """The list called ``name``, one of :data:`SECTIONS`.

        Raises:
            ValueError: if there is no such list.

        Example:
            >>> Datalist().section("unlabeled")
            []
        """
        if name not in SECTIONS:
            raise ValueError(f"section must be one of {', '.join(SECTIONS)}, got {name!r}")
        return getattr(self, name)

    def require(self, name: str) -> list[Entry]:
        """The list called ``name``, which must not be empty and whose cases must have labels.

        Raises:
            DataError: if the list is empty or a case of it has no label.

        Example:
            >>> Datalist(testing=[{"image": "a.nii", "label": "a_seg.nii"}]).require("testing")
            [{'image': 'a.nii', 'label': 'a_seg.nii'}]
        """
        entries = self.section(name)
        where = self.path or self.dataset_dir or "the datalist"
        if not entries:
            filled = [f"{key} ({n})" for key, n in self.counts().items() if n]
            raise DataError(
                f"{where}: '{name}' has no case; lists with cases: {', '.join(filled) or 'none'}. Check dataset_dir "
                "and datalist, or choose another --section"
            )
        bare = [case_name(entry) for entry in entries if "label" not in entry]
        if bare:
            text = f"'{name}' has {len(bare)} cases without label ({_enumerate(bare)})"
            raise DataError(f"{where}: {text}: add the labels")
        return entries

    def counts(self) -> dict[str, int]:
        """Number of cases per list."""
        return {name: len(self.section(name)) for name in SECTIONS}


# ---------------------------------------------------------------------------------------------------- names of cases


def image_files(entry: Mapping[str, Any]) -> list[str]:
    """All image files of one case: one, or one per channel.

    Example:
        >>> image_files({"image": "/d/a.nii.gz"})
        ['/d/a.nii.gz']
    """
    image = entry["image"]
    return [os.fspath(image)] if isinstance(image, (str, os.PathLike)) else [os.fspath(file) for file in image]


def split_suffix(name: str) -> tuple[str, str]:
    """``("a.b", ".nii.gz")`` for ``"a.b.nii.gz"``: stem and image suffix (empty where it is no known one)."""
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return name, ""


def case_name(entry: Mapping[str, Any]) -> str:
    """Name of a case: its image's file name without the suffix; of several files, what their names share.

    Two cases may have the same file name in two folders: :func:`case_names` tells them apart.

    Args:
        entry: an entry of a datalist.

    Example:
        >>> case_name({"image": "/d/imagesTr/hippocampus_006.nii.gz"})
        'hippocampus_006'
        >>> case_name({"image": ["/d/p1_t1.nii.gz", "/d/p1_flair.nii.gz"]})
        'p1'
    """
    files = image_files(entry)
    stems = [split_suffix(Path(file).name)[0] for file in files]
    if len(stems) == 1:
        return stems[0]
    shared = _shared_start(stems)
    if any(len(stem) > len(shared) for stem in stems):
        shared = re.sub(r"[^_\-. ]*$", "", shared)
    return shared.rstrip("_-. ") or Path(files[0]).parent.name or stems[0]


def case_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A unique name for every case, in order; equal file names are preceded by as many parent folders as needed.

    Args:
        entries: entries of one or of several lists.

    Example:
        >>> case_names([{"image": "/d/p1/t1.nii"}, {"image": "/d/p2/t1.nii"}, {"image": "/d/p2/x.nii"}])
        ['p1_t1', 'p2_t1', 'x']
    """
    parents = [Path(image_files(entry)[0]).parent.parts for entry in entries]
    names = [case_name(entry) for entry in entries]
    base = list(names)
    for depth in range(1, max((len(parts) for parts in parents), default=0) + 1):
        repeated = _repeated(names)
        if not repeated:
            break
        for index, name in enumerate(names):
            if name in repeated:
                names[index] = "_".join((*(part.strip("/\\:") for part in parents[index][-depth:]), base[index]))
    while repeated := _repeated(names):
        seen: dict[str, int] = {}
        for index, name in enumerate(names):
            if name in repeated:
                seen[name] = seen.get(name, 0) + 1
                names[index] = f"{name}_{seen[name]}"
    return names


def _shared_start(names: Sequence[str]) -> str:
    """The longest start that all names share, character by character."""
    low, high = min(names), max(names)
    length = next((index for index, char in enumerate(low) if char != high[index]), len(low))
    return low[:length]


def _repeated(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


# -------------------------------------------------------------------------------------------------------- reading


def load_datalist(
    datalist: str | Path | None = None, dataset_dir: str | Path | None = None, strict: bool = True
) -> Datalist:
    """Read a MONAI/Decathlon datalist and find the unlabelled pool.

    ``training`` and ``validation`` hold ``{"image", "label"}``, ``unlabeled`` and ``testing`` ``{"image"}`` or plain
    file names (``testing`` may have labels). ``image`` may be a list of files, one per channel. The
    ``test`` list of a Medical Segmentation Decathlon ``dataset.json`` is read as ``testing``.

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
            of a wrong type or with unknown keys, or if a case stands in two places.

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
        description=str(content.get("description", "")),
        path=path,
        dataset_dir=folder,
    )
    lists = _find_lists(content, path)
    dropped: list[str] = []
    for section, entries in lists.items():
        setattr(result, section, _read_section(section, entries, folder, path, dropped))
    if dropped:
        warnings.warn(
            f"{path}: 'unlabeled' must hold images only, got {len(dropped)} entries with a label "
            f"({_enumerate(dropped)}): these labels are ignored and never opened; move the entries to 'training' "
            "to learn from them",
            stacklevel=2,
        )
    _check_duplicates(result, path)
    if "unlabeled" not in lists:
        result.unlabeled = _find_pool(result, folder)
    return result


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
            names = _enumerate([file.name for file in found], 12)
            raise DataError(f"datalist must be named, as {folder} holds {len(found)} JSON files: choose from {names}")
        raise DataError(f"datalist is missing and {folder} holds no JSON file: write one with `monai-ssl split`")
    given = Path(datalist).expanduser()
    places = [_absolute(given)]
    if folder is not None and not given.is_absolute():
        # a bare name means the file beside the data; a path means the path
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
        if repeated := _repeated(key for key, _ in pairs):
            raise DataError(f"{path}: a key may stand once, got {_enumerate(sorted(repeated))} twice: merge the two")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: must be a JSON file, got {error.msg} in line {error.lineno}, column {error.colno}: correct it"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be a JSON file in UTF-8, got other bytes: is it the right file?") from error
    except RecursionError as error:
        raise DataError(f"{path}: must be a JSON file, got one nested too deeply: is it the right file?") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check its permissions") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold an object with 'training', got {_type(content)}: see the datalist format")
    return content


def _find_lists(content: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    """The four lists as they stand in the JSON, ``test`` taken as ``testing``; a misspelt list must not pass."""
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
            raise DataError(f"{path}: unknown list {key!r}: {advice}")
    if "training" not in content:
        raise DataError(
            f"{path}: must hold a list 'training', got the keys {_enumerate(sorted(content), 12) or '(none)'}: "
            "is it a datalist? Write one with `monai-ssl split`"
        )
    lists = {section: content[section] for section in SECTIONS if section in content}
    for section, entries in lists.items():
        if not isinstance(entries, list):
            raise DataError(f"{path}: {section!r} must be a list, got {_type(entries)}: write [] for none")
    return lists


def _read_labels(labels: Any, path: Path) -> dict[int, str]:
    if labels is None:
        return {}
    rule = f'{path}: \'labels\' must map values to names, like {{"0": "background", "1": "organ"}}'
    if isinstance(labels, list):
        labels = {str(index): name for index, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise DataError(f"{rule}, got {_type(labels)}: correct it or leave it out")
    if labels and all(isinstance(value, int) and not isinstance(value, bool) for value in labels.values()):
        labels = {str(value): name for name, value in labels.items()}  # nnU-Net writes {name: value}
    result = {}
    for value, name in labels.items():
        if not re.fullmatch(r"\d+", str(value)) or not isinstance(name, str):
            raise DataError(f"{rule}, got {{{value!r}: {name!r}}}: correct it or leave it out")
        result[int(value)] = name
    return dict(sorted(result.items()))


def _read_section(section: str, entries: list[Any], folder: Path, path: Path, dropped: list[str]) -> list[Entry]:
    result = []
    for index, entry in enumerate(entries):
        where = f"{path}: {section}[{index}]"
        if isinstance(entry, str) and section in ("unlabeled", "testing"):
            entry = {"image": entry}
        if not isinstance(entry, dict):
            form = '{"image": ...}' if section in ("unlabeled", "testing") else '{"image": ..., "label": ...}'
            raise DataError(f"{where} must be an object {form}, got {_type(entry)}: {_short(entry)}")
        if unknown := sorted(set(entry) - {"image", "label"}):
            close = get_close_matches(unknown[0].lower(), ("image", "label"), 1)
            advice = f"did you mean {close[0]!r}?" if close else "remove it"
            raise DataError(f"{where} may hold 'image' and 'label' only, got {_enumerate(unknown)}: {advice}")
        if "image" not in entry:
            raise DataError(f"{where} must hold 'image', got {_short(entry)}: add the path of the scan")
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
        elif section != "testing":
            raise DataError(
                f"{where} must hold 'label', got only an image, {_short(image)}: add the label or move the entry to "
                "'unlabeled'"
            )
        result.append(clean)
    return result


def _resolve(file: Any, folder: Path, where: str, key: str) -> str:
    if not isinstance(file, str) or not file.strip() or "\0" in file:
        form = "a path or a list of paths" if key == "image" else "one path"
        raise DataError(f"{where}: {key!r} must be {form}, got {_short(file)}: correct the entry")
    return os.path.abspath(folder / file)


def _identity(file: str) -> str:
    return os.path.realpath(file)


def _check_duplicates(datalist: Datalist, path: Path) -> None:
    places: dict[str, list[str]] = {}
    label_sections: dict[str, list[str]] = {}
    image_places: dict[str, str] = {}
    for section in SECTIONS:
        for index, entry in enumerate(datalist.section(section)):
            for file in image_files(entry):
                places.setdefault(_identity(file), []).append(f"{section}[{index}]")
                image_places[_identity(file)] = f"{section}[{index}]"
            if "label" in entry:
                label_sections.setdefault(_identity(entry["label"]), []).append(section)
    if repeated := {file: found for file, found in places.items() if len(found) > 1}:
        cases = [f"{Path(file).name} in {' and '.join(found)}" for file, found in repeated.items()]
        raise DataError(
            f"{path}: a scan may stand in one place only (a case in two lists is a leak), got {len(cases)} more than "
            f"once: {_enumerate(cases)}: keep one entry of each"
        )
    for file, sections in label_sections.items():
        if file in image_places:
            raise DataError(f"{path}: {Path(file).name} is the image of {image_places[file]} and a label: correct one")
        if len(set(sections)) > 1:
            raise DataError(
                f"{path}: the label {Path(file).name} stands in {' and '.join(dict.fromkeys(sections))} (a leak): "
                "keep one"
            )


# ------------------------------------------------------------------------------------------------- the unlabelled pool


def _find_pool(datalist: Datalist, folder: Path) -> list[Entry]:
    entries = [entry for section in SECTIONS for entry in datalist.section(section)]
    listed = {_identity(file) for entry in entries for file in image_files(entry)}
    listed |= {_identity(entry["label"]) for entry in entries if "label" in entry}
    suffixes = {_family(file) for entry in entries for file in image_files(entry)}
    root = Path(_identity(str(folder)))
    folders = sorted({str(Path(file).parent) for entry in entries for file in image_files(entry)})
    patterns = _name_patterns(entries)
    pool: list[Entry] = []
    channels = _channel_patterns(entries)
    for directory in folders:
        real = Path(_identity(directory))
        if not real.is_dir() or not (real == root or root in real.parents):
            continue
        names = [
            name
            for name in sorted(os.listdir(directory), key=_sort_key)
            if not name.startswith(".")
            and _family(name) in suffixes
            and os.path.isfile(os.path.join(directory, name))
            and _identity(os.path.join(directory, name)) not in listed
            and not _named_like_label(name, patterns.get(str(real), ()))
        ]
        if channels:
            pool += _group_channels(directory, names, channels)
        else:
            pool += [{"image": os.path.join(directory, name)} for name in names]
    unique: dict[str, Entry] = {}
    for entry in pool:  # a folder may be reached by two names
        unique.setdefault(_identity(image_files(entry)[0]), entry)
    return list(unique.values())


def _sort_key(name: str) -> str:
    # macOS stores decomposed characters: the order must not depend on the file system
    return unicodedata.normalize("NFC", name)


def _family(file: str) -> str:
    suffix = split_suffix(Path(file).name)[1].lower() or Path(file).suffix.lower()
    return ".nii" if suffix == ".nii.gz" else suffix


# a name pattern: (regular expression, how specific it is, whether it is a label's)
_Pattern = tuple["re.Pattern[str]", int, bool]


def _name_patterns(entries: Iterable[Entry]) -> dict[str, set[_Pattern]]:
    """How image and label names are built in folders that hold both, learnt from the listed pairs."""
    result: dict[str, set[_Pattern]] = {}
    for entry in entries:
        if "label" not in entry:
            continue
        label = Path(entry["label"])
        for file in image_files(entry):
            directory = _identity(str(Path(file).parent))
            if directory == _identity(str(label.parent)):
                result.setdefault(directory, set()).update(_pair_patterns(Path(file).name, label.name))
    return result


def _pair_patterns(image: str, label: str) -> list[_Pattern]:
    """What tells an image's name from its label's: ``p1.nii.gz, p1_seg.nii.gz`` differ by the tail ``_seg``."""
    (a, a_suffix), (b, b_suffix) = split_suffix(image), split_suffix(label)
    delimiters = "_-. "
    head = len(_shared_start([a, b]))
    # a shared part ends at a delimiter: "vol_1" and "label_1" share "_1", not "l_1"
    while head and min(len(a), len(b)) > head and a[head - 1] not in delimiters:
        if a[head] in delimiters and b[head] in delimiters:
            break
        head -= 1
    tail = len(_shared_start([a[head:][::-1], b[head:][::-1]]))
    while tail and min(len(a), len(b)) - head > tail and a[-tail] not in delimiters and not a[-tail].isdigit():
        tail -= 1
    patterns = []
    for stem, suffix, is_label in ((a, a_suffix, False), (b, b_suffix, True)):
        middle = stem[head : len(stem) - tail]
        if tail == 0:  # the case stands first; the delimiter belongs to the token
            if middle and head and stem[head - 1] in delimiters:
                middle = stem[head - 1] + middle
            expression = f".*{re.escape(middle)}{re.escape(suffix)}"
        elif head == 0:
            expression = f"{re.escape(middle)}.*{re.escape(suffix)}"
        else:
            left = stem[head - 1] if stem[head - 1] in delimiters else ""
            expression = f".*{re.escape(left + middle + (stem[len(stem) - tail]))}.*{re.escape(suffix)}"
            if stem[len(stem) - tail] not in delimiters:
                expression = f".*{re.escape(left + middle)}.*{re.escape(suffix)}"
        patterns.append((re.compile(expression, re.DOTALL), len(middle) + len(suffix), is_label))
    return patterns


def _named_like_label(name: str, patterns: Iterable[_Pattern]) -> bool:
    """True where a label's pattern fits at least as specifically as an image's, or none of a mixed folder fits."""
    best = dict.fromkeys((False, True), -1)
    known = False
    for expression, specific, is_label in patterns:
        known = True
        if expression.fullmatch(name):
            best[is_label] = max(best[is_label], specific)
    return known and best[True] >= best[False]


def _channel_patterns(entries: Iterable[Entry]) -> set[tuple[str, ...]]:
    """The ends of the file names of cases with several channels, such as ("_0000.nii.gz", "_0001.nii.gz")."""
    result = set()
    for entry in entries:
        files = image_files(entry)
        if len(files) == 1:
            continue
        names = [Path(file).name for file in files]
        base = case_name(entry)
        if len({str(Path(file).parent) for file in files}) == 1 and all(name.startswith(base) for name in names):
            result.add(tuple(name[len(base) :] for name in names))
        else:
            warnings.warn(
                f"{names[0]}: cannot tell how its channels are named, so no unlabelled images are looked for: "
                "write them into the list 'unlabeled'"
            )
            result.add(())
    return result


def _group_channels(directory: str, names: list[str], channels: Iterable[tuple[str, ...]]) -> list[Entry]:
    present, used, result = set(names), set(), []
    for ends in sorted(channels):
        for name in names:
            if not ends or not name.endswith(ends[0]) or name in used:
                continue
            group = [name[: len(name) - len(ends[0])] + end for end in ends]
            if all(member in present for member in group):
                used.update(group)
                result.append({"image": [os.path.join(directory, member) for member in group]})
    if left := [name for name in names if name not in used]:
        warnings.warn(
            f"{directory}: images must come with all channels of the listed cases, got {len(left)} files without "
            f"({_enumerate(left)}): they are left out; complete them or write 'unlabeled' into the datalist"
        )
    return result


# ------------------------------------------------------------------------------------------------------------ words


def _enumerate(items: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."

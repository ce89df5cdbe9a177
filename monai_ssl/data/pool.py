"""The pool of unlabeled images: every image of a folder that is in no list."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from monai_ssl.data.cases import Entry, case_name, image_files, name_order, real_path, shared_start, split_suffix
from monai_ssl.data.datalist import SECTIONS, Datalist
from monai_ssl.errors import enumerated


def find_pool(datalist: Datalist, folder: Path) -> list[Entry]:
    """Every image that is next to the listed ones, in a folder below ``folder``, and is neither listed nor a label.

    Args:
        datalist: the lists.
        folder: of the data set.

    Returns:
        entries ``{"image": ...}``, with the channels of a case together.
    """
    entries = [entry for section in SECTIONS for entry in datalist.section(section)]
    listed = {real_path(file) for entry in entries for file in image_files(entry)}
    listed |= {real_path(entry["label"]) for entry in entries if "label" in entry}
    suffixes = {_family(file) for entry in entries for file in image_files(entry)}
    root = Path(real_path(str(folder)))
    folders = sorted({str(Path(file).parent) for entry in entries for file in image_files(entry)})
    patterns = _name_patterns(entries)
    pool: list[Entry] = []
    channels = _channel_patterns(entries)
    for directory in folders:
        real = Path(real_path(directory))
        if not real.is_dir() or not (real == root or root in real.parents):
            continue
        names = [
            name
            for name in sorted(os.listdir(directory), key=name_order)
            if not name.startswith(".")
            and _family(name) in suffixes
            and os.path.isfile(os.path.join(directory, name))
            and real_path(os.path.join(directory, name)) not in listed
            and not _named_like_label(name, patterns.get(str(real), ()))
        ]
        if channels:
            pool += _group_channels(directory, names, channels)
        else:
            pool += [{"image": os.path.join(directory, name)} for name in names]
    unique: dict[str, Entry] = {}
    for entry in pool:  # a folder may be reached by two names
        unique.setdefault(real_path(image_files(entry)[0]), entry)
    return list(unique.values())


def _family(file: str) -> str:
    suffix = split_suffix(Path(file).name)[1].lower() or Path(file).suffix.lower()
    return ".nii" if suffix == ".nii.gz" else suffix


# a name pattern: (regular expression, how specific it is, whether it is a label's)
_Pattern = tuple["re.Pattern[str]", int, bool]


def _name_patterns(entries: Iterable[Entry]) -> dict[str, set[_Pattern]]:
    """How image and label names are built in folders that hold both, learned from the listed pairs."""
    result: dict[str, set[_Pattern]] = {}
    for entry in entries:
        if "label" not in entry:
            continue
        label = Path(entry["label"])
        for file in image_files(entry):
            directory = real_path(str(Path(file).parent))
            if directory == real_path(str(label.parent)):
                result.setdefault(directory, set()).update(_pair_patterns(Path(file).name, label.name))
    return result


def _pair_patterns(image: str, label: str) -> list[_Pattern]:
    """What tells an image's name from its label's: ``p1.nii.gz, p1_seg.nii.gz`` differ by the tail ``_seg``."""
    (a, a_suffix), (b, b_suffix) = split_suffix(image), split_suffix(label)
    delimiters = "_-. "
    head = len(shared_start([a, b]))
    # a shared part ends at a delimiter: "vol_1" and "label_1" share "_1", not "l_1"
    while head and min(len(a), len(b)) > head and a[head - 1] not in delimiters:
        if a[head] in delimiters and b[head] in delimiters:
            break
        head -= 1
    tail = len(shared_start([a[head:][::-1], b[head:][::-1]]))
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
                f"{names[0]}: cannot tell how its channels are named, so no unlabeled images are looked for: "
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
            f"({enumerated(left)}): they are left out; complete them or write 'unlabeled' into the datalist"
        )
    return result

"""Names that whole communities give their files: modalities at the end (BraTS), BIDS, nnU-Net's dataset.json."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_ssl.data.cases import Entry, name_order, split_suffix
from monai_ssl.errors import DataError, enumerated

# the last word of a file's name, in the order in which the channels of a case are stacked
MODALITIES = ("t1n", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1post", "t2w", "t2", "t2f", "flair", "t2flair", "t2star",
              "pd", "pdw", "mr", "mri", "dwi", "adc", "hbv", "swi", "asl", "ct", "cta", "cbct", "ctres", "pet", "pt",
              "suv", "bold", "dce")  # fmt: skip
BIDS_LABELS = ("dseg", "mask", "seg", "msk", "lesion", "roi", "label")
# a label may repeat the kind of its image, and say what it shows: sub-01_T1w_dseg, sub-01_T1w_label-lesion_mask,
# sub-01_T2w_seg-manual
_ENTITY = r"[a-zA-Z]+-[a-zA-Z0-9+]+"
_BIDS_LABEL = re.compile(
    rf"(sub-[a-zA-Z0-9+]+)((?:_{_ENTITY})*)(?:_[a-zA-Z0-9]+)?(?:_{_ENTITY})*"
    rf"_(?:{'|'.join(BIDS_LABELS)}|(?:label|seg|mask|lesion|gmseg|dseg)-[a-zA-Z0-9+]+)",
    re.IGNORECASE,
)
_BIDS_IMAGE = re.compile(rf"(sub-[a-zA-Z0-9+]+)((?:_{_ENTITY})*)_([a-zA-Z0-9]+)")


def modality_groups(stems: Sequence[tuple[str, str]]) -> dict[str, list[str]] | None:
    """Files of one case that differ by the modality at the end of their names, in the order of :data:`MODALITIES`.

    Args:
        stems: (name without suffix, with its folder; file) of each image.

    Returns:
        name without the modality -> files; None where the names are built otherwise.

    Raises:
        DataError: when a case lacks a modality that others have.

    Example:
        >>> modality_groups([("a-t1c", "a-t1c.nii"), ("a-t1n", "a-t1n.nii")])
        {'a': ['a-t1n.nii', 'a-t1c.nii']}
    """
    groups: dict[str, dict[str, str]] = {}
    for stem, file in stems:
        match = re.fullmatch(r"(.*[^\W_])[-_. /]+([a-zA-Z0-9]+)", stem, re.DOTALL)
        if match is None or match[2].lower() not in MODALITIES:
            return None
        if groups.setdefault(match[1], {}).setdefault(match[2].lower(), file) != file:
            return None
    if not groups:
        return None
    widest = max(groups.values(), key=len)
    for base, found in groups.items():
        if missing := sorted(set(widest) - set(found), key=MODALITIES.index):
            raise DataError(
                f"{base.lstrip('/')}: must have the images {', '.join(sorted(widest, key=MODALITIES.index))} as other "
                f"cases do, {', '.join(missing)} is missing: add the file or remove the case"
            )
        if set(found) != set(widest):
            return None
    return {base: [found[m] for m in sorted(found, key=MODALITIES.index)] for base, found in groups.items()}


def modality_names(files: Sequence[str]) -> list[str]:
    """Names of the channels of a case, from the ends of its files' names.

    Example:
        >>> modality_names(["a-t1n.nii", "a-t1c.nii"])
        ['t1n', 't1c']
    """
    return [re.split(r"[-_. ]", split_suffix(Path(file).name)[0])[-1] for file in files]


def is_bids(names: Sequence[str]) -> bool:
    """Whether all file names are built as BIDS builds them: ``sub-01_ses-2_T1w``."""
    stems = [split_suffix(Path(name).name)[0] for name in names]
    return bool(stems) and all(_BIDS_LABEL.fullmatch(stem) or _BIDS_IMAGE.fullmatch(stem) for stem in stems)


def bids_cases(names: Sequence[str], root: Path) -> list[Entry]:
    """Cases of a BIDS folder: per subject and session its images, and the segmentation, also below ``derivatives``.

    Several images of a session (T1w, T2w, FLAIR) are channels where all sessions have the same ones.

    Args:
        names: relative to ``root``.
        root: of the data set.

    Raises:
        DataError: when a session has two segmentations, two images of one kind, or lacks one that others have.
    """
    images: dict[str, list[tuple[str, str]]] = {}
    labels: dict[str, list[str]] = {}
    for name in names:
        stem = name_order(split_suffix(Path(name).name)[0])
        labeled = _BIDS_LABEL.fullmatch(stem)
        match = labeled or _BIDS_IMAGE.fullmatch(stem)
        assert match is not None
        session = next((part for part in match[2].split("_") if part.startswith("ses-")), "")
        case = "_".join(part for part in (match[1], session) if part)
        if labeled is not None:
            labels.setdefault(case, []).append(name)
        elif "derivatives" not in Path(name).parts[:-1]:
            # what a program has derived of an image is no further image
            images.setdefault(case, []).append((f"{case}_{match[3]}", name))
    for case, found in labels.items():
        if len(found) > 1:
            raise DataError(f"{root}: {case} must have one segmentation, got {enumerated(found)}: keep one of them")
    for case, files in images.items():
        kinds = [kind for kind, _ in files]
        if len(set(kinds)) < len(kinds):
            repeated = [name for kind, name in files if kinds.count(kind) > 1]
            raise DataError(
                f"{root}: {case} has several images of one kind, {enumerated(repeated)}: keep one of them, or put "
                "those that belong together into a folder of their own"
            )
    stems = [pair for files in images.values() for pair in files]
    groups = modality_groups(stems)
    if groups is None:
        single = {case: [files[0][1]] for case, files in images.items() if len(files) == 1}
        if len(single) < len(images):
            kinds = sorted({kind.rpartition("_")[2] for files in images.values() for kind, _ in files})
            raise DataError(
                f"{root}: subjects have different kinds of images ({enumerated(kinds)}): keep those that all have"
            )
        groups = single
    entries: list[Entry] = []
    for case, members in groups.items():
        paths = [str(root / file) for file in members]
        entry: Entry = {"image": paths if len(paths) > 1 else paths[0]}
        if case in labels:
            entry["label"] = str(root / labels[case][0])
        entries.append(entry)
    if left := sorted(set(labels) - set(groups)):
        warnings.warn(f"{root}: segmentations without an image are left out: {enumerated(left)}")
    return entries


@dataclass(frozen=True)
class Described:
    """What a ``dataset.json`` of nnU-Net says beside the files.

    Attributes:
        labels: class -> name.
        channels: names of the channels.
        remarks: what was left out, a sentence each.
        ignore_label: value of voxels whose class nobody knows, which nnU-Net calls ``ignore``.
    """

    labels: dict[int, str] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    ignore_label: int | None = None


def described(root: Path) -> Described | None:
    """What ``dataset.json`` says in a folder with nnU-Net's ``imagesTr`` and ``labelsTr``; None where there is none.

    Both versions are read: ``channel_names`` or ``modality``, ``labels`` as name -> value or value -> name. Classes
    that are regions (lists of values) cannot be read.

    Raises:
        DataError: when the file cannot be read, or its labels are no classes 0, 1, 2, ...
    """
    file = root / "dataset.json"
    if not file.is_file() or not (root / "imagesTr").is_dir():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: must be a JSON file that can be read ({error}): correct it or move it away") from None
    if not isinstance(content, Mapping):
        return None
    test = sorted((root / "imagesTs").glob("*")) if (root / "imagesTs").is_dir() else []
    remarks = [f"{root / 'imagesTs'}: {len(test)} test images are left out; the pool is imagesTr without labels"]
    labels = content.get("labels")
    return Described(_classes(labels, file), _channels(content), remarks if test else [], _ignored(labels))


def _channels(content: Mapping[str, Any]) -> list[str]:
    names = content.get("channel_names") or content.get("modality") or {}
    if isinstance(names, Mapping) and all(str(key).isdigit() for key in names):
        return [str(names[key]) for key in sorted(names, key=lambda key: int(str(key)))]
    return [str(name) for name in names] if isinstance(names, list) else []


def _ignored(labels: Any) -> int | None:
    value = labels.get("ignore") if isinstance(labels, Mapping) else None
    return int(str(value)) if str(value).isdigit() else None


def _classes(labels: Any, file: Path) -> dict[int, str]:
    if not isinstance(labels, Mapping) or not labels:
        return {}
    pairs = [(value, name) if str(value).isdigit() else (name, value) for value, name in labels.items()]
    pairs = [(value, name) for value, name in pairs if str(name) != "ignore"]
    if any(not str(value).isdigit() for value, _ in pairs):
        odd = next(name for value, name in pairs if not str(value).isdigit())
        raise DataError(
            f"{file}: class {str(odd)[:60]!r} must be one value, got a region of several: write single classes"
        )
    return {int(str(value)): str(name) for value, name in sorted(pairs, key=lambda pair: int(str(pair[0])))}

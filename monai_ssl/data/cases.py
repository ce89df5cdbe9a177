"""Cases: their files and their names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ssl.files import files_below

Entry = dict[str, Any]


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

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

# a folder below the images that holds one of these was written by a training or a prediction: it is no data
TRAINING_FILES = ("run.json", "checkpoint.pt")
PREDICTION_FILE = "predict.json"
# the same of label maps that networks drew of a pool for a training
PSEUDO_LABEL_FILE = "pseudo_labels.json"


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


def result_suffix(name: str) -> str:
    """Suffix of the label map that is drawn for an image file: a picture gets a picture, everything else NIfTI.

    JPEG would change the labels; its results are PNG.

    Example:
        >>> [result_suffix(name) for name in ("a.PNG", "a.jpg", "a.tif", "a.mha", "a.nii")]
        ['.png', '.png', '.tif', '.nii.gz', '.nii.gz']
    """
    suffix = split_suffix(name)[1].lower()
    return {".jpg": ".png", ".jpeg": ".png"}.get(suffix, suffix if suffix in PICTURES else ".nii.gz")


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
    shared = shared_start(stems)
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
        repeated = repeated_names(names)
        if not repeated:
            break
        for index, name in enumerate(names):
            if name in repeated:
                names[index] = "_".join((*(part.strip("/\\:") for part in parents[index][-depth:]), base[index]))
    while repeated := repeated_names(names):
        seen: dict[str, int] = {}
        for index, name in enumerate(names):
            if name in repeated:
                seen[name] = seen.get(name, 0) + 1
                names[index] = f"{name}_{seen[name]}"
    return names


_CHANNEL = re.compile(r"_\d{4}$")


def prediction_files(folder: Path, entries: Sequence[Mapping[str, Any]]) -> list[list[Path]]:
    """Files below a folder that may be the segmentation of each case, by name; one is what should be.

    Of a case ``a``: ``a_seg``, ``a`` or ``a_pred``, the first that there is, with any image suffix; of ``a_0000`` (a
    channel, for nnU-Net) also those of ``a``, unless several cases would be called so. A repeated file name is told
    apart by its folder, as predictions repeat folders.

    Args:
        folder: searched with its subfolders.
        entries: the cases.
    """
    files: dict[str, list[Path]] = {}
    for file in files_below(folder):
        stem, suffix = split_suffix(file.name)
        if suffix:
            files.setdefault(stem, []).append(file)
    found, names = [], case_names(entries)
    texts_of = [(name, case_name(entry)) for name, entry in zip(names, entries, strict=True)]
    called: dict[str, set[str]] = {}
    for texts in texts_of:
        for text in texts:
            called.setdefault(_CHANNEL.sub("", text), set()).add(texts[1])
    for texts, entry in zip(texts_of, entries, strict=True):
        whole = [stem for text in texts if len(called[stem := _CHANNEL.sub("", text)]) == 1]
        stems = dict.fromkeys([*texts, *whole])
        wanted = (f"{stem}{tail}" for stem in stems for tail in ("_seg", "", "_pred"))
        there = next((files[stem] for stem in wanted if stem in files), [])
        place = Path(image_files(entry)[0]).parent.name
        found.append([file for file in there if file.parent.name == place] or there)
    return found


def shared_start(names: Sequence[str]) -> str:
    """The longest start that all names share, character by character."""
    low, high = min(names), max(names)
    length = next((index for index, char in enumerate(low) if char != high[index]), len(low))
    return low[:length]


def repeated_names(names: Iterable[str]) -> set[str]:
    """Names that appear more than once."""
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def real_path(file: str) -> str:
    """One name per file on disk, whatever links lead to it."""
    return os.path.realpath(file)


def name_order(name: str) -> str:
    """Key by which names are sorted: macOS stores decomposed characters, the order must not depend on that."""
    return unicodedata.normalize("NFC", name)

"""Finding images and labels in a folder and pairing them by their names."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from monai_ssl.curation.layouts import bids_cases, is_bids, modality_groups
from monai_ssl.data.cases import IMAGE_SUFFIXES, PSEUDO_LABEL_FILE, TRAINING_FILES, Entry, name_order, split_suffix
from monai_ssl.errors import DataError, enumerated
from monai_ssl.files import files_below

# names of the folders that hold images, and of those that hold labels; the first that there is
IMAGE_FOLDERS = ("imagestr", "images", "image", "imgs", "img", "scans", "volumes")
LABEL_FOLDERS = ("labelstr", "labels", "label", "masks", "mask", "segmentations", "segmentation", "lab", "seg", "segs",
                 "gt", "groundtruth", "ground_truth", "annotations")  # fmt: skip
# words that tell image from label and do not belong to the name of the case
IMAGE_WORDS = frozenset({"image", "images", "img", "im", "vol", "volume", "scan", "imaging"})
LABEL_WORDS = frozenset(
    {
        "label",
        "labels",
        "lab",
        "lbl",
        "seg",
        "segmentation",
        "segmentations",
        "mask",
        "masks",
        "gt",
        "groundtruth",
        "dseg",
        "msk",
        "annotation",
        "annotations",
    }
)


def is_decathlon(path: Path) -> bool:
    """True for a Decathlon dataset.json; nnU-Net's has the same name and no list of cases, or one of its own names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError:
        return False
    except ValueError as error:
        raise DataError(f"{path}: must be a JSON file ({error}): correct it or move it away") from error
    if not isinstance(content, dict) or not isinstance(content.get("training"), list):
        return False
    first = next(iter(content["training"]), None)
    image = first.get("image") if isinstance(first, dict) else None
    if isinstance(image, str) and not (path.parent / image).exists():
        stem, suffix = split_suffix(image)
        return not (path.parent / f"{stem}_0000{suffix}").exists()  # version 1 of nnU-Net leaves the channel out
    return True


def find_folders(root: Path) -> tuple[Path, Path]:
    """Folders of images and labels below ``root``, by the names that people give them; ``root`` twice where both mix.

    Raises:
        DataError: when there are images and no folder of labels.
    """
    folders = _folders(root)
    images = next((folders[name] for name in IMAGE_FOLDERS if name in folders), None)
    labels = next((folders[name] for name in LABEL_FOLDERS if name in folders), None)
    if images is not None and labels is not None:
        return images, labels
    if images is not None and images.name.lower() not in ("scans", "volumes"):
        raise DataError(
            f"{root}: holds {images.name} but no folder of labels such as labels or masks: name it with --labels"
        )
    return root, root


def images_folder(root: Path) -> Path:
    """The folder of images below ``root``, by the names that people give it, else ``root`` itself."""
    folders = _folders(root)
    return next((folders[name] for name in IMAGE_FOLDERS if name in folders), root)


def _folders(root: Path) -> dict[str, Path]:
    return {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", name_order(text).lower())


def _key(relative: str) -> tuple[str, ...]:
    """What identifies a case in a file name, with its subfolder and without the words for image and label."""
    folder, _, name = relative.rpartition("/")
    words = [word for word in _words(split_suffix(name)[0]) if word not in IMAGE_WORDS | LABEL_WORDS]
    return (*(word for word in _words(folder) if word not in IMAGE_WORDS | LABEL_WORDS), "/", *words)


def _stem(relative: str) -> str:
    folder, _, name = relative.rpartition("/")
    return name_order(f"{folder}/{split_suffix(name)[0]}")


def image_names(root: Path) -> list[str]:
    """Image files below ``root``, as relative POSIX paths in an order that is the same everywhere.

    What a training or a self-training wrote is left out; segmentations of a model may be somebody's labels.
    """
    found = (path.relative_to(root).as_posix() for path in files_below(root, (*TRAINING_FILES, PSEUDO_LABEL_FILE)))
    return sorted((name for name in found if name.lower().endswith(IMAGE_SUFFIXES)), key=name_order)


def pair(image_dir: Path, label_dir: Path) -> list[Entry]:
    """One entry per image (or per group of channels), with its label where one fits by name.

    Args:
        image_dir: folder of the images, searched with its subfolders.
        label_dir: folder of the labels; the same where both are together.

    Raises:
        DataError: without images or labels, when no name fits, or one fits twice.
    """
    if image_dir == label_dir and is_bids(everything := image_names(image_dir)):
        entries = bids_cases(everything, image_dir)
        if any("label" in entry for entry in entries):
            return entries
    images, labels = _images_and_labels(image_dir, label_dir)
    cases, key = _cases(images, labels, image_dir, mixed=image_dir == label_dir)

    # labels by the very name of the case, and by what is left of it without the words for image and label
    by_stem: dict[str, list[str]] = {}
    by_key: dict[tuple[str, ...], list[str]] = {}
    for name in labels:
        by_stem.setdefault(_stem(name), []).append(name)
        by_key.setdefault(key(name, False), []).append(name)
    # cases that share the second are rivals for a label, unless the very name decides
    rivals: dict[tuple[str, ...], list[str]] = {}
    for base, _ in cases:
        if base not in by_stem:
            rivals.setdefault(key(base, True), []).append(base)

    entries, used = [], set()
    for base, files in cases:
        paths = [str(image_dir / name) for name in files]
        entry: Entry = {"image": paths if len(paths) > 1 else paths[0]}
        found = by_stem.get(base) or by_key.get(key(base, True), [])
        if len(found) > 1:
            raise DataError(
                f"{paths[0]}: must have one label, got {enumerated(found)}: keep one of them in {label_dir}"
            )
        if found and base not in by_stem and len(rivals[key(base, True)]) > 1:
            names = [rival.lstrip("/") for rival in rivals[key(base, True)]]
            raise DataError(f"{label_dir / found[0]}: fits several images, {enumerated(names)}: rename it after one")
        if found:
            if found[0] in used:
                raise DataError(
                    f"{label_dir / found[0]}: fits several images, {paths[0]} among them: rename it after one"
                )
            entry["label"] = str(label_dir / found[0])
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


def _images_and_labels(image_dir: Path, label_dir: Path) -> tuple[list[str], list[str]]:
    """Names of the images and of the labels, told apart by their words where both share a folder."""
    images = image_names(image_dir)
    if image_dir == label_dir:
        labels = [name for name in images if _is_label(name)]
        images = [name for name in images if name not in set(labels)]
        if not labels:
            raise DataError(
                f"{image_dir}: holds no labels that their names tell from images (like *_seg.nii.gz): put them into a "
                "folder of their own and name it with --labels"
            )
    else:
        labels = image_names(label_dir)
        # the folder of the labels may lie inside the folder of the images
        inside = {str(label_dir / name) for name in labels}
        images = [name for name in images if str(image_dir / name) not in inside]
    if not images:
        raise DataError(
            f"images must be a folder with images ({', '.join(IMAGE_SUFFIXES[:4])}, ...), got none in {image_dir}"
        )
    if not labels:
        raise DataError(f"labels must be a folder with label files, got none in {label_dir}: check the path")
    return images, labels


def _is_label(name: str) -> bool:
    """Whether the words of a name, or a folder on its way, say that it is a label."""
    if set(_words(split_suffix(Path(name).name)[0])) & LABEL_WORDS:
        return True
    return any(folder.lower() in LABEL_FOLDERS for folder in Path(name).parts[:-1])


# what identifies a case in a name; True for an image's, False for a label's
_Key = Callable[[str, bool], tuple[str, ...]]
_Case = tuple[str, list[str]]


def _cases(images: Sequence[str], labels: Sequence[str], image_dir: Path, mixed: bool) -> tuple[list[_Case], _Key]:
    """Cases as (stem, files), and the key by which a label is found that has not the very stem of its case.

    A case is an image, or a group of channels: nnU-Net's numbers, modalities. The strictest reading of the names that
    pairs anything is taken.
    """
    single: list[_Case] = [(_stem(name), [name]) for name in images]
    stems = {_stem(name) for name in labels}
    if stems & {base for base, _ in single}:
        return single, _strict
    # four digits at the end are channels only next to labels that are named without them
    groups = _channels(images, image_dir)
    if groups is not None and stems & groups.keys():
        return list(groups.items()), _strict
    # ... as are modalities (BraTS), where labels are named without them
    modalities, incomplete = _modalities(images)
    keys: list[tuple[_Key, bool]] = [(_strict, False), (_without_folders, True), (_each_word_once, True)]
    if mixed:
        keys.append((_folder_only, True))  # ct.nii.gz and segmentation.nii.gz in a folder per patient
    keys.append((_what_differs(images, labels), True))
    for key, distinct in keys:
        for cases in (modalities, single):
            if cases and _fits(cases, labels, key, distinct):
                if incomplete is not None and key is not _strict:
                    raise incomplete
                if key is keys[-1][0]:
                    _say_pairing(cases, labels, key)
                return cases, key
    if incomplete is not None:
        raise incomplete
    return single, _strict


def _modalities(images: Sequence[str]) -> tuple[list[_Case], DataError | None]:
    """Groups by modality, or what is missing of them; it counts only where names do not pair without them."""
    try:
        groups = modality_groups([(_stem(name), name) for name in images])
    except DataError as error:
        return [], error
    return list((groups or {}).items()), None


def _fits(cases: Sequence[_Case], labels: Sequence[str], key: _Key, distinct: bool) -> bool:
    """Whether a label has the key of a case; loose keys must also tell all cases and all labels apart."""
    of_cases = [key(base, True) for base, _ in cases]
    of_labels = [key(name, False) for name in labels]
    if distinct and (len(set(of_cases)) < len(of_cases) or len(set(of_labels)) < len(of_labels)):
        return False
    return bool(set(of_cases) & set(of_labels) - {()})


def _strict(name: str, image: bool) -> tuple[str, ...]:
    return _key(name)


def _without_folders(name: str, image: bool) -> tuple[str, ...]:
    """``siteA/p01`` and ``p01_seg``."""
    key = _key(name)
    return key[key.index("/") + 1 :]


def _each_word_once(name: str, image: bool) -> tuple[str, ...]:
    """``p01/image`` and ``p01``; ``10000/10000_t2w`` and ``10000``."""
    return tuple(dict.fromkeys(word for word in _key(name) if word != "/"))


def _folder_only(name: str, image: bool) -> tuple[str, ...]:
    """``p01/abdomen`` and ``p01/seg``."""
    return tuple(part for part in name_order(name).rpartition("/")[0].split("/") if part)


def _what_differs(images: Sequence[str], labels: Sequence[str]) -> _Key:
    """``pat_0001`` and ``lab_p_0001``: what all images share, and all labels, says nothing about the case."""
    shared = {
        image: set.intersection(*({word for word in _key(name) if word != "/"} for name in names))
        for image, names in ((True, images), (False, labels))
    }

    def key(name: str, image: bool) -> tuple[str, ...]:
        return tuple(word for word in _key(name) if word != "/" and word not in shared[image])

    return key


def _say_pairing(cases: Sequence[_Case], labels: Sequence[str], key: _Key) -> None:
    named = {key(name, False): name for name in labels}
    base, label = next((base, named[key(base, True)]) for base, _ in cases if key(base, True) in named)
    warnings.warn(
        f"images and labels are paired by what differs in their names, {base.lstrip('/')} with {label}: look at the "
        "datalist before you train"
    )


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

"""Labels of an annotation server as a training takes them: whose, what their values mean, which can be used."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data import Preset
from monai_ssl.data.datalist import Datalist
from monai_ssl.errors import DataError, enumerated, one_line
from monai_ssl.labels import IGNORE_LABEL

logger = logging.getLogger(__name__)

# name of a segment whose voxels are to be ignored
IGNORED = "ignore"


@dataclass
class TrainingCases:
    """What of a datastore goes into a training.

    Attributes:
        labeled: entries ``{"image", "label"}``, with classes numbered as the preset numbers them.
        unlabeled: entries ``{"image"}``.
        aside: name of a case -> why it is not used.
    """

    labeled: list[dict[str, str]] = field(default_factory=list)
    unlabeled: list[dict[str, str]] = field(default_factory=list)
    aside: dict[str, str] = field(default_factory=dict)

    def explain(self) -> str:
        """A sentence on the cases that are set aside, empty where there is none."""
        reasons = [f"{name}: {reason}" for name, reason in sorted(self.aside.items())]
        return f"not used: {enumerated(reasons, 3)}" if reasons else ""


def is_automatic(info: Mapping[str, Any] | None) -> bool:
    """Whether what the datastore notes of a label says that a model has drawn it, and nobody has submitted it since.

    Example:
        >>> is_automatic({"model": "dtc", "params": {}}), is_automatic({"label_info": []}), is_automatic({})
        (True, False, False)
    """
    return bool(info) and "model" in (info or {}) and "label_info" not in (info or {})


def class_values(info: Mapping[str, Any] | None, preset: Preset) -> dict[int, int] | None:
    """Value in a submitted label -> class of the preset, from the names of its segments.

    3D Slicer numbers segments by their place in its list and sends the names beside it: after a segment was deleted or
    moved, the numbers are not those of the classes any more, the names still are. Where the preset has an
    ``ignore_label``, a segment may be called "ignore".

    Args:
        info: of the label; ``label_info`` is a list of ``{"name": ..., "idx": ...}``.
        preset: whose ``labels`` name the classes.

    Returns:
        None where there are no names, so that the values are taken as they are; of voxels to be ignored
        :data:`~monai_ssl.labels.IGNORE_LABEL`.

    Raises:
        DataError: for a name that is no class, or two segments of one class.

    Example:
        >>> preset = Preset(name="mine", labels={0: "background", 1: "RV", 2: "LV"}, patch_size=(16, 16, 16))
        >>> class_values({"label_info": [{"name": "LV", "idx": 0}, {"name": "RV", "idx": 1}]}, preset)
        {1: 2, 2: 1}
    """
    segments = (info or {}).get("label_info")
    if not isinstance(segments, Sequence) or isinstance(segments, str):
        return None
    named = [
        (place, s) for place, s in enumerate(segments) if isinstance(s, Mapping) and str(s.get("name", "")).strip()
    ]
    if not named:
        return None
    classes = {_plain(name): int(value) for value, name in preset.labels.items()}
    if preset.ignore_label is not None:  # what an annotator calls a region that nobody should learn from
        classes = {IGNORED: IGNORE_LABEL} | classes
    numbers = [segment.get("idx") for _, segment in named]
    known = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    first = 1 if not known or 0 in numbers else 0  # places are counted from 0, values from 1
    result: dict[int, int] = {}
    for place, segment in named:
        name = str(segment["name"])
        if _plain(name) not in classes:
            raise DataError(
                f"segment {name[:60]!r} is no class of the model ({', '.join(map(str, preset.labels.values()))}): "
                "rename it, or add the class to 'labels' in the preset and write the app anew"
            )
        value = (int(segment["idx"]) if known else place) + first
        target = classes[_plain(name)]
        if value and target and target in result.values():
            raise DataError(f"two segments are called {name[:60]!r}: merge them")
        if value:
            result[value] = target
    return result


def _plain(name: Any) -> str:
    return re.sub(r"[\W_]+", " ", str(name)).strip().casefold()


def stored_values(values: Mapping[int, int], preset: Preset) -> dict[int, int]:
    """The same with the values that label files of a preset hold: what is written will be read by the preset's rules.

    What no segment covers, 0, is background.

    Args:
        values: value -> class, or :data:`~monai_ssl.labels.IGNORE_LABEL`.
        preset: whose ``label_map`` and ``ignore_label`` say what files hold.

    Raises:
        DataError: for a class that no value in a file stands for.

    Example:
        >>> preset = Preset(name="mine", labels={0: "background", 1: "RV"}, label_map={1: 0, 2: 1}, ignore_label=0,
        ...                 patch_size=(16, 16, 16))
        >>> stored_values({1: 1, 2: 255}, preset)
        {0: 1, 1: 2, 2: 0}
    """
    files: dict[int, int] = {IGNORE_LABEL: preset.ignore_label} if preset.ignore_label is not None else {}
    files |= {target: value for value, target in preset.label_map.items()}
    files |= {c: c for c in preset.labels if c not in preset.label_map and c != preset.ignore_label}
    values = {0: 0, **values}
    if missing := [target for target in values.values() if target not in files]:
        raise DataError(f"class {missing[0]} has no value in label files by the preset's label_map: correct it there")
    return {value: files[target] for value, target in values.items()}


def with_class_values(label: str | Path, values: Mapping[int, int], target: Path) -> Path:
    """The label with its values replaced; the file itself where nothing changes.

    Args:
        label: file.
        values: value in the file -> class.
        target: file to write, ``.nii.gz``.

    Raises:
        DataError: for a value that has no name.
    """
    import nibabel as nib

    from monai_ssl.data.reading import read_label
    from monai_ssl.files import atomic_path

    voxels, affine = read_label(str(label))
    found = [int(value) for value in np.unique(voxels) if value]
    if missing := [value for value in found if value not in values]:
        raise DataError(f"value {missing[0]} in the label belongs to no segment that was sent with it: submit it again")
    if all(values.get(value, 0) == value for value in [0, *found]):
        return Path(label)
    table = np.full(max(found) + 1, values.get(0, 0), dtype=np.int32)
    for value in found:
        table[value] = values[value]
    if table.min() >= 0 and table.max() < 256:
        table = table.astype(np.uint8)
    array = table[np.asarray(voxels[0]).astype(int)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), temporary)
    return target


def usable_cases(
    labeled: Iterable[tuple[str, str, str, Mapping[str, Any]]],
    unlabeled: Iterable[tuple[str, str]],
    preset: Preset,
    folder: Path,
) -> TrainingCases:
    """Which cases of a datastore can be trained on, each looked at by itself.

    A label that somebody has to mend does not keep the others from training: its case is set aside and named. So is a
    label that a model has drawn: nothing is trained on its own predictions.

    Args:
        labeled: name, image, label and what is noted of the label, for each.
        unlabeled: name and image, for each.
        preset: what the data must be.
        folder: for labels whose values had to be changed.

    Raises:
        DataError: when no label is left, with the reasons.
    """
    from monai_ssl.curation.verify import verify

    cases = TrainingCases()
    names: dict[str, str] = {}
    for name, image, label, info in labeled:
        if is_automatic(info):
            cases.aside[name] = "its label was drawn by a model and never submitted by an annotator"
            continue
        try:
            values = class_values(info, preset)
            file = label
            if values is not None:
                written = stored_values(values, preset)
                file = str(with_class_values(label, written, folder / f"{name}.nii.gz"))
        except DataError as error:
            cases.aside[name] = one_line(error, 300)
            continue
        names[image] = names[file] = name
        cases.labeled.append({"image": image, "label": file})
    for name, image in unlabeled:
        names[image] = name
        cases.unlabeled.append({"image": image})
    problems = verify(Datalist(training=cases.labeled, unlabeled=cases.unlabeled), preset, progress=False)
    for problem in problems:
        if problem.severity == "error" and problem.file in names:
            cases.aside.setdefault(names[problem.file], one_line(problem.message, 300))
    cases.labeled = [entry for entry in cases.labeled if names[entry["image"]] not in cases.aside]
    cases.unlabeled = [entry for entry in cases.unlabeled if names[entry["image"]] not in cases.aside]
    if not cases.labeled:
        raise DataError(f"training needs at least one label that can be used: annotate and submit one. "
                        f"{cases.explain()}".strip())  # fmt: skip
    if cases.aside:
        logger.warning("monai_ssl: %s", cases.explain())
    return cases

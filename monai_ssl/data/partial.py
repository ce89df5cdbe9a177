"""Labels of which a datalist says that they cover a part only: some slices of a scan, some of the classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from monai_ssl.data.preset import Preset
from monai_ssl.data.rules import Finding, ignored_share
from monai_ssl.errors import DataError, enumerated, shortened
from monai_ssl.labels import IGNORE_LABEL

# keys of an entry beside its files
KEYS = ("classes", "slices", "slice_axis")
# where a prepared label notes the classes that are annotated in it, as a text: other kinds would be collated
NOTE = "annotated_classes"
DRAWN = "drawn"
# one drawn slice, or two, may be a small structure
FEW = 3


@dataclass(frozen=True)
class Annotated:
    """What of a scan was annotated.

    Attributes:
        classes: foreground classes; None: all. A voxel of the background may then be of a class that nobody drew.
        slices: indices from 0 of the annotated slices, in the order of the file; ``"drawn"``: those with foreground;
            None: all.
        slice_axis: along which they are counted, of the axes as stored; None: the last one.
    """

    classes: tuple[int, ...] | None = None
    slices: tuple[int, ...] | Literal["drawn"] | None = None
    slice_axis: int | None = None

    @classmethod
    def of(cls, entry: Mapping[Any, Any]) -> Annotated:
        """What an entry of a datalist says.

        Raises:
            DataError: for a value of a wrong type.

        Example:
            >>> Annotated.of({"image": "a.nii", "label": "a_seg.nii", "slices": [3, 8], "slice_axis": 2})
            Annotated(classes=None, slices=(3, 8), slice_axis=2)
        """
        classes, slices, axis = (entry.get(key) for key in KEYS)
        if classes is not None and (not _whole(classes, 1) or not classes):
            raise DataError(f"'classes' must list the annotated classes, like [1, 3], got {shortened(classes)}")
        if slices is not None and slices != DRAWN and (not _whole(slices, 0) or not slices):
            raise DataError(
                f"'slices' must list the annotated slices, counted from 0, like [3, 8], or be {DRAWN!r} for those that "
                f"hold a label, got {shortened(slices)}"
            )
        if axis is not None and (isinstance(axis, bool) or axis not in (0, 1, 2)):
            raise DataError(f"'slice_axis' must be 0, 1 or 2, got {shortened(axis)}")
        if axis is not None and slices is None:
            raise DataError("'slice_axis' goes with 'slices': add them, or remove it")
        listed = tuple(slices) if isinstance(slices, list) else slices
        return cls(None if classes is None else tuple(sorted(classes)), listed, axis)

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.classes is None and self.slices is None

    def findings(self, label: np.ndarray, preset: Preset) -> list[Finding]:
        """What is wrong with a label that is annotated so.

        Args:
            label: as it was read, values are classes; channel first (1, X, Y[, Z]).
            preset: whose classes they are.
        """
        problems = [*self._class_problems(label, preset), *self._slice_problems(label)]
        if not problems and not self.whole and ignored_share(self.marked(label, preset)) == 1.0:
            problems = ["label must know the class of some voxel, got none in what its entry calls annotated: correct "
                        "the entry, or move the case to 'unlabeled'"]  # fmt: skip
        return [Finding("partial", "error", problem, "label") for problem in problems]

    def _class_problems(self, label: np.ndarray, preset: Preset) -> list[str]:
        if self.classes is None:
            return []
        foreground = [value for value in sorted(preset.labels) if value]
        if unknown := [value for value in self.classes if value not in foreground]:
            return [f"'classes' of its entry must be among {foreground}, got {unknown[0]}: correct the entry"]
        there = set(np.unique(label).tolist()) - {0, IGNORE_LABEL, *self.classes}
        if there:
            text = f"label must hold the classes {list(self.classes)} of its entry only, got {int(min(there))}"
            return [f"{text}: list it there, or remove it from the file"]
        return []

    def _slice_problems(self, label: np.ndarray) -> list[str]:
        if self.slices is None:
            return []
        axes = label.ndim - 1
        if axes < 3:
            return [f"'slices' of its entry are for volumes, got an image of {axes} axes: remove them"]
        depth = label.shape[1 + self._axis(label)]
        drawn = self._drawn(label)
        if self.slices == DRAWN:
            return []
        if beyond := [index for index in self.slices if index >= depth]:
            text = f"'slices' of its entry must be 0 to {depth - 1} along axis {self._axis(label)}, got {beyond[0]}"
            return [f"{text}: correct the entry"]
        if others := sorted(set(drawn) - set(self.slices)):
            shown = enumerated(list(map(str, others)))
            text = f"label must be empty outside of the 'slices' of its entry, got foreground in {shown}"
            return [f"{text} (counted from 0 along axis {self._axis(label)}): list these slices, too"]
        return []

    def _axis(self, label: np.ndarray) -> int:
        return label.ndim - 2 if self.slice_axis is None else self.slice_axis

    def _drawn(self, label: np.ndarray) -> list[int]:
        return drawn_slices(label[0], self._axis(label))

    def marked(self, label: np.ndarray, preset: Preset, by_class: bool = True) -> np.ndarray:
        """The label with :data:`~monai_ssl.labels.IGNORE_LABEL` where nobody has looked.

        Args:
            label: channel first (1, X, Y[, Z]), values are classes; not changed.
            preset: whose classes they are.
            by_class: also where only some classes were drawn: the whole background. Scores do without: of a class that
                was drawn, the background is known.
        """
        unknown = np.zeros(label.shape, bool)
        foreground = {value for value in preset.labels if value}
        if by_class and self.classes is not None and set(self.classes) != foreground:
            unknown |= label == 0
        if self.slices is not None and label.ndim == 4:
            known = np.zeros(label.shape[1 + self._axis(label)], bool)
            listed: Any = self._drawn(label) if self.slices == DRAWN else list(self.slices)
            known[listed] = True
            shape = [1] * label.ndim
            shape[1 + self._axis(label)] = -1
            unknown |= ~known.reshape(shape)
        if not unknown.any():
            return label
        kind = np.promote_types(label.dtype, np.uint8)
        return np.where(unknown, np.asarray(IGNORE_LABEL, kind), label.astype(kind))

    def text(self) -> str:
        """A short text, equal for what is equal; empty for a whole label."""
        return "" if self.whole else json.dumps([self.classes, self.slices, self.slice_axis])


def _whole(values: Any, low: int) -> bool:
    numbers = isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**31 for value in values
    )
    return numbers and len(set(values)) == len(values)


def drawn_slices(label: np.ndarray, axis: int) -> list[int]:
    """Slices along an axis that hold foreground.

    Args:
        label: (*spatial), values are classes or :data:`~monai_ssl.labels.IGNORE_LABEL`.
        axis: of the slices.

    Example:
        >>> drawn_slices(np.array([[0, 1, 0], [0, 0, 2]]), 1)
        [1, 2]
    """
    foreground = (label != 0) & (label != IGNORE_LABEL)
    others = tuple(other for other in range(label.ndim) if other != axis)
    return np.flatnonzero(foreground.any(axis=others)).tolist()


def sparse_finding(label: np.ndarray) -> Finding | None:
    """Whether a label looks as if only some slices had been annotated, and the datalist does not say so.

    Args:
        label: channel first (1, X, Y, Z).
    """
    if label.ndim != 4:
        return None
    for axis in (2, 1, 0):
        drawn = drawn_slices(label[0], axis)
        if len(drawn) >= FEW and np.diff(drawn).min() > 1:
            some = enumerated(list(map(str, drawn)), 3)
            text = f"label is drawn in single slices ({some} along axis {axis}) and empty between them"
            where = "" if axis == 2 else f', "slice_axis": {axis}'
            advice = f'if nobody looked at the others, add "slices": "{DRAWN}"{where} to its entry'
            return Finding("sparse_slices", "warning", f"{text}: {advice}", "label")
    return None


def scored_classes(note: str | None, labels: Mapping[int, str]) -> dict[int, str]:
    """Classes of which a prepared label can tell how well they were found.

    Args:
        note: what its metadata hold under :data:`NOTE`.
        labels: all classes.

    Example:
        >>> scored_classes("1,3", {0: "background", 1: "a", 2: "b", 3: "c"})
        {0: 'background', 1: 'a', 3: 'c'}
    """
    if not note:
        return dict(labels)
    chosen = {0, *map(int, note.split(","))}
    return {value: name for value, name in labels.items() if int(value) in chosen}


def annotated_classes(entry: Mapping[str, Any], labels: Mapping[int, str]) -> dict[int, str]:
    """:func:`scored_classes` of an entry of a datalist."""
    classes: Sequence[int] | None = Annotated.of(entry).classes
    return scored_classes(None if classes is None else ",".join(map(str, classes)), labels)

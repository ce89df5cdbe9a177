"""Labels of the unlabeled pool, drawn by trained networks, with what speaks for each of them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_ssl.data.cases import case_names, prediction_files
from monai_ssl.data.partial import Annotated
from monai_ssl.data.pipelines import plausible_flips, resampled_label, saver
from monai_ssl.data.preset import Preset
from monai_ssl.data.pseudo_labels import RELIABILITY, table_rows
from monai_ssl.data.reading import read_label
from monai_ssl.engines.inferer import WindowInferer
from monai_ssl.engines.segment import VolumeSegmenter
from monai_ssl.errors import DataError, enumerated, plural
from monai_ssl.files import cell, text_of_cell, write_text
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.progress import followed
from monai_ssl.runs.folder import Run
from monai_ssl.runs.identity import digests
from monai_ssl.runs.predict import open_segmenter
from monai_ssl.transforms import largest_component
from monai_ssl.weights import content_digest, load

if TYPE_CHECKING:
    from monai_ssl.data.cases import Entry

console = logging.getLogger("monai_ssl.console")

RECORD, ROWS = "pseudo_labels.json", "rows.jsonl"
# of neighboring windows at most: closer ones cost more than the training that they are for, and change little
OVERLAP = 0.5
# a class counts as one piece where this share of its voxels hangs together in every labeled scan
ONE_PIECE = 0.99
COLUMNS = ("case", "reliability", "kept", "agreement", "confidence", "unsure")


@dataclass(frozen=True)
class Rules:
    """How the pool is labeled.

    Attributes:
        tta: average over mirrored views.
        sure: probability below which a voxel's class is left open (255), in [0, 1).
        drop: share of the scans, those of the lowest reliability, that teach nothing, in [0, 1).
        one_piece: classes of which only the largest component is kept.
        always: classes that every labeled scan shows: a scan without one is not trusted.
    """

    tta: bool
    sure: float = 0.0
    drop: float = 0.1
    one_piece: tuple[int, ...] = ()
    always: tuple[int, ...] = ()


@dataclass(frozen=True)
class Teacher:
    """A trained network that labels.

    Attributes:
        bundle: its folder.
        weights: its file.
        settings: ids of the bundle's ``configs/inference.yaml`` -> values.
    """

    bundle: Path
    weights: Path
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run, **overrides: Any) -> Teacher:
        """The network of a run; ``overrides``: device, amp, ..."""
        bundle, settings = run.settings(["inference.yaml"], overrides)
        return cls(bundle, run.weights(), settings)


def known_label(entry: Entry, preset: Preset) -> tuple[Annotated, np.ndarray]:
    """What of a labeled scan was annotated, and its label ``(1, *spatial)``: 255 where nobody has looked."""
    annotated = Annotated.of(entry)
    label = read_label(entry["label"], preset.label_map, preset.ignore_label)[0]
    return annotated, annotated.marked(label, preset, by_class=False)


def anatomy(entries: Sequence[Entry], preset: Preset) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the labeled scans tell of each class: those that are always one piece, and those that are always there.

    Args:
        entries: labeled cases.
        preset: the data set.
    """
    shares: dict[int, list[float]] = {value: [] for value in range(1, preset.n_classes)}
    for entry in entries:
        annotated, stored = known_label(entry, preset)
        for value, found in shares.items():
            if annotated.slices is not None or value not in (annotated.classes or shares):
                continue  # slices of a structure are no pieces of it, and of a class that nobody drew nothing is known
            mask = stored[0] == value
            found.append(float(largest_component(mask).sum() / mask.sum()) if mask.any() else math.nan)
    always = tuple(value for value, found in shares.items() if found and not any(map(math.isnan, found)))
    one_piece = []
    for value, found in shares.items():
        present = [share for share in found if not math.isnan(share)]
        if present and min(present) >= ONE_PIECE:
            one_piece.append(value)
    return tuple(one_piece), always


def draw(
    teachers: Sequence[Teacher],
    entries: Sequence[Entry],
    preset: Preset,
    folder: Path,
    rules: Rules,
    before: Callable[[], None] | None = None,
) -> tuple[list[dict[str, str]], float]:
    """Label every image; started again, it goes on with those that are missing.

    Args:
        teachers: trained networks; the mean of their probabilities labels.
        entries: the pool.
        preset: of the data.
        folder: gets ``CASE_seg.nii.gz`` (a picture for a picture) and ``reliability.csv``. What other networks or rules
            have left there is set aside.
        rules: how.
        before: called when something is going to be drawn.

    Returns:
        rows of ``reliability.csv``, and the seconds that drawing took, those of interrupted calls included; 0 where
        everything had been drawn.
    """
    record = _record(teachers, entries, preset, rules)
    stated = folder / RECORD
    names, write = case_names(entries), LabelWriter(folder)
    if folder.is_dir() and any(folder.iterdir()):
        begun = (folder / ROWS).is_file()
        if not _equal(_stated(stated), record):
            set_aside(folder, "label maps of other networks, images or settings")
        elif not begun and not (folder / RELIABILITY).is_file() and any(prediction_files(folder, entries)):
            # complete once: somebody may have corrected them
            set_aside(folder, f"label maps without their {RELIABILITY}")
        elif (folder / RELIABILITY).is_file():
            rows = read_rows(folder, names, preset.n_classes)
            absent = [name for name, found in zip(names, prediction_files(folder, entries), strict=True) if not found]
            if not absent:
                return rows, 0.0
            console.warning("warning: %s: %s gone, drawn again: %s; `kept` 0 in %s leaves a scan out", folder,
                            plural(len(absent), "label map"), enumerated(absent), RELIABILITY)  # fmt: skip
            if before is not None:
                before()
            again = [(name, entry) for name, entry in zip(names, entries, strict=True) if name in absent]
            drawn = []
            for name, entry, label, row in _labels(teachers, again, preset, rules):
                write(name, entry, label)
                drawn.append(row)
            return rows, _seconds(drawn)
    if before is not None:
        before()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(stated, json.dumps(record, indent=1) + "\n")
    done = {row["case"]: row for row in whole_lines(folder / ROWS)}
    done = {
        name: done[name] for name, entry in zip(names, entries, strict=True)
        if name in done and write.file(name, entry).is_file()
    }  # fmt: skip
    write_text(
        folder / ROWS, "".join(json.dumps(row) + "\n" for row in done.values())
    )  # without a line that a kill cut
    left = [(name, entry) for name, entry in zip(names, entries, strict=True) if name not in done]
    for name, entry, label, row in _labels(teachers, left, preset, rules):
        write(name, entry, label)
        done[name] = {"case": name, **row}
        with open(folder / ROWS, "a", encoding="utf-8") as file:
            file.write(json.dumps(done[name]) + "\n")
    rows = _kept([done[name] for name in names], rules.drop)
    write_text(folder / RELIABILITY, _table(rows))
    (folder / ROWS).unlink(missing_ok=True)
    return read_rows(folder, names, preset.n_classes), _seconds(done.values())


def _seconds(rows: Iterable[Mapping[str, Any]]) -> float:
    return sum((float(row.get("seconds", 0)) for row in rows), 0.0)


def _labels(
    teachers: Sequence[Teacher], cases: Sequence[tuple[str, Entry]], preset: Preset, rules: Rules
) -> Iterator[tuple[str, Entry, Tensor, dict[str, Any]]]:
    """Name, entry, label map and row of every case."""
    labelers = [_Labeler(teacher, preset, rules.tta) for teacher in teachers] if cases else []
    for name, entry in followed(cases, "label the pool", len(cases)):
        start = time.monotonic()
        views = (view for labeler in labelers for view in labeler.views(entry["image"]))
        label, row = _judged(views, rules, preset.n_classes)
        if 0 < row["unsure"] < 1 and bool((resampled_label(label, preset) == IGNORE_LABEL).all()):
            row["unsure"] = 1.0  # the network's grid keeps none of the sure voxels: nothing to learn from
        yield name, entry, label, {**row, "seconds": round(time.monotonic() - start, 3)}


def read_rows(folder: Path, names: Sequence[str], n_classes: int) -> list[dict[str, str]]:
    """Rows of a folder's ``reliability.csv``, which people may have edited.

    Args:
        folder: of the label maps.
        names: of the pool's cases; the table must have a row of each.
        n_classes: background included.

    Raises:
        DataError: when it is not such a table.
    """
    table = folder / RELIABILITY
    advice = "correct it, or remove it: the same command sets the label maps aside and draws them anew"
    numbers = ["reliability", "confidence", "unsure", *(f"voxels_{value}" for value in range(n_classes))]
    rows = [{key: text_of_cell(value or "") for key, value in row.items() if key} for row in table_rows(table)]
    missing = [key for key in ("case", "kept", "agreement", *numbers) if not rows or key not in rows[0]]
    if missing:
        raise DataError(f"{table}: must have the columns of the table that was written, got none called "
                        f"{enumerated(missing)}; {advice}")  # fmt: skip
    for row in rows:
        if row["kept"] not in ("0", "1"):
            raise DataError(f"{table}: kept must be 0 or 1, got {row['kept']!r} of {row['case']}; {advice}")
        for key in (*numbers, *(["agreement"] if row["agreement"] else [])):
            if not _is_number(row[key]):
                raise DataError(f"{table}: {key} must be a number, got {row[key]!r} of {row['case']}; {advice}")
    found = [row["case"] for row in rows]
    if sorted(found) != sorted(names):
        absent = enumerated([name for name in names if name not in found]) or "none is missing"
        raise DataError(f"{table}: must have one row of each of the {plural(len(names), 'scan')} of the pool, got "
                        f"{len(rows)} ({absent}); {advice}")  # fmt: skip
    return rows


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------ views of one image


class _Labeler:
    """A trained network that tells what it sees in an image, and in its mirror images."""

    def __init__(self, teacher: Teacher, preset: Preset, tta: bool) -> None:
        from monai_ssl.bundle.overrides import literal

        settings = {**teacher.settings, "ckpt": literal(teacher.weights)}
        if preset.window.tta:
            settings["tta"] = False  # each view is wanted by itself
        self.segmenter: VolumeSegmenter = open_segmenter(teacher.bundle, settings)
        self.network: nn.Module = self.segmenter.network
        if isinstance(self.segmenter.inferer, WindowInferer):
            self.segmenter.inferer = self.segmenter.inferer.coarser(OVERLAP)
        flips = plausible_flips(preset) if tta else []
        self.axes: list[tuple[int, ...]] = [(), *flips]

    def views(self, image: Any) -> Iterator[Tensor]:
        """Class probabilities ``(n_classes, *spatial)`` on the image's grid, one view after the other."""
        for axes in self.axes:
            self.segmenter.network = _Flipped(self.network, axes)
            try:
                found = self.segmenter(image, probabilities=True).probabilities
            finally:
                self.segmenter.network = self.network
            if found is None:
                raise DataError(
                    "self-train: the bundle's postprocessing gives no probabilities; it cannot label a pool"
                )
            yield found


class _Flipped(nn.Module):
    def __init__(self, network: nn.Module, axes: Sequence[int]) -> None:
        super().__init__()
        self.network, self.axes = network, tuple(axis + 2 for axis in axes)

    def forward(self, image: Tensor) -> Tensor:
        if not self.axes:
            return self.network(image)
        return self.network(image.flip(self.axes)).flip(self.axes)


def _judged(views: Iterable[Tensor], rules: Rules, n_classes: int) -> tuple[Tensor, dict[str, Any]]:
    """The label map of the mean of the views, and a row about it.

    Of every view only its label map is kept beside the sum: probabilities of a large scan fill gigabytes.
    """
    mean: Any = None
    maps: list[np.ndarray] = []
    for view in views:
        probabilities = torch.as_tensor(view).as_subclass(Tensor)
        if mean is None:
            mean, first = probabilities.clone(), view[:1].clone()
        else:
            mean += probabilities
        maps.append(probabilities.argmax(0).numpy().astype(np.uint8))
        del view, probabilities  # before the next one comes
    mean /= len(maps)
    sure, label = mean.max(0)
    drawn = label.numpy().astype(np.uint8)
    for value in rules.one_piece:
        mask = drawn == value
        drawn[mask & ~largest_component(mask)] = 0
    agreements, confidences = [], []
    for value in range(1, n_classes):
        mask = drawn == value
        others = [found == value for found in maps]
        if not mask.any():
            if value in rules.always or any(other.any() for other in others):
                agreements.append(0.0)
                confidences.append(0.0)
            else:  # rightly absent, or nearly drawn?
                confidences.append(1.0 - float(mean[value].max()))
            continue
        agreements.append(float(np.mean([2 * (mask & o).sum() / (mask.sum() + o.sum()) for o in others])))
        p = mean[value].double().numpy()
        confidences.append(float(2 * p[mask].sum() / (p.sum() + mask.sum())))
    seen = (mean.sum(0) > 0).numpy()  # beyond a central crop nobody has looked: background, as in predictions
    open_voxels = (sure < rules.sure).numpy() & seen
    drawn[open_voxels] = IGNORE_LABEL
    row: dict[str, Any] = {
        "agreement": float(np.mean(agreements)) if agreements and len(maps) > 1 else None,
        "confidence": float(np.mean(confidences)) if confidences else 1.0,
        "unsure": float(open_voxels.sum() / max(seen.sum(), 1)),
        "voxels": [int((drawn == value).sum()) for value in range(n_classes)],
    }
    known = [value for value in (row["agreement"], row["confidence"]) if value is not None]
    row["reliability"] = float(np.mean(known))
    return first.copy_(torch.from_numpy(drawn)[None]), row


class LabelWriter:
    """Writes label maps as ``CASE_seg.nii.gz``, of pictures as pictures, whatever folders the images lie in.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._save = folder, saver("pred", "seg", str(folder))

    def file(self, name: str, entry: Mapping[str, Any]) -> Path:
        """The file of a case's label map."""
        from monai_ssl.data.cases import image_files, result_suffix

        return self.folder / f"{name}_seg{result_suffix(Path(image_files(entry)[0]).name)}"

    def __call__(self, name: str, entry: Mapping[str, Any], label: Tensor) -> None:
        """Write ``(1, *spatial)`` class indices."""
        self._save.saver.folder_layout = _Named(self.file(name, entry))  # type: ignore[assignment]
        self._save({"pred": label, "image": label})


class _Named:
    def __init__(self, file: Path) -> None:
        self.file = file

    def filename(self, subject: Any = "", idx: Any = None, **kwargs: Any) -> str:
        return str(self.file)


# ------------------------------------------------------------------------------------------------------- the table


def _kept(rows: Sequence[dict[str, Any]], drop: float) -> list[dict[str, Any]]:
    """The rows with ``kept``: those that are not among the least reliable. Scans in which nothing is right, or nothing
    is sure, teach nothing either way."""
    order = sorted(rows, key=lambda row: (row["reliability"], row["case"]))
    dropped = {row["case"] for row in order[: math.floor(drop * len(rows))]}
    dropped |= {row["case"] for row in rows if row["reliability"] == 0 or row["unsure"] == 1}
    return [{**row, "kept": int(row["case"] not in dropped)} for row in rows]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    n_classes = len(rows[0]["voxels"]) if rows else 0
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"voxels_{value}" for value in range(n_classes))])
    for row in rows:
        values = [row[key] for key in COLUMNS]
        shown = ["" if value is None else f"{value:.4f}" if isinstance(value, float) else value for value in values]
        writer.writerow([cell(str(value)) for value in (*shown, *row["voxels"])])
    return text.getvalue()


def set_aside(folder: Path, content: str) -> None:
    """Move a folder, or a file, to ``NAME-previous-1`` (2, 3, ...), and say what it holds."""
    k, ending = 1, folder.suffix if folder.is_file() else ""
    while (aside := folder.with_name(f"{folder.name.removesuffix(ending)}-previous-{k}{ending}")).exists():
        k += 1
    folder.rename(aside)
    console.warning("%s: holds %s; moved to %s", folder, content, aside.name)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file with one in every line; the last line may have been cut off by a kill."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _stated(path: Path) -> Any:
    """What a folder's record says; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _equal(former: Any, record: Mapping[str, Any]) -> bool:
    """Whether label maps were made so; of images and preset, the records of earlier versions do not tell."""
    return isinstance(former, dict) and {key: record[key] for key in ("images", "preset")} | former == record


def _record(teachers: Sequence[Teacher], entries: Sequence[Entry], preset: Preset, rules: Rules) -> dict[str, Any]:
    """What decides the label maps."""
    images = digests({"pool": [{"image": entry["image"]} for entry in entries]})[0]["pool"]
    meaning = preset.model_dump_json(exclude={"description", "training", "codes"})
    return {
        "weights": [content_digest(load(teacher.weights)) for teacher in teachers],
        "cases": case_names(entries),
        "images": [image for image, _ in images],
        "preset": hashlib.sha256(meaning.encode()).hexdigest()[:16],
        "tta": rules.tta,
        "overlap of windows at most": OVERLAP,
        "sure": rules.sure,
        "drop": rules.drop,
        "largest component of": list(rules.one_piece),
        "always there": list(rules.always),
    }

"""Label maps of the unlabeled pool that a network, or another tool, has drawn."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.transforms import Compose

from monai_ssl.data.cases import Entry, case_name, case_names, prediction_files
from monai_ssl.data.pipelines import training_preprocessing
from monai_ssl.data.preset import Preset
from monai_ssl.errors import DataError, enumerated, plural
from monai_ssl.files import text_of_cell
from monai_ssl.labels import IGNORE_LABEL

RELIABILITY = "reliability.csv"  # one row per case: case, reliability, kept, ...
logger = logging.getLogger(__name__)


def pseudo_labeled(entries: Sequence[Mapping[str, Any]], folder: str | Path | None) -> list[Entry]:
    """The pool's entries with a label map each, as ``{"image": ..., "label": ...}``.

    Args:
        entries: the pool.
        folder: with a label map per image, named like predictions: ``CASE_seg.nii.gz``, ``CASE.nii.gz``, any format
            that is read; values are the preset's classes, and 255 where nobody knows. Images without one are left out,
            and those that ``reliability.csv`` in it does not keep (column ``kept``: 0). None: no label maps.

    Returns:
        those entries that have one, in order; all, as they are, without a folder.

    Raises:
        DataError: when the folder is none, holds no label map of the pool, or two of one case, or its
            ``reliability.csv`` cannot be read.

    Example:
        >>> pseudo_labeled([{"image": "/scans/a.nii.gz"}], None)
        [{'image': '/scans/a.nii.gz'}]
    """
    if folder is None:
        return [dict(entry) for entry in entries]
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(
            f"pseudo_labels: must be a folder of label maps, got {folder}; `monai-ssl self-train` writes one"
        )
    names, dropped = case_names(entries), rejected(place)
    _check_rejected(dropped, names, place)
    found: list[Entry] = []
    without = []
    for name, entry, files in zip(names, entries, prediction_files(place, entries), strict=True):
        if len(files) > 1:
            listed = enumerated([str(file.relative_to(place)) for file in files])
            raise DataError(f"pseudo_labels: {place}: case {name} must have one label map, got {listed}; keep one")
        if not files:
            without.append(name)
        elif name not in dropped:
            found.append({"image": entry["image"], "label": str(files[0].absolute())})
    if not found and entries:
        left = f", beside {plural(len(dropped), 'rejected one')}" if dropped else ""
        raise DataError(
            f"pseudo_labels: {place} holds no label map of the {plural(len(entries), 'unlabeled image')}{left}; files "
            f"are named like the images, {names[0]}_seg.nii.gz for example"
        )
    if without:
        logger.info("pseudo_labels: %s without a label map, left out: %s", plural(len(without), "unlabeled image"),
                    enumerated(without))  # fmt: skip
    return found


def _check_rejected(dropped: set[str], names: Sequence[str], place: Path) -> None:
    """Rows that are meant to leave a scan out name one.

    Raises:
        DataError: for the name of a file where that of its case belongs.
    """
    unknown = sorted(dropped - set(names))
    for given in unknown:
        meant = case_name({"image": given}).removesuffix("_seg")
        if meant in names:
            raise DataError(
                f"{place / RELIABILITY}: case must be the name of a scan of the pool, got {given}; write {meant}"
            )
    if unknown:
        logger.warning("pseudo_labels: %s leaves out %s that the pool does not have: %s", place / RELIABILITY,
                       plural(len(unknown), "case"), enumerated(unknown))  # fmt: skip


def table_rows(table: Path) -> list[dict[str, str]]:
    """Rows of a table, as they are.

    Raises:
        DataError: when it cannot be read as one.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table in UTF-8 ({error}); remove it, or correct it") from None


def rejected(folder: Path) -> set[str]:
    """Cases that the folder's ``reliability.csv`` does not keep.

    Raises:
        DataError: when the table has no columns ``case`` and ``kept``, or another value than 0 and 1 in the latter.
    """
    table = folder / RELIABILITY
    if not table.is_file():
        return set()
    rows = table_rows(table)
    found = set()
    for row in rows:
        kept = row.get("kept")
        if not row.get("case") or kept not in ("0", "1"):
            raise DataError(
                f"{table}: must have the columns case and kept, and kept must be 0 or 1, got {kept!r}; correct it, or "
                "remove the table to keep all"
            )
        if kept == "0":
            found.add(text_of_cell(row["case"]))
    return found


def pseudo_label_preset(preset: Preset) -> Preset:
    """How label maps of the pool are read: they hold classes already, and 255 where nobody knows."""
    return preset.model_copy(update={"label_map": {}, "ignore_label": IGNORE_LABEL})


def pseudo_label_preprocessing(preset: Preset, folder: str | Path | None) -> Compose:
    """:func:`~monai_ssl.data.training_preprocessing` of pool images and, where there is a folder, their label maps."""
    if folder is None:
        return training_preprocessing(preset, label=False)
    return training_preprocessing(pseudo_label_preset(preset), label=True, drawn=True)

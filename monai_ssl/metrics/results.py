"""Results on disk: ``per_case.csv`` and ``summary.json``, written atomically, with where the numbers come from."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_ssl.files import cell, text_of_cell, write_atomically
from monai_ssl.machine import cpu_name

from .cases import METRICS, Row
from .statistics import summarize

__all__ = ["PER_CASE_NAME", "SUMMARY_NAME", "Results", "add_meta", "environment", "read_results", "write_results"]

PER_CASE_NAME = "per_case.csv"
SUMMARY_NAME = "summary.json"
_TEXT = ("case", "class", "status")
_NUMBERS = (*METRICS, "volume_ml_prediction", "volume_ml_reference")
_COLUMNS = ("case", "label", "class", "status", *_NUMBERS)


class Results(NamedTuple):
    """What :func:`read_results` returns: ``rows`` (one per case and class), ``summary`` and ``meta``."""

    rows: list[Row]
    summary: dict[str, Any]
    meta: dict[str, Any]


def environment() -> dict[str, Any]:
    """Versions and machine that a result depends on.

    Returns:
        ``{"versions": {python, monai_ssl, monai, torch, numpy, scipy, cuda}, "machine": {platform, cpu, cores,
        torch_threads, cuda_devices}}``; a package that is not installed, or no CUDA, is None. ``cores`` counts those
        that this process may use.

    Example:
        >>> sorted(environment())
        ['machine', 'versions']
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("monai_ssl", "monai", "torch", "numpy", "scipy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    versions["cuda"] = torch.version.cuda
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "machine": {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "cores": cores,
            "torch_threads": torch.get_num_threads(),
            "cuda_devices": devices,
        },
    }


def _plain(value: Any) -> Any:
    """Make ``value`` valid JSON: NumPy and torch scalars as numbers, NaN and infinity as null, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.generic, torch.Tensor)) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write_results(output_dir: str | os.PathLike[str], rows: Sequence[Row], meta: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``per_case.csv`` (one row per case and class) and ``summary.json`` (summary and provenance).

    Both files are complete or absent: they are written under temporary names and then put in place.

    Args:
        output_dir: folder, created if needed.
        rows: rows of :func:`~monai_ssl.metrics.case_metrics` over all cases; further scalar columns are kept (and
            read back as text).
        meta: where the numbers come from: ``command``, ``seed``, ``dataset``, ``ckpt`` and whatever else matters.
            ``command``, ``date`` (UTC), ``versions`` and ``machine`` are filled in where they are missing.

    Returns:
        The written paths: ``{"per_case": ..., "summary": ...}``.

    Raises:
        ValueError: if rows are missing, duplicated or not finite.

    Example:
        >>> import tempfile
        >>> rows = case_metrics(np.eye(4, dtype=int), np.eye(4, dtype=int), {1: "x"}, 1.0, case="a")  # doctest: +SKIP
        >>> write_results(tempfile.mkdtemp(), rows, {"seed": 0, "dataset": "demo"})  # doctest: +SKIP
    """
    folder = Path(output_dir)
    summary = summarize(rows)
    extra = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in _COLUMNS]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=[*_COLUMNS, *extra], restval="", lineterminator="\n")
    writer.writerow({key: cell(key) for key in writer.fieldnames})
    for row in rows:
        # repr keeps every digit; float() first, because NumPy scalars print their type
        numbers = {key: repr(float(row[key])) for key in _NUMBERS if key in row}
        texts = {key: cell(value) for key, value in row.items() if isinstance(value, str)}
        writer.writerow({**row, **texts, **numbers})
    defaults: dict[str, Any] = {
        "command": shlex.join(sys.orig_argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **environment(),
    }
    document = _plain({"meta": {**defaults, **meta}, "summary": summary})
    paths = {"per_case": folder / PER_CASE_NAME, "summary": folder / SUMMARY_NAME}
    write_atomically(
        {
            paths["per_case"]: buffer.getvalue(),
            paths["summary"]: json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        }
    )
    return paths


def add_meta(output_dir: str | os.PathLike[str], **meta: Any) -> None:
    """Add to where the numbers of written results come from.

    Args:
        output_dir: folder written by :func:`write_results`.
        meta: entries; they replace those of the same name.

    Raises:
        FileNotFoundError: if the folder holds no results.

    Example:
        >>> add_meta("outputs/evaluation", training={"bundle": "dtc", "iteration": 300})  # doctest: +SKIP
    """
    path = Path(output_dir) / SUMMARY_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    document["meta"] |= _plain(meta)
    write_atomically({path: json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"})


def read_results(output_dir: str | os.PathLike[str]) -> Results:
    """Read a folder written by :func:`write_results`.

    Args:
        output_dir: folder with ``per_case.csv`` and ``summary.json``.

    Returns:
        ``Results(rows, summary, meta)``; the rows equal those that were written, to the last digit.

    Raises:
        FileNotFoundError: if one of the files is missing.
        ValueError: if ``per_case.csv`` lacks a column or holds something that is not a number.

    Example:
        >>> read_results("outputs/evaluation").summary["mean"]["dice"]["mean"]  # doctest: +SKIP
        0.879
    """
    folder = Path(output_dir)
    for name in (PER_CASE_NAME, SUMMARY_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: holds no {name}; it is no folder of results of an evaluation")
    with (folder / PER_CASE_NAME).open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [key for key in (*_TEXT, "label", "dice") if key not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{PER_CASE_NAME} must have the columns {missing}, got {reader.fieldnames}")
        rows: list[Row] = []
        for record in reader:
            row: Row = {
                text_of_cell(key): text_of_cell(value) if isinstance(value, str) else value
                for key, value in record.items()
                if key is not None
            }
            try:
                row["label"] = int(row["label"])
                for key in _NUMBERS:
                    if key in row:
                        row[key] = float(row[key]) if row[key] != "" else math.nan
            except (TypeError, ValueError) as error:
                raise ValueError(f"{PER_CASE_NAME} line {reader.line_num} must hold numbers, got: {error}") from error
            rows.append(row)
    try:
        document = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
        return Results(rows, document["summary"], document["meta"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / SUMMARY_NAME}: is no summary of an evaluation; evaluate again") from None

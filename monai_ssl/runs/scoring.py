"""From a trained run or a folder of segmentations to results and a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_ssl.data.cases import case_names
from monai_ssl.data.loading import load_datalist
from monai_ssl.errors import DataError
from monai_ssl.metrics import case_metrics, compare, read_results, write_results
from monai_ssl.reports.comparison import comparison_sentence, write_report
from monai_ssl.reports.page import Overlay, ReportRun

TITLES = {
    "floor": "supervised (floor)",
    "matched_floor": "matched floor (unsupervised weight 0)",
    "method": "method",
    "ceiling": "supervised, all labels (ceiling)",
}


def evaluate_run(
    bundle: Path,
    run: Path,
    settings: Mapping[str, Any],
    output: Path | None = None,
) -> Path:
    """Run the bundle's evaluation; returns the results folder with ``predictions/`` in it."""
    from monai_ssl.bundle.library import run_bundle
    from monai_ssl.bundle.overrides import literal

    results = (output or run / f"evaluation-{settings['section']}").expanduser().resolve()
    run_bundle(bundle, ["train.yaml", "evaluate.yaml"], {**settings, "output_dir": literal(results)})
    return results


def evaluate_predictions(
    predictions: str | Path,
    dataset: str,
    dataset_dir: str | Path | None,
    datalist: str | Path | None,
    section: str,
    output: str | Path | None = None,
) -> Path:
    """Score files that some program wrote, against the labels of a datalist.

    A prediction is found by the case's name, with or without ``_seg``.

    Raises:
        DataError: when a prediction is missing, or its grid (shape, affine) is not the label's.
    """
    import numpy as np

    from monai_ssl.data import load_preset
    from monai_ssl.data.reading import spacing_of

    if dataset_dir is None and datalist is None:
        raise DataError("evaluate: --predictions needs --dataset_dir (and --datalist) for the labels")
    folder = Path(predictions).expanduser()
    if not folder.is_dir():
        raise DataError(f"predictions: {folder} is no folder")
    preset = load_preset(dataset)
    cases = load_datalist(datalist, dataset_dir)
    entries = cases.require(section)
    files = {f.name.split(".")[0]: f for f in sorted(folder.rglob("*.nii*")) if not f.name.startswith(".")}
    rows = []
    for name, entry in zip(case_names(entries), entries, strict=True):
        stem = Path(name).name
        path = files.get(f"{stem}_seg") or files.get(stem)
        if path is None:
            raise DataError(f"{folder}: no {stem}_seg.nii.gz or {stem}.nii.gz for case {name}")
        label, affine = _label_map(entry["label"])
        prediction, other = _label_map(path)
        if prediction.shape != label.shape:
            raise DataError(f"{path}: shape must be the label's {label.shape}, got {prediction.shape}")
        if unknown := sorted(set(np.unique(prediction).tolist()) - set(preset.labels)):
            raise DataError(
                f"{path}: values must be classes of {preset.name}, {sorted(preset.labels)}, got {unknown[:5]}"
            )
        if affine is not None and other is not None and not np.allclose(affine, other, atol=1e-3):
            raise DataError(f"{path}: affine must be the label's; was the file resampled or reoriented?")
        spacing = spacing_of(affine, label.ndim) if affine is not None else [1.0] * label.ndim
        rows += case_metrics(prediction, label, preset.labels, spacing, case=name)
    results = Path(output).expanduser() if output else folder / "evaluation"
    meta = {"dataset": preset.name, "section": section, "datalist": str(cases.path),
            "dataset_dir": str(cases.dataset_dir), "predictions": str(folder.resolve())}  # fmt: skip
    write_results(results, rows, meta)
    return results


def _label_map(file: str | Path) -> tuple[Any, Any]:
    """Voxels (*spatial) and affine of a label file; errors name the file."""
    import numpy as np

    from monai_ssl.data.reading import read_volume

    try:
        volume, affine = read_volume(file)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    if volume.shape[0] != 1:
        raise DataError(f"{file}: must hold one value per voxel, got {volume.shape[0]} channels; merge them")
    if volume.dtype.kind == "f" and not np.array_equal(volume, np.round(volume)):
        raise DataError(f"{file}: must hold integers (classes), got other values; is it a probability map?")
    return volume[0].astype(np.int64), affine


def overlays_of(results: Path) -> dict[str, Overlay]:
    """Image, label and prediction of every case that an evaluation wrote, as far as the files are still there."""
    import json

    meta = json.loads((results / "summary.json").read_text(encoding="utf-8"))
    meta = meta.get("meta", meta)
    datalist, folder = meta.get("datalist"), meta.get("dataset_dir")
    predictions = Path(meta.get("predictions") or results / "predictions")
    if not datalist or not Path(datalist).is_file() or not predictions.is_dir():
        return {}
    entries = load_datalist(datalist, folder).section(meta["section"])
    files = {f.name.split(".")[0]: f for f in predictions.rglob("*.nii*")}
    found = {}
    for name, entry in zip(case_names(entries), entries, strict=True):
        path = files.get(f"{Path(name).name}_seg") or files.get(Path(name).name)
        if path is not None and "label" in entry and isinstance(entry["image"], str):
            found[name] = Overlay(entry["image"], entry["label"], path)
    return found


def report_run(results: Path, name: str, role: str | None = None, run: Path | None = None) -> ReportRun:
    """What the report needs of one results folder; training curves where the run's logs are known."""
    folder = run or results.parent
    logs = {key: folder / f"{key}.csv" for key in ("training", "validation")}
    return ReportRun(
        name,
        results,
        role=role,
        training_log=logs["training"] if logs["training"].is_file() else None,
        validation_log=logs["validation"] if logs["validation"].is_file() else None,
        overlays=overlays_of(results),
    )


def report_evaluation(results: Path, against: str | Path | None = None) -> Path:
    """``report.html`` (and ``report.md``) in the results folder."""
    runs = [report_run(results, results.parent.name or "run", role="method")]
    if against is not None:
        other = Path(against).expanduser()
        runs.insert(0, report_run(other, f"{other.parent.name} (reference)", role="floor"))
    return write_report(results / "report.html", f"Evaluation: {results.parent.name}", runs)[0]


def comparison_report(page: Path, title: str, results: Mapping[str, Path], names: Mapping[str, str] | None = None,
                      intro: str = "") -> Path:  # fmt: skip
    """One page for floor, matched floor, method and ceiling (keys of ``results``)."""
    runs = [report_run(path, (names or TITLES).get(role, role), role=role) for role, path in results.items()]
    return write_report(page, title, runs, intro=intro)[0]


def summary_lines(results: Path, against: str | Path | None = None) -> list[str]:
    """A few lines for the terminal."""
    read = read_results(results)
    mean = read.summary["mean"]
    classes = read.summary["classes"]
    lines = []
    for name, block in (classes if len(classes) == 1 else {**classes, "mean": mean}).items():
        dice, hd = block["dice"], block["hd95_mm"]
        line = f"{name}: Dice {dice['mean']:.4f}"
        if dice["sd"] is not None:  # more than one case
            line += f" +- {dice['sd']:.4f} [median {dice['median']:.4f}; 95 % interval {dice['ci_low']:.4f} to"
            line += f" {dice['ci_high']:.4f}]"
        lines.append(f"{line}, 95HD {hd['mean']:.2f} mm, n = {dice['n']}, failed {block['n_failed']}")
    if against is not None:
        other = read_results(against)
        lines.append(
            comparison_sentence(compare(read.rows, other.rows), results.parent.name, Path(against).parent.name)
        )
    return lines

"""From a trained run, or a folder of segmentations, to results; the pages about them are in ``monai_ssl.reports``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_ssl.bundle.library import run_bundle
from monai_ssl.bundle.overrides import literal
from monai_ssl.data.cases import case_names
from monai_ssl.data.loading import load_datalist
from monai_ssl.errors import DataError
from monai_ssl.metrics import add_meta, case_metrics, read_results, write_results
from monai_ssl.runs.folder import Run


def evaluate_run(
    bundle: Path,
    run: Path,
    settings: Mapping[str, Any],
    output: Path | None = None,
) -> Path:
    """Run the bundle's evaluation; returns the results folder with ``predictions/`` in it."""
    results = (output or run / f"evaluation-{settings['section']}").expanduser().resolve()
    run_bundle(bundle, ["train.yaml", "evaluate.yaml"], {**settings, "output_dir": literal(results)})
    add_meta(results, training=training_facts(Run(run), read_results(results).meta.get("ckpt")))
    return results


def training_facts(run: Run, ckpt: str | Path | None = None) -> dict[str, Any]:
    """What a reader of results must know of the training that made them: its record, and the iterations of the weights.

    Args:
        run: the run.
        ckpt: the scored weights; of another file than the run's own nobody knows the iteration.

    Returns:
        Content of ``run.json`` without command, versions and machine, and ``iteration`` where it is known.
    """
    facts = run.record.model_dump(exclude={"command", "versions", "machine"})
    if ckpt is not None and Path(ckpt).resolve() != run.model:
        return {**facts, "status": "unknown"}
    return {**facts, "iteration": run.iteration} if run.checkpoint.is_file() else facts


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
    from monai_ssl.data.scan import spacing_of

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

    from monai_ssl.data.reading import read_label

    try:
        volume, affine = read_label(file)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    if volume.shape[0] != 1:
        raise DataError(f"{file}: must hold one value per voxel, got {volume.shape[0]} channels; merge them")
    if volume.dtype.kind == "f" and not np.array_equal(volume, np.round(volume)):
        raise DataError(f"{file}: must hold integers (classes), got other values; is it a probability map?")
    return volume[0].astype(np.int64), affine

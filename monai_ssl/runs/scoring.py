"""From a trained run, or a folder of segmentations, to results; the pages about them are in ``monai_ssl.reports``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.bundle.library import run_bundle
from monai_ssl.bundle.overrides import literal
from monai_ssl.data.cases import Entry, case_name, case_names, prediction_files
from monai_ssl.data.loading import load_datalist
from monai_ssl.data.partial import Annotated, annotated_classes
from monai_ssl.data.patients import patients_of
from monai_ssl.errors import DataError
from monai_ssl.metrics import add_meta, case_metrics, read_results, with_patients, write_results
from monai_ssl.runs.folder import Run

if TYPE_CHECKING:
    from monai_ssl.data.preset import Preset
    from monai_ssl.runs.ensemble import Members


def evaluate_run(
    bundle: Path,
    run: Path,
    settings: Mapping[str, Any],
    output: Path | None = None,
) -> Path:
    """Run the bundle's evaluation; returns the results folder with ``predictions/`` in it."""
    results = (output or run / f"evaluation-{settings['section']}").expanduser().resolve()
    run_bundle(bundle, ["train.yaml", "evaluate.yaml"], {**settings, "output_dir": literal(results)})
    _add_training(results, training_facts(Run(run), read_results(results).meta.get("ckpt")))
    return results


def evaluate_ensemble(bundle: Path, members: Members, settings: Mapping[str, Any], output: Path | None = None) -> Path:
    """Run the evaluation of the first member's bundle with the network of all; returns the results folder."""
    results = (output or members.folder / f"evaluation-{settings['section']}").expanduser().resolve()
    run_bundle(bundle, ["train.yaml", "evaluate.yaml"], {**settings, "output_dir": literal(results)})
    places = [str(run.folder) for run in members.runs]
    seeds = list(dict.fromkeys(facts["seed"] for facts in members.facts()))
    # the weights lay in a file that is gone; what is left of them are the members and their content
    _add_training(results, members.training(), ckpt=None, seed=seeds[0] if len(seeds) == 1 else seeds,
                  ensemble={"members": places, "weights": members.contents()})  # fmt: skip
    return results


def _add_training(results: Path, facts: dict[str, Any], **meta: Any) -> None:
    """Note what the scored weights were trained with, and that they are unfinished where they are."""
    done, total = facts.get("iteration"), facts.get("max_iterations")
    if None in (done, total) or done == total:
        add_meta(results, training=facts, **meta)
        return
    read = read_results(results)
    # the table of cases travels alone, into spreadsheets: it says so in every row
    rows = [{**row, "weights": f"unfinished: iteration {done} of {total}"} for row in read.rows]
    write_results(results, rows, {**read.meta, "training": facts, **meta})


def training_facts(run: Run, ckpt: str | Path | None = None) -> dict[str, Any]:
    """What a reader of results must know of the training that made them: its record, and the iterations of the weights.

    Args:
        run: the run.
        ckpt: the scored weights; of another file than the run's own nobody knows the iteration.

    Returns:
        Content of ``run.json`` without command, versions and machine; ``iteration`` where it is known; and
        ``resolved``, what the training came to use, defaults of bundle and preset included, as its checkpoint says.
    """
    facts = run.record.model_dump(exclude={"command", "versions", "machine"})
    if ckpt is not None and Path(ckpt).resolve() != run.model:
        return {**facts, "status": "unknown"}
    if alarms := run.alarms:
        facts["alarms"] = alarms
    if not run.checkpoint.is_file():
        return facts
    return {**facts, "iteration": run.iteration, "resolved": resolved_settings(run.identity)}


# Blocks of a config whose plain values are worth a comparison: data, network, loss, steps.
COMPARED = (
    "seed", "labeled_batch_size", "unlabeled_batch_size", "learning_rate", "accumulation_steps", "precision",
    "processes", "preset", "network_def", "method", "optimizer", "lr_scheduler",
)  # fmt: skip
# said elsewhere (the protocol's values, as they came out), or no matter of the result
NOT_COMPARED = ("preset#name", "preset#flavor", "preset#description", "preset#training", "preset#codes",
                "preset#published", "preset#dicom", "method#_target_")  # fmt: skip


def resolved_settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader compares of everything that decided a training: plain values, and the data by their content.

    Example:
        >>> resolved_settings({"seed": 1, "method": "DTC", "method#slope": 1500.0, "labeled cases": [["ab", "cd"]]})
        {'seed': 1, 'method#slope': 1500.0, 'labeled cases': '1, content 88d4266f'}
    """
    found = {}
    for key, value in identity.items():
        reference = isinstance(value, str) and value.startswith(("$", "@"))
        hidden = any(key == name or key.startswith(f"{name}#") for name in NOT_COMPARED)
        if key.split("#")[0] in COMPARED and key != "method" and not reference and not hidden:
            found[key] = value
        elif key in ("labeled cases", "unlabeled cases"):
            content = hashlib.sha256("".join(sorted(map("".join, value))).encode()).hexdigest()[:8]
            found[key] = f"{len(value)}, content {content}" if value else "0"
    return found


def evaluate_predictions(
    predictions: str | Path,
    dataset: str,
    dataset_dir: str | Path | None,
    datalist: str | Path | None,
    section: str,
    output: str | Path | None = None,
) -> Path:
    """Score files that some program wrote, against the labels of a datalist.

    A prediction is found by the case's name, with or without ``_seg``, in every format that is read.

    Raises:
        DataError: when a prediction is missing or ambiguous, or its grid (shape, affine) is not the label's.
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
    names = case_names(entries)
    paths = _predictions(folder, names, entries)
    rows = []
    for name, path, entry in zip(names, paths, entries, strict=True):
        label, affine = _classes(entry["label"], preset.label_map, preset.ignore_label)
        _check_label(label, entry["label"], preset)
        prediction, other = _classes(path, preset.label_map)
        if prediction.shape != label.shape:
            raise DataError(f"{path}: shape must be the label's {label.shape}, got {prediction.shape}")
        if unknown := sorted(set(np.unique(prediction).tolist()) - set(preset.labels)):
            raise DataError(
                f"{path}: values must be classes of {preset.name}, {sorted(preset.labels)}, got {unknown[:5]}"
            )
        if affine is not None and other is not None and not np.allclose(affine, other, atol=1e-3):
            raise DataError(f"{path}: affine must be the label's; was the file resampled or reoriented?")
        spacing = spacing_of(affine, label.ndim) if affine is not None else [1.0] * label.ndim
        label = _known(label, entry, preset)
        rows += case_metrics(prediction, label, annotated_classes(entry, preset.labels), spacing, case=name)
    results = Path(output).expanduser() if output else folder / "evaluation"
    meta = {"dataset": preset.name, "section": section, "datalist": str(cases.path),
            "dataset_dir": str(cases.dataset_dir), "label_map": dict(preset.label_map),
            "ignore_label": preset.ignore_label, "predictions": str(folder.resolve())}  # fmt: skip
    write_results(results, with_patients(rows, names, patients_of(entries, cases.known_patients())), meta)
    return results


def _predictions(folder: Path, names: Sequence[str], entries: Sequence[Entry]) -> list[Path]:
    found = []
    for name, entry, there in zip(names, entries, prediction_files(folder, entries), strict=True):
        if len(there) > 1:
            pair = f"{there[0]} and {there[1]}"
            raise DataError(f"{folder}: {pair} may both be the prediction of case {name}; remove one")
        if not there:
            stem = case_name(entry)
            raise DataError(f"{folder}: no {stem}_seg.nii.gz or {stem}.nii.gz for case {name}")
        found += there
    return found


def _known(label: Any, entry: Entry, preset: Preset) -> Any:
    """The label (*spatial) without what its entry says nobody has annotated."""
    annotated = Annotated.of(entry)
    errors = annotated.findings(label[None], preset)
    if errors:
        raise DataError(f"{entry['label']}: {errors[0].message}")
    return annotated.marked(label[None], preset, by_class=False)[0]


def _check_label(label: Any, file: str, preset: Preset) -> None:
    """What a label says must have a meaning, or scores would."""
    from monai_ssl.data.rules import label_findings

    errors = [finding.message for finding in label_findings(label, preset) if finding.severity == "error"]
    if errors:
        raise DataError(f"{file}: {errors[0]}")


def _classes(file: str | Path, label_map: Mapping[int, int], ignore_label: int | None = None) -> tuple[Any, Any]:
    """Voxels (*spatial) and affine of a label file; errors name the file."""
    import numpy as np

    from monai_ssl.data.reading import read_label

    try:
        volume, affine = read_label(file, label_map, ignore_label)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    if volume.shape[0] != 1:
        raise DataError(f"{file}: must hold one value per voxel, got {volume.shape[0]} channels; merge them")
    if volume.dtype.kind == "f" and not np.array_equal(volume, np.round(volume)):
        raise DataError(f"{file}: must hold integers (classes), got other values; is it a probability map?")
    return volume[0].astype(np.int64), affine

"""From a DICOM series to DICOM SEG, NIfTI and measurements with one trained model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.preset import Preset
from monai_ssl.data.scan import spacing_of
from monai_ssl.data.writing import write_nifti
from monai_ssl.deploy.dicom.report import volumes_ml, write_measurements
from monai_ssl.deploy.dicom.segmentation import SEG_TYPES, write_probabilities, write_segmentation
from monai_ssl.dicom import Series, read_series, require_packages
from monai_ssl.errors import DataError, UsageError
from monai_ssl.files import atomic_paths, write_text

SEG, NIFTI, UNCERTAINTY = "segmentation.dcm", "segmentation.nii.gz", "uncertainty.nii.gz"
REPORT, VOLUMES = "measurements.dcm", "measurements.json"
PROBABILITIES, PROBABILITIES_NIFTI = "probabilities.dcm", "probabilities.nii.gz"
RESULTS = (SEG, NIFTI, UNCERTAINTY, REPORT, VOLUMES, PROBABILITIES, PROBABILITIES_NIFTI)
# as DICOM calls what presets call MRI
MODALITIES = {"MRI": "MR", "PET": "PT", "ULTRASOUND": "US"}
# times the smallest and largest spacing of the training images
FAR = 2.0


def predict_series(
    segmenter: Any,
    folder: str | Path,
    output: str | Path,
    model: str,
    version: str = "1.0.0",
    measurements: bool = False,
    uncertainty: bool = False,
    overwrite: bool = False,
    *,
    probabilities: bool = False,
    series_uid: str | None = None,
    seg_type: str = "binary",
    training_spacing: Mapping[str, Sequence[float]] | None = None,
) -> Sequence[Path]:
    """Segment one DICOM series; all results are written, or none.

    Args:
        segmenter: a :class:`monai_ssl.engines.VolumeSegmenter` of a preset with one channel.
        folder: of the series.
        output: folder; gets ``segmentation.dcm`` and ``segmentation.nii.gz``, and where asked for ``measurements.dcm``,
            ``measurements.json``, ``uncertainty.nii.gz``, ``probabilities.dcm``, ``probabilities.nii.gz``.
        model: name of the model.
        version: of the model.
        measurements: volumes in milliliters as a structured report.
        uncertainty: also write the uncertainty map.
        overwrite: replace the files of a previous run.
        probabilities: also write the class probabilities, as fractional DICOM SEG and as NIfTI.
        series_uid: SeriesInstanceUID, where the folder holds several.
        seg_type: ``binary`` or ``labelmap``.
        training_spacing: ``min`` and ``max`` of the training images, mm per axis, as a package's metadata has them.

    Returns:
        the files written.

    Raises:
        DataError: when the series cannot be used, or the folder holds results already.
    """
    require_packages()
    preset, target = segmenter.preset, Path(output).expanduser()
    if seg_type not in SEG_TYPES:
        raise UsageError(f"seg_type: must be one of {', '.join(SEG_TYPES)}, got {seg_type!r}")
    if preset.in_channels != 1:
        raise DataError(f"dicom: the model needs {preset.in_channels} channels, a series gives one")
    if not overwrite and (there := [name for name in RESULTS if (target / name).exists()]):
        raise DataError(f"output: {target} holds a {there[0]} already; give a new folder, or --overwrite True")
    series = read_series(folder, series_uid=series_uid)
    log = logging.getLogger(__name__)
    for note in [*series.warnings, *unlike_training(series, preset, training_spacing)]:
        log.warning("dicom: %s", note)
    found = segmenter(series.volume, probabilities=probabilities, uncertainty=uncertainty)
    if tuple(found.labels.shape[1:]) != series.voxels.shape:
        raise DataError(
            f"dicom: the mask must have the series' shape {series.voxels.shape}, got {tuple(found.labels.shape[1:])}"
        )
    names = [SEG, NIFTI]
    names += [UNCERTAINTY] if uncertainty else []
    names += [PROBABILITIES, PROBABILITIES_NIFTI] if probabilities else []
    names += [REPORT, VOLUMES] if measurements else []
    with atomic_paths([target / name for name in names]) as temporary:
        _write(dict(zip(names, temporary, strict=True)), found, series, preset, model, version, seg_type)
    for name in set(RESULTS) - set(names):  # of an earlier run: they describe another mask
        (target / name).unlink(missing_ok=True)
    return [target / name for name in names]


def _write(
    files: Mapping[str, Path], found: Any, series: Series, preset: Preset, model: str, version: str, seg_type: str
) -> None:
    labels = found.labels[0].numpy().astype(np.uint8)
    seg = write_segmentation(files[SEG], labels, series, preset, model, version, seg_type)
    write_nifti(files[NIFTI], labels, series.affine)
    if UNCERTAINTY in files:
        write_nifti(files[UNCERTAINTY], found.uncertainty[0].numpy(), series.affine)
    if PROBABILITIES in files:
        values = found.probabilities.numpy()
        write_probabilities(files[PROBABILITIES], values, series, preset, model, version)
        write_nifti(files[PROBABILITIES_NIFTI], np.moveaxis(values, 0, -1), series.affine)
    if REPORT in files:
        volumes = volumes_ml(labels, series.affine, preset)
        write_measurements(files[REPORT], seg, volumes, series, preset, model, version)
        write_text(files[VOLUMES], json.dumps({"volume_ml": volumes}, indent=2, ensure_ascii=False) + "\n")


def unlike_training(
    series: Series, preset: Preset, training_spacing: Mapping[str, Sequence[float]] | None = None
) -> list[str]:
    """In what a series differs from what the model was trained on; the result may mean nothing then.

    Args:
        series: that is to be segmented.
        preset: of the model.
        training_spacing: ``min`` and ``max`` of the training images, mm per axis; None where nobody knows.
    """
    notes = []
    trained = MODALITIES.get(preset.modality.strip().upper(), preset.modality.strip().upper())
    if series.modality and len(trained) == 2 and series.modality != trained:
        notes.append(
            f"the model was trained on {trained}, the series is {series.modality}: the result may mean nothing"
        )
    spacing = sorted(spacing_of(series.affine, 3))
    low, high = (_sides(training_spacing, key) for key in ("min", "max"))
    far = [s < a / FAR or s > b * FAR for s, a, b in zip(spacing, low, high, strict=False)]
    if len(low) == len(high) == 3 and any(far):
        texts = (" x ".join(f"{side:.3g}" for side in sides) for sides in (spacing, low, high))
        notes.append("voxels of {} mm are far from those of the training images, {} to {} mm: the result may mean "
                     "nothing".format(*texts))  # fmt: skip
    return notes


def _sides(ranges: Any, key: str) -> list[float]:
    """Ascending, since the axes of files and series come in any order; empty for anything but numbers."""
    try:
        return sorted(float(side) for side in ranges[key])
    except (TypeError, ValueError, KeyError):
        return []

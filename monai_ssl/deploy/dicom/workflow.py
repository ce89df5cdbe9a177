"""From a DICOM series to DICOM SEG, NIfTI and measurements with one trained model."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.dicom import read_series, require_packages
from monai_ssl.data.writing import write_nifti
from monai_ssl.deploy.dicom.report import volumes_ml, write_measurements
from monai_ssl.deploy.dicom.segmentation import write_segmentation
from monai_ssl.errors import DataError
from monai_ssl.files import write_text

SEG, NIFTI, UNCERTAINTY = "segmentation.dcm", "segmentation.nii.gz", "uncertainty.nii.gz"
REPORT, VOLUMES = "measurements.dcm", "measurements.json"


def predict_series(
    segmenter: Any,
    folder: str | Path,
    output: str | Path,
    model: str,
    version: str = "1.0.0",
    measurements: bool = False,
    uncertainty: bool = False,
    overwrite: bool = False,
) -> Sequence[Path]:
    """Segment one DICOM series.

    Args:
        segmenter: a :class:`monai_ssl.engines.VolumeSegmenter` of a preset with one channel.
        folder: of the series.
        output: folder; gets ``segmentation.dcm`` and ``segmentation.nii.gz``, and where asked for ``measurements.dcm``,
            ``measurements.json``, ``uncertainty.nii.gz``.
        model: name of the model.
        version: of the model.
        measurements: volumes in milliliters as a structured report.
        uncertainty: also write the uncertainty map.
        overwrite: replace the files of a previous run.

    Returns:
        the files written.

    Raises:
        DataError: when the series cannot be used, or the folder holds results already.
    """
    require_packages()
    preset, target = segmenter.preset, Path(output).expanduser()
    if preset.in_channels != 1:
        raise DataError(f"dicom: the model needs {preset.in_channels} channels, a series gives one")
    if not overwrite and (target / SEG).exists():
        raise DataError(f"output: {target} holds a {SEG} already; give a new folder, or --overwrite True")
    series = read_series(folder)
    log = logging.getLogger(__name__)
    for note in series.warnings:
        log.warning("dicom: %s", note)
    found = segmenter(series.volume, uncertainty=uncertainty)
    labels = found.labels[0].numpy().astype(np.uint8)
    affine = series.affine
    if labels.shape != series.voxels.shape:
        raise DataError(f"dicom: the mask must have the series' shape {series.voxels.shape}, got {labels.shape}")
    seg = write_segmentation(target / SEG, labels, series, preset, model, version)
    write_nifti(target / NIFTI, labels, affine)
    written = [target / SEG, target / NIFTI]
    if uncertainty:
        write_nifti(target / UNCERTAINTY, found.uncertainty[0].numpy(), affine)
        written.append(target / UNCERTAINTY)
    if measurements:
        volumes = volumes_ml(labels, affine, preset)
        write_measurements(target / REPORT, seg, volumes, series, preset, model)
        write_text(target / VOLUMES, json.dumps({"volume_ml": volumes}, indent=2) + "\n")
        written += [target / REPORT, target / VOLUMES]
    return written

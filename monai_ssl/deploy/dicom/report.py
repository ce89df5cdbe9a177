"""Volumes of the segments, as numbers and as a DICOM structured report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.dicom import Series, silent
from monai_ssl.data.preset import Preset
from monai_ssl.deploy.dicom.segmentation import free_series_number, segment_code
from monai_ssl.files import atomic_path


def volumes_ml(labels: np.ndarray, affine: np.ndarray, preset: Preset) -> dict[str, float]:
    """Volume of every class in milliliters.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> volumes_ml(np.ones((10, 10, 10)), np.diag([1, 1, 2, 1]), load_preset("left_atrium"))
        {'left atrium': 2.0}
    """
    voxel = abs(float(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1000
    return {name: round(int((labels == index).sum()) * voxel, 4) for index, name in preset.labels.items() if index}


def write_measurements(
    path: Path, seg: Any, volumes: Mapping[str, float], series: Series, preset: Preset, model: str
) -> None:
    """Write a structured report (TID 1500) with the volume of every segment."""
    import highdicom as hd
    from pydicom.sr.coding import Code

    observer = hd.sr.ObserverContext(
        observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=model[:64], manufacturer_name="monai_ssl", model_name=model[:64]
        ),
    )
    groups: list[Any] = []
    for index, name in preset.labels.items():
        if not index:
            continue
        description = seg.get_segment_description(index)
        volume = hd.sr.Measurement(
            name=Code("118565006", "SCT", "Volume"), value=volumes[name], unit=Code("ml", "UCUM", "milliliter")
        )
        group: dict[str, Any] = {
            "tracking_identifier": hd.sr.TrackingIdentifier(
                uid=description.tracking_uid, identifier=description.tracking_id
            ),
            "finding_type": Code(*segment_code(preset, index)),
            "measurements": [volume],
        }
        if not volumes[name]:  # no frame to refer to
            groups.append(hd.sr.MeasurementsAndQualitativeEvaluations(**group))
            continue
        segment = hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=index,
            source_series=hd.sr.SourceSeriesForSegmentation(series.datasets[0].SeriesInstanceUID),
        )
        groups.append(hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **group))
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=Code("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
    )
    with silent():
        document = hd.sr.Comprehensive3DSR(
            evidence=[*series.datasets, seg],
            content=report[0],
            series_instance_uid=hd.UID(),
            series_number=free_series_number(series, 2),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="monai_ssl",
            series_description=f"Measurements: {model}"[:64],
        )
        with atomic_path(path) as temporary:
            document.save_as(temporary)

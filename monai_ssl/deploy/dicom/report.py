"""Volumes of the segments, as numbers and as a DICOM structured report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import monai_ssl
from monai_ssl.data.preset import Preset
from monai_ssl.deploy.dicom.segmentation import free_series_number, now
from monai_ssl.deploy.dicom.segments import LATERALITY, segment_code, segment_modifiers
from monai_ssl.dicom import Series, silent
from monai_ssl.dicom.headers import UTF_8
from monai_ssl.dicom.values import plain
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
    path: Path,
    seg: Any,
    volumes: Mapping[str, float],
    series: Series,
    preset: Preset,
    model: str,
    version: str = "1.0.0",
) -> None:
    """Write a structured report (TID 1500) with the volume of every segment.

    Args:
        path: the new file.
        seg: the segmentation that was measured, as :func:`write_segmentation` returns it.
        volumes: class name -> milliliters.
        series: what was segmented.
        preset: names and codes of the classes.
        model: name of the model.
        version: of the model.
    """
    import highdicom as hd

    def uid(purpose: str) -> str:
        from pydicom.uid import generate_uid

        return str(generate_uid(entropy_srcs=[str(seg.SOPInstanceUID), "report", purpose]))

    with silent():
        report = _content(hd, seg, volumes, series, preset, model, version)
        document = hd.sr.Comprehensive3DSR(
            evidence=[*series.datasets, seg],
            content=report[0],
            series_instance_uid=uid("series"),
            series_number=free_series_number(series, 2),
            sop_instance_uid=uid("instance"),
            instance_number=1,
            manufacturer="monai_ssl",
            manufacturer_model_name=plain(model),
            software_versions=monai_ssl.__version__,
            series_description=plain(f"Measurements: {model}"),
            specific_character_set=UTF_8,
            **now(),
        )
        with atomic_path(path) as temporary:
            document.save_as(temporary)


def _content(
    hd: Any, seg: Any, volumes: Mapping[str, float], series: Series, preset: Preset, model: str, version: str
) -> Any:
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    observer = hd.sr.ObserverContext(
        observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=["observer", model, version]),
            name=plain(model),
            manufacturer_name="monai_ssl",
            model_name=plain(model),
        ),
    )
    groups = [_group(hd, seg, index, volumes[name], series, preset, model, version)
              for index, name in preset.labels.items() if index]  # fmt: skip
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=Code("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
    )


def _group(
    hd: Any, seg: Any, index: int, volume: float, series: Series, preset: Preset, model: str, version: str
) -> Any:
    """Measurements of one segment."""
    from pydicom.sr.coding import Code

    description = seg.get_segment_description(index)
    measurement = hd.sr.Measurement(
        name=Code("118565006", "SCT", "Volume"), value=volume, unit=Code("ml", "UCUM", "milliliter")
    )
    group: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(
            uid=description.tracking_uid, identifier=description.tracking_id
        ),
        "finding_type": Code(*segment_code(preset, index)),
        "algorithm_id": hd.sr.AlgorithmIdentification(name=plain(model), version=plain(version)),
        "measurements": [measurement],
    }
    if modifiers := segment_modifiers(preset, index):
        sides = [code for code in modifiers if code in LATERALITY.values()]
        others = [code for code in modifiers if code not in sides]
        group["finding_sites"] = [
            hd.sr.FindingSite(
                anatomic_location=Code(*segment_code(preset, index)),
                laterality=Code(*sides[0]) if sides else None,
                topographical_modifier=Code(*others[0]) if others else None,
            )
        ]
    if not volume:  # no frame to refer to
        return hd.sr.MeasurementsAndQualitativeEvaluations(**group)
    segment = hd.sr.ReferencedSegment(
        sop_class_uid=seg.SOPClassUID,
        sop_instance_uid=seg.SOPInstanceUID,
        segment_number=index,
        source_series=hd.sr.SourceSeriesForSegmentation(series.datasets[0].SeriesInstanceUID),
    )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **group)

"""A DICOM series in; DICOM SEG, NIfTI and a measurement report out.

Nothing that identifies a patient reaches a message or a file name: attributes are named, their values are not, and
files are counted. The DICOM objects themselves carry patient and study of the series, as they must.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

import monai_ssl
from monai_ssl.data import Preset
from monai_ssl.errors import DataError
from monai_ssl.files import atomic_path, write_text

SEG, NIFTI, UNCERTAINTY = "segmentation.dcm", "segmentation.nii.gz", "uncertainty.nii.gz"
REPORT, VOLUMES = "measurements.dcm", "measurements.json"
# attributes that every DICOM object must have, possibly empty, and that derived objects copy
TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
SCHEME = "99MONAISSL"  # private; designators that begin with 99 are free for local use
ANATOMY = ("91723000", "SCT", "Anatomical Structure")


@dataclass
class Series:
    """One DICOM series as a volume.

    Attributes:
        volume: ``(columns, rows, slices)`` float32 with its affine in RAS millimeters, as NIfTI files have it.
        datasets: the headers and pixels, in the order of the volume's slices.
        warnings: faults of the headers that were tolerated.
    """

    volume: MetaTensor
    datasets: list[Any]
    warnings: list[str] = field(default_factory=list)


@contextmanager
def _silent() -> Iterator[None]:
    """pydicom and highdicom quote values, names among them, in warnings and log records: none of them gets out."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("pydicom", "highdicom")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)


def _dicom_packages() -> None:
    import importlib.util

    for package in ("pydicom", "highdicom"):
        if importlib.util.find_spec(package) is None:
            raise DataError(f"{package} is not installed; pip install 'monai_ssl[dicom]'")


def read_series(folder: str | Path) -> Series:
    """Read the one series that a folder holds.

    Missing or empty attributes that a viewer can do without (SeriesNumber, PatientBirthDate, ...) are tolerated: they
    are filled with empty values in memory and listed as warnings. The files are not changed.

    Args:
        folder: searched with its subfolders; files that are not DICOM, and DICOMDIR, are passed over.

    Raises:
        DataError: for no or several series, a damaged file, missing or doubled slices, slices of different size or
            direction, a tilted gantry, color or multi-frame images, a single slice.
    """
    _dicom_packages()
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"dicom: {root} is no folder; give the folder of one series")
    datasets, notes = _read_files(root)
    datasets = _one_series(root, datasets)
    datasets, affine = _arrange(root, datasets)
    slices = [_pixels(dataset) for dataset in datasets]
    volume = np.stack(slices, axis=-1).swapaxes(0, 1)  # (rows, columns, slices) -> (x, y, z)
    notes += _fill(datasets)
    return Series(MetaTensor(torch.from_numpy(np.ascontiguousarray(volume)), affine=torch.from_numpy(affine),
                             meta={"original_channel_dim": "no_channel", "space": "RAS",
                                   "original_affine": affine.copy(), "spatial_shape": np.array(volume.shape)}),
                  datasets, notes)  # fmt: skip


def _read_files(root: Path) -> tuple[list[Any], list[str]]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    found: list[Any] = []
    bare: list[Any] = []
    foreign = 0
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    for number, path in enumerate(files, 1):
        where = f"dicom: file {number} of {len(files)} (in the order of their names)"
        try:
            with _silent():
                dataset = pydicom.dcmread(path)
        except InvalidDicomError:
            foreign += 1
            continue
        except Exception as error:  # damaged files raise whatever they like
            raise DataError(f"{where} is damaged ({type(error).__name__}); export the series again") from None
        if "SOPClassUID" not in dataset or str(dataset.SOPClassUID) == "1.2.840.10008.1.3.10":  # DICOMDIR
            foreign += 1
            continue
        dataset.monai_ssl_place = where  # a plain attribute: pydicom does not write it
        (found if "PixelData" in dataset else bare).append(dataset)
    if not found:
        raise DataError(f"dicom: {root} holds no DICOM image ({len(files)} other files); give the folder of a series")
    kinds = {str(dataset.SOPClassUID) for dataset in found}
    for dataset in bare:  # reports and the like have none, but images do
        if "Rows" in dataset or str(dataset.SOPClassUID) in kinds:
            raise DataError(f"{dataset.monai_ssl_place} has no pixels, it is truncated; export the series again")
    foreign += len(bare)
    notes = [f"{foreign} files that are no DICOM images were passed over"] if foreign else []
    return found, notes


def _one_series(root: Path, datasets: list[Any]) -> list[Any]:
    series: dict[str, list[Any]] = {}
    for dataset in datasets:
        series.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append(dataset)
    if "" in series:
        raise DataError(f"{series[''][0].monai_ssl_place} has no SeriesInstanceUID; export the series again")
    if len(series) > 1:
        sizes = " and ".join(str(n) for n in sorted(map(len, series.values()), reverse=True))
        raise DataError(
            f"dicom: {root} holds {len(series)} series (of {sizes} images); put each into a folder of its own"
        )
    if len({str(dataset.SOPInstanceUID) for dataset in datasets}) < len(datasets):
        raise DataError(f"dicom: {root} holds the same image twice (equal SOPInstanceUID); remove the copies")
    for dataset in datasets:
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise DataError("dicom: multi-frame images are not read; export the series with one image per slice")
        if int(dataset.get("SamplesPerPixel") or 1) != 1:
            raise DataError("dicom: images must be gray, got color; choose the original series")
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            if not dataset.get(keyword):
                raise DataError(f"{dataset.monai_ssl_place} has no {keyword}: its place in space is unknown")
    return datasets


def _arrange(root: Path, datasets: list[Any]) -> tuple[list[Any], np.ndarray]:
    """Slices in the order of their places, and the affine (4, 4) from indices to RAS millimeters."""
    first = datasets[0]
    direction = np.array(first.ImageOrientationPatient, dtype=float)
    spacing = np.array(first.PixelSpacing, dtype=float)
    for dataset in datasets[1:]:
        equal = {
            "size": (dataset.Rows, dataset.Columns) == (first.Rows, first.Columns),
            "ImageOrientationPatient": np.allclose(dataset.ImageOrientationPatient, direction, atol=1e-3),
            "PixelSpacing": np.allclose(dataset.PixelSpacing, spacing, rtol=1e-3),
        }
        for what, same in equal.items():
            if not same:
                raise DataError(f"dicom: slices of {root} differ in {what}; is a localizer among them? Remove it")
    x, y = direction[:3], direction[3:]
    normal = np.cross(x, y)
    if not np.isclose(np.linalg.norm(normal), 1, atol=1e-2):
        raise DataError(
            "dicom: ImageOrientationPatient must hold two perpendicular unit vectors; export the series again"
        )
    if len(datasets) < 2:
        raise DataError(f"dicom: {root} holds 1 slice; a volume needs at least 2")
    positions = np.array([dataset.ImagePositionPatient for dataset in datasets], dtype=float)
    order = np.argsort(positions @ normal, kind="stable")
    datasets, positions = [datasets[k] for k in order], positions[order]
    steps = np.diff(positions @ normal)
    step = float(np.median(steps))
    if steps.min() < 1e-3:
        raise DataError(
            f"dicom: {root} holds several slices at one place (phases, echoes, time points?); choose one volume of them"
        )
    if (wide := np.flatnonzero(np.abs(steps - step) > 0.05 * step)).size:
        raise DataError(
            f"dicom: {root} is incomplete: slices are {step:g} mm apart, but {steps[wide[0]]:g} mm between the "
            f"slices {wide[0] + 1} and {wide[0] + 2} of {len(datasets)}; export the whole series"
        )
    along = (positions[-1] - positions[0]) / (len(datasets) - 1)
    if np.linalg.norm(along - (along @ normal) * normal) > 0.01 * np.linalg.norm(along):
        raise DataError("dicom: slices are shifted against each other (tilted gantry); resample the series first")
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = x * spacing[1], y * spacing[0], along, positions[0]
    return datasets, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _pixels(dataset: Any) -> np.ndarray:
    place = dataset.monai_ssl_place
    size = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if not dataset.file_meta.TransferSyntaxUID.is_compressed and len(dataset.PixelData) < size:
        raise DataError(f"{place} is truncated; export the series again")
    try:
        with _silent():
            stored = dataset.pixel_array
    except Exception as error:  # the decoder's message may quote attributes
        raise DataError(
            f"{place} cannot be decoded ({type(error).__name__}); export the series again, uncompressed"
        ) from None
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise DataError(f"{place} must hold one gray image, got shape {stored.shape}")
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    return (stored * slope + intercept).astype(np.float32)


def _fill(datasets: list[Any]) -> list[str]:
    from pydicom.uid import generate_uid

    notes = []
    missing = [keyword for keyword in TYPE_2 if any(keyword not in dataset for dataset in datasets)]
    if any(dataset.get("SeriesNumber") is None for dataset in datasets):
        missing.append("SeriesNumber")
    if missing:
        notes.append(f"missing or empty attributes, taken as unknown: {', '.join(missing)}")
    if no_frame := any(not dataset.get("FrameOfReferenceUID") for dataset in datasets):
        notes.append("FrameOfReferenceUID is missing: the segmentation gets a new one")
    frame = generate_uid()
    for dataset in datasets:
        for keyword in TYPE_2:
            if keyword not in dataset:
                setattr(dataset, keyword, "")
        if no_frame:
            dataset.FrameOfReferenceUID = frame
    announced = datasets[0].get("ImagesInAcquisition")
    if announced and int(announced) > len(datasets):
        notes.append(
            f"the header speaks of {int(announced)} images, the folder holds {len(datasets)}: outer slices may lack"
        )
    return notes


# ------------------------------------------------------------------------------------------------------------- writing


def segment_code(preset: Preset, index: int) -> tuple[str, str, str]:
    """Code of a class: the preset's, else a private one with the class's name.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> segment_code(load_preset("left_atrium"), 1)
        ('82471001', 'SCT', 'Left atrium')
    """
    return preset.codes.get(index, (f"CLASS-{index}", SCHEME, preset.labels[index][:64]))


def to_frames(labels: np.ndarray) -> np.ndarray:
    """Label map ``(x, y, z)`` -> ``(slices, rows, columns)``, as DICOM stores it."""
    return np.ascontiguousarray(labels.transpose(2, 1, 0).astype(np.uint8))


def write_segmentation(
    path: Path, labels: np.ndarray, series: Series, preset: Preset, model: str, version: str = "1.0.0"
) -> Any:
    """Write a DICOM SEG (binary, one segment per class) and read it back.

    Args:
        path: the new file.
        labels: ``(x, y, z)`` class indices on the series' grid.
        series: what was segmented.
        preset: names and codes of the classes.
        model: name of the model, noted as the algorithm.
        version: of the model.

    Returns:
        the data set.

    Raises:
        DataError: when the written file does not hold exactly these labels.
    """
    import highdicom as hd
    from pydicom.sr.coding import Code

    algorithm = hd.AlgorithmIdentificationSequence(
        name=model[:64], version=version, family=Code("113076", "DCM", "Segmentation"))  # fmt: skip
    segments = [
        hd.seg.SegmentDescription(
            segment_number=index,
            segment_label=name[:64],
            segmented_property_category=Code(*ANATOMY),
            segmented_property_type=Code(*segment_code(preset, index)),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=f"{index} {name}"[:64],
        )
        for index, name in preset.labels.items()
        if index
    ]
    frames = to_frames(labels)
    with _silent():
        dataset = hd.seg.Segmentation(
            source_images=series.datasets,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=_free_series_number(series, 1),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="monai_ssl",
            manufacturer_model_name=model[:64],
            software_versions=monai_ssl.__version__,
            device_serial_number="0",
            series_description=f"Segmentation: {model}"[:64],
            content_label="SEGMENTATION",
            omit_empty_frames=bool(frames.any()),  # a segmentation without any frame would be no DICOM object
        )
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)
    if not np.array_equal(read_segmentation(path, series), labels):
        path.unlink()
        raise DataError(f"{path}: reading the DICOM SEG back gave another mask; nothing was written")
    return dataset


def _free_series_number(series: Series, offset: int) -> int:
    """Not that of the images; viewers sort by it."""
    return int(series.datasets[0].get("SeriesNumber") or 0) * 100 % 2**31 + offset


def read_segmentation(path: str | Path, series: Series) -> np.ndarray:
    """The label map ``(x, y, z)`` uint8 of a DICOM SEG, on the grid of the series that it refers to."""
    import highdicom as hd

    with _silent():
        seg = hd.seg.segread(path)
        frames = seg.get_pixels_by_source_instance(
            [dataset.SOPInstanceUID for dataset in series.datasets],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
            dtype=np.uint8,
        )
    return np.ascontiguousarray(frames.transpose(2, 1, 0))


def volumes_ml(labels: np.ndarray, affine: np.ndarray, preset: Preset) -> dict[str, float]:
    """Volume of every class in millilitres.

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
    with _silent():
        document = hd.sr.Comprehensive3DSR(
            evidence=[*series.datasets, seg],
            content=report[0],
            series_instance_uid=hd.UID(),
            series_number=_free_series_number(series, 2),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="monai_ssl",
            series_description=f"Measurements: {model}"[:64],
        )
        with atomic_path(path) as temporary:
            document.save_as(temporary)


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume; nothing but voxels and affine."""
    image = nib.Nifti1Image(values, np.asarray(affine, dtype=float))
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


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
        segmenter: a :class:`monai_ssl.engines.segment.Segmenter` of a preset with one channel.
        folder: of the series.
        output: folder; gets ``segmentation.dcm`` and ``segmentation.nii.gz``, and where asked for ``measurements.dcm``,
            ``measurements.json``, ``uncertainty.nii.gz``.
        model: name of the model.
        version: of the model.
        measurements: volumes in millilitres as a structured report.
        uncertainty: also write the uncertainty map.
        overwrite: replace the files of a former run.

    Returns:
        the files written.

    Raises:
        DataError: when the series cannot be used, or the folder holds results already.
    """
    _dicom_packages()
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
    affine = series.volume.affine.numpy()
    if labels.shape != tuple(series.volume.shape):
        raise DataError(f"dicom: the mask must have the series' shape {tuple(series.volume.shape)}, got {labels.shape}")
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

"""DICOM series written from volumes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np


def write_series(folder: Path, values: np.ndarray, affine: np.ndarray, **changes: Any) -> list[Path]:
    """An MR series of a NIfTI volume: axes as stored, RAS affine turned to LPS; ``changes`` set or (None) drop tags."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    x, y = lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    scale = 1000 / max(float(values.max() - values.min()), 1e-6)
    stored = np.round((values - values.min()) * scale).astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k in range(values.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        # the order of the names is not that of the slices
        path = folder / f"IM{(k * 7) % values.shape[2]:04d}-{k}"
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "SECRET^NAME", "SECRET-ID", "19010101"
        dataset.PatientSex, dataset.StudyID, dataset.AccessionNumber = "O", "1", "SECRET-ACC"
        dataset.StudyDate = dataset.SeriesDate = datetime.date(2026, 1, 2).strftime("%Y%m%d")
        dataset.StudyTime, dataset.ReferringPhysicianName, dataset.Modality = "101500", "", "MR"
        dataset.SeriesNumber, dataset.InstanceNumber = 3, k + 1
        dataset.ImagePositionPatient = [float(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        dataset.ImageOrientationPatient = [float(v) for v in (*x, *y)]
        dataset.PixelSpacing, dataset.SliceThickness = [float(spacing[1]), float(spacing[0])], float(spacing[2])
        dataset.Rows, dataset.Columns = values.shape[1], values.shape[0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        for keyword, value in changes.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        pydicom.dcmwrite(path, dataset)
        files.append(path)
    return files


def volume_of(shape: tuple[int, int, int] = (10, 8, 12)) -> tuple[np.ndarray, np.ndarray]:
    """Gray values and the RAS affine of an axial scan; another value at every voxel of a slice."""
    values = np.random.RandomState(3).randint(0, 1000, shape).astype(float)
    values[0, 0, 0], values[-1, -1, -1] = 0, 1000  # write_series scales to this range
    affine = np.diag([-2.5, -2.0, 3.0, 1.0])
    affine[:3, 3] = (40.0, 31.5, -12.0)
    return values, affine


def edit(path: Path, **changes: Any) -> None:
    """Set attributes of one file, or (None) drop them; texts of numbers go in as they are."""
    import pydicom

    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        for keyword, value in changes.items():
            tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword))
            vr = pydicom.datadict.dictionary_VR(tag)
            if value is None:
                dataset.pop(tag, None)
            elif vr in ("DS", "IS"):  # written without pydicom's conversion
                text = "\\".join([value] if isinstance(value, str) else map(str, value)).encode()
                dataset[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(text), text, 0, False, True)
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(path, enforce_file_format=False)


def write_enhanced(path: Path, values: np.ndarray, affine: np.ndarray, sop_class: str, **changes: Any) -> Path:
    """The series of :func:`write_series` as one enhanced multi-frame file, frames in an order of their own."""
    import pydicom
    from pydicom.dataset import Dataset

    single = [pydicom.dcmread(file) for file in write_series(path.parent / "single", values, affine)]
    order = [(k * 5) % len(single) for k in range(len(single))]
    dataset = single[0]
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.NumberOfFrames, dataset.PixelData = len(single), b"".join(single[k].PixelData for k in order)
    shared, measures, plane, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    plane.ImageOrientationPatient = dataset.ImageOrientationPatient
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "2", "-10", "US"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [rescale]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = single[k].ImagePositionPatient
        group.PlanePositionSequence = [place]
        frames.append(group)
    dataset.PerFrameFunctionalGroupsSequence = frames
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del dataset[keyword]
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    folder = path.parent / "enhanced"
    folder.mkdir()
    dataset.save_as(folder / path.name)
    return folder

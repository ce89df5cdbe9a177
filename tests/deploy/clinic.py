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

"""Commands in this process, a network that draws something, DICOM series written from volumes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_ssl import cli
from monai_ssl.engines.segment import Segmenter

TINY = ["--dataset", "phantom", "--max_iterations", "4", "--epoch_length", "2", "--val_interval", "2",
        "--num_workers", "0", "--amp", "off", "--device", "cpu", "--network_def#base_channels", "2"]  # fmt: skip


def run(*words: Any) -> int:
    """Exit status of a command, in this process."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def fails(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The last line with which a command must fail."""
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1].removeprefix("monai-ssl: error: ")


def balance(folder: Path, weights: Path, image: Path, settings: dict[str, Any]) -> None:
    """Move the last bias until half of ``image`` is foreground: a constant mask would hide every mistake."""
    segmenter = Segmenter(folder, {"device": "cpu", "amp": "off", **settings, "ckpt": str(weights)})
    x = segmenter.prepare(image)["image"].as_tensor()[None, :, :32, :32, :16]
    network = segmenter.network
    with torch.no_grad():
        network.train()
        for _ in range(30):
            network(x)  # settles the batch statistics
        network.eval()
        for bias in reversed([p for p in network.parameters() if p.dim() == 1 and p.numel() <= 2]):
            excess = (network(x)[:, 1] - network(x)[:, 0]).median()
            bias[-1] -= excess
            if abs((network(x)[:, 1] - network(x)[:, 0]).median()) < 1e-3:
                torch.save(network.state_dict(), weights)
                return
            bias[-1] += excess
    raise AssertionError("found no bias of the last layer")


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

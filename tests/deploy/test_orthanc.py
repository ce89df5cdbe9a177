"""A round trip: a series into Orthanc and out again, segmented, SEG and SR back, frames as viewers fetch them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinic import volume_of, write_series
from commands import run

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

pytestmark = pytest.mark.slow
# a multiple of 8 columns: Orthanc unpacks no other frames of 1 bit
VALUES, AFFINE = volume_of((16, 8, 12))
PROGRAM = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PLUGINS = os.environ.get("ORTHANC_PLUGINS", "/usr/share/orthanc/plugins")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Archive:
    """An Orthanc of its own, for this machine only."""

    def __init__(self, folder: Path) -> None:
        self.http, self.dicom = free_port(), free_port()
        plugin = Path(PLUGINS) / "libOrthancDicomWeb.so"
        self.dicomweb = plugin.is_file()
        content = {
            "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": "ARCHIVE", "DicomCheckCalledAet": True,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowEcho": False, "DicomCheckModalityHost": True,
            "DicomModalities": {"test": ["TEST", "127.0.0.1", 104]},
            "Plugins": [str(plugin)] if self.dicomweb else [], "DicomWeb": {"Enable": True},
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(content))
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen([PROGRAM, str(folder / "orthanc.json")], stdout=self.log, stderr=self.log)

    def wait(self) -> None:
        for _ in range(120):
            try:
                self.get("system")
                return
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, "Orthanc ended"
                time.sleep(0.25)
        raise TimeoutError("Orthanc does not answer")

    def get(self, path: str, data: bytes | None = None, accept: str | None = None) -> bytes:
        headers = {"Accept": accept} if accept else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def json(self, path: str, data: bytes | None = None) -> Any:
        return json.loads(self.get(path, data))

    def store(self, files: list[Path]) -> list[str]:
        """By REST; says of each whether it is new."""
        return [str(self.json("instances", path.read_bytes())["Status"]) for path in files]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.log.close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    if PROGRAM is None:
        pytest.skip("Orthanc is not installed; CONTRIBUTING.md says how")
    archive = Archive(tmp_path_factory.mktemp("orthanc"))
    try:
        archive.wait()
        yield archive
    finally:
        archive.close()


@pytest.fixture(scope="module")
def results(archive: Archive, packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored by C-STORE where dcmtk is there, fetched as a study, segmented; SEG, probabilities and SR stored."""
    folder = tmp_path_factory.mktemp("trip")
    files = write_series(folder / "scanner", VALUES, AFFINE, SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎")
    if shutil.which("storescu"):
        words = ["storescu", "-aet", "TEST", "-aec", "ARCHIVE", "127.0.0.1", str(archive.dicom)]
        subprocess.run([*words, *map(str, files)], check=True, timeout=60, capture_output=True)
    else:
        archive.store(files)
    (study,) = archive.json("studies")
    zipfile.ZipFile(io.BytesIO(archive.get(f"studies/{study}/archive"))).extractall(folder / "study")
    predict(packaged, folder)
    assert archive.store(sorted((folder / "out").glob("*.dcm"))) == ["Success"] * 3
    return folder


def predict(packaged: Path, folder: Path, *words: str) -> None:
    given = ["--bundle", packaged, "--dicom", folder / "study", "--output", folder / "out", "--device", "cpu"]
    assert run("predict", *given, "--measurements", "--probabilities", *words) == 0


def test_results_are_in_the_study_of_the_images(archive, results):
    (patient,), (study,) = archive.json("patients"), archive.json("studies")
    assert archive.json(f"studies/{study}")["ParentPatient"] == patient
    kinds = sorted(archive.json(f"series/{name}")["MainDicomTags"]["Modality"] for name in archive.json("series"))
    assert kinds == ["MR", "SEG", "SEG", "SR"]


def instance(archive: Archive, path: Path) -> str:
    (found,) = archive.json("tools/lookup", str(pydicom.dcmread(path).SOPInstanceUID).encode())
    return str(found["ID"])


def test_the_segmentation_comes_back_with_its_frames(archive, results):
    path = results / "out" / "segmentation.dcm"
    seg, identifier = pydicom.dcmread(path), instance(archive, path)
    assert archive.get(f"instances/{identifier}/file") == path.read_bytes()
    assert len(archive.json(f"instances/{identifier}/frames")) == seg.NumberOfFrames == len(seg.pixel_array)
    for number, frame in enumerate(seg.pixel_array):
        stored = np.frombuffer(archive.get(f"instances/{identifier}/frames/{number}/raw"), np.uint8)
        bits = stored if len(stored) == frame.size else np.unpackbits(stored, bitorder="little")
        np.testing.assert_array_equal(bits.reshape(frame.shape) > 0, frame > 0)


def test_frames_over_dicomweb(archive, results):
    """As OHIF fetches them."""
    if not archive.dicomweb:
        pytest.skip(f"no libOrthancDicomWeb.so in {PLUGINS}; CONTRIBUTING.md says how to get it")
    for name in ("segmentation.dcm", "probabilities.dcm"):
        seg = pydicom.dcmread(results / "out" / name)
        place = (
            f"dicom-web/studies/{seg.StudyInstanceUID}/series/{seg.SeriesInstanceUID}/instances/{seg.SOPInstanceUID}"
        )
        (meta,) = archive.json(f"{place}/metadata")
        assert meta["00620002"]["Value"][0]["0062000D"]["Value"]
        accept = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
        for number in (1, int(seg.NumberOfFrames)):
            body = archive.get(f"{place}/frames/{number}", accept=accept)
            head, content = body.split(b"\r\n\r\n", 1)
            length = int(re.search(rb"Content-Length: (\d+)", head)[1])
            frame = seg.pixel_array[number - 1]
            stored = np.frombuffer(content[:length], np.uint8)
            bits = stored if seg.BitsAllocated == 8 else np.unpackbits(stored, bitorder="little")
            np.testing.assert_array_equal(bits[: frame.size].reshape(frame.shape), frame)


def test_a_second_run_is_known_to_the_archive(archive, results, packaged):
    """The same identifiers: nothing piles up."""
    predict(packaged, results, "--overwrite")
    assert archive.store(sorted((results / "out").glob("*.dcm"))) == ["AlreadyStored"] * 3


def test_a_study_with_our_results_is_segmented_again(archive, results, packaged, tmp_path):
    """Our own SEG and SR among the files of the study are no series to choose from."""
    (study,) = archive.json("studies")
    zipfile.ZipFile(io.BytesIO(archive.get(f"studies/{study}/archive"))).extractall(tmp_path / "study")
    assert len([path for path in (tmp_path / "study").rglob("*") if path.is_file()]) == len(VALUES[0, 0]) + 3
    predict(packaged, tmp_path)
    ours, again = (folder / "out" / "segmentation.nii.gz" for folder in (results, tmp_path))
    assert ours.read_bytes() == again.read_bytes()

"""Two hundred mutated series: each is read, or refused in one line; nothing hangs, no patient's value is shown."""

from __future__ import annotations

import faulthandler
import logging
import random
import signal
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from clinic import volume_of, write_enhanced, write_series

from monai_ssl.data import load_preset
from monai_ssl.errors import DataError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from monai_ssl.deploy import dicom  # noqa: E402

SERIES, SEED, SECONDS = 200, 7, 20
SECRET = "QZXSECRETQZX"
PATIENT = {
    "PatientName": f"{SECRET}^NAME", "PatientID": f"{SECRET}-ID", "AccessionNumber": SECRET, "StudyID": SECRET,
    "ReferringPhysicianName": f"{SECRET}^DOC",
}  # fmt: skip
VRS = ("DS", "IS", "LO", "PN", "US", "FD", "SQ", "UN", "OB", "DA", "UI", "AT", "UT")
TEXTS = (
    SECRET,
    "",
    "\\",
    "1_0",
    "nan",
    "1e999",
    "9" * 300,
    "-1",
    "0",
    "1\\2\\3\\4\\5\\6\\7",
    "\0\0",
    "ÄÖ左",
    "%s%n",
    "1.2.3",
)


def mutate(path: Path, random_: random.Random) -> str:
    """One fault in one file; returns its kind."""
    kind = random_.choice(["delete", "value", "vr", "bytes", "cut", "move", "charset", "syntax", "nested", "empty"])
    content = bytearray(path.read_bytes())
    if kind == "bytes":
        for _ in range(random_.randint(1, 30)):
            content[random_.randrange(128, len(content))] = random_.randrange(256)
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: random_.randrange(len(content))])
    elif kind == "move":
        at, size = random_.randrange(132, len(content) - 64), random_.randint(1, 64)
        path.write_bytes(content[:at] + content[at + size :])
    else:
        header(path, kind, random_)
    return kind


def mutations(files: list[Path], random_: random.Random) -> list[str]:
    """One file, some, or the same fault in all."""
    count = random_.choice([1, 1, 2, len(files)])
    if count < len(files):
        return [mutate(path, random_) for path in random_.sample(files, count)]
    seed = random_.random()
    return [mutate(path, random.Random(seed)) for path in files]


def header(path: Path, kind: str, random_: random.Random) -> None:
    dataset = pydicom.dcmread(path)
    tag = random_.choice([element.tag for element in dataset if element.keyword])
    element = dataset[tag]
    if kind == "delete":
        del dataset[tag]
    elif kind == "empty":
        raw(dataset, tag, element.VR, b"")
    elif kind == "value":
        raw(dataset, tag, element.VR, random_.choice(TEXTS).encode())
    elif kind == "vr":
        raw(dataset, tag, random_.choice(VRS), random_.choice([SECRET.encode(), b"\1\2\3", random_.randbytes(40)]))
    elif kind == "charset":
        sets = [b"ISO 2022 IR 87", b"\\ISO 2022 IR 149", b"NONSENSE", SECRET.encode(), b"\\\\\\", b"GB18030"]
        raw(dataset, pydicom.tag.Tag("SpecificCharacterSet"), "CS", random_.choice(sets))
        raw(dataset, pydicom.tag.Tag("PatientName"), "PN", SECRET.encode() + b"\x1b$B" + random_.randbytes(8))
    elif kind == "syntax":
        dataset.file_meta.TransferSyntaxUID = random_.choice(
            [
                "1.2.840.10008.1.2.4.70",
                "1.2.840.10008.1.2.4.90",
                "1.2.840.10008.1.2.5",
                "1.2.3",
                "1.2.840.10008.1.2.4.102",
            ]
        )
        dataset["PixelData"].is_undefined_length = False
    elif kind == "nested":
        inner = pydicom.Dataset()
        for _ in range(60):
            outer = pydicom.Dataset()
            outer.ReferencedStudySequence = [inner]
            inner = outer
        dataset.ReferencedStudySequence = [inner]
    pydicom.dcmwrite(path, dataset, enforce_file_format=False)


def raw(dataset: pydicom.Dataset, tag: int, vr: str, content: bytes) -> None:
    dataset[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(content), content, 0, False, True)


def too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


@pytest.mark.slow
def test_mutated_series(tmp_path, capfd, caplog):
    """From the files to SEG and SR, as prediction does it, with a mask of random voxels."""
    caplog.set_level(logging.DEBUG)
    faulthandler.enable()
    signal.signal(signal.SIGALRM, too_long)
    random_, preset = random.Random(SEED), load_preset("hippocampus")
    values, affine = volume_of((8, 8, 5))
    labels = np.random.RandomState(0).randint(0, 3, values.shape).astype(np.uint8)
    outcomes: dict[str, int] = {"read": 0, "refused": 0}
    faults, longest = [], 0.0
    for number in range(SERIES):
        folder = tmp_path / str(number)
        if number % 5 == 4:
            files = list(
                write_enhanced(folder / "x.dcm", values, affine, "1.2.840.10008.5.1.4.1.1.4.1", **PATIENT).iterdir()
            )
        else:
            files = write_series(folder / "series", values, affine, **PATIENT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = logging.root.manager.disable
            logging.disable(logging.CRITICAL)  # what the writing of the faults says
            try:
                kinds = mutations(files, random_)
            except Exception:  # pydicom does not write it: the next one
                kinds = ["unwritten"]
            logging.disable(state)
        shown, start = "", time.perf_counter()
        signal.alarm(SECONDS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                series = dicom.read_series(files[0].parent)
                shown += " ".join(series.warnings)
                if series.voxels.shape == labels.shape:
                    seg = dicom.write_segmentation(folder / "seg.dcm", labels, series, preset, "model")
                    volumes = dicom.volumes_ml(labels, series.affine, preset)
                    dicom.write_measurements(folder / "sr.dcm", seg, volumes, series, preset, "model")
                outcomes["read"] += 1
            except DataError as error:
                shown += str(error)
                outcomes["refused"] += 1
                if "\n" in str(error):
                    faults.append((number, kinds, "several lines"))
            except BaseException:
                faults.append((number, kinds, traceback.format_exc(limit=-3)))
        signal.alarm(0)
        longest = max(longest, time.perf_counter() - start)
        shown += "".join(str(item.message) for item in caught) + caplog.text + "".join(capfd.readouterr())
        caplog.clear()
        if SECRET in shown:
            faults.append((number, kinds, "a patient's value is shown"))
    print(f"{SERIES} series: {outcomes}, longest {longest:.2f} s")
    assert not faults, "\n".join(map(str, faults[:20]))
    assert min(outcomes.values()) > 20  # neither everything nor nothing
    assert longest < SECONDS

"""Headers damaged at random: a line that quotes nothing of them, or the voxels; no traceback, no hang, no memory."""

from __future__ import annotations

import gzip
import io
import random
import re
import signal
import struct
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from zoo import FLAT, SHAPE, classes, itk, nifti

from monai_ssl.curation.verify import verify
from monai_ssl.data import DataError, load_preset, preprocessing
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.reading import read_scan

SECRET = b"Doe_SECRET"
REPOSITORY = Path(__file__).parents[2]


def words_about(file: Path) -> str:
    """What is said of a file; nothing where it is read."""
    try:
        scan = read_scan(file)
    except DataError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 500
        return text
    return " ".join(scan.notes)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("packed", [False, True])
def test_no_message_quotes_a_text_header(tmp_path, suffix, packed):
    raw = itk(tmp_path / f"a{suffix}", classes().astype("int16"), packed, texts=True).read_bytes()
    end = raw.index(b"\n", raw.index(b"ElementDataFile")) if suffix.startswith(".m") else (raw + b"\n\n").index(b"\n\n")
    lines, file = raw[:end].split(b"\n"), tmp_path / f"b{suffix}"
    refused = 0
    for index, line in enumerate(lines):
        if line.lower().startswith((b"elementdatafile", b"data file")):
            continue  # names a file, as messages do
        name = re.split(rb" =|:", line)[0]
        mixed = (line.replace(b" ", b" " + SECRET + b" ", 1), line.replace(b"1", b"'" + SECRET + b"1", 1))
        for new in (SECRET, name + b" = " + SECRET, name + b": " + SECRET, line + SECRET, SECRET + line, *mixed):
            file.write_bytes(b"\n".join([*lines[:index], new, *lines[index + 1 :]]) + raw[end:])
            text = words_about(file)
            refused += bool(text)
            assert "SECRET" not in text, (new, text)
    assert refused > 10  # the test reaches the messages


def headers() -> dict[str, bytes]:
    found = {}
    for kind in ("PNG", "TIFF", "JPEG", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(classes(FLAT).T * 60).save(buffer, kind)
        found[f".{kind.lower()}"] = buffer.getvalue()[:600]
    buffer = io.BytesIO()
    np.save(buffer, classes())
    return found | {".npy": buffer.getvalue()}


@pytest.mark.parametrize("suffix", [".nii", ".nii2", ".hdr", *headers()])
def test_no_message_quotes_a_binary_header(tmp_path, suffix):
    file = tmp_path / f"a{suffix[:4] if suffix.startswith('.nii') else suffix}"
    if suffix.startswith(".nii"):
        raw = nifti(file, classes(), kind=nib.Nifti2Image if suffix == ".nii2" else nib.Nifti1Image).read_bytes()
        end = 540 if suffix == ".nii2" else 348
    elif suffix == ".hdr":
        nib.save(nib.AnalyzeImage(classes().astype(np.int16), None), tmp_path / "a.img")
        raw = file.read_bytes()
        end = len(raw)
    else:
        raw = headers()[suffix]
        end = min(len(raw), 128 if suffix == ".npy" else 600)
    texts = []
    for at in range(0, end, 3):
        file.write_bytes(raw[:at] + SECRET + raw[at + len(SECRET) :])
        texts.append(words_about(file))
        assert "SECRET" not in texts[-1], (at, texts[-1])
    assert any(texts)


def test_results_take_no_text_of_their_image(tmp_path):
    """The fields, by name; that a result holds nothing of them at all is seen in the zoo."""
    from test_zoo import preset_of, segment

    image = nib.Nifti1Image(classes(), np.diag([1.0, 2, 3, 1]))
    for key in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[key] = SECRET
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET))
    nib.save(image, tmp_path / "a.nii.gz")
    written = nib.load(segment(tmp_path / "out", tmp_path / "a.nii.gz", preset_of(3, 1)))
    assert [bytes(written.header[key]).strip(b"\0") for key in ("descrip", "aux_file", "db_name", "intent_name")] == (
        [b""] * 4
    )
    assert not written.header.extensions
    raw = (tmp_path / "out" / "a_seg.nii.gz").read_bytes()
    assert raw[3] & 0x1C == 0  # neither a file name nor a comment in the pack


def test_whoever_writes_a_table_guards_it():
    """Cells that a spreadsheet takes for formulas: every module that writes CSV uses the one function against them."""
    writers = []
    for folder in ("monai_ssl", "benchmarks"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            code = file.read_text(encoding="utf-8")
            if re.search(r"csv\.(writer|DictWriter)\(|\.to_csv\(|np\.savetxt\(", code):
                writers.append(file.name)
                assert re.search(r"\bcell\(", code), f"{file} writes a table past monai_ssl.files.cell"
    assert "results.py" in writers


# ------------------------------------------------------------------------------------------------- 500 mutated NIfTI


def mutated(source: random.Random, raw: bytes, packed: bool) -> bytes:
    """A file with something wrong: bytes of the header, a field with an extreme value, an end too early, the pack."""
    content = bytearray(raw)
    kind = source.randrange(6)
    if kind == 0:
        for _ in range(source.randint(1, 8)):
            content[source.randrange(352)] = source.randrange(256)
    elif kind == 1:
        at = source.randrange(0, 348, 2)
        content[at : at + 2] = struct.pack("<h", source.choice([0, -1, 1, 32767, -32768, 255, 4096]))
    elif kind == 2:
        at = source.randrange(0, 348, 4)
        content[at : at + 4] = struct.pack("<f", source.choice([np.nan, np.inf, -np.inf, 0, -1, 1e38, 1e-38, 3e9]))
    elif kind == 3:
        content = content[: source.randrange(len(content))]
    elif kind == 4:
        at = source.randrange(len(content))
        content[at:at] = bytes(source.randrange(256) for _ in range(source.randint(1, 40)))
    if not packed:
        return bytes(content)
    pack = bytearray(gzip.compress(bytes(content), source.choice([0, 1, 6]), mtime=0))
    if kind == 5:
        for _ in range(source.randint(1, 4)):
            pack[source.randrange(len(pack))] ^= 1 << source.randrange(8)
        pack = pack[: source.choice([len(pack), source.randrange(1, len(pack))])]
    return bytes(pack)


def read_by(chain, file: Path):
    """The image, or the ``DataError`` with which a prediction refuses it; whatever else is raised comes through."""
    try:
        return chain({"image": str(file)})["image"], None
    except RuntimeError as error:
        if not isinstance(error.__cause__, DataError):
            raise
        return None, error.__cause__


def out_of_time(signum, frame):
    raise TimeoutError("a file was read for more than 10 seconds")


@pytest.mark.slow
def test_500_mutated_nifti(tmp_path):
    preset = load_preset({"name": "fuzz", "labels": {0: "background", 1: "a"}, "patch_size": [16, 16, 16],
                          "orientation": "RAS", "augmentation": {"policy": "none"}})  # fmt: skip
    chain, source, outcomes, slowest, most = preprocessing(preset), random.Random(12), Counter(), 0.0, 0
    sources = [nifti(tmp_path / "s.nii", classes().astype(kind), order=order).read_bytes()
               for kind in ("uint8", "int16", "float32") for order in "<>"]  # fmt: skip
    signal.signal(signal.SIGALRM, out_of_time)
    for number in range(500):
        packed = bool(number % 2)
        file = tmp_path / ("a.nii.gz" if packed else "a.nii")
        file.write_bytes(mutated(source, source.choice(sources), packed))
        tracemalloc.start()
        signal.alarm(10)
        start = time.perf_counter()
        problems = verify(Datalist(unlabeled=[{"image": str(file)}]), preset, ["unlabeled"], 1, progress=False)
        errors = [str(problem) for problem in problems if problem.severity == "error"]
        read, refused = read_by(chain, file)
        slowest = max(slowest, time.perf_counter() - start)
        signal.alarm(0)
        most = max(most, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert bool(errors) == (refused is not None), (number, errors, refused)
        assert not any("cannot be checked" in error for error in errors), errors
        if read is not None:
            assert np.isfinite(read.numpy()).all()
        outcomes["refused" if errors else "read"] += 1
    print(f"500 files: {dict(outcomes)}, slowest {slowest:.2f} s, most memory {most / 1e6:.1f} MB")
    assert outcomes["refused"] > 100
    assert outcomes["read"] > 100
    # four copies in float32 of the largest image that so small a file may promise, and what Python itself needs
    assert most < 100e6, most
    assert np.prod(SHAPE) * 4 < 20_000

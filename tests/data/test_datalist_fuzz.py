"""2,000 mutated datalists: refused in a line, or read; never a traceback, never a long wait."""

import copy
import json
import time
import warnings

import numpy as np
import pytest

import monai_ssl
from monai_ssl.data import DataError, load_datalist

START = {
    "description": "fuzz",
    "labels": {"0": "background", "1": "organ"},
    "modality": {"0": "MR"},
    "training": [{"image": f"images/t{i}.nii.gz", "label": f"labels/t{i}.nii.gz", "fold": i % 2} for i in range(4)],
    "unlabeled": [{"image": "images/u0.nii.gz"}, "images/u1.nii.gz"],
    "validation": [{"image": ["images/v0.nii.gz"], "label": "labels/v0.nii.gz"}],
    "testing": ["images/x.nii.gz"],
}
VALUES = (None, True, 0, -1, 1.5, 10**30, "", " ", ".", "..", "/", "\\", "a\\b.nii", "\0", "a\0b", "\ud800", "ä" * 300,
          "x" * 5000, "$print(1)", "@x", "%x", [], {}, [[]], [None], [{}], {"image": 3}, {"image": []},
          {"image": ["a", 4]}, {"image": "a", "label": []}, {"label": "a"}, "images/t0.nii.gz", "labels/t0.nii.gz",
          ["images/t0.nii.gz"] * 2,
          {"0": 1}, {"organ": [1, 2]}, {"1": "x", "01": "y"}, "../../../etc/passwd", "~", "image\n.nii")  # fmt: skip
KEYS = ("training", "unlabeled", "validation", "testing", "test", "train", "labels", "modality", "channel_names",
        "fold", "image", "label", "images", "", "\ud800", "tranining")  # fmt: skip


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(random):
    content = copy.deepcopy(START)
    for _ in range(random.randint(1, 3)):
        found = [path for path in places(content) if path]
        *path, last = found[random.randint(len(found))]
        holder = content
        for key in path:
            holder = holder[key]
        what = random.randint(4)
        value = copy.deepcopy(VALUES[random.randint(len(VALUES))])
        if what == 0:
            del holder[last]
        elif what == 1 and isinstance(holder, dict):
            holder[KEYS[random.randint(len(KEYS))]] = value
        else:
            holder[last] = value
    raw = bytearray(json.dumps(content, ensure_ascii=bool(random.randint(2))).encode("utf-8", "surrogatepass"))
    kind = random.randint(24)
    if kind == 0:
        return b"\xef\xbb\xbf" + raw
    if kind == 1:
        return bytes(raw).decode("utf-8", "replace").encode("utf-16")
    if kind == 2:
        return bytes(raw[: random.randint(len(raw))])
    if kind == 3:
        return b'{"training": ' + b"[" * 3000 + b"]" * 3000 + b"}"
    if kind == 4:
        return bytes(raw).replace(b'"fold": 1', b'"fold": ' + b"9" * 5000)
    if kind == 5:
        return bytes(raw).replace(b'"fold"', b'"image"')
    if kind in (6, 7):
        for _ in range(random.randint(1, 5)):
            raw[random.randint(len(raw))] = random.randint(256)
    return bytes(raw)


@pytest.mark.slow
def test_2000_mutated_datalists_are_refused_in_a_line_or_read(tmp_path):
    random, path = np.random.RandomState(0), tmp_path / "datalist.json"
    counts, longest = {"refused": 0, "read": 0}, 0.0
    for number in range(2000):
        raw = mutated(random)
        path.write_bytes(raw)
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                cases = load_datalist(path)
                counts["read"] += 1
                if number % 20 == 0:  # the files are not there: every problem is a line
                    assert all("\n" not in str(problem) for problem in monai_ssl.check(tmp_path, dataset="phantom"))
                assert all("label" not in entry for entry in cases.unlabeled)
            except DataError as error:
                counts["refused"] += 1
                message = str(error)
            else:
                message = ""
        assert "\n" not in message, raw
        assert len(message) < len(str(path)) + 1500, raw
        longest = max(longest, time.perf_counter() - begin)
    print(counts, f"longest {longest:.3f} s")
    assert min(counts.values()) > 300
    assert longest < 5


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"training": [], "x": ' + b"9" * 5000 + b"}", "got a number that is too long"),
        (b'{"training": [{"image": "\\ud800", "label": "a"}]}', "got characters that no file has"),
        (b'{"training": ' + b"[" * 100000, "nested too deeply"),
        (b"\xff\xfe{\x00", "must be a JSON file"),
    ],
)
def test_hostile_files(tmp_path, raw, message):
    (tmp_path / "datalist.json").write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        load_datalist(tmp_path / "datalist.json")
    assert "\n" not in str(caught.value)

"""Datalists: the format, the unlabeled pool, and every mistake a user can write into the JSON."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import pytest

from monai_ssl.data.cases import case_name, case_names, image_files
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.loading import load_datalist
from monai_ssl.errors import DataError


def touch(root: Path, *names: str) -> None:
    """Empty files: a datalist is loaded without opening a single scan."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write(root: Path, content: object, name: str = "datalist.json") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pair(name: str, label: str | None = None) -> dict[str, str]:
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{label or name}.nii.gz"}


def pool_of(datalist: Datalist) -> list[str]:
    return [Path(image_files(entry)[0]).name for entry in datalist.unlabeled]


def test_paths_become_absolute_and_lists_keep_their_order(tmp_path):
    path = write(
        tmp_path / "Ünïcode folder",
        {
            "description": "d",
            "labels": {"1": "organ", "0": "background"},
            "training": [pair("b"), pair("a")],
            "unlabeled": [{"image": "images/u.nii.gz"}, "images/v.nii.gz"],
            "validation": [pair("c")],
            "testing": ["images/t.nii.gz", pair("s")],
            "numTraining": 2,
        },
    )
    loaded = load_datalist(path)
    folder = path.parent
    assert loaded.training == [
        {"image": str(folder / "images/b.nii.gz"), "label": str(folder / "labels/b.nii.gz")},
        {"image": str(folder / "images/a.nii.gz"), "label": str(folder / "labels/a.nii.gz")},
    ]
    assert loaded.unlabeled == [{"image": str(folder / "images" / name)} for name in ("u.nii.gz", "v.nii.gz")]
    assert loaded.testing[0] == {"image": str(folder / "images/t.nii.gz")}
    assert loaded.testing[1]["label"] == str(folder / "labels/s.nii.gz")
    assert loaded.labels == {0: "background", 1: "organ"}
    assert list(loaded.labels) == [0, 1]
    assert (loaded.description, loaded.path, loaded.dataset_dir) == ("d", path, folder)
    assert loaded.counts() == {"training": 2, "unlabeled": 2, "validation": 1, "testing": 2}


def test_dataset_dir_and_bare_name(tmp_path, monkeypatch):
    data, elsewhere = tmp_path / "data", tmp_path / "lists"
    data.mkdir()
    listed = write(elsewhere, {"training": [pair("a")], "unlabeled": []}, "split.json")
    assert load_datalist(listed, data).training[0]["image"] == str(data / "images/a.nii.gz")
    write(data, {"training": [pair("inside")], "unlabeled": []}, "split.json")
    assert case_name(load_datalist("split.json", data).training[0]) == "inside"
    # a bare name means the file next to the data, a path means the path
    monkeypatch.chdir(elsewhere)
    assert case_name(load_datalist("split.json", data).training[0]) == "inside"
    assert case_name(load_datalist("./split.json", data).training[0]) == "a"
    assert load_datalist("split.json").training[0]["image"] == str(elsewhere / "images/a.nii.gz")
    # without a name: the only JSON, or datalist.json among several
    assert case_name(load_datalist(None, data).training[0]) == "inside"
    write(data, {"training": [pair("z")], "unlabeled": []}, "other.json")
    with pytest.raises(DataError, match=r"holds 2 JSON files: choose from other.json, split.json"):
        load_datalist(None, data)
    write(data, {"training": [pair("default")], "unlabeled": []})
    assert case_name(load_datalist(None, data).training[0]) == "default"


def test_msd_dataset_json(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesTr/extra.nii.gz", "imagesTs/t.nii.gz", "labelsTr/a.nii.gz")
    path = write(
        tmp_path,
        {
            "name": "Hippocampus",
            "tensorImageSize": "3D",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "Anterior"},
            "numTraining": 1,
            "numTest": 1,
            "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
            "test": ["./imagesTs/t.nii.gz"],
        },
        "dataset.json",
    )
    loaded = load_datalist(path)
    assert loaded.training[0]["image"] == str(tmp_path / "imagesTr/a.nii.gz")
    assert loaded.testing == [{"image": str(tmp_path / "imagesTs/t.nii.gz")}]
    assert pool_of(loaded) == ["extra.nii.gz"]


def test_nnunet_label_names(tmp_path):
    path = write(tmp_path, {"training": [], "unlabeled": [], "labels": {"background": 0, "organ": 1}})
    assert load_datalist(path).labels == {0: "background", 1: "organ"}


# ---------------------------------------------------------------------------------------------------------- the pool


def test_pool_is_every_unlisted_image_of_the_image_folders(tmp_path):
    touch(
        tmp_path,
        *(f"images/{name}.nii.gz" for name in ("a", "v", "t", "u 2", "ü1")),
        *(f"labels/{name}.nii.gz" for name in ("a", "v", "u 2", "ü1", "orphan")),
        "images/.hidden.nii.gz",
        "images/._u 2.nii.gz",
        "images/preview.png",
        "images/u3.nii",
        "images/notes.txt",
        "elsewhere/x.nii.gz",
    )
    (tmp_path / "images/folder.nii.gz").mkdir()
    path = write(tmp_path, {"training": [pair("a")], "validation": [pair("v")], "testing": ["images/t.nii.gz"]})
    loaded = load_datalist(path)
    assert pool_of(loaded) == ["u 2.nii.gz", "u3.nii", "ü1.nii.gz"]
    assert all(set(entry) == {"image"} and os.path.isabs(entry["image"]) for entry in loaded.unlabeled)


def test_explicit_empty_pool_stays_empty(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/u.nii.gz")
    assert load_datalist(write(tmp_path, {"training": [pair("a")], "unlabeled": []})).unlabeled == []
    assert pool_of(load_datalist(write(tmp_path, {"training": [pair("a")]}))) == ["u.nii.gz"]


def test_pool_stays_below_dataset_dir(tmp_path):
    touch(tmp_path, "data/images/a.nii.gz", "data/images/u.nii.gz", "outside/v.nii.gz", "outside/w.nii.gz")
    validation = [{"image": "../outside/v.nii.gz", "label": "labels/v.nii.gz"}]
    path = write(tmp_path / "data", {"training": [pair("a")], "validation": validation})
    assert pool_of(load_datalist(path)) == ["u.nii.gz"]


@pytest.mark.parametrize(
    ("image", "label", "others", "pool"),
    [
        ("p1.nii.gz", "p1_seg.nii.gz", ["p2.nii.gz", "p2_seg.nii.gz"], ["p2.nii.gz"]),
        ("p1_img.nii.gz", "p1_seg.nii.gz", ["p2_img.nii.gz", "p2_seg.nii.gz"], ["p2_img.nii.gz"]),
        ("img_1.nii.gz", "label_1.nii.gz", ["img_2.nii.gz", "label_2.nii.gz"], ["img_2.nii.gz"]),
        ("img1.nii.gz", "label1.nii.gz", ["img2.nii.gz", "label2.nii.gz"], ["img2.nii.gz"]),
        ("vol_1.nii.gz", "label_1.nii.gz", ["vol_2.nii.gz", "label_2.nii.gz"], ["vol_2.nii.gz"]),
        ("volume-0.nii", "segmentation-0.nii", ["volume-1.nii", "segmentation-1.nii"], ["volume-1.nii"]),
        ("c_0000.nii.gz", "c.nii.gz", ["d_0000.nii.gz", "d.nii.gz"], ["d_0000.nii.gz"]),
        ("s_img_01.nii.gz", "s_seg_01.nii.gz", ["s_img_02.nii.gz", "s_seg_02.nii.gz"], ["s_img_02.nii.gz"]),
        ("mri_p1.nii.gz", "mask_p1.nii.gz", ["mri_p2.nii.gz", "mask_p2.nii.gz"], ["mri_p2.nii.gz"]),
        ("p 1.nii.gz", "p 1 gt.nii.gz", ["p 2.nii.gz", "p 2 gt.nii.gz"], ["p 2.nii.gz"]),
    ],
)
def test_labels_beside_images_are_never_taken(tmp_path, image, label, others, pool):
    touch(tmp_path, image, label, *others)
    loaded = load_datalist(write(tmp_path, {"training": [{"image": image, "label": label}]}))
    assert pool_of(loaded) == pool


def test_pool_groups_channels(tmp_path):
    ends = ("_t1.nii.gz", "_flair.nii.gz")
    touch(tmp_path, *(f"i/{case}{end}" for case in ("a", "b", "c") for end in ends), "i/d_t1.nii.gz", "l/a.nii.gz")
    entry = {"image": [f"i/a{end}" for end in ends], "label": "l/a.nii.gz"}
    with pytest.warns(UserWarning, match=r"1 files without \(d_t1.nii.gz\)"):
        loaded = load_datalist(write(tmp_path, {"training": [entry]}))
    assert [entry["image"] for entry in loaded.unlabeled] == [
        [str(tmp_path / f"i/{case}{end}") for end in ends] for case in ("b", "c")
    ]


def test_linked_images_are_not_taken_twice(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "images/u.nii.gz")
    (tmp_path / "images/alias.nii.gz").symlink_to(tmp_path / "images/a.nii.gz")
    assert pool_of(load_datalist(write(tmp_path, {"training": [pair("a")]}))) == ["u.nii.gz"]


def test_labels_of_unlabeled_entries_are_dropped(tmp_path):
    path = write(tmp_path, {"training": [pair("a")], "unlabeled": [pair("u"), {"image": "images/w.nii.gz"}]})
    with pytest.warns(UserWarning, match=r"1 entries with a label \(u\).*never opened") as caught:
        loaded = load_datalist(path)
    assert len(caught) == 1
    assert all(set(entry) == {"image"} for entry in loaded.unlabeled)


# ---------------------------------------------------------------------------------------------------- strict or not


def test_not_strict_builds_without_data(tmp_path):
    for datalist, folder in [
        (None, None),
        ("datalist.json", None),
        ("datalist.json", tmp_path / "missing"),
        (None, tmp_path / "missing"),
        ("missing.json", tmp_path),
        (None, tmp_path),
    ]:
        loaded = load_datalist(datalist, folder, strict=False)
        assert set(loaded.counts().values()) == {0}, (datalist, folder)
        with pytest.raises(DataError):
            load_datalist(datalist, folder)
    # what is there must be right
    with pytest.raises(DataError, match="must be a JSON file"):
        load_datalist(write(tmp_path, "{"), strict=False)


def test_missing_places_are_named(tmp_path):
    with pytest.raises(DataError, match=r"dataset_dir must be an existing folder.*nowhere does not exist"):
        load_datalist(None, tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"'split.json': looked for .*/data/split.json"):
        load_datalist("split.json", tmp_path / "data")


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "must be a JSON file, got Expecting value in line 1, column 1"),
        ("[" * 100000, "must be a JSON file"),
        ("[]", "must hold an object with 'training', got a list"),
        ({"labels": {}}, "must hold a list 'training', got the keys labels"),
        ('{"training": [], "training": []}', "a key may appear once, got training twice"),
        ({"training": {"a": 1}}, "'training' must be a list, got an object"),
        ({"training": [], "unlabeled": None}, "'unlabeled' must be a list, got null"),
        (
            {"training": ["a.nii"]},
            r'training\[0\] must be an object {"image": ..., "label": ...}, got a string: "a.nii"',
        ),
        ({"training": [pair("a"), {"image": "b.nii"}]}, r"training\[1\] must hold 'label'.*b.nii.*'unlabeled'"),
        ({"training": [], "validation": ["a.nii"]}, r"validation\[0\] must be an object"),
        ({"training": [{"label": "b.nii"}]}, r"training\[0\] must hold 'image'"),
        (
            {"training": [{"image": "a", "lable": "b"}]},
            "only, got lable: did you mean 'label'",
        ),
        ({"training": [{**pair("a"), "weight": 1}]}, r"training\[0\] may hold .* got weight: remove it"),
        ({"training": [{"image": 3, "label": "b"}]}, "'image' must be a path or a list of paths, got 3"),
        ({"training": [{"image": [], "label": "b"}]}, "got an empty list"),
        ({"training": [{"image": ["a", None], "label": "b"}]}, "'image' must be a path.*got null"),
        ({"training": [{"image": "a", "label": ["b", "c"]}]}, "'label' must be one path, got"),
        ({"training": [{"image": "a", "label": ""}]}, "'label' must be one path"),
        ({"training": [], "unlabelled": ["a.nii"]}, "unknown list 'unlabelled': did you mean 'unlabeled'"),
        ({"training": [], "labeled": []}, "unknown list 'labeled': did you mean 'training'"),
        ({"training": [], "val": []}, "unknown list 'val': did you mean 'validation'"),
        ({"training": [], "more": [{"image": "a"}]}, "unknown list 'more': the lists are"),
        ({"training": [], "test": ["a"], "testing": ["b"]}, "both 'test' and 'testing'"),
        ({"training": [], "labels": "organ"}, "'labels' must map values to names.*got a string"),
        ({"training": [], "labels": {"1": ["x"]}}, "'labels' must map values to names"),
        ({"training": [{"image": "a", "label": "a"}]}, r"a is the image of training\[0\] and a label"),
    ],
)
def test_mistakes_in_the_json_are_named(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        load_datalist(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_encodings(tmp_path):
    path = tmp_path / "datalist.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"training": [], "unlabeled": []}')  # Windows editors write this mark
    assert load_datalist(path).training == []
    path.write_bytes('{"training": [], "description": "ü"}'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        load_datalist(path)


@pytest.mark.parametrize("first", ["training", "unlabeled", "validation", "testing"])
@pytest.mark.parametrize("second", ["training", "unlabeled", "validation", "testing"])
def test_a_case_in_two_places_is_refused(tmp_path, first, second):
    def entry(section: str, image: str, label: str) -> dict[str, str]:
        return {"image": image} if section == "unlabeled" else {"image": image, "label": label}

    content: dict[str, list[dict[str, str]]] = {"training": [], "unlabeled": []}
    content.setdefault(first, []).append(entry(first, "a.nii", "l1.nii"))
    content.setdefault(second, []).append(entry(second, "./x/../a.nii", "l2.nii"))
    other = "1" if first == second else "0"
    order = ["training", "unlabeled", "validation", "testing"]
    places = sorted([f"{first}[0]", f"{second}[{other}]"], key=lambda place: order.index(place.split("[")[0]))
    with pytest.raises(DataError, match=re.escape(f"a.nii in {' and '.join(places)}")):
        load_datalist(write(tmp_path, content))


def test_a_label_in_two_lists_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the label a.nii.gz is in training and validation"):
        load_datalist(write(tmp_path, {"training": [pair("a")], "validation": [pair("b", "a")]}))
    # two scans of one list may share a label, such as two contrasts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_datalist(write(tmp_path, {"training": [pair("a"), pair("b", "a")]}))


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/d/a.nii.gz", "a"),
        ("/d/a.b.c.NII.GZ", "a.b.c"),
        ("/d/a.nii", "a"),
        ("/d/series_1", "series_1"),
        ("/d/1.2.840.113", "1.2.840.113"),
        (["/d/a_0000.nii.gz", "/d/a_0001.nii.gz"], "a"),
        (["/d/p 1_t1.nii", "/d/p 1_t2.nii"], "p 1"),
        (["/p7/t1.nii", "/p7/flair.nii"], "p7"),
    ],
)
def test_case_name(image, name):
    assert case_name({"image": image}) == name


def test_case_names_are_unique():
    files = ["/d/p1/s1/t1.nii", "/d/p1/s2/t1.nii", "/d/p2/s1/t1.nii", "/d/p2/x.nii", "/d/p2/x.nii"]
    names = case_names([{"image": file} for file in files])
    assert len(set(names)) == len(files)
    assert names[0] == "p1_s1_t1"
    assert names[1] == "s2_t1"
    assert case_names([{"image": "/a/b_c.nii"}, {"image": "/d/e.nii"}]) == ["b_c", "e"]
    assert case_names([]) == []


def test_section_refuses_other_names():
    with pytest.raises(ValueError, match=r"section must be one of .*, got 'train'"):
        Datalist().section("train")


def test_require_names_what_is_there(tmp_path):
    path = write(tmp_path, {"training": [pair("a")], "unlabeled": [], "testing": ["images/t.nii.gz"]})
    loaded = load_datalist(path)
    assert loaded.require("training") == loaded.training
    with pytest.raises(DataError, match=r"'validation' has no case; lists with cases: training \(1\), testing \(1\)"):
        loaded.require("validation")
    with pytest.raises(DataError, match=r"'testing' has 1 cases without label \(t\): add the labels"):
        loaded.require("testing")

"""Which label maps of a folder belong to which image of the pool."""

import pytest

from monai_ssl.data import pseudo_labeled
from monai_ssl.data.pseudo_labels import rejected
from monai_ssl.errors import DataError

POOL = [
    {"image": "/scans/p1/a.nii.gz"},
    {"image": "/scans/b.nii.gz"},
    {"image": ["/scans/c_0000.nii", "/scans/c_0001.nii"]},
]


def folder(path, *names, table=None):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    if table is not None:
        (path / "reliability.csv").write_text(table, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("files", "table", "expected"),
    [
        (("a_seg.nii.gz", "b_seg.nii.gz", "c_seg.nii.gz"), None, ["a_seg.nii.gz", "b_seg.nii.gz", "c_seg.nii.gz"]),
        (("a.nii.gz", "b.nrrd", "other.nii.gz"), None, ["a.nii.gz", "b.nrrd", None]),
        (("deep/a_seg.nii.gz", "c.mha"), None, ["deep/a_seg.nii.gz", None, "c.mha"]),
        (("p1/a.nii.gz", "p2/a.nii.gz"), None, ["p1/a.nii.gz", None, None]),  # told apart by the image's folder
        (("a.nii.gz", "b.nii.gz"), "case,kept\na,0\nb,1\n", [None, "b.nii.gz", None]),
        (("a.nii.gz", "b.nii.gz"), "case,kept\n'a,0\n", [None, "b.nii.gz", None]),  # as names like formulas are written
        (("a.nii.gz", "b.nii.gz"), "\ufeffcase,reliability,kept\r\na,0.2,0\r\n", [None, "b.nii.gz", None]),
    ],
)
def test_by_name(tmp_path, files, table, expected):
    place = folder(tmp_path, *files, table=table)
    wanted = [{"image": entry["image"], "label": str(place / name)}
              for entry, name in zip(POOL, expected, strict=True) if name]  # fmt: skip
    assert pseudo_labeled(POOL, place) == wanted


def test_a_row_for_a_scan_that_is_not_in_the_pool_is_told(tmp_path, caplog):
    place = folder(tmp_path, "a.nii.gz", "b.nii.gz", table="case,kept\nnobody,0\na.2,0\nb,1\n")
    assert len(pseudo_labeled(POOL, place)) == 2
    assert "leaves out 2 cases that the pool does not have: a.2, nobody" in caplog.text


def test_a_file_is_the_label_map_of_one_case(tmp_path):
    """Without what nnU-Net calls the channel, many cases would have the same name."""
    pool = [{"image": f"/scans/scan_{number:04d}.nii.gz"} for number in range(3)]
    place = folder(tmp_path, "scan.nii.gz", "scan_0001.nii.gz")
    assert [entry["image"] for entry in pseudo_labeled(pool, place)] == ["/scans/scan_0001.nii.gz"]
    alone = [{"image": "/scans/scan_0000.nii.gz"}, {"image": "/scans/other_0000.nii.gz"}]
    assert pseudo_labeled(alone, place) == [{"image": alone[0]["image"], "label": str(place / "scan.nii.gz")}]


def test_without_a_folder_nothing_is_added():
    assert pseudo_labeled(POOL, None) == POOL


@pytest.mark.parametrize(
    ("files", "table", "message"),
    [
        ((), None, "holds no label map of the 3 unlabeled images; files are named like the images, a_seg.nii.gz"),
        (("x/a_seg.nii.gz", "y/a_seg.nii.gz"), None, "case a must have one label map, got x/a_seg.nii.gz"),
        (("a.nii.gz",), "case,kept\na,0\n", "holds no label map of the 3 unlabeled images, beside 1 rejected one"),
        (("a.nii.gz",), "case,kept\na,yes\n", "kept must be 0 or 1, got 'yes'"),
        (("a.nii.gz",), "name,kept\na,1\n", "must have the columns case and kept"),
        (
            ("a.nii.gz", "b.nii.gz"),
            "case,kept\na.nii.gz,0\n",
            "case must be the name of a scan .*got a.nii.gz; write a",
        ),
        (("a.nii.gz", "b.nii.gz"), "case,kept\na_seg,0\n", "case must be the name of a scan .*got a_seg; write a"),
    ],
)
def test_refused(tmp_path, files, table, message):
    with pytest.raises(DataError, match=message):
        pseudo_labeled(POOL, folder(tmp_path, *files, table=table))


def test_no_folder(tmp_path):
    for place in (tmp_path / "missing", folder(tmp_path, "file") / "file"):
        with pytest.raises(DataError, match=r"^pseudo_labels: must be a folder of label maps, got .*self-train"):
            pseudo_labeled(POOL, place)


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "reliability.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a table in UTF-8"):
        rejected(tmp_path)

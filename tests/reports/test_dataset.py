"""The page about a data set: what it says must be what is in the files."""

import base64
import io
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

import monai_ssl
from monai_ssl import cli
from monai_ssl.data import DataError, Datalist, load_datalist
from monai_ssl.reports.dataset import case_statistics, describe


class Text(HTMLParser):
    """Visible text, tags that are open, and resources that are named."""

    def __init__(self):
        super().__init__()
        self.words, self.open, self.resources = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.resources += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def read(page):
    parser = Text()
    parser.feed(page.read_text(encoding="utf-8"))
    assert not parser.open
    assert all(resource.startswith("data:image/png;base64,") for resource in parser.resources)
    for resource in parser.resources:
        assert imread(io.BytesIO(base64.b64decode(resource.partition(",")[2]))).std() > 0
    return re.sub(r"\s+", " ", " ".join(parser.words))


def save(path, array, affine):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def test_page(tiny_phantom, tmp_path):
    page = describe(load_datalist("datalist.json", tiny_phantom), tmp_path / "page.html", title="<b>Phantom & Co</b>")
    text = read(page)
    assert "<b>Phantom & Co</b>" in text  # as text, not as a tag
    assert "2 labeled training, 3 unlabeled, 1 validation, 2 test" in text
    assert "All 8 cases could be read." in text
    # a picture per list, sizes, volumes
    assert page.read_text().count("<img") == 6


def test_numbers(tmp_path):
    affine = np.diag([-0.5, -0.5, 4.0, 1.0])
    image = np.random.RandomState(0).rand(20, 16, 10).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:6, 3:8, 4:6] = 1
    entry = {"image": save(tmp_path / "a.nii.gz", image, affine), "label": save(tmp_path / "a_l.nii.gz", label, affine)}
    found = case_statistics("training", "a", entry, picture=True)
    assert (found.shape, found.spacing, found.orientation) == ((20, 16, 10), (0.5, 0.5, 4.0), "LPS")
    assert found.voxels == {0: image.size - 40, 1: 40}
    assert found.empty_slices == pytest.approx(0.8)
    np.testing.assert_allclose(found.values, np.percentile(image, (0.5, 25, 50, 75, 99.5)), rtol=1e-5)
    gray, mask, aspect, directions = found.picture
    # across the thick slices, upright: the file is flipped in x and y
    np.testing.assert_array_equal(mask, label[::-1, ::-1, 5])
    np.testing.assert_array_equal(gray, image[::-1, ::-1, 5])
    assert aspect == (0.5, 0.5)
    assert directions == ("LR", "PA")
    page = describe(Datalist(training=[entry], labels={0: "background", 1: "organ", 2: "tumor"}), tmp_path / "p.html")
    text = read(page)
    assert "0.04" in text  # 40 voxels of 1 mm3, in ml
    assert "Class 2 (tumor) occurs in no label." in text
    assert "80 % of the slices" in text


def test_findings_name_what_is_wrong(tmp_path):
    entries = []
    for i, (zoom, code, gray) in enumerate([(1.0, 1, 1.0), (1.0, -1, 1.0), (2.0, 1, 900.0)]):
        image = np.random.RandomState(i).rand(20, 16, 10).astype(np.float32) * gray
        entries.append({"image": save(tmp_path / f"{i}.nii.gz", image, np.diag([code * zoom, zoom, zoom, 1.0]))})
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes((tmp_path / "0.nii.gz").read_bytes()[:900])
    text = read(describe(Datalist(unlabeled=[*entries, {"image": str(broken)}]), tmp_path / "p.html"))
    assert "3 of 4 cases could be read." in text
    assert "broken (unlabeled): file must be complete" in text
    assert "factor of 2.00" in text
    assert "stored in 2 orientations (2 RAS, 1 LAS)" in text
    assert "not comparable between cases" in text


def test_no_label_of_an_unlabeled_case_is_opened(tmp_path):
    image = save(tmp_path / "a.nii.gz", np.arange(60.0).reshape(5, 4, 3), np.eye(4))
    found = case_statistics("unlabeled", "a", {"image": image, "label": str(tmp_path / "is not there.nii.gz")})
    assert found.error == ""
    assert found.voxels is None


def test_the_counts_of_a_split_are_said_once(tiny_phantom, tmp_path):
    monai_ssl.split(tiny_phantom, output=tmp_path / "own.json", n_labeled=2, n_validation=1, n_testing=1)
    text = read(describe(load_datalist(tmp_path / "own.json", tiny_phantom), tmp_path / "page.html"))
    assert "2 labeled training" in text
    assert "2 training" not in text
    assert "Seed 0" in text, "what else the split says of itself stays"


def test_command(tiny_phantom, tmp_path, capsys):
    cli.main(["describe", str(tiny_phantom / "datalist.json"), "--output", str(tmp_path / "a.html")])
    assert capsys.readouterr().out == f"{tmp_path / 'a.html'}\n"
    with pytest.raises(DataError, match=r"output: must be an \.html file, got"):
        describe(load_datalist(None, tiny_phantom), tmp_path / "a.pdf")
    with pytest.raises(DataError, match="no case to describe"):
        describe(Datalist(), tmp_path / "a.html")

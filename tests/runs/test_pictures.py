"""A set of pictures from training to evaluation; and what `train` says of test cases before the work."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from commands import fails, run
from PIL import Image

import monai_ssl
from monai_ssl.errors import DataError
from monai_ssl.metrics import read_results
from monai_ssl.reports.run import overlays_of

TINY = {"max_iterations": 2, "epoch_length": 2, "val_interval": 2, "num_workers": 0, "amp": "off", "device": "cpu",
        "network_def#base_channels": 2}  # fmt: skip
ROWS, COLUMNS = 24, 34


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows by columns: a scan and its label, which is neither symmetric nor square."""
    label = np.zeros((ROWS, COLUMNS), np.uint8)
    label[3 + seed : 9 + seed, 18:30] = 1
    return (np.random.RandomState(seed).randint(0, 60, label.shape) + 150 * label).astype(np.uint8), label


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    lists: dict[str, list] = {"training": [], "unlabeled": [], "validation": [], "testing": []}
    for index, section in enumerate(["training", "training", "unlabeled", "unlabeled", "validation", "testing"]):
        image, label = picture(index)
        Image.fromarray(image).save(folder / f"p{index}.png")
        Image.fromarray(label).save(folder / f"p{index}_label.png")
        entry = {"image": f"p{index}.png"}
        lists[section].append(entry if section == "unlabeled" else {**entry, "label": f"p{index}_label.png"})
    (folder / "datalist.json").write_text(json.dumps(lists))
    preset = {"spatial_dims": 2, "labels": {0: "background", 1: "organ"}, "patch_size": [16, 16], "orientation": None,
              "training": {"max_iterations": 2, "labeled_batch_size": 2, "unlabeled_batch_size": 2}}  # fmt: skip
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    target = tmp_path_factory.mktemp("run") / "run"
    return monai_ssl.train("supervised", pictures, dataset=pictures / "preset.yaml", output=target, **TINY)


def test_pictures_get_pictures(trained, pictures, tmp_path, capsys):
    kinds = {"a.png": ".png", "b.JPG": ".png", "c.tif": ".tif", "d.bmp": ".bmp", "E.TIFF": ".tiff"}
    (tmp_path / "in" / "below").mkdir(parents=True)
    for index, name in enumerate(kinds):
        Image.fromarray(picture(index)[0]).save(tmp_path / "in" / "below" / name)
    (tmp_path / "in" / "broken.png").write_bytes((tmp_path / "in" / "below" / "a.png").read_bytes()[:200])
    out = tmp_path / "out"
    words = ["predict", trained.folder, tmp_path / "in", "--output", out, "--uncertainty"]
    error = fails(capsys, *words)
    assert error.startswith(f"1 of 6 images could not be segmented: {tmp_path / 'in' / 'broken.png'}: ")
    names = {file.relative_to(out).as_posix() for file in out.rglob("*_seg.*")}
    assert names == {f"below/{Path(name).stem}_seg{suffix}" for name, suffix in kinds.items()}
    for name in names:
        with Image.open(out / name) as drawn:
            assert drawn.size == (COLUMNS, ROWS)
            assert np.asarray(drawn).dtype == np.uint8
    assert nib.load(out / "below" / "a_uncertainty.nii.gz").shape == (COLUMNS, ROWS)
    before = {name: (out / name).stat().st_mtime_ns for name in names}
    fails(capsys, *words)  # what is there is left
    assert before == {name: (out / name).stat().st_mtime_ns for name in names}


def test_scores_of_the_files_are_those_of_the_run(trained, pictures, tmp_path):
    scored = monai_ssl.evaluate(trained)
    assert sorted(file.name for file in (scored.folder / "predictions").rglob("*.*")) == ["p5_seg.png"]
    assert list(overlays_of(scored.folder, scored.results.meta)) == ["p5"]  # the page shows it
    again = monai_ssl.evaluate(predictions=scored.folder / "predictions", dataset_dir=pictures,
                               dataset=pictures / "preset.yaml", output=tmp_path / "again")  # fmt: skip
    assert str(read_results(again.folder).rows) == str(read_results(scored.folder).rows)  # NaN is no volume in 2D
    # the label itself is a perfect prediction, whatever it is called
    for index, name in enumerate(["p5.png", "p5_seg.tif", "p5_pred.bmp", "deeper/p5.NII.GZ"]):
        place = tmp_path / str(index) / name
        place.parent.mkdir(parents=True)
        if name.endswith(".GZ"):
            nib.save(nib.Nifti1Image(picture(5)[1].T, np.eye(4)), place.with_name("p5.nii.gz"))
            place.with_name("p5.nii.gz").rename(place)
        else:
            Image.fromarray(picture(5)[1]).save(place)
        perfect = monai_ssl.evaluate(predictions=tmp_path / str(index), dataset_dir=pictures,
                                     dataset=pictures / "preset.yaml")  # fmt: skip
        assert perfect.dice == {"p5": 1.0}
    (tmp_path / "0" / "more").mkdir()
    for other in ("p5.bmp", "more/p5.png"):
        Image.fromarray(picture(5)[1]).save(tmp_path / "0" / other)
    with pytest.raises(DataError, match="may both be the prediction of case p5; remove one"):
        monai_ssl.evaluate(predictions=tmp_path / "0", dataset_dir=pictures, dataset=pictures / "preset.yaml")


# ------------------------------------------------------------------------------------------- a test case that is wrong


def spoil(kind: str, label: Path) -> None:
    image = nib.load(label)
    array, affine = np.asarray(image.dataobj), image.affine
    if kind == "class":
        array = array.copy()
        array[0, 0, 0] = 7
    elif kind == "axes":
        array = np.ascontiguousarray(array.transpose(2, 1, 0))
    elif kind == "header":
        affine = np.eye(4)
    elif kind == "moved":
        affine = affine + np.diag([0, 0, 0, 0]) + 30 * np.eye(4, k=3)
    elif kind == "half":
        array = array * 0.5
    elif kind == "damaged":
        label.write_bytes(label.read_bytes()[:100])
        return
    nib.save(nib.Nifti1Image(array, affine), label)


RULES = {"class": "label values must be among the preset's classes", "axes": "label must have the shape of its image",
         "header": "label must be on its image's grid", "moved": "label must be on its image's grid",
         "half": "label must hold integers", "damaged": "file must be complete"}  # fmt: skip


@pytest.fixture
def volumes(tmp_path) -> Path:
    from monai_ssl.curation.phantom.dataset import write_phantom

    write_phantom(tmp_path / "data", n_labeled=2, n_unlabeled=1, n_validation=1, n_testing=1, spacing=5.0,
                  progress=False)  # fmt: skip
    return tmp_path / "data"


@pytest.mark.parametrize("kind", RULES)
def test_a_wrong_test_label_stops_a_training_before_the_work(volumes, tmp_path, kind, caplog):
    (label,) = (volumes / "labels").glob("testing*")
    spoil(kind, label)
    with pytest.raises(DataError, match="data: 1 error, nothing was trained"):
        monai_ssl.train("supervised", volumes, dataset="phantom", output=tmp_path / "run", **TINY)
    assert f"error: testing: {label}: {RULES[kind]}" in caplog.text
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("kind", RULES)
def test_no_evaluation_scores_a_label_that_is_wrong(volumes, tmp_path, kind):
    """Not even of a run that was trained without the check."""
    run_ = monai_ssl.train("supervised", volumes, dataset="phantom", output=tmp_path / "run", check=False, **TINY)
    (label,) = (volumes / "labels").glob("testing*")
    sound = label.read_bytes()
    spoil(kind, label)
    with pytest.raises(DataError, match=rf"{label.name}: {RULES[kind]}"):
        monai_ssl.evaluate(run_)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / label.name).write_bytes(sound)
    if kind not in ("class", "header"):
        with pytest.raises(DataError, match=label.name):
            monai_ssl.evaluate(predictions=tmp_path / "found", dataset_dir=volumes, dataset="phantom")


def test_a_label_without_a_place_is_said(volumes, tmp_path, capsys):
    (label,) = (volumes / "labels").glob("testing*")
    np.save(label.with_name("lost.npy"), np.asarray(nib.load(label).dataobj))
    lists = (volumes / "datalist.json").read_text().replace(f"labels/{label.name}", "labels/lost.npy")
    (volumes / "datalist.json").write_text(lists)
    assert run("check", volumes, "--dataset", "phantom") == 0
    assert "lost.npy: label states no place in space, and its image does: its axes are taken" in capsys.readouterr().out

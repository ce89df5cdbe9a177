"""Which files of a folder are images to segment."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_ssl.curation.pairing import image_names
from monai_ssl.data import images_to_segment
from monai_ssl.data.cases import PREDICTION_FILE, PSEUDO_LABEL_FILE, TRAINING_FILES
from monai_ssl.engines import segment
from monai_ssl.runs import folder, pseudo_labels


def names(root: Path) -> list[str]:
    return [Path(entry["image"]).relative_to(root).as_posix() for entry in images_to_segment(root)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.nii.gz", "deeper/b.nii.gz", "run/previews/iteration-000004.png", "seg/a_seg.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("mark", TRAINING_FILES)
def test_a_run_among_the_images_is_no_image(images, mark):
    assert "run/previews/iteration-000004.png" in names(images)
    (images / "run" / mark).touch()
    assert names(images) == ["a.nii.gz", "deeper/b.nii.gz", "seg/a_seg.nii.gz"]
    assert image_names(images) == ["a.nii.gz", "deeper/b.nii.gz", "seg/a_seg.nii.gz"]


def test_segmentations_among_the_images_are_no_images(images):
    (images / "seg" / PREDICTION_FILE).touch()
    assert "seg/a_seg.nii.gz" not in names(images)
    assert names(images / "seg") == ["a_seg.nii.gz"]  # unless they are asked for
    assert "seg/a_seg.nii.gz" in image_names(images)  # they may be somebody's labels


def test_pseudo_labels_among_the_images_are_neither_images_nor_labels(images):
    (images / "seg" / PSEUDO_LABEL_FILE).touch()
    assert "seg/a_seg.nii.gz" not in [*names(images), *image_names(images)]
    assert names(images / "seg") == image_names(images / "seg") == ["a_seg.nii.gz"]  # unless they are asked for


def test_names_are_those_that_are_written():
    assert (folder.RECORD, folder.CHECKPOINT) == TRAINING_FILES
    assert segment.RECORD == PREDICTION_FILE
    assert pseudo_labels.RECORD == PSEUDO_LABEL_FILE

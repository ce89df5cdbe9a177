"""The page about pseudo-labels."""

from __future__ import annotations

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest

from monai_ssl.data import load_preset
from monai_ssl.reports import self_training
from monai_ssl.reports.self_training import Labeling, _chart, report_self_training

LABELS = {0: "background", 1: "organ"}


def page(tmp_path, reliabilities, n_dropped=0):
    """The page's text for a pool with these reliabilities, the least reliable scans dropped."""
    scan = np.random.default_rng(0).normal(size=(16, 16, 8)).astype(np.float32)
    mask = np.zeros(scan.shape, np.uint8)
    mask[4:10, 4:10, 2:6] = 1
    rows, entries = [], {}
    for number, value in enumerate(reliabilities):
        case = f"case{number:02d}"
        entries[case] = {"image": str(tmp_path / f"{case}.nii.gz"), "label": str(tmp_path / f"{case}_seg.nii.gz")}
        nib.save(nib.Nifti1Image(scan, np.eye(4)), entries[case]["image"])
        nib.save(nib.Nifti1Image(mask, np.eye(4)), entries[case]["label"])
        rows.append({"case": case, "reliability": str(value), "kept": "01"[number >= n_dropped], "agreement": "0.9",
                     "confidence": "0.8", "unsure": "0", "voxels_1": str(int(mask.sum()))})  # fmt: skip
    labeling = Labeling("round 1", rows, entries, {1: (0.1, 0.1)})
    return report_self_training(tmp_path / "report.html", "scans", LABELS, [labeling]).read_text(encoding="utf-8")


def test_a_small_pool_is_shown_once(tmp_path):
    text = page(tmp_path, [0.6, 0.7, 0.8, 0.9], n_dropped=1)
    assert "<figcaption>Dropped: they teach nothing</figcaption>" in text
    assert "<figcaption>Least reliable of the kept</figcaption>" in text
    assert "Most reliable" not in text, "the three kept scans are all in the group above"


def test_of_a_larger_pool_both_ends_are_shown(tmp_path):
    text = page(tmp_path, np.linspace(0.5, 0.9, 14))
    assert "<figcaption>Least reliable of the kept: 12 of 14</figcaption>" in text
    assert "<figcaption>Most reliable: 2 of 14</figcaption>" in text


def test_the_median_of_an_even_number_lies_between_the_two_in_the_middle(tmp_path):
    assert "Reliability: median 0.70, lowest 0.50, highest 0.90." in page(tmp_path, [0.5, 0.6, 0.8, 0.9])


def test_open_voxels_are_no_class(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(self_training, "picture_figure", lambda cases, labels: shown.extend(cases) or plt.figure())
    label = np.zeros((16, 16, 8), np.uint8)
    label[4:10, 4:10, 2:6], label[12:] = 1, 255
    nib.save(nib.Nifti1Image(np.random.rand(16, 16, 8).astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "a_seg.nii.gz")
    row = {"case": "a", "reliability": "0.8", "kept": "1", "agreement": "", "confidence": "0.8", "unsure": "0.25",
           "voxels_1": "144"}  # fmt: skip
    entry = {"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "a_seg.nii.gz")}
    labeling = Labeling("round 1", [row], {"a": entry}, {1: (0.1, 0.1)}, [], load_preset("phantom"))
    report_self_training(tmp_path / "report.html", "scans", LABELS, [labeling])
    assert [case.ignored for case in shown] == [int((label == 255).sum())]  # hatched, and none of the outlines
    assert 255 not in shown[0].voxels


@pytest.mark.parametrize("number", [1, 2, 5, 60])
def test_scans_are_counted_in_whole_numbers(number):
    figure = _chart([{"reliability": "0.8", "kept": "1"}] * number)
    ticks = figure.axes[0].get_xticks()
    assert all(float(tick).is_integer() for tick in ticks), ticks

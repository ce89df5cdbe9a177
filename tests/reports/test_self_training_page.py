"""The page of a self-training: what its pictures show."""

import nibabel as nib
import numpy as np
import pytest

from monai_ssl.reports.self_training import ROW, ROWS, Labeling, _section


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    label = np.zeros((12, 12, 4), np.uint8)
    label[4:8, 4:8] = 1
    for name, values in (("image", 100 * label), ("label", label)):
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{name}.nii.gz")
    return {name: str(folder / f"{name}.nii.gz") for name in ("image", "label")}


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (5, ["dropped: they teach nothing", "least reliable of the kept"]),
        (ROW * ROWS + 1, ["dropped: they teach nothing", "least reliable of the kept"]),
        (
            ROW * ROWS + 4,
            [
                "dropped: they teach nothing",
                f"least reliable of the kept: {ROW * ROWS} of {ROW * ROWS + 3}",
                f"most reliable: 3 of {ROW * ROWS + 3}",
            ],
        ),
    ],
)
def test_no_scan_is_pictured_twice(entry, n, shown):
    rows = [
        {"case": f"c{k:02d}", "reliability": f"{0.5 + k / 100}", "kept": str(int(k > 0)), "agreement": "",
         "unsure": "0", "confidence": "0.5", "voxels_0": "512", "voxels_1": "64"} for k in range(n)
    ]  # fmt: skip
    labeling = Labeling("pseudo_labels-1", rows, {row["case"]: entry for row in rows}, {1: (0.1, 0.1)})
    pictures = _section(labeling, {0: "background", 1: "organ"})["pictures"]
    assert [picture.caption for picture in pictures] == shown

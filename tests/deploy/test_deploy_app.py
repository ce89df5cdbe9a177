"""The example app of MONAI Deploy, run for real; needs its own environment (`make test-deploy`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinic import write_series
from commands import run

pytest.importorskip("monai.deploy.core")

from monai_ssl.deploy import dicom

pytestmark = pytest.mark.deploy
APP = Path(__file__).parents[2] / "examples" / "deploy" / "app.py"


def app(model: Path, source: Path, output: Path) -> np.ndarray:
    """The mask that the app writes."""
    # Holoscan asks for a larger stack than most shells give
    words = ["sh", "-c", 'ulimit -s 32768; exec "$@"', "sh", sys.executable, str(APP)]
    words += ["-i", str(source), "-o", str(output), "-m", str(model)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (file,) = output.glob("*.dcm")
    return dicom.read_segmentation(file, dicom.read_series(source))


def test_same_mask_as_predict(packaged, scans, tmp_path):
    """Of a series whose axes run against the training's and that lacks what the SDK's operators need."""
    image = nib.load(scans / "images" / "testing_0000.nii.gz")
    affine = np.diag([-2.5, -2.0, 3.0, 1.0])
    absent = {"SeriesNumber": "", "PatientBirthDate": None, "PatientSex": None}
    write_series(tmp_path / "series", np.asarray(image.dataobj)[::-1, ::-1], affine, **absent)
    words = ["--bundle", packaged, "--dicom", tmp_path / "series", "--output", tmp_path / "predict"]
    assert run("predict", *words, "--device", "cpu") == 0
    ours = np.asarray(nib.load(tmp_path / "predict" / dicom.NIFTI).dataobj)
    assert 0.05 < ours.mean() < 0.95
    np.testing.assert_array_equal(app(packaged / "models" / "model.ts", tmp_path / "series", tmp_path / "out"), ours)


@pytest.mark.data
def test_series_of_the_clinic(real_data, packaged, tmp_path):
    folder = real_data / "dicom" / "Study1_HCropVolume"
    if not folder.is_dir():
        pytest.skip("no dicom/Study1_HCropVolume in MONAI_SSL_DATA")
    words = ["--bundle", packaged, "--dicom", folder, "--output", tmp_path / "predict", "--device", "cpu"]
    assert run("predict", *words) == 0
    ours = np.asarray(nib.load(tmp_path / "predict" / dicom.NIFTI).dataobj)
    np.testing.assert_array_equal(app(packaged / "models" / "model.ts", folder, tmp_path / "out"), ours)

"""A DICOM series in, DICOM SEG out: geometry, codes, references, tolerance and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinic import write_series
from commands import fails, run

from monai_ssl.data import load_preset
from monai_ssl.runs.predict import open_segmenter

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from monai_ssl.deploy import dicom  # noqa: E402


@pytest.fixture(scope="module")
def volume(scans: Path) -> nib.Nifti1Image:
    """Axial slices as scanners store them: columns to the left, rows to the back, in a place of their own."""
    image = nib.load(scans / "images" / "testing_0000.nii.gz")
    values = np.asarray(image.dataobj)[::-1, ::-1]
    affine = np.diag([-2.5, -2.0, 3.0, 1.0])
    affine[:3, 3] = (40.0, 31.5, -12.0)
    return nib.Nifti1Image(np.round(values * 100), affine)


@pytest.fixture(scope="module")
def series(volume: nib.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder, volume.get_fdata(), volume.affine)
    return folder


@pytest.fixture(scope="module")
def segmented(packaged: Path, series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmented")
    words = ["--measurements", "--uncertainty", "--device", "cpu"]
    assert run("predict", "--bundle", packaged, "--dicom", series, "--output", folder, *words) == 0
    return folder


class TestReading:
    @pytest.mark.parametrize("degrees", [0, 25])
    def test_geometry_is_that_of_simpleitk(self, volume, degrees, tmp_path):
        sitk = pytest.importorskip("SimpleITK")
        turn = nib.eulerangles.euler2mat(*np.radians([degrees, degrees / 2, -degrees]))
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn @ volume.affine[:3, :3], volume.affine[:3, 3]
        write_series(tmp_path / "series", volume.get_fdata(), affine)
        found = dicom.read_series(tmp_path / "series")
        np.testing.assert_allclose(found.volume.affine, affine, atol=1e-4)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
        sitk.WriteImage(reader.Execute(), str(tmp_path / "other.nii.gz"))
        other = nib.load(tmp_path / "other.nii.gz")
        np.testing.assert_array_equal(found.volume.numpy(), np.asarray(other.dataobj))
        np.testing.assert_allclose(found.volume.affine, other.affine, atol=1e-3)

    def test_rescaling(self, volume, tmp_path):
        write_series(tmp_path / "a", volume.get_fdata(), volume.affine)
        write_series(tmp_path / "b", volume.get_fdata(), volume.affine, RescaleSlope="2.5", RescaleIntercept="-1024")
        a, b = (dicom.read_series(tmp_path / name).volume for name in "ab")
        np.testing.assert_allclose(b.numpy(), a.numpy() * 2.5 - 1024)

    def test_tolerates_faults_of_the_headers_and_names_no_value(self, volume, packaged, tmp_path, capsys):
        absent = dict.fromkeys(["PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"])
        write_series(tmp_path / "series", volume.get_fdata(), volume.affine, SeriesNumber="", **absent)
        (tmp_path / "series" / "notes.txt").write_text("SECRET^NAME")
        words = ["--bundle", packaged, "--dicom", tmp_path / "series", "--output", tmp_path / "out"]
        assert run("predict", *words) == 0
        shown = capsys.readouterr()
        assert "PatientBirthDate, PatientSex, StudyID, AccessionNumber, SeriesNumber" in shown.err
        assert "1 files that are not DICOM images were ignored" in shown.err
        assert "SECRET" not in shown.err + shown.out
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [dicom.SEG, dicom.NIFTI]


class TestSegmentation:
    def test_equals_the_segmentation_of_the_nifti_file(self, segmented, packaged, series, volume, tmp_path):
        """Nothing depends on the door by which the scan comes in."""
        found = dicom.read_series(series)
        nib.save(nib.Nifti1Image(found.volume.numpy(), volume.affine), tmp_path / "scan.nii.gz")
        assert run("predict", packaged, tmp_path / "scan.nii.gz", "--output", tmp_path / "out") == 0
        ours, theirs = nib.load(segmented / dicom.NIFTI), nib.load(tmp_path / "out" / "scan_seg.nii.gz")
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
        assert 0.05 < np.asarray(ours.dataobj).mean() < 0.95

    def test_flipped_series_gives_the_mask_of_the_scan_it_was_made_of(self, segmented, packaged, scans):
        """The series' axes run against those of the training files; in patient space the masks agree."""
        mask = open_segmenter(packaged, {"device": "cpu"})(scans / "images" / "testing_0000.nii.gz").labels[0].numpy()
        ours = np.asarray(nib.load(segmented / dicom.NIFTI).dataobj)[::-1, ::-1]
        assert (mask != ours).mean() < 0.01  # gray values were rounded to integers
        assert (mask != ours[::-1, ::-1]).mean() > 0.05

    def test_reading_back_gives_the_mask_bit_for_bit(self, segmented, series):
        found = dicom.read_series(series)
        mask = dicom.read_segmentation(segmented / dicom.SEG, found)
        np.testing.assert_array_equal(mask, np.asarray(nib.load(segmented / dicom.NIFTI).dataobj))

    def test_each_frame_lies_where_its_slice_lies(self, segmented, series):
        """Read by plain pydicom, frame by frame, against the file of the slice that it refers to."""
        seg = pydicom.dcmread(segmented / dicom.SEG)
        sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, series.iterdir())}
        mask = np.asarray(nib.load(segmented / dicom.NIFTI).dataobj)
        inverse = np.linalg.inv(nib.load(segmented / dicom.NIFTI).affine)
        frames = seg.pixel_array
        assert len(frames) > 5
        for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
            uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            position = group.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(position, sources[uid].ImagePositionPatient, atol=1e-4)
            corner = inverse @ [-position[0], -position[1], position[2], 1.0]
            np.testing.assert_allclose(corner[:2], 0, atol=1e-3)
            np.testing.assert_array_equal(frame.T, mask[:, :, round(corner[2])] == 1)
        assert seg.FrameOfReferenceUID == next(iter(sources.values())).FrameOfReferenceUID
        assert seg.StudyInstanceUID == next(iter(sources.values())).StudyInstanceUID
        assert seg.SeriesInstanceUID != next(iter(sources.values())).SeriesInstanceUID

    def test_segments_are_coded_and_values_valid(self, segmented, monkeypatch):
        monkeypatch.setattr(pydicom.config.settings, "_reading_validation_mode", pydicom.config.RAISE)
        seg = highdicom.seg.segread(segmented / dicom.SEG)
        [*map(str, seg.iterall())]  # reads, and so validates, every value
        description = seg.get_segment_description(1)
        assert description.segment_label == "left atrium"
        assert description.segmented_property_type.value == "82471001"
        assert description.algorithm_identification.name == "Tiny atrium"
        assert seg.SegmentationType == "BINARY"

    def test_private_codes_where_the_preset_has_none(self):
        preset = load_preset("phantom").model_copy(update={"codes": {}})
        assert dicom.segment_code(preset, 1) == ("CLASS-1", "99MONAISSL", "left atrium")

    def test_measurements(self, segmented):
        mask = nib.load(segmented / dicom.NIFTI)
        volume = int(np.asarray(mask.dataobj).sum()) * 2.5 * 2.0 * 3.0 / 1000
        assert json.loads((segmented / dicom.VOLUMES).read_text())["volume_ml"]["left atrium"] == pytest.approx(volume)
        report = highdicom.sr.srread(segmented / dicom.REPORT)
        (group,) = report.content.get_volumetric_roi_measurement_groups()
        (measurement,) = group.get_measurements()
        assert measurement.value == pytest.approx(volume)
        assert measurement.unit.value == "ml"
        seg = pydicom.dcmread(segmented / dicom.SEG)
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID

    def test_two_classes_and_an_empty_mask(self, series, tmp_path):
        found = dicom.read_series(series)
        preset = load_preset("hippocampus")
        labels = np.random.RandomState(0).randint(0, 3, tuple(found.volume.shape)).astype(np.uint8)
        labels[:, :, :4] = 0
        for name, mask in (("mixed", labels), ("one", labels * (labels == 2)), ("empty", labels * 0)):
            path = tmp_path / f"{name}.dcm"
            seg = dicom.write_segmentation(path, mask, found, preset, "model")
            np.testing.assert_array_equal(dicom.read_segmentation(path, found), mask)
            volumes = dicom.volumes_ml(mask, found.volume.affine, preset)
            dicom.write_measurements(tmp_path / f"{name}_sr.dcm", seg, volumes, found, preset, "model")
            content = highdicom.sr.srread(tmp_path / f"{name}_sr.dcm").content
            assert len(content.get_volumetric_roi_measurement_groups()) == len(set(np.unique(mask)) - {0})
            groups = content.get_volumetric_roi_measurement_groups() + content.get_image_measurement_groups()
            assert sorted(group.get_measurements()[0].value for group in groups) == sorted(volumes.values())

    def test_a_file_that_holds_something_else_is_not_left(self, series, tmp_path, monkeypatch):
        found = dicom.read_series(series)
        mask = np.ones(tuple(found.volume.shape), dtype=np.uint8)
        monkeypatch.setattr("monai_ssl.deploy.dicom.segmentation.read_segmentation", lambda *_: mask * 0)
        with pytest.raises(ValueError, match="gave another mask"):
            dicom.write_segmentation(tmp_path / "seg.dcm", mask, found, load_preset("phantom"), "model")
        assert not (tmp_path / "seg.dcm").exists()


def spoil(kind: str, folder: Path, files: list[Path], volume: nib.Nifti1Image) -> None:
    first = pydicom.dcmread(files[0])
    if kind == "two series":
        write_series(folder / "other", volume.get_fdata()[:, :, :5], volume.affine)
    elif kind == "missing slice":
        files[6].unlink()
    elif kind == "one slice":
        for path in files[1:]:
            path.unlink()
    elif kind == "truncated pixels":
        files[3].write_bytes(files[3].read_bytes()[:-500])
    elif kind == "truncated header":
        files[3].write_bytes(files[3].read_bytes()[:700])
    elif kind == "no DICOM":
        for path in files:
            path.write_text("text")
    elif kind == "two images of one name":
        (folder / "copy").write_bytes(files[2].read_bytes()[:-2] + b"ab")
    elif kind == "two phases":
        for k, path in enumerate(files):
            dataset = pydicom.dcmread(path)
            dataset.ImagePositionPatient = [0, 0, k // 2]
            dataset.save_as(path)
    else:
        keyword, value = {
            "localizer": ("ImageOrientationPatient", [1, 0, 0, 0, 0, -1]),
            "other size": ("PixelSpacing", [1.0, 1.0]),
            "no place": ("ImagePositionPatient", None),
            "multi-frame": ("NumberOfFrames", 2),
            "color": ("SamplesPerPixel", 3),
        }[kind]
        setattr(first, keyword, value)
        first.save_as(files[0])


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("two series", "holds 2 series (of {n} and 5 images)"),
            ("missing slice", "is incomplete: slices are 3 mm apart, but 6 mm between the slices 6 and 7"),
            ("one slice", "holds 1 slice; a volume needs at least 2"),
            ("truncated pixels", "is truncated; export the series again"),
            ("truncated header", "has no pixels, it is truncated"),
            ("no DICOM", "holds no DICOM image"),
            ("two images of one name", "holds the same image twice (equal SOPInstanceUID) with different content"),
            ("two phases", "holds several slices at one place"),
            ("localizer", "differ in ImageOrientationPatient"),
            ("other size", "differ in PixelSpacing"),
            ("no place", "has no ImagePositionPatient"),
            ("multi-frame", "multi-frame images other than enhanced MR, CT and PET are not read"),
            ("color", "images must be gray"),
        ],
    )
    def test_one_clear_line_without_names(self, kind, message, volume, packaged, tmp_path, capsys):
        folder = tmp_path / "series"
        files = write_series(folder, volume.get_fdata()[:, :, :14], volume.affine)
        spoil(kind, folder, files, volume)
        words = ["--bundle", packaged, "--dicom", folder, "--output", tmp_path / "out"]
        error = fails(capsys, "predict", *words)
        assert message.format(n=14) in error
        assert "SECRET" not in error
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

    def test_tilted_gantry(self, volume, tmp_path):
        affine = volume.affine.copy()
        affine[1, 2] = 1.0  # every slice 1 mm further to the front
        write_series(tmp_path, volume.get_fdata(), affine)
        with pytest.raises(ValueError, match="tilted gantry"):
            dicom.read_series(tmp_path)

    def test_results_of_another_series_are_kept(self, segmented, packaged, series, capsys):
        words = ["--bundle", packaged, "--dicom", series, "--output", segmented]
        assert f"holds a {dicom.SEG} already" in fails(capsys, "predict", *words)


@pytest.mark.data
def test_series_of_the_clinic_with_its_faults(real_data):
    folder = real_data / "dicom" / "Study1_HCropVolume"
    if not folder.is_dir():
        pytest.skip("no dicom/Study1_HCropVolume in MONAI_SSL_DATA")
    found = dicom.read_series(folder)
    assert tuple(found.volume.shape) == (35, 51, 32)
    (warning,) = found.warnings
    assert warning.endswith("taken as unknown: PatientBirthDate, PatientSex, SeriesNumber")

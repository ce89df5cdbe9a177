"""Series as archives send them: what is read, with which values, and what is refused in one line without a value."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clinic import edit, volume_of, write_enhanced, write_series

from monai_ssl.errors import DataError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from monai_ssl.dicom import completed, read_series  # noqa: E402
from monai_ssl.dicom.values import numbers  # noqa: E402

VALUES, AFFINE = volume_of()
SLICES = VALUES.shape[2]
SECRETS = ("SECRET", "19010101", "Yamada", "NAME-IN")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "series"


def series_in(folder: Path, **changes: object) -> list[Path]:
    return write_series(folder, VALUES, AFFINE, **changes)


def refused(folder: Path, caplog: pytest.LogCaptureFixture, **options: object) -> str:
    """The one line with which a series is refused: no value of a patient's field in it, in a log or in a warning."""
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError) as error:
            read_series(folder, **options)
    shown = str(error.value) + caplog.text + " ".join(str(item.message) for item in caught)
    assert not [secret for secret in SECRETS if secret in shown]
    assert "\n" not in str(error.value)
    return str(error.value)


def moved(folder: Path, place: Callable[[int], np.ndarray | list[float]]) -> None:
    """Give the slice number k (by InstanceNumber) the position ``place(k)``."""
    for path in folder.iterdir():
        k = int(pydicom.dcmread(path).InstanceNumber) - 1
        edit(path, ImagePositionPatient=[float(v) for v in place(k)])


class TestWhatIsTolerated:
    @pytest.mark.parametrize(
        ("changes", "warning"),
        [
            ({"SliceThickness": None}, "SliceThickness"),
            ({"SliceThickness": ""}, "SliceThickness"),
            ({"SliceThickness": "0"}, "SliceThickness"),
            ({"SeriesNumber": None}, "SeriesNumber"),
            ({"FrameOfReferenceUID": None}, "FrameOfReferenceUID is missing"),
            ({"FrameOfReferenceUID": ""}, "FrameOfReferenceUID is missing"),
            ({"PatientBirthDate": "19.05.1950"}, "not valid, left blank in the results: PatientBirthDate"),
            ({"PatientBirthDate": "00000000"}, "not valid, left blank in the results: PatientBirthDate"),
            ({"PatientBirthDate": "00/00/0000"}, "not valid, left blank in the results: PatientBirthDate"),
            ({"PatientSex": "W"}, "not valid, left blank in the results: PatientSex"),
            ({"StudyDate": "SECRET"}, "not valid, left blank in the results: StudyDate"),
            ({"StudyTime": "25:99"}, "not valid, left blank in the results: StudyTime"),
            ({"PatientAge": "SECRET"}, "not valid, left blank in the results: PatientAge"),
            ({"AccessionNumber": "SECRET-" * 9}, "not valid, left blank in the results: AccessionNumber"),
            ({"PatientName": "SECRET^" * 9}, "not valid, left blank in the results: PatientName"),
            ({"StudyID": "SECRET\\SECRET"}, "not valid, left blank in the results: StudyID"),
            ({"ImagesInAcquisition": "SECRET^NAME"}, ""),
            ({"RescaleSlope": "0"}, "RescaleSlope of 12 images is 0"),
            ({"Modality": "SECRET^NAME"}, ""),
            ({"ImagesInAcquisition": "40"}, "the header announces 40 images but 12 were found"),
            ({"SeriesNumber": "SECRET^NAME"}, "SeriesNumber"),
            ({"PatientWeight": "SECRET"}, ""),
            ({"InstanceNumber": "SECRET"}, ""),
            ({"AcquisitionNumber": "1" * 5000}, ""),
        ],
    )
    def test_a_header_with_faults_is_read_and_the_attribute_named(self, changes, warning, folder, caplog):
        files = series_in(folder)
        for path in files:
            edit(path, **changes)
        with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES)
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-6)
        said = " | ".join(found.warnings)
        assert warning in said
        assert not [secret for secret in SECRETS if secret in said + caplog.text + "".join(map(str, caught))]
        (thickness,) = {float(header.SliceThickness) for header in found.datasets}
        assert thickness == 3.0
        assert len({header.FrameOfReferenceUID for header in found.datasets}) == 1
        for header in found.datasets:  # every value that goes on is valid
            for keyword in changes:
                assert str(header.get(keyword) or "") in ("", "3", "3.0", "OT") or keyword == "FrameOfReferenceUID"

    def test_missing_transfer_syntax(self, folder):
        for path in series_in(folder):
            dataset = pydicom.dcmread(path)
            del dataset.file_meta.TransferSyntaxUID
            dataset.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
        np.testing.assert_array_equal(read_series(folder).voxels, VALUES)

    def test_missing_sop_instance_uid_is_taken_from_the_meta_information(self, folder):
        files = series_in(folder)
        name = str(pydicom.dcmread(files[0]).SOPInstanceUID)
        edit(files[0], SOPInstanceUID=None)
        assert name in {str(header.SOPInstanceUID) for header in read_series(folder).datasets}

    @pytest.mark.parametrize("implicit", [True, False])
    def test_files_without_preamble(self, implicit, folder):
        for path in series_in(folder):
            dataset = pydicom.dcmread(path)
            bare = pydicom.Dataset(dataset)
            bare.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
            assert path.read_bytes()[128:132] != b"DICM"
        (folder / "report.txt").write_text("SECRET^NAME, not at all DICOM" * 40)
        (folder / "scan.bin").write_bytes(bytes(range(256)) * 8)
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES)
        assert found.warnings[0] == "2 files that are not DICOM images were ignored"

    def test_japanese_names_and_the_empty_first_character_set(self, folder):
        for path in series_in(folder):
            dataset = pydicom.dcmread(path)
            dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
            dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
            dataset.save_as(path)
            assert "山田" not in path.read_bytes().decode("utf8", "replace")
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES)
        assert str(found.datasets[0].PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
        assert found.datasets[0].SpecificCharacterSet == "ISO_IR 192"
        assert found.warnings == []

    def test_identical_copies_are_dropped(self, folder):
        files = series_in(folder)
        (folder / "copies").mkdir()
        for path in files[:3]:
            (folder / "copies" / path.name).write_bytes(path.read_bytes())
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES)
        assert found.warnings == ["identical copies of 3 files were dropped"]

    def test_empty_files_of_another_name_are_counted(self, folder):
        series_in(folder)
        (folder / "COMPLETE").touch()
        assert read_series(folder).warnings == ["1 file of 0 bytes ignored: is the copy complete?"]

    def test_other_objects_of_the_study_are_no_images(self, folder):
        """Segmentations, reports and plans hang on the images; those with pixels are no series to segment."""
        files = series_in(folder)
        for k, kind in enumerate(["66.4", "88.22", "11.1", "481.2", "104.1", "30"]):
            dataset = pydicom.dcmread(files[0])
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{kind}"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"
            dataset.SeriesInstanceUID = f"1.2.4.{k}"
            dataset.save_as(folder / f"other{k}.dcm")
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES)
        assert found.warnings == ["6 files that are not DICOM images were ignored"]


class TestCompleted:
    """Copies for software that stumbles over headers with faults, such as MONAI Deploy's operators."""

    def test_copies_are_the_same_series_without_faults(self, folder, tmp_path):
        bad = {"SeriesNumber": None, "PatientBirthDate": "19.05.SECRET", "PatientAge": "SECRET", "SliceThickness": None}
        for path in series_in(folder, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"):
            edit(path, **bad)
            bare = pydicom.Dataset(pydicom.dcmread(path))
            bare.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        first = read_series(folder)
        (tmp_path / "copies").mkdir()
        for number, dataset in enumerate(completed(first)):
            dataset.save_as(tmp_path / "copies" / f"{number}.dcm", enforce_file_format=True)
        second = read_series(tmp_path / "copies")
        assert second.warnings == []
        np.testing.assert_array_equal(second.voxels, VALUES)
        np.testing.assert_allclose(second.affine, AFFINE, atol=1e-6)
        assert {str(header.PatientName) for header in second.datasets} == {"Müller^Jörg"}
        assert before == {path: path.read_bytes() for path in folder.iterdir()}
        assert b"SECRET" not in (tmp_path / "copies" / "0.dcm").read_bytes().replace(b"SECRET-", b"")

    def test_an_enhanced_file(self, tmp_path):
        folder = write_enhanced(tmp_path / "x.dcm", VALUES, AFFINE, "1.2.840.10008.5.1.4.1.1.4.1", SeriesNumber=None)
        (dataset,) = completed(read_series(folder))
        (tmp_path / "copies").mkdir()
        dataset.save_as(tmp_path / "copies" / "x.dcm", enforce_file_format=True)
        found = read_series(tmp_path / "copies")
        np.testing.assert_array_equal(found.voxels, VALUES * 2 - 10)
        assert found.warnings == []


class TestGray:
    def test_monochrome1_is_inverted_and_said(self, folder):
        for path in series_in(folder, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11,
                              PixelRepresentation=0):  # fmt: skip
            assert pydicom.dcmread(path).BitsStored == 12
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, 4095 - VALUES)
        assert found.warnings == [f"MONOCHROME1 (white is low): the gray values of {SLICES} images were inverted"]

    def test_hounsfield_units_stay(self, folder):
        series_in(folder, PhotometricInterpretation="MONOCHROME1", Modality="CT", RescaleSlope="1",
                  RescaleIntercept="-1024", RescaleType="HU")  # fmt: skip
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES - 1024)
        assert found.warnings == ["MONOCHROME1 of values in Hounsfield units: taken as they are"]

    def test_what_lies_in_unused_bits_is_no_gray_value(self, folder):
        """Old scanners kept overlays there."""
        for path in series_in(folder, BitsStored=12, HighBit=11, PixelRepresentation=0):
            dataset = pydicom.dcmread(path)
            dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") | 0x8000).tobytes()
            dataset.save_as(path)
        np.testing.assert_array_equal(read_series(folder).voxels, VALUES)

    @pytest.mark.parametrize(
        ("how", "syntax"),
        [
            ("sitk JPEG", "1.2.840.10008.1.2.4.70"),
            ("sitk JPEG2000", "1.2.840.10008.1.2.4.90"),
            ("pydicom", "1.2.840.10008.1.2.4.80"),
            ("pydicom", "1.2.840.10008.1.2.5"),
            ("pydicom", "1.2.840.10008.1.2.1.99"),
            ("pydicom", "1.2.840.10008.1.2"),
            ("pydicom", "1.2.840.10008.1.2.2"),
        ],
    )
    def test_transfer_syntaxes(self, how, syntax, folder, tmp_path):
        """JPEG Lossless SV1 and JPEG 2000 written by ITK; JPEG-LS, RLE, deflated, implicit, big endian by pydicom."""
        for path in series_in(folder):
            dataset = pydicom.dcmread(path)
            if how == "pydicom":
                recoded(dataset, path, syntax)
            else:
                encoded(dataset, path, how.split()[1], tmp_path / "packed.dcm")
            assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES)
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-6)

    def test_a_missing_decoder_is_named(self, folder, caplog, monkeypatch):
        for path in series_in(folder):
            dataset = pydicom.dcmread(path)
            dataset.compress("1.2.840.10008.1.2.4.80")
            dataset.save_as(path)
        monkeypatch.setattr(pydicom.pixels.decoders.JPEGLSLosslessDecoder, "_available", {})
        error = refused(folder, caplog)
        assert "cannot be decoded" in error
        assert "JPEG-LS" in error
        assert "pip install 'monai_ssl[dicom]'" in error

    @pytest.mark.parametrize("stated", ["1.2.840.10008.1.2.1", None])
    def test_packed_pixels_that_say_otherwise(self, stated, folder, caplog):
        for path in series_in(folder):
            dataset = pydicom.dcmread(path)
            dataset.compress("1.2.840.10008.1.2.5")
            dataset.save_as(path)
            content = path.read_bytes()
            assert content.count(b"1.2.840.10008.1.2.5\0") == 1
            lie = (stated or "\0" * 19).encode()
            path.write_bytes(content.replace(b"1.2.840.10008.1.2.5\0", lie.ljust(20, b"\0")[:20]))
        assert "export" in refused(folder, caplog)


def encoded(dataset, path: Path, compressor: str, temporary: Path) -> None:
    """The file with its pixels packed by ITK's GDCM."""
    sitk = pytest.importorskip("SimpleITK")
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(temporary))
    writer.Execute(sitk.GetImageFromArray(dataset.pixel_array[None].astype(np.int16)))
    packed = pydicom.dcmread(temporary)
    dataset.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    dataset.add(packed["PixelData"])
    dataset.BitsStored, dataset.HighBit = packed.BitsStored, packed.HighBit
    dataset.save_as(path)


def recoded(dataset, path: Path, syntax: str) -> None:
    uid = pydicom.uid.UID(syntax)
    if uid.is_compressed:
        dataset.compress(uid)
        dataset.save_as(path)
        return
    dataset.file_meta.TransferSyntaxUID = uid
    if not uid.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    bare = pydicom.Dataset(dataset)
    bare.file_meta = dataset.file_meta
    pydicom.dcmwrite(path, bare, implicit_vr=uid.is_implicit_VR, little_endian=uid.is_little_endian,
                     enforce_file_format=True)  # fmt: skip


class TestGrid:
    def test_positions_rounded_to_a_tenth_of_a_millimeter(self, folder):
        affine = AFFINE.copy()
        affine[2, 2] = 0.625
        write_series(folder, VALUES, affine)
        moved(folder, lambda k: [-40, -31.5, round(-12 + 0.625 * k, 1)])
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES)
        np.testing.assert_allclose(found.affine, affine, atol=0.05 / 5)
        assert "beside a regular grid of 0.6" in found.warnings[0]

    @pytest.mark.parametrize("jitter", [0.04, 0.06, 0.09])
    def test_jitter(self, jitter, folder):
        series_in(folder)
        offsets = 3 * jitter * np.random.RandomState(1).choice([-0.5, 0.5], SLICES)
        moved(folder, lambda k: [-40, -31.5, -12 + 3 * k + offsets[k]])
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES)
        np.testing.assert_allclose(found.affine, AFFINE, atol=0.2)

    @pytest.mark.parametrize("lost", [1, 5, SLICES - 2])
    @pytest.mark.parametrize("jitter", [0.0, 0.05])
    def test_a_gap_is_a_whole_step(self, lost, jitter, folder, caplog):
        offsets = 3 * jitter * np.random.RandomState(1).choice([-0.5, 0.5], SLICES)
        series_in(folder)
        moved(folder, lambda k: [-40, -31.5, -12 + 3 * k + offsets[k]])
        for path in list(folder.iterdir()):
            if pydicom.dcmread(path).InstanceNumber == lost + 1:
                path.unlink()
        assert f"between the slices {lost} and {lost + 1} of {SLICES - 1}" in refused(folder, caplog)

    def test_three_slices_of_four(self, folder, caplog):
        for path in series_in(folder):
            if pydicom.dcmread(path).InstanceNumber not in (1, 2, 4):
                path.unlink()
        assert "is incomplete" in refused(folder, caplog)

    def test_growing_distances(self, folder, caplog):
        series_in(folder)
        moved(folder, lambda k: [-40, -31.5, -12 + 3 * k * (1 + 0.02 * k)])
        assert "must have slices at equal distances" in refused(folder, caplog)

    @pytest.mark.parametrize("degrees", [0.1, 0.4])
    def test_a_small_tilt_becomes_a_straight_grid_that_itk_reads(self, degrees, folder, tmp_path):
        sitk = pytest.importorskip("SimpleITK")
        from monai_ssl.data.writing import write_nifti

        series_in(folder)
        shift = np.tan(np.radians(degrees)) * 3
        moved(folder, lambda k: [-40, -31.5 + shift * k, -12 + 3 * k])
        found = read_series(folder)
        axes = found.affine[:3, :3] / np.linalg.norm(found.affine[:3, :3], axis=0)
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
        write_nifti(tmp_path / "x.nii.gz", found.voxels, found.affine)
        assert sitk.ReadImage(str(tmp_path / "x.nii.gz")).GetSize() == VALUES.shape
        places = np.array([[float(v) for v in header.ImagePositionPatient] for header in found.datasets])
        ours = np.array([(found.affine @ [0, 0, k, 1])[:3] * [-1, -1, 1] for k in range(SLICES)])
        assert np.abs(ours - places).max() <= shift * (SLICES - 1) / 2 + 1e-6
        assert f"by {degrees:.2g} degrees" in found.warnings[0]

    def test_a_tilted_gantry_is_refused(self, folder, caplog):
        series_in(folder)
        moved(folder, lambda k: [-40, -31.5 + k * 3 * np.tan(np.radians(5)), -12 + 3 * k])
        assert "shifted against each other by 5 degrees (tilted gantry)" in refused(folder, caplog)


ONE = {
    "Rows missing": ({"Rows": None}, "has no Rows"),
    "Columns missing": ({"Columns": None}, "has no Columns"),
    "Rows 0": ({"Rows": 0}, "Rows must be a whole number of at least 1"),
    "no pixels": ({"PixelData": b""}, "has no pixels"),
    "no pixel data": ({"PixelData": None}, "has no pixels"),
    "position of 2": ({"ImagePositionPatient": ["1", "2"]}, "ImagePositionPatient must hold 3 numbers, got 2"),
    "position of 4": ({"ImagePositionPatient": ["1", "2", "3", "4"]}, "must hold 3 numbers, got 4"),
    "position empty": ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
    "orientation of 3": ({"ImageOrientationPatient": ["1", "0", "0"]}, "must hold 6 numbers, got 3"),
    "orientation of zeros": ({"ImageOrientationPatient": ["0"] * 6}, "differ in ImageOrientationPatient"),
    "spacing of 1": ({"PixelSpacing": ["1"]}, "PixelSpacing must hold 2 numbers, got 1"),
    "spacing 0": ({"PixelSpacing": ["0", "1"]}, "PixelSpacing must be millimeters from 0.001"),
    "study missing": ({"StudyInstanceUID": None}, "must agree in StudyInstanceUID"),
    "study empty": ({"StudyInstanceUID": ""}, "must agree in StudyInstanceUID"),
    "two studies": ({"StudyInstanceUID": "1.2.3"}, "must agree in StudyInstanceUID"),
    "two frames of reference": ({"FrameOfReferenceUID": "1.2.3"}, "must agree in FrameOfReferenceUID"),
    "two patients": ({"PatientID": "SECRET-2"}, "must be of one patient, got 2 values of PatientID"),
    "a patient without ID": ({"PatientID": ""}, "must be of one patient, got 2 values of PatientID"),
    "two IDs that are not ASCII": ({"PatientID": "ÄÖ"}, "must be of one patient, got 2 values of PatientID"),
    "values left-aligned": ({"BitsStored": 12, "HighBit": 15}, "HighBit must be BitsStored - 1"),
    "two names": ({"PatientName": "SECRET^OTHER"}, "must be of one patient, got 2 values of PatientName"),
    "series missing": ({"SeriesInstanceUID": None}, "has no SeriesInstanceUID"),
    "UID of a name": ({"StudyInstanceUID": "SECRET^NAME"}, "StudyInstanceUID must be a UID"),
    "name in a number": ({"ImagePositionPatient": ["SECRET", "0", "0"]}, "ImagePositionPatient must hold numbers"),
    "name in the slope": ({"RescaleSlope": "NAME-IN"}, "RescaleSlope must hold numbers"),
    "BitsAllocated 12": ({"BitsAllocated": 12}, "BitsAllocated must be 8, 16 or 32"),
    "huge": ({"Rows": 65535, "Columns": 65535}, "differ in size"),
    "color": ({"SamplesPerPixel": 3}, "images must be gray"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "images must be gray"),
}
EVERY = {
    "study missing": ({"StudyInstanceUID": None}, "has no StudyInstanceUID"),
    "study empty": ({"StudyInstanceUID": ""}, "has no StudyInstanceUID"),
    "series empty": ({"SeriesInstanceUID": ""}, "has no SeriesInstanceUID"),
    "Rows missing": ({"Rows": None}, "holds no DICOM image"),
    "zeros": ({"ImageOrientationPatient": ["0"] * 6}, "must hold two perpendicular unit vectors"),
    "one position": ({"ImagePositionPatient": ["0", "0", "0"]}, "several slices at one place"),
    "long ID": ({"PatientID": "SECRET" * 20}, "PatientID must be one line of up to 64 characters"),
    "two IDs in one": ({"PatientID": "SECRET\\SECRET"}, "PatientID must be one line of up to 64 characters"),
    "huge": ({"Rows": 65535, "Columns": 65535}, "12 images of 65535 x 65535 need 206 GB"),
    "many frames": ({"NumberOfFrames": "12"}, "multi-frame images other than enhanced"),
    "private class": ({"SOPClassUID": "1.2.3.4"}, "SOPClassUID must be an image class"),
    "slope that overflows": ({"RescaleSlope": "1e30"}, "RescaleSlope must hold finite numbers"),
}


CRAFTED = ("1_0", "nan", "inf", "-Infinity", "1e9999", "0x10", "1" * 100_000, "１２", "1e" + "9" * 5000, "1,5", "--1",
           "__import__('os')", "$(id)", "1;2", "+", ".", "e5", "1e+", "1 2", "NAME-IN^NUMBER")  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize("kind", ONE)
    def test_one_bad_file(self, kind, folder, caplog):
        changes, message = ONE[kind]
        files = series_in(folder)
        edit(files[4], **changes)
        assert message in refused(folder, caplog)

    @pytest.mark.parametrize("kind", EVERY)
    def test_every_file_bad(self, kind, folder, caplog):
        changes, message = EVERY[kind]
        for path in series_in(folder):
            edit(path, **changes)
        assert message in refused(folder, caplog)

    def test_patients_whose_names_differ_in_another_script(self, folder, caplog):
        files = series_in(folder, SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎")
        edit(files[3], PatientName="山本^太郎")
        assert "got 2 values of PatientName" in refused(folder, caplog)

    def test_without_any_name_of_the_image(self, folder, caplog):
        path = series_in(folder)[0]
        dataset = pydicom.dcmread(path)
        del dataset.SOPInstanceUID, dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.save_as(path, enforce_file_format=False)
        assert "has no SOPInstanceUID" in refused(folder, caplog)

    def test_an_empty_file_among_the_slices(self, folder, caplog):
        series_in(folder)
        (folder / "IM9999.dcm").touch()
        assert "is empty (0 bytes)" in refused(folder, caplog)

    @pytest.mark.parametrize("text", CRAFTED)
    def test_crafted_numbers_are_never_converted(self, text):
        """Strings that Python takes for numbers and DICOM does not, and some that take very long (CVE-2026-48705)."""
        dataset, content = pydicom.Dataset(), text.encode()
        for keyword, vr in (("RescaleSlope", "DS"), ("NumberOfFrames", "IS"), ("Rows", "LO")):
            tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword))
            dataset[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(content), content, 0, False, True)
            with pytest.raises(DataError, match=f"{keyword} must hold") as error:
                numbers(dataset, keyword, "dicom: file 1")
            assert len(text) < 3 or text[:40] not in str(error.value)

    @pytest.mark.parametrize("keyword", ["RescaleSlope", "NumberOfFrames", "ImagePositionPatient", "PixelSpacing"])
    @pytest.mark.parametrize("text", ["1_0", "9" * 60_000, "NAME-IN^NUMBER"])
    def test_crafted_numbers_in_a_series(self, text, keyword, folder, caplog):
        edit(series_in(folder)[0], **{keyword: text})
        assert f"{keyword} must hold" in refused(folder, caplog)

    @pytest.mark.parametrize(
        ("text", "number"), [("1", 1), (" +1.50 ", 1.5), ("-.5E-2", -0.005), ("3.", 3), ("1e3", 1000), ("007", 7)]
    )
    def test_decimal_strings(self, text, number):
        dataset = pydicom.Dataset()
        tag = pydicom.tag.Tag("RescaleSlope")
        dataset[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(text), text.encode(), 0, False, True)
        assert numbers(dataset, "RescaleSlope", "") == [number]


class TestSeveralSeries:
    @pytest.fixture
    def study(self, tmp_path):
        """A localizer, the volume, and another one, in one folder."""
        study = tmp_path / "study"
        for name, values, text in (
            ("a", VALUES[:, :, :3], "Localizer"),
            ("b", VALUES, "T1 axial; \x1b[31m long " + "x" * 200),
            ("c", VALUES[:, :, 2:], "T2 左心房"),
        ):
            files = write_series(
                study / name, values, AFFINE, SpecificCharacterSet="ISO_IR 192", SeriesDescription=text
            )
            assert files
        return study

    def test_listed_with_descriptions(self, study, caplog):
        error = refused(study, caplog)
        assert "holds 3 series (of 12 and 10 and 3 images); choose one with --series_uid: " in error
        for text in ('(MR, 12 images, "T1 axial;', '(MR, 10 images, "T2 左心房")', '(MR, 3 images, "Localizer")'):
            assert text in error
        assert "\x1b" not in error
        assert "x" * 60 not in error

    def test_chosen(self, study):
        for name, count in (("a", 3), ("b", 12), ("c", 10)):
            uid = str(pydicom.dcmread(next((study / name).iterdir())).SeriesInstanceUID)
            found = read_series(study, series_uid=uid)
            assert found.voxels.shape == (*VALUES.shape[:2], count)
            assert {str(header.SeriesInstanceUID) for header in found.datasets} == {uid}

    def test_an_unknown_one(self, study, caplog):
        assert "series_uid:" in (error := refused(study, caplog, series_uid="1.2.3"))
        assert "T2" in error


class TestEnhanced:
    @pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"])
    @pytest.mark.parametrize("extended", [True, False])
    def test_packed_frames(self, syntax, extended, tmp_path):
        folder = write_enhanced(tmp_path / "x.dcm", VALUES, AFFINE, "1.2.840.10008.5.1.4.1.1.4.1")
        dataset = pydicom.dcmread(folder / "x.dcm")
        dataset.compress(syntax, encapsulate_ext=extended)
        dataset.save_as(folder / "x.dcm")
        assert ("ExtendedOffsetTable" in pydicom.dcmread(folder / "x.dcm")) is extended
        np.testing.assert_array_equal(read_series(folder).voxels, VALUES * 2 - 10)

    @pytest.mark.parametrize("kind", ["4.1", "2.1", "130", "4.4", "2.2", "128.1"])
    def test_frames_in_any_order_give_the_volume(self, kind, tmp_path):
        folder = write_enhanced(tmp_path / "x.dcm", VALUES, AFFINE, f"1.2.840.10008.5.1.4.1.1.{kind}")
        found = read_series(folder)
        np.testing.assert_array_equal(found.voxels, VALUES * 2 - 10)
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-6)
        assert len(found.datasets) == 1
        assert sorted(found.frames) == list(range(SLICES))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"NumberOfFrames": "11"}, "must describe each of its 11 frames"),
            ({"PerFrameFunctionalGroupsSequence": []}, "must describe each of its 12 frames"),
            ({"SharedFunctionalGroupsSequence": []}, "has no ImageOrientationPatient"),
            ({"PixelData": b"\0" * 64}, "is truncated"),
        ],
    )
    def test_refusals(self, changes, message, tmp_path, caplog):
        folder = write_enhanced(tmp_path / "x.dcm", VALUES, AFFINE, "1.2.840.10008.5.1.4.1.1.4.1", **changes)
        assert message in refused(folder, caplog)

    def test_other_multi_frame_objects_are_refused(self, tmp_path, caplog):
        folder = write_enhanced(tmp_path / "x.dcm", VALUES, AFFINE, "1.2.840.10008.5.1.4.1.1.7.3")
        assert "multi-frame images other than enhanced MR, CT and PET" in refused(folder, caplog)

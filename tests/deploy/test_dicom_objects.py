"""SEG and SR: codes, colors, names, identifiers, all or none; and what validators say that nobody here wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinic import edit, volume_of, write_enhanced, write_series
from commands import fails, run

from monai_ssl.data import load_preset

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from monai_ssl.deploy import dicom  # noqa: E402
from monai_ssl.deploy.dicom.workflow import unlike_training  # noqa: E402

VALUES, AFFINE = volume_of()
LABELS = np.random.RandomState(0).randint(0, 3, VALUES.shape).astype(np.uint8)
PRESET = load_preset("hippocampus")
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
# what differs between two runs: the time
TIMES = {"InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "SeriesDate", "SeriesTime",
         "ContributionDateTime"}  # fmt: skip


def named(**names: str):
    return PRESET.model_copy(update={"labels": {0: "background", **{int(k[1:]): name for k, name in names.items()}}})


def coded(names: list[str], codes: dict | None = None):
    return PRESET.model_copy(update={"labels": dict(enumerate(["background", *names])), "codes": codes or {}})


@pytest.fixture(scope="module", params=["classic", "enhanced"])
def source(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    if request.param == "enhanced":
        return write_enhanced(folder / "x.dcm", VALUES, AFFINE, ENHANCED_MR)
    write_series(folder / "series", VALUES, AFFINE, SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^T=山田^太郎")
    return folder / "series"


@pytest.fixture(scope="module")
def written(source, tmp_path_factory) -> Path:
    """Binary and labelmap SEG, fractional SEG and SR of one series, with names in another script."""
    folder = tmp_path_factory.mktemp("written")
    write_all(folder, source)
    return folder


def write_all(folder: Path, source: Path, labels: np.ndarray = LABELS, version: str = "1.2.0") -> None:
    series, preset = dicom.read_series(source), named(_1="左心房 anterior", _2="a\\b posterior")
    for kind in dicom.SEG_TYPES:
        seg = dicom.write_segmentation(folder / f"{kind}.dcm", labels, series, preset, "Modèle", version, kind)
        volumes = dicom.volumes_ml(labels, series.affine, preset)
        dicom.write_measurements(folder / f"{kind}_sr.dcm", seg, volumes, series, preset, "Modèle", version)
    probabilities = np.random.RandomState(1).rand(3, *VALUES.shape).astype(np.float32)
    dicom.write_probabilities(folder / "fractional.dcm", probabilities, series, preset, "Modèle", version)


class TestObjects:
    @pytest.mark.parametrize("kind", ["binary", "labelmap"])
    def test_read_back_voxel_for_voxel(self, kind, written, source):
        np.testing.assert_array_equal(
            dicom.read_segmentation(written / f"{kind}.dcm", dicom.read_series(source)), LABELS
        )

    def test_frames_lie_where_their_sources_lie(self, written):
        """By plain pydicom: every frame against the labels of the slice at its place."""
        seg = pydicom.dcmread(written / "binary.dcm")
        frames = seg.pixel_array
        assert len(frames) == 2 * VALUES.shape[2]
        for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
            z = (float(group.PlanePositionSequence[0].ImagePositionPatient[2]) + 12) / 3
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            np.testing.assert_array_equal(frame.T, LABELS[:, :, round(z)] == number)

    def test_frames_of_an_enhanced_series_refer_to_its_frames(self, tmp_path):
        source = write_enhanced(tmp_path / "x.dcm", VALUES, AFFINE, ENHANCED_MR)
        series = dicom.read_series(source)
        dicom.write_segmentation(tmp_path / "seg.dcm", LABELS, series, PRESET, "m")
        original, seg = pydicom.dcmread(source / "x.dcm"), pydicom.dcmread(tmp_path / "seg.dcm")
        for group in seg.PerFrameFunctionalGroupsSequence:
            image = group.DerivationImageSequence[0].SourceImageSequence[0]
            assert image.ReferencedSOPInstanceUID == original.SOPInstanceUID
            frame = original.PerFrameFunctionalGroupsSequence[int(image.ReferencedFrameNumber) - 1]
            assert (
                frame.PlanePositionSequence[0].ImagePositionPatient
                == group.PlanePositionSequence[0].ImagePositionPatient
            )

    def test_probabilities(self, written):
        seg = highdicom.seg.segread(written / "fractional.dcm")
        assert (seg.SegmentationType, seg.SegmentationFractionalType, seg.MaximumFractionalValue) == (
            "FRACTIONAL", "PROBABILITY", 255)  # fmt: skip
        wanted = np.random.RandomState(1).rand(3, *VALUES.shape).astype(np.float32)[1:]
        frames = pydicom.dcmread(written / "fractional.dcm").pixel_array / 255
        for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
            z = round((float(group.PlanePositionSequence[0].ImagePositionPatient[2]) + 12) / 3)
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            np.testing.assert_allclose(frame.T, wanted[number - 1, :, :, z], atol=0.5 / 255 + 1e-6)

    @pytest.mark.parametrize("kind", ["binary", "labelmap", "fractional"])
    def test_names_colors_dates(self, kind, written):
        seg = pydicom.dcmread(written / f"{kind}.dcm")
        segments = {item.SegmentNumber: item for item in seg.SegmentSequence if item.SegmentNumber}
        assert [item.SegmentLabel for item in segments.values()] == ["左心房 anterior", "a/b posterior"]
        assert seg.SpecificCharacterSet == "ISO_IR 192"
        assert seg.SeriesDescription.endswith("Modèle")
        colors = [highdicom.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb()
                  for item in segments.values()]  # fmt: skip
        for color, wanted in zip(colors, [(86, 180, 233), (230, 159, 0)], strict=True):
            assert np.abs(np.subtract(color, wanted)).max() <= 1
        assert seg.SeriesDate == seg.ContentDate
        assert seg.SeriesTime == seg.ContentTime
        modifiers = [item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning
                     for item in segments.values()]  # fmt: skip
        assert modifiers == ["Anterior", "Posterior"]

    def test_report(self, written):
        report = highdicom.sr.srread(written / "binary_sr.dcm")
        groups = report.content.get_volumetric_roi_measurement_groups()
        assert len(groups) == 2
        seg = pydicom.dcmread(written / "binary.dcm")
        for number, group in enumerate(groups, 1):
            (measurement,) = group.get_measurements()
            assert measurement.value == pytest.approx((number == LABELS).sum() * 15 / 1000, abs=1e-4)
            assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
            (site,) = group.finding_sites
            assert site.topographical_modifier.meaning == ["Anterior", "Posterior"][number - 1]
        text = str(report)
        assert "'1.2.0'" in text
        assert "'Modèle'" in text
        assert report.SeriesDate == report.ContentDate
        assert report.SpecificCharacterSet == "ISO_IR 192"

    def test_an_empty_mask(self, source, tmp_path):
        series = dicom.read_series(source)
        for kind in dicom.SEG_TYPES:
            dicom.write_segmentation(tmp_path / f"{kind}.dcm", LABELS * 0, series, PRESET, "m", "1", kind)
            assert not dicom.read_segmentation(tmp_path / f"{kind}.dcm", series).any()


class TestIdentifiers:
    """The same images, model and result have the same identifiers: an archive sees that it has them already."""

    @pytest.fixture(scope="class")
    def series(self, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("ids") / "series"
        write_series(folder, VALUES, AFFINE, FrameOfReferenceUID=None)
        return folder

    def everything(self, folder: Path) -> dict[str, str]:
        def content(path: Path) -> str:
            return repr(
                [(item.keyword, item.repval) for item in pydicom.dcmread(path).iterall() if item.keyword not in TIMES]
            )

        return {path.name: content(path) for path in sorted(folder.glob("*.dcm"))}

    def test_a_second_run_differs_in_the_time_only(self, series, tmp_path):
        for name in "ab":
            (tmp_path / name).mkdir()
            write_all(tmp_path / name, series)
        first = self.everything(tmp_path / "a")
        assert first == self.everything(tmp_path / "b")
        assert len(first) == 5

    @pytest.mark.parametrize("change", ["mask", "version", "images"])
    def test_another_result_has_others(self, change, series, tmp_path):
        labels, version, source = LABELS, "1.2.0", series
        if change == "mask":
            labels = LABELS.copy()
            labels[0, 0, 0] = 2 - labels[0, 0, 0]
        if change == "version":
            version = "1.2.1"
        if change == "images":
            source = tmp_path / "other"
            write_series(source, VALUES, AFFINE)
        for name, words in (("a", (series, LABELS, "1.2.0")), ("b", (source, labels, version))):
            (tmp_path / name).mkdir()
            write_all(tmp_path / name, *words)
        own = {str(pydicom.dcmread(path).SOPInstanceUID) for path in (tmp_path / "a").glob("*.dcm")}
        other = {str(pydicom.dcmread(path).SOPInstanceUID) for path in (tmp_path / "b").glob("*.dcm")}
        assert len(own) == len(other) == 5
        shared = own & other
        assert len(shared) == (1 if change == "mask" else 0)  # the probabilities stayed


class TestCodes:
    @pytest.mark.parametrize(
        ("name", "category"),
        [
            ("left atrium", "Anatomical Structure"), ("liver", "Anatomical Structure"), ("mass", "Morphologically"),
            ("liver tumor", "Morphologically"), ("kidney tumour", "Morphologically"),
            ("GD-enhancing", "Morphologically"),
            ("peritumoral_edema", "Morphologically"), ("Oedema", "Morphologically"), ("necrosis", "Morphologically"),
            ("MS lesions", "Morphologically"), ("scar", "Morphologically"), ("infarct", "Morphologically"),
            ("necrotic core", "Morphologically"), ("metastases", "Morphologically"), ("cyst", "Morphologically"),
            ("oscar", "Anatomical Structure"), ("cystic duct", "Anatomical Structure"), ("stent", "Physical object"),
            ("左心房", "Anatomical Structure"),
        ],
    )  # fmt: skip
    def test_categories(self, name, category):
        assert dicom.segment_category(coded([name]), 1)[2].startswith(category)

    @pytest.mark.parametrize(
        ("names", "modifiers"),
        [
            (["left lung", "right lung"], [["Left"], ["Right"]]),
            (["kidney_left", "kidney_right", "kidney"], [["Left"], ["Right"], ["kidney"]]),
            (["upright", "left"], [["upright"], ["Left"]]),
            (["left anterior part", "left posterior part"], [["Left", "Anterior"], ["Left", "Posterior"]]),
            (["left a", "left b"], [["left a"], ["left b"]]),
            (["a", "b"], [["a"], ["b"]]),
        ],
    )
    def test_classes_of_one_code_are_told_apart(self, names, modifiers, tmp_path):
        preset = coded(names, dict.fromkeys(range(1, len(names) + 1), ("39607008", "SCT", "Lung")))
        assert [[m[2] for m in dicom.segment_modifiers(preset, k + 1)] for k in range(len(names))] == modifiers

    def test_no_modifier_without_a_twin(self):
        assert dicom.segment_modifiers(coded(["left atrium", "x"], {1: ("82471001", "SCT", "Left atrium")}), 1) == []

    def test_every_shipped_preset_has_distinct_segments(self):
        from monai_ssl.data import available_presets

        for name in available_presets():
            preset = load_preset(name)
            kinds = [
                (dicom.segment_code(preset, k)[:2], *dicom.segment_modifiers(preset, k)) for k in preset.labels if k
            ]
            assert len(set(kinds)) == len(kinds), name

    def test_colors_are_apart(self):
        colors = np.array([dicom.segment_color(k) for k in range(1, 120)])
        distances = np.abs(colors[:, None] - colors[None]).max(-1) + 255 * np.eye(len(colors))
        assert distances.min() >= 2
        assert distances[:20, :20].min() >= 20
        assert colors.min() >= 0 <= 255 - colors.max()


class TestCard:
    @pytest.mark.parametrize(
        ("modality", "trained", "said"),
        [("CT", "MR", True), ("MR", "MR", False), ("MR", "MRI", False), ("PT", "PET", False), ("CT", "any scan", False),
         ("", "MR", False)],
    )  # fmt: skip
    def test_modality(self, modality, trained, said):
        series = dicom.Series(VALUES, AFFINE, [], modality=modality)
        notes = unlike_training(series, PRESET.model_copy(update={"modality": trained}))
        assert [note.split(":")[0] for note in notes] == (
            [f"the model was trained on {trained}, the series is CT"] * said
        )

    @pytest.mark.parametrize(
        ("factor", "said"), [((1, 1, 1), False), ((0.6, 1, 1), False), ((3, 1, 1), True), ((1, 1, 0.1), True)]
    )
    def test_spacing(self, factor, said):
        series = dicom.Series(VALUES, AFFINE @ np.diag([*factor, 1]), [], modality="MR")
        spacing = {"min": [2.0, 2.5, 3.0], "max": [2.0, 2.5, 3.5]}
        assert bool(unlike_training(series, PRESET, spacing)) is said

    @pytest.mark.parametrize("ranges", [None, {}, {"min": ["a"], "max": None}, [], {"min": [1, 2], "max": [1, 2]}])
    def test_nothing_is_said_without_ranges(self, ranges):
        assert unlike_training(dicom.Series(VALUES, AFFINE, [], modality="MR"), PRESET, ranges) == []

    def test_said_by_the_command(self, packaged, tmp_path, capsys):
        write_series(tmp_path / "series", VALUES, AFFINE @ np.diag([1, 1, 4, 1]), Modality="CT")
        words = ["--bundle", packaged, "--dicom", tmp_path / "series", "--output", tmp_path / "out"]
        assert run("predict", *words) == 0
        said = capsys.readouterr().err
        assert "the model was trained on MR, the series is CT" in said
        assert "voxels of 2 x 2.5 x 12 mm are far from those of the training images" in said


class TestCommand:
    @pytest.fixture
    def words(self, packaged, tmp_path) -> list:
        write_series(tmp_path / "series", VALUES, AFFINE)
        return ["--bundle", packaged, "--dicom", tmp_path / "series", "--output", tmp_path / "out"]

    def test_probabilities_labelmap_and_what_an_earlier_run_left(self, words, tmp_path):
        out = tmp_path / "out"
        assert run("predict", *words, "--probabilities", "--measurements", "--seg_type", "labelmap") == 0
        assert {path.name for path in out.iterdir()} == {
            "segmentation.dcm", "segmentation.nii.gz", "probabilities.dcm", "probabilities.nii.gz", "measurements.dcm",
            "measurements.json"}  # fmt: skip
        assert pydicom.dcmread(out / "segmentation.dcm").SegmentationType == "LABELMAP"
        probabilities = nib.load(out / "probabilities.nii.gz").get_fdata()
        labels = np.asarray(nib.load(out / "segmentation.nii.gz").dataobj)
        np.testing.assert_array_equal(probabilities.argmax(-1), labels)
        assert run("predict", *words, "--overwrite") == 0
        assert sorted(path.name for path in out.iterdir()) == ["segmentation.dcm", "segmentation.nii.gz"]

    @pytest.mark.parametrize("broken", ["write_measurements", "write_nifti", "write_text"])
    def test_all_or_none(self, broken, words, tmp_path, monkeypatch, capsys):
        """A report that fails leaves no segmentation, and none of the files of an earlier run half replaced."""

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(f"monai_ssl.deploy.dicom.workflow.{broken}", fail)
        fails_or_exits = run("predict", *words, "--measurements")
        assert fails_or_exits != 0
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []

    def test_results_of_any_kind_are_kept(self, words, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "measurements.dcm").write_text("of another model")
        assert "holds a measurements.dcm already" in fails(capsys, "predict", *words)

    @pytest.mark.parametrize("option", [["--series_uid", "1.2.3"], ["--seg_type", "labelmap"], ["--measurements"]])
    def test_options_of_dicom_only(self, option, packaged, scans, tmp_path, capsys):
        words = [packaged, scans / "images", "--output", tmp_path / "out", *option]
        assert f"predict: {option[0]} goes with --dicom" in fails(capsys, "predict", *words)

    def test_unknown_seg_type(self, words, capsys):
        assert "seg_type: must be one of binary, labelmap, got 'surface'" in fails(
            capsys, "predict", *words, "--seg_type", "surface"
        )

    def test_series_uid(self, words, tmp_path, capsys):
        write_series(tmp_path / "series" / "other", VALUES[:, :, :4], AFFINE, SeriesDescription="Localizer")
        error = fails(capsys, "predict", *words)
        assert '(MR, 4 images, "Localizer")' in error
        uid = str(
            pydicom.dcmread(next(path for path in (tmp_path / "series").iterdir() if path.is_file())).SeriesInstanceUID
        )
        assert uid in error
        assert run("predict", *words, "--series_uid", uid) == 0

    def test_a_patient_with_impossible_fields(self, words, tmp_path, capfd):
        """Names in numbers, a date that is none: blank in the results, named once, quoted nowhere."""
        bad = {"PatientBirthDate": "19.05.SECRET", "PatientSex": "SECRET", "StudyDate": "SECRET",
               "PatientAge": "SECRET",
               "SeriesNumber": "SECRET^NAME", "AccessionNumber": "SECRET" * 9, "PatientSize": "SECRET"}  # fmt: skip
        for path in (tmp_path / "series").iterdir():
            edit(path, **bad)
        assert run("predict", *words, "--measurements") == 0
        shown = capfd.readouterr()
        assert "SECRET" not in shown.out + shown.err
        for name in ("segmentation.dcm", "measurements.dcm"):
            result = pydicom.dcmread(tmp_path / "out" / name)
            assert [str(result[key].value) for key in ("PatientBirthDate", "PatientSex", "StudyDate")] == ["", "", ""]
            assert (result.PatientName, result.PatientID) == ("SECRET^NAME", "SECRET-ID")


def tool(name: str, *words: object) -> str:
    """What an installed program prints; the test is skipped where it is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed; CONTRIBUTING.md says how")
    done = subprocess.run([name, *map(str, words)], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


class TestValidators:
    """Programs that nobody here wrote: dicom3tools, dcmtk, dcmqi, and the strict modes of pydicom."""

    @pytest.mark.parametrize("name", ["binary", "fractional", "binary_sr"])
    def test_dciodvfy_has_nothing_to_say(self, name, written):
        lines = tool("dciodvfy", "-new", written / f"{name}.dcm").strip().splitlines()
        assert lines == ["Comprehensive3DSR" if name.endswith("sr") else "Segmentation"]

    @pytest.mark.parametrize(
        "faults",
        [
            dict.fromkeys(["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
                           "StudyTime", "AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "SliceThickness",
                           "FrameOfReferenceUID"]),
            {"PatientBirthDate": "19.05.1950", "PatientSex": "W", "StudyDate": "yesterday", "PatientAge": "70"},
            {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
            {"LossyImageCompression": "01", "LossyImageCompressionRatio": "10.5",
             "LossyImageCompressionMethod": "ISO_10918_1"},
            {"LossyImageCompression": "01", "LossyImageCompressionRatio": "x"},
            {"Modality": "CT", "RescaleIntercept": "-1024", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"},
            {"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"},
            {"ImageOrientationPatient": ["0.99999", "0.00123456789", "0", "-0.0012345", "0.999999", "0"]},
        ],
        ids=["nothing known", "invalid", "Japanese", "lossy", "lossy, somehow", "CT", "PET", "rounded directions"],
    )  # fmt: skip
    def test_dciodvfy_on_results_of_series_with_faults(self, faults, tmp_path):
        for path in write_series(tmp_path / "series", VALUES, AFFINE):
            edit(path, **faults)
        write_all(tmp_path, tmp_path / "series")
        for name in ("binary", "fractional", "binary_sr"):
            lines = tool("dciodvfy", "-new", tmp_path / f"{name}.dcm").strip().splitlines()
            # what is unknown cannot be there
            lines = [line for line in lines if "value that would be needed to build DICOMDIR" not in line]
            assert lines == ["Comprehensive3DSR" if name.endswith("sr") else "Segmentation"]

    def test_dcentvfy_finds_one_patient_and_study(self, written, source):
        files = [*source.iterdir(), *(written / f"{name}.dcm" for name in ("binary", "fractional", "binary_sr"))]
        lines = tool("dcentvfy", *files).strip().splitlines()
        # it takes the accession number of a report for the study's, and of an image for the series'
        assert [line for line in lines if "Different information entities for attribute" not in line] == []

    @pytest.mark.parametrize("name", ["binary", "labelmap", "fractional", "binary_sr", "labelmap_sr"])
    def test_dcmtk_reads_them(self, name, written):
        content = json.loads(tool("dcm2json", written / f"{name}.dcm"))
        assert content["00080005"]["Value"] == ["ISO_IR 192"]
        assert content["0020000D"]["Value"] == [str(pydicom.dcmread(written / f"{name}.dcm").StudyInstanceUID)]
        if not name.endswith("sr"):
            labels = [item["00620005"]["Value"][0] for item in content["00620002"]["Value"]]
            assert labels[-2:] == ["左心房 anterior", "a/b posterior"]

    @pytest.mark.parametrize("name", ["binary", "labelmap"])
    def test_dcmqi_makes_the_same_masks(self, name, written, tmp_path):
        tool("segimage2itkimage", "--inputDICOM", written / f"{name}.dcm", "--outputDirectory", tmp_path, "-t", "nifti")
        merged = np.zeros_like(LABELS)
        for path in tmp_path.glob("*.nii.gz"):
            image = nib.load(path)
            values = np.asarray(image.dataobj).astype(np.uint8)
            place = np.round(np.linalg.inv(AFFINE) @ image.affine, 4)
            cells = np.argwhere(values)
            cells = np.round((place @ np.c_[cells, np.ones(len(cells))].T)[:3]).astype(int)
            merged[tuple(cells)] = values[values > 0]
        np.testing.assert_array_equal(merged, LABELS)

    def test_dcmqi_reads_the_report(self, written, tmp_path):
        tool("tid1500reader", "--inputDICOM", written / "binary_sr.dcm", "--outputMetadata", tmp_path / "sr.json")
        content = json.loads((tmp_path / "sr.json").read_text())
        found = [item["measurementAlgorithmIdentification"] for item in content["Measurements"]]
        assert found == [{"AlgorithmName": "Modèle", "AlgorithmVersion": "1.2.0"}] * 2

    @pytest.mark.parametrize("name", ["binary", "labelmap", "fractional", "binary_sr", "labelmap_sr"])
    def test_pydicom_finds_every_value_valid(self, name, written, monkeypatch):
        monkeypatch.setattr(pydicom.config.settings, "_reading_validation_mode", pydicom.config.RAISE)
        assert len([*map(str, pydicom.dcmread(written / f"{name}.dcm").iterall())]) > 100

    @pytest.mark.parametrize(
        ("program", "option"), [("dcmcjpeg", "+e1"), ("dcmcjpls", "+el"), ("dcmcrle", None), ("dcmconv", "+ti")]
    )
    def test_dcmtk_packs_and_we_read(self, program, option, tmp_path):
        """JPEG Lossless SV1, JPEG-LS, RLE and implicit VR as another toolkit writes them."""
        files = write_series(tmp_path / "plain", VALUES, AFFINE)
        (tmp_path / "packed").mkdir()
        for path in files:
            tool(program, *([option] if option else []), path, tmp_path / "packed" / path.name)
        found = dicom.read_series(tmp_path / "packed")
        np.testing.assert_array_equal(found.voxels, VALUES)

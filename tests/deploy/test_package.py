"""A package stands on its own, computes what the run computed, and tells nothing about where it was made."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from commands import TINY, fails, run

from monai_ssl.bundle.library import available_bundles, bundles_root, copy_files, opened
from monai_ssl.data import DataError, load_preset
from monai_ssl.deploy import package as packaging


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def metadata(folder: Path) -> dict:
    return json.loads((folder / "configs" / "metadata.json").read_text())


class TestContent:
    def test_weights_are_the_flat_state_of_the_deployed_network(self, trained, packaged):
        state = torch.load(packaged / "models" / "model.pt", weights_only=True)
        former = torch.load(trained / "model.pt", weights_only=True)
        assert list(state) == list(former)
        assert all(torch.equal(state[key], former[key]) for key in former)
        assert not (packaged / "models" / "checkpoint.pt").exists()

    def test_metadata_describe_these_data(self, packaged):
        meta = metadata(packaged)
        jsonschema = pytest.importorskip("jsonschema")
        schema = Path(__file__).parents[1] / "bundles" / "metadata_schema.json"
        jsonschema.validate(meta, json.loads(schema.read_text()))
        preset = load_preset("phantom")
        image, pred = meta["network_data_format"]["inputs"]["image"], meta["network_data_format"]["outputs"]["pred"]
        assert meta["name"] == "Tiny atrium"
        assert image["spatial_shape"] == pred["spatial_shape"] == list(preset.patch_size)
        assert image["channel_def"] == {"0": "LGE-MRI"}
        assert pred["channel_def"] == {"0": "background", "1": "left atrium"}
        assert "median of the training images 2.5 x 2.5 x 2.5 mm" in meta["image_classes"]
        assert 0 < meta["eval_metrics"]["mean_dice_testing"] < 1

    def test_configs_carry_preset_and_settings(self, packaged):
        for name in ("train.yaml", "inference.yaml"):
            text = (packaged / "configs" / name).read_text()
            config = yaml.safe_load(text)
            assert load_preset(config["dataset"]) == load_preset("phantom")
            shipped = (bundles_root() / "dtc" / "configs" / name).read_text().splitlines()[1:]
            comments = [line for line in shipped if line.startswith("#")]
            assert text.splitlines()[0].startswith("# Written by `monai-ssl package`")
            assert [line for line in text.splitlines()[1:] if line.startswith("#")] == comments
            assert config["network_def"]["base_channels"] == 2
        assert config["amp"] == "off"

    def test_model_card_states_scores_with_intervals_use_and_limits(self, trained, packaged):
        card = (packaged / "docs" / "README.md").read_text()
        summary = json.loads((trained / "evaluation-testing" / "summary.json").read_text())["summary"]
        dice = summary["classes"]["left atrium"]["dice"]
        assert f"| left atrium | 2 | 2 | {dice['mean']:.3f} [{dice['ci_low']:.3f}, {dice['ci_high']:.3f}]" in card
        assert "2 training, 2 unlabeled, 1 validation, 2 testing" in card
        for heading in ("## Data", "## Intended use", "## Limits", "## License"):
            assert f"\n{heading}\n" in card

    def test_names_no_case_and_no_folder_of_the_training_machine(self, trained, packaged, scans):
        hidden = [str(folder).encode() for folder in (trained, scans)] + [b"testing_000"]
        for file in packaged.rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                assert not [text for text in hidden if text in content], file
        with open(packaged / "docs" / "results" / "testing" / "per_case.csv", newline="") as file:
            assert [row["case"] for row in csv.DictReader(file)] == ["case-001", "case-002"]


class TestSameResults:
    def test_voxel_for_voxel_by_every_door(self, trained, packaged, scans, tmp_path):
        """Evaluation of the run, `predict` with the package, and MONAI's own command in a new interpreter."""
        assert run("predict", packaged, scans / "images", "--output", tmp_path / "predict", "--device", "cpu") == 0
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml",
                   "--dataset_dir", str(scans / "images"), "--output_dir", str(tmp_path / "bundle")]  # fmt: skip
        subprocess.run(command, cwd=packaged, check=True, capture_output=True)
        for case in ("testing_0000", "testing_0001"):
            validation = voxels(trained / "evaluation-testing" / "predictions" / "images" / f"{case}_seg.nii.gz")
            assert 0.05 < validation.mean() < 0.95
            for folder in ("predict", "bundle"):
                np.testing.assert_array_equal(voxels(tmp_path / folder / f"{case}_seg.nii.gz"), validation)

    def test_onnx_and_torchscript(self, trained, tmp_path):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        assert run("package", trained, "--output", tmp_path / "with_onnx", "--onnx") == 0
        models = tmp_path / "with_onnx" / "models"
        assert {path.name for path in models.iterdir()} == {"model.pt", "model.ts", "model.onnx"}
        card = (tmp_path / "with_onnx" / "docs" / "README.md").read_text()
        differences = re.findall(r"`(model\.\w+)` (\d\.\de[-+]\d+)", card)
        assert [name for name, _ in differences] == ["model.ts", "model.onnx"]
        assert max(float(difference) for _, difference in differences) <= 1e-4
        assert str(Path(torch.__file__).parent).encode() not in (models / "model.onnx").read_bytes()

    def test_an_export_that_computes_something_else_is_refused(self, packaged, tmp_path, monkeypatch):
        folder = Path(shutil.copytree(packaged, tmp_path / "copy"))
        monkeypatch.setattr(packaging, "TOLERANCE", -1.0)
        with pytest.raises(ValueError, match="logits differ"):
            packaging.export(folder)

    # the others, whose networks are among these kinds, with `pytest -m slow`
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[] if name in ("caml", "cct", "mc_net", "self_training") else [pytest.mark.slow])
            for name in available_bundles()
            if name != "dtc"
        ],
    )
    def test_every_bundle(self, name, scans, tmp_path):
        definition = yaml.safe_load((bundles_root() / name / "configs" / "train.yaml").read_text())["network_def"]
        words = TINY if "base_channels" in definition else TINY[:-2]
        if name == "self_training":  # an id in its place would be a folder of label maps
            words = [*words, "--method#unsupervised_weight", "0"]
        assert run("train", name, scans, *words, "--output", tmp_path / "run", "--check", "False") == 0
        assert run("package", tmp_path / "run", "--output", tmp_path / "bundle") == 0
        assert "has not been evaluated" in (tmp_path / "bundle" / "docs" / "README.md").read_text()
        image = scans / "images" / "testing_0000.nii.gz"
        for source, target in ((tmp_path / "run", "a"), (tmp_path / "bundle", "b")):
            assert run("predict", source, image, "--output", tmp_path / target, "--probabilities") == 0
        a, b = (voxels(tmp_path / target / "testing_0000_prob.nii.gz") for target in "ab")
        np.testing.assert_array_equal(a, b)

    def test_trains_on_with_its_own_preset(self, packaged, scans, tmp_path, capsys):
        words = ["--output", tmp_path / "run", "--max_iterations", "2", "--epoch_length", "2", "--num_workers", "0",
                 "--device", "cpu"]  # fmt: skip
        assert run("train", packaged, scans, *words) == 0
        assert "left_atrium_dtc: phantom (practical)" in capsys.readouterr().out
        assert run("package", tmp_path / "run", "--output", tmp_path / "again") == 0


class TestRefusals:
    def test_output_that_is_in_use(self, trained, packaged, capsys):
        assert "is not an empty folder" in fails(capsys, "package", trained, "--output", packaged)

    def test_a_run_without_weights_leaves_nothing(self, trained, tmp_path, capsys):
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
        words = ["package", trained, "--output", tmp_path / "out", "--ckpt", tmp_path / "other.pt"]
        assert "does not fit the network" in fails(capsys, *words)
        assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]

    def test_text_of_a_preset_never_becomes_code(self, trained, tmp_path, capsys):
        """In a bundle's config, a label called `$...` would be evaluated."""
        folder = Path(shutil.copytree(trained, tmp_path / "run"))
        preset = yaml.safe_load((folder / "preset.yaml").read_text())
        preset["labels"]["1"] = f"$open({str(tmp_path / 'touched')!r}, 'w')"
        (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
        assert "are code in a bundle" in fails(capsys, "package", folder, "--output", tmp_path / "out")
        assert not (tmp_path / "touched").exists()
        assert not (tmp_path / "out").exists()


class TestWhatStays:
    """A copy holds what bundles are made of; what a run or a person left beside it may show patients."""

    STRAY = ("models/previews/iteration-000002.png", "models/training.csv", "models/checkpoint.pt", "models/run.json",
             "models/tensorboard/events.out", "notes.txt", "docs/slice.png", "configs/patients.csv", "images/a.nii.gz",
             "docs/results/testing/failures.csv", "eval/a_seg.nii.gz", ".git/config", "models/other.pt")  # fmt: skip
    KEPT = ("LICENSE", "docs/README.md", "configs/train.yaml", "own/network.py", "scripts/losses.py", "models/model.pt")

    @pytest.fixture
    def own(self, tmp_path):
        folder = tmp_path / "own"
        sources = shutil.ignore_patterns("bundle.yaml", "method.md", "*.pt")
        shutil.copytree(bundles_root() / "dtc", folder, ignore=sources)
        for name in (*self.STRAY, "own/network.py", "scripts/losses.py", "models/model.pt"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("SECRET-MRN" if name in self.STRAY else "# code")
        (tmp_path / "secret.py").write_text("SECRET-MRN")
        (folder / "linked.py").symlink_to(tmp_path / "secret.py")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "scan.py").write_text("SECRET-MRN")
        (folder / "folder").symlink_to(tmp_path / "elsewhere")
        return folder

    @pytest.mark.parametrize("weights", [True, False])
    def test_allow_list(self, own, tmp_path, weights, caplog):
        with caplog.at_level("INFO", "monai_ssl.console"):
            copy_files(own, tmp_path / "copy", "A copy.", weights=weights)
        copy = tmp_path / "copy"
        files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
        assert not files & set(self.STRAY)
        assert {name for name in self.KEPT if weights or not name.endswith(".pt")} <= files
        assert weights == ("models/model.pt" in files)
        assert all(b"SECRET" not in (tmp_path / "copy" / name).read_bytes() for name in files)
        assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
        assert "left out of copy, as no part of a bundle: " in caplog.text
        assert "notes.txt" in caplog.text or "more" in caplog.text

    @pytest.mark.parametrize("place", ["inside", "outside"])
    def test_weights_behind_a_link_are_refused(self, own, tmp_path, place):
        """An app would come without weights, and nobody would know."""
        weights = own / "models" / "model.pt"
        other = weights.with_name("other.pt") if place == "inside" else tmp_path / "secret.py"
        weights.unlink()
        weights.symlink_to(other)
        with pytest.raises(DataError, match=r"models/model\.pt must be a file, got a link: put the weights there"):
            copy_files(own, tmp_path / "copy", "A copy.", weights=True)
        assert not (tmp_path / "copy").exists()

    @pytest.mark.parametrize("name", available_bundles())
    def test_nothing_is_missed_in_the_shipped_ones(self, name, tmp_path, caplog):
        with caplog.at_level("INFO", "monai_ssl.console"):
            copy_files(bundles_root() / name, tmp_path / name, "A copy.")
        assert "left out" not in caplog.text

    def test_torchscript_names_no_folder_of_this_machine(self, packaged):
        with zipfile.ZipFile(packaged / "models" / "model.ts") as archive:
            assert not [name for name in archive.namelist() if name.endswith(".debug_pkl")]
            for member in archive.namelist():
                content = archive.read(member)
                for place in (str(Path.home()), str(packaged), str(bundles_root().parent), "site-packages"):
                    assert place.encode() not in content, member


class TestForeignBundles:
    """Bundles of strangers. Their configs are code and trusted by the user; nothing else may be."""

    @pytest.fixture
    def image(self, scans: Path) -> Path:
        return scans / "images" / "testing_0000.nii.gz"

    def test_zip_is_read_like_its_folder(self, packaged, image, tmp_path):
        archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", packaged.parent, packaged.name)
        for source, target in ((archive, "a"), (packaged, "b")):
            assert run("predict", "--bundle", source, "--images", image, "--output", tmp_path / target) == 0
        a, b = (voxels(tmp_path / target / "testing_0000_seg.nii.gz") for target in "ab")
        np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize(
        "member", ["../outside.txt", "b/../../outside.txt", "/outside.txt", "..\\outside.txt", "C:/x"]
    )
    def test_zip_with_paths_that_lead_out(self, member, image, tmp_path, capsys):
        archive = tmp_path / "bad.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("b/configs/metadata.json", "{}")
            file.writestr(member, "out")
        error = fails(capsys, "predict", "--bundle", archive, "--images", image, "--output", tmp_path / "out")
        assert "names a file outside itself" in error
        assert not list(tmp_path.rglob("outside.txt"))

    def test_zip_with_a_link_or_damaged_or_without_bundle(self, tmp_path):
        link = zipfile.ZipInfo("b/models/model.pt")
        link.external_attr = 0o120777 << 16
        for name, message in (
            ("link", "holds a link"),
            ("empty", "must hold one bundle"),
            ("damaged", "no readable zip"),
        ):
            path = tmp_path / f"{name}.zip"
            with zipfile.ZipFile(path, "w") as file:
                if name == "link":
                    file.writestr(link, "/etc/passwd")
            if name == "damaged":
                path.write_bytes(b"PK no zip")
            with pytest.raises(ValueError, match=message), opened(path):
                raise AssertionError("it was opened")

    @pytest.mark.parametrize("kind", ["encrypted", "compression", "deflate", "levels", "twice", "long name", "size"])
    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_zip_that_cannot_be_unpacked(self, tmp_path, kind):
        path = tmp_path / "bad.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("b/configs/metadata.json", "{}" * 500)
            if kind == "levels":
                file.writestr("a/" * 1200 + "x", "deep")
            elif kind == "long name":
                file.writestr("a" * 5000, "long")
            elif kind == "twice":
                file.writestr("b/configs/metadata.json", "[]")
        raw = bytearray(path.read_bytes())
        local, central = raw.index(b"PK\x03\x04"), raw.index(b"PK\x01\x02")
        if kind == "encrypted":
            raw[local + 6] |= 1
            raw[central + 8] |= 1
        elif kind == "compression":
            raw[local + 8] = raw[central + 10] = 77
        elif kind == "deflate":
            start = local + 30 + len("b/configs/metadata.json")
            raw[start : start + 6] = b"\xff" * 6
        elif kind == "size":
            raw[central + 24 : central + 28] = b"\xfe" * 4
        path.write_bytes(bytes(raw))
        with pytest.raises(DataError) as caught, opened(path):
            raise AssertionError("it was opened")
        message = str(caught.value)
        assert message.startswith(f"bundle: {path}")
        assert "\n" not in message
        assert len(message) < len(str(path)) + 300

    def test_pickle_as_weights(self, packaged, image, tmp_path, capsys):
        class Evil:
            def __reduce__(self):
                return open, (str(tmp_path / "touched"), "w")

        folder = Path(shutil.copytree(packaged, tmp_path / "bundle"))
        torch.save({"weight": Evil()}, folder / "models" / "model.pt")
        error = fails(capsys, "predict", folder, image, "--output", tmp_path / "out")
        assert "not a readable file of weights" in error
        assert not (tmp_path / "touched").exists()

    def test_code_in_metadata_does_not_run(self, packaged, image, tmp_path):
        folder = Path(shutil.copytree(packaged, tmp_path / "bundle"))
        meta = metadata(folder)
        evil = f"__import__('pathlib').Path({str(tmp_path / 'touched')!r}).touch()"
        meta |= {"version": f"${evil}", "name": f"${evil}", "description": f"$@bundle_root or {evil}"}
        meta["network_data_format"]["inputs"]["image"]["spatial_shape"] = [evil, f"${evil}", 16]
        (folder / "configs" / "metadata.json").write_text(json.dumps(meta))
        assert run("predict", folder, image, "--output", tmp_path / "out") == 0
        assert (tmp_path / "out" / "testing_0000_seg.nii.gz").is_file()
        assert not (tmp_path / "touched").exists()

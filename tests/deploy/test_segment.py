"""Segmenting a folder: bounded memory, resume, test-time augmentation, uncertainty."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from clinic import fails, run

from monai_ssl.bundle.library import copy_bundle
from monai_ssl.data import images_to_segment, load_preset
from monai_ssl.data.pipelines import postprocessing
from monai_ssl.engines import segment as inference
from monai_ssl.engines.segment import Segmenter, plausible_flips
from monai_ssl.runs.predict import predict_folder


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def images(scans: Path) -> Path:
    return scans / "images"


@pytest.fixture(scope="module")
def segmenter(packaged: Path) -> Segmenter:
    return Segmenter(packaged, {"device": "cpu"})


def at_once(segmenter: Segmenter, image: Path) -> torch.Tensor:
    """Labels as the evaluation gets them: the whole volume of probabilities, inverted, then argmax."""
    item = segmenter.prepare(image)
    with torch.no_grad():
        item["pred"] = segmenter.inferer(item["image"][None], segmenter.network)[0]
    return postprocessing(segmenter.preset, segmenter.preprocessing)(item)["pred"]


class TestOneImage:
    @pytest.mark.parametrize("changes", [{}, {"spacing": [4.0, 6.0, 5.0]}, {"largest_component": True}])
    def test_slab_by_slab_equals_the_whole_volume(self, changes, packaged, images):
        preset = {**yaml.safe_load((packaged / "configs" / "inference.yaml").read_text())["dataset"], **changes}
        segmenter = Segmenter(packaged, {"device": "cpu", "dataset": preset})
        image = images / "testing_0000.nii.gz"
        labels, expected = segmenter(image).labels, at_once(segmenter, image)
        assert 0.02 < labels.float().mean() < 0.98
        np.testing.assert_array_equal(labels.numpy(), expected.numpy())
        np.testing.assert_allclose(labels.affine, nib.load(image).affine, atol=1e-5)

    @pytest.mark.parametrize("resize", [None, [48, 32]])
    def test_slices_of_a_volume(self, resize, images, tmp_path):
        """A 2D network goes through a volume slice by slice."""
        bundle = copy_bundle("supervised", tmp_path / "bundle")
        preset = {"name": "slices", "spatial_dims": 2, "labels": {0: "background", 1: "a", 2: "b"},
                  "patch_size": [32, 32], "resize": resize}  # fmt: skip
        network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 3, "kernel_size": 3, "padding": 1}
        settings = {"device": "cpu", "dataset": preset, "network_def": network}
        torch.manual_seed(0)
        torch.save(torch.nn.Conv2d(1, 3, 3, padding=1).state_dict(), bundle / "models" / "model.pt")
        segmenter, image = Segmenter(bundle, settings), images / "testing_0000.nii.gz"
        labels, expected = segmenter(image).labels, at_once(segmenter, image)
        assert len(labels.unique()) > 1
        np.testing.assert_array_equal(labels.numpy(), expected.numpy())

    def test_probabilities_and_uncertainty(self, segmenter, images):
        found = segmenter(images / "testing_0001.nii.gz", probabilities=True, uncertainty=True)
        p = found.probabilities.double()
        np.testing.assert_array_equal(p.argmax(0).numpy(), found.labels[0].numpy())
        entropy = -(p * p.clamp_min(1e-12).log()).sum(0) / np.log(2)
        np.testing.assert_allclose(found.uncertainty[0].numpy(), entropy.numpy(), atol=1e-5)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("tta", [False, True])
    def test_on_the_gpu(self, packaged, images, tta):
        image = images / "testing_0000.nii.gz"
        found = {}
        for device in ("cpu", "cuda"):
            segmenter = Segmenter(packaged, {"device": device, "amp": "off"}, tta=tta)
            assert next(segmenter.network.parameters()).device.type == device
            found[device] = segmenter(image, probabilities=True, uncertainty=True)
        for name in ("probabilities", "uncertainty"):
            a, b = (getattr(found[device], name) for device in ("cpu", "cuda"))
            np.testing.assert_allclose(b.cpu().numpy(), a.numpy(), atol=5e-3)
        assert (found["cpu"].labels != found["cuda"].labels.cpu()).float().mean() < 0.005

    def test_test_time_augmentation_makes_the_result_equivariant(self, packaged, images, tmp_path):
        """Averaged over mirrored views, a mirrored scan gives the mirrored mask; without, it does not."""
        image = nib.load(images / "testing_0000.nii.gz")
        array = np.asarray(image.dataobj)[:32, :32, :16]  # one window: its mirror image is a window, too
        for name, values in (("a", array), ("b", array[::-1])):
            nib.save(nib.Nifti1Image(values, image.affine), tmp_path / f"{name}.nii.gz")
        gap = {}
        for tta in (False, True):
            segmenter = Segmenter(packaged, {"device": "cpu"}, tta=tta)
            a, b = (segmenter(tmp_path / f"{name}.nii.gz", probabilities=True).probabilities for name in "ab")
            gap[tta] = float((a - b.flip(1)).abs().max())
        assert gap[True] < 1e-5
        assert gap[False] > 1e-3

    def test_flips_are_those_of_the_training(self):
        assert plausible_flips(load_preset("phantom")) == [(0,), (1,), (0, 1)]
        assert plausible_flips(load_preset("left_atrium", "literature")) == [(0,), (1,), (0, 1)]
        with pytest.raises(ValueError, match="tta: the preset hippocampus allows no mirroring"):
            plausible_flips(load_preset("hippocampus"))


class TestFolder:
    def test_resumes_where_it_was_stopped(self, packaged, images, tmp_path, capsys, monkeypatch):
        words = ["predict", packaged, images, "--output", tmp_path, "--uncertainty"]
        infer, calls = Segmenter.infer, []

        def stopped(self, *args, **kwargs):
            calls.append(args)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return infer(self, *args, **kwargs)

        monkeypatch.setattr(Segmenter, "infer", stopped)
        assert run(*words) == 130
        done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*_uncertainty.nii.gz")}
        assert 1 <= len(done) <= 3
        monkeypatch.setattr(Segmenter, "infer", infer)
        capsys.readouterr()
        assert run(*words) == 0
        assert f"({len(done)} were there already)" in capsys.readouterr().out
        assert len(list(tmp_path.glob("*_seg.nii.gz"))) == 7
        assert all(path.stat().st_mtime_ns == time for path, time in done.items())

    def test_results_of_another_model_are_not_mixed(self, trained, packaged, images, tmp_path, capsys):
        image = images / "testing_0000.nii.gz"
        assert run("predict", packaged, image, "--output", tmp_path / "out") == 0
        assert run("predict", packaged, image, "--output", tmp_path / "out") == 0
        state = torch.load(trained / "model.pt", weights_only=True)
        torch.save({key: value * 1.5 for key, value in state.items()}, tmp_path / "other.pt")
        words = ["predict", packaged, image, "--output", tmp_path / "out", "--ckpt", tmp_path / "other.pt"]
        assert "segmentations of another model" in fails(capsys, *words)
        before = json.loads((tmp_path / "out" / "predict.json").read_text())
        assert run(*words, "--overwrite") == 0
        assert json.loads((tmp_path / "out" / "predict.json").read_text()) != before

    def test_a_bad_image_does_not_stop_the_others(self, packaged, images, tmp_path, capsys):
        shutil.copytree(images, tmp_path / "in")
        (tmp_path / "in" / "testing_0000.nii.gz").write_bytes(b"no image")
        image = nib.load(images / "testing_0001.nii.gz")
        series = np.stack([np.asarray(image.dataobj)] * 3, axis=-1)
        nib.save(nib.Nifti1Image(series, image.affine), tmp_path / "in" / "four_axes.nii.gz")
        error = fails(capsys, "predict", packaged, tmp_path / "in", "--output", tmp_path / "out", "--jobs", "3")
        assert error.startswith("2 of 8 images could not be segmented: ")
        assert "four_axes.nii.gz: image must have 1 channel(s)" in error
        assert "testing_0000.nii.gz: " in error
        assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 6

    def test_few_images_are_under_way_at_one_time(self, segmenter, images, tmp_path, monkeypatch):
        """With a budget below one image, the next is read only when the last is written."""
        under_way, most = 0, 0
        prepare, finish = Segmenter.prepare, Segmenter.finish

        def counted(self, image):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            return prepare(self, image)

        def finished(self, *args):
            nonlocal under_way
            result = finish(self, *args)
            under_way -= 1
            return result

        monkeypatch.setattr(Segmenter, "prepare", counted)
        monkeypatch.setattr(Segmenter, "finish", finished)
        entries = images_to_segment(images)
        assert predict_folder(segmenter, entries, tmp_path / "a", images, jobs=3, memory_gb=1e-6) == (7, 0)
        assert most == 1
        assert predict_folder(segmenter, entries, tmp_path / "b", images, jobs=3) == (7, 0)
        assert most > 1
        for path in (tmp_path / "a").glob("*_seg.nii.gz"):
            np.testing.assert_array_equal(voxels(path), voxels(tmp_path / "b" / path.name))

    def test_an_edited_workflow_is_run_as_it_stands(self, packaged, images, tmp_path, capsys):
        folder = Path(shutil.copytree(packaged, tmp_path / "bundle"))
        config = yaml.safe_load((folder / "configs" / "inference.yaml").read_text())
        config["postprocessing"] = config["postprocessing"].replace("@output_dir", "@output_dir + '/mine'")
        (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(config))
        words = ["predict", folder, images / "testing_0000.nii.gz", "--output", tmp_path / "out"]
        assert run(*words) == 0
        assert (tmp_path / "out" / "mine" / "testing_0000_seg.nii.gz").is_file()
        assert "need the inference.yaml of a shipped bundle" in fails(capsys, *words, "--tta")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "give either RUN or --bundle DIR"),
            (["{bundle}"], "give either IMAGES or --dicom SERIES_DIR"),
            (["{bundle}", "{images}", "--measurements"], "--measurements goes with --dicom"),
            (["{bundle}", "{images}", "--jobs", "0"], "jobs: must be >= 1, got 0"),
            (["--bundle", "{images}", "--images", "{images}"], "holds no run.json"),
        ],
    )
    def test_mistakes_are_one_line(self, words, message, packaged, images, tmp_path, capsys):
        words = [word.format(bundle=packaged, images=images) for word in words]
        assert message in fails(capsys, "predict", *words, "--output", tmp_path / "out")


def test_memory_is_estimated_from_the_header(images):
    entry = {"image": str(images / "testing_0000.nii.gz")}
    assert inference._memory(entry) == nib.load(entry["image"]).get_fdata().size * 4 * inference.COPIES
    assert inference._memory({"image": "/does/not/exist.nii.gz"}) == 0

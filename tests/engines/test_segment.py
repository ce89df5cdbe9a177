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
from commands import fails, run
from monai.transforms import AsDiscreted, Compose, CopyItemsd, EnsureTyped, Invertd, KeepLargestConnectedComponentd

from monai_ssl.bundle.library import copy_bundle
from monai_ssl.data import load_preset, plausible_flips
from monai_ssl.engines import VolumeSegmenter
from monai_ssl.engines import segment as inference
from monai_ssl.runs.predict import open_segmenter, segment_folder


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def images(scans: Path) -> Path:
    return scans / "images"


@pytest.fixture(scope="module")
def segmenter(packaged: Path) -> VolumeSegmenter:
    return open_segmenter(packaged, {"device": "cpu"})


def at_once(segmenter: VolumeSegmenter, image: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and probabilities with MONAI's own transforms: the whole volume, inverted, then argmax."""
    item = segmenter.prepare(image)
    with torch.no_grad():
        item["pred"] = segmenter.inferer(item["image"][None], segmenter.network)[0]
    steps: list = [
        EnsureTyped("pred", track_meta=True),
        Invertd("pred", segmenter.preprocessing, orig_keys="image", nearest_interp=False),
        CopyItemsd("pred", names=["prob"]),
        AsDiscreted("pred", argmax=True),
    ]
    if segmenter.preset.largest_component:
        steps.append(KeepLargestConnectedComponentd("pred", applied_labels=[1], independent=True))
    done = Compose(steps)(item)
    return done["pred"], done["prob"]


class TestOneImage:
    @pytest.mark.parametrize("changes", [{}, {"spacing": [4.0, 6.0, 5.0]}, {"largest_component": True}])
    def test_slab_by_slab_equals_the_whole_volume(self, changes, packaged, images):
        preset = {**yaml.safe_load((packaged / "configs" / "inference.yaml").read_text())["dataset"], **changes}
        segmenter = open_segmenter(packaged, {"device": "cpu", "dataset": preset})
        image = images / "testing_0000.nii.gz"
        labels, (expected, probabilities) = segmenter(image).labels, at_once(segmenter, image)
        assert 0.02 < labels.float().mean() < 0.98
        np.testing.assert_array_equal(labels.numpy(), expected.numpy())
        np.testing.assert_allclose(labels.affine, nib.load(image).affine, atol=1e-5)
        found = segmenter(image, probabilities=True)
        np.testing.assert_array_equal(found.labels.numpy(), expected.numpy())
        np.testing.assert_array_equal(found.probabilities.numpy(), probabilities.numpy())

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
        segmenter, image = open_segmenter(bundle, settings), images / "testing_0000.nii.gz"
        labels, (expected, _) = segmenter(image).labels, at_once(segmenter, image)
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
            segmenter = open_segmenter(packaged, {"device": device, "amp": "off", "tta": tta})
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
            segmenter = open_segmenter(packaged, {"device": "cpu", "tta": tta})
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
        infer, calls = VolumeSegmenter.infer, []

        def stopped(self, *args, **kwargs):
            calls.append(args)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return infer(self, *args, **kwargs)

        monkeypatch.setattr(VolumeSegmenter, "infer", stopped)
        assert run(*words) == 130
        done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*_uncertainty.nii.gz")}
        assert 1 <= len(done) <= 3
        monkeypatch.setattr(VolumeSegmenter, "infer", infer)
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

    def test_few_images_are_under_way_at_one_time(self, packaged, images, tmp_path, monkeypatch):
        """With a budget below one image, the next is read only when the last is written."""
        under_way, most = 0, 0
        prepare, finish = VolumeSegmenter.prepare, VolumeSegmenter._postprocess

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

        monkeypatch.setattr(VolumeSegmenter, "prepare", counted)
        monkeypatch.setattr(VolumeSegmenter, "_postprocess", finished)
        settings = {"device": "cpu", "dataset_dir": str(images), "jobs": 3}
        tight = {**settings, "output_dir": str(tmp_path / "a"), "memory_gb": 1e-6}
        assert segment_folder(packaged, tight)[:2] == (7, 0)
        assert most == 1
        assert segment_folder(packaged, {**settings, "output_dir": str(tmp_path / "b")})[:2] == (7, 0)
        assert most > 1
        for path in (tmp_path / "a").glob("*_seg.nii.gz"):
            np.testing.assert_array_equal(voxels(path), voxels(tmp_path / "b" / path.name))

    def test_results_below_the_images_are_not_segmented_again(self, packaged, images, tmp_path, capsys):
        folder = Path(shutil.copytree(images, tmp_path / "in"))
        words = ["predict", packaged, folder, "--output", folder / "out"]
        assert run(*words, "--uncertainty") == 0
        files = sorted(folder.rglob("*"))
        capsys.readouterr()
        assert run(*words) == 0
        assert "0 segmentations" in capsys.readouterr().out
        assert sorted(folder.rglob("*")) == files

    def test_two_images_with_one_name_are_refused_before_the_work(self, packaged, images, tmp_path, capsys):
        shutil.copy(images / "testing_0000.nii.gz", tmp_path / "a.nii.gz")
        nib.save(nib.load(images / "testing_0000.nii.gz"), tmp_path / "a.nii")
        error = fails(capsys, "predict", packaged, tmp_path, "--output", tmp_path / "out")
        assert "a.nii and" in error
        assert "a.nii.gz would both be written to" in error
        assert not list((tmp_path / "out").rglob("*.nii.gz"))


class TestEditedBundle:
    """The engine runs whatever the config names, with resume, views and maps."""

    @pytest.fixture
    def edited(self, packaged: Path, tmp_path: Path):
        folder = Path(shutil.copytree(packaged, tmp_path / "bundle"))
        path = folder / "configs" / "inference.yaml"

        def edit(**changes):
            path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
            return folder

        return edit

    def test_postprocessing_with_a_folder_of_its_own(self, edited, packaged, images, tmp_path, capsys):
        config = yaml.safe_load((packaged / "configs" / "inference.yaml").read_text())
        folder = edited(postprocessing=config["postprocessing"].replace("@output_dir", "@output_dir + '/mine'"))
        words = ["predict", folder, images / "testing_0000.nii.gz", "--output", tmp_path / "out", "--uncertainty"]
        assert run(*words, "--tta") == 0
        assert (tmp_path / "out" / "mine" / "testing_0000_seg.nii.gz").is_file()
        assert (tmp_path / "out" / "testing_0000_uncertainty.nii.gz").is_file()
        capsys.readouterr()
        assert run(*words, "--tta") == 0
        assert "(1 were there already)" in capsys.readouterr().out
        assert "segmentations of another model or other settings" in fails(capsys, *words)

    def test_transforms_of_monai(self, edited, packaged, images, tmp_path):
        """Stock pre- and postprocessing, and an inferer that gives logits and knows neither slabs nor flips."""
        preset = load_preset("phantom")
        save = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg",
                "resample": False, "separate_folder": False, "output_dtype": "uint8", "print_log": False}  # fmt: skip
        invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
                  "nearest_interp": False}  # fmt: skip
        folder = edited(
            inferer={"_target_": "SlidingWindowInferer", "roi_size": list(preset.patch_size), "mode": "gaussian"},
            postprocessing={
                "_target_": "Compose",
                "transforms": [invert, {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}, save],
            },
        )
        image = images / "testing_0000.nii.gz"
        words = ["predict", folder, image, "--device", "cpu", "--output"]
        assert run(*words, tmp_path / "plain") == 0
        plain = voxels(tmp_path / "plain" / "testing_0000_seg.nii.gz")
        assert 0.05 < plain.mean() < 0.95
        labels, _ = at_once(open_segmenter(folder, {"device": "cpu"}), image)
        np.testing.assert_array_equal(plain, labels[0].numpy())
        assert run(*words, tmp_path / "tta", "--tta", "--uncertainty") == 0
        assert (voxels(tmp_path / "tta" / "testing_0000_seg.nii.gz") != plain).mean() > 0.01
        u = voxels(tmp_path / "tta" / "testing_0000_uncertainty.nii.gz")
        assert 0 <= u.min() < u.mean() < u.max() <= 1
        assert (tmp_path / "tta" / "predict.json").is_file()

    def test_a_step_that_reads_the_image_gets_it(self, edited, images, tmp_path):
        step = "$monai.transforms.Lambdad(['pred', 'image'], lambda x: x + 0)"
        steps = ["$monai_ssl.transforms.LabelsOnImageGridd(@preprocessing)", step]
        folder = edited(postprocessing={"_target_": "Compose", "transforms": steps})
        segmenter = open_segmenter(folder, {"device": "cpu"})
        item = segmenter.infer(segmenter.prepare(images / "testing_0000.nii.gz"))
        assert item["image"].numel() > 1
        assert open_segmenter(edited(postprocessing={"_target_": "Compose", "transforms": steps[:1]})).infer(
            segmenter.prepare(images / "testing_0000.nii.gz")
        )["image"].numel() == 1  # fmt: skip

    def test_an_evaluator_of_your_own(self, edited, images, tmp_path, capsys):
        loader = "$monai.data.DataLoader(monai.data.Dataset(@dataset_images, @preprocessing), batch_size=1)"
        evaluator = {"_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": loader,
                     "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing"}  # fmt: skip
        folder = edited(evaluator=evaluator)
        words = ["predict", folder, images / "testing_0000.nii.gz", "--output", tmp_path / "out", "--device", "cpu"]
        assert run(*words) == 0
        assert (tmp_path / "out" / "testing_0000_seg.nii.gz").is_file()
        with pytest.raises(ValueError, match=r"must be a monai_ssl\.engines\.VolumeSegmenter"):
            open_segmenter(folder)


def test_images_may_follow_the_bundle_as_one_types_it(packaged, images, tmp_path):
    scan = images / "testing_0000.nii.gz"
    assert run("predict", "--bundle", packaged, scan, "--output", tmp_path / "typed", "--device", "cpu") == 0
    assert (
        run("predict", "--bundle", packaged, "--images", scan, "--output", tmp_path / "named", "--device", "cpu") == 0
    )
    first, second = ((tmp_path / name / "testing_0000_seg.nii.gz").read_bytes() for name in ("typed", "named"))
    assert first == second


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "give either RUN or --bundle DIR"),
            (["{bundle}"], "give either IMAGES or --dicom SERIES_DIR"),
            (["{bundle}", "{images}", "--measurements"], "--measurements goes with --dicom"),
            (["{bundle}", "{images}", "--jobs", "0"], "--jobs: must be an integer >= 1, got 0"),
            (["--bundle", "{images}", "--images", "{images}"], "holds no run.json"),
            (["{bundle}", "{images}", "--bundle", "{bundle}"], "give either RUN or --bundle DIR"),
        ],
    )
    def test_are_one_line(self, words, message, packaged, images, tmp_path, capsys):
        words = [word.format(bundle=packaged, images=images) for word in words]
        assert message in fails(capsys, "predict", *words, "--output", tmp_path / "out")


def test_fingerprint_changes_with_what_decides_the_result_and_with_nothing_else(packaged, images, tmp_path):
    def fingerprint(**settings):
        return open_segmenter(packaged, {"device": "cpu", **settings}).fingerprint()

    first = fingerprint()
    assert fingerprint(output_dir=str(tmp_path), jobs=5, dataset_dir=str(images), probabilities=False) == first
    preset = yaml.safe_load((packaged / "configs" / "inference.yaml").read_text())["dataset"]
    state = torch.load(packaged / "models" / "model.pt", weights_only=True)
    next(iter(state.values())).view(-1)[0] += 1e-3
    torch.save(state, tmp_path / "other.pt")
    others = [
        fingerprint(**{"inferer#overlap": 0.3}),
        fingerprint(amp="bf16"),
        fingerprint(tta=True),
        fingerprint(dataset={**preset, "spacing": [4.0, 6.0, 5.0]}),
        fingerprint(dataset={**preset, "largest_component": True}),
        fingerprint(ckpt=str(tmp_path / "other.pt")),
    ]
    assert all(other != first for other in others)
    assert len({str(other) for other in others}) == len(others)


def test_memory_is_estimated_from_the_header(packaged, images):
    entry = {"image": str(images / "testing_0000.nii.gz")}
    voxel_bytes = nib.load(entry["image"]).get_fdata().size * 4
    segmenter = open_segmenter(packaged)
    assert segmenter._memory(entry) == voxel_bytes * inference.COPIES
    assert segmenter._memory({"image": "/does/not/exist.nii.gz"}) == 0
    with_maps = open_segmenter(packaged, {"probabilities": True})
    assert with_maps._memory(entry) == voxel_bytes * (inference.COPIES + 2 * 2)

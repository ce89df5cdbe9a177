"""Several runs segment, are scored and are packaged as one: the mean of their class probabilities."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from commands import TINY, balance, fails, run

import monai_ssl
from monai_ssl.bundle.library import bundles_root
from monai_ssl.deploy.disagreement import DisagreementScorer
from monai_ssl.reports import report_run
from monai_ssl.reports.run import ROLE_NAMES, role_beside
from monai_ssl.runs.ensemble import Members, is_ensemble


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def runs(scans, tmp_path_factory):
    """Runs of two bundles whose networks draw something: dtc with seeds 0 and 1, supervised."""
    folder = tmp_path_factory.mktemp("members")
    image = scans / "images" / "testing_0000.nii.gz"
    found = []
    for bundle, seed in (("dtc", 0), ("dtc", 1), ("supervised", 0)):
        target = folder / f"{bundle}-seed{seed}"
        assert run("train", bundle, scans, *TINY, "--seed", seed, "--output", target, "--check", "False") == 0
        settings = {"dataset": "phantom", "network_def#base_channels": 2}
        balance(bundles_root() / bundle, target / "model.pt", image, settings)
        found.append(target)
    return found


@pytest.fixture(scope="module")
def evaluated(runs):
    return monai_ssl.evaluate(runs, device="cpu")


@pytest.fixture(scope="module")
def bundle(runs, evaluated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages") / "atrium_ensemble"
    assert run("package", *runs, folder) == 0
    return folder


class TestPredict:
    def test_the_mean_of_the_members_with_views_and_uncertainty(self, runs, scans, tmp_path):
        image = scans / "images" / "testing_0001.nii.gz"
        options = ["--device", "cpu", "--amp", "off", "--probabilities", "--uncertainty"]
        for tta in ("False", "True"):
            folder = tmp_path / tta
            assert run("predict", *runs, image, "--output", folder / "all", "--tta", tta, *options) == 0
            for number, member in enumerate(runs):
                assert run("predict", member, image, "--output", folder / str(number), "--tta", tta, *options) == 0
            name = "testing_0001_prob.nii.gz"
            mean = np.mean([voxels(folder / str(number) / name) for number in range(3)], axis=0)
            found = voxels(folder / "all" / name)
            np.testing.assert_allclose(found, mean, atol=1e-5)
            assert 0.05 < (voxels(folder / "all" / "testing_0001_seg.nii.gz") == 1).mean() < 0.95
            entropy = -(mean * np.log(mean)).sum(-1) / np.log(2)
            np.testing.assert_allclose(voxels(folder / "all" / "testing_0001_uncertainty.nii.gz"), entropy, atol=1e-3)

    def test_goes_on_and_notices_other_members(self, runs, scans, tmp_path, capsys):
        image = scans / "images" / "testing_0000.nii.gz"
        assert monai_ssl.predict(runs[:2], image, tmp_path / "out", device="cpu").written == 1
        assert monai_ssl.predict(runs[:2], image, tmp_path / "out", device="cpu").reused == 1
        assert "another model" in fails(capsys, "predict", *runs, image, "--output", tmp_path / "out")

    def test_dicom(self, runs, bundle, tmp_path):
        pytest.importorskip("pydicom")
        pytest.importorskip("highdicom")
        from clinic import volume_of, write_series

        write_series(tmp_path / "series", *volume_of((40, 36, 20)))
        for number, source in enumerate((runs, bundle)):
            written = monai_ssl.predict(source, dicom=tmp_path / "series", output=tmp_path / str(number), device="cpu")
            assert any(path.name == "segmentation.dcm" for path in written.files)
        np.testing.assert_array_equal(*(voxels(tmp_path / n / "segmentation.nii.gz") for n in "01"))


class TestMembersMustAgree:
    def test_a_difference_is_named(self, runs, tmp_path, capsys, scans):
        other = Path(shutil.copytree(runs[1], tmp_path / "other"))
        preset = yaml.safe_load((other / "preset.yaml").read_text())
        for change, words in (
            ({"labels": {0: "background", 1: "liver"}}, 'labels#1 is "left atrium" in'),
            ({"patch_size": [16, 16, 16]}, "patch_size is [32, 32, 16] in"),
            ({"spacing": [2.0, 2.0, 2.0]}, "spacing is null in"),
        ):
            (other / "preset.yaml").write_text(yaml.safe_dump({**preset, **change}))
            message = fails(capsys, "predict", runs[0], other, scans / "images", "--output", tmp_path / "out")
            assert words in message
            assert str(runs[0]) in message
            assert str(other) in message
            assert not (tmp_path / "out").exists()

    def test_settings_of_the_windows_count(self, runs, tmp_path):
        other = Path(shutil.copytree(runs[1], tmp_path / "other"))
        record = json.loads((other / "run.json").read_text())
        record["overrides"]["inferer#mode"] = "constant"
        (other / "run.json").write_text(json.dumps(record))
        with pytest.raises(monai_ssl.DataError, match="inferer#mode is"):
            Members.of([runs[0], other])

    def test_other_mistakes(self, runs, packaged, scans, tmp_path, capsys):
        assert "may be a member once" in fails(capsys, "evaluate", runs[0], runs[0])
        assert "--ckpt goes with one run" in fails(capsys, "evaluate", *runs, "--ckpt", runs[0] / "model.pt")
        assert "every member" in fails(capsys, "evaluate", *runs, "--network_def#base_channels", "2")
        with pytest.raises(monai_ssl.DataError, match="packaged bundle"):
            monai_ssl.predict([runs[0], packaged], scans / "images", tmp_path / "out")
        with pytest.raises(monai_ssl.DataError, match=r"holds no run.json|is no folder"):
            monai_ssl.evaluate([runs[0], tmp_path])
        with pytest.raises(ValueError, match="one run by itself"):
            monai_ssl.evaluate([runs[0]])


class TestEvaluate:
    def test_results_in_a_folder_of_their_own(self, runs, evaluated):
        assert (
            evaluated.folder == runs[0].parent / "ensemble-dtc-seed0+dtc-seed1+supervised-seed0" / "evaluation-testing"
        )
        meta = evaluated.results.meta
        assert meta["ensemble"]["members"] == [str(path) for path in runs]
        assert meta["ckpt"] is None
        assert meta["training"]["bundle"] == "dtc + supervised"
        assert [facts["seed"] for facts in meta["training"]["members"]] == [0, 1, 0]
        assert not (runs[0] / "evaluation-testing").exists()
        assert set(evaluated.dice) == {"testing_0000", "testing_0001"}

    def test_segments_as_predict_does(self, runs, evaluated, scans, tmp_path):
        monai_ssl.predict(runs, scans / "images" / "testing_0000.nii.gz", tmp_path / "out", device="cpu")
        scored = next(evaluated.folder.rglob("testing_0000_seg.nii.gz"))
        np.testing.assert_array_equal(voxels(scored), voxels(tmp_path / "out" / "testing_0000_seg.nii.gz"))

    def test_floors_are_found_among_ensembles_as_among_runs(self, runs, scans, tmp_path):
        matched = []
        for seed in (0, 1):
            words = ["--seed", seed, "--method#unsupervised_weight", "0", "--output", tmp_path / f"matched{seed}"]
            assert run("train", "dtc", scans, *TINY, *words, "--check", "False") == 0
            matched.append(tmp_path / f"matched{seed}")
        method = monai_ssl.evaluate(runs[:2], output=tmp_path / "method", device="cpu")
        floor = monai_ssl.evaluate(matched, output=tmp_path / "floor", against=method.folder, device="cpu")
        one, two = (report_run(found.folder).training for found in (method, floor))
        assert (one.members, one.settings["seed"]) == (2, "0, 1")
        assert ROLE_NAMES[role_beside(one, two)] == "matched floor"
        page = monai_ssl.report(tmp_path / "page.html", method, matched_floor=floor).read_text()
        assert "dtc, 2 networks" in page
        assert "matched floor" in page

    def test_members_that_learned_from_the_scored_cases_are_refused(self, runs, scans, tmp_path, capsys):
        other = Path(shutil.copytree(runs[1], tmp_path / "other"))
        lists = json.loads((scans / "datalist.json").read_text())
        lists["training"], lists["validation"] = lists["validation"], lists["training"]
        (tmp_path / "datalist-fold2.json").write_text(json.dumps(lists))
        record = json.loads((other / "run.json").read_text())
        record["datalist"] = str(tmp_path / "datalist-fold2.json")
        (other / "run.json").write_text(json.dumps(record))
        message = fails(capsys, "evaluate", runs[0], other, "--section", "validation")
        assert "1 of the 1 cases of validation were among the training cases" in message
        assert "validation_0000" in message
        assert run("evaluate", runs[0], other, "--output", tmp_path / "scores", "--device", "cpu") == 0

        # another scan of a patient from whom a member has learned
        lists = json.loads((scans / "datalist.json").read_text())
        lists["testing"] = [{**entry, "patient": "1"} for entry in lists["testing"]]
        (tmp_path / "whose.json").write_text(json.dumps(lists))
        lists["training"], lists["testing"] = lists["testing"][1:], []
        (tmp_path / "datalist-fold2.json").write_text(json.dumps(lists))
        message = fails(
            capsys, "evaluate", runs[0], other, "--datalist", tmp_path / "whose.json", "--dataset_dir", scans
        )
        assert "2 of the 2 cases of testing (or other scans of their patients) were among the training cases" in message


class TestPackage:
    def test_weights_of_all_members(self, runs, bundle):
        state = torch.load(bundle / "models" / "model.pt", weights_only=True)
        for number, member in enumerate(runs):
            for name, value in torch.load(member / "model.pt", weights_only=True).items():
                assert torch.equal(state[f"members.{number}.{name}"], value)

    def test_monai_runs_it_by_itself(self, evaluated, bundle, scans, tmp_path):
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml",
                   "--dataset_dir", str(scans / "images"), "--output_dir", str(tmp_path / "bundle")]  # fmt: skip
        subprocess.run(command, cwd=bundle, check=True, capture_output=True)
        for case in ("testing_0000", "testing_0001"):
            scored = next(evaluated.folder.rglob(f"{case}_seg.nii.gz"))
            np.testing.assert_array_equal(voxels(tmp_path / "bundle" / f"{case}_seg.nii.gz"), voxels(scored))

    def test_its_evaluation_scores_the_ensemble(self, evaluated, bundle, scans, tmp_path):
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file",
                   "['configs/train.yaml','configs/evaluate.yaml']", "--dataset_dir", str(scans),
                   "--output_dir", str(tmp_path / "scores"), "--bundle_root", "."]  # fmt: skip
        subprocess.run(command, cwd=bundle, check=True, capture_output=True)
        tables = []
        for folder in (evaluated.folder, tmp_path / "scores"):
            with open(folder / "per_case.csv", newline="") as file:
                tables.append([(row["case"], row["dice"]) for row in csv.DictReader(file)])
        assert tables[0] == tables[1]

    def test_declared_in_card_and_metadata(self, runs, bundle):
        card = (bundle / "docs" / "README.md").read_text()
        assert "**An ensemble**: 3 networks" in card
        assert "| 3 | supervised | 0 | 4 of 4 |" in card
        assert "| left atrium | 2 |" in card  # the ensemble's own scores
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        assert "mean of the class probabilities of 3 networks (dtc and supervised)" in metadata["description"]
        jsonschema = pytest.importorskip("jsonschema")
        schema = Path(__file__).parents[1] / "bundles" / "metadata_schema.json"
        jsonschema.validate(metadata, json.loads(schema.read_text()))
        assert is_ensemble(bundle)
        assert not is_ensemble(bundles_root() / "dtc")
        for file in bundle.rglob("*"):
            if file.is_file():
                assert str(runs[0].parent).encode() not in file.read_bytes(), file

    def test_scores_of_other_members_stay_out(self, runs, evaluated, tmp_path):
        members = Members.of(runs[:2])
        shutil.copytree(evaluated.folder, members.folder / "evaluation-testing")
        try:
            folder = monai_ssl.package(runs[:2], tmp_path / "two")
        finally:
            shutil.rmtree(members.folder)
        assert "has not been evaluated" in (folder / "docs" / "README.md").read_text()

    def test_trains_one_network_on(self, bundle, scans, tmp_path):
        words = ["--max_iterations", "2", "--epoch_length", "2", "--num_workers", "0", "--device", "cpu"]
        assert run("train", bundle, scans, *words, "--output", tmp_path / "run", "--check", "False") == 0

    def test_its_members_disagree(self, bundle, scans):
        scorer = DisagreementScorer(bundle, device="cpu")
        assert 0 < scorer(scans / "images" / "testing_0000.nii.gz") < 1


class TestNames:
    def test_folder(self, tmp_path):
        def named(*names: str) -> str:
            class Somewhere:
                def __init__(self, name: str) -> None:
                    self.folder = tmp_path / name

            return str(Members(tuple(map(Somewhere, names))).folder.relative_to(tmp_path))

        assert named("dtc-a-seed0", "dtc-a-seed10") == "ensemble-dtc-a-seed0+seed10"
        assert named("fold1/dtc", "fold2/dtc") == "ensemble-fold1+fold2-dtc"
        assert named("dtc-a-fold1-seed0", "dtc-a-fold2-seed0") == "ensemble-dtc-a-fold1+fold2-seed0"
        long = [f"dtc-{'x' * 30}-{number}" + "y" * 20 for number in range(5)]
        assert len(named(*long)) < 110
        assert named(*long) != named(*long[:-1], "dtc-other")

"""What MONAI Label gets of us, without its server: the app's folder, and the score that ranks unlabeled scans."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from commands import fails, run
from torch import nn

from monai_ssl.data import load_preset
from monai_ssl.deploy.disagreement import DisagreementScorer, disagreement
from monai_ssl.engines import WindowInferer
from monai_ssl.methods import DualTaskConsistency, Supervised
from monai_ssl.networks import DualTaskVNet


class Opinions(Supervised):
    """First opinion: the image itself. Second: the image shifted by a few voxels."""

    def __init__(self, shift: int) -> None:
        super().__init__(nn.Identity())
        self.shift = shift

    def second_opinion(self, image: torch.Tensor) -> torch.Tensor:
        return image.softmax(1).roll(self.shift, dims=2)


class TestDisagreement:
    def image(self, side: int) -> torch.Tensor:
        """Logits of a square of ``side`` voxels, nearly certain."""
        inside = torch.full((48, 48), -20.0)
        inside[16 : 16 + side, 20:30] = 20.0
        return torch.stack([-inside, inside])

    @pytest.mark.parametrize("shift", [0, 1, 4])
    def test_is_one_minus_the_dice_of_both_opinions(self, shift):
        inferer = WindowInferer((48, 48), amp="off")
        score = disagreement(Opinions(shift), self.image(8), inferer)
        # squares of 8 rows that overlap in 8 - shift rows, and one voxel of smoothing
        assert score == pytest.approx(1 - (2 * (8 - shift) * 10 + 1) / (160 + 1), abs=1e-4)

    def test_windows_are_stitched(self):
        method = DualTaskConsistency(DualTaskVNet(spatial_dims=2, base_channels=2)).eval()
        image = torch.rand(1, 40, 50)
        inferer = WindowInferer((16, 16), overlap=0.5, amp="off")
        with torch.no_grad():
            p = inferer(image[None], method.network)[0, 1].double()
            q = inferer(image[None], lambda x: method.second_opinion(x).log())[0, 1].double()
        expected = 1 - (2 * (p * q).sum() + 1) / ((p * p).sum() + (q * q).sum() + 1)
        assert disagreement(method, image, inferer) == pytest.approx(float(expected), abs=1e-5)

    def test_dual_task_opinion_is_the_mask_of_the_distance(self):
        method = DualTaskConsistency(DualTaskVNet(spatial_dims=2, n_classes=3, base_channels=2)).eval()
        image = torch.rand(2, 1, 16, 16)
        opinion = method.second_opinion(image)
        _, distance = method.network.tasks(image)
        assert opinion.shape == (2, 3, 16, 16)
        torch.testing.assert_close(opinion.sum(1), torch.ones(2, 16, 16))
        inside = distance.amin(1) < -0.02  # negative inside some class
        assert (opinion[:, 1:].amax(1)[inside] > opinion[:, 0][inside]).all()
        assert (opinion[:, 0][(distance > 0.02).all(1)] > 0.99).all()

    def test_methods_without_one_are_ranked_by_entropy(self):
        inferer = WindowInferer((48, 48), amp="off")
        certain, uncertain = (disagreement(Supervised(nn.Identity()), self.image(8) * f, inferer) for f in (1, 0.02))
        assert 0 <= certain < 1e-3 < uncertain

    def test_scorer_reads_package_or_checkpoint(self, packaged, trained, scans):
        image = scans / "images" / "testing_0000.nii.gz"
        by_package = DisagreementScorer(packaged, device="cpu")(image)
        scorer = DisagreementScorer(packaged, trained / "checkpoint.pt", device="cpu")
        assert scorer.method.iteration == 4  # the whole method, not the network alone
        assert 0 < by_package <= 1
        assert 0 < scorer(image) <= 1
        with pytest.raises(ValueError, match="does not fit the method"):
            DisagreementScorer(packaged, trained / "model.pt")


class TestApp:
    def test_holds_bundles_with_the_preset_and_packages_with_their_weights(self, packaged, tmp_path, capsys):
        words = ["--bundles", f"dtc,{packaged}", "--dataset", "phantom", "--labeled_batch_size", "1"]
        assert run("label-app", "--output", tmp_path / "app", *words) == 0
        assert f"monailabel start_server --app {tmp_path / 'app'}" in capsys.readouterr().out
        assert "SemiSupervisedApp" in (tmp_path / "app" / "main.py").read_text()
        model = tmp_path / "app" / "model"
        assert sorted(path.name for path in model.iterdir()) == ["dtc", packaged.name]
        assert not list((model / "dtc").rglob("*.pt"))
        assert (model / packaged.name / "models" / "model.pt").is_file()
        for folder in model.iterdir():
            config = yaml.safe_load((folder / "configs" / "train.yaml").read_text())
            assert load_preset(config["dataset"]) == load_preset("phantom", "practical")
            assert config["labeled_batch_size"] == 1
            meta = json.loads((folder / "configs" / "metadata.json").read_text())
            assert meta["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "left atrium"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--bundles", "dtcc"], "did you mean dtc?"),
            (["--dataset", "nowhere"], "dataset: must be one of"),
            (["--bundles", ","], "--bundles: must name a bundle"),
            (["--flavor", "nice"], "offers literature, practical"),
            (["--labelled_batch_size", "1"], "did you mean labeled_batch_size?"),
            (["--patch_size", "32"], "--patch_size: is a key of the preset, not an option"),
        ],
    )
    def test_mistakes_leave_nothing(self, words, message, tmp_path, capsys):
        assert message in fails(capsys, "label-app", "--output", tmp_path / "app", *words)
        assert not (tmp_path / "app").exists()


def test_turned_axes_do_not_change_the_score(packaged: Path, scans: Path, tmp_path: Path):
    """The score looks at the scan, not at its header."""
    image = nib.load(scans / "images" / "testing_0001.nii.gz")
    scorer = DisagreementScorer(packaged, device="cpu")
    nib.save(image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])), tmp_path / "turned.nii.gz")
    straight = scorer(scans / "images" / "testing_0001.nii.gz")
    assert scorer(tmp_path / "turned.nii.gz") == pytest.approx(straight, abs=1e-4)

"""What a method says of itself reaches the loader of its bundle."""

import pytest
from monai.bundle import ConfigParser

from monai_ssl.bundle.library import available_bundles, bundles_root
from monai_ssl.data.streams import CaseDataset
from monai_ssl.methods import MeanTeacher, SemiSupervisedMethod


def parsed(name, data, **overrides):
    parser = ConfigParser()
    parser.read_config(str(bundles_root() / name / "configs" / "train.yaml"))
    common = {"dataset": "phantom", "dataset_dir": str(data), "device": "cpu", "network_def#base_channels": 2}
    parser.update({**common, "num_workers": 0, **overrides})
    return parser


@pytest.mark.parametrize("name", available_bundles())
def test_the_loader_takes_the_transforms_of_the_method_that_trains(name, tiny_phantom, monkeypatch):
    built = []
    original = SemiSupervisedMethod.__init__
    monkeypatch.setattr(
        SemiSupervisedMethod, "__init__", lambda self, *a, **k: (built.append(self), original(self, *a, **k))[1]
    )
    parser = parsed(name, tiny_phantom)
    trainer = parser.get_parsed_content("train#trainer")
    assert built == [trainer.plain_method]  # once, although the loader asks it for its transforms
    method, loader = trainer.plain_method, trainer.data_loader
    steps = loader.streams["labeled"][0].transform.transforms
    own = method.loader_transforms()
    assert [type(step) for step in steps[len(steps) - len(own) :]] == [type(step) for step in own]
    assert ("unlabeled" in loader.streams) == method.uses_unlabeled
    assert loader.n_unlabeled == (3 if method.uses_unlabeled else 0)


def test_supervised_reads_no_unlabeled_image(tiny_phantom, monkeypatch):
    loaded = []
    original = CaseDataset._load
    monkeypatch.setattr(CaseDataset, "_load", lambda self, i: (loaded.append(self.names[i]), original(self, i))[1])
    loader = parsed("supervised", tiny_phantom).get_parsed_content("train#dataloader")
    assert set(next(iter(loader))) == {"labeled"}
    assert len([name for name in loaded if name.startswith("labeled")]) == 2  # and the case for validation
    assert not any("unlabeled" in name for name in loaded)
    assert loader.unlabeled_batch_size == 0  # as in checkpoints of before


def test_a_strong_view_is_asked_for_by_the_method(tiny_phantom):
    parser = parsed("mean_teacher", tiny_phantom)
    parser["method"]["_target_"] = f"{__name__}.Strong"
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    assert batch["unlabeled"]["strong"].shape == batch["unlabeled"]["image"].shape
    assert "strong" not in batch["labeled"]
    plain = next(iter(parsed("mean_teacher", tiny_phantom).get_parsed_content("train#dataloader")))
    assert "strong" not in plain["unlabeled"]


class Strong(MeanTeacher):
    strong_view = True

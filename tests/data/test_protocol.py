"""The flavor `literature` trains what each paper trained; everything else trains what the preset says."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from monai.bundle import ConfigParser

from monai_ssl import cli
from monai_ssl.bundle.library import available_bundles, find_bundle
from monai_ssl.bundle.spec import read_spec
from monai_ssl.data import available_presets, load_preset, training_protocol
from monai_ssl.data.preset import Training
from monai_ssl.errors import DataError
from monai_ssl.networks import EMATeacher
from monai_ssl.runs.datasets import copy_preset

PAIRS = [(name, dataset) for name in available_bundles() for dataset in read_spec(find_bundle(name)).literature]


def config(bundle, dataset, flavor, **overrides):
    parser = ConfigParser()
    parser.read_config(str(find_bundle(bundle) / "configs" / "train.yaml"))
    ids = {"bundle_root": "nowhere", "dataset": dataset, "flavor": flavor, "device": "cpu", **overrides}
    parser.update(ids | {"network_def#base_channels": 2})
    return parser


def rates(parser, iterations):
    (factor,) = parser.get_parsed_content("lr_scheduler").lr_lambdas
    return [round(parser.get_parsed_content("learning_rate") * factor(i), 12) for i in iterations]


class TestPublished:
    """Numbers of the papers and of their released code, written down independently of the bundles."""

    def test_caml(self):
        # constant rate, 15000 iterations, weight by 150 iterations until 20 * 150 with 8 labels
        parser = config("caml", "left_atrium", "literature", **{"method#ramp_levels": 20})
        assert parser.get_parsed_content("max_iterations") == 15000
        assert rates(parser, (0, 6000, 14999)) == [0.01, 0.01, 0.01]
        ramp = parser.get_parsed_content("method").ramp_up
        for i in (0, 149, 150, 2999, 3000, 15000):
            assert ramp(i) == pytest.approx(math.exp(-5 * (1 - min(i // 150, 20) / 20) ** 2))

    def test_ss_net_3d(self):
        parser = config("ss_net", "left_atrium", "literature")
        assert parser.get_parsed_content("max_iterations") == 15000
        assert parser.get_parsed_content("preset").largest_component  # Table 1: "the largest connected component"
        assert rates(parser, (0, 2499, 2500, 5000, 7500, 10000, 12500)) == [1e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7]
        ramp = parser.get_parsed_content("method").ramp_up
        for i in (0, 149, 150, 3000, 5999, 6000, 15000):
            assert ramp(i) == pytest.approx(math.exp(-5 * (1 - min(i // 150, 40) / 40) ** 2))

    def test_ss_net_2d(self):
        parser = config("ss_net", "acdc", "literature")
        assert parser.get_parsed_content("max_iterations") == 30000
        assert rates(parser, (0, 29999)) == [0.01, 0.01]
        assert not parser.get_parsed_content("preset").largest_component
        assert parser.get_parsed_content("preset").slice_sampling == "slice"
        sizes = [parser.get_parsed_content(f"{kind}labeled_batch_size") for kind in ("", "un")]
        assert sizes == [12, 12]
        ramp = parser.get_parsed_content("method").ramp_up
        for i in (0, 149, 150, 15000, 30000):
            assert ramp(i) == pytest.approx(0.1 * math.exp(-5 * (1 - min(i // 150, 200) / 200) ** 2))

    @pytest.mark.parametrize("dataset", ["left_atrium", "mscmrseg2019", "hippocampus"])
    def test_tac(self, dataset):
        parser = config("tac", dataset, "literature")
        assert parser.get_parsed_content("max_iterations") == 6000
        assert rates(parser, (0, 3000)) == [0.01, round(0.01 * 0.5**0.9, 12)]
        assert parser.get_parsed_content("method").consistency.empty == "zero"  # as released
        practical = config("tac", dataset, "practical").get_parsed_content("method")
        assert practical.consistency.empty == "skip"
        own = config("tac", dataset, "literature", **{"method#variant": "paper", "method#pairing": "same_index"})
        loss = own.get_parsed_content("method").consistency
        assert (loss.pooling, loss.pairing, loss.reduction) == ("image", "same_index", "norm")

    @pytest.mark.parametrize(
        ("bundle", "dataset"),
        [("dtc", "left_atrium"), ("dtc", "pancreas_ct"), ("ug_mcl", "left_atrium"), ("ug_mcl", "brats2019")],
    )
    def test_dtc_and_ug_mcl(self, bundle, dataset):
        parser = config(bundle, dataset, "literature")
        assert parser.get_parsed_content("max_iterations") == 6000
        assert rates(parser, (0, 2499, 2500, 4999, 5000)) == [1e-2, 1e-2, 1e-3, 1e-3, 1e-4]
        maximum = {"dtc": 1.0, "ug_mcl": 0.1}[bundle]
        assert parser.get_parsed_content("method").ramp_up(6000) == pytest.approx(maximum)


STEPS = {0: 1e-2, 2499: 1e-2, 2500: 1e-3, 4999: 1e-3, 5000: 1e-4}  # a tenth every 2500 of 6000 iterations
CONSTANT = {0: 1e-2, 5999: 1e-2, 14999: 1e-2}
SHORT, LONG = ({i: 0.01 * (1 - i / n) ** 0.9 for i in (0, 3000, n - 1)} for n in (6000, 30000))
MIDDLE = {i: 0.01 * (1 - i / 15000) ** 0.9 for i in (0, 3000, 14999)}
# comparison method and data set -> iterations, rates, (largest weight, levels, iterations of a level), batches, options
COMPARED = {
    ("mean_teacher", "left_atrium"): (6000, STEPS, (0.1, 40, 150), (2, 2), {"delay": 0}),
    ("ua_mt", "left_atrium"): (6000, STEPS, (0.1, 40, 150), (2, 2), {"passes": 8, "passes_per_call": 2}),
    ("entropy_minimization", "left_atrium"): (6000, STEPS, (0.1, 40, 150), (2, 2), {"labeled_too": True}),
    ("ict", "left_atrium"): (6000, STEPS, (0.1, 40, 150), (2, 2), {"alpha": 0.2, "joint_pass": False}),
    ("cps", "left_atrium"): (6000, STEPS, (0.1, 40, 150), (2, 2), {}),
    ("dan", "left_atrium"): (6000, STEPS, (0.1, 40, 150), (2, 2), {"discriminator_learning_rate": 1e-4}),
    ("sassnet", "left_atrium"): (6000, STEPS, (0.015, 40, 150), (2, 2), {"distance_weight": 0.3}),
    ("tcse", "left_atrium"): (6000, STEPS, (0.1, 40, 150), (2, 2), {"scale": 0.1, "noise": 0.1}),
    ("cct", "left_atrium"): (6000, SHORT, (0.1, 40, 150), (2, 2), {"noise": 0.3, "dropout": 0.3}),
    ("urpc", "left_atrium"): (6000, SHORT, (0.1, 400, 15), (2, 2), {}),
    ("mc_net", "left_atrium"): (15000, CONSTANT, (1.0, 40, 150), (2, 2), {"supervised_weight": 0.5}),
    ("bcp", "left_atrium"): (
        17000, {0: 1e-2, 4499: 1e-2, 4500: 1e-3, 7000: 1e-4, 9500: 1e-5}, None, (4, 4),
        {"pretrain": 2000, "pseudo_weight": 0.5, "box": 2 / 3, "connectivity": 3, "keep_largest": True},
    ),
    ("bcp", "pancreas_ct"): (7800, {0: 1e-3, 7799: 1e-3}, None, (4, 4), {"pretrain": 1800, "connectivity": 2}),
    ("ad_mt", "left_atrium"): (15000, MIDDLE, (2.0, 40, 150), (2, 2), {"threshold": 0.8, "longest_period": 19}),
    ("ad_mt", "pancreas_ct"): (15000, MIDDLE, (2.0, 40, 150), (2, 2), {"threshold": 0.8, "longest_period": 14}),
    ("mean_teacher", "acdc"): (30000, LONG, (0.1, 200, 150), (12, 12), {"delay": 1000}),
    ("ua_mt", "acdc"): (30000, LONG, (0.1, 200, 150), (12, 12), {}),
    ("entropy_minimization", "acdc"): (30000, LONG, (0.1, 200, 150), (12, 12), {}),
    ("ict", "acdc"): (30000, LONG, (0.1, 200, 150), (12, 12), {}),
    ("cps", "acdc"): (30000, LONG, (0.1, 200, 150), (12, 12), {}),
    ("dan", "acdc"): (30000, LONG, (0.1, 200, 150), (12, 12), {}),
    ("sassnet", "acdc"): (30000, LONG, (0.015, 40, 750), (12, 12), {}),
    ("cct", "acdc"): (30000, LONG, (0.1, 200, 150), (12, 12), {}),
    ("urpc", "acdc"): (30000, LONG, (0.1, 200, 150), (12, 12), {}),
    ("mc_net", "acdc"): (30000, {0: 1e-2, 29999: 1e-2}, (0.1, 200, 150), (12, 12), {"supervised_weight": 1.0}),
    ("bcp", "acdc"): (40000, {0: 1e-2, 39999: 1e-2}, None, (12, 12), {"pretrain": 10000, "pretrain_loss": "regions"}),
    ("ad_mt", "acdc"): (30000, LONG, (2.0, 50, 150), (12, 12), {"threshold": 0.95, "longest_period": 50}),
}  # fmt: skip


@pytest.mark.parametrize(("bundle", "dataset"), COMPARED)
def test_comparison_methods_train_what_is_released(bundle, dataset):
    """Of TCSE, and of CCT in 3D, nothing is released: what the others of their kind train."""
    iterations, expected, ramp, batches, options = COMPARED[bundle, dataset]
    eight = "$__import__('types').SimpleNamespace(training=[None] * 8)"  # labeled cases
    parser = config(bundle, dataset, "literature", cases=eight)
    assert parser.get_parsed_content("max_iterations") == iterations
    assert rates(parser, expected) == pytest.approx(list(expected.values()))
    assert tuple(parser.get_parsed_content(f"{kind}labeled_batch_size") for kind in ("", "un")) == batches
    method = parser.get_parsed_content("method")
    assert {name: getattr(method, name) for name in options} == pytest.approx(options)
    if ramp is not None:
        largest, levels, step = ramp
        for i in (0, step - 1, step, 10 * step, levels * step - 1, levels * step, 2 * levels * step):
            level = min(i // step, levels) / levels
            assert method.ramp_up(i) == pytest.approx(largest * math.exp(-5 * (1 - level) ** 2))
    teachers = [module for module in method.modules() if isinstance(module, EMATeacher)]
    assert len(teachers) == {"ad_mt": 2, **dict.fromkeys(("mean_teacher", "ua_mt", "ict", "tcse", "bcp"), 1)}.get(
        bundle, 0
    )
    assert all(teacher.decay == 0.99 for teacher in teachers)
    if bundle == "ad_mt":
        assert {teacher.copy_steps for teacher in teachers} == {50 if dataset == "acdc" else 40}


@pytest.mark.parametrize(("bundle", "dataset"), PAIRS)
class TestEveryBundle:
    def test_published_runs_are_in_float32(self, bundle, dataset):
        assert config(bundle, dataset, "literature").get_parsed_content("amp") == "off"
        assert config(bundle, dataset, "practical").get_parsed_content("amp") == "auto"
        assert config(bundle, dataset, "literature", amp="bf16").get_parsed_content("amp") == "bf16"

    def test_published_data_set_is_a_preset_that_says_so(self, bundle, dataset):
        assert load_preset(dataset, "literature").published

    def test_given_ids_win(self, bundle, dataset):
        ids = {"max_iterations": 40, "learning_rate": 0.5, "lr_scheduler#schedule": "cosine", "labeled_batch_size": 3}
        parser = config(bundle, dataset, "literature", **ids)
        assert rates(parser, (0, 20, 40)) == pytest.approx([0.5, 0.25, 0.0])
        assert parser.get_parsed_content("labeled_batch_size") == 3
        assert parser.get_parsed_content("epochs") == 4  # of ten iterations, so that it is validated before its end

    def test_shape_of_a_shorter_run_is_the_same(self, bundle, dataset):
        long = config(bundle, dataset, "literature")
        length = long.get_parsed_content("max_iterations")
        short = config(bundle, dataset, "literature", max_iterations=length // 10)
        at = range(0, length, length // 10)
        assert rates(long, at) == pytest.approx(rates(short, [i // 10 for i in at]))
        if "ramp_iterations" in long:
            assert short.get_parsed_content("ramp_iterations") == long.get_parsed_content("ramp_iterations") // 10

    def test_practical_is_the_presets(self, bundle, dataset):
        training = load_preset(dataset, "practical").training
        protocol = config(bundle, dataset, "practical").get_parsed_content("protocol")
        assert protocol.model_dump(include=set(Training.model_fields)) == training.model_dump()
        assert (protocol.ramp, protocol.method) == (1.0, {})


def test_only_the_literature_of_shipped_presets_is_published():
    for name in available_presets():
        assert not load_preset(name).published or load_preset(name).flavor == "literature"
        assert not load_preset("phantom", "literature").published


def test_own_preset_of_the_same_name_keeps_its_training(tmp_path):
    file = tmp_path / "left_atrium.yaml"
    file.write_text(yaml.safe_dump({"labels": {0: "a", 1: "b"}, "patch_size": [16] * 3, "flavor": "literature",
                                    "training": {"max_iterations": 7}}))  # fmt: skip
    assert config("caml", str(file), "literature").get_parsed_content("max_iterations") == 7


def test_copied_preset_states_its_own_numbers(tmp_path):
    file = copy_preset("left_atrium", tmp_path / "left_atrium.yaml", "literature")
    file.write_text(file.read_text().replace("max_iterations: 6000", "max_iterations: 7"))
    assert config("caml", str(file), "literature").get_parsed_content("max_iterations") == 7


def test_method_arguments_of_a_data_set():
    published = {"left_atrium": {"method": {"threshold": 0.8}}}
    assert training_protocol(load_preset("left_atrium", "literature"), published).method == {"threshold": 0.8}
    assert training_protocol(load_preset("left_atrium", "practical"), published).method == {}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"iterations": 5}, "literature: left_atrium: iterations: Extra inputs"),
        ({"schedule": "steps"}, "schedule: Input should be"),
        ({"ramp": 0}, "ramp: Input should be greater than 0"),
        ({"max_iterations": "many"}, "must be iterations"),
        ({"milestones": 3}, "must be iterations"),
    ],
)
def test_mistakes_in_a_published_protocol_are_named(stated, message):
    with pytest.raises(DataError, match=message):
        training_protocol(load_preset("left_atrium", "literature"), {"left_atrium": stated})


@pytest.mark.parametrize(("bundle", "largest"), [("caml", False), ("ss_net", True)])
def test_command_line_trains_the_published_protocol(tiny_phantom, tmp_path, bundle, largest):
    """A small data set that says it is the published one, through `monai-ssl train`."""
    preset = {"labels": {0: "background", 1: "left atrium"}, "patch_size": [16] * 3, "published": True,
              "flavor": "literature", "channels": ["MRI"]}  # fmt: skip
    (tmp_path / "left_atrium.yaml").write_text(yaml.safe_dump(preset))
    words = ["train", bundle, str(tiny_phantom), "--dataset", str(tmp_path / "left_atrium.yaml"), "--flavor",
             "literature", "--output", str(tmp_path / "run"), "--epochs", "1", "--epoch_length", "1", "--num_workers",
             "0", "--device", "cpu", "--network_def#base_channels", "2", "--val_interval", "9"]  # fmt: skip
    cli.main(words)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["max_iterations"] == 15000
    # what evaluation and prediction of the run go by
    assert load_preset(tmp_path / "run" / "preset.yaml").largest_component == largest
    (line,) = (tmp_path / "run" / "training.csv").read_text().splitlines()[1:]
    assert "0.01" in line.split(",")


@pytest.mark.parametrize(
    ("iterations", "epoch", "interval", "first"),
    [
        (6000, 100, 10, 1000),  # as published
        (15000, 100, 10, 1000),
        (2000, 100, 5, 500),
        (600, 100, 1, 100),
        (250, 62, 1, 62),
        (40, 10, 1, 10),
        (8, 8, 1, 8),
    ],
)
def test_the_first_validation_comes_early_enough(iterations, epoch, interval, first):
    parser = config("dtc", "left_atrium", "literature", max_iterations=iterations)
    assert parser.get_parsed_content("epoch_length") == epoch
    assert parser.get_parsed_content("val_interval") == interval
    assert epoch * interval == first
    # every validation of the run is reached: as many epochs as it takes
    assert (parser.get_parsed_content("epochs") - 1) * epoch < iterations <= parser.get_parsed_content("epochs") * epoch

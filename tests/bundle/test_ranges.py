"""Numbers without sense are refused in a line before the data are read, as typed and in configs of one's own."""

from __future__ import annotations

import math

import pytest
import yaml
from commands import fails

from monai_ssl.bundle.library import available_bundles, copy_bundle, find_bundle
from monai_ssl.bundle.overrides import check_overrides, merged_config
from monai_ssl.bundle.ranges import PARAMETERS, ROOTS, Range, number_problems
from monai_ssl.errors import DataError

BIG = 10**400
COUNTS = (0, -1, 1.5, math.nan, math.inf, BIG, "many", "", [1])
POSITIVES = (0, -0.5, math.nan, math.inf, -math.inf, "1,5", {})
WRONG = {
    **dict.fromkeys(("max_iterations", "ramp_iterations", "val_interval", "epoch_length", "epochs",
                     "checkpoint_interval", "labeled_batch_size", "accumulation_steps"), COUNTS),
    "unlabeled_batch_size": (-1, 0.5, math.nan, math.inf, BIG, "no"),
    "num_workers": (-1, 0.5, math.nan, 5000, "two"),
    "seed": (-1, 0.5, 2**32, math.nan, "x"),
    "learning_rate": (*POSITIVES, 1e7),
    "checkpoint_minutes": POSITIVES,
    "optimizer#lr": POSITIVES[:-1],
    "optimizer#momentum": (-0.1, 1, math.nan, "x"),
    "optimizer#weight_decay": (-1, math.nan, math.inf),
    "network_def#dropout": (-0.1, 1, 1.5, math.nan),
    "network_def#base_channels": (0, -4, 2.5, math.nan, BIG),
    "network_def#in_channels": (0, -1, 1.5),
    "network_def#out_channels": (0, -1, 1.5),
    "network_def#spatial_dims": (1, 4, 2.5),
    "method#unsupervised_weight": (-1, math.nan, math.inf),
}  # fmt: skip
METHODS = {
    "mean_teacher": {"decay": (-0.1, 1, 1.01, math.nan), "weight": (-1, math.nan, math.inf), "ramp_levels": (0, 1.5),
                     "delay": (-1, math.nan)},
    "ua_mt": {"decay": (1,), "passes": (0, 1.5), "passes_per_call": (0,), "entropy_classes": (0, 1, 2.5),
              "divisor": (0, 1.5), "threshold_iterations": (0, 1.5)},
    "entropy_minimization": {"weight": (-1, math.inf), "ramp_levels": (0, 1.5)},
    "ict": {"alpha": (0, -1, math.nan, math.inf), "weight": (-1,)},
    "dan": {"discriminator_learning_rate": (0, -1, math.nan), "discriminator#dropout": (1,), "weight": (-1,),
            "discriminator#pool_window": (0, 1.5), "discriminator#base_channels": (0,)},
    "sassnet": {"distance_weight": (-1, math.inf), "discriminator#dropout": (-0.1,)},
    "bcp": {"pretrain": (-1, math.nan), "box": (0, 1), "connectivity": (0, 4, 1.5), "pseudo_weight": (-1,),
            "decay": (1,)},
    "ad_mt": {"longest_period": (0, 1.5), "concentration": (0, math.inf), "copy_steps": (-1, 0.5),
              "threshold": (-0.1, 1.1)},
    "cps": {"weight": (-1, math.nan), "ramp_levels": (0,)},
    "ug_mcl": {"decay": (1, math.nan), "passes": (0, -1, 1.5), "passes_per_call": (0,), "beta": (-0.1, 1.1, math.nan),
               "slope": (0, -1, math.nan, math.inf)},
    "caml": {"temperature": (0, -1, math.nan, math.inf), "sharpening_temperature": (0, 2, math.nan),
             "rows_per_class": (0, 0.5), "prototypes_per_class": (0,), "bank_capacity": (0, -1), "ramp_step": (0,)},
    "ss_net": {"xi": (0, math.nan), "epsilon": (0, -1, math.inf), "power_iterations": (0,), "prototypes": (0, -2)},
    "dtc": {"slope": (0, math.nan)},
    "self_training": {"strength": (-1, math.nan), "cutmix_probability": (-0.1, 1.1)},
    "weak_to_strong": {"threshold": (-0.1, 1.1, math.nan), "burn_in": (-0.1, 2), "ramp": (-1, 1.5), "decay": (1, -1),
                       "strength": (-1, math.inf), "cutmix_probability": (2,), "weight": (-1,), "max_iterations": (0,)},
}  # fmt: skip
TABLE = [("dtc", key, value) for key, values in WRONG.items() for value in values]
TABLE += [
    (bundle, f"method#{key}", value) for bundle, rows in METHODS.items() for key, v in rows.items() for value in v
]


@pytest.mark.parametrize(("bundle", "key", "value"), TABLE, ids=lambda value: str(value)[:20])
def test_nonsense_is_refused(bundle, key, value):
    with pytest.raises(DataError) as caught:
        check_overrides(find_bundle(bundle), ["train.yaml"], {key: value})
    text = str(caught.value)
    assert text.startswith(f"--{key}: must be ")
    assert ", got " in text
    assert "\n" not in text
    assert len(text) < 200


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 1e-5), ("learning_rate", 1), ("learning_rate", "$@protocol.learning_rate * 2"), ("seed", 0),
     ("unlabeled_batch_size", 0), ("num_workers", 0), ("max_iterations", 10**9), ("checkpoint_minutes", 0.5),
     ("method#unsupervised_weight", 0), ("method#distance_weight", None), ("optimizer#weight_decay", 0),
     ("network_def#dropout", 0), ("max_iterations", "@epochs"), ("labeled_batch_size", 2.0), ("cache_gb", None)],
)  # fmt: skip
def test_sense_is_taken(key, value):
    check_overrides(find_bundle("dtc"), ["train.yaml"], {key: value})


@pytest.mark.parametrize("bundle", available_bundles())
@pytest.mark.parametrize("configs", [["train.yaml"], ["inference.yaml"], ["train.yaml", "evaluate.yaml"]])
def test_the_shipped_configs_hold_no_nonsense(bundle, configs):
    config = merged_config(find_bundle(bundle), configs)
    assert list(number_problems(config)) == []


def test_null_where_a_number_is_due():
    with pytest.raises(DataError, match=r"--learning_rate: must be .*, got null; leave it away for the default"):
        check_overrides(find_bundle("dtc"), ["train.yaml"], {"learning_rate": None})


def test_a_whole_block_and_an_own_config_are_looked_through(tmp_path):
    block = {"_target_": "torch.optim.Adam", "params": "$@method.parameters()", "lr": -1}
    with pytest.raises(DataError, match="--optimizer#lr: must be a finite number > 0, got -1"):
        check_overrides(find_bundle("dtc"), ["train.yaml"], {"optimizer": block})
    folder = copy_bundle("dtc", tmp_path / "own")
    path = folder / "configs" / "train.yaml"
    config = yaml.safe_load(path.read_text())
    config["optimizer"]["momentum"] = float("nan")
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match=r"^own/configs/train\.yaml: optimizer#momentum must be .* got nan$"):
        check_overrides(folder, ["train.yaml"], {})
    # classes of others have rules of their own
    assert not list(number_problems({"mine": {"_target_": "my.Thing", "temperature": -40}}))


def test_rules_are_for_ids_that_exist():
    known = set()

    def names(config):
        for name, value in config.items():
            known.add(name)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    names(part)

    for bundle in available_bundles():
        names(merged_config(find_bundle(bundle), ["train.yaml", "evaluate.yaml"]))
        names(merged_config(find_bundle(bundle), ["inference.yaml"]))
    assert set(ROOTS) <= known
    assert set(PARAMETERS) - {"warmup"} <= known


def test_nothing_was_touched(tiny_phantom, tmp_path, capsys):
    words = ["train", "dtc", tiny_phantom, "--dataset", "phantom", "--output", tmp_path / "run"]
    for value in ("nan", "inf", "-1", "0", "1e999", "x"):
        error = fails(capsys, *words, "--learning_rate", value)
        assert error.startswith("--learning_rate: must be a finite number > 0, got ")
    assert fails(capsys, *words, "--labeled_batch_size", "0").startswith("--labeled_batch_size: must be an integer")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rule", "value", "text"),
    [(Range(1, 9, whole=True), 0, "must be an integer >= 1"),
     (Range(1, 9, whole=True), 10, "must be an integer in [1, 9]"),
     (Range(0, 1, below=True), 1, "must be a number in [0, 1)"), (Range(above=True), 0, "must be a finite number > 0"),
     (Range(1, whole=True), 1.5, "must be an integer >= 1"), (Range(1, whole=True), True, "must be an integer >= 1")],
)  # fmt: skip
def test_words(rule, value, text):
    assert rule.problem(value) == text

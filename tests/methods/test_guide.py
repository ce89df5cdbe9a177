"""The example of CONTRIBUTING.md, exactly as it is printed, is a method like all others."""

import re
import sys
import types
from pathlib import Path

from method_tester import MethodTester
from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.networks import VNet

ROOT = Path(__file__).parents[2]
PRINTED = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def printed_method():
    module = types.ModuleType("printed_in_contributing")
    sys.modules[module.__name__] = module
    exec(compile(PRINTED[0], "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


class TestEntropyMinimization(MethodTester):
    supervised_terms = ("supervised",)
    unsupervised_terms = ("entropy",)

    def network(self, spatial_dims=2, n_classes=2):
        return VNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)

    def wrap(self, backbone, spatial_dims, n_classes):
        return nn.Sequential(backbone, Conv["conv", spatial_dims](8, n_classes, kernel_size=1))

    def method(self, network, **options):
        return printed_method().EntropyMinimization(network, **options)


def test_what_is_tried_by_hand_holds():
    exec(compile(PRINTED[1], "CONTRIBUTING.md", "exec"), printed_method().__dict__)


def test_the_files_of_the_table_are_those_of_mean_teacher():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([^`]+/[^`]+)` \|", text, flags=re.MULTILINE)
    assert len(named) == 4
    # what the command wrote for mean teacher, which came about this way
    for path in named:
        assert (ROOT / path.replace("my_method", "mean_teacher")).is_file(), path

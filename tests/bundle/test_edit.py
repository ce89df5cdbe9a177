"""Values set in a config's text: the same content as setting them in the parsed config, and the comments stay."""

from __future__ import annotations

import pytest
import yaml

from monai_ssl.bundle.edit import set_values
from monai_ssl.bundle.library import available_bundles, bundles_root
from monai_ssl.data import load_preset

TEXT = """\
# head
seed: 0                # of everything
flow: {a: 1, b: [2, 3]}  # one line
block:
  # about x
  x: null              # null: as published
  deep:
    _target_: some.Class
    list:
      - first
      - second         # the last
# about the end
end: '@seed'
"""


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"seed": 7}, {"seed: 0                # of everything": "seed: 7                # of everything"}),
        ({"block#x": "on"}, {"x: null              # null": "x: 'on'              # null"}),
        ({"block::deep::list::1": "$1 + 1"}, {"- second  ": "- $1 + 1  "}),
        ({"end": "@block#x"}, {"'@seed'": "'@block#x'"}),
        ({"flow#b#0": 9}, {"[2, 3]": "[9, 3]"}),
        ({"flow#c": True}, {"[2, 3]}": "[2, 3], c: true}"}),
        ({"block#deep#width": 4}, {"# the last\n": "# the last\n    width: 4\n"}),
        ({"flow": {"n": {"m": [1, 2]}}}, {"flow: {a: 1, b: [2, 3]}": "flow:\n  n:\n    m: [1, 2]"}),
        ({"unknown#x": 1}, {}),
    ],
)
def test_only_what_is_set_changes(values, changed):
    expected = TEXT
    for before, after in changed.items():
        assert before in expected
        expected = expected.replace(before, after)
    assert set_values(TEXT, values) == expected


@pytest.mark.parametrize("name", available_bundles())
def test_a_whole_preset_in_every_bundle(name):
    preset = load_preset("acdc", "literature").model_dump(mode="json")
    values = {"dataset": preset, "flavor": None, "method#unsupervised_weight": 0.25, "network_def#gates": [1, 2],
              "lr_scheduler#power": 0.5, "seed": 3}  # fmt: skip
    for file in ("train.yaml", "inference.yaml"):
        text = (bundles_root() / name / "configs" / file).read_text()
        expected = yaml.safe_load(text)
        expected |= {"dataset": preset, "flavor": None}
        expected["network_def"]["gates"] = [1, 2]
        if file == "train.yaml":
            expected["method"]["unsupervised_weight"] = 0.25
            expected["lr_scheduler"]["power"] = 0.5
            expected["seed"] = 3
        edited = set_values(text, values)
        assert yaml.safe_load(edited) == expected
        comments = [line for line in text.splitlines() if line.startswith("#")]
        assert [line for line in edited.splitlines() if line.startswith("#")] == comments


def test_what_cannot_be_edited_line_by_line_is_still_right():
    text = "a: &anchor {x: 1}\nb: *anchor\nc: |\n  one\n  two\nd: 1\n"
    edited = set_values(text, {"b#x": 2, "c": "three", "d": 4})
    assert yaml.safe_load(edited)["c"] == "three"
    assert yaml.safe_load(edited)["d"] == 4


def test_no_mapping():
    with pytest.raises(ValueError, match="must be a YAML mapping, got list"):
        set_values("- 1\n", {"a": 1})

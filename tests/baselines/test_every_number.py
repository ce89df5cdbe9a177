"""Every golden number of the comparison methods is claimed by exactly one test."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from golden_claims import NUMBERS, claimed_by

# pattern -> why no test reproduces it
UNCLAIMED: dict[str, str] = {
    "um_box*": "UniMatch draws boxes by area and aspect from NumPy's generator; ours have sides drawn by axis",
    "um[12]_img_x": "input of a network whose outputs are given: nothing is computed from it",
    "um[12]_img_u_w*": "input of a network whose outputs are given: nothing is computed from it",
    "um1_fp_*": "UniMatch V1's branch of dropped features; ours has V2's complementary dropout in its place",
    "um1_batch_of_weak_pass": "UniMatch V1 labels in the training pass of labeled and pool images; ours has a teacher",
    "um1_modes_*": "UniMatch V1 labels in the training pass of labeled and pool images; ours has a teacher",
    "disc_dap_nparams_ndf64": "a discriminator of patches, which DTC's table counts and no method here has",
    "step_um1_*": "whole steps of UniMatch V1, with that branch and those labels",
}


def test_every_golden_number_is_claimed_once(request: pytest.FixtureRequest) -> None:
    folder = Path(__file__).parent
    here = [item for item in request.session.items if item.path.parent == folder]
    files = {item.path for item in here}
    if request.config.option.keyword or request.config.option.markexpr or files != set(folder.glob("test_*.py")):
        pytest.skip("only some of the tests were collected")
    keys = np.load(NUMBERS).files
    claims: Counter[str] = Counter()
    for item in here:
        for marker in item.iter_markers("claims"):
            claims.update(claimed_by(marker.args, keys))
    excused = {key for pattern in UNCLAIMED for key in fnmatch.filter(keys, pattern)}
    twice = sorted(key for key, count in claims.items() if count > 1)
    assert not twice, f"claimed by more than one test: {twice}"
    assert not excused & claims.keys(), f"excused and claimed: {sorted(excused & claims.keys())}"
    missing = sorted(set(keys) - claims.keys() - excused)
    families = Counter(re.split(r"[_\d]", key)[0] for key in missing)
    assert not missing, f"{len(missing)} numbers have no test: {dict(families)}; {missing[:20]}"

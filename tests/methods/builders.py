"""Tiny methods for whole trainings, found by discovery: every ``MethodTester`` of this folder that names its bundle.

Another test asks for ``tiny("dtc")``, or is parametrized with :func:`names`: a new method is then trained, killed,
resumed and distributed like all others, without being written into a list.
"""

import functools
import importlib
from pathlib import Path

import torch
from method_tester import MethodTester

FOLDER = Path(__file__).parent


@functools.cache
def testers():
    """Name of a bundle -> class of its tests, sorted by name."""
    for path in sorted(FOLDER.glob("test_*.py")):
        if "(MethodTester)" in path.read_text(encoding="utf-8"):
            importlib.import_module(path.stem)
    found = {}
    for tester in MethodTester.__subclasses__():
        if tester.bundle:
            assert tester.bundle not in found, f"{tester.bundle}: two testers, {tester} and {found[tester.bundle]}"
            found[tester.bundle] = tester
    return dict(sorted(found.items()))


def names():
    """Names of the bundles whose methods have a tester."""
    return list(testers())


def tiny(name, spatial_dims=2, dropout=0.5, norm="batch", seed=0, max_iterations=11, **options):
    """The method of a bundle on networks of two channels and two levels, two classes; the same for the same seed.

    Args:
        name: of the bundle.
        spatial_dims: 2 or 3.
        dropout, norm: of the networks.
        max_iterations: length of the run, for ramp-ups.
        **options: of the method.
    """
    torch.manual_seed(seed)
    sizes = {"base_channels": 2, "dropout": dropout, "norm": norm, "stages": (1, 1)}
    return testers()[name]().tiny(spatial_dims, sizes, max_iterations, **options)

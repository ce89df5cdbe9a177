"""A trained run and its package."""

from __future__ import annotations

from pathlib import Path

import pytest
from clinic import TINY, balance, run


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom whose volumes take several windows: 2 labeled, 2 unlabeled, 1 validation, 2 test cases."""
    from monai_ssl.curation.phantom.dataset import write_phantom

    folder = tmp_path_factory.mktemp("scans")
    write_phantom(folder, n_labeled=2, n_unlabeled=2, n_validation=1, n_testing=2, spacing=2.5, progress=False)
    return folder


@pytest.fixture(scope="session")
def trained(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of dtc with a validation, whose network draws something."""
    from monai_ssl.bundle.library import bundles_root

    folder = tmp_path_factory.mktemp("trained") / "a run"
    assert run("train", "dtc", scans, *TINY, "--output", folder) == 0
    image = scans / "images" / "testing_0000.nii.gz"
    settings = {"dataset": "phantom", "network_def#base_channels": 2}
    balance(bundles_root() / "dtc", folder / "model.pt", image, settings)
    assert run("evaluate", folder, "--section", "testing") == 0
    return folder


@pytest.fixture(scope="session")
def packaged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packaged") / "left_atrium_dtc"
    assert run("package", trained, "--output", folder, "--name", "Tiny atrium") == 0
    return folder

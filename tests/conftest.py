"""What all tests share."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, balance, run

os.environ.setdefault("MPLBACKEND", "Agg")
# loader processes of a test inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")
# what a training measures of this machine is no business of the user's own trainings, nor theirs of the tests
os.environ["MONAI_SSL_CACHE"] = tempfile.mkdtemp(prefix="monai-ssl-tests-")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file stay together, for what they share; the bundles are the longest file, and each stands alone."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            bundle = re.search(r"\[(\w+)", test) if file.endswith("test_bundles.py") else None
            return f"{file} {bundle[1] if bundle else ''}"

    return Together(config, log)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real scans, named by ``MONAI_SSL_DATA``; tests that ask for it are skipped where there are none."""
    folder = os.environ.get("MONAI_SSL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MONAI_SSL_DATA names no folder of real scans")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom that trains in seconds: 2 labeled, 3 unlabeled, 1 validation, 2 test cases. Do not write to it."""
    from monai_ssl.curation.phantom.dataset import write_phantom

    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_labeled=2, n_unlabeled=3, n_validation=1, n_testing=2, spacing=5.0, progress=False)
    return folder


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

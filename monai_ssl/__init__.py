"""Semi-supervised medical image segmentation, built on MONAI.

The functions of this module do what the commands of ``monai-ssl`` do, and return what the commands print:

    >>> import monai_ssl
    >>> run = monai_ssl.train("dtc", "my_scans", dataset="left_atrium", seed=1)  # doctest: +SKIP
    >>> monai_ssl.evaluate(run, section="validation")  # doctest: +SKIP
    Evaluation('runs/dtc-left_atrium-seed1/evaluation-validation', Dice 0.8731, n = 20)

The other names are the rooms of the package. All are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_ssl._lazy import lazy_names

if TYPE_CHECKING:
    from monai_ssl.deploy.predict import predict
    from monai_ssl.deploy.rank import rank
    from monai_ssl.deploy.release import label_app, package
    from monai_ssl.errors import DataError
    from monai_ssl.runs.datasets import check, copy_preset, describe, prepare, split
    from monai_ssl.runs.demo import demo
    from monai_ssl.runs.evaluation import evaluate, report
    from monai_ssl.runs.folder import Run
    from monai_ssl.runs.self_training import self_train
    from monai_ssl.runs.study.compare import compare
    from monai_ssl.runs.train import train

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "Run",
    "check",
    "compare",
    "copy_preset",
    "demo",
    "describe",
    "evaluate",
    "label_app",
    "package",
    "predict",
    "prepare",
    "rank",
    "report",
    "self_train",
    "split",
    "train",
]

_HOMES = {
    "DataError": "monai_ssl.errors",
    "Run": "monai_ssl.runs.folder",
    "check": "monai_ssl.runs.datasets",
    "compare": "monai_ssl.runs.study.compare",
    "copy_preset": "monai_ssl.runs.datasets",
    "demo": "monai_ssl.runs.demo",
    "describe": "monai_ssl.runs.datasets",
    "evaluate": "monai_ssl.runs.evaluation",
    "label_app": "monai_ssl.deploy.release",
    "package": "monai_ssl.deploy.release",
    "predict": "monai_ssl.deploy.predict",
    "prepare": "monai_ssl.runs.datasets",
    "rank": "monai_ssl.deploy.rank",
    "report": "monai_ssl.runs.evaluation",
    "self_train": "monai_ssl.runs.self_training",
    "split": "monai_ssl.runs.datasets",
    "train": "monai_ssl.runs.train",
}
_ROOMS = (
    "bundle",
    "curation",
    "data",
    "deploy",
    "engines",
    "handlers",
    "losses",
    "methods",
    "metrics",
    "networks",
    "reports",
    "runs",
    "transforms",
)

__getattr__, __dir__ = lazy_names(__name__, _HOMES, _ROOMS)

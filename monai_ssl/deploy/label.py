"""MONAI Label: an app whose trainings learn from the unlabeled scans of the datastore, too.

Imported only by the server (``monai-ssl label-app`` writes the app's folder), in the environment of MONAI Label.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

_libraries: list[torch.library.Library] = []


def mend_torchvision() -> None:
    """MONAI Label imports torchvision, which fails next to a CPU build of PyTorch from another channel.

    It then asks for the schemas of two operators that nobody here calls: they are declared, and the import works.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        _libraries.append(library)  # the schemas last as long as it does
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


mend_torchvision()

from monai.transforms import Compose  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.tasks.scoring import ScoringMethod  # noqa: E402
from monailabel.interfaces.tasks.strategy import Strategy  # noqa: E402
from monailabel.tasks.activelearning.first import First  # noqa: E402
from monailabel.tasks.activelearning.random import Random  # noqa: E402
from monailabel.tasks.infer.bundle import BundleInferTask  # noqa: E402
from monailabel.tasks.train.bundle import BundleTrainTask  # noqa: E402

import monai_ssl  # noqa: E402
from monai_ssl.deploy.disagreement import DisagreementScorer  # noqa: E402
from monai_ssl.engines import VolumeSegmenter  # noqa: E402
from monai_ssl.runs.folder import Run  # noqa: E402

logger = logging.getLogger(__name__)

WEIGHTS = Path("models") / "model.pt"
# the run's own files; next to models/ they would be offered as models
TRAINING = Path("models") / "training"
INFO_KEY = "disagreement"


class InferTask(BundleInferTask):
    """MONAI Label's task, run by the engine of the bundle's own inference.

    What MONAI Label adds to the image is hidden from the transforms: since MONAI 1.6.0, ``Spacingd`` takes every
    entry whose name begins with ``image_`` for meta data.
    """

    def __init__(self, path: str, conf: dict[str, str], **kwargs: Any) -> None:
        super().__init__(path, conf, **kwargs)
        if self.is_valid():
            self._config["result_dtype"] = "uint8"

    def run_pre_transforms(self, data: dict[str, Any], transforms: Any) -> Any:
        path = data.pop("image_path", None)
        result = super().run_pre_transforms(data, transforms)
        if path is not None:
            result["image_path"] = path
        return result

    def run_inferer(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda") -> dict[str, Any]:
        steps = Compose(self.post_transforms(data))
        segmenter = VolumeSegmenter(device, self._get_network(device, data), Compose([]), self.inferer(data), steps)
        data[self.output_label_key] = segmenter.infer(data)["pred"]
        return data


class TrainTask(BundleTrainTask):
    """MONAI Label's training of a bundle, given the unlabeled images of the datastore as well.

    A training begins with the present model's weights (``pretrained``), writes to ``models/training`` and becomes the
    model only when it is complete.
    """

    def config(self) -> dict[str, Any]:
        options = super().config()
        # 0: as many as max_epochs says
        return options | {"max_epochs": 10, "max_iterations": 0, "run_id": "run", "model_filename": [WEIGHTS.name]}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        request = dict(request)
        if not request.get("run_id"):  # an empty one, as forms send it, would run nothing and report success
            request["run_id"] = "run"
        if not datastore.get_labeled_images():
            raise ValueError("training needs at least one labeled image: annotate and submit one first")
        unlabeled = datastore.get_unlabeled_images()
        self._request = request
        self._unlabeled = [{"image": datastore.get_image_uri(image)} for image in unlabeled]
        run = Run(Path(self.bundle_path) / TRAINING)
        for folder in run.previous():
            shutil.rmtree(folder, ignore_errors=True)
        logger.info("monai_ssl: %d labeled and %d unlabeled images go into the training of %s",
                    len(datastore.get_labeled_images()), len(unlabeled), request.get("model"))  # fmt: skip
        super().__call__(request, datastore)
        published = Path(self.bundle_path) / WEIGHTS
        shutil.copyfile(run.model, published.with_suffix(".part"))
        os.replace(published.with_suffix(".part"), published)
        logger.info("monai_ssl: %s is the new model", published)
        return {"labeled": len(datastore.get_labeled_images()), "unlabeled_used": len(unlabeled)}

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        # the list is the task's own and still holds the loader of the last training
        train_handlers[:] = [h for h in train_handlers if h.get("_target_") != "CheckpointLoader"]
        if pretrained and os.path.exists(model_pytorch):
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        from monai_ssl.data import load_preset

        preset = load_preset(self.bundle_config["dataset"], self.bundle_config.get("flavor"))
        length = preset.training.epoch_length
        iterations = int(self._request.get("max_iterations") or 0)
        iterations = iterations or int(self._request.get("max_epochs", 10)) * length
        length = min(length, iterations)
        overrides |= {
            "unlabeled_datalist": self._unlabeled,
            "max_iterations": iterations,
            "epoch_length": length,
            "train#trainer#max_epochs": math.ceil(iterations / length),
            "output_dir": str(Path(self.bundle_path) / TRAINING),
            "resume": False,  # the same labels again means to train on, not to find the run finished
        }
        return overrides


class DisagreementScoring(ScoringMethod):
    """Notes for every unlabeled image how much the trained method contradicts itself on it."""

    def __init__(self, bundle: str) -> None:
        self.bundle = Path(bundle)
        super().__init__(f"How much {self.bundle.name} contradicts itself: dual task, teacher or second network")

    def version(self) -> int:
        """Changes with every training; 0 before the first."""
        weights = self.bundle / WEIGHTS
        return int(weights.stat().st_mtime) if weights.is_file() else 0

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        version = self.version()
        images = datastore.get_unlabeled_images()
        stale = [image for image in images if self.score(datastore, image) is None]
        limit = int(request.get("max_samples") or len(stale))
        if version and stale[:limit]:
            scorer = DisagreementScorer(self.bundle, Run(self.bundle / TRAINING).checkpoint)
            for image in stale[:limit]:
                score = scorer(datastore.get_image_uri(image))
                scores = datastore.get_image_info(image).get(INFO_KEY, {})
                scores[self.bundle.name] = {"score": score, "version": version}
                datastore.update_image_info(image, {INFO_KEY: scores})
        return {"total": len(images), "executed": len(stale[:limit]) if version else 0}

    def score(self, datastore: Any, image: str) -> float | None:
        """What is noted of the present model."""
        noted = datastore.get_image_info(image).get(INFO_KEY, {}).get(self.bundle.name, {})
        return noted.get("score") if noted.get("version") == self.version() else None


class DisagreementStrategy(Strategy):
    """Next sample: the unlabeled image on which the method contradicts itself most.

    Before the first training there is nothing to contradict: the first image is taken. ``model`` in the request
    chooses among several bundles.
    """

    def __init__(self, scorings: dict[str, DisagreementScoring]) -> None:
        self.scorings = scorings
        super().__init__("The scan on which the trained method contradicts itself most")

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        trained = [name for name, scoring in self.scorings.items() if scoring.version()]
        model = request.get("model") or next(iter(trained or self.scorings))
        if model not in self.scorings:
            raise ValueError(f"model must be one of {', '.join(self.scorings)}, got {model!r}")
        scoring = self.scorings[model]
        scoring(request, datastore)
        scores = {image: scoring.score(datastore, image) or 0.0 for image in images}
        chosen = max(sorted(scores), key=scores.__getitem__)
        shown = {image: round(score, 4) for image, score in scores.items()}
        logger.info("monai_ssl: disagreement of %s: %s", model, shown)
        return {"id": chosen, "weight": scores[chosen], "model": model}


class SemiSupervisedApp(MONAILabelApp):
    """Every bundle in ``model/``: inference, training with the unlabeled pool, active learning.

    ``--conf models a,b`` chooses among the bundles; default: all.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        folder = Path(app_dir) / "model"
        found = sorted(path.parent.parent for path in folder.glob("*/configs/train.yaml"))
        wanted = [name.strip() for name in (conf or {}).get("models", "").split(",") if name.strip()]
        if unknown := set(wanted) - {path.name for path in found}:
            raise ValueError(f"models: {', '.join(sorted(unknown))} not found in {folder}")
        self.bundles = {path.name: str(path) for path in found if not wanted or path.name in wanted}
        if not self.bundles:
            raise ValueError(f"{folder} holds no bundle; write the app with `monai-ssl label-app`")
        description = "Semi-supervised segmentation: trains on labeled and unlabeled scans"
        super().__init__(app_dir, studies, conf, "monai_ssl", description, version=monai_ssl.__version__)

    def init_infers(self) -> dict[str, Any]:
        tasks = {name: InferTask(path, self.conf) for name, path in self.bundles.items()}
        return {name: task for name, task in tasks.items() if task.is_valid()}  # not before the first training

    def init_trainers(self) -> dict[str, Any]:
        return {name: TrainTask(path, self.conf) for name, path in self.bundles.items()}

    def init_scoring_methods(self) -> dict[str, Any]:
        return {name: DisagreementScoring(path) for name, path in self.bundles.items()}

    def init_strategies(self) -> dict[str, Any]:
        scorings = self.init_scoring_methods()
        return {"disagreement": DisagreementStrategy(scorings), "random": Random(), "first": First()}

    def _find_new_models(self) -> None:
        """A bundle that has been trained since the server started can segment now."""
        for name, path in self.bundles.items():
            if name not in self._infers and (Path(path) / WEIGHTS).is_file():
                task = InferTask(path, self.conf)
                if task.is_valid():
                    self._infers[name] = task

    def info(self) -> dict[str, Any]:
        self._find_new_models()
        return super().info()

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        self._find_new_models()
        return super().infer(request, datastore)

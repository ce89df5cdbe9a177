"""MONAI Label: an app whose trainings learn from the unlabeled scans of the datastore, too.

Imported only by the server (``monai-ssl label-app`` writes the app's folder), in the environment of MONAI Label.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import threading
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

from fastapi import HTTPException, Request  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from monai.transforms import Compose  # noqa: E402
from monailabel.config import settings  # noqa: E402
from monailabel.datastore.dicom import DICOMWebDatastore  # noqa: E402
from monailabel.datastore.local import LocalDatastore  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.exception import MONAILabelException  # noqa: E402
from monailabel.interfaces.tasks.scoring import ScoringMethod  # noqa: E402
from monailabel.interfaces.tasks.strategy import Strategy  # noqa: E402
from monailabel.tasks.activelearning.first import First  # noqa: E402
from monailabel.tasks.activelearning.random import Random  # noqa: E402
from monailabel.tasks.infer.bundle import BundleInferTask  # noqa: E402
from monailabel.tasks.train.bundle import BundleTrainTask  # noqa: E402

import monai_ssl  # noqa: E402
from monai_ssl.data import Preset, load_preset, pseudo_labeled  # noqa: E402
from monai_ssl.deploy.annotation.archive import LabelsOnly  # noqa: E402
from monai_ssl.deploy.annotation.labels import TrainingCases, is_automatic, usable_cases  # noqa: E402
from monai_ssl.deploy.annotation.requests import (  # noqa: E402
    RequestError,
    inference_request,
    inside,
    plain_name,
    refuse_special,
    training_request,
)
from monai_ssl.deploy.disagreement import DisagreementScorer  # noqa: E402
from monai_ssl.engines import VolumeSegmenter  # noqa: E402
from monai_ssl.errors import DataError  # noqa: E402
from monai_ssl.mistakes import users_mistake  # noqa: E402
from monai_ssl.runs.ensemble import is_ensemble  # noqa: E402
from monai_ssl.runs.folder import Run  # noqa: E402
from monai_ssl.runs.pseudo_labels import Rules, Teacher, anatomy, draw  # noqa: E402

logger = logging.getLogger(__name__)

WEIGHTS = Path("models") / "model.pt"
# the run's own files; next to models/ they would be offered as models
TRAINING = Path("models") / "training"
PSEUDO_LABELS = Path("models") / "pseudo_labels"  # of the pool, for the next training
# labels whose values had to be changed, for one training
RENUMBERED = Path("models") / "labels"
INFO_KEY = "disagreement"
FINAL = "final"
# scans without label that a training fetches from an archive, unless a request says how many
FROM_ARCHIVE = 50


def plain_exception(error: BaseException) -> HTTPException:
    """The reason alone: as the answer to a request, and as the last line of a training in the background."""
    reason = users_mistake(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return HTTPException(status_code=400, detail=f"monai_ssl: {reason}")


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
        for key in [key for key in options if key.startswith("tracking")]:
            del options[key]  # a server that the client names would be told about the data
        # 0: as many as max_epochs says; 0: all, from an archive 50
        return options | {"max_epochs": 10, "max_iterations": 0, "max_unlabeled": 0, "run_id": "run",
                          "model_filename": [WEIGHTS.name]}  # fmt: skip

    @property
    def preset(self) -> Preset:
        """What the bundle's data are."""
        return load_preset(self.bundle_config["dataset"], self.bundle_config.get("flavor"))

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        try:
            return self._train(request, datastore)
        except HTTPException:
            raise
        except Exception as error:
            logger.exception("monai_ssl: the training has failed")
            raise plain_exception(error) from None

    def _train(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        if is_ensemble(Path(self.bundle_path)):
            name = Path(self.bundle_path).name
            raise DataError(
                f"{name} is an ensemble of networks that were trained before; a training makes one network: train "
                "another model of this app (`monai-ssl label-app --bundles` takes several)"
            )
        request = training_request(request, tuple(self.bundle_config.get("displayable_configs") or ()))
        request["run_id"] = "run"
        self._request = request
        self._cases = self._usable(request, datastore)
        labeled, unlabeled = len(self._cases.labeled), len(self._cases.unlabeled)
        self._pool = self._pseudo_labeled(request)
        run = Run(Path(self.bundle_path) / TRAINING)
        for folder in run.previous():
            shutil.rmtree(folder, ignore_errors=True)
        logger.info("monai_ssl: %d labeled and %d unlabeled images go into the training of %s",
                    labeled, unlabeled, request.get("model"))  # fmt: skip
        try:
            super().__call__(request, datastore)
        finally:
            shutil.rmtree(Path(self.bundle_path) / RENUMBERED, ignore_errors=True)
        published = Path(self.bundle_path) / WEIGHTS
        shutil.copyfile(run.model, published.with_suffix(".part"))
        os.replace(published.with_suffix(".part"), published)
        logger.info("monai_ssl: %s is the new model", published)
        return {"labeled": labeled, "unlabeled_used": unlabeled, "not_used": dict(sorted(self._cases.aside.items()))}

    def _usable(self, request: dict[str, Any], datastore: Any) -> TrainingCases:
        labeled = []
        for entry in datastore.datalist():
            name = _case(entry["image"])
            info = datastore.get_label_info(name, FINAL) or {}
            labeled.append((name, entry["image"], entry["label"], info))
        drawn = {name for name, _, _, info in labeled if is_automatic(info)}
        # an archive's answer may be two hours old: what has been labeled since is not in the pool any more
        pool = sorted({*datastore.get_unlabeled_images(), *drawn} - ({name for name, *_ in labeled} - drawn))
        limit = request.get("max_unlabeled") or (
            FROM_ARCHIVE if isinstance(datastore, DICOMWebDatastore) else len(pool)
        )
        if len(pool) > limit:
            pool = sorted(pool, key=lambda image: (not _fetched(datastore, image), image))[:limit]
            logger.info("monai_ssl: %d of the scans without label are used (max_unlabeled)", limit)
        unlabeled = [(image, datastore.get_image_uri(image)) for image in pool if image not in drawn]
        unlabeled += [(name, image) for name, image, _, _ in labeled if name in drawn and name in pool]
        labeled = [case for case in labeled if case[0] not in drawn]
        cases = usable_cases(labeled, unlabeled, self.preset, Path(self.bundle_path) / RENUMBERED)
        if drawn:
            logger.info("monai_ssl: %d labels were drawn by a model: their scans count as unlabeled", len(drawn))
        return cases

    def _pseudo_labeled(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a training learns from the pool: for a method that wants pseudo-labels, those of the present model.

        Every training is then one round of self-training; the first one, before which there is no model, learns from
        the labels alone.
        """
        pool, weights = self._cases.unlabeled, Path(self.bundle_path) / WEIGHTS
        if "pseudo_labels" not in self.bundle_config:
            return {"unlabeled_datalist": pool}
        if not pool or not weights.is_file():
            # strongly changed images of a pool without labels would only disturb the statistics of the network
            return {"unlabeled_datalist": []}
        folder, preset = Path(self.bundle_path) / PSEUDO_LABELS, self.preset
        shutil.rmtree(folder, ignore_errors=True)
        one_piece, always = anatomy(self._cases.labeled, preset)
        flips = bool(preset.augmentation.flip_axes) or preset.augmentation.policy == "literature"
        rules = Rules(tta=flips, one_piece=one_piece, always=always)
        teacher = Teacher(Path(self.bundle_path), weights, {"device": request.get("device") or "cpu"})
        rows, _ = draw([teacher], pool, preset, folder, rules)
        kept = sum(row["kept"] == "1" for row in rows)
        logger.info("monai_ssl: the present model has labeled %d scans of the pool, %d of them teach", len(rows), kept)
        if not kept:
            return {"unlabeled_datalist": []}
        return {"unlabeled_datalist": pseudo_labeled(pool, folder), "pseudo_labels": str(folder)}

    def _fetch_datalist(self, request: dict[str, Any], datastore: Any) -> list[dict[str, str]]:
        return self._cases.labeled

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        # the list is the task's own and still holds the loader of the last training
        train_handlers[:] = [h for h in train_handlers if h.get("_target_") != "CheckpointLoader"]
        if pretrained and os.path.exists(model_pytorch):
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        length = self.preset.training.epoch_length
        iterations = int(self._request.get("max_iterations") or 0)
        iterations = iterations or int(self._request.get("max_epochs", 10)) * length
        length = min(length, iterations)
        overrides |= {
            **self._pool,
            "max_iterations": iterations,
            "epoch_length": length,
            "train#trainer#max_epochs": math.ceil(iterations / length),
            "output_dir": str(Path(self.bundle_path) / TRAINING),
            "resume": False,  # the same labels again means to train on, not to find the run finished
        }
        return overrides


def _case(file: str) -> str:
    """Name of a case in a datastore, from the file of its image."""
    from monai_ssl.data.cases import split_suffix

    return split_suffix(Path(file).name)[0]


def _fetched(datastore: Any, image: str) -> bool:
    """Whether an archive's image is on this machine already."""
    folder = Path(datastore._datastore.image_path())
    return (folder / f"{image}.nii.gz").exists() or (folder / image).is_dir()


class DisagreementScoring(ScoringMethod):
    """Notes for every unlabeled image how much the trained method contradicts itself on it."""

    def __init__(self, bundle: str) -> None:
        self.bundle = Path(bundle)
        self._busy = threading.Lock()
        super().__init__(f"How much {self.bundle.name} contradicts itself: dual task, teacher or second network")

    def in_background(self, datastore: Any) -> None:
        """Score what has no score of the present model, unless that is being done."""
        if not self.version() or not self._busy.acquire(blocking=False):
            return

        def work() -> None:
            try:
                self({}, datastore)
            except Exception:
                logger.exception("monai_ssl: scoring has failed")
            finally:
                self._busy.release()

        threading.Thread(target=work, name=f"scores of {self.bundle.name}", daemon=True).start()

    def version(self) -> int:
        """Changes with every training; 0 before the first."""
        weights = self.bundle / WEIGHTS
        return int(weights.stat().st_mtime) if weights.is_file() else 0

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        version = self.version()
        images = datastore.get_unlabeled_images()
        stale = [image for image in images if self.score(datastore, image) is None]
        if isinstance(datastore, DICOMWebDatastore):  # what is here first, and not the whole archive
            stale = sorted(stale, key=lambda image: not _fetched(datastore, image))[:FROM_ARCHIVE]
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

    The answer comes at once, from the scores that are noted; what has none yet is scored in the background. Before the
    first score, the first image is taken. ``model`` in the request chooses among several bundles.
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
            raise HTTPException(404, f"model must be one of {', '.join(self.scorings)}")
        scoring = self.scorings[model]
        known = {image: score for image in images if (score := scoring.score(datastore, image)) is not None}
        if len(known) < len(images):
            scoring.in_background(datastore)  # the annotator does not wait for it
        if not known:
            return {"id": sorted(images)[0], "weight": 0.0, "model": model}
        chosen = max(sorted(known), key=known.__getitem__)
        shown = {image: round(score, 4) for image, score in sorted(known.items(), key=lambda item: -item[1])[:20]}
        logger.info("monai_ssl: disagreement of %s, %d of %d scored: %s", model, len(known), len(images), shown)
        return {"id": chosen, "weight": known[chosen], "model": model}


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
        self._search_by_modality(conf or {})
        _warn_of_open_host()
        description = "Semi-supervised segmentation: trains on labeled and unlabeled scans"
        super().__init__(app_dir, studies, conf, "monai_ssl", description, version=monai_ssl.__version__)
        _answer_mistakes()

    def _search_by_modality(self, conf: dict[str, str]) -> None:
        """An archive is searched for what the bundles segment; MONAI Label's own default, CT, finds no MR series."""
        if settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER != {"Modality": "CT"}:
            return
        tasks = [TrainTask(path, conf) for path in self.bundles.values()]
        modalities = {task.preset.modality for task in tasks if task.is_valid()}
        if len(modalities) == 1 and (modality := modalities.pop()) != "CT":
            settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER = {"Modality": modality}
            logger.info("monai_ssl: an archive is searched for series of modality %s, as the preset says", modality)

    def init_datastore(self) -> Any:
        store = super().init_datastore()
        if isinstance(store, DICOMWebDatastore):
            store._client = LabelsOnly(store._client)
        return plain_names(store)

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

    def _download_dcmqi_tools(self) -> None:
        """MONAI Label does not start on an archive without them; without internet, labels alone have to wait."""
        try:
            super()._download_dcmqi_tools()
        except Exception as error:
            logger.warning(
                "monai_ssl: the tools of dcmqi, which write labels to the archive, cannot be fetched (%s); `pip "
                "install dcmqi` brings them: until then annotations cannot be submitted", type(error).__name__
            )  # fmt: skip

    def _known(self, kind: str, name: Any, names: Any) -> None:
        if name not in names:
            raise HTTPException(404, f"there is no {kind} of this name; there are: {', '.join(names) or 'none'}")

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        self._find_new_models()
        self._known("model", request.get("model"), self._infers)
        try:
            request = inference_request(request)
        except RequestError as error:
            raise HTTPException(400, str(error)) from None
        image, store = request.get("image"), datastore or self.datastore()
        if isinstance(image, str) and image not in store.list_images():
            # a session's file, or one that came with the request; no other file of this machine
            import tempfile

            places = (self._sessions.store_path if self._sessions else "", tempfile.gettempdir())
            if not (os.path.exists(image) and inside(image, *places)):
                raise HTTPException(404, "the datastore has no image of this name")
        return super().infer(request, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        self._known("model", request.get("model"), self._trainers)
        return super().train(request)

    def bundle_path(self, model: str | None) -> str | None:
        if model is not None and model not in self._infers:  # asked before a training starts in the background
            self._known("model", model, self._trainers)
        return super().bundle_path(model)

    def scoring(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        self._known("scoring method", request.get("method"), self._scoring_methods)
        _refuse(request)
        return super().scoring(request, datastore)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        self._known("strategy", request.get("strategy") or "random", self._strategies)
        _refuse(request)
        return super().next_sample(request)


def _refuse(request: dict[str, Any]) -> None:
    try:
        refuse_special(request, "request")
    except RequestError as error:
        raise HTTPException(400, str(error)) from None


def plain_names(store: Any) -> Any:
    """The datastore, which now refuses names of images, labels and tags that would lead out of its folder."""

    def checked(method: Any, *what: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            names = dict(zip(what, args, strict=False)) | {key: kwargs[key] for key in what if key in kwargs}
            for key, value in names.items():
                try:
                    plain_name(value, key)
                except RequestError as error:
                    raise HTTPException(400, str(error)) from None
            return method(*args, **kwargs)

        return call

    store.add_image = checked(store.add_image, "image_id")
    store.remove_image = checked(store.remove_image, "image_id")
    store.remove_label = checked(store.remove_label, "label_id", "label_tag")
    store.update_image_info = checked(store.update_image_info, "image_id")
    store.update_label_info = checked(store.update_label_info, "label_id", "label_tag")
    if isinstance(store, LocalDatastore):
        save = store.save_label

        def save_label(image_id: str, label_filename: str, label_tag: str, *args: Any, **kwargs: Any) -> Any:
            return checked(lambda image_id, label_tag: save(image_id, label_filename, label_tag, *args, **kwargs),
                           "image_id", "label_tag")(image_id, label_tag)  # fmt: skip

        store.save_label = save_label
    return store


def _answer_mistakes() -> None:
    """Requests for what there is not end in 404 with the reason, where MONAI Label's server answers 500 without one."""
    module = sys.modules.get("monailabel.app")
    server = getattr(module, "app", None)
    if server is None:  # a training in a process of its own
        return

    def answer(request: Request, error: MONAILabelException) -> JSONResponse:
        missing = "not found" in str(error.msg).lower() or "there is no" in str(error.msg).lower()
        return JSONResponse({"detail": str(error.msg)}, status_code=404 if missing else 400)

    server.add_exception_handler(MONAILabelException, answer)
    server.middleware_stack = server.build_middleware_stack()


def _warn_of_open_host() -> None:
    """MONAI Label listens on all addresses unless it is told otherwise, and asks nobody for a name."""
    words = sys.argv
    if "start_server" not in words:
        return
    host = words[words.index("--host") + 1] if "--host" in words[:-1] else "0.0.0.0"
    if host not in ("localhost", "::1") and not host.startswith("127.") and not settings.MONAI_LABEL_AUTH_ENABLE:
        logger.warning(
            "monai_ssl: ATTENTION: the server listens on %s without asking for a login: everybody on this network can "
            "read the scans, train and overwrite labels. Use --host 127.0.0.1, or switch MONAI Label's login on", host
        )  # fmt: skip

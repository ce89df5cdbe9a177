"""The inference engine: one image or a folder, slab by slab, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged, MapTransform, SaveImaged, Transform
from torch import Tensor, nn

import monai_ssl
from monai_ssl.data.cases import PREDICTION_FILE, case_name, image_files
from monai_ssl.data.pipelines import saved_file, saver
from monai_ssl.data.preset import Preset, dump_preset
from monai_ssl.data.reading import count_values
from monai_ssl.engines.pipeline import Outcome, Pipeline
from monai_ssl.errors import OVERWRITE, DataError, enumerated, without_quotes
from monai_ssl.files import write_text
from monai_ssl.transforms import LabelsOnImageGridd, on_image_grid

console = logging.getLogger("monai_ssl.console")

RECORD = PREDICTION_FILE
# float32 copies of a volume that loading, normalizing and inverting hold at one time
COPIES = 6


@dataclass
class Segmentation:
    """What a network says about one image, on the grid of the file that was read, channel first.

    Attributes:
        labels: ``(1, *spatial)`` class indices.
        probabilities: ``(n_classes, *spatial)`` float32, where asked for.
        uncertainty: ``(1, *spatial)`` float32 in [0, 1], where asked for: entropy of the probabilities over the entropy
            of a guess.
    """

    labels: MetaTensor
    probabilities: MetaTensor | None = None
    uncertainty: MetaTensor | None = None


class VolumeSegmenter(Evaluator):
    """Preprocessing, network, inferer and postprocessing of a bundle, applied to one image or to many.

    It stands where a MONAI bundle has its ``evaluator``. :meth:`run` passes ``cases`` through reading, inference and
    postprocessing, which writes the files; threads read and write next to the network, as many cases are under way as
    fit into ``memory_gb``, and started again it continues with what is missing. Handlers see every finished case in
    ``engine.state.output``, a list of one item (empty for a case that could not be read). Calling the segmenter
    segments one image and writes nothing.

    The parts may be any; two of them make it lean. A :class:`~monai_ssl.engines.WindowInferer` stitches slab by slab,
    on the device, and a postprocessing that begins with :class:`~monai_ssl.transforms.LabelsOnImageGridd` turns each
    slab into labels at once: then the volume of class probabilities exists only where it is asked for or must be
    resampled.

    Args:
        device: where the network runs.
        network: image ``(B, C, *spatial)`` -> logits ``(B, n_classes, *spatial)``.
        preprocessing: file -> prepared image under ``image``.
        inferer: whole volumes -> class probabilities, or logits.
        postprocessing: its result under ``pred`` -> what is written.
        cases: ``{"image": file or files, ...}``, for :meth:`run`.
        flips: test-time augmentation: every window is also shown mirrored along these groups of spatial axes, see
            :func:`monai_ssl.data.plausible_flips`.
        uncertainty: also write ``<name>_uncertainty.nii.gz``: 0 certain, 1 a guess.
        output_dir: gets ``predict.json``, which says what made its files; None: no record.
        data_root: folder whose layout is repeated below ``output_dir``.
        jobs: threads, >= 1.
        memory_gb: for cases under way.
        overwrite: segment again what is there already.
        keep_going: a case that cannot be read does not stop the others; the error comes at the end and names them all.
        preset: the data set, for those who name classes (DICOM) and for the record.
        val_handlers, key_val_metric: of :class:`monai.engines.Evaluator`.
        **kwargs: of :class:`monai.engines.Evaluator`.

    Attributes:
        written: cases segmented by :meth:`run`.
        found: cases that were finished before it.
        empty: names of those of ``written`` in which nothing was drawn.

    Example:
        >>> from monai.transforms import Compose, EnsureTyped
        >>> from monai_ssl.engines import WindowInferer
        >>> preprocessing = Compose([EnsureTyped("image")])
        >>> segmenter = VolumeSegmenter("cpu", nn.Conv2d(1, 3, 1), preprocessing, WindowInferer((8, 8), amp="off"),
        ...                             Compose([LabelsOnImageGridd(preprocessing)]))
        >>> segmenter(MetaTensor(torch.rand(1, 20, 30)), uncertainty=True).uncertainty.shape
        torch.Size([1, 20, 30])
    """

    def __init__(
        self,
        device: torch.device | str,
        network: nn.Module,
        preprocessing: Compose,
        inferer: Inferer,
        postprocessing: Compose,
        cases: Sequence[Mapping[str, Any]] = (),
        flips: Sequence[Sequence[int]] = (),
        uncertainty: bool = False,
        output_dir: str | Path | None = None,
        data_root: str = "",
        jobs: int = 2,
        memory_gb: float = 8.0,
        overwrite: bool = False,
        keep_going: bool = True,
        preset: Preset | None = None,
        val_handlers: Sequence[Any] | None = None,
        key_val_metric: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            device, (), val_handlers=val_handlers, key_val_metric=key_val_metric, decollate=False, **kwargs
        )
        self.logger.setLevel(logging.CRITICAL)  # what stops a run reaches the caller as an exception
        self.device, self.network, self.inferer = torch.device(device), network, inferer
        if flips and hasattr(inferer, "with_flips"):
            self.inferer = inferer.with_flips(flips)
        elif flips:
            self.network = _Mirrored(network, flips)
        self.flips = [tuple(flip) for flip in flips]
        self.preprocessing, self.postprocessing = preprocessing, postprocessing
        self.cases, self.uncertainty, self.preset = list(cases), uncertainty, preset
        self.output_dir, self.data_root = output_dir, data_root
        self.jobs, self.memory_gb, self.overwrite, self.keep_going = jobs, memory_gb, overwrite, keep_going
        self.written = self.found = 0
        self.empty: list[str] = []

    # ------------------------------------------------------------------------------------------------- one image

    def __call__(self, image: Any, probabilities: bool | None = None, uncertainty: bool | None = None) -> Segmentation:
        """Segment one image; nothing is written.

        Args:
            image: a file, one file per channel, or a volume in memory with affine: ``MetaTensor``, without the channel
                axis that files lack.
            probabilities, uncertainty: also give these maps; None: as the postprocessing and the segmenter are set.
        """
        steps = [step for step in self.postprocessing.transforms if not isinstance(step, SaveImaged)]
        if probabilities is not None and steps and isinstance(steps[0], LabelsOnImageGridd):
            steps[0] = steps[0].with_probabilities(probabilities)
        uncertain = self.uncertainty if uncertainty is None else uncertainty
        item = self._postprocess(self.infer(self.prepare(image), steps, uncertain), steps)
        return Segmentation(item["pred"], item.get("prob"), item.get("uncertainty"))

    def prepare(self, image: Any) -> dict[str, Any]:
        """Preprocess one image, or one case with whatever else belongs to it.

        Args:
            image: a file, one file per channel, a volume in memory with affine, or an entry ``{"image": ...}``.

        Raises:
            DataError: when the image cannot be read or does not fit the preset.
        """
        entry = dict(image) if isinstance(image, Mapping) else {"image": image}
        steps = list(self.preprocessing.transforms)
        if isinstance(entry["image"], MetaTensor):
            steps = [step for step in steps if not isinstance(step, LoadImaged)]
        try:
            return dict(Compose(steps)(entry))  # type: ignore[arg-type]
        except Exception as error:
            raise _reading_error(error, entry["image"]) from error

    @torch.no_grad()
    def infer(
        self, item: Mapping[str, Any], steps: Sequence[Any] | None = None, uncertainty: bool | None = None
    ) -> dict[str, Any]:
        """Pass a prepared image through the network.

        Args:
            item: what :meth:`prepare` returned, or any item with a prepared ``image``.
            steps: the postprocessing that follows; default: the segmenter's.
            uncertainty: default: the segmenter's.

        Returns:
            the item with ``pred`` and, where asked for, ``uncertainty`` on the network's grid. The image's voxels are
            given up where no later step reads them; it still knows what was done to it.
        """
        steps = self.postprocessing.transforms if steps is None else steps
        first = steps[0] if steps else None
        image: MetaTensor = item["image"]
        self.network.eval()
        shape = tuple(image.shape[1:])
        slabs, logits = self._slabs(image)
        uncertain = None
        if self.uncertainty if uncertainty is None else uncertainty:
            uncertain = torch.empty(1, *shape)
            slabs = _with_entropy(slabs, logits, uncertain)
        result = dict(item)
        if isinstance(first, LabelsOnImageGridd):
            result["pred"] = first.gather(((at, _probabilities(slab, logits)) for at, slab in slabs), image)
        else:  # a postprocessing of your own gets what MONAI's evaluators give it
            result["pred"] = MetaTensor(_whole(slabs, shape), meta=image.meta)
        if uncertain is not None:
            result["uncertainty"] = uncertain
        if not any(_reads_voxels(step) for step in steps):
            result["image"] = MetaTensor(torch.zeros(1), meta=image.meta, applied_operations=image.applied_operations)
        return result

    def _slabs(self, image: MetaTensor) -> tuple[Iterator[tuple[int, Tensor]], bool]:
        """The inferer's output along the first spatial axis, and whether it may be logits.

        An inferer that knows no slabs gives the volume in one piece.
        """
        batch = image.as_tensor()[None].to(self.device)
        if hasattr(self.inferer, "sweep"):
            return self.inferer.sweep(batch, self.network), False
        output = self.inferer(batch, self.network)
        return iter([(0, torch.as_tensor(output)[0].as_subclass(Tensor).float().cpu())]), True

    def _postprocess(self, item: dict[str, Any], steps: Sequence[Any]) -> dict[str, Any]:
        if "uncertainty" in item:
            values = on_image_grid(item["uncertainty"], item["image"], self.preprocessing)
            item["uncertainty"] = values.clamp(0, 1)  # interpolation may leave the range by a rounding error
        return dict(Compose(list(steps))(item))  # type: ignore[arg-type]

    # ---------------------------------------------------------------------------------------------------- a folder

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Segment ``cases``; started again, it continues with those that are missing.

        Raises:
            DataError: when ``output_dir`` holds results of another model, when two cases would be written to one file;
                and at the end, when cases could not be read (the others are written).
        """
        steps = list(self.postprocessing.transforms)
        if self.uncertainty and self.output_dir is not None:
            steps.append(saver("uncertainty", "uncertainty", str(self.output_dir), self.data_root))
        savers = [step for step in steps if isinstance(step, SaveImaged)]
        cases = self._without_results(self.cases, savers)
        files = [[saved_file(step, case) for step in savers] for case in cases]
        _check_collisions(cases, files)
        done = [bool(names) and not self.overwrite and all(name.is_file() for name in names) for names in files]
        waiting = [case for case, there in zip(cases, done, strict=True) if not there]
        pipeline = Pipeline(
            read=self.prepare,
            infer=lambda item: self.infer(item, steps),
            finish=lambda item: self._postprocess(item, steps),
            memory_of=self._memory,
            jobs=self.jobs,
            memory=self.memory_gb * 1e9,
        )
        if self.output_dir is not None:
            self._check_record(Path(self.output_dir))
        self.written, self.found = 0, sum(done)
        self._problems: list[DataError] = []
        self.empty = []
        outcomes = pipeline(waiting)
        self.data_loader, self.state.epoch_length = outcomes, len(waiting)  # type: ignore[assignment]
        try:
            if waiting:
                super().run(global_epoch)
        finally:
            outcomes.close()  # type: ignore[attr-defined]
        if self.empty and self.output_dir is not None:  # an evaluation says it with the scores
            of = "the segmentation" if self.written == 1 else f"{len(self.empty)} of {self.written} segmentations"
            verb = "is" if len(self.empty) == 1 else "are"
            console.warning("note: %s %s empty, nothing was drawn in %s", of, verb, enumerated(self.empty))
        if self._problems:
            shown = "; ".join(map(str, self._problems[:5]))
            more = f"; and {len(self._problems) - 5} more" if len(self._problems) > 5 else ""
            raise DataError(f"{len(self._problems)} of {len(cases)} images could not be segmented: {shown}{more}")

    def _iteration(self, engine: Any, outcome: Outcome) -> list[dict[str, Any]]:  # type: ignore[override]
        if outcome.problem is not None:
            if not self.keep_going:
                raise outcome.problem
            self._problems.append(outcome.problem)
            return []
        self.written += 1
        drawn = outcome.result.get("pred")
        if drawn is not None and not bool(torch.as_tensor(drawn).any()):
            self.empty.append(case_name(outcome.entry))
        return [{"label": None, **outcome.result}]

    def _without_results(
        self, cases: Sequence[Mapping[str, Any]], savers: Sequence[SaveImaged]
    ) -> list[Mapping[str, Any]]:
        """The cases that are not results of other cases: a folder of results may lie below that of the images."""
        if self.output_dir is not None:
            maps = ("seg", "prob", "uncertainty")
            savers = [*savers, *(saver("pred", name, str(self.output_dir), self.data_root) for name in maps)]
        results = {str(saved_file(step, case)) for case in cases for step in savers}
        return [case for case in cases if not results & set(image_files(case))]

    def _memory(self, entry: Mapping[str, Any]) -> float:
        """Estimate of the bytes that a case needs; 0 where the header does not tell."""
        voxels = [count_values(file) for file in image_files(entry)]
        if not all(voxels):  # broken: reading it says what is wrong
            return 0.0
        first = next(iter(self.postprocessing.transforms), None)
        lean = isinstance(first, LabelsOnImageGridd) and not first.probabilities
        maps = 0  # volumes of class probabilities, before and after they are brought to the image's grid
        if self.preset is not None and (not lean or self.preset.spacing is not None or self.preset.resize is not None):
            maps = self.preset.n_classes * (1 if lean else 2)
        return 4.0 * (COPIES * sum(voxels) + maps * voxels[0])

    def _check_record(self, folder: Path) -> None:
        path, identity = folder / RECORD, self.fingerprint()
        if path.is_file() and not self.overwrite:
            try:
                former = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                former = None
            if former != identity:
                raise DataError(
                    f"output: {folder} holds segmentations of another model or other settings; give a new folder, or "
                    f"replace them with {OVERWRITE}"
                )
        write_text(path, json.dumps(identity, indent=2) + "\n")

    def fingerprint(self) -> dict[str, Any]:
        """What decides about the result, to tell results of one model from those of another."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        steps = [step for step in self.postprocessing.transforms if not isinstance(step, SaveImaged)]
        settings = json.dumps([_described(part) for part in (self.preprocessing, self.inferer, steps)])
        return {
            "weights_sha256": digest.hexdigest(),
            "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
            "test_time_augmentation": [list(flip) for flip in self.flips],
            "monai_ssl": monai_ssl.__version__,
        }


class _Mirrored(nn.Module):
    """Test-time augmentation for an inferer that does not know it: mean probabilities of mirrored views, as logits."""

    def __init__(self, network: nn.Module, flips: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.network, self.axes = network, [(), *(tuple(axis + 2 for axis in flip) for flip in flips)]

    def forward(self, image: Tensor) -> Tensor:
        views = [self.network(image.flip(axes)).float().softmax(1).flip(axes) for axes in self.axes]
        return torch.stack(views).mean(0).clamp_min(1e-12).log()


def entropy(probabilities: Tensor) -> Tensor:
    """Predictive entropy over its maximum.

    Args:
        probabilities: ``(n_classes, *spatial)``, summing to 1.

    Returns:
        ``(*spatial)`` in [0, 1]: 0 certain, 1 a guess.

    Example:
        >>> entropy(torch.tensor([[1.0, 0.5], [0.0, 0.5]]))
        tensor([0., 1.])
    """
    return torch.special.entr(probabilities).sum(0) / math.log(len(probabilities))


def _with_entropy(slabs: Iterable[tuple[int, Tensor]], logits: bool, volume: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The same slabs; their entropy is written into ``volume`` on the way."""
    for first, slab in slabs:
        volume[0, first : first + slab.shape[1]] = entropy(_probabilities(slab, logits))
        yield first, slab


def _whole(slabs: Iterable[tuple[int, Tensor]], shape: tuple[int, ...]) -> Tensor:
    volume: Tensor | None = None
    for first, slab in slabs:
        if volume is None:
            volume = torch.empty(len(slab), *shape)
        volume[:, first : first + slab.shape[1]] = slab
    assert volume is not None
    return volume


def _probabilities(output: Tensor, logits: bool) -> Tensor:
    """What may be logits becomes class probabilities; what sums to one everywhere is left as it is."""
    if not logits or (output.min() >= 0 and (output.sum(0) - 1).abs().max() < 1e-3):
        return output
    return output.softmax(0)


def _reads_voxels(step: Any) -> bool:
    """Whether a step of the postprocessing may look at the image itself."""
    return not isinstance(step, MapTransform) or "image" in step.keys


def _check_collisions(cases: Sequence[Mapping[str, Any]], files: Sequence[Sequence[Path]]) -> None:
    owners: dict[Path, str] = {}
    for case, names in zip(cases, files, strict=True):
        image = image_files(case)[0]
        for name in names:
            if name in owners:
                raise DataError(
                    f"images: {owners[name]} and {image} would both be written to {name}; rename one, or segment them "
                    "into two folders"
                )
            owners[name] = image


def _described(part: Any) -> Any:
    """Plain data that says how transforms and inferers are set, the same in every process."""
    if isinstance(part, (str, int, float, bool)) or part is None:
        return part
    if isinstance(part, Preset):
        return dump_preset(part)
    if isinstance(part, (list, tuple)):
        return [_described(entry) for entry in part]
    if isinstance(part, Mapping):
        return [[str(key), _described(value)] for key, value in part.items()]
    name = getattr(part, "__qualname__", type(part).__qualname__)
    if isinstance(part, (Transform, Inferer)):
        settings = {key: value for key, value in sorted(vars(part).items()) if not key.startswith("_") and key != "R"}
        return [name, _described(settings)]
    if isinstance(part, (Tensor, np.ndarray, np.generic)):
        return [name, part.tolist()]
    return name


def _reading_error(error: Exception, image: Any) -> DataError:
    """One line for whatever a reader raised, naming the file."""
    link: BaseException | None = error
    cause: BaseException = error
    while link is not None:
        if isinstance(link, DataError):
            return DataError(str(link))
        if isinstance(link, MemoryError):
            raise link
        cause, link = link, link.__cause__ or link.__context__
    file = image[0] if isinstance(image, (list, tuple)) else image
    name = "image" if isinstance(file, MetaTensor) else Path(str(file)).name
    return DataError(f"{name}: cannot be read or prepared ({without_quotes(cause, 200)})")

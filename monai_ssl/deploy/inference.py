"""Segmenting with a trained bundle: one image, or a folder with many, in bounded memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import create_file_basename
from monai.transforms import Compose, Invertd, LoadImaged
from torch import Tensor
from tqdm import tqdm

import monai_ssl
from monai_ssl.data import Preset, dump_preset
from monai_ssl.data.datalist import DataError, image_files
from monai_ssl.engines import WindowInferer
from monai_ssl.files import write_text
from monai_ssl.handlers import load_network

logger = logging.getLogger(__name__)

RECORD = "predict.json"
# float32 copies of a volume that loading, normalising and inverting hold at one time
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


class Segmenter:
    """A trained bundle, ready to segment one image after the other.

    Preset, network, preprocessing and inferer are the objects of the bundle's ``configs/inference.yaml``, so the result
    is that of ``monai.bundle run``. The volume of class probabilities is not held as a whole, unless it is asked for or
    must be resampled: windows are stitched slab by slab, and each slab becomes labels at once.

    Args:
        bundle: folder of the bundle.
        overrides: ids of ``configs/inference.yaml`` -> values; ``ckpt`` names the weights, default ``models/model.pt``.
        tta: average over the mirrored views that the preset's augmentation holds plausible.

    Raises:
        DataError: when weights are missing or do not fit, or ``tta`` is asked of a preset that allows no flips.
    """

    def __init__(self, bundle: Path, overrides: Mapping[str, Any] | None = None, tta: bool = False) -> None:
        from monai.bundle import ConfigParser

        parser = ConfigParser()
        parser.read_config(str(bundle / "configs" / "inference.yaml"))
        parser.update({"bundle_root": str(bundle), **(overrides or {})})
        self.parser = parser
        self.preset: Preset = parser.get_parsed_content("preset")
        self.device = torch.device(parser.get_parsed_content("device"))
        self.preprocessing: Compose = parser.get_parsed_content("preprocessing")
        self.inferer: WindowInferer = parser.get_parsed_content("inferer")
        self.ckpt = Path(parser.get_parsed_content("ckpt"))
        self.tta = tta
        if tta:
            self.inferer.flips = [tuple(axis + 2 for axis in flip) for flip in plausible_flips(self.preset)]
        self.network = load_network(parser.get_parsed_content("network"), self.ckpt).eval()

    def prepare(self, image: Any) -> dict[str, Any]:
        """Preprocess one image.

        Args:
            image: a file, one file per channel, or a volume ``(*spatial)`` in memory with affine.

        Raises:
            DataError: when the image cannot be read or does not fit the preset.
        """
        steps = list(self.preprocessing.transforms)
        if isinstance(image, MetaTensor):
            steps = [step for step in steps if not isinstance(step, LoadImaged)]
        try:
            return dict(Compose(steps)({"image": image}))  # type: ignore[arg-type]
        except Exception as error:
            raise _reading_error(error, image) from error

    @torch.no_grad()
    def infer(self, item: dict[str, Any], probabilities: bool = False, uncertainty: bool = False) -> dict[str, Any]:
        """Pass a prepared image through the network; :meth:`finish` brings the result to the image's grid.

        Returns:
            ``image``: an empty tensor that still knows its transforms, and on the network's grid ``pred``: labels, or
            ``prob``: class probabilities, where they are asked for or must be resampled; and ``uncertainty``.
        """
        image: MetaTensor = item["image"]
        slabs = self.inferer.sweep(image.as_tensor()[None], self.network, self.device)
        whole = probabilities or self.preset.spacing is not None or self.preset.resize is not None
        shape = tuple(image.shape[1:])
        result: dict[str, Any] = {}
        for first, slab in slabs:
            rows = slice(first, first + slab.shape[1])
            if whole:
                result.setdefault("prob", torch.empty(len(slab), *shape))[:, rows] = slab
            else:
                result.setdefault("pred", torch.empty(1, *shape, dtype=torch.uint8))[0, rows] = slab.argmax(0).byte()
            if uncertainty:
                result.setdefault("uncertainty", torch.empty(1, *shape))[0, rows] = entropy(slab)
        # the voxels are not needed any more
        result["image"] = MetaTensor(torch.zeros(1), meta=image.meta, applied_operations=image.applied_operations)
        return result

    def finish(self, result: dict[str, Any], probabilities: bool = False) -> Segmentation:
        """Bring what :meth:`infer` returned to the grid of the file that was read."""
        if probabilities:
            item = {"image": result["image"], "pred": result["prob"]}
            done = self.preset.postprocessing(self.preprocessing, None, True)(item)
            labels, found = done["pred"], done["prob"]
        else:
            labels, found = self._labels(result), None
        certain = self._invert(result, result["uncertainty"]).clamp(0, 1) if "uncertainty" in result else None
        return Segmentation(labels, found, certain)  # type: ignore[arg-type]

    def _labels(self, result: dict[str, Any]) -> MetaTensor:
        if "pred" in result:
            labels = self._invert(result, result["pred"], nearest=True)
        else:  # the class with the highest probability AFTER resampling, one class at a time
            best = labels = self._invert(result, result["prob"][:1])
            labels = MetaTensor(torch.zeros(best.shape, dtype=torch.uint8), meta=best.meta)
            for index in range(1, self.preset.n_classes):
                other = self._invert(result, result["prob"][index : index + 1])
                higher = other > best
                labels[higher] = index
                best = torch.where(higher, other, best)  # type: ignore[assignment]
        for step in self.preset.cleaning():
            labels = step({"pred": labels})["pred"]
        return labels

    def _invert(self, result: dict[str, Any], values: Tensor, nearest: bool = False) -> MetaTensor:
        item: dict[Any, Any] = {"image": result["image"], "pred": MetaTensor(values)}
        return Invertd("pred", self.preprocessing, orig_keys="image", nearest_interp=nearest)(item)["pred"]

    def __call__(self, image: Any, probabilities: bool = False, uncertainty: bool = False) -> Segmentation:
        """Segment one image: file, files per channel, or volume in memory."""
        return self.finish(self.infer(self.prepare(image), probabilities, uncertainty), probabilities)

    def fingerprint(self) -> dict[str, Any]:
        """What decides about the result, to tell results of one model from those of another."""
        digest = hashlib.sha256(self.ckpt.read_bytes()).hexdigest()
        preset = hashlib.sha256(dump_preset(self.preset).encode()).hexdigest()
        return {"weights_sha256": digest, "preset_sha256": preset, "amp": str(self.inferer.amp),
                "test_time_augmentation": self.tta, "monai_ssl": monai_ssl.__version__}  # fmt: skip


def plausible_flips(preset: Preset) -> list[tuple[int, ...]]:
    """Every combination of axes along which the training mirrored its patches.

    Raises:
        DataError: when there is none.
    """
    literature = preset.augmentation.policy == "literature"
    axes = (0, 1) if literature else preset.augmentation.flip_axes
    flips = [flip for n in range(1, len(axes) + 1) for flip in itertools.combinations(sorted(set(axes)), n)]
    if not flips:
        raise DataError(
            f"tta: the preset {preset.name} allows no mirroring (augmentation.flip_axes is empty), so there is nothing "
            "to average over; leave --tta away"
        )
    return flips


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
    text = " ".join(str(cause).split())[:200] or type(cause).__name__
    return DataError(f"{name}: cannot be read or prepared ({text})")


# ------------------------------------------------------------------------------------------------------------ a folder


def predict_folder(
    segmenter: Segmenter,
    entries: Sequence[Mapping[str, Any]],
    output_dir: Path,
    data_root: Path,
    probabilities: bool = False,
    uncertainty: bool = False,
    jobs: int = 2,
    memory_gb: float = 8.0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Segment many images; started again, it goes on with those that are missing.

    Images are read, and results brought to their grid and written, by ``jobs`` threads beside the network. As many
    images are under way as fit into ``memory_gb``, and always one.

    Args:
        segmenter: the model.
        entries: ``{"image": file or files}``.
        output_dir: gets ``NAME_seg.nii.gz`` (and ``_prob``, ``_uncertainty``) in the layout of ``data_root``, and
            ``predict.json``, which says what made them.
        data_root: folder whose layout is repeated.
        probabilities, uncertainty: also write these maps.
        jobs: threads, >= 1.
        memory_gb: for images under way.
        overwrite: segment again what is there already.

    Returns:
        numbers of segmentations written now and found finished.

    Raises:
        DataError: when ``output_dir`` holds results of another model; at the end, when images could not be read (the
            others are written).
    """
    if jobs < 1:
        raise DataError(f"jobs: must be >= 1, got {jobs}")
    names = ["seg", *["prob"] * probabilities, *["uncertainty"] * uncertainty]
    _check_record(output_dir, segmenter.fingerprint(), overwrite)
    files = {id(entry): _results(entry, names, output_dir, data_root) for entry in entries}
    waiting = deque(e for e in entries if overwrite or not all(file.is_file() for file in files[id(e)]))
    finished = len(entries) - len(waiting)
    budget = memory_gb * 1e9
    savers = {"seg": "labels", "prob": "probabilities", "uncertainty": "uncertainty"}
    problems: list[str] = []

    def finish(result: dict[str, Any]) -> None:
        done = segmenter.finish(result, probabilities)
        for name in names:
            segmenter.preset.saver("pred", name, str(output_dir), str(data_root))({"pred": getattr(done, savers[name])})

    under_way: deque[tuple[float, Future]] = deque()  # in the order of the images
    reading: deque[tuple[Future, float]] = deque()
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(waiting), desc="segmentation", disable=None) as progress:
        try:
            while waiting or reading:
                while waiting and len(reading) < jobs + 1:
                    cost = _memory(waiting[0])
                    used = sum(c for _, c in reading) + sum(c for c, _ in under_way)
                    if used and used + cost > budget:
                        if reading:
                            break
                        under_way.popleft()[1].result()  # wait until it is written
                        continue
                    reading.append((pool.submit(segmenter.prepare, waiting.popleft()["image"]), cost))
                future, cost = reading.popleft()
                try:
                    item = future.result()
                except DataError as error:
                    problems.append(str(error))
                else:
                    under_way.append((cost, pool.submit(finish, segmenter.infer(item, probabilities, uncertainty))))
                    del item
                future = None  # type: ignore[assignment]  # it holds the image
                progress.update()
                while under_way and (under_way[0][1].done() or len(under_way) > jobs):
                    under_way.popleft()[1].result()
            for _, writing in under_way:
                writing.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DataError(f"{len(problems)} of {len(entries)} images could not be segmented: {shown}")
    return len(entries) - finished, finished


def _results(entry: Mapping[str, Any], names: Iterable[str], output_dir: Path, data_root: Path) -> list[Path]:
    """The files that MONAI's SaveImage writes for an image."""
    image = image_files(entry)[0]
    base = [create_file_basename(name, image, str(output_dir), str(data_root), False, makedirs=False) for name in names]
    return [Path(f"{path}.nii.gz") for path in base]


def _memory(entry: Mapping[str, Any]) -> float:
    """Estimate of the bytes that a case needs; 0 where the header does not tell."""
    import nibabel as nib

    try:
        images: list[Any] = [nib.load(file) for file in image_files(entry)]
        voxels = sum(math.prod(image.shape) for image in images)
    except Exception:  # not NIfTI, or broken: reading it says what is wrong
        return 0.0
    return voxels * 4 * COPIES


def _check_record(output_dir: Path, fingerprint: dict[str, Any], overwrite: bool) -> None:
    path = output_dir / RECORD
    if path.is_file() and not overwrite:
        try:
            former = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            former = None
        if former != fingerprint:
            raise DataError(
                f"output: {output_dir} holds segmentations of another model or other settings; give a new folder, or "
                "--overwrite True to replace them"
            )
    write_text(path, json.dumps(fingerprint, indent=2) + "\n")

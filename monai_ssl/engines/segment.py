"""Segmenting with a trained bundle: one image, or a folder with many, in bounded memory."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged
from torch import Tensor

import monai_ssl
from monai_ssl.data import Preset, dump_preset
from monai_ssl.data.pipelines import cleaning, postprocessing
from monai_ssl.engines import WindowInferer
from monai_ssl.errors import DataError
from monai_ssl.weights import load_network

logger = logging.getLogger(__name__)


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
            done = postprocessing(self.preset, self.preprocessing, None, True)(item)
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
        for step in cleaning(self.preset):
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

"""Normalized signed distance maps of label maps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import distance_transform_edt

from monai_ssl.labels import IGNORE_LABEL

DEGENERATE = ("safe", "official", "zero")


def signed_distance_map(mask: np.ndarray, degenerate: str = "safe", known: np.ndarray | None = None) -> np.ndarray:
    r"""Signed distance of one binary mask, normalized inside and outside separately.

    Outside in (0, 1], inside in [-1, 0), 0 on the inner boundary (foreground voxels that share a face with the
    background; the border of the array is no boundary):

    .. math:: d = \frac{D_{out}}{\max D_{out}} - \frac{D_{in}}{\max D_{in}}

    Distances are Euclidean, in voxels (no spacing), within the array given: a map of a crop differs from the crop of
    a map.

    Args:
        mask: array ``(*spatial)``, any dtype; non-zero is foreground.
        degenerate: masks without a contour. ``"safe"``: empty -> +1 everywhere (all outside), full -> -1 everywhere.
            ``"official"``: what the released code gives, empty -> 0 everywhere (a contradictory target: a soft mask
            of 0.5), full -> NaN everywhere. ``"zero"``: 0 everywhere for both, the released target of empty patches
            without the NaN.
        known: where somebody knows what is inside and what is outside, bool ``(*spatial)``; None: everywhere. The
            other voxels are neither: distances lead from a known voxel to the nearest known one of the other side,
            and their own value, 0, means nothing. Where all known voxels are inside, nobody knows how far: NaN
            everywhere, which :func:`~monai_ssl.losses.supervised_mse` leaves out.

    Returns:
        float32 array ``(*spatial)`` in [-1, 1], or NaN.

    Raises:
        ValueError: when ``degenerate`` is unknown.

    Source: DTC, Eq. 1 (un-normalized there; the released code normalizes because the head ends in tanh).

    Example:
        >>> signed_distance_map(np.array([0, 0, 1, 1, 1, 1, 0])).tolist()
        [1.0, 0.5, 0.0, -1.0, -1.0, 0.0, 0.5]
    """
    if degenerate not in DEGENERATE:
        raise ValueError(f"degenerate must be one of {DEGENERATE}, got {degenerate!r}")
    # imported here: the GPU path never needs it
    from scipy.ndimage import distance_transform_edt as edt

    foreground = np.asarray(mask) != 0
    if known is not None:
        foreground = foreground & known
    background = ~foreground if known is None else ~foreground & known
    partly = known is not None and not bool(known.all())
    constant = _degenerate_value(bool(foreground.any()), not background.any(), degenerate, partly)
    if constant is not None:
        return np.full(foreground.shape, constant, dtype=np.float32)
    inside, outside = edt(~background), edt(~foreground)
    if known is not None:  # distances from unknown voxels do not scale the map
        inside, outside = inside * foreground, outside * background
    distance = outside / outside.max() - inside / inside.max()
    distance[foreground & (inside == 1.0)] = 0.0
    return distance.astype(np.float32)


def _degenerate_value(any_foreground: bool, all_foreground: bool, degenerate: str, partly: bool) -> float | None:
    if not any_foreground:
        return 1.0 if degenerate == "safe" else 0.0
    if all_foreground and partly:
        return float("nan")
    if all_foreground:
        return {"safe": -1.0, "official": float("nan"), "zero": 0.0}[degenerate]
    return None


class SignedDistanceMap(Transform):
    """Label map -> one signed distance map per foreground class; see :func:`signed_distance_map`.

    Args:
        n_classes: number of classes with background, >= 2. With 2 every non-zero label is foreground (as in the
            released code); with more, channel ``c - 1`` is the map of ``label == c``.
        degenerate: ``"safe"``, ``"official"`` or ``"zero"``, see :func:`signed_distance_map`.

    Shapes:
        label ``(1, *spatial)``, 2D or 3D, array or tensor -> float32 tensor ``(n_classes - 1, *spatial)`` on the same
        device. CUDA tensors go through MONAI's ``distance_transform_edt`` (cuCIM where installed). Voxels labeled
        :data:`~monai_ssl.losses.IGNORE_LABEL` are neither inside nor outside, see ``known`` of
        :func:`signed_distance_map`; leave them out of the loss.

    Raises:
        ValueError: when ``n_classes < 2``, ``degenerate`` is unknown or the label has not exactly one channel.

    Example:
        >>> SignedDistanceMap(n_classes=3)(torch.randint(0, 3, (1, 8, 8))).shape
        torch.Size([2, 8, 8])
    """

    def __init__(self, n_classes: int = 2, degenerate: str = "safe") -> None:
        if n_classes < 2:
            raise ValueError(f"n_classes must be >= 2 (background included), got {n_classes}")
        if degenerate not in DEGENERATE:
            raise ValueError(f"degenerate must be one of {DEGENERATE}, got {degenerate!r}")
        self.n_classes, self.degenerate = n_classes, degenerate

    def __call__(self, label: NdarrayOrTensor) -> torch.Tensor:
        label = torch.as_tensor(label)
        if label.shape[0] != 1:
            raise ValueError(f"label must have one channel (1, *spatial), got shape {tuple(label.shape)}")
        label = label[0]
        masks = [label != 0] if self.n_classes == 2 else [label == c for c in range(1, self.n_classes)]
        ignored = label == IGNORE_LABEL
        known = ~ignored if ignored.any() else None
        return torch.stack([self._cuda(m, known) if m.is_cuda else self._cpu(m, known) for m in masks])

    def _cpu(self, mask: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        of = None if known is None else known.numpy()
        return torch.from_numpy(signed_distance_map(mask.numpy(), self.degenerate, of))

    def _cuda(self, mask: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        if known is not None:
            mask = mask & known
        background = ~mask if known is None else ~mask & known
        partly = known is not None and not bool(known.all())
        constant = _degenerate_value(bool(mask.any()), not bool(background.any()), self.degenerate, partly)
        if constant is not None:
            return torch.full(mask.shape, constant, device=mask.device)
        sides = (1, 1, -1) if mask.dim() == 1 else (1, *mask.shape)  # MONAI takes no lines
        inside, outside = (
            torch.as_tensor(distance_transform_edt(m.float().reshape(sides))).reshape(mask.shape)
            for m in (~background, ~mask)
        )
        if known is not None:
            inside, outside = inside * mask, outside * background
        distance = outside / outside.max() - inside / inside.max()
        distance[mask & (inside == 1.0)] = 0.0
        return distance.float()


class SignedDistanceMapd(MapTransform):
    """Dictionary version of :class:`SignedDistanceMap`.

    Args:
        keys: key of the label.
        n_classes, degenerate: see :class:`SignedDistanceMap`.
        output_key: key of the result. The label stays.
        allow_missing_keys: skip items without a label.

    Example:
        >>> item = SignedDistanceMapd("label", n_classes=2)({"label": torch.ones(1, 4, 4)})
        >>> sorted(item)
        ['label', 'signed_distance']
    """

    def __init__(
        self,
        keys: KeysCollection,
        n_classes: int = 2,
        degenerate: str = "safe",
        output_key: str = "signed_distance",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = SignedDistanceMap(n_classes, degenerate)
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[self.output_key] = self.transform(item[key])
        return item

"""A random patch that is cut out, turned and scaled in one step, with every position of a scan drawn."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.transforms.utils import create_rotate, create_scale


class RandPatchd(RandomizableTransform, MapTransform):
    """Cut out a patch at a random position and, with a probability, turn and scale what it shows.

    Along an axis of n voxels the first voxel of a patch of p is drawn evenly from ``-p/2 ... n - p/2`` and moved into
    ``0 ... n - p``: a patch lies inside the scan, and the outermost voxels, which one position alone can show, are
    drawn about half as often as the average one, where an even draw of the inner positions would nearly never show
    them. Sliding windows ask the network about them all the same. A turned patch is moved inside, too; where
    the scan is too small for it, the scan's border is repeated. Only what the patch shows is sampled: turning costs the
    same in a scan of any size.

    Args:
        keys: tensors (C, *spatial) of one spatial shape, plain or with metadata, at least as large as the patch.
        patch_size: voxels per axis, two or three axes.
        prob: of turning and scaling.
        rotate_range: radians; each angle is drawn evenly from -rotate_range ... rotate_range.
        scale_range: each axis is scaled by a factor drawn evenly from 1 - scale_range ... 1 + scale_range.
        mode: "bilinear" or "nearest" per key, or one for all.

    Raises:
        ValueError: when an image is smaller than the patch, or images differ in shape.

    Returns:
        from a call: the dictionary with tensors (C, *patch_size) of the same dtype.

    Example:
        >>> crop = RandPatchd(["image", "label"], (8, 8, 8), 1.0, 0.2, 0.1, ["bilinear", "nearest"])
        >>> item = {"image": torch.rand(1, 12, 9, 8), "label": torch.ones(1, 12, 9, 8, dtype=torch.uint8)}
        >>> tuple(crop(item)["label"].shape)
        (1, 8, 8, 8)
    """

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: Sequence[int],
        prob: float = 0.0,
        rotate_range: float = 0.0,
        scale_range: float = 0.0,
        mode: str | Sequence[str] = "bilinear",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.patch_size = tuple(int(side) for side in patch_size)
        self.rotate_range, self.scale_range = float(rotate_range), float(scale_range)
        self.modes = [mode] * len(self.keys) if isinstance(mode, str) else list(mode)
        if len(self.modes) != len(self.keys) or not set(self.modes) <= {"bilinear", "nearest"}:
            raise ValueError(f"mode must be bilinear or nearest for each of {list(self.keys)}, got {mode!r}")

    def draw(self, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Center of a patch in voxels, and the matrix by which offsets from it are changed; None: not at all.

        Args:
            shape: spatial shape of the scan.
        """
        self.randomize(None)
        sides, n_axes = np.asarray(self.patch_size), len(self.patch_size)
        room = np.asarray(shape) - sides
        start = np.array([self.R.randint(-(p // 2), r + p // 2 + 1) for p, r in zip(sides, room, strict=True)])
        angles = self.R.uniform(-self.rotate_range, self.rotate_range, 3 if n_axes == 3 else 1)
        scales = 1 + self.R.uniform(-self.scale_range, self.scale_range, n_axes)
        half = (sides - 1) / 2
        if not self._do_transform:
            return np.clip(start, 0, room) + half, None
        turned: Any = create_rotate(n_axes, angles.tolist())
        scaled: Any = create_scale(n_axes, scales.tolist())
        matrix = (turned @ scaled)[:n_axes, :n_axes]
        # moved inside, so that it shows nothing beyond the border, or to the middle where the scan is not so large
        reach = np.minimum(np.abs(matrix) @ half, (np.asarray(shape) - 1) / 2)
        return np.clip(start + half, reach, np.asarray(shape) - 1 - reach), matrix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        shape = tuple(result[self.keys[0]].shape[1:])
        for key in self.keys:
            found = tuple(result[key].shape[1:])
            if found != shape or any(n < p for n, p in zip(found, self.patch_size, strict=True)):
                raise ValueError(f"{key} must have one shape with the others, at least {self.patch_size}, got {found}")
        center, matrix = self.draw(shape)
        start = [round(c - (p - 1) / 2) for c, p in zip(center, self.patch_size, strict=True)]
        for key, mode in zip(self.keys, self.modes, strict=True):
            if matrix is None:
                window = (slice(None), *(slice(s, s + p) for s, p in zip(start, self.patch_size, strict=True)))
                result[key] = torch.as_tensor(result[key])[window].contiguous()
            else:
                result[key] = sample_patch(torch.as_tensor(result[key]), center, self.patch_size, matrix, mode)
        return result


def sample_patch(
    image: torch.Tensor,
    center: Sequence[float] | np.ndarray,
    patch_size: Sequence[int],
    matrix: np.ndarray,
    mode: str = "bilinear",
) -> torch.Tensor:
    """What a patch shows when offsets from its center are multiplied by a matrix; beyond the image its border.

    Args:
        image: (C, *spatial), any dtype.
        center: of the patch, in voxels.
        patch_size: voxels per axis.
        matrix: (axes, axes).
        mode: "bilinear" or "nearest".

    Returns:
        (C, *patch_size), dtype of the image.

    Example:
        >>> patch = sample_patch(torch.arange(6.0).reshape(1, 2, 3), (0.5, 1.5), (2, 2), np.eye(2))
        >>> patch.round(decimals=4).tolist()
        [[[1.0, 2.0], [4.0, 5.0]]]
    """
    sides = np.asarray(patch_size, dtype=float)
    center = np.asarray(center, dtype=float)
    # only what the patch reaches is converted and sampled
    reach = np.abs(matrix) @ ((sides - 1) / 2)
    shape = np.asarray(image.shape[1:])
    low = np.clip(np.floor(center - reach).astype(int) - 1, 0, shape - 1)
    high = np.clip(np.ceil(center + reach).astype(int) + 2, low + 1, shape)
    reached = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
    box = image[reached]
    span = np.maximum((high - low - 1) / 2, 0.5)  # half of a box, from voxel to voxel
    theta = np.concatenate(
        [(matrix * ((sides - 1) / 2)) / span[:, None], ((center - low - (high - low - 1) / 2) / span)[:, None]], axis=1
    )
    n = len(sides)
    order = [*range(n - 1, -1, -1)]  # grids of PyTorch name the last axis first
    theta = theta[order][:, [*order, n]]
    grid = functional.affine_grid(
        torch.as_tensor(theta, dtype=torch.float32)[None], [1, 1, *map(int, patch_size)], align_corners=True
    )
    values = functional.grid_sample(
        box[None].to(torch.float32), grid, mode=mode, padding_mode="border", align_corners=True
    )
    return values[0].to(image.dtype)

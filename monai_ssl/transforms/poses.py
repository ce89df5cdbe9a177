"""Geometric transforms of a batch that is already on the device, the same for images and for what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Poses:
    r"""One geometric transform per row: quarter turns in a plane, then flips, then a scaling about the center.

    Turns and flips move voxels and are exact. A scaling by :math:`s` shows at :math:`c + d` what was at
    :math:`c + d / s`, by linear interpolation; beyond the edge, the edge's value is continued.

    Args:
        turns: quarter turns of each row, in [0, 3].
        flips: spatial axes along which each row is flipped.
        scales: :math:`s` > 0 of each row; 1 leaves it as it is.
        plane: the two spatial axes of the turns; None where there are none.

    Example:
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> Poses(turns=(1,), flips=((),), scales=(1.0,), plane=(0, 1))(image)[0, 0].tolist()
        [[2.0, 4.0], [1.0, 3.0]]
    """

    turns: tuple[int, ...]
    flips: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    plane: tuple[int, int] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Transform ``(B, C, *spatial)`` of a floating-point type; gradients pass.

        Raises:
            ValueError: for another number of rows, or an odd number of quarter turns of sides that differ.
        """
        self._check(x)
        rows = []
        for i, row in enumerate(x):
            if self.plane is not None and self.turns[i]:
                row = row.rot90(self.turns[i], (self.plane[0] + 1, self.plane[1] + 1))
            rows.append(row.flip([axis + 1 for axis in self.flips[i]]) if self.flips[i] else row)
        moved = torch.stack(rows)
        if self._unscaled:
            return moved
        wide = moved if x.dtype == torch.float64 else moved.float()
        grid = self._grid(x).to(wide.dtype)
        sampled = nn.functional.grid_sample(wide, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return sampled.to(x.dtype)

    def inside(self, like: Tensor) -> Tensor:
        """Where a transformed ``(B, C, *spatial)`` shows what the image held: ``(B, 1, *spatial)`` bool."""
        if self._unscaled:
            return torch.ones(len(like), 1, *like.shape[2:], dtype=torch.bool, device=like.device)
        return (self._grid(like).abs() <= 1).all(-1)[:, None]

    @property
    def _unscaled(self) -> bool:
        return all(scale == 1 for scale in self.scales)

    def _grid(self, x: Tensor) -> Tensor:
        axes = x.dim() - 2
        matrices = torch.zeros(len(x), axes, axes + 1, device=x.device)
        factors = torch.tensor([1 / scale for scale in self.scales], device=x.device)
        matrices[:, range(axes), range(axes)] = factors[:, None]
        return nn.functional.affine_grid(matrices, [len(x), 1, *x.shape[2:]], align_corners=False)

    def _check(self, x: Tensor) -> None:
        if len(x) != len(self.turns):
            raise ValueError(f"the batch must have {len(self.turns)} rows, one per transform, got {len(x)}")
        if self.plane is not None and any(turn % 2 for turn in self.turns):
            sides = [x.shape[axis + 2] for axis in self.plane]
            if sides[0] != sides[1]:
                raise ValueError(f"sides must be equal along the axes {self.plane} of a quarter turn, got {sides}")


def random_poses(
    image: Tensor,
    flip_axes: Sequence[int] = (),
    rotate90_axes: Sequence[int] | None = None,
    scale: float = 0.0,
) -> Poses:
    """Draw a transform for each row from PyTorch's generator of the CPU.

    Args:
        image: ``(B, C, *spatial)``, for its shape.
        flip_axes: spatial axes, each flipped with probability 0.5.
        rotate90_axes: two spatial axes, turned by 0 to 3 quarters; by 0 or 2 where their sides differ. None: no turns.
        scale: s in [0, 0.5): each row is scaled by U(1 - s, 1 + s).

    Raises:
        ValueError: for axes that the image does not have, or a scale out of its range.

    Example:
        >>> poses = random_poses(torch.zeros(3, 1, 8, 8), flip_axes=[0, 1], rotate90_axes=[0, 1])
        >>> len(poses.turns), poses.scales
        (3, (1.0, 1.0, 1.0))
    """
    spatial, rows = image.shape[2:], len(image)
    axes = [*flip_axes, *(rotate90_axes or ())]
    if any(not 0 <= axis < len(spatial) for axis in axes):
        raise ValueError(f"flip_axes and rotate90_axes must be axes 0 to {len(spatial) - 1}, got {axes}")
    if not 0 <= scale < 0.5:
        raise ValueError(f"scale must be in [0, 0.5), got {scale}")
    turns, plane = [0] * rows, None
    if rotate90_axes is not None:
        plane = (rotate90_axes[0], rotate90_axes[1])
        step = 1 if spatial[plane[0]] == spatial[plane[1]] else 2
        turns = [step * int(k) for k in torch.randint(0, 4 // step, (rows,))]
    flipped = torch.rand(rows, len(flip_axes)) < 0.5
    flips = [tuple(axis for axis, flip in zip(flip_axes, row.tolist(), strict=True) if flip) for row in flipped]
    scales = (1 + scale * (2 * torch.rand(rows) - 1)).tolist() if scale > 0 else [1.0] * rows
    return Poses(tuple(turns), tuple(flips), tuple(scales), plane)

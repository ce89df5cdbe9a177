"""A scan in memory, and its place in space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE_TOLERANCE = 1e-3
AFFINE_RULE = "header must state a valid affine, got one without volume or not finite: export it again"


@dataclass(frozen=True)
class Scan:
    """One image file as stored.

    Attributes:
        voxels: ``(X, Y[, Z])``, with channels where ``channel_axis`` says; real numbers in a type that PyTorch knows,
            in the machine's byte order.
        affine: ``(4, 4)`` from indices to RAS millimeters, None where the format states none (PNG and the like).
        channel_axis: -1 for channels last, as files store them; 0 for channels first; None without channels.
        notes: what of the file had to be interpreted, for people; each a rule, what was found, what was done.
    """

    voxels: np.ndarray
    affine: np.ndarray | None
    channel_axis: int | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def channel_first(self) -> np.ndarray:
        """The voxels as ``(C, X, Y[, Z])``, a view."""
        return self.voxels[None] if self.channel_axis is None else np.moveaxis(self.voxels, self.channel_axis, 0)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return self.channel_first.shape[1:]


def spacing_of(affine: Any, dims: int) -> list[float]:
    """Voxel size in mm from an affine, one entry per axis."""
    matrix = np.asarray(affine, dtype=float)
    return [float(size) for size in np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))[:dims]]


def valid_affine(affine: np.ndarray) -> bool:
    """Whether an affine (4, 4) is finite and spans a volume."""
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else np.nan
    return bool(np.isfinite(volume) and volume >= 1e-12)


def same_affine(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Whether two affines agree within 1e-3; a format that states none agrees with every other."""
    if first is None or second is None:
        return True
    return bool(np.allclose(first, second, rtol=0, atol=AFFINE_TOLERANCE))


def affine_difference(first: np.ndarray | None, second: np.ndarray | None) -> str:
    assert first is not None
    assert second is not None
    return f"by up to {np.abs(first - second).max():.4g}"


def grid_difference(scan: Scan, first: Scan, name: str) -> str:
    """Why a channel is not on the first one's grid; empty where it is."""
    if scan.spatial_shape != first.spatial_shape:
        text = f"channels must have one shape, got {scan.spatial_shape} and {first.spatial_shape} of {name}"
        return f"{text}: resample them to one grid"
    if not same_affine(scan.affine, first.affine):
        text = f"channels must be on one grid, got an affine that differs from {name}"
        return f"{text} ({affine_difference(scan.affine, first.affine)}): resample them to one grid"
    return ""

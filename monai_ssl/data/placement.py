"""What the preset's reorientation and resampling will make of a scan, told from its header."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_ssl.data.preset import Preset


@dataclass(frozen=True)
class Placement:
    """How a scan lies, and what the network will see of it.

    Attributes:
        orientation: of a volume as stored, as "RAS", with "?" for an axis without direction; None in 2D.
        spacing: voxel size in mm as stored, in the order of the preset's axes; of the slices, for a 2D network.
        resampled: shape after reorientation and resampling, at its largest.
        shape: shape that reaches the network, before padding.
    """

    orientation: str | None
    spacing: tuple[float, ...]
    resampled: tuple[float, ...]
    shape: tuple[float, ...]


def placement(affine: np.ndarray, spatial: tuple[int, ...], preset: Preset) -> Placement | None:
    """How a scan of shape ``spatial`` with a valid affine (4, 4) lies; None where its axes do not fit the preset.

    Example:
        >>> preset = Preset(name="x", labels={0: "background", 1: "organ"}, patch_size=(16,) * 3, spacing=(1, 1, 1))
        >>> placement(np.diag([-2.0, 1, 1, 1]), (10, 20, 30), preset).shape
        (20.0, 20.0, 30.0)
    """
    import nibabel as nib

    dims = preset.spatial_dims
    if len(spatial) not in ((3,) if dims == 3 else (2, 3)):
        return None
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))[: len(spatial)]
    shape: np.ndarray = np.asarray(spatial, dtype=float)
    orientation = None
    if len(spatial) == 3:
        orientation = "".join(code or "?" for code in nib.aff2axcodes(affine))
        if preset.orientation is not None and "?" not in orientation:
            start = nib.orientations.axcodes2ornt(orientation)
            end = nib.orientations.axcodes2ornt(preset.orientation)
            order = nib.orientations.ornt_transform(start, end)[:, 0].astype(int)
            zooms, shape = zooms[np.argsort(order)], shape[np.argsort(order)]
    slices = shape[dims:]
    zooms, shape = zooms[:dims], shape[:dims]
    spacing = tuple(float(zoom) for zoom in zooms)
    if preset.spacing is not None:
        shape = shape * zooms / np.asarray(preset.spacing, dtype=float)
        zooms = np.asarray(preset.spacing, dtype=float)
    resampled = (*shape, *slices)
    for axis, size in enumerate((preset.center_crop or ())[:dims]):
        if size is not None:
            shape[axis] = min(shape[axis], size / zooms[axis])
    if preset.resize is not None:
        shape = np.asarray(preset.resize, dtype=float)
    return Placement(orientation, spacing, tuple(map(float, resampled)), tuple(map(float, shape)))

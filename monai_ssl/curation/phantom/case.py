"""One phantom: anatomy on a grid, its label, and the scan of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_ssl.curation.phantom.acquisition import acquire, store
from monai_ssl.curation.phantom.anatomy import (
    Array,
    Scene,
    draw_scene,
    ellipsoid_distance,
    smooth_union,
    truncated_normal,
    tube_distance,
    union_distance,
)

_FOV_STEP = 2.5  # mm; fields of view are multiples of it, so every supported spacing sees the same region


def check_case(spatial_dims: int, n_classes: int, spacing: float, seed: int) -> None:
    """Raise ValueError for an argument of :func:`phantom_case` that is out of its range."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
    if isinstance(n_classes, bool) or not isinstance(n_classes, (int, np.integer)) or not 2 <= n_classes <= 5:
        raise ValueError(f"n_classes must be an integer from 2 to 5 (background included), got {n_classes!r}")
    if isinstance(spacing, bool) or not isinstance(spacing, (int, float)) or not 0.4 <= spacing <= 5.0:
        raise ValueError(f"spacing must be a number in [0.4, 5] (mm), got {spacing!r}")
    check_count("seed", seed)


def check_count(name: str, value: Any, minimum: int = 0) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")


def _field_of_view(
    rng: np.random.Generator, scene: Scene, spatial_dims: int, spacing: float, cropped: bool
) -> tuple[list[int], Array]:
    """Grid size in voxels and the position (mm) of the first corner of the field of view."""
    margin_low, margin_high = rng.uniform(6.0, 12.0, 2)
    start = np.empty(3)
    size = np.empty(3)
    start[0] = scene.bounds[0, 0] - margin_low
    size[0] = np.clip(scene.bounds[1, 0] + margin_high - start[0], 92.5, 152.5)
    size[1] = rng.uniform(82.5, 100.0)
    size[2] = 55.0
    size = np.round(size / _FOV_STEP) * _FOV_STEP
    start[1] = -size[1] * truncated_normal(rng, 0.50, 0.065, 0.38, 0.62)  # the appendage moves the centroid forward
    start[2] = -size[2] * truncated_normal(rng, 0.54, 0.08, 0.38, 0.70)
    slice_z = float(rng.uniform(-5.0, 5.0))
    offset = rng.uniform(0.0, 1.0, 3)
    if not cropped:
        large = np.maximum(np.array([200.0, 160.0, 90.0]), size)
        start -= offset * (large - size)
        size = large
    shape = [max(8, round(s / spacing)) for s in size]
    if spatial_dims == 2:
        start[2], shape[2] = slice_z - spacing / 2, 1
    return shape, start


def phantom_case(
    index: int,
    seed: int = 0,
    spatial_dims: int = 3,
    n_classes: int = 2,
    spacing: float = 2.5,
    cropped: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Make one case: image, label, affine and what was drawn.

    The anatomy is continuous, in millimeters, and depends only on ``(seed, index)``: other values of ``spacing``,
    ``cropped``, ``n_classes`` and ``spatial_dims`` show the same heart on another grid. Noise is drawn per voxel, so
    it does depend on the grid; its strength per voxel and (above 1 mm) its correlation in voxels do not.

    Args:
        index: number of the case, >= 0.
        seed: seed of the whole data set, >= 0.
        spatial_dims: 3 for a volume ``(X, Y, Z)``, 2 for an axial slice ``(X, Y)`` through the atrial body (use a finer
            spacing there, for example 1.25).
        n_classes: number of label values, 2 to 5, background included: atrium; right atrium; aorta; left ventricle.
        spacing: isotropic voxel size in mm, in [0.4, 5]. 0.625 is the full size (about 192 x 144 x 88 voxels), 1.25
            the half, 2.5 the size for a CPU (about 48 x 36 x 22).
        cropped: True gives the region around the atrium that the real data show (92-152 x 82-100 x 55 mm); False gives
            200 x 160 x 90 mm with the atrium anywhere in it.

    Returns:
        ``image``: float32, stored gray values in arbitrary units (quantized, positive tail, scale differs by scan).
        ``label``: uint8 of the same shape, values 0 to ``n_classes - 1``.
        ``affine``: float64 (4, 4), voxel to mm, RAS.
        ``info``: ``scanner``, ``inverted``, ``volume_ml`` (the drawn target), ``n_veins``, ``detached``,
        ``quantization_levels``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> image, label, affine, info = phantom_case(0)
        >>> image.ndim, image.shape == label.shape, int(label.max())
        (3, True, 1)
    """
    check_count("index", index)
    check_case(spatial_dims, n_classes, spacing, seed)
    seed, index = int(seed), int(index)
    scene = draw_scene(np.random.default_rng([seed, index, 0]))
    shape, start = _field_of_view(np.random.default_rng([seed, index, 1]), scene, spatial_dims, spacing, cropped)
    acquisition = np.random.default_rng([seed, index, 2])

    axes_mm = [(start[j] + (np.arange(shape[j]) + 0.5) * spacing).astype(np.float32) for j in range(3)]
    grid = list(np.meshgrid(*axes_mm, indexing="ij", copy=True))
    p = [a.copy() for a in grid]
    for row in scene.warp.astype(np.float32):
        wave = np.sin(row[0] * grid[0] + row[1] * grid[1] + row[2] * grid[2] + row[3])
        for j in range(3):
            p[j] += row[4 + j] * wave

    # Distances: the label stops where the annotator cut the veins, the signal does not.
    atrium = smooth_union(ellipsoid_distance(p, scene.body), tube_distance(p, scene.appendage), 4.0)
    beyond = np.full(atrium.shape, np.inf, np.float32)
    pieces = np.full(atrium.shape, np.inf, np.float32)
    for vein in scene.veins:
        atrium = smooth_union(atrium, tube_distance(p, vein, 0.0, vein.cut), 4.0)
        beyond = np.minimum(beyond, tube_distance(p, vein, vein.cut, 1.0))
        if vein.island is not None:
            pieces = np.minimum(pieces, tube_distance(p, vein, *vein.island))
    lumen_offset = np.float32(acquisition.uniform(0.1, 0.7))  # annotators draw slightly inside the bright edge
    lumen = np.minimum(atrium, beyond) - lumen_offset

    pools: dict[str, Array] = {}
    occupied = lumen
    order = ("aorta", "pulmonary_artery", "right_atrium", "left_ventricle", "right_ventricle", "extra")
    for name in filter(scene.pools.__contains__, order):  # each chamber gives way to those before it, a thin wall stays
        distance = np.maximum(union_distance(p, scene.pools[name]), np.float32(scene.gaps[name]) - occupied)
        pools[name] = distance
        occupied = np.minimum(occupied, distance)

    label = np.zeros(atrium.shape, np.uint8)
    for value, name in ((4, "left_ventricle"), (3, "aorta")):
        if n_classes > value:
            label[pools[name] < 0] = value
    if n_classes > 2:  # without the superior vena cava
        label[np.maximum(pools["right_atrium"], union_distance(p, scene.pools["right_atrium"][:1])) < 0] = 2
    label[np.minimum(atrium, pieces) < 0] = 1

    image, info = acquire(acquisition, scene, p, grid, lumen, pools, spacing)
    image, levels = store(np.random.default_rng([seed, index, 3]), acquisition, image, info.pop("noise"), spacing)

    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = start + spacing / 2
    info |= {
        "index": index, "seed": seed, "volume_ml": scene.volume_ml, "n_veins": len(scene.veins),
        "detached": scene.detached, "quantization_levels": levels,
    }  # fmt: skip
    if spatial_dims == 2:
        image, label = image[..., 0], label[..., 0]
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label), affine, info

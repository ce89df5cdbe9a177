"""The phantom's anatomy: shapes and their signed distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NATIVE_SPACING = 0.625  # mm, the scans the targets were measured on

Array = np.ndarray
Range = tuple[float, float]


@dataclass
class Tube:
    """A tapering tube: polyline of points (n, 3) in mm and a radius in mm for each."""

    points: Array
    radii: Array
    cut: float = 1.0  # share of the length that the annotator still calls atrium
    island: tuple[float, float] | None = None  # share range of a detached labeled piece


@dataclass
class Ellipsoid:
    """A deformed ellipsoid: center, semi-axes in mm, rotation (3, 3), harmonic coefficients (12)."""

    center: Array
    axes: Array
    rotation: Array
    harmonics: Array | None = None


@dataclass
class Scene:
    """The continuous anatomy of one case in mm; the origin is the center of the atrial body, axes are RAS."""

    body: Ellipsoid
    veins: list[Tube]
    appendage: Tube
    pools: dict[str, list[Ellipsoid | Tube]]
    dark: list[Ellipsoid | Tube]
    spine: Ellipsoid
    esophagus: Tube
    fat: list[Ellipsoid]
    spots: list[Ellipsoid]
    gaps: dict[str, float]
    muscle: float
    warp: Array
    bounds: Array
    volume_ml: float
    detached: bool


def _rotation(rng: np.random.Generator, degrees: float) -> Array:
    """A rotation matrix (3, 3) with independent normal Euler angles of the given standard deviation."""
    cx, cy, cz = np.cos(angles := np.deg2rad(rng.normal(0.0, degrees, 3)))
    sx, sy, sz = np.sin(angles)
    return np.array(
        [
            [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
            [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
            [-sy, sx * cy, cx * cy],
        ]
    )


def truncated_normal(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    """A normal draw, clipped."""
    return float(np.clip(rng.normal(mean, sd), low, high))


def _bezier(start: Array, control: Array, end: Array, n: int = 9) -> Array:
    t = np.linspace(0.0, 1.0, n)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw the anatomy: everything that does not depend on spacing, field of view or scanner.

    The order of the draws is part of the generator's version: another order gives other cases.
    """
    volume = float(np.clip(np.exp(rng.normal(math.log(49.0), 0.36)), 19.0, 132.0))
    scale = (volume / 49.0) ** (1 / 3)
    parts = _Parts(rng, scale**0.5)  # neighbors grow less than the atrium itself
    body = _draw_body(rng, scale)
    veins, detached = _draw_veins(rng, body, scale)
    appendage = _draw_appendage(rng, body, scale)
    pools = _draw_pools(rng, parts, body)

    # what has no blood: lungs, airways, spine, esophagus, fat; and bright spots anywhere
    dark: list[Ellipsoid | Tube] = [
        parts.place((-71, -14, 4), (30, 58, 85)),
        parts.place((72, -14, 4), (30, 58, 85)),
        parts.vessel([(3, -20, 60), (2, -19, 38), (-34, -20, 18)], (5.0, 7.5)),
        parts.vessel([(3, -20, 60), (4, -19, 38), (36, -20, 16)], (5.0, 7.5)),
    ]
    spine = parts.place((4, -52, 0), (19, 17, 200), 2.5)
    esophagus = parts.vessel([(-6, -26, -90), (-8, -27, 0), (-4, -27, 90)], (4.0, 7.0))
    fat = [
        parts.place(c, (13, 9, 12), 7.0)
        for c in [(-26, 24, 8), (20, 27, 12), (-46, 6, -12), (30, -14, -16), (0, 70, 10), (-10, 5, -24)]
    ]
    spots = []
    for _ in range(int(rng.integers(3, 9))):
        center = rng.uniform([-58, -45, -28], [58, 58, 28])
        spots.append(Ellipsoid(center, rng.uniform(1.5, 4.0, 3), np.eye(3)))

    gaps = {name: float(rng.uniform(0.8, 2.5)) * NATIVE_SPACING for name in pools}
    muscle = float(rng.uniform(6.0, 10.0))
    warp = _draw_warp(rng)
    return Scene(
        body, veins, appendage, pools, dark, spine, esophagus, fat, spots, gaps, muscle, warp,
        _label_bounds(body, [*veins, appendage]), volume, detached,
    )  # fmt: skip


@dataclass
class _Parts:
    """Draws shapes about a usual place.

    Attributes:
        rng: the stream of the case.
        scale: of places and sizes.
    """

    rng: np.random.Generator
    scale: float

    def place(
        self, center: tuple[float, float, float], semi: tuple[float, float, float], jitter: float = 4.0
    ) -> Ellipsoid:
        """An ellipsoid about ``center`` (mm) with semi-axes of about ``semi`` (mm)."""
        coefficients = self.rng.normal(0.0, 0.07, 12)
        center_mm = np.array(center) * self.scale + self.rng.normal(0.0, jitter, 3)
        semi_mm = np.array(semi) * np.exp(self.rng.normal(0.0, 0.12, 3)) * self.scale
        return Ellipsoid(center_mm, semi_mm, _rotation(self.rng, 12.0), coefficients)

    def vessel(self, points: list[tuple[float, float, float]], radius: Range, jitter: float = 3.0) -> Tube:
        """A tube from the first to the last of three points (mm), bent towards the second."""
        shift = self.rng.normal(0.0, jitter, 3) * np.array([1.0, 1.0, 0.4])
        start, control, end = (np.array(p) * np.array([self.scale, self.scale, 1.0]) + shift for p in points)
        control = control + self.rng.normal(0.0, jitter, 3)
        r = self.rng.uniform(*radius)
        return Tube(_bezier(start, control, end), r * np.linspace(1.0, self.rng.uniform(0.85, 1.1), 9))


def _draw_body(rng: np.random.Generator, scale: float) -> Ellipsoid:
    """The flat body of the atrium, in the origin."""
    stretch = np.exp(rng.normal(0.0, [0.08, 0.09, 0.09]))
    axes = np.array([36.8, 20.8, 12.8]) * stretch / stretch.prod() ** (1 / 3) * scale
    rotation = _rotation(rng, 6.0)
    harmonics = rng.normal(0.0, 1.0, 12)
    harmonics *= rng.uniform(0.12, 0.22) / np.sqrt((harmonics**2).mean()) / 1.6
    harmonics[5] += 0.08 * (1 if rng.random() < 0.8 else -1)  # the left side is usually the wider one
    return Ellipsoid(np.zeros(3), axes, rotation, harmonics)


def _surface(body: Ellipsoid, direction: Array) -> Array:
    """Where the ray from the center along ``direction`` leaves the (undeformed) body."""
    return direction / np.sqrt(((direction @ body.rotation / body.axes) ** 2).sum())


def _draw_veins(rng: np.random.Generator, body: Ellipsoid, scale: float) -> tuple[list[Tube], bool]:
    """Pulmonary veins: they continue in the image, the label stops at a random length (annotator variability).

    Returns:
        the veins, and whether the annotator left a detached piece of one.
    """
    ostia = [(-1, -0.35, 0.50), (-1, -0.50, -0.35), (1, -0.30, 0.45), (1, -0.50, -0.35), (1, -0.45, 0.05)]
    n_veins = int(rng.choice([3, 4, 5], p=[0.2, 0.55, 0.25]))
    chosen = list(range(n_veins)) if n_veins > 3 else [i for i in range(4) if i != int(rng.integers(4))]
    island_at = int(rng.integers(n_veins)) if rng.random() < 0.08 else -1
    veins = []
    for k, i in enumerate(chosen):
        # the course: out of the body, bending away from the other side
        direction = np.array(ostia[i], float) + rng.normal(0.0, 0.16, 3)
        direction /= np.linalg.norm(direction)
        on_surface = _surface(body, direction)
        outward = np.array([np.sign(direction[0]), 0.30 * direction[1], 0.3 * direction[2]]) + rng.normal(0, 0.2, 3)
        outward /= np.linalg.norm(outward)
        total = rng.uniform(38.0, 55.0)
        bend = rng.normal(0.0, 5.0, 3)
        points = _bezier(0.72 * on_surface, on_surface + 0.45 * total * outward + bend, on_surface + total * outward)
        # the caliber, tapering
        length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
        radius = rng.uniform(3.0, 4.8) * scale**0.5
        radii = radius * np.linspace(1.15, rng.uniform(0.35, 0.55), len(points))
        # where the annotator stops, and in one of twelve cases continues once more
        inside = np.linalg.norm(0.28 * on_surface)
        cut = float(np.clip((inside + rng.uniform(12.0, 30.0)) / length, 0.25, 0.8))
        if k == island_at:
            cut = min(cut, 0.5)
        island = (cut + 0.25, cut + rng.uniform(0.35, 0.45)) if k == island_at else None
        veins.append(Tube(points, radii, cut, island))
    return veins, island_at >= 0


def _draw_appendage(rng: np.random.Generator, body: Ellipsoid, scale: float) -> Tube:
    direction = np.array([-0.72, 0.62, 0.22]) + rng.normal(0.0, 0.12, 3)
    direction /= np.linalg.norm(direction)
    on_surface = _surface(body, direction)
    reach = rng.uniform(14.0, 30.0) * scale
    tip = on_surface + reach * np.array([-0.35, 0.85, rng.normal(0.0, 0.35)])
    bend = on_surface + 0.6 * reach * np.array([-0.9, 0.35, rng.normal(0.1, 0.3)])
    return Tube(_bezier(0.7 * on_surface, bend, tip), np.linspace(6.5, rng.uniform(2.5, 4.5), 9) * scale**0.7)


def _draw_pools(rng: np.random.Generator, parts: _Parts, body: Ellipsoid) -> dict[str, list[Ellipsoid | Tube]]:
    """The other chambers and vessels that hold blood, nearly as bright as the atrium."""
    pools: dict[str, list[Ellipsoid | Tube]] = {
        "right_ventricle": [parts.place((10, 58, -14), (32, 17, 26))],
        "left_ventricle": [parts.place((-36, 41, -18), (25, 22, 26))],
        "right_atrium": [
            parts.place((36, 25, -6), (20, 19, 23)),
            parts.vessel([(37, 12, 10), (34, 9, 40), (33, 6, 80)], (7.0, 10.0)),
        ],
        "pulmonary_artery": [parts.vessel([(-26, 32, 20), (-6, 12, 30), (48, -12, 24)], (9.0, 12.0))],
        "aorta": [
            parts.vessel([(2, 33, -8), (10, 30, 22), (2, 18, 75)], (12.0, 16.0)),
            parts.vessel([(-20, -35, -90), (-22, -34, 0), (-18, -34, 90)], (9.0, 12.5)),
        ],
    }
    # blood-level bodies without a fixed place (hernia, effusion, dilated vein) that lean on the atrium
    extra: list[Ellipsoid | Tube] = []
    for _ in range(int(rng.choice([0, 1, 2], p=[0.35, 0.4, 0.25]))):
        direction = rng.normal(0.0, 1.0, 3) * np.array([1.0, 1.0, 0.5])
        direction /= np.linalg.norm(direction)
        semi = rng.uniform(7.0, 17.0, 3)
        distance = 1 / np.sqrt(((direction @ body.rotation / body.axes) ** 2).sum()) + 0.7 * semi.mean()
        extra.append(Ellipsoid(distance * direction, semi, _rotation(rng, 40.0), rng.normal(0.0, 0.1, 12)))
    if extra:
        pools["extra"] = extra
    return pools


def _draw_warp(rng: np.random.Generator) -> Array:
    """Smooth deformation of space, three plane waves: rows = wave vector (3), phase, amplitude (3)."""
    warp = np.zeros((3, 7))
    for row in warp:
        wave = rng.normal(0.0, 1.0, 3)
        row[:3] = wave / np.linalg.norm(wave) * 2 * np.pi / rng.uniform(40.0, 80.0)
        row[3] = rng.uniform(0.0, 2 * np.pi)
        row[4:] = rng.normal(0.0, 1.1, 3)
    return warp


def _label_bounds(body: Ellipsoid, tubes: list[Tube]) -> Array:
    """Bounding box (2, 3) of the label, from the primitives: it places the crop without rasterizing first."""
    half = np.sqrt(((body.rotation * body.axes) ** 2).sum(axis=1))
    corners = [-half, half]
    for tube in tubes:
        last = max(1, round(tube.cut * (len(tube.points) - 1)))
        corners += [tube.points[last] - tube.radii[last], tube.points[last] + tube.radii[last]]
    return np.stack([np.min(corners, axis=0), np.max(corners, axis=0)])


def ellipsoid_distance(p: list[Array], shape: Ellipsoid) -> Array:
    """First-order signed distance in mm (negative inside) to a deformed ellipsoid; ``p`` are 3 coordinate arrays."""
    d = [(a - np.float32(c)) for a, c in zip(p, shape.center, strict=True)]
    q = []
    for j in range(3):
        column = shape.rotation[:, j].astype(np.float32) / np.float32(shape.axes[j])
        q.append(d[0] * column[0] + d[1] * column[1] + d[2] * column[2])
    rho = np.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2]) + np.float32(1e-6)
    gradient = np.sqrt(sum((a / np.float32(s)) ** 2 for a, s in zip(q, shape.axes, strict=True))) / rho
    radius: Array | np.float32 = np.float32(1.0)
    if shape.harmonics is not None:
        u, v, w = (a / rho for a in q)
        uu, vv, ww = u * u, v * v, w * w
        basis = [u * v, v * w, u * w, uu - vv, 1.5 * ww - 0.5, u, u * uu - 0.6 * u, v * vv - 0.6 * v,
                 w * ww - 0.6 * w, u * v * w, u * (vv - ww), v * (uu - ww)]  # fmt: skip
        radius = np.float32(1.0)
        for coefficient, term in zip(shape.harmonics.astype(np.float32), basis, strict=True):
            radius = radius + coefficient * term
        radius = np.maximum(radius, np.float32(0.5))
    return (rho - radius) / np.maximum(gradient, np.float32(1e-3))


def tube_distance(p: list[Array], tube: Tube, start: float = 0.0, stop: float = 1.0) -> Array:
    """Signed distance in mm to the part ``start..stop`` (shares of the length) of a tapering tube."""
    knots = np.linspace(0.0, 1.0, len(tube.points))
    shares = np.concatenate([[start], knots[(knots > start + 1e-6) & (knots < stop - 1e-6)], [stop]])
    points = np.stack([np.interp(shares, knots, tube.points[:, j]) for j in range(3)], axis=1).astype(np.float32)
    radii = np.interp(shares, knots, tube.radii).astype(np.float32)
    best: Array | None = None
    for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
        d = [x - c for x, c in zip(p, a, strict=True)]
        ab = b - a
        t = (d[0] * ab[0] + d[1] * ab[1] + d[2] * ab[2]) / np.float32((ab * ab).sum() + 1e-6)
        t = np.clip(t, np.float32(0), np.float32(1))
        d = [x - t * c for x, c in zip(d, ab, strict=True)]
        distance = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]) - (ra + t * (rb - ra))
        best = distance if best is None else np.minimum(best, distance)
    assert best is not None
    return best


def union_distance(p: list[Array], shapes: list[Ellipsoid | Tube]) -> Array:
    """Signed distance in mm to the union of the shapes."""
    parts = [tube_distance(p, s) if isinstance(s, Tube) else ellipsoid_distance(p, s) for s in shapes]
    return np.minimum.reduce(parts)


def smooth_union(a: Array, b: Array, width: float) -> Array:
    """Polynomial smooth minimum: a fillet of ``width`` mm where the two surfaces meet."""
    h = np.maximum(np.float32(width) - np.abs(a - b), np.float32(0))
    return np.minimum(a, b) - h * h * np.float32(0.25 / width)

"""How a scanner sees the phantom: contrast, bias, noise, resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from monai_ssl.curation.phantom.anatomy import (
    NATIVE_SPACING,
    Array,
    Range,
    Scene,
    ellipsoid_distance,
    tube_distance,
    union_distance,
)


@dataclass(frozen=True)
class Scanner:
    """Ranges one acquisition class draws from; signal levels are relative to blood in the left atrium (= 1).

    Attributes:
        weight: probability of the class.
        soft: level of the tissue around the heart.
        myocardium: level of heart muscle and of the thin walls between the chambers.
        fat: level of the fat pads.
        dark: level of lung and airway.
        wall: level of the late enhancement in the atrial wall.
        right_heart: level of the blood in the right chambers and the pulmonary artery (timing after contrast).
        noise: standard deviation of each noise channel (Rician).
        texture: standard deviation of the smooth inhomogeneity of every tissue.
        blur: Gaussian blur in mm.
        bias: peak strength of the bias field over the field of view.
        gamma: exponent of the gray-value curve.
    """

    weight: float
    soft: Range
    myocardium: Range
    fat: Range
    dark: Range
    wall: Range
    right_heart: Range
    noise: Range
    texture: Range
    blur: Range
    bias: Range
    gamma: Range


SCANNERS: dict[str, Scanner] = {
    "standard": Scanner(
        0.28, (0.38, 0.54), (0.45, 0.65), (0.65, 0.95), (0.10, 0.22), (1.05, 1.40), (0.90, 1.10),
        (0.08, 0.12), (0.05, 0.08), (0.6, 0.9), (0.10, 0.25), (0.9, 1.1),
    ),
    "noisy": Scanner(
        0.22, (0.42, 0.60), (0.55, 0.80), (0.75, 1.05), (0.15, 0.40), (1.00, 1.30), (0.80, 1.05),
        (0.13, 0.20), (0.06, 0.10), (0.5, 0.8), (0.20, 0.40), (0.7, 0.9),
    ),
    "smooth": Scanner(
        0.18, (0.38, 0.58), (0.30, 0.50), (0.45, 0.75), (0.06, 0.16), (1.20, 1.80), (0.95, 1.25),
        (0.05, 0.08), (0.05, 0.08), (1.0, 1.6), (0.15, 0.35), (1.2, 1.7),
    ),
    "fat_bright": Scanner(
        0.18, (0.56, 0.74), (0.50, 0.70), (1.20, 1.80), (0.12, 0.26), (1.05, 1.45), (0.85, 1.10),
        (0.09, 0.14), (0.06, 0.10), (0.7, 1.1), (0.20, 0.40), (0.9, 1.2),
    ),
    "early": Scanner(
        0.14, (0.40, 0.58), (0.65, 0.90), (0.70, 1.00), (0.10, 0.25), (1.00, 1.25), (1.30, 1.90),
        (0.08, 0.13), (0.06, 0.09), (0.6, 1.0), (0.15, 0.35), (0.8, 1.2),
    ),
}  # fmt: skip


_RIGHT_HEART = ("right_atrium", "right_ventricle", "pulmonary_artery")


_INVERTED_SHARE = 0.03  # share of the cases in which the atrium is darker than its surround


def _waves(rng: np.random.Generator, p: list[Array], n: int, wavelength: Range) -> Array:
    """A smooth random field of unit variance: ``n`` plane waves with wavelengths in mm, the same at any spacing."""
    out = np.zeros(p[0].shape, np.float32)
    for _ in range(n):
        k = rng.normal(0.0, 1.0, 3)
        k *= 2 * np.pi / rng.uniform(*wavelength) / np.linalg.norm(k)
        kx, ky, kz = k.astype(np.float32)
        out += np.sin(kx * p[0] + ky * p[1] + kz * p[2] + np.float32(rng.uniform(0, 2 * np.pi)))
    return out * np.float32(math.sqrt(2.0 / n))


def acquire(
    rng: np.random.Generator,
    scene: Scene,
    p: list[Array],
    grid: list[Array],
    lumen: Array,
    pools: dict[str, Array],
    spacing: float,
) -> tuple[Array, dict[str, Any]]:
    """Paint the noise-free signal as one of the scanners sees it; blood in the atrium is 1."""
    names = list(SCANNERS)
    name = names[int(rng.choice(len(names), p=[SCANNERS[n].weight for n in names]))]
    scanner = SCANNERS[name]
    soft, myocardium, fat, dark, wall, right_heart, noise, texture, blur, bias, gamma = (
        float(rng.uniform(*getattr(scanner, key)))
        for key in (
            "soft",
            "myocardium",
            "fat",
            "dark",
            "wall",
            "right_heart",
            "noise",
            "texture",
            "blur",
            "bias",
            "gamma",
        )
    )
    blood = 1.0
    inverted = bool(rng.random() < _INVERTED_SHARE)
    if inverted:
        blood, soft, myocardium, fat, wall = 0.70, soft + 0.45, myocardium + 0.40, fat + 0.35, 0.9 * wall

    # Blur and the partial volume of a voxel act together: a normal edge of this standard deviation in mm.
    edge = np.float32(0.851 / math.sqrt(blur**2 + spacing**2 / 12))

    def paint(image: Array, distance: Array, level: float | Array) -> Array:
        occupancy = np.float32(0.5) - np.float32(0.5) * np.tanh(np.clip(distance * edge, -6, 6))
        return image + occupancy * (np.asarray(level, np.float32) - image)

    tissue = _waves(rng, p, 8, (12.0, 45.0))
    image = np.float32(soft) * (np.float32(1) + np.float32(0.17) * tissue)
    for blob in scene.fat:
        image = paint(image, ellipsoid_distance(p, blob), fat * rng.uniform(0.85, 1.1))
    image = paint(image, ellipsoid_distance(p, scene.spine), rng.uniform(0.3, 0.65))
    image = paint(image, tube_distance(p, scene.esophagus), rng.uniform(0.5, 0.95))
    lung = dark * (np.float32(1) + np.float32(0.35) * np.abs(_waves(rng, p, 6, (8.0, 25.0))))
    image = paint(image, union_distance(p, scene.dark), lung)

    muscle = {"left_ventricle": scene.muscle, "right_ventricle": 3.5, "right_atrium": 2.0, "aorta": 1.5}
    for key, thickness in muscle.items():
        image = paint(image, pools[key] - np.float32(thickness), myocardium)
    rim = np.float32(rng.uniform(1.0, 3.0) * NATIVE_SPACING)
    image = paint(image, lumen - rim - np.float32(0.5), myocardium)
    for key, distance in pools.items():
        level = blood * rng.normal(1.0, 0.05) * (right_heart if key in _RIGHT_HEART else 1.0)
        image = paint(image, distance, level)

    # Late enhancement: bright patches on 20-60 % of the wall, outside the label.
    patches = _waves(rng, p, 8, (18.0, 45.0))
    share = rng.uniform(0.2, 0.6)
    threshold = np.float32(math.sqrt(2) * _erfinv(1 - 2 * share))
    enhanced = np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(3.0) * (patches - threshold))
    shell = paint(image, lumen - rim, wall * blood)
    image = image + enhanced * (shell - image)
    image = paint(image, lumen, blood)
    for spot in scene.spots:  # bright spots (vessels, metal, flow) make the positive tail
        distance = np.maximum(ellipsoid_distance(p, spot), np.float32(5.0) - lumen)
        image = paint(image, distance, rng.uniform(1.4, 2.6))

    image = image * (np.float32(1) + np.float32(texture) * _waves(rng, p, 10, (7.0, 22.0)))
    # A quadratic field plus a gradient, as of a surface coil in front of the chest.
    u, v, w = (a / np.float32(60.0) for a in grid)
    c = rng.normal(0.0, 1.0, 9).astype(np.float32)
    surface = c[0] * u + (c[1] + np.float32(0.8)) * v + c[2] * w
    surface = surface + np.float32(0.5) * (c[3] * u * u + c[4] * v * v + c[5] * w * w)
    surface = surface + np.float32(0.5) * (c[6] * u * v + c[7] * v * w + c[8] * u * w)
    image = image * np.exp(np.float32(0.6 * bias) * np.clip(surface, -2.5, 2.5))
    image = np.maximum(image, np.float32(0.0)) ** np.float32(gamma)
    return image, {"scanner": name, "inverted": inverted, "noise": noise}


def _erfinv(x: float) -> float:
    """Inverse error function (Winitzki's approximation, error below 0.002)."""
    a = 0.147
    log = math.log(1 - x * x)
    part = 2 / (math.pi * a) + log / 2
    return math.copysign(math.sqrt(math.sqrt(part * part - log / a) - part), x)


def store(
    rng: np.random.Generator, acquisition: np.random.Generator, image: Array, noise: float, spacing: float
) -> tuple[Array, int]:
    """Add correlated Rician noise, then shift, scale and quantize as the archive does."""
    sigma = max(0.6, NATIVE_SPACING / spacing)  # voxels; lag-1 autocorrelation 0.8 at 0.625 mm, 0.5 at 2.5 mm
    channels = []
    for _ in range(2):
        white = rng.standard_normal(image.shape, np.float32)
        smooth = ndimage.gaussian_filter(white, [sigma if n > 1 else 0.0 for n in image.shape], mode="wrap")
        channels.append(np.float32(noise) * smooth / np.float32(smooth.std(dtype=np.float64)))
    image = np.sqrt((image + channels[0]) ** 2 + channels[1] ** 2)

    # The archive's z-score was taken over a larger volume than is stored: mean and scale differ by scan.
    scale = float(np.exp(acquisition.uniform(math.log(0.31), math.log(1.65))))
    shift = float(acquisition.uniform(0.05, 1.9))
    mean, sd = float(image.mean(dtype=np.float64)), float(image.std(dtype=np.float64))
    low, high = float(image.min()), float(image.max())
    levels = int(acquisition.integers(38, 234))
    step = (high - low) / (levels - 1)
    gray = np.round((image.astype(np.float64) - low) / step)
    return ((gray * step + low - mean) / sd * scale + shift).astype(np.float32), levels

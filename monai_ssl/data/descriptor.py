"""A small descriptor of an image: which scans look alike, and which look like none of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# cells per axis
GRID = 12
# scans nearer to each other than this share of the median distance of two scans are near-duplicates
DUPLICATE = 0.1
# a scan is an outlier where its distance lies this many robust standard deviations above the median
OUTLIER = 4.0
# below so many scans nobody can say what is usual
ENOUGH = 8


def image_descriptor(image: Tensor, grid: int = GRID) -> np.ndarray:
    r"""What a prepared image looks like from afar: the means of a coarse grid, without brightness and contrast.

    The image is averaged in ``grid`` cells per axis (a smaller axis is stretched), each channel is shifted to mean 0,
    and the whole is scaled to length 1. The distance of two descriptors, :func:`descriptor_distances`, is then

    .. math:: d = \sqrt{1 - r}

    with the correlation :math:`r` of the two coarse images: 0 for the same image, also in another brightness or
    contrast, 1 for unrelated ones. It sees field of view, pose, the rough shape of the body and where it is bright; it
    does not see small structures, texture, or who the patient is.

    Args:
        image: ``(C, *spatial)``, as the network sees it: axes in one order, spacing and intensities prepared.
        grid: cells per axis, at least 1.

    Returns:
        ``(C * grid ** n_axes,)`` float32 of length 1; zeros for a constant image.

    Example:
        >>> image = torch.rand(1, 40, 30, 20, generator=torch.Generator().manual_seed(0))
        >>> found = image_descriptor(image)
        >>> found.shape, bool(np.allclose(found, image_descriptor(3 * image + 5), atol=1e-5))
        ((1728,), True)
    """
    plain = torch.nan_to_num(torch.as_tensor(image).as_subclass(Tensor).detach().float().cpu())
    dims = plain.dim() - 1
    pool: Any = {1: torch.nn.functional.adaptive_avg_pool1d, 2: torch.nn.functional.adaptive_avg_pool2d,
            3: torch.nn.functional.adaptive_avg_pool3d}[dims]  # fmt: skip
    cells = pool(plain[None], (grid,) * dims)[0].flatten(1).double()
    cells = (cells - cells.mean(1, keepdim=True)).flatten()
    length = float(cells.norm())
    if length <= 1e-12 * math.sqrt(cells.numel()):
        return np.zeros(cells.numel(), dtype=np.float32)
    return (cells / length).float().numpy()


def descriptor_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances of every descriptor of one list from every descriptor of another.

    Args:
        first: ``(n, size)``.
        second: ``(m, size)``.

    Returns:
        ``(n, m)`` float64 in [0, sqrt(2)]: the root of one minus the correlation.

    Example:
        >>> descriptor_distances(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
        array([[0., 1.]])
    """
    correlation = np.asarray(first, dtype=np.float64) @ np.asarray(second, dtype=np.float64).T
    return np.sqrt(np.clip(1 - correlation, 0, 2))


@dataclass(frozen=True)
class Neighborhood:
    """What stands out among scans, by their descriptors.

    Attributes:
        nearest: per scan the number of the labeled scan that is most like it; None without labeled scans.
        distance: per scan the distance from it; NaN without labeled scans.
        duplicate_of: per scan ``("labeled", number)`` or ``("pool", number)`` of a scan that it nearly equals, one of
            the pool only where that comes before it; None for most.
        outlier: per scan whether it is unlike every labeled scan, more than is usual in this pool.
        duplicate_distance: below it scans are near-duplicates.
        outlier_distance: above it scans are outliers; infinity where there are too few scans to say.
    """

    nearest: tuple[int | None, ...]
    distance: tuple[float, ...]
    duplicate_of: tuple[tuple[str, int] | None, ...]
    outlier: tuple[bool, ...]
    duplicate_distance: float
    outlier_distance: float


def neighborhood(pool: Sequence[np.ndarray], labeled: Sequence[np.ndarray]) -> Neighborhood:
    """Near-duplicates and outliers of a pool against the labeled scans.

    Near-duplicates are nearer than a tenth of the median distance between two scans. Outliers are farther from the
    nearest labeled scan than the median of the pool by four robust standard deviations (1.4826 times the median
    absolute deviation), and farther than any labeled scan from the others; with fewer than eight scans in the pool,
    none is.

    Args:
        pool: descriptors in the order of the ranking, of one size.
        labeled: descriptors of the labeled scans.

    Example:
        >>> a, b, c = np.eye(3)
        >>> found = neighborhood([a, a, b], [c])
        >>> found.duplicate_of, found.outlier
        ((None, ('pool', 0), None), (False, False, False))
    """
    n, m = len(pool), len(labeled)
    every = np.stack([*pool, *labeled])
    between = descriptor_distances(every, every)
    pairs = between[np.triu_indices(n + m, 1)]
    limit = DUPLICATE * float(np.median(pairs)) if pairs.size else 0.0
    duplicates: list[tuple[str, int] | None] = []
    for number in range(n):
        near = [("labeled", k) for k in range(m) if between[number, n + k] <= limit]
        near += [("pool", k) for k in range(number) if between[number, k] <= limit]
        duplicates.append(near[0] if near else None)
    if not m:
        return Neighborhood((None,) * n, (math.nan,) * n, tuple(duplicates), (False,) * n, limit, math.inf)
    to_labeled = between[:n, n:]
    distance = to_labeled.min(1)
    far = math.inf
    if n >= ENOUGH:
        middle = float(np.median(distance))
        spread = max(1.4826 * float(np.median(np.abs(distance - middle))), 0.05 * middle)
        far = middle + OUTLIER * spread
        if m > 1:
            among = between[n:, n:] + np.where(np.eye(m, dtype=bool), np.inf, 0.0)
            far = max(far, float(among.min(1).max()))
    return Neighborhood(
        tuple(int(k) for k in to_labeled.argmin(1)), tuple(map(float, distance)), tuple(duplicates),
        tuple(bool(value > far) for value in distance), limit, far,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- a pool against the labels


def image_appearance(image: Tensor) -> np.ndarray:
    """What a prepared image is like apart from its content: gray values and size.

    Args:
        image: ``(C, *spatial)``, as the network sees it.

    Returns:
        ``(5 * C + n_axes,)`` float64: quantiles of each channel (at 5, 25, 50, 75 and 95 %, of at most 100 000 voxels),
        and the logarithm of the voxels per axis.

    Example:
        >>> image_appearance(torch.arange(1001.0)[None]).round(2).tolist()
        [50.0, 250.0, 500.0, 750.0, 950.0, 6.91]
    """
    plain = torch.nan_to_num(torch.as_tensor(image).as_subclass(Tensor).detach().float().cpu()).flatten(1)
    some = plain[:, :: max(plain.shape[1] // 100_000, 1)]
    at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    quantiles = torch.quantile(some, at, dim=1).T.flatten().double().numpy()
    return np.concatenate([quantiles, np.log(np.array(image.shape[1:], dtype=np.float64))])


@dataclass(frozen=True)
class Difference:
    """How far two groups of scans are apart.

    Attributes:
        share: energy distance over twice the mean distance between the groups: 0 for samples of one distribution, 1 for
            two points.
        p: share of random regroupings of the same scans whose groups are at least as far apart, in (0, 1].
    """

    share: float
    p: float


def group_difference(distances: np.ndarray, n_first: int, regroupings: int = 1999) -> Difference | None:
    """Whether scans of one group lie apart from those of another: a permutation test of the energy distance.

    The energy distance is twice the mean distance between the groups, less the mean distances within each (Székely and
    Rizzo, "Energy statistics", J. Stat. Plan. Inference 2013).

    Args:
        distances: ``(n, n)`` between all scans, those of the first group first.
        n_first: scans of the first group.
        regroupings: random ones, always the same.

    Returns:
        None where a group has fewer than two scans.

    Example:
        >>> points = np.array([0.0, 0.1, 0.2, 0.3, 9.0, 9.1, 9.2, 9.3, 9.4])
        >>> found = group_difference(abs(points[:, None] - points), 4)
        >>> found.p < 0.02, round(found.share, 2)
        (True, 0.98)
    """
    n = len(distances)
    if min(n_first, n - n_first) < 2:
        return None

    def energy_distance(first: np.ndarray) -> tuple[float, float]:
        a, b = np.flatnonzero(first), np.flatnonzero(~first)
        between = float(distances[np.ix_(a, b)].mean())
        within = [float(distances[np.ix_(g, g)].sum() / (len(g) * (len(g) - 1))) for g in (a, b)]
        return 2 * between - sum(within), 2 * between

    observed, scale = energy_distance(np.arange(n) < n_first)
    generator = np.random.RandomState(0)
    as_far = 0
    for _ in range(regroupings):
        chosen = np.zeros(n, dtype=bool)
        chosen[generator.permutation(n)[:n_first]] = True
        as_far += energy_distance(chosen)[0] >= observed - 1e-12
    return Difference(observed / scale if scale > 0 else 0.0, (1 + as_far) / (1 + regroupings))


def appearance_distances(appearances: np.ndarray) -> np.ndarray:
    """Distances ``(n, n)`` of appearances ``(n, size)``, every entry over its standard deviation among the scans."""
    spread = appearances.std(0)
    scaled = (appearances - appearances.mean(0)) / np.where(spread > 1e-9, spread, 1.0)
    return np.sqrt(((scaled[:, None] - scaled[None]) ** 2).mean(-1))

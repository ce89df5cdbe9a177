"""Descriptors: the same scan again is near, another one is not, and a stranger is marked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ssl.data.descriptor import descriptor_distances, image_descriptor, neighborhood


def blob(seed: int, shape: tuple[int, ...] = (40, 36, 20)) -> torch.Tensor:
    """A smooth image whose bright body lies in much the same place for all seeds."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    center = 0.12 * torch.randn(len(shape), generator=generator)
    width = 0.35 + 0.15 * torch.rand(len(shape), generator=generator)
    grids = torch.meshgrid(*axes, indexing="ij")
    far = sum(((grid - c) / w) ** 2 for grid, c, w in zip(grids, center, width, strict=True))
    return torch.exp(-far)[None]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(descriptor_distances(image_descriptor(a)[None], image_descriptor(b)[None])[0, 0])


class TestDescriptor:
    @pytest.mark.parametrize("shape", [(40, 36), (40, 36, 20), (5, 7, 3)])
    def test_size_and_length(self, shape):
        found = image_descriptor(torch.cat([blob(0, shape), blob(1, shape)]))
        assert found.shape == (2 * 12 ** len(shape),)
        assert found.dtype == np.float32
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)

    def test_brightness_contrast_and_noise_hardly_matter_and_another_scan_does(self):
        image = blob(0)
        noise = 0.1 * image.std() * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        assert distance(image, 7 * image - 3) < 1e-3
        assert distance(image, image + noise) < 0.02
        assert distance(image, blob(1)) > 0.1

    def test_constant_and_broken_images_do_not_stop_it(self):
        assert not image_descriptor(torch.full((1, 9, 9, 9), 3.0)).any()
        assert np.isfinite(image_descriptor(torch.full((1, 9, 9, 9), torch.nan))).all()


class TestNeighborhood:
    def pool(self, n: int, first: int = 100) -> list[np.ndarray]:
        return [image_descriptor(blob(first + number)) for number in range(n)]

    def test_an_ordinary_pool_has_neither(self):
        found = neighborhood(self.pool(30), self.pool(4, first=0))
        assert not any(found.outlier)
        assert found.duplicate_of == (None,) * 30

    def test_copies_are_found_the_later_one_or_that_of_a_labeled_scan(self):
        labeled, pool = self.pool(3, first=0), self.pool(10)
        pool[6], pool[8] = pool[2], labeled[1]
        found = neighborhood(pool, labeled)
        assert found.duplicate_of[6] == ("pool", 2)
        assert found.duplicate_of[8] == ("labeled", 1)
        assert sum(twin is not None for twin in found.duplicate_of) == 2
        assert found.nearest[8] == 1
        assert found.distance[8] == pytest.approx(0, abs=1e-3)

    def test_a_stranger_is_an_outlier_where_there_are_enough_scans(self):
        stranger = image_descriptor(torch.rand(1, 40, 36, 20, generator=torch.Generator().manual_seed(0)))
        labeled = self.pool(4, first=0)
        found = neighborhood([*self.pool(20), stranger], labeled)
        assert [number for number, far in enumerate(found.outlier) if far] == [20]
        assert not any(neighborhood([*self.pool(5), stranger], labeled).outlier)

    def test_without_labeled_scans(self):
        found = neighborhood(self.pool(9), [])
        assert found.nearest == (None,) * 9
        assert not any(found.outlier)
        assert np.isnan(found.distance).all()

"""Intensity transforms that MONAI lacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandBiasFieldd


class NormalizeNonzerod(MapTransform):
    """Zero mean and unit variance, channel by channel, with all statistics of the voxels that are not 0.

    For images whose background was set to 0, such as skull-stripped brains. Every voxel is transformed, so that the
    background becomes one negative value.

    Args:
        keys: items ``(C, *spatial)`` float.
        percentiles: in [0, 100]; values are first clipped to these percentiles of the non-zero voxels.
        allow_missing_keys: skip missing items.

    A channel that is 0 everywhere stays 0.

    Source: preparation of BraTS in the UG-MCL and SSL4MIS code bases (there with percentiles 0 and 99.9).

    Example:
        >>> import torch
        >>> image = torch.tensor([[0.0, 0.0, 1.0, 3.0]])
        >>> NormalizeNonzerod("image", (0, 100))({"image": image})["image"].tolist()
        [[-2.0, -2.0, -1.0, 1.0]]
    """

    def __init__(
        self, keys: KeysCollection, percentiles: tuple[float, float] = (0.5, 99.5), allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.percentiles = percentiles

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key].clone()
            for channel in image:
                values = channel[channel != 0].numpy()
                if values.size == 0:
                    continue
                low, high = np.percentile(values, self.percentiles)
                clipped = np.clip(values, low, high)
                background = channel == 0
                channel.clamp_(float(low), float(high))
                channel[background] = 0.0  # not lifted to the lower percentile
                channel.sub_(float(clipped.mean())).div_(float(clipped.std()) or 1.0)
            item[key] = image
        return item


class RandCoilFieldd(RandBiasFieldd):
    """Multiply by a random smooth field, as the uneven sensitivity of surface coils does.

    MONAI's :class:`~monai.transforms.RandBiasFieldd` multiplies values as they are; of normalized ones, half of which
    are negative, it would stretch both ends. Here values count from the image's minimum, channel by channel, and all
    channels get the same field: the exponential of Legendre polynomials up to ``degree``, with coefficients from
    ``coeff_range``. With the defaults it stays within 0.8 to 1.25 at nine voxels of ten.

    Args:
        keys: items ``(C, *spatial)`` float.
        degree: of the polynomials, >= 1.
        coeff_range: of their coefficients, which are drawn uniformly.
        prob: in [0, 1].

    Example:
        >>> import torch
        >>> field = RandCoilFieldd("image", prob=1.0).set_random_state(0)
        >>> ones = torch.tensor([0.0, 1.0]).repeat(1, 16, 16, 8)
        >>> seen = field({"image": ones - 1.0})["image"] + 1.0
        >>> bool((seen[ones == 0] == 0).all()), bool((seen[ones == 1] > 0).all()), bool(seen[ones == 1].std() > 0.02)
        (True, True, True)
    """

    def __init__(
        self,
        keys: KeysCollection,
        degree: int = 3,
        coeff_range: tuple[float, float] = (-0.1, 0.1),
        prob: float = 0.1,
    ) -> None:
        super().__init__(keys, degree, coeff_range, prob=prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        low = {key: item[key].amin(tuple(range(1, item[key].dim())), keepdim=True) for key in self.key_iterator(item)}
        changed = super().__call__({**item, **{key: item[key] - value for key, value in low.items()}})
        return {**changed, **{key: changed[key] + value for key, value in low.items()}}

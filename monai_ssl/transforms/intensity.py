"""Intensity normalization that MONAI lacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform


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

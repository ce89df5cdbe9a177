"""Discriminators: which kind of image does a map belong to?"""

from __future__ import annotations

from monai.networks.layers.factories import Conv, Dropout, Pool
from torch import Tensor, nn

from monai_ssl.networks.encoder_decoder import check_dropout

__all__ = ["Discriminator"]

LEAST_SIDE = 16  # four convolutions with stride 2
SLOPE = 0.2


class Discriminator(nn.Module):
    """Image-level discriminator of DAN and SASSNet: a map and its image -> two logits per image.

    Map and image each pass a convolution of their own (kernel 4, stride 2), whose outputs are added; three more such
    convolutions double the channels, an average pooling and a linear layer follow. Leaky ReLU (slope 0.2) comes after
    each convolution, and dropout of whole channels after each but the last; in 2D neither comes after the added stems.
    There is no normalization: in evaluation mode only the dropout is switched off.

    Args:
        spatial_dims: 2 or 3.
        map_channels: channels of the map: class probabilities (DAN) or signed distances (SASSNet).
        image_channels: channels of the image.
        base_channels: channels after the stems.
        dropout: probability in [0, 1) of a channel to be dropped.
        cells: sides of the grid that the pooling leaves, for patches of any size. None: 1 in 3D, 2 in 2D, as in DAN's
            released code.
        pool_window: sides of the pooling's windows instead, as released: 7 for 2D images of 256 x 256, whose last two
            rows and columns of features then count for nothing. It binds the discriminator to one patch size.

    Shapes:
        map ``(B, map_channels, *spatial)`` and image ``(B, image_channels, *spatial)`` -> ``(B, 2)``. In DAN and
        SASSNet index 1 means that the image is labeled.

    Raises:
        ValueError: when an option is out of its range, a side of the images is below 16, or images do not fit
            ``pool_window``.

    Source: Zhang et al., "Deep Adversarial Networks for Biomedical Image Segmentation", MICCAI 2017 (the idea); Li et
        al., "Shape-aware Semi-supervised 3D Semantic Segmentation", MICCAI 2020 (this plan).

    Example:
        >>> import torch
        >>> discriminator = Discriminator(spatial_dims=3, map_channels=2, base_channels=4)
        >>> discriminator(torch.rand(2, 2, 32, 32, 16), torch.rand(2, 1, 32, 32, 16)).shape
        torch.Size([2, 2])
        >>> sum(p.numel() for p in Discriminator(3, map_channels=2).parameters())
        11024386
    """

    def __init__(
        self,
        spatial_dims: int,
        map_channels: int,
        image_channels: int = 1,
        base_channels: int = 64,
        dropout: float = 0.5,
        cells: int | None = None,
        pool_window: int | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if cells is None:
            cells = 1 if spatial_dims == 3 else 2
        numbers = {"map_channels": map_channels, "image_channels": image_channels, "base_channels": base_channels}
        for name, value in {**numbers, "cells": cells, "pool_window": pool_window or 1}.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        convolution, drop = Conv[Conv.CONV, spatial_dims], Dropout[Dropout.DROPOUT, spatial_dims]
        n = base_channels
        self.map_stem = convolution(map_channels, n, kernel_size=4, stride=2, padding=1)
        self.image_stem = convolution(image_channels, n, kernel_size=4, stride=2, padding=1)
        self.convolutions = nn.ModuleList(
            convolution(n * 2**i, n * 2 ** (i + 1), kernel_size=4, stride=2, padding=1) for i in range(3)
        )
        self.activate_stems = spatial_dims == 3
        self.activation, self.dropout = nn.LeakyReLU(SLOPE), drop(check_dropout(dropout))
        self.pool = (
            Pool[Pool.ADAPTIVEAVG, spatial_dims](cells)
            if pool_window is None
            else Pool[Pool.AVG, spatial_dims](pool_window)
        )
        self.classifier = nn.Linear(n * 8 * cells**spatial_dims, 2)

    def forward(self, map: Tensor, image: Tensor) -> Tensor:
        if min(image.shape[2:]) < LEAST_SIDE:
            raise ValueError(
                f"every side of the patch must be at least {LEAST_SIDE} for the discriminator, which halves it four "
                f"times, got shape {tuple(image.shape)}"
            )
        x = self.map_stem(map) + self.image_stem(image)
        if self.activate_stems:
            x = self.dropout(self.activation(x))
        for i, convolution in enumerate(self.convolutions):
            x = self.activation(convolution(x))
            if i < len(self.convolutions) - 1:
                x = self.dropout(x)
        x = self.pool(x).flatten(1)
        if x.shape[1] != self.classifier.in_features:
            raise ValueError(
                f"pool_window must leave {self.classifier.in_features} numbers per image, got {x.shape[1]} for images "
                f"of shape {tuple(image.shape)}; leave pool_window out for patches of other sizes"
            )
        return self.classifier(x)

"""The literature's network for a number of dimensions, and adapters that bring other networks to the same interface."""

from __future__ import annotations

from typing import Any

from monai_ssl.networks.adapters import TappedNetwork
from monai_ssl.networks.encoder_decoder import UPSAMPLING, EncoderDecoder
from monai_ssl.networks.heads import DualTaskNetwork
from monai_ssl.networks.unet import UNet
from monai_ssl.networks.vnet import VNet

__all__ = ["TappedNetwork", "literature_dual_task_network", "literature_network"]


def literature_network(
    spatial_dims: int,
    in_channels: int = 1,
    out_channels: int | None = 2,
    base_channels: int = 16,
    dropout: float | None = None,
    gates: bool = False,
    alternative: bool = False,
    gate_norm: bool = True,
    decoders: int = 1,
    mixed_upsampling: bool = False,
    average_decoders: bool = False,
) -> EncoderDecoder:
    """The network that the semi-supervised literature uses: V-Net for volumes, SSL4MIS's U-Net for slices.

    Args:
        spatial_dims: 3: :class:`~monai_ssl.networks.VNet`. 2: :meth:`~monai_ssl.networks.UNet.literature_2d`.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        base_channels: channels at full resolution; they double at each of the four coarser scales.
        dropout: None: as published (V-Net 0.5, U-Net 0.05 to 0.5 by scale). A number: at the coarsest scale and at
            the end.
        gates: attention gates on the skip connections (TAC).
        alternative: the decoder of a second network that shall differ from the first one: V-Net with trilinear
            instead of transposed upsampling, U-Net the other way round (MC-Net, CAML).
        gate_norm: batch normalization inside the gates, as released; False: none, as TAC's Eq. 2 prints them.
        decoders: number of decoders on one encoder; the first one is deployed.
        mixed_upsampling: the decoders differ in how they upsample, as those of MC-Net (two) and MC-Net+ (three):
            V-Net transposed, trilinear, nearest; U-Net bilinear, transposed, nearest. False: all do as the first one.
        average_decoders: the network answers with the mean probabilities of all decoders; False: with the first one.

    Raises:
        ValueError: when an option is out of its range.

    Example:
        >>> sum(p.numel() for p in literature_network(3).parameters())
        9448866
        >>> sum(p.numel() for p in literature_network(2, out_channels=4).parameters())
        1813764
        >>> sum(p.numel() for p in literature_network(3, decoders=3, mixed_upsampling=True).parameters())  # MC-Net+
        15246566
    """
    if decoders < 1 or (mixed_upsampling and decoders > len(UPSAMPLING)):
        raise ValueError(f"decoders must be >= 1, with mixed_upsampling up to {len(UPSAMPLING)}, got {decoders}")
    kinds = list(UPSAMPLING)
    if (spatial_dims == 2) != alternative:
        kinds[:2] = kinds[1::-1]
    chosen = kinds[:decoders] if mixed_upsampling else kinds[:1] * decoders
    if spatial_dims == 2:
        options: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
        channels = [base_channels * 2**i for i in range(5)]
        return UNet.literature_2d(
            in_channels,
            out_channels,
            channels=channels,
            decoders=chosen,
            gates=gates,
            gate_norm=gate_norm,
            average_decoders=average_decoders,
            **options,
        )
    return VNet(
        spatial_dims,
        in_channels,
        out_channels,
        base_channels,
        dropout=0.5 if dropout is None else dropout,
        decoders=chosen,
        gates=gates,
        gate_norm=gate_norm,
        average_decoders=average_decoders,
    )


def literature_dual_task_network(
    spatial_dims: int,
    in_channels: int = 1,
    n_classes: int = 2,
    base_channels: int = 16,
    dropout: float | None = None,
    gates: bool = False,
    binary: str = "sigmoid",
    gate_norm: bool = True,
    deployed: str = "segmentation",
) -> DualTaskNetwork:
    """:func:`literature_network` with a second head for the signed distance: the network of DTC and UG-MCL.

    In 3D it is :class:`~monai_ssl.networks.DualTaskVNet`. In 2D both heads have the kernel of the U-Net's head, so that
    what is deployed is the network of the other methods, of their floors and of their ceilings.

    Args:
        spatial_dims: 3 (V-Net) or 2 (U-Net).
        in_channels: channels of the image.
        n_classes: number of classes, background included, at least 2.
        base_channels: channels at full resolution.
        dropout: as :func:`literature_network` takes it.
        gates: attention gates on the skip connections.
        binary: how two classes are coded, as :class:`~monai_ssl.networks.DualTaskNetwork` takes it.
        gate_norm: as :func:`literature_network` takes it.
        deployed: which head, as :class:`~monai_ssl.networks.DualTaskNetwork` takes it.

    Raises:
        ValueError: when an option is out of its range.

    Example:
        >>> sum(p.numel() for p in literature_dual_task_network(3).parameters())
        9448866
        >>> sum(p.numel() for p in literature_dual_task_network(2, n_classes=4).parameters())
        1814199
    """
    backbone = literature_network(spatial_dims, in_channels, None, base_channels, dropout, gates, gate_norm=gate_norm)
    kernel_size = 3 if spatial_dims == 2 else 1
    return DualTaskNetwork(backbone, n_classes, binary=binary, head_kernel_size=kernel_size, deployed=deployed)

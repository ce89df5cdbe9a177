"""The literature's network for a number of dimensions, and adapters that bring other networks to the same interface."""

from __future__ import annotations

from typing import Any

from monai_ssl.networks.adapters import TappedNetwork
from monai_ssl.networks.encoder_decoder import UPSAMPLING, EncoderDecoder, NormType
from monai_ssl.networks.heads import DualTaskNetwork
from monai_ssl.networks.unet import UNet
from monai_ssl.networks.vnet import VNet

PLANS = ("v_net", "u_net", "u_net_3d")
PUBLISHED = "published"

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
    plan: str | None = None,
    norm: NormType = PUBLISHED,
) -> EncoderDecoder:
    """The network that the semi-supervised literature uses: V-Net for volumes, SSL4MIS's U-Net for slices.

    Args:
        spatial_dims: 3: :class:`~monai_ssl.networks.VNet`. 2: :meth:`~monai_ssl.networks.UNet.literature_2d`.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        base_channels: channels at full resolution; they double at each of the four coarser scales.
        dropout: None: as published (V-Net 0.5, U-Net 0.05 to 0.5 by scale, 3D U-Net 0.3). A number: at the coarsest
            scale and at the end.
        gates: attention gates on the skip connections (TAC).
        alternative: the decoder of a second network that shall differ from the first one: V-Net with trilinear
            instead of transposed upsampling, U-Net the other way round (MC-Net, CAML).
        gate_norm: batch normalization inside the gates, as released; False: none, as TAC's Eq. 2 prints them.
        decoders: number of decoders on one encoder; the first one is deployed.
        mixed_upsampling: the decoders differ in how they upsample, as those of MC-Net (two) and MC-Net+ (three):
            V-Net transposed, trilinear, nearest; U-Net bilinear, transposed, nearest. False: all do as the first one.
        average_decoders: the network answers with the mean probabilities of all decoders; False: with the first one.
        plan: ``"v_net"``, ``"u_net"`` or ``"u_net_3d"`` (:meth:`~monai_ssl.networks.UNet.literature_3d`, with which
            SSL4MIS, URPC and UG-MCL's code train volumes); None: by the number of dimensions.
        norm: ``"published"``: batch normalization, in ``"u_net_3d"`` instance normalization; else as
            :class:`~monai_ssl.networks.VNet` takes it.

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
    plan = plan_of(spatial_dims, plan)
    kinds = list(UPSAMPLING)
    if (plan != "v_net") != alternative:
        kinds[:2] = kinds[1::-1]
    shared: dict[str, Any] = {
        "decoders": kinds[:decoders] if mixed_upsampling else kinds[:1] * decoders,
        "gates": gates,
        "gate_norm": gate_norm,
        "average_decoders": average_decoders,
    }
    if norm != PUBLISHED:
        shared["norm"] = norm
    if plan == "v_net":
        return VNet(
            spatial_dims,
            in_channels,
            out_channels,
            base_channels,
            dropout=0.5 if dropout is None else dropout,
            **shared,
        )
    if dropout is not None:
        shared["dropout"] = dropout
    build = UNet.literature_2d if plan == "u_net" else UNet.literature_3d
    channels = [base_channels * 2**i for i in range(5)]
    return build(in_channels, out_channels, spatial_dims=spatial_dims, channels=channels, **shared)


def plan_of(spatial_dims: int, plan: str | None = None) -> str:
    """The name of a plan, by default the literature's for a number of dimensions.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> plan_of(2), plan_of(3), plan_of(3, "u_net_3d")
        ('u_net', 'v_net', 'u_net_3d')
    """
    if plan is None:
        return "u_net" if spatial_dims == 2 else "v_net"
    if plan not in PLANS:
        raise ValueError(f"plan must be one of {PLANS} or None, got {plan!r}")
    return plan


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
    plan: str | None = None,
    norm: NormType = PUBLISHED,
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
        plan, norm: as :func:`literature_network` takes them.

    Raises:
        ValueError: when an option is out of its range.

    Example:
        >>> sum(p.numel() for p in literature_dual_task_network(3).parameters())
        9448866
        >>> sum(p.numel() for p in literature_dual_task_network(2, n_classes=4).parameters())
        1814199
    """
    backbone = literature_network(
        spatial_dims, in_channels, None, base_channels, dropout, gates, gate_norm=gate_norm, plan=plan, norm=norm
    )
    kernel_size = 3 if plan_of(spatial_dims, plan) == "u_net" else 1
    return DualTaskNetwork(backbone, n_classes, binary=binary, head_kernel_size=kernel_size, deployed=deployed)

"""Outputs at several scales of one decoder (URPC)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_ssl.networks.encoder_decoder import EncoderDecoder
from monai_ssl.networks.perturbations import add_feature_noise, drop_elements, drop_strongest
from monai_ssl.networks.tensors import float32_or_wider
from monai_ssl.networks.unet import UNet
from monai_ssl.networks.vnet import VNet

__all__ = ["PyramidNetwork", "pyramid_network"]

PERTURBATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "noise": add_feature_noise,
    "feature_drop": drop_strongest,
    "dropout": lambda x: drop_elements(x, 0.5),
}
TRUNKS = ("unet", "vnet")


class PyramidNetwork(nn.Module):
    """A segmentation network with further heads at coarser levels of its decoder.

    ``forward`` runs the network itself, which is what is deployed. :meth:`outputs` adds a head, one convolution with
    bias, per coarser level; their logits are enlarged to the sides of the image.

    Args:
        network: a :class:`~monai_ssl.networks.VNet` or :class:`~monai_ssl.networks.UNet` with a head; or any network in
            a :class:`~monai_ssl.networks.TappedNetwork` that taps, as ``contextual``, the maps of the levels, the
            finest first.
        out_channels: number of classes, background included.
        level_channels: channels of the levels that get a head, the finest first.
        spatial_dims: 2 or 3.
        kernel_size: of the heads, 1 or 3.
        upsampling: of the heads' logits, ``"linear"`` (corners not aligned) or ``"nearest"``.
        perturbations: in training, what disturbs the features in front of each head: ``"noise"``, ``"feature_drop"``,
            ``"dropout"`` (probability 0.5) or ``"none"``, see :mod:`monai_ssl.networks.perturbations`. Empty: none.

    Raises:
        ValueError: for an option out of its range, or numbers of levels that do not fit.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import PyramidNetwork, UNet
        >>> network = PyramidNetwork(UNet(2, 1, 4, channels=(4, 8, 16)), 4, level_channels=[8], spatial_dims=2)
        >>> [tuple(z.shape) for z in network.outputs(torch.zeros(1, 1, 32, 32))]
        [(1, 4, 32, 32), (1, 4, 32, 32)]

    Source: Luo et al., URPC, MICCAI 2021 and MedIA 2022.
    """

    def __init__(
        self,
        network: nn.Module,
        out_channels: int,
        level_channels: Sequence[int],
        spatial_dims: int,
        kernel_size: int = 1,
        upsampling: str = "linear",
        perturbations: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if kernel_size not in (1, 3):
            raise ValueError(f"kernel_size must be 1 or 3, got {kernel_size}")
        if upsampling not in ("linear", "nearest"):
            raise ValueError(f'upsampling must be "linear" or "nearest", got {upsampling!r}')
        if not level_channels:
            raise ValueError("level_channels must name one level at least, got none")
        perturbations = list(perturbations) or ["none"] * len(level_channels)
        if len(perturbations) != len(level_channels) or any(p not in PERTURBATIONS for p in perturbations):
            raise ValueError(
                f"perturbations must be empty or {len(level_channels)}, one per level, of {tuple(PERTURBATIONS)}, "
                f"got {tuple(perturbations)}"
            )
        if isinstance(network, EncoderDecoder) and len(level_channels) >= len(network.stages) - 1:
            raise ValueError(
                f"level_channels must be fewer than the decoder's {len(network.stages) - 1} levels, of which the "
                f"finest has its head, got {len(level_channels)}"
            )
        self.network = network
        self.spatial_dims, self.out_channels = spatial_dims, out_channels
        self.upsampling, self.perturbations = upsampling, perturbations
        self.heads = nn.ModuleList(
            Conv[Conv.CONV, spatial_dims](channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2)
            for channels in level_channels
        )

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Logits of every scale at the resolution of the image, from one pass.

        Args:
            x: image ``(B, C_in, *spatial)``.

        Returns:
            tensors ``(B, out_channels, *spatial)`` float32, the deployed one first, then fine to coarse.
        """
        logits, levels = self._levels(x)
        found = [logits]
        # the coarsest first, as in the released code, whose draws come in this order
        for k in reversed(range(len(self.heads))):
            features = PERTURBATIONS[self.perturbations[k]](levels[k]) if self.training else levels[k]
            found.insert(1, self._enlarged(float32_or_wider(self.heads[k](features)), x.shape[2:]))
        return found

    def _levels(self, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Logits of the network, and the features of the levels that have a head, fine to coarse."""
        network: Any = self.network
        if isinstance(network, EncoderDecoder):
            levels: Any = network.decode(network.encode(x))
            return network.logits(levels[-1]), levels[-2::-1]
        logits, levels, _ = network.taps(x)
        return logits, levels

    def _enlarged(self, logits: Tensor, sides: Sequence[int]) -> Tensor:
        if logits.shape[2:] == tuple(sides):
            return logits
        if self.upsampling == "nearest":
            return nn.functional.interpolate(logits, tuple(sides), mode="nearest")
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        return nn.functional.interpolate(logits, tuple(sides), mode=mode, align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the network itself, ``(B, out_channels, *spatial)``."""
        return self.network(x)


def pyramid_network(
    spatial_dims: int,
    in_channels: int = 1,
    out_channels: int = 2,
    base_channels: int = 16,
    trunk: str = "unet",
    dropout: float | None = None,
    gates: bool = False,
    gate_norm: bool = True,
) -> PyramidNetwork:
    """The networks of URPC: four outputs, at full resolution and at the three next coarser levels of the decoder.

    ``"unet"``, 3D: the 3D U-Net of :meth:`~monai_ssl.networks.UNet.literature_3d`, where whole channels are dropped
    after each decoder level (0.5, 0.3, 0.2, 0.1, coarse to fine) and nowhere else; heads of kernel 1, trilinear.
    2D: the U-Net of :meth:`~monai_ssl.networks.UNet.literature_2d`; heads of kernel 3, nearest neighbor; in training
    noise, feature drop and dropout (fine to coarse) disturb the auxiliary heads. The released 2D network carries a
    fifth head, at the bottleneck, that nothing uses; it is left out here.

    ``"vnet"``: the V-Net that tables of the left atrium claim for every method, with heads of kernel 1.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        base_channels: channels at full resolution; they double at each of the four coarser scales.
        trunk: ``"unet"`` or ``"vnet"``.
        dropout: None: as above (V-Net 0.5). A number: at the coarsest scale and at the end, nothing else.
        gates, gate_norm: attention gates on the skip connections, as
            :func:`~monai_ssl.networks.literature_network` takes them.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> sum(p.numel() for p in pyramid_network(3).parameters())
        5884504
        >>> sum(p.numel() for p in pyramid_network(2, out_channels=4).parameters())  # 9220 fewer than released
        1821840
    """
    if trunk not in TRUNKS:
        raise ValueError(f"trunk must be one of {TRUNKS}, got {trunk!r}")
    channels = [base_channels * 2**i for i in range(5)]
    levels = channels[1:4]
    if trunk == "vnet":
        v_net = VNet(
            spatial_dims,
            in_channels,
            out_channels,
            base_channels,
            dropout=0.5 if dropout is None else dropout,
            gates=gates,
            gate_norm=gate_norm,
        )
        return PyramidNetwork(v_net, out_channels, levels, spatial_dims)
    options: dict[str, Any] = {"gates": gates, "gate_norm": gate_norm}
    if dropout is not None:
        options["dropout"] = dropout
    if spatial_dims == 2:
        u_net = UNet.literature_2d(in_channels, out_channels, channels=channels, **options)
        disturbed = ("noise", "feature_drop", "dropout")
        return PyramidNetwork(u_net, out_channels, levels, 2, 3, "nearest", disturbed)
    if dropout is None:
        options |= {"dropout": 0.0, "level_dropout": (0.5, 0.3, 0.2, 0.1)}
    u_net = UNet.literature_3d(in_channels, out_channels, channels=channels, **options)
    return PyramidNetwork(u_net, out_channels, levels, spatial_dims)

"""Networks that hand out the feature maps in front of their head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_ssl.networks.recompute import pointwise_convolution


class FeatureNetwork(nn.Module):
    """A segmentation head, one convolution with kernel 1 and bias, on the feature map of any backbone.

    For methods that work on the features before the head. A :class:`~monai_ssl.networks.VNet` or
    :class:`~monai_ssl.networks.UNet` offers the same (``features``, ``logits``) by itself.

    Args:
        backbone: module that maps an image ``(B, C_in, *spatial)`` to a feature map ``(B, F, *spatial)``, for example
            any MONAI network with ``out_channels=F``.
        out_channels: number of classes, background included.
        feature_channels: F.
        spatial_dims: 2 or 3. Default: that of the backbone's convolutions.

    Raises:
        ValueError: when ``spatial_dims`` is neither given nor to be found.

    Example:
        >>> import torch
        >>> from monai.networks.nets import BasicUNet
        >>> from monai_ssl.networks import FeatureNetwork
        >>> backbone = BasicUNet(spatial_dims=2, in_channels=1, out_channels=8, features=(8, 8, 16, 16, 16, 8))
        >>> FeatureNetwork(backbone, out_channels=4, feature_channels=8)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 4, 32, 32])
    """

    def __init__(
        self, backbone: nn.Module, out_channels: int, feature_channels: int, spatial_dims: int | None = None
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims_of(backbone) if spatial_dims is None else spatial_dims
        self.out_channels, self.feature_channels = out_channels, feature_channels
        self.features = backbone
        convolution = Conv[Conv.CONV, self.spatial_dims]
        self.head = convolution(feature_channels, out_channels, kernel_size=1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``(B, out_channels, *spatial)`` float32 of a feature map, for training."""
        return pointwise_convolution(features, self.head.weight, self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, out_channels, *spatial)`` of an image ``(B, C_in, *spatial)``."""
        return self.head(self.features(x))


class MultiHeadNetwork(nn.Module):
    """Several heads on the feature map of any backbone: for methods whose decoders teach each other (MC-Net, CCT).

    Each head has two convolutions with kernel 1 and a leaky ReLU between them. The first head is the deployed one. A
    :class:`~monai_ssl.networks.VNet` or :class:`~monai_ssl.networks.UNet` with several ``decoders`` offers the same
    interface, and its decoders differ from the coarsest scale on.

    Args:
        backbone: module that maps an image ``(B, C_in, *spatial)`` to a feature map ``(B, F, *spatial)``, for example
            any MONAI network with ``out_channels=F``.
        out_channels: number of classes, background included.
        feature_channels: F.
        heads: how many, >= 1.
        spatial_dims: 2 or 3. Default: that of the backbone's convolutions.

    Raises:
        ValueError: when ``heads`` is below 1, or ``spatial_dims`` is neither given nor to be found.

    Example:
        >>> import torch
        >>> from monai.networks.nets import BasicUNet
        >>> from monai_ssl.networks import MultiHeadNetwork
        >>> backbone = BasicUNet(spatial_dims=2, in_channels=1, out_channels=8, features=(8, 8, 16, 16, 16, 8))
        >>> network = MultiHeadNetwork(backbone, out_channels=4, feature_channels=8, heads=3)
        >>> [tuple(z.shape) for z in network.outputs(torch.zeros(2, 1, 32, 32))]
        [(2, 4, 32, 32), (2, 4, 32, 32), (2, 4, 32, 32)]
    """

    def __init__(
        self,
        backbone: nn.Module,
        out_channels: int,
        feature_channels: int,
        heads: int = 2,
        spatial_dims: int | None = None,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads must be >= 1, got {heads}")
        self.spatial_dims = spatial_dims_of(backbone) if spatial_dims is None else spatial_dims
        self.out_channels, self.feature_channels = out_channels, feature_channels
        convolution = Conv[Conv.CONV, self.spatial_dims]
        self.backbone = backbone
        self.decoders = nn.ModuleList(
            nn.Sequential(convolution(feature_channels, feature_channels, kernel_size=1), nn.LeakyReLU(inplace=True))
            for _ in range(heads)
        )
        self.heads = nn.ModuleList(convolution(feature_channels, out_channels, kernel_size=1) for _ in range(heads))

    def encode(self, x: Tensor) -> list[Tensor]:
        """The backbone's feature map, as the only scale."""
        return [self.backbone(x)]

    def decode(self, encoded: Sequence[Tensor], decoder: int = 0) -> list[Tensor]:
        """Features of one head, as the only level."""
        return [self.decoders[decoder](encoded[-1])]

    def logits(self, features: Tensor, decoder: int = 0) -> Tensor:
        """Logits ``(B, out_channels, *spatial)`` float32 of what :meth:`decode` returned, for training."""
        head: Any = self.heads[decoder]
        return pointwise_convolution(features, head.weight, head.bias)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Logits of every head from one pass of the backbone, the deployed one first."""
        encoded = self.encode(x)
        return [self.logits(self.decode(encoded, k)[-1], k) for k in range(len(self.decoders))]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, out_channels, *spatial)`` of an image ``(B, C_in, *spatial)``."""
        return self.heads[0](self.decoders[0](self.backbone(x)))


class TappedNetwork(nn.Module):
    """Any network with feature maps tapped from modules by name: for methods that read ``taps``, such as TAC.

    Args:
        network: image -> logits, for example a MONAI network; its own forward is the deployed one.
        contextual: names of the modules (as in ``network.named_modules()``) whose outputs are the encoder's features.
        structural: names of the modules whose outputs are the gated skip connections; may be empty.

    Raises:
        ValueError: when a name does not exist.

    Example:
        >>> import torch
        >>> from monai.networks.nets import BasicUNet
        >>> network = BasicUNet(2, 1, 2, features=(4, 4, 4, 4, 4, 4))
        >>> tapped = TappedNetwork(network, ["conv_0", "down_1", "down_2"])
        >>> logits, contextual, structural = tapped.taps(torch.zeros(2, 1, 32, 32))
        >>> [tuple(x.shape[2:]) for x in contextual], structural
        ([(32, 32), (16, 16), (8, 8)], [])
    """

    def __init__(self, network: nn.Module, contextual: Sequence[str], structural: Sequence[str] = ()) -> None:
        super().__init__()
        known = {name for name, _ in network.named_modules()}
        for name in (*contextual, *structural):
            if name not in known:
                raise ValueError(f"contextual and structural must be names of the network's modules, got {name!r}")
        self.network = network
        self.contextual, self.structural = tuple(contextual), tuple(structural)

    def taps(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits float32, the contextual and the structural maps, from one pass."""
        seen: dict[str, Tensor] = {}
        modules = dict(self.network.named_modules())

        def keep(name: str) -> Any:
            return lambda module, args, output: seen.__setitem__(name, output)

        hooks = [modules[name].register_forward_hook(keep(name)) for name in {*self.contextual, *self.structural}]
        try:
            logits = self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        return logits.float(), [seen[name] for name in self.contextual], [seen[name] for name in self.structural]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, n_classes, *spatial)``."""
        return self.network(x)


def spatial_dims_of(backbone: nn.Module) -> int:
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            return 2
        if isinstance(module, nn.Conv3d):
            return 3
    raise ValueError(f"spatial_dims must be given: {type(backbone).__name__} holds no 2D or 3D convolution")

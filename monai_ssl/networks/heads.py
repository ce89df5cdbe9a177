"""Heads on the feature map of any backbone: segmentation only, or segmentation and signed distance."""

from collections.abc import Sequence
from functools import partial

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_ssl.networks.adapters import FeatureNetwork, spatial_dims_of
from monai_ssl.networks.encoder_decoder import NormType
from monai_ssl.networks.recompute import pointwise_convolution
from monai_ssl.networks.tensors import float32_or_wider
from monai_ssl.networks.vnet import VNet

__all__ = ["DualTaskNetwork", "DualTaskVNet", "FeatureNetwork"]


class DualTaskNetwork(nn.Module):
    """Two independent heads, each one convolution with bias, on the feature map of any backbone.

    The segmentation head is the deployed one: ``forward`` returns its logits, background included, and does not run
    the other. :meth:`tasks` returns both, computed from one feature map and thus from one draw of dropout.

    Args:
        backbone: module that maps an image ``(B, C_in, *spatial)`` to a feature map ``(B, F, *spatial)``: a
            :class:`~monai_ssl.networks.VNet` or :class:`~monai_ssl.networks.UNet` with ``out_channels=None``, or any
            MONAI network with ``out_channels=F``.
        n_classes: number of classes, background included, at least 2.
        feature_channels: F. Default: ``backbone.feature_channels``.
        binary: how two classes are coded. "sigmoid": the segmentation head has one channel z, and the logits are
            (0, z), whose softmax is exactly the sigmoid of z (DTC). "softmax": it has two channels (UG-MCL). With more
            classes the head has ``n_classes`` channels either way.
        spatial_dims: 2 or 3. Default: that of the backbone's convolutions.
        head_kernel_size: of both heads, 1 (V-Net) or 3 (the 2D U-Net of the literature).

    Raises:
        ValueError: when an option is out of its range, or ``feature_channels`` is needed and missing.

    Example:
        >>> import torch
        >>> from monai.networks.nets import BasicUNet
        >>> from monai_ssl.networks import DualTaskNetwork, UNet
        >>> network = DualTaskNetwork(UNet(2, 1, None, channels=(4, 8, 16)), n_classes=4)
        >>> logits, raw_distance = network.tasks(torch.zeros(2, 1, 32, 32))
        >>> logits.shape, raw_distance.shape
        (torch.Size([2, 4, 32, 32]), torch.Size([2, 3, 32, 32]))
        >>> backbone = BasicUNet(spatial_dims=2, in_channels=1, out_channels=8, features=(8, 8, 16, 16, 16, 8))
        >>> network = DualTaskNetwork(backbone, n_classes=2, feature_channels=8)
        >>> network(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 2, 32, 32])

    Reference:
        X. Luo et al., Semi-supervised medical image segmentation through dual-task consistency, AAAI 2021, section
        "Dual-task consistency", figure 2.
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_classes: int,
        feature_channels: int | None = None,
        binary: str = "sigmoid",
        spatial_dims: int | None = None,
        head_kernel_size: int = 1,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2 (it counts the background), got {n_classes}")
        if binary not in ("sigmoid", "softmax"):
            raise ValueError(f'binary must be "sigmoid" or "softmax", got {binary!r}')
        if feature_channels is None:
            feature_channels = getattr(backbone, "feature_channels", None)
            if feature_channels is None or getattr(backbone, "out_channels", None) is not None:
                raise ValueError(
                    "feature_channels must be given (the number of channels that the backbone returns), unless the "
                    f"backbone is a VNet or UNet with out_channels=None, got None for {type(backbone).__name__}"
                )
        if spatial_dims is None:
            spatial_dims = spatial_dims_of(backbone)
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if head_kernel_size not in (1, 3):
            raise ValueError(f"head_kernel_size must be 1 or 3, got {head_kernel_size}")
        self.backbone = backbone
        self.n_classes = n_classes
        self.feature_channels = feature_channels
        self.one_channel = n_classes == 2 and binary == "sigmoid"
        self.pointwise = head_kernel_size == 1
        convolution = partial(
            Conv[Conv.CONV, spatial_dims], kernel_size=head_kernel_size, padding=head_kernel_size // 2
        )
        self.segmentation_head = convolution(feature_channels, 1 if self.one_channel else n_classes)
        self.distance_head = convolution(feature_channels, n_classes - 1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits from a feature map.

        Args:
            features: what the backbone returned, ``(B, F, *spatial)``.

        Returns:
            ``(B, n_classes, *spatial)``, float32, background included.
        """
        return self._all_classes(float32_or_wider(self.segmentation_head(features)))

    def _all_classes(self, logits: Tensor) -> Tensor:
        if self.one_channel:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    def raw_distance(self, features: Tensor) -> Tensor:
        """The signed distance before tanh, from a feature map.

        In float32 even under autocast: the inverse transform back to a segmentation, sigmoid(-1500 tanh(.)), would turn
        the rounding of half precision into another segmentation.

        Args:
            features: what the backbone returned, ``(B, F, *spatial)``.

        Returns:
            ``(B, n_classes - 1, *spatial)``, float32: one map per foreground class.
        """
        with torch.autocast(device_type=features.device.type, enabled=False):
            return self.distance_head(float32_or_wider(features))

    def tasks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both tasks from one pass through the backbone.

        Args:
            x: image ``(B, C_in, *spatial)``.

        Returns:
            The logits ``(B, n_classes, *spatial)`` and the signed distance before tanh
            ``(B, n_classes - 1, *spatial)``, both float32.
        """
        features = self.backbone(x)
        if not (self.pointwise and torch.is_grad_enabled() and features.requires_grad):
            return self.logits(features), self.raw_distance(features)
        # in training both heads at once: one gradient of the features instead of two and their sum
        heads = (self.segmentation_head, self.distance_head)
        weight, bias = (torch.cat([getattr(head, name) for head in heads]) for name in ("weight", "bias"))
        joint = pointwise_convolution(features, weight, bias)
        logits, raw_distance = joint.split([len(head.weight) for head in heads], dim=1)
        return self._all_classes(logits), raw_distance

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the segmentation head, in training and evaluation alike.

        Args:
            x: image ``(B, C_in, *spatial)``.

        Returns:
            ``(B, n_classes, *spatial)``, float32, background included.
        """
        return self.logits(self.backbone(x))


class DualTaskVNet(DualTaskNetwork):
    """:class:`DualTaskNetwork` on a :class:`~monai_ssl.networks.VNet`: the network of DTC and of UG-MCL's paper.

    9,448,866 parameters for one image channel and two classes with ``binary="sigmoid"``: a trunk of 9,448,832 and 17
    per output channel of either head.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        n_classes: number of classes, background included, at least 2.
        base_channels: channels at full resolution; they double at every scale.
        dropout: probability in [0, 1) of a channel to be dropped, after the coarsest stage and after the last block.
        norm: as :class:`~monai_ssl.networks.VNet` takes it.
        stages: units per encoder scale, fine to coarse.
        binary: how two classes are coded, as :class:`DualTaskNetwork` takes it.
        gates: attention gates on the skip connections, as :class:`~monai_ssl.networks.VNet` takes them (TAC,
            Table VIII).

    Raises:
        ValueError: when an option is out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import DualTaskVNet
        >>> network = DualTaskVNet(spatial_dims=3, in_channels=1, n_classes=2, base_channels=4)
        >>> logits, raw_distance = network.tasks(torch.zeros(2, 1, 32, 32, 16))
        >>> logits.shape, raw_distance.shape
        (torch.Size([2, 2, 32, 32, 16]), torch.Size([2, 1, 32, 32, 16]))

    Reference:
        X. Luo et al., Semi-supervised medical image segmentation through dual-task consistency, AAAI 2021.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        n_classes: int = 2,
        base_channels: int = 16,
        dropout: float = 0.5,
        norm: NormType = "batch",
        stages: Sequence[int] = (1, 2, 3, 3, 3),
        binary: str = "sigmoid",
        gates: bool | Sequence[int] = False,
    ) -> None:
        backbone = VNet(
            spatial_dims,
            in_channels,
            out_channels=None,
            base_channels=base_channels,
            stages=stages,
            dropout=dropout,
            norm=norm,
            gates=gates,
        )
        super().__init__(backbone, n_classes, binary=binary)

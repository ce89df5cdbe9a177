"""Attention among the images of a batch (CAML's CMA module)."""

from __future__ import annotations

from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_ssl.networks.encoder_decoder import EncoderDecoder, check_image_shape

__all__ = ["CrossSampleAttention", "CrossSampleNetwork"]


class CrossSampleAttention(nn.Module):
    """Cross-sample mutual attention: first within each image, then among the images of the batch, position by position.

    Two post-norm transformer encoder layers in sequence. The first one attends over the positions of one image; the
    second one over the images at one position, labeled and unlabeled mixed, with gradient to all. No positional
    encoding. In evaluation mode the module is the identity: a network must not depend on its neighbors in a batch.

    Under ``DistributedDataParallel`` the attention stays inside each process's batch: images of other processes are not
    seen. Give every process labeled and unlabeled images.

    Args:
        channels: of the feature map; a multiple of ``heads``.
        heads: of the attention.
        feedforward: hidden channels of each layer's MLP. Default: 4 times the channels.
        dropout: in [0, 1), of attention weights, MLP and both residual branches.

    Shapes:
        ``(B, channels, *spatial)`` -> the same; in training signed and layer-normalized.

    Raises:
        ValueError: when ``heads`` does not divide ``channels``, or ``dropout`` is out of its range.

    Source: Gao et al., CAML, MICCAI 2023, section 2.2; dropout, post-norm and the bypass in evaluation are those of the
        released code.

    Example:
        >>> import torch
        >>> attention = CrossSampleAttention(8, heads=2)
        >>> attention(torch.rand(3, 8, 4, 4)).shape
        torch.Size([3, 8, 4, 4])
    """

    def __init__(self, channels: int, heads: int = 4, feedforward: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide the {channels} channels, got {heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        feedforward = feedforward or 4 * channels
        self.intra = nn.TransformerEncoderLayer(channels, heads, feedforward, dropout)
        self.inter = nn.TransformerEncoderLayer(channels, heads, feedforward, dropout)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        tokens = x.flatten(2)  # (B, C, V)
        y = self.intra(tokens.permute(2, 0, 1))  # sequence: positions
        y = self.inter(y.transpose(0, 1))  # sequence: images
        return y.transpose(1, 2).reshape(x.shape).to(x.dtype)


class CrossSampleNetwork(nn.Module):
    """A V-Net or U-Net whose encoder has :class:`CrossSampleAttention` after its second coarsest stage.

    What the attention returns replaces that stage's features: it feeds both the next stage and the skip connection.
    CAML's auxiliary network; a training aid. In evaluation it runs without attention and is thus another function than
    the one that was trained: never validate or deploy it.

    Args:
        network: the network, its decoder 0 is used.
        attention: False leaves the attention out: the ablation without cross-sample attention.
        heads, dropout: of the attention.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import VNet
        >>> auxiliary = CrossSampleNetwork(VNet(2, 1, 2, base_channels=4, decoders=("linear",)))
        >>> auxiliary(torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 2, 32, 32])

    Source: Gao et al., CAML, MICCAI 2023, figure 1.
    """

    def __init__(self, network: EncoderDecoder, attention: bool = True, heads: int = 4, dropout: float = 0.5) -> None:
        super().__init__()
        self.network = network
        self.stage = len(network.stages) - 2
        convolution = Conv[Conv.CONV, network.spatial_dims]
        channels = [m.out_channels for m in network.stages[self.stage].modules() if isinstance(m, convolution)][-1]
        self.attention = CrossSampleAttention(channels, heads, dropout=dropout) if attention else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """The full resolution feature map, after dropout: ``(B, feature_channels, *spatial)``."""
        check_image_shape(x, self.network.spatial_dims, self.network.divisor)
        encoded: list[Tensor] = []
        for i, stage in enumerate(self.network.stages):
            x = stage(x)
            if i == self.stage:
                x = self.attention(x)
            encoded.append(x)
        encoded[-1] = self.network.bottleneck_dropout(encoded[-1])
        return self.network.decode(encoded)[-1]  # type: ignore[return-value]

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``(B, n_classes, *spatial)`` float32 from the full resolution feature map."""
        return self.network.logits(features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, n_classes, *spatial)`` float32."""
        return self.logits(self.features(x))

    @property
    def feature_channels(self) -> int:
        """Channels of the full resolution feature map."""
        return self.network.feature_channels

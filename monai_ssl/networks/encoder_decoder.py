"""What V-Net and U-Net share: an encoder, one or more decoders on top of it, and a head per decoder."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Dropout
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.networks.nets.attentionunet import AttentionBlock
from torch import Tensor, nn

from monai_ssl.networks import recompute
from monai_ssl.networks.tensors import float32_or_wider

__all__ = ["EncoderDecoder"]

NormType = str | tuple | list | None
ActType = str | tuple | list
UPSAMPLING = ("transpose", "linear", "nearest")


class EncoderDecoder(nn.Module):
    """A fully convolutional network with one encoder, one or more decoders and a head per decoder.

    The base of :class:`~monai_ssl.networks.VNet` and :class:`~monai_ssl.networks.UNet`, which only differ in the
    modules that they hand over. The first decoder is the deployed one: ``forward`` runs nothing else, unless
    ``average_decoders`` is on. The others are there for methods that train decoders against each other.

    A variant that changes the encoder loops over ``self.stages`` and ends with ``self.bottleneck_dropout``, as
    :class:`~monai_ssl.networks.CrossSampleNetwork` does.

    Args:
        spatial_dims: 2 or 3.
        out_channels: channels of each head. None: no head, ``forward`` returns the full resolution feature map.
        feature_channels: channels of the full resolution feature map.
        stages: the encoder, finest scale first. Every stage but the first halves the sides.
        decoders: one sequence of :class:`DecoderLevel` per decoder, coarsest level first.
        bottleneck_dropout: applied to the coarsest encoder features.
        decoder_dropouts: one per decoder, applied to its full resolution feature map.
        head_kernel_size: kernel size of the heads.
        average_decoders: ``forward`` returns the logarithm of the mean of all decoders' class probabilities.

    Raises:
        ValueError: when ``average_decoders`` goes with ``out_channels`` of None.

    Attributes:
        feature_channels: channels of the full resolution feature map.
        divisor: every spatial side of the image must be a multiple of it.
        stages: the encoder's stages (``nn.ModuleList``), finest scale first.
        heads: one convolution per decoder (``nn.ModuleList``); identities where ``out_channels`` is None.
    """

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int | None,
        feature_channels: int,
        stages: Sequence[nn.Module],
        decoders: Sequence[Sequence[nn.Module]],
        bottleneck_dropout: nn.Module,
        decoder_dropouts: Sequence[nn.Module],
        head_kernel_size: int = 1,
        average_decoders: bool = False,
    ) -> None:
        super().__init__()
        if average_decoders and out_channels is None:
            raise ValueError("average_decoders needs heads: set out_channels to the number of classes, got None")
        self.average_decoders = bool(average_decoders)
        self.spatial_dims = spatial_dims
        self.out_channels = out_channels
        self.feature_channels = feature_channels
        self.divisor = 2 ** (len(stages) - 1)
        self.stages = nn.ModuleList(stages)
        self.bottleneck_dropout = bottleneck_dropout
        self.decoders = nn.ModuleList(
            Decoder(levels, dropout) for levels, dropout in zip(decoders, decoder_dropouts, strict=True)
        )
        self.heads = nn.ModuleList(
            nn.Identity()
            if out_channels is None
            else Conv[Conv.CONV, spatial_dims](
                feature_channels, out_channels, kernel_size=head_kernel_size, padding=head_kernel_size // 2
            )
            for _ in decoders
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Features of every scale, fine to coarse; the last one after dropout.

        Args:
            x: image ``(B, C_in, *spatial)``, every side a multiple of :attr:`divisor`.

        Returns:
            One tensor per scale; entry ``i`` has sides ``spatial / 2**i``.

        Raises:
            ValueError: when ``x`` has the wrong number of dimensions, or a side that is no multiple of the divisor.
        """
        if not torch.jit.is_scripting():
            check_image_shape(x, self.spatial_dims, self.divisor)
        encoded: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            encoded.append(x)
        encoded[-1] = self.bottleneck_dropout(encoded[-1])
        return encoded

    def decode(
        self, encoded: list[Tensor], decoder: int = 0, return_gated: bool = False
    ) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        """Features of every decoder level, coarse to fine; the last one is the full resolution feature map.

        Args:
            encoded: what :meth:`encode` returned.
            decoder: which decoder.
            return_gated: also return the skip connections as they were merged, that is after the attention gates
                (equal to the encoder's features in a network without gates).

        Returns:
            One tensor per level (one fewer than scales), the last one after dropout; with ``return_gated`` the pair
            (features, gated skips), both coarse to fine.
        """
        features, gated = self.decoders[decoder](encoded)
        return (features, gated) if return_gated else features

    def features(self, x: Tensor) -> Tensor:
        """The full resolution feature map of the first decoder, after dropout.

        Args:
            x: image ``(B, C_in, *spatial)``.

        Returns:
            ``(B, feature_channels, *spatial)``.
        """
        # not decode(): TorchScript indexes a ModuleList with constants only
        return self.decoders[0](self.encode(x))[0][-1]

    def logits(self, features: Tensor, decoder: int = 0) -> Tensor:
        """Logits from a full resolution feature map, for training.

        Args:
            features: what :meth:`features` or :meth:`decode` returned, ``(B, feature_channels, *spatial)``.
            decoder: whose head.

        Returns:
            ``(B, out_channels, *spatial)`` float32, also under autocast if the head is a convolution with kernel 1.
        """
        head: Any = self.heads[decoder]
        if getattr(head, "kernel_size", None) == (1,) * self.spatial_dims:
            return recompute.pointwise_convolution(features, head.weight, head.bias)
        return float32_or_wider(head(features))

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Logits of every decoder from one pass of the encoder, for training.

        Args:
            x: image ``(B, C_in, *spatial)``.

        Returns:
            One tensor ``(B, out_channels, *spatial)`` float32 per decoder, the deployed one first.
        """
        encoded = self.encode(x)
        return [self.logits(self.decode(encoded, k)[-1], k) for k in range(len(self.decoders))]  # type: ignore[arg-type]

    def taps(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits of the first decoder and the feature maps on the way, from one pass.

        Args:
            x: image ``(B, C_in, *spatial)``.

        Returns:
            Logits ``(B, out_channels, *spatial)`` float32; the encoder's features of every scale, fine to coarse; the
            skip connections after their attention gates, fine to coarse (empty in a network without gates).
        """
        encoded = self.encode(x)
        features, gated = self.decode(encoded, return_gated=True)
        gates = [level.gate for level in self.decoders[0].levels]  # type: ignore[union-attr]
        structural = [skip for gate, skip in zip(gates, gated, strict=True) if gate is not None]
        return self.logits(features[-1]), encoded, structural[::-1]  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the first decoder (its feature map if the network has no head), in training and evaluation alike.

        With ``average_decoders``: logarithms of the mean probabilities of all decoders, whose softmax is that mean.

        Args:
            x: image ``(B, C_in, *spatial)``, every side a multiple of :attr:`divisor`.

        Returns:
            ``(B, out_channels, *spatial)``.
        """
        if self.average_decoders:
            encoded = self.encode(x)
            members: list[Tensor] = []
            for decoder, head in zip(self.decoders, self.heads, strict=True):
                members.append(head(decoder(encoded)[0][-1]).float().log_softmax(1))
            return torch.logsumexp(torch.stack(members), 0) - math.log(len(members))
        return self.heads[0](self.features(x))


class Decoder(nn.Module):
    """Runs its levels from the coarsest encoder features to full resolution.

    Args:
        levels: modules ``(features, skip) -> (features, gated skip)``, coarsest first.
        dropout: applied to the last level's features.
    """

    def __init__(self, levels: Sequence[nn.Module], dropout: nn.Module) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.dropout = dropout

    def forward(self, encoded: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        features: list[Tensor] = []
        gated: list[Tensor] = []
        x = encoded[-1]
        for i, level in enumerate(self.levels):
            x, skip = level(x, encoded[-2 - i])
            features.append(x)
            gated.append(skip)
        features[-1] = self.dropout(features[-1])
        return features, gated


class DecoderLevel(nn.Module):
    """Doubles the resolution, merges the (gated) skip connection and convolves.

    Args:
        up: doubles the sides of its input.
        block: applied to what was merged.
        gate: module ``(upsampled, skip) -> gated skip``, or None.
        concatenate: merge by concatenation ``[skip, upsampled]``; False: by addition.
        dropout: applied to what the block returned; None: nothing.
    """

    def __init__(
        self,
        up: nn.Module,
        block: nn.Module,
        gate: nn.Module | None = None,
        concatenate: bool = False,
        dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.dropout = nn.Identity() if dropout is None else dropout
        self.up = up
        self.gate = gate
        self.block = block
        self.concatenate = concatenate

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        x = self.up(x)
        if self.gate is not None:
            skip = self.gate(x, skip)
        if self.concatenate:
            x = torch.cat([skip, x], dim=1)
        elif torch.jit.is_scripting():
            x = skip + x  # out of place: the backward pass of the in-place ReLU before it needs x
        else:
            x = recompute.add(skip, x)
        return self.dropout(self.block(x)), skip


class Gate(AttentionBlock):
    """MONAI's additive attention gate; in training without keeping what can be computed again.

    Args:
        spatial_dims: 2 or 3.
        f_int, f_g, f_l: channels inside the gate, of the upsampled features, of the skip connection.
        norm: batch normalization after each of the three convolutions (MONAI, TAC's code). False: none (TAC, Eq. 2).
    """

    def __init__(self, spatial_dims: int, f_int: int, f_g: int, f_l: int, norm: bool = True) -> None:
        super().__init__(spatial_dims, f_int=f_int, f_g=f_g, f_l=f_l)
        if not norm:
            for part in (self.W_g, self.W_x, self.psi):
                for name, child in part.named_children():
                    if isinstance(child, nn.modules.batchnorm._BatchNorm):
                        setattr(part, name, nn.Identity())

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        # not one condition: TorchScript leaves out what is below the first, not the rest of an `and`
        if not torch.jit.is_scripting():  # noqa: SIM102
            if recompute.can_gate(self, g, x):
                return recompute.gate(self, g, x)
        return x * self.psi(self.relu(self.W_g(g) + self.W_x(x)))


def check_image_shape(x: Tensor, spatial_dims: int, divisor: int) -> None:
    """Raise a ValueError for an image that the network cannot take.

    Silent while tracing, exporting or compiling: there the sides may be symbols, and a comparison would freeze them.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return
    if x.ndim != spatial_dims + 2:
        raise ValueError(
            f"the image must have {spatial_dims + 2} dimensions (batch, channel and {spatial_dims} spatial ones), "
            f"got shape {tuple(x.shape)}"
        )
    if any(side % divisor for side in x.shape[2:]):
        raise ValueError(
            f"every spatial side of the image must be a multiple of {divisor}, got shape {tuple(x.shape)}: pad it, for "
            f"example with monai.transforms.DivisiblePad(k={divisor}), or use a sliding window with such sides"
        )


def check_options(
    spatial_dims: int, channels: Sequence[int], decoders: Sequence[str], gates: bool | Sequence[int]
) -> None:
    """Raise a ValueError for options that V-Net and U-Net refuse alike; ``channels`` per scale, fine to coarse."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"channels must be positive at two scales or more, got {tuple(channels)}")
    if isinstance(decoders, str) or not decoders or any(mode not in UPSAMPLING for mode in decoders):
        raise ValueError(f"decoders must be a non-empty sequence of {UPSAMPLING}, got {decoders!r}")
    if isinstance(gates, str) or (not isinstance(gates, bool) and len(gates) != len(channels) - 1):
        raise ValueError(f"gates must be a bool or {len(channels) - 1} numbers of channels, got {gates!r}")


def check_dropout(dropout: float) -> float:
    if dropout is None or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    return dropout


def channel_dropout(spatial_dims: int, p: float) -> nn.Module:
    """Dropout of whole channels, nothing at ``p = 0``."""
    return Dropout[Dropout.DROPOUT, spatial_dims](p) if check_dropout(p) > 0 else nn.Identity()


def element_dropout(p: float) -> nn.Module:
    """Dropout of single elements, nothing at ``p = 0``."""
    return nn.Dropout(p) if check_dropout(p) > 0 else nn.Identity()


class _AnySize(nn.modules.instancenorm._InstanceNorm):
    """Instance normalization that answers with 0, up to rounding, where PyTorch's refuses: at a single voxel.

    That is what the coarsest scale of a patch of 16 voxels per axis is, the smallest one that presets allow.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        own = self.training or not self.track_running_stats
        momentum = self.momentum if self.momentum is not None else 0.0
        return torch.instance_norm(
            input, self.weight, self.bias, self.running_mean, self.running_var, own, momentum, self.eps, True
        )


def normalization(layer: nn.Module) -> nn.Module:
    """The layer itself, or an instance normalization of the same parameters that takes patches of any size."""
    if not isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return layer
    momentum: Any = layer.momentum
    return _AnySize(layer.num_features, layer.eps, momentum, layer.affine, layer.track_running_stats)


class Unit(nn.Sequential):
    """``conv``, ``norm`` (may be missing), ``act``; in training without keeping what can be computed again."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            x = recompute.run_layer(self.conv, x)
            if hasattr(self, "norm"):
                if recompute.can_recompute(self.norm, self.act, x):
                    return recompute.normalize_and_activate(self.norm, self.act, x)
                x = self.norm(x)  # type: ignore[operator]
            return self.act(x)  # type: ignore[operator]
        for layer in self:
            x = layer(x)
        return x


def unit(spatial_dims: int, conv: Any, norm: NormType, act: ActType) -> Unit:
    """Convolution, normalization (left out when None), activation; named, so that no option renames a parameter."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if norm is not None:
        norm = tuple(norm) if isinstance(norm, list) else norm  # a YAML file has no tuples
        layers["norm"] = normalization(get_norm_layer(norm, spatial_dims=spatial_dims, channels=conv.out_channels))
    layers["act"] = get_act_layer(tuple(act) if isinstance(act, list) else act)
    return Unit(layers)


def conv3(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """A convolution with kernel 3 that keeps the sides."""
    return Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=3, padding=1)


def upsampling(spatial_dims: int, mode: str, align_corners: bool) -> nn.Module:
    """Parameter-free doubling of the sides: ``mode`` is "linear" (bi- or trilinear) or "nearest"."""
    if mode == "nearest":
        return nn.Upsample(scale_factor=2.0, mode="nearest")
    return nn.Upsample(
        scale_factor=2.0, mode="bilinear" if spatial_dims == 2 else "trilinear", align_corners=align_corners
    )


def kaiming_normal(module: nn.Module) -> None:
    """He initialization (fan in, gain of ReLU) of the convolutions' weights; biases stay as PyTorch drew them."""
    for child in module.modules():
        if isinstance(child, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(child.weight, mode="fan_in", nonlinearity="relu")

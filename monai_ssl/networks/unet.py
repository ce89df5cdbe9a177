"""The U-Nets of the semi-supervised literature."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from monai.networks.layers.factories import Conv, Pool
from torch import nn

from monai_ssl.networks.encoder_decoder import (
    ActType,
    DecoderLevel,
    EncoderDecoder,
    Gate,
    NormType,
    channel_dropout,
    check_options,
    conv3,
    element_dropout,
    kaiming_normal,
    unit,
    upsampling,
)

__all__ = ["UNet"]

LEAKY_RELU = ("leakyrelu", {"negative_slope": 0.01, "inplace": True})
RELU = ("relu", {"inplace": True})


class UNet(EncoderDecoder):
    """U-Net: max pooling, two convolutions per block, concatenated skips.

    Two published plans differ in their details; :meth:`literature_2d` and :meth:`literature_3d` build exactly these.
    The interface for methods (``encode``, ``decode``, ``features``, ``heads``) is that of
    :class:`~monai_ssl.networks.encoder_decoder.EncoderDecoder`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits. None: no head, ``forward`` returns the full resolution feature map
            ``(B, channels[0], *spatial)``, so that the network serves as a backbone.
        channels: channels per scale, fine to coarse. Every spatial side of the image must be a multiple of
            ``2 ** (len(channels) - 1)``.
        norm: "batch", "instance", another name or ``(name, options)`` that
            ``monai.networks.layers.utils.get_norm_layer`` knows, or None.
        act: activation, a name or ``(name, options)`` that ``monai.networks.layers.utils.get_act_layer`` knows.
        dropout: probability in [0, 1) of an element to be dropped. A number: after the coarsest block and after the
            last decoder block. A sequence with one number per scale, fine to coarse: inside the encoder's blocks,
            between their two convolutions. No choice renames a parameter.
        decoders: upsampling of each decoder. "linear": bi- or trilinear; "nearest": nearest neighbor; "transpose":
            transposed convolution with kernel and stride 2, to the channels of the skip. The first one is deployed.
        gates: attention gates on the skip connections, before the concatenation. True: with half of the skip's
            channels inside each gate. A sequence gives these numbers per scale, fine to coarse.
            ``decode(..., return_gated=True)`` returns the gated skips.
        gate_norm: batch normalization inside the gates, as in TAC's code; False: none, as in its Eq. 2.
        reduce_channels: a convolution with kernel 1 brings the coarse features to the channels of the skip before a
            "linear" or "nearest" upsampling; False: all channels are upsampled and concatenated.
        align_corners: of the "linear" upsampling.
        head_kernel_size: 1 or 3.
        kaiming: draw the weights of the convolutions from He's normal distribution (fan in); False: PyTorch defaults.
        level_dropout: probability in [0, 1) of a whole channel to be dropped after each decoder level, coarse to fine;
            empty: none.
        average_decoders: the network answers with the mean probabilities of all decoders; False: with the first one.

    Raises:
        ValueError: when an option is out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import UNet
        >>> network = UNet(spatial_dims=2, in_channels=1, out_channels=4, channels=(4, 8, 16))
        >>> network(torch.zeros(2, 1, 32, 24)).shape
        torch.Size([2, 4, 32, 24])
        >>> sum(p.numel() for p in UNet.literature_2d(in_channels=1, out_channels=4).parameters())
        1813764
        >>> sum(p.numel() for p in UNet.literature_3d(in_channels=1, out_channels=2).parameters())
        5884050

    Reference:
        O. Ronneberger et al., U-Net, MICCAI 2015; Ö. Çiçek et al., 3D U-Net, MICCAI 2016.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int | None,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm: NormType = "batch",
        act: ActType = LEAKY_RELU,
        dropout: float | Sequence[float] = 0.0,
        decoders: Sequence[str] = ("linear",),
        gates: bool | Sequence[int] = False,
        reduce_channels: bool = True,
        align_corners: bool = True,
        head_kernel_size: int = 1,
        kaiming: bool = False,
        gate_norm: bool = True,
        level_dropout: Sequence[float] = (),
        average_decoders: bool = False,
    ) -> None:
        check_options(spatial_dims, channels, decoders, gates)
        if head_kernel_size not in (1, 3):
            raise ValueError(f"head_kernel_size must be 1 or 3, got {head_kernel_size}")
        if isinstance(dropout, Sequence):
            if len(dropout) != len(channels):
                raise ValueError(f"dropout must be a number or {len(channels)} of them, got {tuple(dropout)}")
            block_dropout, end_dropout = list(dropout), 0.0
        else:
            block_dropout, end_dropout = [0.0] * len(channels), float(dropout)
        if level_dropout and len(level_dropout) != len(channels) - 1:
            raise ValueError(f"level_dropout must be empty or {len(channels) - 1} numbers, got {tuple(level_dropout)}")
        after_level = list(level_dropout)[::-1] or [0.0] * (len(channels) - 1)  # fine to coarse
        gate_channels = list(gates) if not isinstance(gates, bool) else [max(c // 2, 1) for c in channels[:-1]]

        def block(n_in: int, n_out: int, p: float = 0.0) -> nn.Sequential:
            return nn.Sequential(
                OrderedDict(
                    unit1=unit(spatial_dims, conv3(spatial_dims, n_in, n_out), norm, act),
                    dropout=element_dropout(p),
                    unit2=unit(spatial_dims, conv3(spatial_dims, n_out, n_out), norm, act),
                )
            )

        def level(mode: str, scale: int) -> DecoderLevel:
            n_in, n_out = channels[scale + 1], channels[scale]
            n_up = n_out if reduce_channels or mode == "transpose" else n_in
            if mode == "transpose":
                up = Conv[Conv.CONVTRANS, spatial_dims](n_in, n_out, kernel_size=2, stride=2)
            else:
                up = upsampling(spatial_dims, mode, align_corners)
                if reduce_channels:
                    # at the coarse scale: cheaper than after the upsampling, and equal up to rounding
                    up = nn.Sequential(Conv[Conv.CONV, spatial_dims](n_in, n_out, kernel_size=1), up)
            gate = None
            if gates:
                gate = Gate(spatial_dims, f_int=gate_channels[scale], f_g=n_up, f_l=n_out, norm=gate_norm)
            dropout = channel_dropout(spatial_dims, after_level[scale])
            return DecoderLevel(up, block(n_out + n_up, n_out), gate, concatenate=True, dropout=dropout)

        super().__init__(
            spatial_dims,
            out_channels,
            feature_channels=channels[0],
            stages=[
                block(in_channels, channels[0], block_dropout[0]),
                *(
                    nn.Sequential(
                        OrderedDict(
                            pool=Pool[Pool.MAX, spatial_dims](kernel_size=2),
                            block=block(channels[i - 1], channels[i], block_dropout[i]),
                        )
                    )
                    for i in range(1, len(channels))
                ),
            ],
            decoders=[[level(mode, scale) for scale in reversed(range(len(channels) - 1))] for mode in decoders],
            bottleneck_dropout=element_dropout(end_dropout),
            decoder_dropouts=[element_dropout(end_dropout) for _ in decoders],
            head_kernel_size=head_kernel_size,
            average_decoders=average_decoders,
        )
        if kaiming:
            kaiming_normal(self)

    @classmethod
    def literature_2d(
        cls, in_channels: int = 1, out_channels: int | None = 4, spatial_dims: int = 2, **options: Any
    ) -> "UNet":
        """The 2D U-Net of the SSL4MIS code base, which nearly every published ACDC result uses.

        Batch normalization, leaky ReLU, dropout growing from 0.05 to 0.5 inside the encoder's blocks, bilinear
        upsampling after a 1x1 convolution, a 3x3 head: 1,813,764 parameters with 1 input and 4 output channels. A
        second decoder ``decoders=("linear", "transpose")`` makes it the network of MC-Net.

        Args:
            in_channels: channels of the image.
            out_channels: channels of the logits, or None.
            spatial_dims: 2; with 3 it is the same plan with 3D layers, which nobody has published.
            **options: further arguments of :class:`UNet`; they replace the ones of this plan.

        Returns:
            The network.
        """
        plan: dict[str, Any] = {"dropout": (0.05, 0.1, 0.2, 0.3, 0.5), "head_kernel_size": 3}
        return cls(spatial_dims, in_channels, out_channels, **(plan | options))

    @classmethod
    def literature_3d(
        cls, in_channels: int = 1, out_channels: int | None = 2, spatial_dims: int = 3, **options: Any
    ) -> "UNet":
        """The 3D U-Net of UG-MCL's released code.

        Instance normalization without parameters, ReLU, dropout 0.3 after the coarsest and the last block, trilinear
        upsampling of all channels without aligned corners, He initialization: 5,884,050 parameters with 1 input and 2
        output channels, and no buffers.

        Args:
            in_channels: channels of the image.
            out_channels: channels of the logits, or None.
            spatial_dims: 3; with 2 it is the same plan with 2D layers, which nobody has published.
            **options: further arguments of :class:`UNet`; they replace the ones of this plan.

        Returns:
            The network.
        """
        plan: dict[str, Any] = {
            "norm": ("instance", {"affine": False}),
            "act": RELU,
            "dropout": 0.3,
            "reduce_channels": False,
            "align_corners": False,
            "kaiming": True,
        }
        return cls(spatial_dims, in_channels, out_channels, **(plan | options))

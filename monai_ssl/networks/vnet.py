"""The V-Net of the semi-supervised literature."""

from collections import OrderedDict
from collections.abc import Sequence

from monai.networks.layers.factories import Conv
from torch import nn

from monai_ssl.networks.encoder_decoder import (
    DecoderLevel,
    EncoderDecoder,
    Gate,
    NormType,
    channel_dropout,
    check_options,
    conv3,
    unit,
    upsampling,
)

__all__ = ["VNet"]

RELU = ("relu", {"inplace": True})


class VNet(EncoderDecoder):
    """The V-Net that semi-supervised methods share since UA-MT: 3-wide convolutions, no residuals, added skips.

    Every unit is convolution (with bias), normalization, ReLU. A stride-2 convolution halves the sides and doubles the
    channels, a transposed one undoes both; skip connections are added. Dropout of whole channels follows the coarsest
    stage and the last decoder block. ``monai.networks.nets.VNet`` is a different network: kernels of 5, residual sums,
    concatenated skips, 45.6 million parameters where this one has 9,448,849 (one input and one output channel).

    The interface for methods (``encode``, ``decode``, ``features``, ``heads``) is that of
    :class:`~monai_ssl.networks.encoder_decoder.EncoderDecoder`.

    Args:
        spatial_dims: 2 or 3. The literature has no 2D version; ours is the same plan with 2D layers.
        in_channels: channels of the image.
        out_channels: channels of the logits. None: no head, ``forward`` returns the full resolution feature map
            ``(B, base_channels, *spatial)``, so that the network serves as a backbone.
        base_channels: channels at full resolution; they double at every scale.
        stages: units per encoder scale, fine to coarse. The decoder mirrors them. Every spatial side of the image must
            be a multiple of ``2 ** (len(stages) - 1)``.
        dropout: probability in [0, 1) of a channel to be dropped, after the coarsest stage and after the last block.
        norm: "batch", "instance", another name or ``(name, options)`` that
            ``monai.networks.layers.utils.get_norm_layer`` knows, or None.
        decoders: upsampling of each decoder. "transpose": transposed convolution, kernel and stride 2. "linear": bi-
            or trilinear (corners aligned) followed by a convolution with kernel 3, as in the second decoder of MC-Net
            and CAML. "nearest": nearest neighbor followed by a convolution with kernel 3. The first decoder is the
            deployed one.
        gates: attention gates on the skip connections, before the addition (TAC, eq. 2). True: with half of the skip's
            channels inside each gate, but 32 in the one at full resolution, as in TAC's code. A sequence gives these
            numbers per scale, fine to coarse. ``decode(..., return_gated=True)`` returns the gated skips.
        gate_norm: batch normalization inside the gates, as in TAC's code; False: none, as in its Eq. 2.
        average_decoders: the network answers with the mean probabilities of all decoders; False: with the first one.

    Raises:
        ValueError: when an option is out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import VNet
        >>> network = VNet(spatial_dims=3, in_channels=1, out_channels=2, base_channels=4)
        >>> network(torch.zeros(2, 1, 32, 32, 16)).shape
        torch.Size([2, 2, 32, 32, 16])
        >>> encoded = network.encode(torch.zeros(2, 1, 32, 32, 16))
        >>> [features.shape[1] for features in encoded]
        [4, 8, 16, 32, 64]
        >>> network.decode(encoded)[-1].shape
        torch.Size([2, 4, 32, 32, 16])

    Reference:
        F. Milletari et al., V-Net, 3DV 2016 (the idea); L. Yu et al., UA-MT, MICCAI 2019 (this plan); X. Luo et al.,
        DTC, AAAI 2021; J. Chen et al., TAC, IEEE TMI 42(3), 2023 (gates); S. Gao et al., CAML, MICCAI 2023 (second
        decoder).
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int | None = 2,
        base_channels: int = 16,
        stages: Sequence[int] = (1, 2, 3, 3, 3),
        dropout: float = 0.5,
        norm: NormType = "batch",
        decoders: Sequence[str] = ("transpose",),
        gates: bool | Sequence[int] = False,
        gate_norm: bool = True,
        average_decoders: bool = False,
    ) -> None:
        if min(stages, default=0) < 1:
            raise ValueError(f"stages must be positive numbers of units, got {tuple(stages)}")
        channels = [base_channels * 2**scale for scale in range(len(stages))]
        check_options(spatial_dims, channels, decoders, gates)
        gate_channels = list(gates) if not isinstance(gates, bool) else [32, *(c // 2 for c in channels[1:-1])]

        def block(n_units: int, n_in: int, n_out: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    unit(spatial_dims, conv3(spatial_dims, n_in if i == 0 else n_out, n_out), norm, RELU)
                    for i in range(n_units)
                )
            )

        def down(n_in: int, n_out: int) -> nn.Sequential:
            return unit(spatial_dims, Conv[Conv.CONV, spatial_dims](n_in, n_out, kernel_size=2, stride=2), norm, RELU)

        def up(mode: str, n_in: int, n_out: int) -> nn.Sequential:
            if mode == "transpose":
                conv = Conv[Conv.CONVTRANS, spatial_dims](n_in, n_out, kernel_size=2, stride=2)
                return unit(spatial_dims, conv, norm, RELU)
            return nn.Sequential(
                upsampling(spatial_dims, mode, align_corners=True),
                unit(spatial_dims, conv3(spatial_dims, n_in, n_out), norm, RELU),
            )

        def level(mode: str, scale: int) -> DecoderLevel:
            n = channels[scale]
            gate = Gate(spatial_dims, f_int=gate_channels[scale], f_g=n, f_l=n, norm=gate_norm) if gates else None
            return DecoderLevel(up(mode, channels[scale + 1], n), block(stages[scale], n, n), gate)

        super().__init__(
            spatial_dims,
            out_channels,
            feature_channels=base_channels,
            stages=[
                block(stages[0], in_channels, channels[0]),
                *(
                    nn.Sequential(OrderedDict(down=down(n_in, n_out), block=block(n_units, n_out, n_out)))
                    for n_units, n_in, n_out in zip(stages[1:], channels[:-1], channels[1:], strict=True)
                ),
            ],
            decoders=[[level(mode, scale) for scale in reversed(range(len(stages) - 1))] for mode in decoders],
            bottleneck_dropout=channel_dropout(spatial_dims, dropout),
            decoder_dropouts=[channel_dropout(spatial_dims, dropout) for _ in decoders],
            average_decoders=average_decoders,
        )

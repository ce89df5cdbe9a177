"""The inferer that validation, inference and evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor, nn

from monai_ssl.engines.precision import autocast, autocast_dtype, layout, temporarily_channels_last


class WindowInferer(SlidingWindowInferer):
    """Sliding windows over class PROBABILITIES, with exact strides and automatic precision.

    Probabilities (softmax of the logits), not logits, are averaged where windows overlap, as the released codes do.

    Args:
        roi_size: window, voxels per axis.
        stride: exact stride in voxels per axis (the literature's way), or None to use ``overlap``.
        overlap: share of the window that neighbours have in common, in [0, 1); used when ``stride`` is None.
        mode: ``"constant"`` (uniform mean) or ``"gaussian"`` weights.
        sw_batch_size: windows per pass.
        amp: see :func:`monai_ssl.engines.precision.autocast_dtype`.
        **kwargs: further arguments of :class:`monai.inferers.SlidingWindowInferer`.

    Shapes:
        image ``(B, C, *spatial)`` of any size -> probabilities ``(B, n_classes, *spatial)`` float32. Volumes smaller
        than the window are zero-padded, half on each side. A volume under a 2D window ``(B, C, H, W, D)`` is
        segmented slice by slice along its last axis and restacked.

    Raises:
        ValueError: when ``stride`` does not fit ``roi_size``.

    Example:
        >>> inferer = WindowInferer((16, 16), stride=(8, 8), amp="off")
        >>> inferer(torch.zeros(1, 1, 20, 30), nn.Conv2d(1, 2, 1)).shape
        torch.Size([1, 2, 20, 30])
        >>> inferer(torch.zeros(1, 1, 20, 30, 5), nn.Conv2d(1, 2, 1)).shape
        torch.Size([1, 2, 20, 30, 5])
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        stride: Sequence[int] | None = None,
        overlap: float = 0.25,
        mode: str = "gaussian",
        sw_batch_size: int = 1,
        amp: str | bool | None = "auto",
        **kwargs: Any,
    ) -> None:
        overlaps: float | list[float] = overlap
        if stride is not None:
            if len(stride) != len(roi_size) or any(not 1 <= s <= r for s, r in zip(stride, roi_size, strict=False)):
                raise ValueError(
                    f"stride must have one entry per axis, each in [1, roi_size {tuple(roi_size)}], got {tuple(stride)}"
                )
            # MONAI takes int(roi * (1 - overlap)) as stride: half a voxel keeps rounding from losing one
            overlaps = [1.0 - (s + 0.5) / r if s < r else 0.0 for s, r in zip(stride, roi_size, strict=True)]
        super().__init__(roi_size=tuple(roi_size), sw_batch_size=sw_batch_size, overlap=overlaps, mode=mode, **kwargs)
        self.amp = amp
        self.window_dims = len(roi_size)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        plain = isinstance(network, nn.Module) and not isinstance(network, torch.jit.ScriptModule)
        weights = temporarily_channels_last(network) if plain else nullcontext()  # type: ignore[arg-type]
        dtype = autocast_dtype(self.amp, inputs.device)

        def probabilities(window: Tensor, *a: Any, **k: Any) -> Tensor:
            window = window.contiguous(memory_format=layout(window.dim()))
            with autocast(window.device, dtype):
                logits = network(window, *a, **k)
            return logits.float().softmax(dim=1)

        with weights:
            if self.window_dims == 2 and inputs.dim() == 5:
                slices = convert_to_tensor(inputs, track_meta=False).movedim(-1, 1)
                flat = super().__call__(slices.flatten(0, 1), probabilities, *args, **kwargs)
                stack = flat.unflatten(0, slices.shape[:2]).movedim(1, -1)  # type: ignore[union-attr]
                return convert_to_dst_type(stack, inputs)[0]
            return super().__call__(inputs, probabilities, *args, **kwargs)  # type: ignore[return-value]

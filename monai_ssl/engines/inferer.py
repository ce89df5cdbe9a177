"""The inferer that validation, inference and evaluation share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple_rep
from torch import Tensor, nn

from monai_ssl.engines.precision import (
    AMP,
    Precision,
    autocast,
    autocast_dtype,
    layout,
    temporarily_channels_last,
)


class WindowInferer(SlidingWindowInferer):
    """Sliding windows over class PROBABILITIES, with exact strides and automatic precision.

    Probabilities (softmax of the logits), not logits, are averaged where windows overlap, as the released codes do.

    Args:
        roi_size: window, voxels per axis.
        stride: exact stride in voxels per axis (the literature's way), or None to use ``overlap``.
        overlap: share of the window that neighbors have in common, in [0, 1); used when ``stride`` is None.
        mode: ``"constant"`` (uniform mean) or ``"gaussian"`` weights.
        sw_batch_size: windows per pass.
        flips: test-time augmentation: every window is also shown mirrored along these groups of spatial axes, for
            example ``[[0], [1], [0, 1]]``, and the probabilities are averaged. Empty: the window as it is.
        amp: see :func:`monai_ssl.engines.precision.autocast_dtype`.
        **kwargs: further arguments of :class:`monai.inferers.SlidingWindowInferer`.

    Shapes:
        image ``(B, C, *spatial)`` of any size -> probabilities ``(B, n_classes, *spatial)`` float32. Volumes smaller
        than the window are zero-padded, half on each side. A volume under a 2D window ``(B, C, H, W, D)`` is
        segmented slice by slice along its last axis and restacked.

    Raises:
        ValueError: when ``stride`` does not fit ``roi_size``, or ``flips`` names an axis that does not exist.

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
        flips: Sequence[Sequence[int]] = (),
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
        self.amp, self.channels_last = amp, True
        self.window_dims = len(roi_size)
        self.flips = self._checked(flips)

    def _checked(self, flips: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        if any(not 0 <= axis < self.window_dims for flip in flips for axis in flip):
            raise ValueError(f"flips must name spatial axes 0 to {self.window_dims - 1}, got {flips}")
        return tuple(tuple(flip) for flip in flips)

    def follow(self, precision: Precision) -> None:
        """Take the number format and layout that a training steps with, where none was asked for.

        Example:
            >>> inferer = WindowInferer((16, 16))
            >>> inferer.follow(Precision("float32", "contiguous"))
            >>> inferer.amp
            'off'
        """
        if self.amp in ("auto", "true", True):
            self.amp, self.channels_last = AMP[precision.format], precision.channels_last

    def with_flips(self, flips: Sequence[Sequence[int]]) -> WindowInferer:
        """The same inferer with other mirrored views.

        Args:
            flips: as in the constructor.

        Raises:
            ValueError: when they name an axis that does not exist.

        Example:
            >>> WindowInferer((16, 16)).with_flips([[0], [0, 1]]).flips
            ((0,), (0, 1))
        """
        other = copy.copy(self)
        other.flips = self._checked(flips)
        return other

    def coarser(self, overlap: float) -> WindowInferer:
        """The same inferer with windows that overlap by no more than this, for results of which many are needed.

        Args:
            overlap: share of the window, in [0, 1).

        Example:
            >>> WindowInferer((16, 16), stride=(4, 12)).coarser(0.5).overlap
            [0.5, 0.21875]
        """
        other = copy.copy(self)
        other.overlap = [min(found, overlap) for found in ensure_tuple_rep(self.overlap, self.window_dims)]
        return other

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        predict = self._probabilities(network, inputs.device)
        with self._weights(network):
            if self._slice_by_slice(inputs):
                slices = convert_to_tensor(inputs, track_meta=False).movedim(-1, 1)
                flat = super().__call__(slices.flatten(0, 1), predict, *args, **kwargs)
                stack = flat.unflatten(0, slices.shape[:2]).movedim(1, -1)  # type: ignore[union-attr]
                return convert_to_dst_type(stack, inputs)[0]
            return super().__call__(inputs, predict, *args, **kwargs)  # type: ignore[return-value]

    def _slice_by_slice(self, inputs: Tensor) -> bool:
        return self.window_dims == 2 and inputs.dim() == 5

    def sweep(
        self, inputs: Tensor, network: Callable[..., Any], device: torch.device | str | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The same probabilities, slab by slab along the first spatial axis: memory for one window's depth suffices.

        Bit for bit what a call returns on the same device: windows are passed and added up in the same order.

        Args:
            inputs: one image ``(1, C, *spatial)``, a plain tensor. A volume under a 2D window comes as one slab.
            network: image -> logits.
            device: where the network runs; default: where the image lies. Windows are moved there one batch at a time.

        Yields:
            first index of the slab and its probabilities ``(n_classes, rows, *spatial[1:])``, where the image lies.
        """
        device = inputs.device if device is None else torch.device(device)
        if self._slice_by_slice(inputs):
            slices = [torch.cat([p for _, p in self.sweep(x, network, device)], 1) for x in inputs.unbind(-1)]
            yield 0, torch.stack(slices, -1)
            return
        roi, size = tuple(self.roi_size), tuple(inputs.shape[2:])  # type: ignore[arg-type]
        missing = [max(r - s, 0) for r, s in zip(roi, size, strict=True)]
        before = [m // 2 for m in missing]
        if any(missing):
            pads = [p for b, m in zip(before[::-1], missing[::-1], strict=True) for p in (b, m - b)]
            inputs = torch.nn.functional.pad(inputs, pads, mode=str(self.padding_mode), value=self.cval)
        inside = [slice(b, b + s) for b, s in zip(before, size, strict=True)]
        padded = tuple(inputs.shape[2:])
        overlap = [self.overlap] * len(roi) if isinstance(self.overlap, (int, float)) else list(self.overlap)
        interval = tuple(
            r if r == s else max(int(r * (1 - o)), 1) for r, s, o in zip(roi, padded, overlap, strict=True)
        )
        windows = dense_patch_slices(padded, roi, interval)
        weight = compute_importance_map(
            roi, mode=self.mode, sigma_scale=self.sigma_scale, device=inputs.device, dtype=inputs.dtype
        )
        predict = self._probabilities(network, device)
        first, total, count = 0, None, torch.zeros(1, roi[0], *padded[1:], device=inputs.device)

        def slab(end: int) -> tuple[int, Tensor] | None:
            """Rows ``first`` to ``end`` are complete; without the padding."""
            start, stop = max(first, inside[0].start), min(end, inside[0].stop)
            if start >= stop:
                return None
            rows = slice(start - first, stop - first)
            assert total is not None
            place = (slice(None), slice(None), *inside[1:])
            return start - inside[0].start, (total[:, rows] / count[:, rows])[place]

        with self._weights(network):
            for k in range(0, len(windows), self.sw_batch_size):
                chosen = windows[k : k + self.sw_batch_size]
                places = [(slice(None), slice(None), *window) for window in chosen]
                batch = torch.cat([inputs[place] for place in places])
                for probabilities, window in zip(predict(batch.to(device)).to(inputs.device), chosen, strict=True):
                    if total is None:
                        total = count.new_zeros(len(probabilities), *count.shape[1:])
                    step = window[0].start - first
                    if step:
                        if (done := slab(window[0].start)) is not None:
                            yield done
                        for buffer in (total, count):
                            kept = buffer[:, step:].clone()
                            buffer[:, : kept.shape[1]] = kept
                            buffer[:, kept.shape[1] :] = 0
                        first = window[0].start
                    place = (slice(None), slice(0, roi[0]), *window[1:])
                    total[place] += probabilities * weight
                    count[place] += weight
        if (done := slab(first + roi[0])) is not None:
            yield done

    def _weights(self, network: Callable[..., Any]) -> AbstractContextManager:
        plain = self.channels_last and isinstance(network, nn.Module)
        plain = plain and not isinstance(network, torch.jit.ScriptModule)
        return temporarily_channels_last(network) if plain else nullcontext()  # type: ignore[arg-type]

    def _probabilities(self, network: Callable[..., Any], device: torch.device) -> Callable[..., Tensor]:
        dtype = autocast_dtype(self.amp, device)

        def once(window: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.channels_last:
                window = window.contiguous(memory_format=layout(window.dim()))
            with autocast(window.device, dtype):
                logits = network(window, *args, **kwargs)
            return logits.float().softmax(dim=1)

        def probabilities(window: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            views = [once(window, *args, **kwargs)]
            for flip in self.flips:
                axes = [axis + 2 for axis in flip]  # after batch and channel
                views.append(once(window.flip(axes), *args, **kwargs).flip(axes))
            return views[0] if len(views) == 1 else torch.stack(views).mean(0)

        return probabilities

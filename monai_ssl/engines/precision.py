"""Number formats and memory layouts, chosen by a fixed rule per machine.

A rule, not a timing: a timing may fall out differently in two runs, and then the same seed would no longer give the
same result. The rules follow the measurements in ``docs/results/benchmarks``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

_NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); elsewhere it is emulated and slow."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)


def autocast_dtype(amp: str | bool | None, device: torch.device | str) -> torch.dtype | None:
    """Resolve the ``amp`` option.

    Args:
        amp: ``"auto"``: bfloat16 where the hardware multiplies it, float16 on older GPUs, else float32.
            ``True``: like ``"auto"``. ``False``, None or ``"off"``: float32. ``"bf16"``, ``"fp16"``: that format.
        device: where the network runs.

    Returns:
        the autocast dtype, None for plain float32.

    Raises:
        ValueError: for an unknown value, or float16 on a CPU (gradients underflow there without a scaler).

    Example:
        >>> autocast_dtype("bf16", "cpu"), autocast_dtype("off", "cpu")
        (torch.bfloat16, None)
    """
    device = torch.device(device)
    if amp in (False, None, "off", "false"):
        return None
    if amp in (True, "auto", "true"):
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else None
    if amp not in _NAMES:
        raise ValueError(f"amp must be auto, off, bf16 or fp16, got {amp!r}")
    if amp == "fp16" and device.type == "cpu":
        raise ValueError("amp: fp16 is for CUDA devices; use bf16 or off on a CPU")
    return _NAMES[str(amp)]


def autocast(device: torch.device | str, dtype: torch.dtype | None) -> AbstractContextManager:
    """Autocast context, or nothing for ``dtype=None``."""
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)


def prefers_channels_last(device: torch.device | str, dtype: torch.dtype | None) -> bool:
    """Whether channels-last layout speeds up TRAINING: on CPUs and on CUDA, elsewhere with half precision.

    On a CPU a fifth of the step with patches of 64 x 64 x 32 voxels and larger, in float32 and bfloat16 alike; a
    twentieth slower with 32 x 32 x 16 in bfloat16, where converting the weights of every step weighs more. On an
    H200 with patches of 112 x 112 x 80 voxels two fifths of the step in float32 (with TF32, PyTorch's default for
    convolutions) and half in bfloat16.
    """
    return torch.device(device).type in ("cpu", "cuda") or dtype is not None


def channels_last(module: nn.Module) -> nn.Module:
    """Lay out convolution weights as ``channels_last`` (4D) or ``channels_last_3d`` (5D), in place.

    Exactly the same mathematics; where it pays, see :func:`prefers_channels_last`.
    """
    for child in module.modules():
        weight = getattr(child, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() in (4, 5):
            # not contiguous(): it leaves the strides of a layer with one input channel, whose output has another layout
            weight.data = torch.empty_like(weight.data, memory_format=layout(weight.dim())).copy_(weight.data)
    return module


@contextmanager
def temporarily_channels_last(module: nn.Module) -> Iterator[None]:
    """:func:`channels_last` until the block ends; then every weight has its previous layout.

    A network in training must not change its layout for good: ``DistributedDataParallel`` would mix up the elements of
    its gradients from then on (PyTorch 2.13), and a resumed run would round otherwise than one that was not killed.
    """
    weights = [(p, p.data) for p in module.parameters() if p.dim() in (4, 5)]
    try:
        channels_last(module)
        yield
    finally:
        for weight, data in weights:
            weight.data = data


def layout(n_dims: int) -> torch.memory_format:
    """Channels-last memory format of a tensor with ``n_dims`` dimensions (4 or 5)."""
    return torch.channels_last_3d if n_dims == 5 else torch.channels_last


def shield_bfloat16_convolutions(module: nn.Module) -> nn.Module:
    """Run 3D convolutions over a depth below their kernel size in float32 where CPU autocast would use bfloat16.

    oneDNN 3.12 (PyTorch 2.13) has out-of-bounds reads (kernels of 3 and 5) and writes (7) in the bfloat16 weight
    gradient of such a convolution (depths of 2 with a kernel of 3, 2 to 4 with 5): the gradient is then NaN, infinite
    or silently wrong, at random. Patches of 32 voxels reach a depth of 2 after four halvings. The test
    ``test_precision.py`` shows it.

    Args:
        module: the ``forward`` of its ``Conv3d`` children is wrapped, in place and once. State dicts are unchanged.

    Returns:
        the module.

    Example:
        >>> network = shield_bfloat16_convolutions(nn.Conv3d(1, 1, 3, padding=1))
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     [network(torch.zeros(1, 1, depth, 4, 4)).dtype for depth in (2, 4)]
        [torch.float32, torch.bfloat16]
    """
    for child in module.modules():
        shielded = isinstance(getattr(child, "forward", None), _ShieldedForward)
        if isinstance(child, nn.Conv3d) and max(child.kernel_size) > 1 and not shielded:
            child.forward = _ShieldedForward(child)  # type: ignore[assignment,method-assign]
    return module


class _ShieldedForward:
    """Stands in for the ``forward`` of a convolution. It keeps no state: threads and errors cannot mix it up."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        self.convolution = convolution

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        convolution = self.convolution
        shallow = x.shape[2] < convolution.kernel_size[0]
        if not (shallow and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return type(convolution).forward(convolution, x)
        with torch.autocast("cpu", enabled=False):
            return type(convolution).forward(convolution, x.float())

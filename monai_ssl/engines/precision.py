"""Number formats and memory layouts: what there is, what a fixed rule takes on a machine, and how networks get it.

Trainings on a CPU that are long enough measure instead, see :mod:`monai_ssl.engines.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl import machine

_NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_AUTO = (True, "auto", "true")
FORMATS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
AMP = {"float32": "off", "bfloat16": "bf16", "float16": "fp16"}
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Precision:
    """Number format and memory layout of the steps of a training.

    Attributes:
        format: ``float32``, ``bfloat16`` or ``float16``.
        layout: of images and convolution weights, ``contiguous`` or ``channels_last``.
        found: ``given`` (as options), ``rule``, ``measured``, ``measured before`` (by an equal training on such a
            machine), ``assumed`` (the rule's, where measuring was not possible) or ``checkpoint``.
        seconds: of a forward and backward pass, by :attr:`name`, where it was measured.

    Example:
        >>> Precision("bfloat16", "channels_last").name
        'bfloat16, channels-last'
        >>> Precision("bfloat16", "channels_last").options
        {'amp': 'bf16', 'layout': 'channels_last'}
    """

    format: str
    layout: str
    found: str = field(default="rule", compare=False)
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of autocast; None for plain float32."""
        return FORMATS[self.format]

    @property
    def channels_last(self) -> bool:
        return self.layout == "channels_last"

    @property
    def name(self) -> str:
        return f"{self.format}, {self.layout.replace('_', '-')}"

    @property
    def options(self) -> dict[str, str]:
        """What to give a training that shall not decide for itself."""
        return {"amp": AMP[self.format], "layout": self.layout}


def candidates(
    amp: str | bool | None, layout: str | bool | None, device: torch.device | str, measurable: bool = True
) -> list[Precision]:
    """What a training may choose from; the first is what the fixed rule takes, and alone where nothing is to choose.

    Args:
        amp: see :func:`autocast_dtype`.
        layout: ``"auto"`` or None, ``"channels_last"`` or True, ``"contiguous"`` or False.
        device: where the network runs. GPUs keep to the rule: there bfloat16 also halves the memory.
        measurable: whether the layout of the weights may still change.

    Raises:
        ValueError: for an unknown value.

    Example:
        >>> [precision.name for precision in candidates("off", "auto", "cpu")]
        ['float32, channels-last', 'float32, contiguous']
    """
    if layout not in (None, "auto", *LAYOUTS, True, False):
        raise ValueError(f"layout must be auto, contiguous or channels_last, got {layout!r}")
    ruled = autocast_dtype(amp, device)
    on_cpu = torch.device(device).type == "cpu"
    formats = [ruled, None, torch.bfloat16] if on_cpu and amp in _AUTO and cpu_has_bfloat16() else [ruled]
    fixed = None if layout in (None, "auto") else layout in (True, "channels_last")
    found = "given" if amp not in _AUTO and fixed is not None else "rule"
    chosen = []
    for dtype in dict.fromkeys(formats):
        first = prefers_channels_last(device, dtype) if fixed is None else fixed
        for last in [first, not first] if fixed is None and on_cpu and measurable else [first]:
            chosen.append(Precision(_name(dtype), LAYOUTS[last], found))
    return chosen


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype or "float32").removeprefix("torch.")


def on_device(items: Mapping[str, Any], device: torch.device | str, last: bool) -> dict[str, Any]:
    """A batch with its tensors on a device, and its images in channels-last layout where asked for."""
    moved = {}
    for key, value in items.items():
        if isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
            if key in ("image", "strong") and last and value.dim() in (4, 5):
                value = value.contiguous(memory_format=layout(value.dim()))
        moved[key] = value
    return moved


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); elsewhere it is emulated and slow."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)


def cpu_gains_from_bfloat16() -> bool:
    """Whether bfloat16 is likely to be faster than float32: with AMX, or AVX-512 BF16 as AMD builds it.

    Intel's AVX-512 BF16 without AMX makes no more products a second than float32 does, and the conversions come on top.
    """
    return cpu_has_bfloat16() and ("amx" in machine.cpu_features() or machine.cpu_vendor() == "AuthenticAMD")


def autocast_dtype(amp: str | bool | None, device: torch.device | str) -> torch.dtype | None:
    """Resolve the ``amp`` option.

    Args:
        amp: ``"auto"``: bfloat16 where the hardware gains from it, float16 on older GPUs, else float32; a training
            on a CPU may measure, see :mod:`monai_ssl.engines.calibration`.
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
    if amp in _AUTO:
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_gains_from_bfloat16() else None
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

    The rule of a training that does not measure. On a CPU a fifth of the step with patches of 64 x 64 x 32 voxels and
    larger, in float32 and bfloat16 alike; a twentieth slower with 32 x 32 x 16 in bfloat16, where converting the
    weights of every step weighs more. On an H200 with patches of 112 x 112 x 80 voxels two fifths of the step in
    float32 (with TF32, PyTorch's default for convolutions) and half in bfloat16.
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
    ``test_precision.py`` shows it. A network in eval mode without gradients is left alone, so that the validation of a
    training sees what inference, where nothing is shielded, will compute.

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
        shallow = x.shape[2] < convolution.kernel_size[0] and (convolution.training or torch.is_grad_enabled())
        if not (shallow and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return type(convolution).forward(convolution, x)
        with torch.autocast("cpu", enabled=False):
            return type(convolution).forward(convolution, x.float())

r"""Training in less memory: tensors that follow cheaply from others are computed again instead of kept.

**What it does.** A unit of V-Net and U-Net is convolution, batch normalization, activation (ReLU or leaky ReLU). For
the backward pass autograd keeps the input of every layer, so each unit keeps two tensors of the same size: what its
convolution returned, and what its activation returned, which is what the next convolution reads. The second follows
from the first by one multiplication and one addition per voxel. Here only the first is kept; when the next
convolution's backward pass asks for its input, that is computed again::

    plain autograd      x ── conv ── [y] ── norm, act ── [z] ── conv ── [y'] ── norm, act ── [z'] ── conv ...
                                     kept                kept          kept                 kept

    here                x ── conv ── [y] ── norm, act ──  z  ── conv ── [y'] ── norm, act ──  z'  ── conv ...
                                     kept      ▲                       kept
                                               └── backward: "my input?" -> act(norm(y)) with the saved statistics

The same holds for the sum at a skip connection and for the product of an attention gate: they are computed again from
their parts. It costs one cheap pass over each unit and saves nearly half of the memory of a training step (V-Net in
3D: 5.2 -> 3.3 GB). Values and gradients are those of plain autograd up to rounding, and running statistics are updated
once.

**Where it acts.** In training, on a CPU, in float32, bfloat16 or float64, for ``BatchNorm2d`` and ``BatchNorm3d``
followed by ``ReLU`` or ``LeakyReLU``. Everywhere else (evaluation, GPUs, other layers, tracing, compiling) the layers
run as they are. A network that calls :func:`run_layer`, :func:`normalize_and_activate` and :func:`add` as
:class:`~monai_ssl.networks.encoder_decoder.Unit` and ``DecoderLevel`` do takes part; methods and losses need to know
nothing of it.

**How a tensor is found again.** The autograd node that made it (``x.grad_fn``) knows how to compute it. While a layer
runs inside :func:`save_recomputable_inputs`, autograd is handed that node in place of the tensor. Anything that makes
another tensor of it, in place or not, has another node: then the tensor itself is kept, as ever. Nothing can go stale.

**The switch.** ``with recompute.disabled(): ...`` runs everything inside by plain autograd; :func:`enabled` tells.
Each thread has its own switch. If the kernels that this package calls directly (PyTorch does not promise them) are
missing or changed in an installed version, a self-test at their first use finds out, logs a warning once, and plain
autograd takes over.

**Linear maps of voxels.** A normalization after a convolution with kernel 1 needs even less: its mean and variance
follow from mean and covariance of what the convolution reads, so that both are one affine map
(:func:`mean_and_covariance`, :func:`fold_normalization`), and nothing between input and output has to exist as a
whole. Attention gates (:func:`gate`) and :class:`~monai_ssl.networks.VoxelHeads` are computed so.

======================  =========================================================================================
module                  holds
======================  =========================================================================================
``switch``              :func:`enabled`, :func:`disabled`, the self-test
``activations``         units and skip connections
``gate``                attention gates
``moments``             mean and covariance over voxels, normalizations folded into linear maps
``pointwise``           convolutions with kernel 1 in float32 that keep their features in half precision
======================  =========================================================================================

Example:
    >>> import torch
    >>> from monai_ssl.networks import VNet, recompute
    >>> network = VNet(spatial_dims=2, base_channels=2)
    >>> with recompute.disabled():
    ...     network(torch.zeros(2, 1, 16, 16)).sum().backward()
    >>> recompute.enabled()
    True
"""

from monai_ssl.networks.recompute.activations import (
    add,
    can_recompute,
    normalize_and_activate,
    run_layer,
    save_recomputable_inputs,
)
from monai_ssl.networks.recompute.gate import can_gate, gate
from monai_ssl.networks.recompute.moments import fold_normalization, mean_and_covariance
from monai_ssl.networks.recompute.pointwise import pointwise_convolution
from monai_ssl.networks.recompute.switch import disabled, enabled

__all__ = [
    "add",
    "can_gate",
    "can_recompute",
    "disabled",
    "enabled",
    "fold_normalization",
    "gate",
    "mean_and_covariance",
    "normalize_and_activate",
    "pointwise_convolution",
    "run_layer",
    "save_recomputable_inputs",
]

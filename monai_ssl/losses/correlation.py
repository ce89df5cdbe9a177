"""Omni-correlation: unlabeled voxels described by their similarity to labeled prototypes (CAML)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SIMILARITIES = ("dot", "cosine")
ROWS = 1024  # at a time: both matrices of a piece stay in the cache
GPU_ROWS = 1 << 15  # on a GPU: few kernels


def most_confident(confidence: Tensor, classes: Tensor, n_classes: int, per_class: int) -> Tensor:
    """Rows of the highest confidence in each class.

    Args:
        confidence: ``(N,)`` float.
        classes: ``(N,)`` integers in [0, n_classes).
        n_classes: number of classes.
        per_class: how many rows at most, >= 1.

    Returns:
        indices ``(M,)`` int64, class by class, by falling confidence within a class. A class with a single row is left
        out, as in CAML's released code. Ties fall as ``torch.topk`` decides: draw the indices once and use them for
        every branch.

    Example:
        >>> most_confident(torch.tensor([0.6, 0.9, 0.7, 0.8]), torch.tensor([0, 1, 0, 1]), 2, 1).tolist()
        [2, 1]
    """
    found = []
    for c in range(n_classes):
        rows = (classes == c).nonzero()[:, 0]
        if len(rows) > 1:
            found.append(rows[confidence[rows].topk(min(per_class, len(rows))).indices])
    return torch.cat(found) if found else classes.new_empty(0, dtype=torch.int64)


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of two softmax matrices, and its gradients, some rows at a time.

    The matrices have rows times prototypes entries, a hundred times the inputs: none of them is kept.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, prototypes: Tensor) -> Tensor:
        total = prediction.new_zeros((), dtype=torch.float64)
        grads = [torch.empty_like(z) for z in (prediction, target)]
        size = ROWS if prediction.device.type == "cpu" else GPU_ROWS
        for start in range(0, len(prediction), size):
            place = slice(start, start + size)
            c_v, c_a = ((z[place] @ prototypes.T).softmax(1) for z in (prediction, target))
            logarithm = (c_v + 1e-8).log_()
            entropy = (c_a * logarithm).sum(1)
            total -= entropy.sum(dtype=torch.float64)
            # through softmax: c * (d - sum(c * d)) for a derivative d
            grads[1][place] = (c_a * (entropy[:, None] - logarithm)) @ prototypes
            of_v = c_a.div_(c_v + 1e-8)
            grads[0][place] = (c_v * ((c_v * of_v).sum(1, keepdim=True) - of_v)) @ prototypes
        ctx.save_for_backward(*(g / len(prediction) for g in grads))
        return (total / len(prediction)).to(prediction.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_prediction, of_target = ctx.saved_tensors
        return grad * of_prediction, grad * of_target if ctx.needs_input_grad[1] else None, None


class OmniCorrelationLoss(nn.Module):
    r"""Cross-entropy between the correlations of two branches with the same prototypes.

    .. math:: C_k(z) = \mathrm{softmax}_k\left(s(z, p_k) / T\right), \quad
        L = -\frac{1}{M} \sum_{rows} \sum_k C_k(z_a) \log\left(C_k(z_v) + 10^{-8}\right)

    Everything is computed in float32. With ``"dot"`` the loss saturates at :math:`-\log 10^{-8} = 18.42`.

    Args:
        similarity: s. ``"dot"``: raw dot product (released code). ``"cosine"``: Eq. 2 of the paper.
        temperature: T > 0; the paper's t is 1/T = 10.
        detach_target: the auxiliary branch is a fixed target. The released code sends gradient into both.

    Shapes:
        prediction and target ``(M, D)``: rows of the vanilla and of the auxiliary branch for the same voxels,
        prototypes ``(K, D)``, constants -> scalar float32; 0 where a matrix has fewer than two rows.

    Raises:
        ValueError: for an unknown similarity, a temperature that is not positive, or unequal shapes.

    Source: Gao, Zhang, Ma, Li, Zhang, "Correlation-Aware Mutual Learning for Semi-supervised Medical Image
        Segmentation", MICCAI 2023, Eq. 2-3. The direction of the cross-entropy, ambiguous there, is that of the
        released code.

    Example:
        >>> z, prototypes = torch.eye(4), 10 * torch.eye(4)
        >>> round(OmniCorrelationLoss()(z, z, prototypes).item(), 4)
        0.0
    """

    def __init__(self, similarity: str = "dot", temperature: float = 0.1, detach_target: bool = False) -> None:
        super().__init__()
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.similarity, self.temperature, self.detach_target = similarity, float(temperature), bool(detach_target)

    def correlation(self, rows: Tensor, prototypes: Tensor) -> Tensor:
        """Softmax of the similarities, ``(M, D)`` and ``(K, D)`` -> ``(M, K)`` float32."""
        with torch.autocast(rows.device.type, enabled=False):
            return (self._comparable(rows) @ self._comparable(prototypes).T / self.temperature).softmax(1)

    def _comparable(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x.float(), dim=1) if self.similarity == "cosine" else x.float()

    def forward(self, prediction: Tensor, target: Tensor, prototypes: Tensor) -> Tensor:
        if prediction.shape != target.shape or prediction.shape[1] != prototypes.shape[1]:
            raise ValueError(
                "prediction, target and prototypes must have equal numbers of channels, the first two of rows, got "
                f"{tuple(prediction.shape)}, {tuple(target.shape)}, {tuple(prototypes.shape)}"
            )
        if len(prediction) < 2 or len(prototypes) < 2:
            return 0.0 * (prediction.float().sum() + target.float().sum())
        with torch.autocast(prediction.device.type, enabled=False):
            z_v, z_a, p = (self._comparable(x) for x in (prediction, target.detach() if self.detach_target else target,
                                                         prototypes))  # fmt: skip
            return _CrossEntropy.apply(z_v, z_a, p / self.temperature)

    def extra_repr(self) -> str:
        return f"similarity={self.similarity}, temperature={self.temperature}, detach_target={self.detach_target}"

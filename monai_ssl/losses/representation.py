"""Class-specific representations of feature maps and their consistency between images (TAC)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_ssl.networks.recompute import save_recomputable_inputs

POOLINGS = ("image", "batch")
PAIRINGS = ("same_index", "all_pairs", "all_pairs_sum")
EMPTY = ("skip", "zero")
REDUCTIONS = ("mean", "norm")


class _MaskedSums(torch.autograd.Function):
    """Sums of features under masks in float32, sample by sample: no float32 copy of a feature map outlives its turn."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, masks: Tensor) -> Tensor:
        ctx.save_for_backward(features, masks)
        with torch.autocast(features.device.type, enabled=False):
            return torch.stack(
                [m.flatten(1).float() @ f.flatten(1).float().T for f, m in zip(features, masks, strict=True)]
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, masks = ctx.saved_tensors
        of_features = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        of_masks = torch.empty_like(masks, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(features.device.type, enabled=False):
            for i, g in enumerate(grad.float()):  # (C, F)
                if of_features is not None:
                    # in the layout of the features, or the copy costs more than the product
                    m = masks[i].flatten(1).float()
                    product = (m.T @ g).T if features.stride(1) == 1 else g.T @ m
                    of_features[i].copy_(product.view_as(of_features[i]))
                if of_masks is not None:
                    of_masks[i].copy_((g @ features[i].flatten(1).float()).view_as(of_masks[i]))
        return of_features, of_masks


def masked_sums(features: Tensor, masks: Tensor) -> Tensor:
    """Sum of every feature channel under every mask.

    Args:
        features: ``(B, F, *spatial)``, any float format and layout.
        masks: ``(B, C, *spatial)``, >= 0, hard or soft.

    Returns:
        ``(B, C, F)`` float32, differentiable in both arguments.

    Raises:
        ValueError: when batch or spatial sizes differ.

    Example:
        >>> masked_sums(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4)).shape
        torch.Size([1, 3, 2])
    """
    if len(features) != len(masks) or features.shape[2:] != masks.shape[2:]:
        raise ValueError(
            f"features and masks must agree in batch and spatial sizes, got {tuple(features.shape)} and "
            f"{tuple(masks.shape)}; resize the masks"
        )
    return _MaskedSums.apply(features, masks)


def class_representations(
    features: Tensor,
    masks: Tensor,
    pooling: str = "image",
    sizes: Sequence[int] | None = None,
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    r"""Masked average pooling: one feature vector per image and class.

    .. math:: R_{i,c} = \frac{\sum_v f_{i,v}\, m_{i,c,v}}{\sum_v m_{i,c,v} + \epsilon}

    Args:
        features: ``(B, F, *spatial)``, any float format and layout.
        masks: ``(B, C, *SPATIAL)``, hard or soft, of any resolution: resized to ``spatial`` by nearest neighbor, which
            is strided subsampling where the sides divide.
        pooling: ``"image"``: the masked average above. ``"batch"``: the denominator sums over all images of one kind,
            the numerator does not, so a vector also tells the image's share in the class.
        sizes: numbers of images of each kind, in the order of the batch. None: all are of one kind.
        epsilon: > 0; the vector of an empty class is 0.

    Returns:
        representations ``(B, C, F)`` and the masks' sums ``(B, C)`` at the resolution of the features, float32; both
        differentiable.

    Raises:
        ValueError: for an unknown pooling or unequal batches.

    Source: Chen et al., TAC, IEEE TMI 42(3), 2023, Eq. 1, 4 and 5 (``"image"``); ``"batch"`` is the released code.

    Example:
        >>> r, mass = class_representations(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 8, 8))
        >>> r.shape, mass[0].tolist()
        (torch.Size([1, 3, 2]), [16.0, 16.0, 16.0])
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {POOLINGS}, got {pooling!r}")
    if masks.shape[2:] != features.shape[2:]:
        masks = nn.functional.interpolate(masks, size=features.shape[2:], mode="nearest")
    mass = masks.flatten(2).sum(2, dtype=torch.float32)
    denominator = mass
    if pooling == "batch":
        kinds = mass.split(list(sizes or [len(mass)]))
        denominator = torch.cat([kind.sum(0, keepdim=True).expand_as(kind) for kind in kinds])
    return masked_sums(features, masks) / (denominator + epsilon)[..., None], mass


class RepresentationConsistencyLoss(nn.Module):
    r"""Squared distance between the class representations of labeled and of unlabeled images, at one scale.

    .. math:: L = \frac{1}{|P|\,F} \sum_{(i,j,c) \in P} \lVert R^l_{i,c} - R^u_{j,c} \rVert^2

    Nothing is detached unless asked for: gradients reach the features of both sides and, through soft masks, the
    predictions.

    Args:
        pooling: of the representations, see :func:`class_representations`. ``"batch"`` is the released code.
        pairing: ``"same_index"``: labeled image i with unlabeled image i (released code); all pairs where their
            numbers differ. ``"all_pairs"``: every labeled with every unlabeled image, mean over the pairs.
            ``"all_pairs_sum"``: their sum (Eq. 7), which grows with both numbers of images.
        empty: ``"skip"``: a class that one image of a pair does not show at this scale is left out of the mean for this
            pair. ``"zero"``: its representation is 0, and the other image is pulled to it (released code), unless
            ignored voxels of the labeled image may hide the class.
        reduction: ``"mean"``: mean over channels (released code, for which the published weights were chosen).
            ``"norm"``: the sum over channels (squared norm of Eq. 6), which is F times larger.
        detach_labeled: the labeled side is a fixed target.

    Shapes:
        features ``(B, F, *spatial)`` and masks ``(B, C, *SPATIAL)``, the ``n_labeled`` labeled images first, and where
        their labels are ignored, bool ``(n_labeled, 1, *SPATIAL)`` or None -> scalar float32; 0 where every class of
        every pair is skipped.

    Raises:
        ValueError: for an unknown option.

    Source: Chen, Zhang, Debattista, Han, "Semi-supervised Unpaired Medical Image Segmentation Through Task-affinity
        Consistency", IEEE TMI 42(3), 2023, Eq. 1, 4-7.

    Example:
        >>> loss = RepresentationConsistencyLoss()
        >>> features, masks = torch.rand(1, 3, 4, 4), torch.ones(2, 2, 4, 4)
        >>> loss(torch.cat([features, features]), masks, n_labeled=1).item()
        0.0
    """

    def __init__(
        self,
        pooling: str = "image",
        pairing: str = "same_index",
        empty: str = "skip",
        reduction: str = "mean",
        detach_labeled: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("pooling", pooling, POOLINGS),
            ("pairing", pairing, PAIRINGS),
            ("empty", empty, EMPTY),
            ("reduction", reduction, REDUCTIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        self.pooling, self.pairing, self.empty, self.reduction = pooling, pairing, empty, reduction
        self.detach_labeled = bool(detach_labeled)

    def forward(self, features: Tensor, masks: Tensor, n_labeled: int, ignored: Tensor | None = None) -> Tensor:
        sizes = [n_labeled, len(features) - n_labeled]
        with save_recomputable_inputs():  # the network's feature maps need not be kept for this loss
            representations, mass = class_representations(features, masks, self.pooling, sizes)
        (r_l, r_u), (mass_l, mass_u) = representations.split(sizes), mass.split(sizes)
        if self.detach_labeled:
            r_l = r_l.detach()
        partly = None if ignored is None else ignored.flatten(1).any(1)[:, None]
        if self.pairing != "same_index" or len(r_l) != len(r_u):
            r_l, mass_l, r_u, mass_u = r_l[:, None], mass_l[:, None], r_u[None], mass_u[None]
            partly = None if partly is None else partly[:, None]
        squares = (r_u - r_l).square()
        distance = squares.mean(-1) if self.reduction == "mean" else squares.sum(-1)
        if self.empty == "zero" and partly is not None:
            counted = ((mass_l > 0) | ~partly).expand_as(distance)
            # exactly 1 where all classes count
            share = counted.shape[-1] / counted.sum(-1, keepdim=True).clamp(min=1)
            distance = (distance * share).masked_fill(~counted, 0.0)
        present = None if self.empty == "zero" else (mass_l > 0) & (mass_u > 0)
        if self.pairing == "all_pairs_sum":  # of the mean over the classes of each pair
            if present is None:
                return distance.mean(-1).sum()
            return ((distance * present).sum(-1) / present.sum(-1).clamp(min=1)).sum()
        if present is None:
            return distance.mean()
        return (distance * present).sum() / present.sum().clamp(min=1)

    def extra_repr(self) -> str:
        return (
            f"pooling={self.pooling}, pairing={self.pairing}, empty={self.empty}, reduction={self.reduction}, "
            f"detach_labeled={self.detach_labeled}"
        )

"""Features of a class move toward prototypes of that class (SS-Net)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PrototypeSeparationLoss(nn.Module):
    r"""Weighted cosine distance between the features and the prototypes of one class.

    .. math:: L = \frac{1}{M N} \sum_{m, n} w_m\, v_n\, \left(1 - \cos(f_m, z_n)\right), \qquad
        w_m = \frac{M\,a_m}{\sum a}, \quad v_n = \frac{N\,b_n}{\sum b}

    with scores :math:`a, b` in (0, 1), whose weights thus have mean 1. Gradient flows into features and scores, never
    into the prototypes. The double sum factors, so no M x N matrix is made.

    Shapes:
        features ``(M, D)`` and prototypes ``(N, D)``, any scale, M, N >= 1; scores ``(M,)`` and ``(N,)`` or None for
        equal weights -> scalar float32 in [0, 2].

    Source: Wu et al., "Exploring Smoothness and Class-Separation for Semi-supervised Medical Image Segmentation",
        MICCAI 2022, Eq. 4. The paper calls the weights "L1 normalized"; its code scales them to mean 1 as here, and by
        a slip of axes uses :math:`v_n = 1` always (``prototype_scores=None``).

    Example:
        >>> z = torch.eye(2)
        >>> round(PrototypeSeparationLoss()(3 * torch.eye(2)[:1], z).item(), 4)
        0.5
    """

    def forward(
        self,
        features: Tensor,
        prototypes: Tensor,
        feature_scores: Tensor | None = None,
        prototype_scores: Tensor | None = None,
    ) -> Tensor:
        f = features.float()
        z = nn.functional.normalize(prototypes.detach().float(), dim=1)
        anchor = z.mean(0) if prototype_scores is None else (mean_one(prototype_scores)[:, None] * z).mean(0)
        # mean over the prototypes, whose weights have mean 1
        distance = 1.0 - (f @ anchor) / torch.linalg.vector_norm(f, dim=1).clamp(min=1e-12)
        return distance.mean() if feature_scores is None else (mean_one(feature_scores) * distance).mean()


def mean_one(scores: Tensor) -> Tensor:
    """Positive scores scaled to mean 1."""
    return scores / scores.mean()

"""Losses between a segmentation and a signed distance map (DTC, reused by UG-MCL)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmoothHeaviside(nn.Module):
    r"""Smooth inverse of the distance transform: signed distance -> soft mask.

    .. math:: T^{-1}(d) = \sigma(-k\,d)

    Args:
        slope: :math:`k > 0`, steepness of the step. The released code uses 1500.

    Shapes:
        distance ``(B, C, *spatial)``, any float dtype, negative inside the object -> mask, same shape, float32 in
        [0, 1]. The product is taken in float32 whatever the input: at ``k = 1500`` the rounding of bfloat16 alone
        would move the argument of the sigmoid by several units.

    Raises:
        ValueError: when ``slope`` is not positive.

    Source: Luo et al., "Semi-supervised Medical Image Segmentation through Dual-task Consistency", AAAI 2021, Eq. 2.
        The equation prints ``+k``; with the paper's own convention (negative inside, Eq. 1) that would give the
        background. The released code, and this class, use the minus sign.

    Example:
        >>> SmoothHeaviside(1500.0)(torch.tensor([-1.0, 0.0, 1.0])).tolist()
        [1.0, 0.5, 0.0]
    """

    def __init__(self, slope: float = 1500.0) -> None:
        super().__init__()
        if not slope > 0:
            raise ValueError(f"slope must be > 0, got {slope}")
        self.slope = float(slope)

    def forward(self, distance: Tensor) -> Tensor:
        return torch.sigmoid(-self.slope * distance.float())

    def classes(self, distance: Tensor) -> Tensor:
        """Class probabilities ``(B, C + 1, *spatial)``: background is what is outside of every object.

        Example:
            >>> SmoothHeaviside().classes(torch.tensor([[[-1.0, 1.0]]])).tolist()
            [[[0.0, 1.0], [1.0, 0.0]]]
        """
        inside = self(distance)
        classes = torch.cat([1 - inside.amax(1, keepdim=True), inside], dim=1)
        return classes / classes.sum(1, keepdim=True)

    def extra_repr(self) -> str:
        return f"slope={self.slope}"


class DualTaskConsistencyLoss(nn.Module):
    r"""Mean squared difference between a soft mask and the mask implied by a signed distance map.

    .. math:: L_{DTC} = \frac{1}{N} \sum \left(T^{-1}(d) - p\right)^2

    Gradient flows into both sides, as in paper and code. With slope 1500 the gradient into ``d`` vanishes in float32
    beyond \|d\| of about 0.0115: away from the contour the term trains the segmentation only.

    Args:
        slope: see :class:`SmoothHeaviside`.

    Shapes:
        distance ``(B, C, *spatial)`` in [-1, 1] (after tanh) and probabilities ``(B, C, *spatial)`` in [0, 1], one
        channel per foreground class -> scalar float32.

    Raises:
        ValueError: when the shapes differ.

    Source: DTC, Eq. 3-4. The paper sums over voxels and divides by the number of images; the released code, and this
        class, take the mean over everything.

    Example:
        >>> loss = DualTaskConsistencyLoss()
        >>> loss(torch.full((1, 1, 4, 4), -1.0), torch.ones(1, 1, 4, 4)).item()
        0.0
    """

    def __init__(self, slope: float = 1500.0) -> None:
        super().__init__()
        self.heaviside = SmoothHeaviside(slope)

    def forward(self, distance: Tensor, probabilities: Tensor) -> Tensor:
        if distance.shape != probabilities.shape:
            raise ValueError(
                f"distance and probabilities must have the same shape (one channel per foreground class), got "
                f"{tuple(distance.shape)} and {tuple(probabilities.shape)}"
            )
        return nn.functional.mse_loss(self.heaviside(distance), probabilities.float())

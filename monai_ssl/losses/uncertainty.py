"""Uncertainty of a prediction from stochastic passes (UA-MT, UG-MCL)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from monai_ssl.losses.ramp_up import SigmoidRampUp


def add_noise(image: Tensor, standard_deviation: float = 0.1, limit: float = 0.2) -> Tensor:
    """The image plus Gaussian noise, clipped to ``[-limit, limit]``: the perturbation of the mean-teacher family.

    Example:
        >>> bool((add_noise(torch.zeros(1, 1, 8, 8)).abs() <= 0.2).all())
        True
    """
    return image + torch.randn_like(image).mul_(standard_deviation).clamp_(-limit, limit)


@torch.no_grad()
def monte_carlo_probabilities(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    passes: int = 8,
    passes_per_call: int = 2,
    perturb: Callable[[Tensor], Tensor] = add_noise,
) -> Tensor:
    """Mean class probabilities over stochastic passes, without gradient.

    Several passes share a call: the batch is repeated, and every copy gets its own noise and dropout. Batch statistics
    are those of one call; the released codes, too, put 2 passes into each of 4 calls.

    Args:
        network: image -> logits, in training mode, so that its dropout is active.
        image: ``(B, C_in, *spatial)``.
        passes: number of passes T >= 1.
        passes_per_call: copies of the batch per call, >= 1; memory grows with it.
        perturb: applied to the repeated batch.

    Returns:
        ``(B, n_classes, *spatial)`` float32, sums to 1 over the classes.

    Raises:
        ValueError: when a number is below 1.

    Example:
        >>> monte_carlo_probabilities(torch.nn.Conv2d(1, 2, 1), torch.zeros(3, 1, 4, 4)).shape
        torch.Size([3, 2, 4, 4])
    """
    if passes < 1 or passes_per_call < 1:
        raise ValueError(f"passes and passes_per_call must be >= 1, got {passes} and {passes_per_call}")
    total: Tensor | None = None
    for first in range(0, passes, passes_per_call):
        copies = min(passes_per_call, passes - first)
        logits = network(perturb(torch.cat([image] * copies)))
        # one copy of the batch after the other: (copies * B, ...), not (B * copies, ...)
        for part in logits.chunk(copies):
            p = part.float().softmax(1)
            total = p if total is None else total.add_(p)
    assert total is not None
    return total.div_(passes)


def predictive_entropy(probabilities: Tensor, relative: bool = False) -> Tensor:
    r"""Entropy :math:`-\sum_c \bar p_c \ln(\bar p_c + 10^{-6})` of class probabilities, in nats.

    A probability of exactly 1 gives :math:`-10^{-6}`.

    Args:
        probabilities: ``(B, C, *spatial)``.
        relative: divided by :math:`\ln C`, its largest value.

    Returns:
        ``(B, 1, *spatial)`` float32, at most :math:`\ln C`, or 1.

    Example:
        >>> p = torch.full((1, 4, 1), 0.25)
        >>> round(predictive_entropy(p).item(), 4), round(predictive_entropy(p, relative=True).item(), 4)  # ln 4
        (1.3863, 1.0)
    """
    p = probabilities.float()
    entropy = -(p * (p + 1e-6).log()).sum(1, keepdim=True)
    return entropy / math.log(p.shape[1]) if relative else entropy


class UncertaintyThreshold:
    r"""Entropy below which a target counts, rising from three quarters to all of the maximum.

    .. math:: H(t) = \left(\frac34 + \frac14 e^{-5 (1 - t / t_{max})^2}\right) \ln C

    The released codes write :math:`\ln 2`, also with more classes.

    Args:
        n_classes: :math:`C >= 2`.
        max_iterations: :math:`t_{max}`.

    Raises:
        ValueError: when ``n_classes`` is below 2.

    Source: UA-MT (Yu et al., MICCAI 2019), section 2.2 and its code.

    Example:
        >>> threshold = UncertaintyThreshold(2, 30000)
        >>> [round(threshold(i), 6) for i in (0, 15000, 30000)]
        [0.521028, 0.569508, 0.693147]
    """

    def __init__(self, n_classes: int, max_iterations: int) -> None:
        if n_classes < 2:
            raise ValueError(f"n_classes must be >= 2 (it counts the background), got {n_classes}")
        self.maximum = math.log(n_classes)
        self.rise = SigmoidRampUp(max_iterations)

    def __call__(self, iteration: float) -> float:
        return (0.75 + 0.25 * self.rise(iteration)) * self.maximum

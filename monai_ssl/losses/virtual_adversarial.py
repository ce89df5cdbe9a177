"""Virtual adversarial training: predictions must not change in the direction in which they change most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def flat_dice(logits: Tensor, p: Tensor) -> Tensor:
    """One Dice over images, classes and voxels: ``1 - mean <q, p>``, for q = softmax(logits). Not 0 at q = p."""
    q = logits.float().softmax(1)
    return 1.0 - (2.0 * (q * p).sum() + 1e-8) / (q.sum() + p.sum() + 1e-8)


def classwise_dice(logits: Tensor, p: Tensor) -> Tensor:
    """Dice per class, background included, squared denominator, sums over images and voxels; 0 at q = p."""
    q = logits.float().softmax(1)
    axes = [0, *range(2, q.dim())]
    size = q.square().sum(axes) + p.square().sum(axes)
    return 1.0 - ((2.0 * (q * p).sum(axes) + 1e-10) / (size + 1e-10)).mean()


def classwise_linear_dice(logits: Tensor, p: Tensor) -> Tensor:
    """Dice per class, background included, plain denominator (SS-Net, Eq. 3). Not 0 at q = p, as :func:`flat_dice`."""
    q = logits.float().softmax(1)
    axes = [0, *range(2, q.dim())]
    return 1.0 - ((2.0 * (q * p).sum(axes) + 1e-8) / (q.sum(axes) + p.sum(axes) + 1e-8)).mean()


def kl_divergence(logits: Tensor, p: Tensor) -> Tensor:
    """Kullback-Leibler divergence of q from p, voxel mean: the distance of the original VAT; 0 at q = p."""
    log_q = logits.float().log_softmax(1)
    return nn.functional.kl_div(log_q, p, reduction="sum") * (p.shape[1] / p.numel())


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flat": flat_dice,
    "classwise": classwise_dice,
    "classwise_linear": classwise_linear_dice,
    "kl": kl_divergence,
}


def unit_norm(d: Tensor) -> Tensor:
    """Each sample divided by its L2 norm over channels and voxels (plus 1e-8)."""
    norm = torch.linalg.vector_norm(d.flatten(1), dim=1)
    return d / (norm.reshape(-1, *[1] * (d.dim() - 1)) + 1e-8)


def literature_epsilon(image: Tensor) -> float:
    """Norm of the perturbation for a patch of this size, so that the change per voxel is that of the papers.

    SS-Net uses 10 for patches of 112 x 112 x 80 (3D) and 6 for 256 x 256 (2D); norms grow with the root of the number
    of values.

    Example:
        >>> round(literature_epsilon(torch.zeros(2, 1, 32, 32, 16)), 3), literature_epsilon(torch.zeros(2, 1, 256, 256))
        (1.278, 6.0)
    """
    published, size = (10.0, 112 * 112 * 80) if image.dim() == 5 else (6.0, 256 * 256)
    return published * math.sqrt(image[0].numel() / size)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Passes leave the running statistics of batch normalization alone; the mode of the layers stays as it is.

    In training mode batch statistics are still used: only the bookkeeping stops. Other normalizations are not touched.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class VirtualAdversarialLoss(nn.Module):
    r"""Distance between the predictions of an image and of the image changed in its most sensitive direction.

    .. math:: g = \nabla_d\, D\!\left[p(x),\, p(x + \xi d)\right], \qquad r = \epsilon\, g / \lVert g \rVert_2, \qquad
        L = D\!\left[p(x),\, p(x + r)\right]

    ``d`` starts as uniform noise of norm 1. ``p(x)`` and ``r`` are constants of the loss: gradient flows through
    ``p(x + r)`` alone. The inner gradient is taken for ``d`` only (``torch.autograd.grad``): gradients that the caller
    has accumulated are not touched, and nothing of a distributed wrapper fires. Dropout stays random in every pass;
    the running statistics of batch normalization see the pass over ``x`` and not the perturbed ones.

    Args:
        distance: ``"flat"``: one Dice over everything, plain sums (SS-Net's 3D code). ``"classwise"``: mean over the
            classes, squared sums (its 2D code). ``"classwise_linear"``: mean over the classes, plain sums (Eq. 3 of the
            paper). ``"kl"``: the original VAT.
        epsilon: norm of the perturbation, > 0. None: :func:`literature_epsilon` of the image.
        xi: length of the step that probes the gradient, > 0.
        power_iterations: refinements of the direction, >= 1.

    Call:
        network: image -> logits; its batch-norm layers are found through ``network.modules()``.
        image: ``(B, C_in, *spatial)``.
        reference: p(x), ``(B, n_classes, *spatial)`` float32 without gradient. None: one more pass over the image.
        noise: start of the direction, in place of uniform noise in [-0.5, 0.5).

    Returns:
        scalar float32. It is NaN where the network's output is.

    Raises:
        ValueError: when an option is out of its range.

    Source: Miyato et al., "Virtual Adversarial Training", TPAMI 2018, Eq. 9-12; Wu et al., "Exploring Smoothness and
        Class-Separation for Semi-supervised Medical Image Segmentation", MICCAI 2022, Eq. 1-3.

    Example:
        >>> network = nn.Conv2d(1, 2, 3, padding=1)
        >>> loss = VirtualAdversarialLoss("flat")(network, torch.rand(2, 1, 8, 8))
        >>> loss.backward()
        >>> loss.shape, network.weight.grad.shape
        (torch.Size([]), torch.Size([2, 1, 3, 3]))
    """

    def __init__(
        self,
        distance: str = "flat",
        epsilon: float | None = None,
        xi: float = 10.0,
        power_iterations: int = 1,
    ) -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {tuple(DISTANCES)}, got {distance!r}")
        if epsilon is not None and not epsilon > 0:
            raise ValueError(f"epsilon must be > 0 or None, got {epsilon}")
        if not xi > 0:
            raise ValueError(f"xi must be > 0, got {xi}")
        if power_iterations < 1:
            raise ValueError(f"power_iterations must be >= 1, got {power_iterations}")
        self.distance = distance
        self.epsilon, self.xi, self.power_iterations = epsilon, float(xi), int(power_iterations)

    def forward(
        self, network: nn.Module, image: Tensor, reference: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        return self.compare(network, *self.attack(network, image, reference, noise))

    def attack(
        self, network: nn.Module, image: Tensor, reference: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The perturbed image ``x + r`` and ``p(x)``, both without gradient.

        First half of the loss; it needs the memory of a whole pass, so call it before other passes keep theirs.
        """
        if reference is None:
            with torch.no_grad():
                reference = network(image).float().softmax(1)
        return image + self.perturbation(network, image, reference, noise), reference

    def compare(self, network: nn.Module, perturbed: Tensor, reference: Tensor) -> Tensor:
        """Second half of the loss, from what :meth:`attack` returned."""
        with frozen_statistics(network):
            return DISTANCES[self.distance](network(perturbed), reference)

    def perturbation(self, network: nn.Module, image: Tensor, reference: Tensor, noise: Tensor | None = None) -> Tensor:
        """The adversarial perturbation r, in the shape of the image, without gradient."""
        distance = DISTANCES[self.distance]
        d = unit_norm(torch.rand_like(image) - 0.5 if noise is None else noise)
        # the distance is a mean over voxels: without this its gradients vanish in half precision
        scale = float(reference[:, 0].numel())
        for _ in range(self.power_iterations):
            d = d.detach().requires_grad_()
            with torch.enable_grad(), frozen_statistics(network):
                value = distance(network(image + self.xi * d), reference)
            (gradient,) = torch.autograd.grad(value * scale, d)
            d = unit_norm(gradient / scale)
        epsilon = literature_epsilon(image) if self.epsilon is None else self.epsilon
        return (epsilon * d).detach()

    def extra_repr(self) -> str:
        return f"{self.distance}, epsilon={self.epsilon}, xi={self.xi}, power_iterations={self.power_iterations}"

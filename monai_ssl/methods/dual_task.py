"""What the methods with a distance head share: DTC, SASSNet and UG-MCL."""

from __future__ import annotations

import torch
from monai.transforms import Transform
from torch import Tensor, nn

from monai_ssl.methods.base import Batch
from monai_ssl.transforms import SignedDistanceMap, SignedDistanceMapd


def check_dual_task(network: nn.Module, otherwise: str = "") -> None:
    """Refuse a network that predicts no distances.

    Args:
        network: what the method deploys.
        otherwise: what else the user can do; ends the message.

    Raises:
        TypeError: names the network's class, and the wrapper that gives it the second head.

    Example:
        >>> check_dual_task(nn.Identity())
        Traceback (most recent call last):
        TypeError: network must offer tasks(image) -> (logits, distance), got Identity; wrap your backbone in \
monai_ssl.networks.DualTaskNetwork
    """
    if not hasattr(network, "tasks"):
        raise TypeError(
            f"network must offer tasks(image) -> (logits, distance), got {type(network).__name__}; wrap your backbone "
            f"in monai_ssl.networks.DualTaskNetwork{otherwise}"
        )


def distance_transforms(distances: SignedDistanceMap) -> list[Transform]:
    """:meth:`~monai_ssl.methods.base.SemiSupervisedMethod.loader_transforms` that compute the targets."""
    return [SignedDistanceMapd("label", distances.n_classes, distances.degenerate)]


def distance_target(distances: SignedDistanceMap, labeled: Batch) -> Tensor:
    """Signed distances ``(B, n_classes - 1, *spatial)`` float32 of a labeled batch, computed here where it has none."""
    target = labeled.get("signed_distance")
    if target is None:
        target = torch.stack([distances(item) for item in labeled["label"]])
    return target

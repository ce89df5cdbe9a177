"""Random weights by a rule of one's choice, for networks that shall differ."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["INITIALIZATIONS", "initialize"]

INITIALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "kaiming": nn.init.kaiming_normal_,
    "xavier": nn.init.xavier_normal_,
}


@torch.no_grad()
def initialize(network: nn.Module, how: str) -> nn.Module:
    """Draw all weights anew: convolutions by a rule, the rest as PyTorch does.

    Parameters that belong to no module with ``reset_parameters`` (a bare ``nn.Parameter``) stay as they are.

    Args:
        network: changed in place.
        how: ``"kaiming"``: normal with a variance of 2 / fan-in (He et al.). ``"xavier"``: 2 / (fan-in + fan-out)
            (Glorot and Bengio).

    Returns:
        the network.

    Raises:
        ValueError: for another rule.

    Example:
        >>> conv = initialize(nn.Conv2d(64, 64, 3), "kaiming")
        >>> round(conv.weight.std().item() * (64 * 9 / 2) ** 0.5, 1)
        1.0
    """
    if how not in INITIALIZATIONS:
        raise ValueError(f"initialization must be one of {sorted(INITIALIZATIONS)} or null, got {how!r}")
    for child in network.modules():
        if callable(reset := getattr(child, "reset_parameters", None)):
            reset()
        if isinstance(child, nn.modules.conv._ConvNd):
            INITIALIZATIONS[how](child.weight)
    return network

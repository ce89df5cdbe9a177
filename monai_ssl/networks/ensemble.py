"""Several networks as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    r"""The mean of the class probabilities of several networks, as logits.

    With the logits :math:`z_m` of the :math:`M` members, the output is

    .. math:: \log\Big(\frac{1}{M} \sum_m \operatorname{softmax}(z_m)\Big)

    whose softmax is the mean itself: sliding windows, mirrored views, uncertainty maps and exports take an ensemble as
    they take one network, and need memory for one member's features at a time.

    Args:
        members: at least two networks that map an image ``(B, C_in, *spatial)`` to logits ``(B, n_classes, *spatial)``.
            They may be of different architectures. Put the ensemble into eval mode before it is used.

    Shapes:
        image ``(B, C_in, *spatial)`` -> ``(B, n_classes, *spatial)`` float32, the logarithm of probabilities, at least
        log(1e-12).

    Raises:
        ValueError: when there are fewer than two members.

    Example:
        >>> network = Ensemble([nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)]).eval()
        >>> mean = network(torch.rand(2, 1, 8, 8)).softmax(1)
        >>> mean.shape, bool(torch.allclose(mean.sum(1), torch.ones(2, 8, 8)))
        (torch.Size([2, 3, 8, 8]), True)
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"members must hold at least two networks, got {len(members)}")
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the mean of the members' class probabilities ``(B, n_classes, *spatial)``, float32."""
        total = torch.zeros(1, device=x.device)
        for member in self.members:
            total = total + member(x).float().softmax(1)
        return (total / len(self.members)).clamp_min(1e-12).log()


def ensemble_state(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state dict of an :class:`Ensemble` from those of its members.

    Args:
        states: one per member, in their order.

    Example:
        >>> list(ensemble_state([nn.Conv2d(1, 2, 1).state_dict()] * 2))
        ['members.0.weight', 'members.0.bias', 'members.1.weight', 'members.1.bias']
    """
    return {f"members.{k}.{name}": value for k, state in enumerate(states) for name, value in state.items()}

"""The released codes register each decoder together with its head; ours hold all heads at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn


class InReleasedOrder(nn.Module):
    """A network whose ``parameters``, ``buffers`` and ``state_dict`` come in another order.

    Args:
        network: ours.
        prefixes: of the names, in the released order; each name has exactly one of them.
    """

    def __init__(self, network: nn.Module, prefixes: Iterable[str]) -> None:
        super().__init__()
        self.network, self.prefixes = network, list(prefixes)

    def _sorted(self, named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        named = list(named)
        found = [(n, t) for prefix in self.prefixes for n, t in named if n.startswith(prefix)]
        assert len(found) == len(named)
        return found

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        return (t for _, t in self._sorted(self.network.named_parameters()))

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (t for _, t in self._sorted(self.network.named_buffers()))

    def entries(self) -> list[tuple[str, Tensor]]:
        """Names and tensors of the state dict."""
        return self._sorted(self.network.state_dict().items())

    def padded_shapes(self, columns: int) -> list[list[int]]:
        """Of all entries but the batch counters, as ``net_*_shapes`` are stored."""
        return [[*t.shape, *[0] * (columns - t.dim())] for _, t in self.entries() if t.is_floating_point()]


def decoder_by_decoder(n: int) -> list[str]:
    """Prefixes of an :class:`~monai_ssl.networks.EncoderDecoder` of ``n`` decoders: encoder, decoder, its head, ..."""
    return ["stages.", *(f"{part}.{k}." for k in range(n) for part in ("decoders", "heads"))]

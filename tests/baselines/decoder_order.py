"""The released codes register each decoder together with its head; ours hold all heads at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn


class InReleasedOrder(nn.Module):
    """A network whose ``parameters``, ``buffers`` and ``state_dict`` come in another order.

    Args:
        network: ours.
        prefixes: of the names, in the released order; each name has exactly one of them.
        unused: a layer of the released network that nothing uses, and ours lacks; its prefix is ``unused.``.
    """

    def __init__(self, network: nn.Module, prefixes: Iterable[str], unused: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.prefixes, self.unused = network, list(prefixes), unused

    def _sorted(self, read: Callable[[nn.Module], Iterable[tuple[str, Tensor]]]) -> list[tuple[str, Tensor]]:
        named = list(read(self.network))
        if self.unused is not None:
            named += [(f"unused.{name}", tensor) for name, tensor in read(self.unused)]
        found = [(n, t) for prefix in self.prefixes for n, t in named if n.startswith(prefix)]
        assert len(found) == len(named)
        return found

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        return (t for _, t in self._sorted(nn.Module.named_parameters))

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (t for _, t in self._sorted(nn.Module.named_buffers))

    def entries(self) -> list[tuple[str, Tensor]]:
        """Names and tensors of the state dict."""
        return self._sorted(lambda module: module.state_dict().items())

    def padded_shapes(self, columns: int) -> list[list[int]]:
        """Of all entries but the batch counters, as ``net_*_shapes`` are stored."""
        return [[*t.shape, *[0] * (columns - t.dim())] for _, t in self.entries() if t.is_floating_point()]


def decoder_by_decoder(n: int) -> list[str]:
    """Prefixes of an :class:`~monai_ssl.networks.EncoderDecoder` of ``n`` decoders: encoder, decoder, its head, ..."""
    return ["stages.", *(f"{part}.{k}." for k in range(n) for part in ("decoders", "heads"))]

"""How much a trained method contradicts itself on a scan: where annotating it would teach most."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.engines import WindowInferer
from monai_ssl.engines.segment import Segmentation, entropy
from monai_ssl.errors import DataError
from monai_ssl.methods import SemiSupervisedMethod


@dataclass
class Doubt:
    """How sure a trained model is of one scan, summed up slab by slab.

    Attributes:
        disagreement: one minus the soft Dice of two opinions, averaged over the foreground classes and over the pairs
            of opinions, in [0, 1]; None where there is only one opinion.
        uncertainty: predictive entropy per foreground voxel, at least 0.
    """

    _pairs: Tensor | None = None
    _entropy: float = 0.0
    _foreground: float = 0.0

    def add(self, opinions: Sequence[Tensor], mean: Tensor) -> None:
        """Count a slab.

        Args:
            opinions: class probabilities ``(n_classes, *spatial)``, one or more.
            mean: those that segment.
        """
        self._entropy += float(entropy(mean).sum(dtype=torch.float64))
        self._foreground += float(mean[1:].sum(dtype=torch.float64))
        if len(opinions) < 2:
            return
        flat = [opinion[1:].flatten(1).double() for opinion in opinions]
        sums = torch.stack([
            torch.stack([(p * q).sum(1), (p * p).sum(1) + (q * q).sum(1)]) for p, q in itertools.combinations(flat, 2)
        ])  # fmt: skip
        self._pairs = sums if self._pairs is None else self._pairs + sums

    @property
    def disagreement(self) -> float | None:
        if self._pairs is None:
            return None
        return float(1 - ((2 * self._pairs[:, 0] + 1) / (self._pairs[:, 1] + 1)).mean())

    @property
    def uncertainty(self) -> float:
        return self._entropy / (self._foreground + 1)


class WatchedInferer:
    """An inferer that compares opinions about an image while it stitches their windows.

    It stands where a :class:`~monai_ssl.engines.VolumeSegmenter` has its inferer, and hands out the same.

    Args:
        inferer: stitches the windows of every opinion.
        others: image -> logits; what is compared with the network.
        members: the opinions are these instead, and their mean is handed out; for an ensemble.

    Attributes:
        doubt: about the image that was swept last.
    """

    def __init__(
        self,
        inferer: WindowInferer,
        others: Sequence[Callable[[Tensor], Tensor]] = (),
        members: Sequence[nn.Module] = (),
    ) -> None:
        self.inferer, self.others, self.members = inferer, tuple(others), tuple(members)
        self.doubt = Doubt()

    def sweep(
        self, inputs: Tensor, network: Callable[..., Any], device: torch.device | str | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """As :meth:`WindowInferer.sweep`."""
        self.doubt = Doubt()
        opinions: tuple[Callable[..., Any], ...] = self.members or (network, *self.others)
        for slabs in zip(*(self.inferer.sweep(inputs, opinion, device) for opinion in opinions), strict=True):
            found = [slab for _, slab in slabs]
            mean = torch.stack(found).mean(0) if self.members else found[0]
            self.doubt.add(found, mean)
            yield slabs[0][0], mean


def second_opinion_of(method: SemiSupervisedMethod) -> Callable[[Tensor], Tensor]:
    """A method's second opinion as logits, which an inferer takes."""

    def second(window: Tensor) -> Tensor:
        opinion = method.second_opinion(window)
        assert opinion is not None
        return opinion.clamp_min(1e-12).log()

    return second


@torch.no_grad()
def disagreement(
    method: SemiSupervisedMethod,
    image: Tensor,
    inferer: WindowInferer,
    device: torch.device | str = "cpu",
    ask_method: bool = True,
) -> float:
    r"""Score of one scan; the higher, the more worth annotating.

    With :math:`p` the network's probabilities and :math:`q` the method's second opinion (dual task, teacher, second
    network), it is one minus their soft Dice, averaged over the foreground classes:

    .. math:: 1 - \frac{2 \sum p\,q + \epsilon}{\sum p^2 + \sum q^2 + \epsilon}

    so the size of the organ does not matter and two equal opinions give 0. Methods without a second opinion get the
    predictive entropy per foreground voxel.

    Args:
        method: trained; put into eval mode.
        image: ``(C_in, *spatial)``, preprocessed.
        inferer: stitches the windows of both opinions.
        device: where the method runs.
        ask_method: False: entropy, although the method has a second opinion; for a method whose teacher or second
            network has random weights.

    Returns:
        a number >= 0; at most 1 with a second opinion.

    Example:
        >>> from monai_ssl.methods import DualTaskConsistency
        >>> from monai_ssl.networks import DualTaskVNet
        >>> method = DualTaskConsistency(DualTaskVNet(spatial_dims=2, base_channels=2))
        >>> 0 <= disagreement(method, torch.rand(1, 20, 30), WindowInferer((16, 16), amp="off")) <= 1
        True
    """
    method = method.to(device).eval()
    asked = ask_method and _has_second_opinion(method, len(image), inferer, device)
    watched = WatchedInferer(inferer, [second_opinion_of(method)] if asked else [])
    for _ in watched.sweep(image[None], method.network, device):
        pass
    found = watched.doubt.disagreement
    return watched.doubt.uncertainty if found is None else found


def _has_second_opinion(
    method: SemiSupervisedMethod, channels: int, inferer: WindowInferer, device: torch.device | str
) -> bool:
    patch = torch.zeros(1, channels, *tuple(inferer.roi_size), device=device)  # type: ignore[arg-type]
    return method.second_opinion(patch) is not None


@dataclass(frozen=True)
class Look:
    """What a trained model says about one scan.

    Attributes:
        segmentation: label map and, on the image's grid, whatever else the segmenter gives.
        doubt: how sure the model is.
        prepared: ``(C, *spatial)`` the image as the network sees it.
    """

    segmentation: Segmentation
    doubt: Doubt
    prepared: Tensor


class DisagreementScorer:
    """Ranks scans by how much the model of a bundle contradicts itself.

    A method is asked for its second opinion, see :func:`disagreement`. The members of an ensemble are compared with one
    another.

    Args:
        bundle: folder of a bundle with weights.
        checkpoint: of the training: then teachers and second networks are at hand. Without it the deployed network
            alone is loaded; a method whose second opinion needs more falls back to entropy.
        overrides: ids of ``configs/train.yaml`` and ``configs/inference.yaml`` -> values; ids that a config does not
            have are left out of it.

    Attributes:
        method: that the bundle was trained with; None of an ensemble.

    Raises:
        DataError: when weights are missing or do not fit.
    """

    def __init__(self, bundle: Path, checkpoint: Path | None = None, **overrides: Any) -> None:
        from monai_ssl.networks import Ensemble
        from monai_ssl.runs.predict import open_segmenter

        self.segmenter = open_segmenter(bundle, _known(bundle, "inference.yaml", overrides))
        inferer, network = self.segmenter.inferer, self.segmenter.network
        if not isinstance(inferer, WindowInferer):
            raise DataError(
                f"bundle: inferer of {bundle} must be a monai_ssl.engines.WindowInferer to compare two opinions, got "
                f"{type(inferer).__name__}"
            )
        device = self.segmenter.device
        if isinstance(network, Ensemble):
            self.method: SemiSupervisedMethod | None = None
            self.watched = WatchedInferer(inferer, members=list(network.members))
            return
        self.method = method = self._method(bundle, checkpoint, overrides)
        channels = self.segmenter.preset.in_channels if self.segmenter.preset is not None else 1
        with torch.no_grad():
            asked = self.ask_method and _has_second_opinion(method.to(device).eval(), channels, inferer, device)
        self.watched = WatchedInferer(inferer, [second_opinion_of(method)] if asked else [])

    def _method(self, bundle: Path, checkpoint: Path | None, overrides: Mapping[str, Any]) -> SemiSupervisedMethod:
        from monai.bundle import ConfigParser

        from monai_ssl.weights import load

        parser = ConfigParser()
        parser.read_config(str(bundle / "configs" / "train.yaml"))
        parser.update({"bundle_root": str(bundle), **_known(bundle, "train.yaml", overrides)})
        method: SemiSupervisedMethod = parser.get_parsed_content("method")
        if checkpoint is None or not checkpoint.is_file():
            method.network.load_state_dict(self.segmenter.network.state_dict())
            self.ask_method = not method.second_opinion_needs_state
            return method
        self.ask_method = True
        try:
            method.load_state_dict(load(checkpoint)["method"])
        except (RuntimeError, KeyError, TypeError) as error:
            text = " ".join(str(error).split())[:200]
            raise DataError(f"{checkpoint}: does not fit the method ({text})") from None
        return method

    @property
    def opinions(self) -> str:
        """What is compared: ``"method"`` (its second opinion), ``"members"`` of an ensemble, or ``""``: nothing."""
        return "members" if self.watched.members else "method" if self.watched.others else ""

    def fingerprint(self) -> dict[str, Any]:
        """What decides about scores and segmentations, to tell those of one model from those of another."""
        from monai_ssl.weights import content_digest

        state = None if self.method is None or not self.watched.others else self.method.state_dict()
        return {**self.segmenter.fingerprint(), "opinions": self.opinions,
                "method": None if state is None else content_digest(state)}  # fmt: skip

    def __call__(self, image: str | Path) -> float:
        """Score of one image file: the disagreement, or the uncertainty where there is one opinion only."""
        prepared: Tensor = self.segmenter.prepare(image)["image"].as_tensor()
        network = self.segmenter.network.eval()
        with torch.no_grad():
            for _ in self.watched.sweep(prepared[None], network, self.segmenter.device):
                pass
        doubt = self.watched.doubt
        return doubt.uncertainty if doubt.disagreement is None else doubt.disagreement

    def look(self, image: Any) -> Look:
        """Segment one image and see how sure the model is; one pass per opinion, nothing is written.

        Args:
            image: a file, or one file per channel.
        """
        item = self.segmenter.prepare(image)
        prepared: Tensor = item["image"].as_tensor()
        former, self.segmenter.inferer = self.segmenter.inferer, self.watched  # type: ignore[assignment]
        try:
            segmentation = self.segmenter.finish(item)
        finally:
            self.segmenter.inferer = former
        return Look(segmentation, self.watched.doubt, prepared)


def _known(bundle: Path, config: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    from monai_ssl.bundle.overrides import merged_config, root_id

    known = merged_config(bundle, [config])
    return {key: value for key, value in overrides.items() if root_id(key) in known}

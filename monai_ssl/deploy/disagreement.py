"""How much a trained method contradicts itself on a scan: where annotating it would teach most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_ssl.engines import WindowInferer
from monai_ssl.engines.segment import entropy
from monai_ssl.errors import DataError
from monai_ssl.methods import SemiSupervisedMethod


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
    first = inferer.sweep(image[None], method.network, device)
    patch = torch.zeros(1, len(image), *tuple(inferer.roi_size), device=device)  # type: ignore[arg-type]
    if not ask_method or method.second_opinion(patch) is None:
        uncertain = foreground = 0.0
        for _, p in first:
            uncertain += float(entropy(p).sum(dtype=torch.float64))
            foreground += float(p[1:].sum(dtype=torch.float64))
        return uncertain / (foreground + 1)

    def second(window: Tensor) -> Tensor:
        opinion = method.second_opinion(window)
        assert opinion is not None
        return opinion.clamp_min(1e-12).log()  # the inferer takes logits

    both: Tensor | None = None
    for (_, p), (_, q) in zip(first, inferer.sweep(image[None], second, device), strict=True):
        p, q = p[1:].flatten(1).double(), q[1:].flatten(1).double()
        sums = torch.stack([(p * q).sum(1), (p * p).sum(1) + (q * q).sum(1)])
        both = sums if both is None else both + sums
    assert both is not None
    return float(1 - ((2 * both[0] + 1) / (both[1] + 1)).mean())


class DisagreementScorer:
    """Ranks scans by :func:`disagreement` of the method that a bundle was trained with.

    Args:
        bundle: folder of a bundle with weights.
        checkpoint: of the training: then teachers and second networks are at hand. Without it the deployed network
            alone is loaded; a method whose second opinion needs more falls back to entropy.
        overrides: ids of ``configs/train.yaml`` -> values.

    Raises:
        DataError: when weights are missing or do not fit.
    """

    def __init__(self, bundle: Path, checkpoint: Path | None = None, **overrides: Any) -> None:
        from monai.bundle import ConfigParser

        from monai_ssl.runs.predict import open_segmenter
        from monai_ssl.weights import load

        self.segmenter = open_segmenter(bundle, overrides)
        if not isinstance(self.segmenter.inferer, WindowInferer):
            raise DataError(
                f"bundle: inferer of {bundle} must be a monai_ssl.engines.WindowInferer to compare two opinions, got "
                f"{type(self.segmenter.inferer).__name__}"
            )
        self.inferer = self.segmenter.inferer
        parser = ConfigParser()
        parser.read_config(str(bundle / "configs" / "train.yaml"))
        parser.update({"bundle_root": str(bundle), **overrides})
        self.method: SemiSupervisedMethod = parser.get_parsed_content("method")
        if checkpoint is not None and checkpoint.is_file():
            self.ask_method = True
            try:
                self.method.load_state_dict(load(checkpoint)["method"])
            except (RuntimeError, KeyError, TypeError) as error:
                text = " ".join(str(error).split())[:200]
                raise DataError(f"{checkpoint}: does not fit the method ({text})") from None
        else:
            self.method.network.load_state_dict(self.segmenter.network.state_dict())
            self.ask_method = not self.method.second_opinion_needs_state

    def __call__(self, image: str | Path) -> float:
        """Score of one image file."""
        prepared: Tensor = self.segmenter.prepare(str(image))["image"].as_tensor()
        return disagreement(self.method, prepared, self.inferer, self.segmenter.device, self.ask_method)

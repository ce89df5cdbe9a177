"""CCT: auxiliary decoders, fed with disturbed features, must agree with the main one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.losses import (
    HalfDiceCELoss,
    MaskedMSELoss,
    SigmoidRampUp,
    VirtualAdversarialLoss,
    supervised_cross_entropy,
)
from monai_ssl.losses.virtual_adversarial import frozen_statistics
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least, joint_images, staircase
from monai_ssl.methods.variants import Columns, of_variant
from monai_ssl.networks import unlabeled_rows
from monai_ssl.networks.perturbations import add_feature_noise, drop_elements, drop_strongest

PERTURBATIONS = ("noise", "dropout", "feature_drop", "adversarial", "mask_context", "mask_object")
COLUMNS: Columns = {
    "released": {
        "weight": 0.1, "scales": "all", "supervise": "all", "supervised_loss": "dice_ce", "detach_main": False,
    },
    "paper": {
        "weight": 30.0, "scales": "coarsest", "supervise": "main", "supervised_loss": "ce", "detach_main": True,
    },
}  # fmt: skip
SCALES, SUPERVISED, LOSSES = ("all", "coarsest"), ("all", "main"), ("dice_ce", "ce")


class CrossConsistency(SemiSupervisedMethod):
    r"""A main decoder, and auxiliary ones that see the same encoder's features disturbed, must agree.

    .. math:: L = \frac{1}{K + 1} \sum_{k=0}^{K} \tfrac12 \left(L_{CE} + L_{Dice}\right)(p_k, y)
        + w(t)\, \frac1K \sum_{k=1}^{K} \overline{\left(p_0 - p_k\right)^2}, \qquad
        p_k = \mathrm{softmax}\, g_k\left(\pi_k(h(x))\right), \quad \pi_0 = id

    One pass of the encoder :math:`h` over labeled and unlabeled images together; each decoder :math:`g_k` has a
    perturbation :math:`\pi_k` of its own. Labels supervise all decoders, the consistency is on unlabeled images. The
    main decoder :math:`g_0` is deployed, and never disturbed.

    Args:
        network: offers ``encode(image)``, the features per scale, ``decode(encoded, k)`` and ``logits(features, k)``,
            and has one decoder more than there are perturbations: a :class:`~monai_ssl.networks.VNet` or
            :class:`~monai_ssl.networks.UNet`, or any network in a :class:`~monai_ssl.networks.MultiHeadNetwork`.
        max_iterations: length of the default ramp-up.
        variant: ``"released"`` (default: SSL4MIS) or ``"paper"`` (the original): a column of the table below, from
            which every option comes that is None here. The original ramps up over a tenth of the run.
        weight: :math:`w_{max}` >= 0.
        ramp_levels: the default ramp-up is a staircase of this many levels: 200 (2D, 30000 iterations) as released, of
            150 iterations each.
        ramp_up: :math:`w(t)` as a function of the iteration; replaces ``weight`` and ``ramp_levels``.
        perturbations: one per auxiliary decoder.

            - ``"noise"``, ``"dropout"``, ``"feature_drop"``: see :mod:`monai_ssl.networks.perturbations`.
            - ``"adversarial"``: the coarsest features plus the direction in which the decoder's prediction changes
              most (:class:`~monai_ssl.losses.VirtualAdversarialLoss`, ``"kl"``).
            - ``"mask_context"``: features stay where the main decoder predicts foreground; ``"mask_object"``: where it
              predicts background.
        scales: ``"all"``: features of every scale are disturbed (SSL4MIS). ``"coarsest"``: the last one (original).
        supervise: ``"all"`` decoders (SSL4MIS) or ``"main"`` (original; auxiliary decoders see unlabeled images only).
        supervised_loss: ``"dice_ce"``: half of cross-entropy and Dice of all classes (SSL4MIS). ``"ce"``: cross-entropy
            (original).
        detach_main: the main prediction is a fixed target (original). False: gradient on both sides (SSL4MIS).
        confidence: in [0, 1): only voxels where the main decoder is surer than this count; the mean is over them. None:
            all voxels.
        noise: :math:`s` of ``"noise"``.
        dropout: probability of ``"dropout"``.
        adversarial_norm, adversarial_step: norm of the ``"adversarial"`` perturbation, and length of the step that
            probes the gradient. The original's step, 1e-6, is lost in the rounding of float32.
        unsupervised_weight: factor on the consistency; 0 is the matched floor: all decoders see the same features.

    Two codes bear the name. The defaults are SSL4MIS's, with which segmentation papers compare:

    ============================  =================================  ============================================
    part                          SSL4MIS (2D), the default          original (yassouali/CCT)
    ============================  =================================  ============================================
    auxiliary decoders            3                                  30, of seven kinds
    perturbed features            every scale                        ``scales="coarsest"``
    labels supervise              all decoders                       ``supervise="main"``
    supervised loss               cross-entropy and Dice             ``supervised_loss="ce"``
    main prediction               with gradient                      ``detach_main=True``
    :math:`w_{max}`, ramp-up      0.1, over the run                  30, over a tenth of the run
    voxels                        all                                all; ``confidence`` is an option of its code
    perturbations in evaluation   on, in decoders that nobody asks   off
    guided cutout                 -                                  erases boxes: not offered here
    ============================  =================================  ============================================

    Here perturbations are off in evaluation. SSL4MIS has no 3D code: in 3D it is the V-Net with four equal decoders.

    Voxels labeled ``IGNORE_LABEL`` take no part in the supervised term, but their features are features: the threshold
    of ``"feature_drop"`` is that of the whole image.

    Loss terms: ``supervised``, and where there is something unlabeled, ``consistency``.

    Raises:
        ValueError: for an option out of its range, or another number of decoders.
        TypeError: when the network lacks what is named above, or ``ramp_up`` is no function.

    Source: Ouali, Hudelot, Tami, "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020,
        Eq. 1-4 and section 3.2.

    Example:
        >>> from monai_ssl.networks import literature_network
        >>> method = CrossConsistency(literature_network(2, base_channels=2, decoders=4))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['consistency', 'supervised']
    """

    honors_ignore_label = True

    def __init__(
        self,
        network: nn.Module,
        max_iterations: int = 6000,
        weight: float | None = None,
        ramp_levels: int = 40,
        ramp_up: Callable[[int], float] | None = None,
        perturbations: Sequence[str] = ("noise", "dropout", "feature_drop"),
        variant: str = "released",
        scales: str | None = None,
        supervise: str | None = None,
        supervised_loss: str | None = None,
        detach_main: bool | None = None,
        confidence: float | None = None,
        noise: float = 0.3,
        dropout: float = 0.3,
        adversarial_norm: float = 2.0,
        adversarial_step: float = 0.1,
        unsupervised_weight: float = 1.0,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        missing = [name for name in ("encode", "decode", "logits", "decoders") if not hasattr(network, name)]
        if missing:
            raise TypeError(
                "network must offer encode(image), decode(encoded, k), logits(features, k) and decoders, got "
                f"{type(network).__name__} without {', '.join(missing)}; wrap your backbone in "
                "monai_ssl.networks.MultiHeadNetwork"
            )
        perturbations = [perturbations] if isinstance(perturbations, str) else list(perturbations)
        unknown = [p for p in perturbations if p not in PERTURBATIONS]
        if unknown or not perturbations:
            raise ValueError(f"perturbations must be some of {PERTURBATIONS}, got {unknown or 'none'}")
        if (decoders := len(network.decoders)) != len(perturbations) + 1:  # type: ignore[arg-type]
            raise ValueError(
                f"network must have {len(perturbations) + 1} decoders, the main one and one per perturbation, got "
                f"{decoders}; set its option decoders, or perturbations"
            )
        options = of_variant(
            variant, COLUMNS, weight=weight, scales=scales, supervise=supervise, supervised_loss=supervised_loss,
            detach_main=detach_main,
        )  # fmt: skip
        for name, known in (("scales", SCALES), ("supervise", SUPERVISED), ("supervised_loss", LOSSES)):
            if options[name] not in known:
                raise ValueError(f"{name} must be one of {known}, got {options[name]!r}")
        for name, share in (("confidence", confidence), ("dropout", dropout)):
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), got {share}")
        check_at_least(0, noise=noise)
        rise = staircase(ramp_up, max_iterations, options["weight"], ramp_levels)
        short = variant == "paper" and ramp_up is None
        self.ramp_up = SigmoidRampUp(max_iterations / 10, options["weight"]) if short else rise
        self.perturbations, self.scales, self.supervise = perturbations, options["scales"], options["supervise"]
        self.detach_main, self.confidence = bool(options["detach_main"]), confidence
        self.noise, self.dropout = float(noise), float(dropout)
        self.adversary = VirtualAdversarialLoss("kl", adversarial_norm, adversarial_step)
        self.supervised: Callable[[Tensor, Tensor], Tensor] = (
            HalfDiceCELoss(include_background=True)
            if options["supervised_loss"] == "dice_ce"
            else supervised_cross_entropy
        )
        self.difference = MaskedMSELoss()

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        first = len(labeled["label"]) if self.supervise == "main" else 0
        return self.terms(self.outputs(joint_images(labeled, unlabeled), first), labeled)

    def outputs(self, image: Tensor, first: int = 0) -> list[Tensor]:
        """Logits of all decoders, the main one first; perturbations act in training mode.

        Args:
            image: ``(B, C_in, *spatial)``.
            first: the auxiliary decoders see the rows from here on; if that is none, they do not run.

        Returns:
            ``(B, n_classes, *spatial)`` of the main decoder, ``(B - first, n_classes, *spatial)`` of the others.
        """
        network: Any = self.network
        encoded = network.encode(image)
        found = [network.logits(network.decode(encoded, 0)[-1], 0)]
        if first:
            encoded = [unlabeled_rows(features, first) for features in encoded]
        main = found[0][first:].detach()
        for k, name in enumerate(self.perturbations if len(main) else (), start=1):
            disturbed = self.disturbed(name, encoded, main, k) if self.training else encoded
            found.append(network.logits(network.decode(disturbed, k)[-1], k))
        return found

    def disturbed(self, name: str, encoded: Sequence[Tensor], main: Tensor, decoder: int) -> list[Tensor]:
        """The encoder's features, fine to coarse, after a perturbation.

        Args:
            name: of the perturbation.
            encoded: one ``(B, C, *spatial)`` per scale.
            main: logits of the main decoder.
            decoder: which one gets the features, for ``"adversarial"``.
        """
        if name == "adversarial":
            return [*encoded[:-1], encoded[-1] + self._adversarial(encoded, decoder)]
        kept, changed = (encoded[:-1], encoded[-1:]) if self.scales == "coarsest" else ([], encoded)
        change: Callable[[Tensor], Tensor] = {
            "noise": lambda x: add_feature_noise(x, self.noise),
            "dropout": lambda x: drop_elements(x, self.dropout),
            "feature_drop": drop_strongest,
            "mask_context": lambda x: x * _resized(main.argmax(1, keepdim=True) > 0, x),
            "mask_object": lambda x: x * _resized(main.argmax(1, keepdim=True) == 0, x),
        }[name]
        return [*kept, *(change(features) for features in changed)]

    def _adversarial(self, encoded: Sequence[Tensor], decoder: int, noise: Tensor | None = None) -> Tensor:
        """Perturbation of the coarsest features, without gradient."""
        rest = _RestOfNetwork(self.network, [features.detach() for features in encoded[:-1]], decoder)
        coarsest = encoded[-1].detach()
        with torch.no_grad(), frozen_statistics(rest):
            reference = rest(coarsest).float().softmax(1)
        return self.adversary.perturbation(rest, coarsest, reference, noise)

    def differences(self, main: Tensor, auxiliary: Sequence[Tensor]) -> list[Tensor]:
        """Mean squared difference of each auxiliary prediction from the main one, from logits of the same rows."""
        target = main.float().softmax(1)
        target = target.detach() if self.detach_main else target
        mask = None if self.confidence is None else target.detach().amax(1, keepdim=True) > self.confidence
        return [self.difference(logits.float().softmax(1), target, mask) for logits in auxiliary]

    def terms(self, outputs: Sequence[Tensor], labeled: Batch) -> dict[str, Tensor]:
        """Loss terms from the logits of all decoders; the labeled rows come first.

        Args:
            outputs: as :meth:`outputs` returns them: with ``supervise="main"`` the auxiliary ones without labeled rows.
            labeled: batch with ``label``.
        """
        label, (main, *auxiliary) = labeled["label"], [logits.float() for logits in outputs]
        rows = len(label)
        supervised = [main, *(auxiliary if self.supervise == "all" else [])]
        terms = {"supervised": torch.stack([self.supervised(logits[:rows], label) for logits in supervised]).mean()}
        if len(main) > rows:
            compared = [logits[len(logits) - (len(main) - rows) :] for logits in auxiliary]
            weight = self.unsupervised_weight * self.ramp_up(self.iteration)
            terms["consistency"] = weight * torch.stack(self.differences(main[rows:], compared)).mean()
        elif self.supervise == "main":  # decoders that did not run need a gradient in distributed training
            network: Any = self.network
            others = [p for part in (network.decoders, network.heads) for m in part[1:] for p in m.parameters()]
            terms["consistency"] = 0.0 * torch.stack([p.float().sum() for p in others]).sum()
        return terms

    def second_opinion(self, image: Tensor) -> Tensor:
        """Mean class probabilities of the auxiliary decoders; in evaluation mode of features that are not disturbed."""
        return torch.stack([logits.float().softmax(1) for logits in self.outputs(image)[1:]]).mean(0)


class _RestOfNetwork(nn.Module):
    """From the coarsest features, those of the other scales given, to the logits of a decoder."""

    def __init__(self, network: nn.Module, finer: Sequence[Tensor], decoder: int) -> None:
        super().__init__()
        self.network, self.finer, self.decoder = network, finer, decoder

    def forward(self, coarsest: Tensor) -> Tensor:
        network: Any = self.network
        return network.logits(network.decode([*self.finer, coarsest], self.decoder)[-1], self.decoder)


def _resized(mask: Tensor, like: Tensor) -> Tensor:
    """A mask ``(B, 1, *spatial)`` on the grid of features, by nearest neighbor."""
    return nn.functional.interpolate(mask.to(like.dtype), like.shape[2:], mode="nearest")

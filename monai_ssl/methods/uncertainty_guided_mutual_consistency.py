"""UG-MCL: two tasks inside a mean teacher, guided by the teacher's uncertainty."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.transforms import Transform
from torch import Tensor, nn

from monai_ssl.losses import (
    DualTaskConsistencyLoss,
    ForegroundDiceLoss,
    MaskedMSELoss,
    SigmoidRampUp,
    SmoothHeaviside,
    UncertaintyThreshold,
    add_noise,
    monte_carlo_probabilities,
    predictive_entropy,
    supervised_cross_entropy,
    supervised_mse,
)
from monai_ssl.methods.base import Batch, SemiSupervisedMethod, check_at_least, checked_ramp_up, joint_images
from monai_ssl.methods.dual_task import check_dual_task, distance_target, distance_transforms
from monai_ssl.methods.variants import Columns, of_variant
from monai_ssl.networks import DualTaskNetwork, EMATeacher
from monai_ssl.transforms import SignedDistanceMap

_PAPER = {
    "shared_logits": False,
    "distance_supervision": "mse",
    "supervised_weight": 1.0,
    "beta": 0.75,
    "intra_weight": 1.0,
    "intra_reduction": "norm",
    "decay_warm_up": False,
}
COLUMNS: Columns = {
    None: {**_PAPER, "intra_reduction": "mean", "decay_warm_up": True},
    "paper": _PAPER,
    "released": {
        "shared_logits": True,
        "distance_supervision": "dice",
        "supervised_weight": 0.5,
        "beta": 1.0,
        "intra_weight": 0.5,
        "intra_reduction": "mean",
        "decay_warm_up": True,
    },
}
SUPERVISION = ("mse", "dice")
REDUCTIONS = ("mean", "norm")


class UncertaintyGuidedMutualConsistency(SemiSupervisedMethod):
    r"""Mutual consistency of two tasks and of student and teacher, where the teacher is certain.

    A student with a segmentation head (logits z) and a signed-distance head (map d) learns from the labels, from an EMA
    teacher that sees the images with noise and dropout (*intra-task* consistency), and from the agreement of its two
    heads (*cross-task* consistency). ``passes`` further stochastic passes of the teacher give the entropy ``u`` of its
    mean prediction; the intra-task term counts only voxels with ``u < H(t)``.

    .. math::
        L = L_{Dice} + L_{CE} + L_{SDF} + w(t) \left[
        \frac{\sum M \left(\beta\,\overline{(p - p')^2} + (1 - \beta)\,\overline{(d - d')^2}\right)}{\sum M}
        + \overline{(p_{fg} - \sigma(-k d))^2}\right]

    Both consistency terms act on labeled and unlabeled images. Only the student's segmentation head is deployed.

    Args:
        network: a :class:`~monai_ssl.networks.DualTaskNetwork`; with ``shared_logits`` any network that maps images to
            logits (of a DualTaskNetwork the distance head is left out and frozen).
        n_classes: number of classes with background. Default: ``network.n_classes``.
        max_iterations: length of the run, for ramp-up and uncertainty threshold.
        variant: ``None`` (default), ``"paper"`` or ``"released"``: a column of the table below, from which every option
            comes that is left at None.
        shared_logits: no distance head: the distance map is tanh of the logits, one channel per class.
        distance_supervision: ``"mse"``: squared error to the distance map of the label. ``"dice"``: Dice of
            :math:`\sigma(-k d)` and the label.
        supervised_weight: factor >= 0 on all three supervised terms.
        beta: :math:`\beta` in [0, 1], share of the segmentation in the intra-task term.
        intra_reduction: over the channels of the intra-task term, ``"mean"``, or ``"norm"``: their sum, the squared
            norm of Eq. 4, by which the segmentation counts as often as there are classes.
        distance_weight: weight >= 0 of the distance supervision (:math:`L_{dis}` of Table I). Default 1.
        intra_weight: weight >= 0 of the intra-task term (:math:`L_{itc}`).
        cross_weight: weight >= 0 of the cross-task term (:math:`L_{ctc}`). Default 1.
        ramp_up: :math:`w(t)` as a function of the iteration. Default: to 0.1 over the whole run, see the table.
        passes: stochastic passes of the teacher for the uncertainty, >= 1.
        passes_per_call: how many of them share a call and its batch statistics; 2 as released. Fewer need less memory,
            and on a CPU are faster for patches of 64 x 64 x 32 voxels and larger.
        decay: final decay of the EMA teacher, in [0, 1).
        decay_warm_up: the decay rises from 0; False: it is constant.
        slope: :math:`k > 0` of the smooth Heaviside function.
        degenerate: distance targets of empty and full patches, see :class:`monai_ssl.transforms.SignedDistanceMap`.
        unsupervised_weight: factor on both consistency terms; 0 is the matched floor.

    The released code (BraTS) is not the method of the paper. The default is the paper, with the constants of the
    sources that it cites and of the code:

    ============================  ===========================  ============================  =======================
    option                        None                         ``"paper"``                   ``"released"``
    ============================  ===========================  ============================  =======================
    ``shared_logits``             False: a head of its own,    False                         True: tanh of the
                                  C - 1 channels                                             logits, C channels,
                                                                                             also in the cross-task
                                                                                             term
    ``distance_supervision``      mse                          mse (Eq. 2)                   dice
    ``supervised_weight``         1                            1                             1/2
    ``beta``                      0.75                         0.75                          1: only segmentation
    ``intra_weight``              1                            1                             1/2
    ``intra_reduction``           mean                         norm (Eq. 4)                  mean
    ``decay_warm_up``             True                         False (Algorithm 1)           True
    ``ramp_up``                   0.1 exp(-5 (1 - t)^2)        0.1 exp(-5 (1 - t)) (Eq. 7)   squared, a staircase of
                                                                                             200 levels
    ============================  ===========================  ============================  =======================

    In all: :math:`T^{-1}` has a minus sign (Eq. 5 prints a plus, which would be the background); Eq. 6 is a mean over
    voxels; the cross-task term is not masked; with C classes the threshold rises to ln C and means run over C channels
    (the code has ln 2 and 2). With ``shared_logits``, cross-entropy
    and :math:`\sigma(-k \tanh z)` want opposite signs of the same logits; it is here to reproduce that code.

    Voxels labeled ``IGNORE_LABEL`` take no part in the three supervised terms, and are neither inside nor outside in
    the distance maps of their neighbors; both consistency terms, which need no label, act on them too.

    Loss terms: ``dice``, ``cross_entropy``, ``signed_distance``, ``intra_task``, ``cross_task``.

    Raises:
        ValueError: for an unknown variant or a number out of its range.
        TypeError: when the network has no ``tasks`` method and the logits are not shared; when ``ramp_up`` is no
            function.

    Source: Zhang, Liao, Jiao, Zhang, "Uncertainty-Guided Mutual Consistency Learning for Semi-Supervised Medical Image
        Segmentation", arXiv 2112.02508; Artificial Intelligence in Medicine 138, 2023; Eq. 1-8.

    Example:
        >>> from monai_ssl.networks import DualTaskVNet
        >>> method = UncertaintyGuidedMutualConsistency(DualTaskVNet(2, base_channels=2, binary="softmax"))
        >>> labeled = {"image": torch.rand(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16, dtype=torch.long)}
        >>> sorted(method(labeled, {"image": torch.rand(2, 1, 16, 16)}))
        ['cross_entropy', 'cross_task', 'dice', 'intra_task', 'signed_distance']
    """

    honors_ignore_label = True
    second_opinion_needs_state = True

    def __init__(
        self,
        network: nn.Module,
        n_classes: int | None = None,
        max_iterations: int = 6000,
        variant: str | None = None,
        shared_logits: bool | None = None,
        distance_supervision: str | None = None,
        supervised_weight: float | None = None,
        beta: float | None = None,
        distance_weight: float = 1.0,
        intra_weight: float | None = None,
        cross_weight: float = 1.0,
        ramp_up: Callable[[int], float] | None = None,
        passes: int = 8,
        passes_per_call: int = 2,
        decay: float = 0.99,
        decay_warm_up: bool | None = None,
        slope: float = 1500.0,
        degenerate: str = "safe",
        unsupervised_weight: float = 1.0,
        intra_reduction: str | None = None,
    ) -> None:
        super().__init__(network, unsupervised_weight)
        options = of_variant(
            variant,
            COLUMNS,
            shared_logits=shared_logits,
            distance_supervision=distance_supervision,
            supervised_weight=supervised_weight,
            beta=beta,
            intra_weight=intra_weight,
            intra_reduction=intra_reduction,
            decay_warm_up=decay_warm_up,
        )
        check_at_least(1, max_iterations=max_iterations, passes=passes, passes_per_call=passes_per_call)
        self.shared_logits = bool(options["shared_logits"])
        self.distance_supervision = options["distance_supervision"]
        if self.distance_supervision not in SUPERVISION:
            raise ValueError(f"distance_supervision must be one of {SUPERVISION}, got {distance_supervision!r}")
        if not self.shared_logits:
            check_dual_task(network, ", or set shared_logits=True")
        self.n_classes = int(_n_classes(network) if n_classes is None else n_classes)
        self.beta = float(options["beta"])
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        if options["intra_reduction"] not in REDUCTIONS:
            raise ValueError(f"intra_reduction must be one of {REDUCTIONS}, got {intra_reduction!r}")
        self.intra_norm = options["intra_reduction"] == "norm"
        self.weights = {
            "distance_weight": distance_weight,
            "intra_weight": options["intra_weight"],
            "cross_weight": cross_weight,
            "supervised_weight": options["supervised_weight"],
        }
        check_at_least(0, **self.weights)
        step = max(round(max_iterations / 200), 1)
        default = {
            None: SigmoidRampUp(max_iterations, 0.1),
            "paper": SigmoidRampUp(max_iterations, 0.1, exponent=1.0),
            "released": SigmoidRampUp(200 * step, 0.1, granularity=step),
        }[variant]
        self.ramp_up = checked_ramp_up(ramp_up) or default
        self.threshold = UncertaintyThreshold(self.n_classes, max_iterations)
        self.passes, self.passes_per_call = passes, passes_per_call
        self.dice = ForegroundDiceLoss()
        self.masked_mse = MaskedMSELoss()
        self.heaviside = SmoothHeaviside(slope)
        self.cross_task = DualTaskConsistencyLoss(slope)
        self.signed_distance_map = SignedDistanceMap(self.n_classes, degenerate)
        if self.shared_logits and isinstance(network, DualTaskNetwork):
            network.distance_head.requires_grad_(False)
        self.teacher = EMATeacher(network, decay, warm_up=bool(options["decay_warm_up"]))

    def loader_transforms(self) -> list[Transform]:
        if self.distance_supervision == "dice":  # of the label itself
            return []
        return distance_transforms(self.signed_distance_map)

    def tasks(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, C, *spatial)`` and signed distance in (-1, 1), both float32."""
        if self.shared_logits:
            logits = network(image).float()
            return logits, torch.tanh(logits)
        logits, raw_distance = network.tasks(image)  # type: ignore[operator]
        return logits.float(), torch.tanh(raw_distance.float())

    def forward(self, labeled: Batch, unlabeled: Batch | None = None) -> dict[str, Tensor]:
        images = joint_images(labeled, unlabeled)
        taught: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
        if self._asks_the_teacher:
            with torch.no_grad():  # the teacher first: the student's graph is not in memory yet
                taught = (
                    *self.tasks(self.teacher.network, add_noise(images)),
                    monte_carlo_probabilities(self.teacher, images, self.passes, self.passes_per_call),
                )
        logits, distance = self.tasks(self.network, images)
        return self.terms(logits, distance, *taught, labeled)

    @property
    def _asks_the_teacher(self) -> bool:
        return self.unsupervised_weight * self.weights["intra_weight"] > 0

    def second_opinion(self, image: Tensor) -> Tensor | None:
        """Class probabilities of the teacher; None where the intra-task term is off and no teacher has been asked."""
        return self.teacher(image).float().softmax(1) if self._asks_the_teacher else None

    def terms(
        self,
        logits: Tensor,
        distance: Tensor,
        teacher_logits: Tensor | None,
        teacher_distance: Tensor | None,
        mean_probabilities: Tensor | None,
        labeled: Batch,
    ) -> dict[str, Tensor]:
        """Loss terms from the outputs of student and teacher; the labeled rows come first.

        Args:
            logits: of the student, ``(B, C, *spatial)`` float32.
            distance: of the student, in [-1, 1], ``(B, C - 1, *spatial)``, or ``(B, C, *spatial)`` with shared logits.
            teacher_logits: as ``logits``, without gradient. None: no intra-task term, it is 0.
            teacher_distance: as ``distance``, without gradient.
            mean_probabilities: of the teacher's stochastic passes, ``(B, C, *spatial)``, without gradient.
            labeled: batch with ``label`` and, optionally, ``signed_distance`` (computed here where missing).
        """
        label = labeled["label"]
        rows = label.shape[0]
        p, supervised = logits.softmax(1), self.weights["supervised_weight"]
        intra = p.new_zeros(())
        if teacher_logits is not None and teacher_distance is not None and mean_probabilities is not None:
            mask = predictive_entropy(mean_probabilities) < self.threshold(self.iteration)
            channels = [z.shape[1] if self.intra_norm else 1 for z in (p, distance)]
            intra = channels[0] * self.beta * self.masked_mse(p, teacher_logits.softmax(1), mask)
            if self.beta < 1:
                apart = self.masked_mse(distance, teacher_distance, mask)
                intra = intra + channels[1] * (1.0 - self.beta) * apart
        cross = self.cross_task(distance, p if self.shared_logits else p[:, 1:])
        weight = self.unsupervised_weight * self.ramp_up(self.iteration)
        return {
            "dice": supervised * self.dice(logits[:rows], label),
            "cross_entropy": supervised * supervised_cross_entropy(logits[:rows], label),
            "signed_distance": supervised * self.weights["distance_weight"] * self._supervise(distance[:rows], labeled),
            "intra_task": weight * self.weights["intra_weight"] * intra,
            "cross_task": weight * self.weights["cross_weight"] * cross,
        }

    def _supervise(self, distance: Tensor, labeled: Batch) -> Tensor:
        if self.shared_logits:
            distance = distance[:, 1:]
        if self.distance_supervision == "dice":
            return self.dice.of_probabilities(self.heaviside(distance), labeled["label"])
        target = distance_target(self.signed_distance_map, labeled)
        return supervised_mse(distance, target.to(distance), labeled["label"])

    def after_step(self) -> None:
        self.teacher.update(self.network, self.iteration)
        super().after_step()


def _n_classes(network: nn.Module) -> int:
    for name in ("n_classes", "out_channels"):
        value = getattr(network, name, None)
        if isinstance(value, int):
            return value
    raise ValueError(f"n_classes must be given: {type(network).__name__} does not tell its number of classes")

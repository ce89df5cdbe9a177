"""The contract of a semi-supervised method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypedDict

import torch
from monai.transforms import Transform
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_ssl.losses import SigmoidRampUp


class Batch(TypedDict, total=False):
    """One stream's half of a training batch, as :class:`monai_ssl.data.TwoStreamLoader` makes it.

    Keys:
        image: ``(B, C_in, *spatial)`` float32, after the preset's random transforms. Of the unlabeled stream this is
            the *weak* view.
        label: ``(B, 1, *spatial)`` int64, a class index, or :data:`monai_ssl.losses.IGNORE_LABEL` (255) where nobody
            knows the class. Of the labeled stream; of the unlabeled one only for methods with ``pseudo_labels``, and
            then from the files that the user gave as pseudo-labels.
        index: ``(B,)`` int64, number of the case in its list: stable over the run.
        name: list of B case names, for messages.
        strong: ``(B, C_in, *spatial)`` float32, unlabeled stream only, where the method asks for it with
            ``strong_view``: the weak view after further intensity transforms, aligned with it voxel by voxel.
            Mixing images (CutMix, mixup) is the business of a method.
        signed_distance: ``(B, n_classes - 1, *spatial)`` float32, labeled stream, from the ``loader_transforms`` of
            methods with a distance task. Other transforms may add further tensors.

    Spatial axes are (x, y) in 2D, where a patch is one slice of a volume, and (x, y, z) in 3D; all tensors of a stream
    have the same ones.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    name: list[str]
    strong: Tensor
    signed_distance: Tensor


class SemiSupervisedMethod(nn.Module, ABC):
    """A method owns its networks and turns two batches into named loss terms.

    A subclass implements :meth:`forward`; the trainer does the rest. Everything a step computes (teacher passes,
    adversarial directions, reads of a memory) happens inside ``forward``, so wrapping a method in
    ``DistributedDataParallel`` just works. Whatever happens after the optimizer's step goes into :meth:`after_step`.
    Keep all mutable state in ``state_dict()``: resuming is then exact by construction.

    An *adversary* (the discriminator of DAN or SASSNet) learns against the method, with a separate optimizer:
    register it with :meth:`add_adversary`, and say in :meth:`adversary_optimizers` and :meth:`adversary_terms` how it
    learns. The trainer makes its step after the method's own and before ``after_step``, under the same precision,
    accumulation, clipping and guard against NaN; a checkpoint holds its optimizer.

    Args:
        network: the module that is deployed: image ``(B, C_in, *spatial)`` -> logits ``(B, n_classes, *spatial)``,
            background included.
        unsupervised_weight: factor on every unsupervised term, >= 0. At 0 the method learns from labels only while all
            else that shapes the network stays, batches and batch statistics: its *matched floor*, the only fair
            reference. Passes that leave no trace in the networks (teachers, attacks, memories) are left out.

    Attributes:
        network: the deployed network.
        iteration: optimizer steps made so far (ramp-ups and warm-ups depend on it).
        adversaries: name -> module, see above; empty for most methods.
        uses_unlabeled: False for a method that learns from labels only: unlabeled images are then neither read nor
            cached, and ``unlabeled`` is always None.
        strong_view: True asks the loader for ``unlabeled["strong"]``, see :class:`Batch`.
        pseudo_labels: True for a method that learns pseudo-labels of the pool from files: ``unlabeled["label"]``.
        honors_ignore_label: True promises that voxels labeled :data:`monai_ssl.losses.IGNORE_LABEL` change no
            supervised term and no gradient, which all losses of :mod:`monai_ssl.losses` keep. Otherwise the trainer
            refuses a batch with such voxels instead of training on a class 255.
        second_opinion_needs_state: whether :meth:`second_opinion` asks more than ``network`` (a teacher, a second
            network), so that it is worth nothing where only the deployed weights are at hand.

    Raises:
        ValueError: when ``unsupervised_weight`` is negative.

    Example:
        >>> class EntropyMinimization(SemiSupervisedMethod):
        ...     def forward(self, labeled, unlabeled):
        ...         supervised = nn.functional.cross_entropy(self.network(labeled["image"]), labeled["label"][:, 0])
        ...         if unlabeled is None:
        ...             return {"supervised": supervised}
        ...         p = self.network(unlabeled["image"]).softmax(1)
        ...         entropy = -(p * (p + 1e-6).log()).sum(1).mean()
        ...         return {"supervised": supervised, "entropy": self.unsupervised_weight * 0.1 * entropy}
    """

    uses_unlabeled: ClassVar[bool] = True
    strong_view: bool = False
    pseudo_labels: ClassVar[bool] = False
    honors_ignore_label: bool = False
    second_opinion_needs_state: ClassVar[bool] = False

    def __init__(self, network: nn.Module, unsupervised_weight: float = 1.0) -> None:
        super().__init__()
        if not unsupervised_weight >= 0:
            raise ValueError(f"unsupervised_weight must be >= 0, got {unsupervised_weight}")
        self.network = network
        self.unsupervised_weight = float(unsupervised_weight)
        self.iteration = 0
        self._pseudo_label_counts: Tensor | None = None
        self.adversaries = nn.ModuleDict()

    @classmethod
    def matched_floor(cls, options: Mapping[str, Any]) -> Any:
        """What is trained at ``unsupervised_weight`` 0, where other methods train the same.

        Methods that agree in it, and in network, batches and recipe, train the same network bit for bit at weight 0,
        and a study trains it once (:func:`joint_pass_floor`).

        Args:
            options: of the method, as its bundle gives them: name -> plain value.

        Returns:
            a plain value, equal for equal trainings; None where nobody else trains this.
        """
        return None

    @abstractmethod
    def forward(self, labeled: Batch, unlabeled: Batch | None) -> dict[str, Tensor]:
        """Named, already weighted loss terms; the trainer sums and logs them.

        Args:
            labeled: see :class:`Batch`.
            unlabeled: see :class:`Batch`; None when there are no unlabeled cases.

        Returns:
            scalar tensors; their sum is minimized. An unsupervised term may be absent when there is nothing unlabeled;
            the log leaves its cell empty. Under ``DistributedDataParallel`` every trainable parameter needs a gradient
            in every step: there, the only term that reaches some parameters stays in place as
            ``0 * parameter.sum()``.
        """

    def loader_transforms(self) -> list[Transform]:
        """Transforms that the loader's workers run on every labeled item after the random ones; by default none.

        For targets that are a function of the label patch, such as distance maps: computed there, they do not block
        the step. What they add to the item, stacked, is in ``labeled``.
        """
        return []

    def after_step(self) -> None:
        """Called once after every optimizer step: EMA and memory updates. Overrides call ``super().after_step()``."""
        self.iteration += 1

    def note_pseudo_labels(self, label: Tensor, n_classes: int) -> None:
        """Count the pseudo-labels that a step teaches, for those who watch the training for classes that vanish.

        The counts are no part of the state: nothing depends on them.

        Args:
            label: class indices of any shape; voxels that teach nothing hold ``IGNORE_LABEL``.
            n_classes: number of classes.
        """
        label = label.detach()
        counts = torch.stack([(label == value).sum() for value in range(n_classes)])
        counts = torch.cat([counts, label.numel() - counts.sum(keepdim=True, dim=0)])
        former = self._pseudo_label_counts
        self._pseudo_label_counts = counts if former is None else former + counts

    def take_pseudo_labels(self) -> list[int] | None:
        """Voxels per class that were noted since the last call, and at the end those that teach nothing; None where
        none were."""
        counts, self._pseudo_label_counts = self._pseudo_label_counts, None
        return None if counts is None else [int(count) for count in counts]

    # ------------------------------------------------------------------------------------------- adversaries

    def add_adversary(self, name: str, module: nn.Module) -> None:
        """Register a module that learns against the method.

        It is frozen whenever the method itself learns: gradients pass through it to what it judges, and none reaches
        its parameters. ``parameters()`` may therefore go to the main optimizer as a whole, which skips frozen ones.

        Args:
            name: key in :attr:`adversaries`, and prefix of its terms in the log.
            module: for example a discriminator.
        """
        self.adversaries[name] = module.requires_grad_(False)

    def adversary_optimizers(self) -> dict[str, Optimizer]:
        """A new optimizer for each of :attr:`adversaries`, by name. Called once, when training is set up.

        Example:
            >>> # return {"critic": torch.optim.Adam(self.adversaries["critic"].parameters(), 1e-4)}
        """
        return {}

    def adversary_schedules(self, optimizers: Mapping[str, Optimizer]) -> dict[str, LRScheduler]:
        """Learning-rate schedules of those optimizers, stepped once per iteration; by default none: constant rates."""
        return {}

    def adversary_terms(self, name: str, labeled: Batch, unlabeled: Batch | None) -> dict[str, Tensor]:
        """Named, weighted loss terms of the adversary ``name``, whose sum ITS optimizer minimizes.

        Called after the method's own step with the same batch, all modules in training mode; run the networks under
        ``torch.no_grad()``. Only the adversary's parameters receive gradients, whatever the graph reaches.

        Returns:
            scalar tensors; an empty dict (nothing to compare with, for example) leaves the step out.
        """
        raise NotImplementedError(f"{type(self).__name__} has the adversary {name!r} and must define adversary_terms")

    # ------------------------------------------------------------------------------------------- deployment

    def second_opinion(self, image: Tensor) -> Tensor | None:
        """What the method knows of an image besides its deployed network: another head, a teacher, a second network.

        Where it contradicts the network, a label would teach most: active learning ranks unlabeled scans by it, see
        :func:`monai_ssl.deploy.disagreement.disagreement`. Called in eval mode, without gradients.

        Args:
            image: ``(B, C_in, *spatial)``.

        Returns:
            class probabilities ``(B, n_classes, *spatial)``; None where the method has none (the default), and the
            network's own uncertainty is taken instead.
        """
        return None

    def get_extra_state(self) -> dict[str, Any]:
        """State besides parameters and buffers: plain containers and tensors only (read with ``weights_only``)."""
        return {"iteration": self.iteration}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.iteration = int(state["iteration"])


def joint_pass_floor(options: Mapping[str, Any]) -> list[Any]:
    """:meth:`SemiSupervisedMethod.matched_floor` of the methods that send both streams through the network in one pass
    and learn the labels by ``HalfDiceCELoss``: of the pool, nothing but its share in the batch statistics is left.

    Example:
        >>> joint_pass_floor({"include_background": True, "decay": 0.99})
        ['joint pass, HalfDiceCELoss', True]
    """
    return ["joint pass, HalfDiceCELoss", options.get("include_background", True)]


def joint_images(labeled: Batch, unlabeled: Batch | None) -> Tensor:
    """Labeled rows first, then unlabeled rows, for methods that need joint batch statistics."""
    if unlabeled is None:
        return labeled["image"]
    return torch.cat([labeled["image"], unlabeled["image"]])


def checked_ramp_up(ramp_up: Any) -> Any:
    """``ramp_up`` itself, a function of the step's number or None; else a TypeError that says how to hand one over."""
    if ramp_up is None or callable(ramp_up):
        return ramp_up
    raise TypeError(
        f"ramp_up must be a function of the step's number, got {ramp_up!r}; on a command line write it in single "
        "quotes, in which the shell leaves the $ alone: '$monai_ssl.losses.SigmoidRampUp(3000, 1.0)'"
    )


def check_at_least(low: float, **options: float) -> None:
    """Refuse numbers below a bound.

    Raises:
        ValueError: names the option, the bound and the number.

    Example:
        >>> check_at_least(0, weight=-1)
        Traceback (most recent call last):
        ValueError: weight must be >= 0, got -1
    """
    for name, value in options.items():
        if not value >= low:
            raise ValueError(f"{name} must be >= {low}, got {value}")


def staircase(
    ramp_up: Callable[[int], float] | None, max_iterations: int, weight: float, ramp_levels: int
) -> Callable[[int], float]:
    """Weight by iteration of the comparison methods: up to ``weight`` in ``ramp_levels`` equal steps over the run.

    The released codes have 40 steps of 150 iterations in 3D and 200 of them in 2D.

    Args:
        ramp_up: replaces all that; or None.
        max_iterations: length of the run, >= 1.
        weight: after the ramp-up, >= 0.
        ramp_levels: number of steps, >= 1.

    Raises:
        ValueError: for a number out of its range.
        TypeError: when ``ramp_up`` is no function.

    Example:
        >>> staircase(None, 6000, 0.1, 40)
        SigmoidRampUp(length=6000, maximum=0.1, granularity=150)
    """
    check_at_least(1, max_iterations=max_iterations, ramp_levels=ramp_levels)
    check_at_least(0, weight=weight)
    step = max(round(max_iterations / ramp_levels), 1)
    return checked_ramp_up(ramp_up) or SigmoidRampUp(ramp_levels * step, weight, granularity=step)

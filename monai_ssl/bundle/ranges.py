"""Which numbers an id of a bundle's config may hold: nonsense is refused before the data are read, as in presets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from monai_ssl.errors import DataError, one_line

MOST_ITERATIONS = 10**9
MOST_ROWS = 2**16


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``.

    Attributes:
        above, below: without ``low``, without ``high`` itself.
        whole: integers only.

    Example:
        >>> Range(0, 1, below=True).problem(1.5)
        'must be a number in [0, 1)'
        >>> Range(1, whole=True).problem(1)
        ''
    """

    low: float = 0
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def problem(self, value: Any) -> str:
        """The rule, where a value breaks it; else nothing."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # an integer of 400 digits is no float
        number = number and (isinstance(value, int) or math.isfinite(value))
        if not number or (self.whole and value != int(value)) or not self._from_below(value):
            return self._words(self.high if self.high <= 1 else math.inf)
        fits = value < self.high if self.below else value <= self.high
        return "" if fits else self._words(self.high)

    def _from_below(self, value: float) -> bool:
        return value > self.low if self.above else value >= self.low

    def _words(self, high: float) -> str:
        if high == math.inf:
            kind = "an integer" if self.whole else "a finite number"
            return f"must be {kind} {'>' if self.above else '>='} {self.low:g}"
        kind = "an integer" if self.whole else "a number"
        left, right = "(" if self.above else "[", ")" if self.below else "]"
        return f"must be {kind} in {left}{self.low:.10g}, {high:.10g}{right}"


ITERATIONS = Range(1, MOST_ITERATIONS, whole=True)
COUNT = Range(1, 2**31 - 1, whole=True)
POSITIVE = Range(above=True)
WEIGHT = Range()
SHARE = Range(0, 1, below=True)

# words that ids at the top of a config may hold; `amp` and `layout` are also given as booleans
CHOICES = {
    "amp": ("auto", "off", "bf16", "fp16"),
    "layout": ("auto", "contiguous", "channels_last"),
}
# ids at the top of a config
ROOTS = {
    "seed": Range(0, 2**32 - 1, whole=True),
    "max_iterations": ITERATIONS,
    "ramp_iterations": ITERATIONS,
    "val_interval": ITERATIONS,
    "epoch_length": ITERATIONS,
    "epochs": ITERATIONS,
    "checkpoint_interval": ITERATIONS,
    "checkpoint_minutes": POSITIVE,
    "labeled_batch_size": Range(1, MOST_ROWS, whole=True),
    "unlabeled_batch_size": Range(0, MOST_ROWS, whole=True),
    "accumulation_steps": Range(1, MOST_ROWS, whole=True),
    "learning_rate": Range(0, 1e6, above=True),
    "num_workers": Range(0, 1024, whole=True),
    "jobs": Range(1, 1024, whole=True),
    "memory_gb": POSITIVE,
}

COUNTS = ("ramp_levels", "ramp_step", "power_iterations", "passes", "passes_per_call", "prototypes", "heads",
          "embedding_channels", "rows_per_class", "prototypes_per_class", "bank_capacity", "sw_batch_size",
          "longest_period", "map_channels", "image_channels", "cells", "pool_window", "divisor")  # fmt: skip
WEIGHTS = ("unsupervised_weight", "supervised_weight", "cross_weight", "correlation_weight", "intra_weight",
           "dice_weight", "smoothness_weight", "separation_weight", "structural_weight", "pseudo_weight",
           "distance_weight")  # fmt: skip
# parameters of this package's classes and of PyTorch's optimizers, wherever they stand in a config
PARAMETERS = {
    "lr": Range(0, 1e6, above=True),
    "momentum": SHARE,
    "weight_decay": WEIGHT,
    "clip_gradient_norm": POSITIVE,
    "warmup": SHARE,
    "dropout": SHARE,
    "decay": SHARE,
    "overlap": SHARE,
    "beta": Range(0, 1),
    **dict.fromkeys(("base_channels", "in_channels", "out_channels"), Range(1, MOST_ROWS, whole=True)),
    "spatial_dims": Range(2, 3, whole=True),
    "temperature": POSITIVE,
    "sharpening_temperature": Range(0.01, 1),
    "slope": POSITIVE,
    "epsilon": POSITIVE,
    "alpha": POSITIVE,
    "xi": POSITIVE,
    "weight": WEIGHT,
    "delay": Range(0, MOST_ITERATIONS, whole=True),
    "strength": WEIGHT,
    "entropy_classes": Range(2, MOST_ROWS, whole=True),
    "discriminator_learning_rate": Range(0, 1e6, above=True),
    "concentration": POSITIVE,
    "box": Range(0, 1, above=True, below=True),
    "connectivity": Range(1, 3, whole=True),
    "pretrain": Range(0, MOST_ITERATIONS),
    "threshold_iterations": ITERATIONS,
    "copy_steps": Range(0, MOST_ITERATIONS, whole=True),
    **dict.fromkeys(WEIGHTS, WEIGHT),
    **dict.fromkeys(("threshold", "cutmix_probability", "burn_in", "ramp"), Range(0, 1)),
    **dict.fromkeys(COUNTS, COUNT),
    **{name: rule for name, rule in ROOTS.items() if name != "seed"},
}
OWN = ("monai_ssl.", "torch.optim.")


def number_problems(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Ids of a config whose numbers break a rule, and the rule with the value. Expressions are left alone.

    Args:
        config: a config, or a part of one under its id: ``{"method": {"_target_": ..., ...}}``.

    Example:
        >>> list(number_problems({"learning_rate": -1, "seed": "$1 + 1"}))
        [('learning_rate', 'must be a finite number > 0, got -1')]
    """
    for name, value in config.items():
        if (rule := ROOTS.get(name)) is not None and (text := _problem(rule, value)):
            yield name, text
        yield from _nested(name, value)


def parameter_problem(block: Any, name: str, value: Any) -> str:
    """What is wrong with a number for one parameter of a block with a ``_target_``; nothing where no rule is known."""
    rule = PARAMETERS.get(name)
    own = isinstance(block, Mapping) and str(block.get("_target_", "")).startswith(OWN)
    if rule is None or not own or isinstance(value, (list, tuple, Mapping)):
        return ""
    return _problem(rule, value)


def _nested(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            if text := parameter_problem(value, str(name), part):
                yield f"{key}#{name}", text
            yield from _nested(f"{key}#{name}", part)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _nested(f"{key}#{index}", part)


def _problem(rule: Range, value: Any) -> str:
    if value is None or (isinstance(value, str) and value.startswith(("$", "@", "%"))):
        return ""  # what null means is the class's matter
    problem = rule.problem(value)
    return f"{problem}, got {one_line(repr(value), 60)}" if problem else ""


def check_numbers(config: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        DataError: for the first number in a config that breaks a rule.
    """
    for key, problem in number_problems(config):
        raise DataError(f"{where}: {key} {problem}")

"""What a study is made of: the lines of its tables, and the trained and scored runs behind each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["RANDOM_SPLIT", "ROLES", "Role", "StudyRow", "StudyRun"]

Role = Literal["floor", "no_pool", "matched_floor", "method", "ensemble", "oracle", "ceiling", "quoted"]
ROLES: tuple[Role, ...] = ("floor", "no_pool", "matched_floor", "method", "ensemble", "oracle", "ceiling", "quoted")
"""Roles of rows, in the order of the tables."""
RANDOM_SPLIT = "split"
"""Names of random splits begin with it, those of folds do not."""


@dataclass(frozen=True)
class StudyRow:
    """One line of a study's tables: a method with so many labels of a data set, or one of its controls.

    Attributes:
        name: what runs call it; unique in the study.
        title: what the reader sees; the same in every data set and for every number of labels.
        role: one of :data:`ROLES`. A ``matched_floor`` is the method with its unsupervised weight at 0, ``no_pool`` the
            method without unlabeled images, ``floor`` the supervised network on the labeled cases, ``ceiling`` that on
            all labels, ``oracle`` the method with true labels where it would use its own, ``ensemble`` the mean of the
            method's networks, ``quoted`` a line that others have published.
        of: name of the method row whose control or ensemble this is; "" for floors and ceilings that serve all rows of
            their data set (floors: with as many labels).
        dataset: name of the preset.
        flavor: of the preset.
        n_labeled: labeled training cases.
        n_unlabeled: further training cases whose labels are hidden.
        section: list of the datalist that is scored.
        settings: what must not differ between rows unnoticed: preset digest, iterations, precision, network, batch.

    Raises:
        ValueError: if ``role`` is unknown, or a count is negative.

    Example:
        >>> row = StudyRow("dtc-8", "DTC", "method", "", "left_atrium", "default", 8, 72, "testing")
        >>> row.group
        ('left_atrium', 'default', 'testing')
    """

    name: str
    title: str
    role: Role
    of: str
    dataset: str
    flavor: str
    n_labeled: int
    n_unlabeled: int
    section: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}, got {self.role!r} for row {self.name!r}")
        for key in ("n_labeled", "n_unlabeled"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)} for row {self.name!r}")

    @property
    def group(self) -> tuple[str, str, str]:
        """What rows must share to be compared: data set, flavor and scored section."""
        return self.dataset, self.flavor, self.section


@dataclass(frozen=True)
class StudyRun:
    """One training of a row, and its scores.

    Attributes:
        row: name of the row.
        seed: of the training.
        split: fold or random split (:data:`RANDOM_SPLIT`); "" for none. Runs of two rows are compared where seed and
            split are the same.
        run: folder of the run (``run.json``, ``training.csv``, ``costs.json``).
        evaluation: folder with ``per_case.csv`` and ``summary.json``. Where it is missing, the page says so.
        chain: of a self-training, whose last training ``run`` is: its folder. What the others cost, counts too.

    Example:
        >>> StudyRun("dtc-8", 0, "", Path("runs/dtc-8-0"), Path("runs/dtc-8-0/evaluation-testing")).seed
        0
    """

    row: str
    seed: int
    split: str
    run: Path
    evaluation: Path
    chain: Path | None = None

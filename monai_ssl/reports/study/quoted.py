"""Figures that papers print, beside those that were measured: marked as quoted, checked as far as arithmetic goes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monai_ssl.data.yaml_mapping import read_mapping
from monai_ssl.errors import DataError

__all__ = ["QuotedFigure", "jaccard_bounds", "jaccard_check", "read_quoted"]

# what rounding to one decimal hides, in points
ROUNDING = 0.1
# a standard deviation of Dice over cases that no table of working networks has, in points
LARGEST_SD = 30.0


class QuotedFigure(BaseModel):
    """One line of a published table.

    Attributes:
        title: name of the method; equal to the title of a row that it is put beside.
        dataset: name of the preset of such rows.
        n_labeled: labeled cases.
        n_unlabeled: unlabeled cases.
        dice: mean, in percent; with ``dice_sd`` over the cases, where the paper says it.
        jaccard: mean, in percent.
        hd95: 95th percentile of the surface distance, in ``distance_unit``.
        asd: average surface distance, in ``distance_unit``.
        distance_unit: ``voxel`` or ``mm``.
        role: what the line is: a method, its floor, the ceiling.
        source: paper and table.
        protocol: what was trained and scored, as far as it differs.
        selection: which weights were scored: the last, the best on a validation set, the best on the test set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    dataset: str
    n_labeled: int = Field(ge=0)
    n_unlabeled: int = Field(default=0, ge=0)
    dice: float = Field(ge=0, le=100)
    dice_sd: float | None = Field(default=None, ge=0, le=100)
    jaccard: float | None = Field(default=None, ge=0, le=100)
    hd95: float | None = Field(default=None, ge=0)
    asd: float | None = Field(default=None, ge=0)
    distance_unit: Literal["voxel", "mm"] = "voxel"
    role: Literal["method", "floor", "matched_floor", "ceiling"] = "method"
    source: str
    protocol: str = ""
    selection: str = "not stated"


def read_quoted(path: Path) -> list[QuotedFigure]:
    """The figures in a YAML file, a list under ``figures``.

    Args:
        path: the file.

    Returns:
        One per published line, in the order of the file.

    Raises:
        DataError: when it cannot be read, or a line lacks a key, has an unknown one or an impossible value.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "quoted.yaml"
        >>> _ = path.write_text('''figures:
        ... - {title: A, dataset: left_atrium, n_labeled: 8, dice: 80.1, jaccard: 67.3, source: "A et al., Table 1"}
        ... ''')
        >>> read_quoted(path)[0].selection
        'not stated'
    """
    content = read_mapping(path, "a file of quoted figures")
    lines = content.get("figures")
    if set(content) != {"figures"} or not isinstance(lines, list):
        raise DataError(f"{path}: must hold a list under 'figures' and nothing else, got the keys {sorted(content)}")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(QuotedFigure.model_validate(line))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path}: figure {number}: {key or 'line'}: {first['msg']}") from None
    return found


def jaccard_bounds(dice: float, variance: float) -> tuple[float, float]:
    """Least and largest mean Jaccard that go with a mean Dice.

    For one mask J = D / (2 - D), which is convex. So the mean of J is at least that of the mean Dice (Jensen), and
    above it by at most half the largest second derivative, 4, times the variance of Dice; and no more than the mean
    Dice.

    Args:
        dice: mean, in [0, 1].
        variance: of Dice over the same masks (with n in the denominator).

    Returns:
        The bounds.

    Example:
        >>> low, high = jaccard_bounds(0.9, 0.0025)
        >>> round(low, 4), round(high, 4)
        (0.8182, 0.8232)
    """
    low = dice / (2 - dice)
    return low, max(low, min(dice, low + 2 * variance))


def jaccard_check(figure: QuotedFigure) -> str:
    """Whether the printed Dice and Jaccard can belong together.

    Returns:
        A few words; "" where one of them is not printed.

    Example:
        >>> line = {"title": "A", "dataset": "x", "n_labeled": 8, "dice": 90.0, "source": "s"}
        >>> jaccard_check(QuotedFigure(**line, jaccard=82.3)), jaccard_check(QuotedFigure(**line, jaccard=80.0))
        ('consistent', 'impossible: this Dice needs a Jaccard of at least 81.8')
    """
    if figure.jaccard is None:
        return ""
    low, _ = jaccard_bounds(figure.dice / 100, 0.0)
    if figure.jaccard < 100 * low - ROUNDING:
        return f"impossible: this Dice needs a Jaccard of at least {100 * low:.1f}"
    if figure.jaccard > figure.dice + ROUNDING:
        return "impossible: Jaccard is above Dice"
    # from mean J - D / (2 - D) <= 2 Var(D)
    needed = 100 * math.sqrt(max(0.0, (figure.jaccard - ROUNDING) / 100 - low) / 2)
    most = LARGEST_SD if figure.dice_sd is None else figure.dice_sd + ROUNDING
    if needed > most:
        return f"odd: this Jaccard needs Dice to spread by at least {needed:.1f} points over the masks"
    return "consistent"


def quoted_cells(figure: QuotedFigure) -> dict[str, Any]:
    """The figure as a line of ``quoted.csv``."""
    return {**figure.model_dump(), "check": jaccard_check(figure)}

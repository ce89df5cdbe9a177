"""Numbers as text."""

from __future__ import annotations

import math

from monai_ssl.metrics.cases import OVERLAP_METRICS

__all__ = ["DASH", "MINUS", "interval_text", "metric_unit", "number_text", "p_value_text", "plural", "scans_text"]

MINUS, DASH = "\u2212", "–"


def number_text(value: float | None, digits: int = 1, scale: float = 1.0, sign: bool = False) -> str:
    """A number with a true minus sign; a dash where there is none.

    Example:
        >>> number_text(0.0312, 1, 100, sign=True), number_text(None)
        ('+3.1', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{round(value * scale, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: no "-0.0"
    return text.replace("-", MINUS)


def interval_text(low: float | None, high: float | None, digits: int = 1, scale: float = 1.0) -> str:
    """Both bounds in brackets, or a dash.

    Example:
        >>> interval_text(0.7, 0.81, scale=100)
        '[70.0, 81.0]'
    """
    if low is None or high is None:
        return DASH
    return f"[{number_text(low, digits, scale)}, {number_text(high, digits, scale)}]"


def p_value_text(value: float) -> str:
    """A p-value, more exactly where it decides.

    Example:
        >>> p_value_text(0.0002), p_value_text(0.0316)
        ('p < 0.001', 'p = 0.032')
    """
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def metric_unit(metric: str) -> tuple[float, int, str]:
    """Factor, digits and unit in which a difference of ``metric`` is written.

    Example:
        >>> metric_unit("dice"), metric_unit("hd95_mm")
        ((100.0, 1, 'points'), (1.0, 2, 'mm'))
    """
    if metric in OVERLAP_METRICS:
        return 100.0, 1, "points"
    return 1.0, 2, "mm" if metric.endswith("_mm") else "voxels"


def plural(n: int, word: str) -> str:
    """A number and what it counts.

    Example:
        >>> plural(1, "case"), plural(2, "case")
        ('1 case', '2 cases')
    """
    return f"{n} {word}{'' if n == 1 else 's'}"


def scans_text(n_cases: int, n_patients: int | None, noun: str = "case") -> str:
    """How many scans of how many patients, where that is not the same number.

    Example:
        >>> scans_text(12, 12), scans_text(24, 12)
        ('12 cases', '24 cases of 12 patients')
    """
    counted = plural(n_cases, noun)
    return counted if n_patients in (None, n_cases) else f"{counted} of {plural(n_patients, 'patient')}"


PATIENT_NOTE = (
    "Scans of one patient count as one observation: intervals draw patients with all their scans, tests compare "
    "patients' means. Who is whose patient, the datalist says (key 'patient'), or names like p1_frame01 do."
)
"""Where a table counts fewer patients than scans."""

"""Numbers: the scores of one case, statistics over cases, results on disk. Pages are made in ``monai_ssl.reports``."""

from .cases import DISTANCE_METRICS, METRICS, OVERLAP_METRICS, STATUSES, Row, case_metrics, known_voxels
from .gap import GapClosed, gap_closed
from .overlap import dice_score, jaccard_score
from .results import PER_CASE_NAME, SUMMARY_NAME, Results, add_meta, environment, read_results, write_results
from .statistics import (
    FAILURE_DICE,
    Comparison,
    Spread,
    bootstrap_interval,
    case_patients,
    case_values,
    check_same_cases,
    compare,
    holm,
    is_failed,
    summarize,
    with_patients,
)
from .surface import SurfaceDistances, image_diagonal, surface_points

__all__ = [
    "DISTANCE_METRICS",
    "FAILURE_DICE",
    "METRICS",
    "OVERLAP_METRICS",
    "PER_CASE_NAME",
    "STATUSES",
    "SUMMARY_NAME",
    "Comparison",
    "GapClosed",
    "Results",
    "Row",
    "Spread",
    "SurfaceDistances",
    "add_meta",
    "bootstrap_interval",
    "case_metrics",
    "case_patients",
    "case_values",
    "check_same_cases",
    "compare",
    "dice_score",
    "environment",
    "gap_closed",
    "holm",
    "image_diagonal",
    "is_failed",
    "jaccard_score",
    "known_voxels",
    "read_results",
    "summarize",
    "surface_points",
    "with_patients",
    "write_results",
]

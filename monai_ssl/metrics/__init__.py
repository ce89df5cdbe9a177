"""Literature-compatible metrics, statistics over cases, results on disk."""

from .cases import DISTANCE_METRICS, METRICS, OVERLAP_METRICS, STATUSES, Row, case_metrics
from .overlap import dice_score, jaccard_score, largest_component
from .results import PER_CASE_NAME, SUMMARY_NAME, Results, environment, read_results, write_results
from .statistics import FAILURE_DICE, bootstrap_interval, case_values, compare, is_failed, summarize
from .surface import SurfaceDistances, image_diagonal, surface_points

__all__ = [
    "DISTANCE_METRICS",
    "FAILURE_DICE",
    "METRICS",
    "OVERLAP_METRICS",
    "PER_CASE_NAME",
    "STATUSES",
    "SUMMARY_NAME",
    "Results",
    "Row",
    "SurfaceDistances",
    "bootstrap_interval",
    "case_metrics",
    "case_values",
    "compare",
    "dice_score",
    "environment",
    "image_diagonal",
    "is_failed",
    "jaccard_score",
    "largest_component",
    "read_results",
    "summarize",
    "surface_points",
    "write_results",
]

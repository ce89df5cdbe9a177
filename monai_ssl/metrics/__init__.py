"""Literature-compatible metrics, statistics over cases, results on disk and reports."""

from .cases import DISTANCE_METRICS, METRICS, OVERLAP_METRICS, STATUSES, Row, case_metrics
from .figures import comparison_figure, figure_png, overlay_figure
from .overlap import dice_score, jaccard_score, largest_component
from .report import ROLES, Overlay, ReportRun, comparison_sentence, write_report
from .results import PER_CASE_NAME, SUMMARY_NAME, Results, environment, read_results, write_results
from .statistics import FAILURE_DICE, bootstrap_interval, case_values, compare, is_failed, summarize
from .surface import SurfaceDistances, image_diagonal, surface_points

__all__ = [
    "DISTANCE_METRICS",
    "FAILURE_DICE",
    "METRICS",
    "OVERLAP_METRICS",
    "PER_CASE_NAME",
    "ROLES",
    "STATUSES",
    "SUMMARY_NAME",
    "Overlay",
    "ReportRun",
    "Results",
    "Row",
    "SurfaceDistances",
    "bootstrap_interval",
    "case_metrics",
    "case_values",
    "compare",
    "comparison_figure",
    "comparison_sentence",
    "dice_score",
    "environment",
    "figure_png",
    "image_diagonal",
    "is_failed",
    "jaccard_score",
    "largest_component",
    "overlay_figure",
    "read_results",
    "summarize",
    "surface_points",
    "write_report",
    "write_results",
]

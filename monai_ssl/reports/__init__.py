"""Pages and figures that people look at."""

from .comparison import comparison_sentence, write_report
from .dataset import describe
from .figures import comparison_figure, figure_png, overlay_figure
from .page import ROLES, Overlay, ReportRun

__all__ = [
    "ROLES",
    "Overlay",
    "ReportRun",
    "comparison_figure",
    "comparison_sentence",
    "describe",
    "figure_png",
    "overlay_figure",
    "write_report",
]

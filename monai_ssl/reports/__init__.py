"""Pages and figures that people look at. Numbers come from :mod:`monai_ssl.metrics`, workflows from ``monai_ssl.runs``.

==================  ================================================================================================
module              what it holds
==================  ================================================================================================
``run``             what a page must know of one run: scores, role (floor, method, ...), training, pictures
``findings``        the sentences of a comparison, on the page and on the terminal
``comparison``      the page about one or several runs
``study``           the page about a study: methods, numbers of labels, seeds, data sets (a package of its own)
``dataset``         the page about a data set
``model_card``      the page in a packaged bundle
``charts``          figures of a comparison
``figures``         what figures are made of: slices, outlines, axes
``page``            templates (``templates/*.j2``), tables and pictures on pages, escaping
``numbers``         numbers as text
==================  ================================================================================================
"""

from .comparison import comparison_report, report_evaluation, write_report
from .dataset import describe
from .figures import comparison_figure, figure_png, overlay_figure
from .findings import comparison_sentence, summary_lines
from .run import ROLES, Overlay, ReportRun, Training, report_run

__all__ = [
    "ROLES",
    "Overlay",
    "ReportRun",
    "Training",
    "comparison_figure",
    "comparison_report",
    "comparison_sentence",
    "describe",
    "figure_png",
    "overlay_figure",
    "report_evaluation",
    "report_run",
    "summary_lines",
    "write_report",
]

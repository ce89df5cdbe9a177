"""The report of a study: the one function that writes all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_ssl.reports.study.page import write_page
from monai_ssl.reports.study.rows import ROLES, Role, StudyRow, StudyRun

__all__ = ["ROLES", "Role", "StudyRow", "StudyRun", "write_study_report"]


def write_study_report(
    folder: Path,
    title: str,
    description: str,
    rows: Sequence[StudyRow],
    runs: Sequence[StudyRun],
    command: str,
    quoted: Path | None = None,
) -> Path:
    """Write the report of a study: ``index.html``, ``report.md``, ``tables.tex``, ``figures/*.png``, ``results/*.csv``.

    Args:
        folder: where the report is written; created if needed.
        title: heading.
        description: one paragraph under it: the question, the data.
        rows: lines of the tables.
        runs: what was trained and scored for them.
        command: what to type to make the study again.
        quoted: YAML file with figures of papers, see :func:`~monai_ssl.reports.study.quoted.read_quoted`.

    Returns:
        Path of ``index.html``.

    Raises:
        ValueError: if there is no row, names repeat, a run or control names no row, two runs of a row have the same
            seed and split, or rows of one data set were scored on other classes.
        DataError: if the file of quoted figures cannot be read.

    Example:
        >>> write_study_report(Path("study"), "Eight labels", "", rows, runs, "monai-ssl compare s.yaml"
        ...     )  # doctest: +SKIP
        PosixPath('study/index.html')
    """
    return write_page(folder, title, description, rows, runs, command, quoted)

"""The report of a study: methods, numbers of labels, seeds and data sets side by side."""

from .results import ROLES, Role, StudyRow, StudyRun, write_study_report

__all__ = ["ROLES", "Role", "StudyRow", "StudyRun", "write_study_report"]

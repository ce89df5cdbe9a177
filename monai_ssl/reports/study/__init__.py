"""The report of a study: methods, numbers of labels, seeds and data sets side by side.

==================  ================================================================================================
module              what it holds
==================  ================================================================================================
``rows``            what a study is made of: lines of tables, and runs
``results``         the function that writes the report
``load``            rows with the scores of their trainings, and what is missing
``analysis``        numbers: levels, paired gains, ranks, pairs, checks, costs
``findings``        sentences
``tables``          tables as text and as CSV
``latex``           tables as LaTeX
``charts``          figures
``quoted``          figures of papers
``page``            all of it put together (``templates/study.*.j2``)
==================  ================================================================================================
"""

from .results import ROLES, Role, StudyRow, StudyRun, write_study_report

__all__ = ["ROLES", "Role", "StudyRow", "StudyRun", "write_study_report"]

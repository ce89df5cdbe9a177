"""Reading DICOM series: one reader for prediction and for the preparation of data sets.

Nothing that identifies a patient reaches a message: attributes are named, their values are not, and files are counted.
"""

from monai_ssl.dicom.series import Series, completed, read_series
from monai_ssl.dicom.values import require_packages, silent

__all__ = ["Series", "completed", "read_series", "require_packages", "silent"]

"""A DICOM series in; DICOM SEG, NIfTI and a measurement report out.

Nothing that identifies a patient reaches a message or a file name: attributes are named, their values are not, and
files are counted. The DICOM objects themselves carry patient and study of the series, as they must.
"""

from monai_ssl.dicom import Series, completed, read_series

from .report import volumes_ml, write_measurements
from .segmentation import SEG_TYPES, read_segmentation, to_frames, write_probabilities, write_segmentation
from .segments import ANATOMY, segment_category, segment_code, segment_color, segment_modifiers
from .workflow import NIFTI, PROBABILITIES, REPORT, SEG, UNCERTAINTY, VOLUMES, predict_series

__all__ = [
    "ANATOMY",
    "NIFTI",
    "PROBABILITIES",
    "REPORT",
    "SEG",
    "SEG_TYPES",
    "UNCERTAINTY",
    "VOLUMES",
    "Series",
    "completed",
    "predict_series",
    "read_segmentation",
    "read_series",
    "segment_category",
    "segment_code",
    "segment_color",
    "segment_modifiers",
    "to_frames",
    "volumes_ml",
    "write_measurements",
    "write_probabilities",
    "write_segmentation",
]

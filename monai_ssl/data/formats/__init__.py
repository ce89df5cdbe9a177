"""File formats of images, a module each: ``read(file, label)`` gives a scan, ``shape_of(file)`` reads the header only.

What a header promises is checked before memory is taken for it; whatever else their libraries raise becomes a
``DataError`` in :mod:`monai_ssl.data.reading`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from monai_ssl.data.cases import PICTURES, split_suffix


def suffix_of(name: str) -> str:
    """The image suffix of a file's name in lower case.

    Example:
        >>> suffix_of("Scan 1.b.NII.GZ"), suffix_of("a.vtk"), suffix_of(".nii.gz")
        ('.nii.gz', '.vtk', '.nii.gz')
    """
    if name.lower() in (".nii.gz", ".nii"):  # nothing before it
        return name.lower()
    return (split_suffix(name)[1] or Path(name).suffix).lower()


def format_of(file: Path) -> ModuleType:
    """The module that reads a file, by its name."""
    from monai_ssl.data.formats import arrays, itk, nifti, pictures, series

    if file.is_dir():
        return series
    suffix = suffix_of(file.name)
    if suffix in (".nii", ".nii.gz", ".hdr", ".img"):
        return nifti
    if suffix in PICTURES:
        return pictures
    if suffix in (".npy", ".npz"):
        return arrays
    return itk

"""How much memory prepared cases take, from the headers of their files alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.cases import image_files
from monai_ssl.data.placement import placement
from monai_ssl.data.preset import Preset
from monai_ssl.data.scan import LPS_TO_RAS

GB = 10**9
IMAGE_BYTES, LABEL_BYTES = 4, 1  # float32, uint8


@dataclass(frozen=True)
class Footprint:
    """What a list of cases takes after preparation.

    Attributes:
        cases: how many.
        bytes: of all whose headers could be read.
        unknown: how many could not; reading them says what is wrong.
    """

    cases: int = 0
    bytes: int = 0
    unknown: int = 0

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.cases + other.cases, self.bytes + other.bytes, self.unknown + other.unknown)

    def __str__(self) -> str:
        if self.unknown and not self.bytes:
            return "of a size that is not known yet"
        return f"{'at least ' if self.unknown else ''}{gigabytes(self.bytes)}"


def gigabytes(size: float) -> str:
    """
    Example:
        >>> gigabytes(2_940_000_000), gigabytes(157.3e9), gigabytes(1.2e6), gigabytes(0)
        ('2.9 GB', '157 GB', '1.2 MB', '0 GB')
    """
    value, unit = (size / GB, "GB") if size >= GB / 10 or size == 0 else (1000 * size / GB, "MB")
    return f"{value:.0f} {unit}" if value >= 99.5 or value == 0 else f"{value:.2g} {unit}"


def footprint(cases: Iterable[Mapping[str, Any]], preset: Preset, padded: bool = True) -> Footprint:
    """Estimate what cases take in memory after preparation; no voxel is read.

    Args:
        cases: entries ``{"image": ...[, "label": ...]}``.
        preset: how they are prepared.
        padded: for training: to the patch, with the label on the image's grid. False: for validation, where the label
            stays as it is stored.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> str(footprint([], load_preset("phantom")))
        '0 GB'
    """
    entries = list(cases)
    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(lambda entry: case_bytes(entry, preset, padded), entries))
    known = [size for size in sizes if size is not None]
    return Footprint(len(sizes), sum(known), len(sizes) - len(known))


def case_bytes(entry: Mapping[str, Any], preset: Preset, padded: bool = True) -> int | None:
    """:func:`footprint` of one case; None where a header cannot be read."""
    try:
        spatial, affine = read_grid(image_files(entry)[0])
        prepared = prepared_shape(spatial, affine, preset, padded)
        size = IMAGE_BYTES * preset.in_channels * int(np.prod(prepared, dtype=float))
        if entry.get("label") is not None:
            size += LABEL_BYTES * int(np.prod(prepared if padded else spatial, dtype=float))
        return size
    except Exception:  # missing, broken or of another shape: what reads the voxels says so
        return None


def read_grid(file: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Spatial shape and affine of an image file, from its header.

    Raises:
        Exception: whatever a library raises on a file that it cannot read.
    """
    from monai_ssl.data.formats import format_of, itk, nifti

    path = Path(file)
    kind = format_of(path)
    spatial = tuple(int(side) for side in kind.shape_of(path)[:3])
    affine = np.eye(4)
    if kind is nifti:
        import nibabel as nib

        image: Any = nib.load(path)
        affine = np.asarray(image.affine, dtype=float)
    elif kind is itk:
        import SimpleITK as sitk  # noqa: N813

        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        dims = reader.GetDimension()
        space = min(dims, 3)
        direction = np.array(reader.GetDirection()).reshape(dims, dims)[:space, :space]
        affine[:space, :space] = LPS_TO_RAS[:space, :space] @ direction * np.array(reader.GetSpacing()[:space])
    return spatial, affine


def prepared_shape(
    spatial: tuple[int, ...], affine: np.ndarray, preset: Preset, padded: bool = True
) -> tuple[int, ...]:
    """Shape of a case after orientation, resampling, crop, resize and, with ``padded``, padding to the patch.

    Raises:
        ValueError: when its axes do not fit the preset.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> preset = load_preset("pancreas_ct", patch_size=(32, 32, 32), center_crop=None)
        >>> prepared_shape((512, 512, 60), np.diag([0.7, 0.7, 2.5, 1.0]), preset)
        (358, 358, 150)
    """
    seen = placement(affine, spatial, preset)
    if seen is None:
        raise ValueError(f"{len(spatial)} axes do not fit a preset of {preset.spatial_dims}")
    shape = np.maximum(np.round((*seen.shape, *seen.resampled[preset.spatial_dims :])), 1)
    if padded and preset.spatial_dims == 3:
        patch = np.asarray(preset.patch_size)
        if preset.augmentation.policy != "literature":
            shape = np.maximum(shape, patch)
        elif (shape <= patch).any():
            shape = shape + 2 * np.maximum((patch - shape) // 2 + 3, 0)
    return tuple(int(side) for side in shape)

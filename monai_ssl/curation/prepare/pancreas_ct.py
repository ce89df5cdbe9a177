"""Pancreas-CT of the National Institutes of Health (The Cancer Imaging Archive): DICOM images, NIfTI labels."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_ssl.curation.prepare.engine import DatasetRecipe, RawCase, Volume, choice
from monai_ssl.curation.prepare.files import as_label, cropped, read_dicom, read_image, resampled
from monai_ssl.errors import DataError
from monai_ssl.files import files_below

# soft tissue with contrast medium; fat, air and bone lie outside
SOFT_TISSUE = (-30.0, 250.0)
PLAUSIBLE = 0.75
MARGIN = 25


@dataclass(frozen=True)
class PancreasCT(DatasetRecipe):
    """A DICOM series below ``PANCREAS_NNNN``, and ``labelNNNN.nii.gz`` next to it.

    Image (linear) and label (nearest) are resampled to ``spacing``; values stay Hounsfield units, the preset clips them
    to -125 to 275. The labels' headers are not those of the images. Voxel order is trusted, as the released
    preparations do, and verified: under the label there must be soft tissue. Where there is not and a flip of the label
    makes it fit, the flip is taken and named; else the case is skipped.

    Attributes:
        crop: ``literature``: the box of the LABEL with 25 voxels around it. **This tells every network where the
            pancreas is**, test cases included; the published numbers come from it. ``none``: the whole scan.
        spacing: millimeters, isotropic; the papers take 1.
    """

    crop: str = "literature"
    spacing: float = 1.0
    name: ClassVar[str] = "pancreas_ct"
    layout: ClassVar[str] = "DICOM files below folders PANCREAS_NNNN, and labelNNNN.nii.gz"
    where: ClassVar[str] = "https://www.cancerimagingarchive.net/collection/pancreas-ct"

    def __post_init__(self) -> None:
        choice("crop", self.crop, ("literature", "none"))
        if not isinstance(self.spacing, (int, float)) or not 0.2 <= self.spacing <= 10:
            raise DataError(f"--spacing: must be millimeters from 0.2 to 10, got {self.spacing!r}")

    @property
    def labels(self) -> dict[int, str]:
        return {0: "background", 1: "pancreas"}

    @property
    def preset(self) -> tuple[str, str | None]:
        return "pancreas_ct", "literature" if self.crop == "literature" else "practical"

    def discover(self, source: Path) -> tuple[list[RawCase], list[str]]:
        folders: dict[str, dict[Path, int]] = {}
        labels: dict[str, Path] = {}
        remarks = []
        for path in files_below(source):
            if match := re.fullmatch(r"label(\d{4})\.nii(\.gz)?", path.name, re.IGNORECASE):
                if labels.setdefault(match[1], path) != path:
                    remarks.append(f"{path.name}: is in two places, {labels[match[1]]} is used")
            elif path.suffix.lower() in (".dcm", ".ima"):
                # of the folders above: a study's name may hold digits as well
                numbers = [m[1] for part in path.relative_to(source).parts[:-1]
                           if (m := re.fullmatch(r"PANCREAS_(\d{4})", part, re.IGNORECASE))]  # fmt: skip
                if numbers:
                    places = folders.setdefault(numbers[-1], {})
                    places[path.parent] = places.get(path.parent, 0) + 1
        cases = []
        for number, places in sorted(folders.items()):
            name = f"PANCREAS_{number}"
            folder = max(places, key=lambda place: places[place])
            if len(places) > 1:
                sizes = ", ".join(map(str, places.values()))
                remarks.append(f"{name}: {len(places)} folders with DICOM files ({sizes}), {folder.name} is used")
            label = labels.pop(number, None)
            if label is None:
                remarks.append(f"{name}: no label{number}.nii.gz; can only serve as unlabeled")
            cases.append(RawCase(name, name, (str(folder),), None if label is None else str(label)))
        remarks += [f"{path.name}: label without DICOM series, ignored" for path in labels.values()]
        return cases, remarks

    def convert(self, case: RawCase) -> Volume:
        image, affine, remarks = read_dicom(case.images[0])
        label = None
        if case.label is not None:
            stored, _ = read_image(case.label)
            if stored.shape != image.shape:
                raise DataError(f"label must have the shape of its series, {image.shape}, got {stored.shape}")
            label, flipped = aligned(image, as_label(stored, {0: 0, 1: 1}))
            remarks += flipped
        spacing = (float(self.spacing),) * 3
        values, grid = resampled(image.astype(np.float32), affine, spacing)
        if label is not None:
            label, _ = resampled(label, affine, spacing, label=True)
        if self.crop == "literature":
            if label is None or not label.any():
                raise DataError("--crop literature goes around the label, and there is none; --crop none needs none")
            window = []
            for axis in range(3):
                where = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
                window.append(
                    slice(max(int(where[0]) - MARGIN, 0), min(int(where[-1]) + MARGIN + 1, label.shape[axis]))
                )
            label, _ = cropped(label, grid, window)
            values, grid = cropped(values, grid, window)
        return Volume({"": np.round(values).astype(np.int16)}, grid, label, remarks)


def aligned(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The label as stored where soft tissue lies under it, else the flip that fits.

    Args:
        image: ``(X, Y, Z)`` in Hounsfield units.
        label: ``(X, Y, Z)``, 0 and 1.

    Returns:
        the label, and a remark when it was flipped.

    Raises:
        DataError: when no flip puts soft tissue under the label.
    """
    if not label.any():
        return label, []
    soft = (image >= SOFT_TISSUE[0]) & (image <= SOFT_TISSUE[1])
    shares: dict[tuple[int, ...], float] = {}
    for axes in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
        shares[axes] = float(soft[np.flip(label, axes).astype(bool)].mean())
        if not axes and shares[axes] >= PLAUSIBLE:
            return label, []
    best = max(shares, key=lambda axes: shares[axes])
    if shares[best] < PLAUSIBLE or shares[best] < shares[()] + 0.1:
        raise DataError(
            f"only {100 * shares[()]:.0f} % of the labeled voxels are soft tissue ({100 * shares[best]:.0f} % after "
            "the best flip): image and label do not belong together"
        )
    names = ", ".join("xyz"[axis] for axis in best)
    return np.flip(label, best), [
        f"label flipped along {names}: {100 * shares[best]:.0f} % of it is soft tissue then, "
        f"{100 * shares[()]:.0f} % as stored"
    ]

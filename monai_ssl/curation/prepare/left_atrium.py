"""Left atrium: 2018 Atrial Segmentation Challenge, official NRRD folders or the processed h5 files."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_ssl.curation.prepare.engine import DatasetRecipe, RawCase, Volume, choice
from monai_ssl.curation.prepare.files import as_label, cropped, onto_grid, read_h5, read_image
from monai_ssl.errors import DataError
from monai_ssl.files import files_below
from monai_ssl.transforms.center_crop import center_window

# the central field of view of --crop label_free and of the preset's practical flavor
FIELD_MM = (200.0, 200.0, None)
H5_SPACING_MM = 0.625


@dataclass(frozen=True)
class LeftAtrium(DatasetRecipe):
    """``lgemri.nrrd`` and ``laendo.nrrd`` per patient, or ``mri_norm2.h5``.

    NRRD: the scan is brought to zero mean and unit variance as a whole, then cropped. h5: image and label as they are
    (the processed files are normalized and cropped already), at 0.625 mm: the files state no voxel size.

    Attributes:
        crop: ``literature``: in the first two axes around the LABEL with margins of 10 to 19 voxels. **This tells every
            network where the atrium is, in training, "unlabeled" and test cases alike**; the published numbers all
            come from it. The published margins were drawn without a seed; here they depend on the patient's name.
            ``label_free``: the central 200 x 200 mm, which a clinic can do as well. ``none``: the whole scan.
    """

    crop: str = "literature"
    name: ClassVar[str] = "left_atrium"
    layout: ClassVar[str] = "folders with lgemri.nrrd and laendo.nrrd, or with mri_norm2.h5, one per patient"
    where: ClassVar[str] = (
        "http://atriaseg2018.cardiacatlas.org (registration); h5: https://github.com/yulequan/UA-MT, folder data"
    )

    def __post_init__(self) -> None:
        choice("crop", self.crop, ("literature", "label_free", "none"))

    @property
    def labels(self) -> dict[int, str]:
        return {0: "background", 1: "left atrium"}

    @property
    def preset(self) -> tuple[str, str | None]:
        return "left_atrium", "literature" if self.crop == "literature" else "practical"

    def discover(self, source: Path) -> tuple[list[RawCase], list[str]]:
        folders: dict[Path, set[str]] = {}
        for path in files_below(source):
            if path.name in ("lgemri.nrrd", "laendo.nrrd", "mri_norm2.h5"):
                folders.setdefault(path.parent, set()).add(path.name)
        cases, remarks = [], []
        for folder, names in folders.items():
            patient = folder.name
            if "lgemri.nrrd" in names:
                label = str(folder / "laendo.nrrd") if "laendo.nrrd" in names else None
                if label is None:
                    remarks.append(f"{patient}: laendo.nrrd is missing; can only serve as unlabeled")
                cases.append(RawCase(patient, patient, (str(folder / "lgemri.nrrd"),), label))
            elif "mri_norm2.h5" in names:
                cases.append(RawCase(patient, patient, (str(folder / "mri_norm2.h5"),), details={"h5": True}))
            else:
                remarks.append(f"{patient}: laendo.nrrd without lgemri.nrrd, ignored")
        if self.crop != "literature" and any(case.details for case in cases):
            raise DataError(
                f"--crop {self.crop}: mri_norm2.h5 files are cropped around the label already, and what was cut off is "
                "gone; use the official .nrrd files, or --crop literature"
            )
        return cases, remarks

    def convert(self, case: RawCase) -> Volume:
        if case.details.get("h5"):
            arrays = read_h5(case.images[0], ("image", "label"))
            if arrays["image"].shape != arrays["label"].shape or arrays["image"].ndim != 3:
                shapes = arrays["image"].shape, arrays["label"].shape
                raise DataError(f"image and label must have one shape of 3 axes, got {shapes[0]} and {shapes[1]}")
            affine = np.diag([H5_SPACING_MM] * 3 + [1.0])
            return Volume({"": arrays["image"].astype(np.float32)}, affine, as_label(arrays["label"], {0: 0, 1: 1}))
        image, affine = read_image(case.images[0])
        remarks: list[str] = []
        label = None
        if case.label is not None:
            stored, label_affine = read_image(case.label)
            classes = {0: 0, 255: 1} if stored.max() > 1 else {0: 0, 1: 1}
            label, remarks = onto_grid(as_label(stored, classes), label_affine, image.shape, affine)
        mean, deviation = image.mean(dtype=np.float64), image.std(dtype=np.float64)
        image = image.astype(np.float32)
        image -= np.float32(mean)
        image /= np.float32(deviation or 1.0)
        window = [slice(0, side) for side in image.shape]
        if self.crop == "label_free":
            window = list(center_window(image.shape, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), FIELD_MM))
        elif self.crop == "literature":
            if label is None or not label.any():
                raise DataError(
                    "--crop literature goes around the label, and there is none; --crop label_free needs none"
                )
            window[:2] = label_window(label, case.name)
        if label is not None:
            inside, _ = cropped(label, affine, window)
            if lost := int(label.sum()) - int(inside.sum()):
                remarks.append(
                    f"{100 * lost / label.sum():.1f} % of the atrium are outside of the central field of view"
                )
            label = inside
        image, affine = cropped(image, affine, window)
        return Volume({"": image}, affine, label, remarks)


def label_window(label: np.ndarray, name: str, smallest: int = 112) -> list[slice]:
    """The literature's crop of the first two axes: the label's box, padded to ``smallest``, plus 10 to 19 voxels."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    window = []
    for axis in range(2):
        where = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = int(where[0]), int(where[-1])
        padding = max(smallest - (high - low), 0) // 2
        start = max(low - random.randint(10, 20) - padding, 0)
        stop = min(high + random.randint(10, 20) + padding, label.shape[axis])
        window.append(slice(start, stop))
    return window

"""ACDC: 2017 Automated Cardiac Diagnosis Challenge, official NIfTI, end-diastolic and end-systolic frame."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from monai_ssl.curation.prepare.discover import matching
from monai_ssl.curation.prepare.engine import DatasetRecipe, RawCase, Volume
from monai_ssl.curation.prepare.files import as_label, onto_grid, read_image


@dataclass(frozen=True)
class Acdc(DatasetRecipe):
    """``patientNNN/patientNNN_frameMM.nii.gz`` with ``_gt.nii.gz``; voxels and spacing are kept.

    The frames are named ``ED`` and ``ES`` as ``Info.cfg`` says. The 4D cine files are ignored.
    """

    name: ClassVar[str] = "acdc"
    layout: ClassVar[str] = "folders patientNNN with Info.cfg, patientNNN_frameMM.nii.gz and _frameMM_gt.nii.gz"
    where: ClassVar[str] = "https://humanheart-project.creatis.insa-lyon.fr/database (registration)"

    @property
    def labels(self) -> dict[int, str]:
        return {0: "background", 1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

    @property
    def preset(self) -> tuple[str, str | None]:
        return "acdc", "practical"

    def discover(self, source: Path) -> tuple[list[RawCase], list[str]]:
        found = matching(source, r"(patient\d+)_frame(\d+)(_gt)?\.nii(\.gz)?")
        labels = {(m[1].lower(), int(m[2]), path.parent): path for path, m in found if m[3]}
        cases, remarks = [], []
        for path, match in found:
            if match[3]:
                continue
            patient, frame = match[1].lower(), int(match[2])
            phase = phases(path.parent).get(frame)
            if phase is None:
                phase = f"frame{frame:02d}"
                remarks.append(f"{patient}: Info.cfg does not say what frame {frame} is, named {phase}")
            label = labels.pop((patient, frame, path.parent), None)
            if label is None:
                remarks.append(f"{patient}: frame {frame} has no _gt file; can only serve as unlabeled")
            cases.append(RawCase(f"{patient}_{phase}", patient, (str(path),), None if label is None else str(label)))
        remarks += [f"{path.name}: label without image, ignored" for path in labels.values()]
        return cases, remarks

    def convert(self, case: RawCase) -> Volume:
        return read_pair(case, {0: 0, 1: 1, 2: 2, 3: 3})


def phases(folder: Path) -> dict[int, str]:
    """Frame number -> ``ED`` or ``ES``, from a patient's ``Info.cfg``; empty where it is missing."""
    try:
        text = (folder / "Info.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {int(m[2]): m[1] for m in re.finditer(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", text, re.MULTILINE)}


def read_pair(case: RawCase, values: dict[int, int]) -> Volume:
    """Image and label of a case with one image file, label on the image's grid."""
    image, affine = read_image(case.images[0])
    if case.label is None:
        return Volume({"": image}, affine)
    stored, label_affine = read_image(case.label)
    label, remarks = onto_grid(as_label(stored, values), label_affine, image.shape, affine)
    return Volume({"": image}, affine, label, remarks)

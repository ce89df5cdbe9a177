"""MS-CMRSeg 2019: Multi-sequence Cardiac MR Segmentation Challenge, the late gadolinium enhanced (LGE) stacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from monai_ssl.curation.prepare.acdc import read_pair
from monai_ssl.curation.prepare.discover import matching
from monai_ssl.curation.prepare.engine import DatasetRecipe, RawCase, Volume
from monai_ssl.curation.prepare.published_splits import Split, seeded_split
from monai_ssl.errors import DataError

# gray values of the manual labels -> classes in the order of ACDC
VALUES = {0: 0, 600: 1, 200: 2, 500: 3}
N_TRAINING, N_LABELED = 35, 7


@dataclass(frozen=True)
class MSCMRSeg2019(DatasetRecipe):
    """``patientN_LGE.nii.gz`` and ``patientN_LGE_manual.nii.gz``, in whatever folders; voxels and spacing are kept.

    The other sequences (``_C0``, ``_T2``) are ignored. TAC divides 45 patients into 35 and 10 at random, several
    times, and publishes no list: the division here is ``RandomState(seed)`` over the sorted names, seed 2024.
    """

    name: ClassVar[str] = "mscmrseg2019"
    layout: ClassVar[str] = "files patientN_LGE.nii.gz and patientN_LGE_manual.nii.gz (in any folders)"
    where: ClassVar[str] = "https://zmiclab.github.io/zxh/0/mscmrseg19 (registration)"

    @property
    def labels(self) -> dict[int, str]:
        return {0: "background", 1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

    @property
    def preset(self) -> tuple[str, str | None]:
        return "mscmrseg2019", "practical"

    def discover(self, source: Path) -> tuple[list[RawCase], list[str]]:
        found = matching(source, r"patient(\d+)_LGE(_manual)?\.nii(\.gz)?")
        labels: dict[int, Path] = {}
        remarks = []
        for path, match in found:
            if match[2] and labels.setdefault(int(match[1]), path) != path:
                remarks.append(f"{path.name}: is in two places, {labels[int(match[1])]} is used")
        cases = []
        for path, match in found:
            if match[2]:
                continue
            number = int(match[1])
            label = labels.get(number)
            name = f"patient{number:02d}"
            if label is None:
                remarks.append(f"{name}: no {path.name.split('.')[0]}_manual.nii.gz; can only serve as unlabeled")
            cases.append(RawCase(name, name, (str(path),), None if label is None else str(label)))
        images = {case.name for case in cases}
        remarks += [f"{path.name}: label without image, ignored"
                    for number, path in labels.items() if f"patient{number:02d}" not in images]  # fmt: skip
        return cases, remarks

    def convert(self, case: RawCase) -> Volume:
        return read_pair(case, VALUES)

    def published_split(self, patients: list[str], seed: int | None, n_testing: int | None) -> Split:
        if n_testing is None:
            n_testing = len(patients) - N_TRAINING
            if n_testing < 1:
                raise DataError(
                    f"{self.name}: the published division has {N_TRAINING} training patients, got {len(patients)} in "
                    "all; give --n_testing"
                )
        return seeded_split(patients, n_testing, 0, N_LABELED, 2024 if seed is None else seed)

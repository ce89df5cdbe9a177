"""BraTS 2019: multimodal brain tumor segmentation challenge, training data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_ssl.curation.prepare.discover import matching
from monai_ssl.curation.prepare.engine import DatasetRecipe, RawCase, Volume, choice
from monai_ssl.curation.prepare.files import as_label, cropped, onto_grid, read_image
from monai_ssl.errors import DataError

# target -> flavor of the preset
FLAVORS = {"whole_tumor": "literature", "whole_tumor_all": "literature_all", "multi_class": "practical"}
SEQUENCES = ("flair", "t1", "t1ce", "t2")
VALUES = {
    "whole_tumor": {0: 0, 1: 1, 2: 1, 4: 1},
    "whole_tumor_all": {0: 0, 1: 1, 2: 1, 4: 1},
    "multi_class": {0: 0, 1: 1, 2: 2, 4: 3},
}


@dataclass(frozen=True)
class Brats2019(DatasetRecipe):
    """``HGG`` and ``LGG`` with ``NAME/NAME_{flair,t1,t1ce,t2,seg}.nii.gz``.

    Images are cut to the box of the brain (voxels that are not 0 in any sequence used: no label is needed) and keep
    their values; the preset normalizes them.

    Attributes:
        target: ``whole_tumor``: only FLAIR, all tumor classes as one, as UG-MCL's code reads it.
            ``whole_tumor_all``: the same of all four sequences, which its paper describes. ``multi_class``: four
            sequences; necrotic and non-enhancing core, oedema, enhancing tumor (values 1, 2, 4 become 1, 2, 3).
    """

    target: str = "whole_tumor"
    name: ClassVar[str] = "brats2019"
    layout: ClassVar[str] = "folders HGG and LGG with NAME/NAME_flair.nii.gz, _t1, _t1ce, _t2 and _seg"
    where: ClassVar[str] = "https://www.med.upenn.edu/cbica/brats2019/data.html (registration)"

    def __post_init__(self) -> None:
        choice("target", self.target, VALUES)

    @property
    def labels(self) -> dict[int, str]:
        if self.target != "multi_class":
            return {0: "background", 1: "whole tumor"}
        return {0: "background", 1: "necrotic and non-enhancing core", 2: "oedema", 3: "enhancing tumor"}

    @property
    def preset(self) -> tuple[str, str | None]:
        return "brats2019", FLAVORS[self.target]

    @property
    def sequences(self) -> tuple[str, ...]:
        return SEQUENCES[:1] if self.target == "whole_tumor" else SEQUENCES

    def discover(self, source: Path) -> tuple[list[RawCase], list[str]]:
        found: dict[tuple[Path, str], dict[str, Path]] = {}
        for path, match in matching(source, r"(.+)_(flair|t1|t1ce|t2|seg)\.nii(\.gz)?"):
            found.setdefault((path.parent, match[1]), {})[match[2].lower()] = path
        cases, remarks = [], []
        for (_, name), files in found.items():
            if missing := [sequence for sequence in self.sequences if sequence not in files]:
                remarks.append(f"{name}: {', '.join(missing)} missing, ignored")
                continue
            if "seg" not in files:
                remarks.append(f"{name}: no _seg file; can only serve as unlabeled")
            label = str(files["seg"]) if "seg" in files else None
            cases.append(RawCase(name, name, tuple(str(files[sequence]) for sequence in self.sequences), label))
        return cases, remarks

    def convert(self, case: RawCase) -> Volume:
        images: dict[str, np.ndarray] = {}
        affine = np.eye(4)
        for sequence, file in zip(self.sequences, case.images, strict=True):
            array, own = read_image(file)
            if images:
                first = next(iter(images.values()))
                if array.shape != first.shape or not np.allclose(own, affine, atol=1e-2):
                    raise DataError(f"sequences must be on one grid; {Path(file).name} does not")
            else:
                affine = own
            images[sequence] = array
        label: np.ndarray | None = None
        remarks: list[str] = []
        shape = next(iter(images.values())).shape
        if case.label is not None:
            stored, label_affine = read_image(case.label)
            label, remarks = onto_grid(as_label(stored, VALUES[self.target]), label_affine, shape, affine)
        brain = np.logical_or.reduce([array != 0 for array in images.values()])
        if not brain.any():
            raise DataError("image must show a brain, got 0 in every voxel")
        window = [slice(int(i[0]), int(i[-1]) + 1) for i in (
            np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))]  # fmt: skip
        if label is not None:
            inside, _ = cropped(label, affine, window)
            if lost := int((label > 0).sum()) - int((inside > 0).sum()):
                remarks.append(f"{lost} labeled voxels are outside of the brain")
            label = inside
        images = {name: cropped(array, affine, window)[0] for name, array in images.items()}
        names = {name: "" if len(images) == 1 else name for name in images}
        moved = cropped(brain, affine, window)[1]
        return Volume({names[name]: array for name, array in images.items()}, moved, label, remarks)

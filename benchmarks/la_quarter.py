"""Write the LA-quarter data set: block mean 2 x 2 x 2 twice, label = block mean >= 0.5 each time.

    python benchmarks/la_quarter.py --source DIR/left_atrium --output DIR/la_quarter

Source: a folder with NIfTI images/ and labels/ and datalists; an odd last slice is dropped at each halving.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from tqdm import tqdm

from monai_ssl.files import atomic_path


def halve(image: np.ndarray) -> np.ndarray:
    """Mean over blocks of 2 x 2 x 2 voxels."""
    x, y, z = (s // 2 for s in image.shape)
    return image[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))


def main(source: str, output: str) -> None:
    """Convert all images and labels below ``source``; existing files are kept."""
    root, target = Path(source), Path(output)
    files = sorted(root.glob("images/*.nii.gz")) + sorted(root.glob("labels/*.nii.gz"))
    if not files:
        raise SystemExit(f"source: no images/*.nii.gz below {root}")
    for path in tqdm(files, disable=None):
        out = target / path.relative_to(root)
        if out.is_file():
            continue
        image = nib.load(path)
        array = np.asarray(image.get_fdata(dtype=np.float32))
        for _ in range(2):
            array = halve(array) if path.parent.name == "images" else (halve(array) >= 0.5).astype(np.float32)
        affine = image.affine @ np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = (image.affine @ [1.5, 1.5, 1.5, 1.0])[:3]  # center of the first block of 4 voxels
        dtype = np.float32 if path.parent.name == "images" else np.uint8
        with atomic_path(out) as temporary:
            nib.save(nib.Nifti1Image(array.astype(dtype), affine), temporary)
    for datalist in root.glob("*.json"):
        shutil.copyfile(datalist, target / datalist.name)
    print(target)


if __name__ == "__main__":
    fire.Fire(main)

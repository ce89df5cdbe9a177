"""Peak memory of `monai-ssl predict` on a volume of 512 x 512 x 800 voxels, read, segmented, written.

A network of one convolution: what counts here is what lies around it, the volume and the stitching of the windows. The
network's own memory, that of one window, comes on top and does not depend on the volume.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from step import write

from monai_ssl.bundle.library import copy_bundle
from monai_ssl.data import load_preset
from monai_ssl.runs.predict import segment_folder

TARGET_GB = 8


def main(size: str = "512x512x800", output: str = "docs/results/benchmarks") -> None:
    """Segment one volume and write the peak of this process's resident memory.

    Args:
        size: voxels of the volume.
        output: folder of the results.
    """
    sides = [int(side) for side in size.split("x")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = copy_bundle("supervised", folder / "bundle")
        path = bundle / "configs" / "inference.yaml"
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        convolution = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}
        preset = load_preset("hippocampus", patch_size=(128, 128, 128)).model_dump(mode="json")
        config |= {"network_def": convolution, "dataset": preset, "device": "cpu"}
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        torch.save(torch.nn.Conv3d(1, 3, 1).state_dict(), bundle / "models" / "model.pt")
        (folder / "scans").mkdir()
        image = nib.Nifti1Image(np.zeros(sides, dtype=np.int16), np.diag([-0.7, -0.7, 0.8, 1.0]))  # to be turned to RAS
        random = np.random.RandomState(0)
        for k in range(sides[2]):
            image.dataobj[:, :, k] = random.randint(-1000, 1000, sides[:2])
        nib.save(image, folder / "scans" / "scan.nii")
        del image
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        start = time.perf_counter()
        settings = {"dataset_dir": str(folder / "scans"), "output_dir": str(folder / "out"), "uncertainty": True}
        segment_folder(bundle, settings)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results = {"peak_gb": peak / 1e9, "peak_before_gb": base / 1e9, "seconds": seconds}
    record = {
        "what": f"one volume of {size} voxels, 3 classes, with uncertainty map; {TARGET_GB} GB is the target",
        "targets": {"peak_gb": TARGET_GB},
        "results": results,
    }
    lines = ["| volume | peak, GB | target, GB | of it before the first voxel was read, GB |", "|---|---|---|---|",
             f"| {size} | {peak / 1e9:.2f} | < {TARGET_GB} | {base / 1e9:.2f} |"]  # fmt: skip
    write(Path(output) / "memory", record, lines, "Peak memory of a large volume")


if __name__ == "__main__":
    fire.Fire(main)

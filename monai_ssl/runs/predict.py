"""Segmenting a folder of images with a trained bundle, in bounded memory."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from monai.data.utils import create_file_basename
from tqdm import tqdm

from monai_ssl.data.cases import image_files
from monai_ssl.data.pipelines import saver
from monai_ssl.engines.segment import Segmenter
from monai_ssl.errors import DataError
from monai_ssl.files import write_text

RECORD = "predict.json"


# float32 copies of a volume that loading, normalizing and inverting hold at one time
COPIES = 6


def predict_folder(
    segmenter: Segmenter,
    entries: Sequence[Mapping[str, Any]],
    output_dir: Path,
    data_root: Path,
    probabilities: bool = False,
    uncertainty: bool = False,
    jobs: int = 2,
    memory_gb: float = 8.0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Segment many images; started again, it continues with those that are missing.

    Images are read, and results brought to their grid and written, by ``jobs`` threads next to the network. As many
    images are under way as fit into ``memory_gb``, and always one.

    Args:
        segmenter: the model.
        entries: ``{"image": file or files}``.
        output_dir: gets ``NAME_seg.nii.gz`` (and ``_prob``, ``_uncertainty``) in the layout of ``data_root``, and
            ``predict.json``, which says what made them.
        data_root: folder whose layout is repeated.
        probabilities, uncertainty: also write these maps.
        jobs: threads, >= 1.
        memory_gb: for images under way.
        overwrite: segment again what is there already.

    Returns:
        numbers of segmentations written now and found finished.

    Raises:
        DataError: when ``output_dir`` holds results of another model; at the end, when images could not be read (the
            others are written).
    """
    if jobs < 1:
        raise DataError(f"jobs: must be >= 1, got {jobs}")
    names = ["seg", *["prob"] * probabilities, *["uncertainty"] * uncertainty]
    _check_record(output_dir, segmenter.fingerprint(), overwrite)
    files = {id(entry): _results(entry, names, output_dir, data_root) for entry in entries}
    waiting = deque(e for e in entries if overwrite or not all(file.is_file() for file in files[id(e)]))
    finished = len(entries) - len(waiting)
    budget = memory_gb * 1e9
    savers = {"seg": "labels", "prob": "probabilities", "uncertainty": "uncertainty"}
    problems: list[str] = []

    def finish(result: dict[str, Any]) -> None:
        done = segmenter.finish(result, probabilities)
        for name in names:
            saver("pred", name, str(output_dir), str(data_root))({"pred": getattr(done, savers[name])})

    under_way: deque[tuple[float, Future]] = deque()  # in the order of the images
    reading: deque[tuple[Future, float]] = deque()
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(waiting), desc="segmentation", disable=None) as progress:
        try:
            while waiting or reading:
                while waiting and len(reading) < jobs + 1:
                    cost = _memory(waiting[0])
                    used = sum(c for _, c in reading) + sum(c for c, _ in under_way)
                    if used and used + cost > budget:
                        if reading:
                            break
                        under_way.popleft()[1].result()  # wait until it is written
                        continue
                    reading.append((pool.submit(segmenter.prepare, waiting.popleft()["image"]), cost))
                future, cost = reading.popleft()
                try:
                    item = future.result()
                except DataError as error:
                    problems.append(str(error))
                else:
                    under_way.append((cost, pool.submit(finish, segmenter.infer(item, probabilities, uncertainty))))
                    del item
                future = None  # type: ignore[assignment]  # it holds the image
                progress.update()
                while under_way and (under_way[0][1].done() or len(under_way) > jobs):
                    under_way.popleft()[1].result()
            for _, writing in under_way:
                writing.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DataError(f"{len(problems)} of {len(entries)} images could not be segmented: {shown}")
    return len(entries) - finished, finished


def _results(entry: Mapping[str, Any], names: Iterable[str], output_dir: Path, data_root: Path) -> list[Path]:
    """The files that MONAI's SaveImage writes for an image."""
    image = image_files(entry)[0]
    base = [create_file_basename(name, image, str(output_dir), str(data_root), False, makedirs=False) for name in names]
    return [Path(f"{path}.nii.gz") for path in base]


def _memory(entry: Mapping[str, Any]) -> float:
    """Estimate of the bytes that a case needs; 0 where the header does not tell."""
    import nibabel as nib

    try:
        images: list[Any] = [nib.load(file) for file in image_files(entry)]
        voxels = sum(math.prod(image.shape) for image in images)
    except Exception:  # not NIfTI, or broken: reading it says what is wrong
        return 0.0
    return voxels * 4 * COPIES


def _check_record(output_dir: Path, fingerprint: dict[str, Any], overwrite: bool) -> None:
    path = output_dir / RECORD
    if path.is_file() and not overwrite:
        try:
            former = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            former = None
        if former != fingerprint:
            raise DataError(
                f"output: {output_dir} holds segmentations of another model or other settings; give a new folder, or "
                "--overwrite True to replace them"
            )
    write_text(path, json.dumps(fingerprint, indent=2) + "\n")

"""Segmenting images with a trained run or a packaged bundle."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_ssl.errors import PROGRAM, DataError, UsageError, plural
from monai_ssl.runs.folder import RECORD, Run


@dataclass(frozen=True)
class Predictions:
    """What :func:`predict` wrote.

    Attributes:
        folder: of the results.
        written: images segmented now (or, for DICOM, series).
        reused: images whose results were there already.
        files: results of a DICOM series; for a folder of images look into ``folder``.
        empty: names of the images in which nothing was drawn now.
    """

    folder: Path
    written: int
    reused: int = 0
    files: tuple[Path, ...] = ()
    empty: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{plural(self.written, 'segmentation')}: {self.folder}"
        return text + (f" ({self.reused} were there already)" if self.reused else "")


def predict(
    run: str | Path | Run | Sequence[str | Path | Run] | None = None,
    images: str | Path | None = None,
    output: str | Path = "segmentations",
    bundle: str | Path | None = None,
    dicom: str | Path | None = None,
    ckpt: str | Path | None = None,
    probabilities: bool = False,
    uncertainty: bool = False,
    tta: bool | None = None,
    measurements: bool = False,
    series_uid: str | None = None,
    seg_type: str = "binary",
    jobs: int = 2,
    memory_gb: float = 8,
    overwrite: bool = False,
    **overrides: Any,
) -> Predictions:
    """Segment the images of a folder, or a DICOM series; results are on the grid of the images.

    Labels of a picture are a picture of the same size (of a JPEG a PNG, which loses nothing); everything else is NIfTI.
    An image that cannot be read does not stop the others; at the end it is named, and the exit status is 2. Started
    again, it continues with the images that are missing.

    Args:
        run: folder that `monai-ssl train` or `monai-ssl package` wrote. Several runs, one after the other, segment as
            an ensemble: the mean of their class probabilities.
        images: folder of images, or one image.
        output: folder for NAME_seg.nii.gz (of a picture NAME_seg.png); with `dicom` for segmentation.dcm and .nii.gz.
        bundle: a packaged bundle (folder or .zip), instead of RUN.
        dicom: folder of a DICOM series, instead of IMAGES.
        ckpt: other weights.
        probabilities: also write NAME_prob.nii.gz, one channel per class; with `dicom` probabilities.dcm and .nii.gz.
        uncertainty: also write NAME_uncertainty.nii.gz: 0 certain, 1 a guess.
        tta: average over mirrored views, along the axes that the preset's augmentation allows; default: what the preset
            says (window.tta).
        measurements: with `dicom`, also write a structured report with the volumes in ml.
        series_uid: with `dicom`, which series of the folder (its SeriesInstanceUID), where it holds several.
        seg_type: with `dicom`, binary (one mask per class, which every viewer shows) or labelmap (smaller, newer).
        jobs: threads that read and write next to the network.
        memory_gb: for images under way at one time.
        overwrite: segment again what is there already.
        **overrides: ids of the bundle's configs/inference.yaml: amp, device, datalist, ...

    Returns:
        what was written.

    Raises:
        DataError: when run, weights or images are missing, or an image cannot be read.

    Example:
        >>> predict("runs/dtc-left_atrium-seed0", "new_scans", "segmentations", uncertainty=True)  # doctest: +SKIP
    """
    if bundle is not None and images is None and dicom is None and isinstance(run, (str, Path)):
        run, images = None, run  # predict --bundle DIR IMAGES: the first place is not a run's then
    if (run is None) == (bundle is None):
        raise UsageError("predict: give either RUN or --bundle DIR")
    if (images is None) == (dicom is None):
        raise UsageError("predict: give either IMAGES or --dicom SERIES_DIR")
    only_dicom = {"measurements": measurements, "series_uid": series_uid is not None, "seg_type": seg_type != "binary"}
    if dicom is None and (without := [key for key, given in only_dicom.items() if given]):
        raise UsageError(f"predict: --{without[0]} goes with --dicom")
    target = Path(output).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise DataError(f"output: must be a folder, got the file {target}")

    from monai_ssl.bundle.overrides import literal

    with opened_model(run if run is not None else bundle, ckpt, overrides) as (folder, settings):
        if dicom is not None:
            asked = {"measurements": measurements, "uncertainty": uncertainty, "overwrite": overwrite,
                     "probabilities": probabilities, "seg_type": seg_type,
                     "series_uid": None if series_uid is None else str(series_uid)}  # fmt: skip
            return _predict_dicom(folder, settings | ({} if tta is None else {"tta": tta}), dicom, target, asked)
        place = Path(os.path.abspath(Path(str(images)).expanduser()))  # a link keeps its own name
        _check_images(place, target, overrides)
        asked = {"probabilities": probabilities, "uncertainty": uncertainty, "tta": tta, "jobs": jobs,
                 "memory_gb": memory_gb, "overwrite": overwrite}  # fmt: skip
        defaults = inspect.signature(predict).parameters
        # a config of your own may lack an id: that matters where it is asked for
        settings |= {key: value for key, value in asked.items() if value != defaults[key].default}

        from monai_ssl.runs.predict import segment_folder

        written, reused, empty = segment_folder(
            folder, settings | {"dataset_dir": literal(place), "output_dir": literal(target)}
        )
    return Predictions(target, written, reused, empty=empty)


@contextmanager
def opened_model(
    model: Any, ckpt: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of a bundle whose ``configs/inference.yaml`` segments, and the settings with which it does.

    Args:
        model: a run, several runs (an ensemble), or a packaged bundle, folder or .zip.
        ckpt: other weights.
        overrides: ids of ``configs/inference.yaml`` -> values.

    Yields:
        folder and settings; both are valid within the block only.

    Raises:
        DataError: when there is no such model, it has no weights, or the members of an ensemble do not agree.
    """
    from monai_ssl.bundle import library
    from monai_ssl.bundle.overrides import literal
    from monai_ssl.runs.ensemble import members_of

    configs, overrides = ["inference.yaml"], overrides or {}
    members = members_of(model)
    if members is not None:
        if ckpt is not None:
            raise UsageError("predict: --ckpt goes with one run")
        folder, settings = members.settings(configs, overrides)
        with members.weights_file() as file:
            yield folder, settings | {"ckpt": literal(file)}
        return
    place = model.folder if isinstance(model, Run) else Path(str(model)).expanduser()
    with library.opened(place) as source:
        if (source / RECORD).is_file() or not (source / "configs" / "inference.yaml").is_file():
            trained = Run.open(source)
            folder, settings = trained.settings(configs, overrides)
            yield folder, settings | {"ckpt": literal(trained.weights(ckpt))}
        else:
            yield source, _package_settings(source, ckpt, overrides)


def _predict_dicom(
    folder: Path, settings: dict[str, Any], dicom: str | Path, target: Path, asked: dict[str, Any]
) -> Predictions:
    from monai_ssl.bundle.library import TRAINING_IMAGES, read_json
    from monai_ssl.deploy.dicom import predict_series
    from monai_ssl.runs.predict import open_segmenter

    segmenter = open_segmenter(folder, settings)
    meta = read_json(folder / "configs" / "metadata.json")
    name, version = str(meta.get("name", folder.name)), str(meta.get("version", "0"))
    ranges = folder / TRAINING_IMAGES
    spacing = read_json(ranges).get("spacing") if ranges.is_file() else None
    files = predict_series(segmenter, str(dicom), target, name, version, training_spacing=spacing, **asked)
    return Predictions(target, 1, files=tuple(map(Path, files)))


def _package_settings(folder: Path, ckpt: str | Path | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with which a packaged bundle segments."""
    from monai_ssl.bundle.library import read_json
    from monai_ssl.bundle.overrides import check_overrides, literal

    check_overrides(folder, ["inference.yaml"], overrides)
    read_json(folder / "configs" / "metadata.json")
    path = Path(ckpt).expanduser().resolve() if ckpt is not None else folder / "models" / "model.pt"
    if not path.is_file():
        hint = "check the path" if ckpt else f"train it, then `{PROGRAM} package` the run"
        raise DataError(f"ckpt: {path} does not exist; {hint}")
    return {**overrides, "ckpt": literal(path)}


def _check_images(source: Path, target: Path, overrides: Mapping[str, Any]) -> None:
    """
    Raises:
        DataError: when there is no image, or the results would be among the images.
    """
    from monai_ssl.data.images import images_to_segment

    if not source.exists():
        raise DataError(f"images: {source} does not exist; check the path")
    if not images_to_segment(source, overrides.get("datalist"), overrides.get("section", "testing")):
        raise DataError(f"images: no image below {source}; give a folder with NIfTI files (or one file)")
    folder = source.resolve() if source.is_dir() else source.parent.resolve()
    if target == folder:
        raise DataError(f"output: must not be the folder of the images, {target}: results would be read as images")

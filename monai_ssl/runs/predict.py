"""Opening a trained bundle for inference, and running its inference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_ssl.bundle.library import run_bundle
from monai_ssl.engines.segment import VolumeSegmenter
from monai_ssl.errors import DataError
from monai_ssl.weights import load_network

CONFIG = "inference.yaml"


def open_segmenter(bundle: Path, overrides: Mapping[str, Any] | None = None) -> VolumeSegmenter:
    """The segmenter that a bundle's ``configs/inference.yaml`` names, with its weights.

    Args:
        bundle: folder of the bundle.
        overrides: ids -> values; ``ckpt`` names the weights, default ``models/model.pt``, ``tta`` averages over
            mirrored views.

    Raises:
        DataError: when weights are missing or do not fit, ``tta`` is asked of a preset that allows no flips, or the
            config names another evaluator.

    Example:
        >>> segmenter = open_segmenter(Path("my_bundle"), {"tta": True})  # doctest: +SKIP
        >>> labels = segmenter("scan.nii.gz").labels  # doctest: +SKIP
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / CONFIG))
    parser.update({"bundle_root": str(bundle), **(overrides or {})})
    try:
        segmenter = parser.get_parsed_content("evaluator")
    except Exception as error:
        raise _cause(error) from error
    if not isinstance(segmenter, VolumeSegmenter):
        raise DataError(
            f"bundle: evaluator in {bundle / 'configs' / CONFIG} must be a monai_ssl.engines.VolumeSegmenter, got "
            f"{type(segmenter).__name__}; `monai-ssl bundle` writes a config to compare with"
        )
    load_network(parser.get_parsed_content("network"), parser.get_parsed_content("ckpt")).eval()
    return segmenter


def segment_folder(bundle: Path, overrides: Mapping[str, Any]) -> tuple[int, int, tuple[str, ...]]:
    """Run a bundle's inference: what ``python -m monai.bundle run --config_file configs/inference.yaml`` does.

    Args:
        bundle: folder of the bundle.
        overrides: ids -> values: ``dataset_dir``, ``output_dir``, ``ckpt``, ``tta``, ``uncertainty``, ``jobs``, ...

    Returns:
        numbers of images segmented now and found finished, and the names of those in which nothing was drawn now.

    Raises:
        DataError: for an unknown id, results of another model in ``output_dir``, and at the end, when images could not
            be read (the others are written).
    """
    evaluator = run_bundle(bundle, [CONFIG], dict(overrides)).get_parsed_content("evaluator")
    if isinstance(evaluator, VolumeSegmenter):
        return evaluator.written, evaluator.found, tuple(evaluator.empty)
    return int(evaluator.state.iteration), 0, ()  # an evaluator of your own


def _cause(error: BaseException) -> BaseException:
    """The ``DataError`` behind what MONAI makes of it inside a config."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, DataError):
            return link
        link = link.__cause__ or link.__context__
    return error

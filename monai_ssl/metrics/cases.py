"""All numbers of one case: one row per foreground class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_ssl.labels import IGNORE_LABEL

from .overlap import dice_score, jaccard_score, to_array
from .surface import SurfaceDistances, check_spacing, image_diagonal

__all__ = ["DISTANCE_METRICS", "METRICS", "OVERLAP_METRICS", "STATUSES", "Row", "case_metrics", "known_voxels"]

Row = dict[str, Any]
OVERLAP_METRICS = ("dice", "jaccard")
DISTANCE_METRICS = ("hd95_mm", "asd_mm", "assd_mm", "hd95_voxel", "asd_voxel")
METRICS = OVERLAP_METRICS + DISTANCE_METRICS
STATUSES = ("ok", "empty_prediction", "empty_reference", "both_empty")


def _label_array(name: str, value: Any) -> np.ndarray:
    array = to_array(value)
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must have shape (X, Y) or (X, Y, Z), got shape {array.shape}")
    if array.dtype.kind not in "biu":
        if array.dtype.kind != "f" or not np.array_equal(array, np.round(array)):
            raise ValueError(f"{name} must hold integer labels, got dtype {array.dtype} with other values")
        array = array.astype(np.int64)
    return array


def case_metrics(
    prediction: Any,
    reference: Any,
    labels: Mapping[int, str] | Mapping[str, str],
    spacing: Sequence[float] | float,
    case: str = "",
) -> list[Row]:
    """Score one segmentation against its reference, both on the grid of the original image.

    Distances come in millimeters (``*_mm``) and in the literature's convention (``*_voxel``: voxel units, spacing
    ignored). 95HD is the 95th percentile of both directed distance sets pooled; ASD runs one way, from the
    prediction's surface to the reference's; ASSD is the mean of both sets pooled (all three as in medpy).

    **Voxels that the reference ignores** (:data:`~monai_ssl.labels.IGNORE_LABEL`, 255, unless that is a class) belong
    to no mask, the prediction's included: overlap, distances and volumes are those of the other voxels. Beside them a
    mask does not end: surfaces are where known voxels are outside.

    **Empty masks never count as perfect.** Where exactly one of the two masks is empty, Dice and Jaccard are 0 and
    every distance is the *image diagonal* (a penalty larger than any distance in the image); where both are empty,
    Dice and Jaccard are 1 and distances 0. ``status`` names such rows.

    Args:
        prediction: integer label map, shape (X, Y) or (X, Y, Z).
        reference: integer label map of the same shape.
        labels: name of every class by its value in the arrays, e.g. ``{1: "left atrium"}``; keys may be digit
            strings (as in JSON). The background, 0, is skipped; values that are not named are not scored.
        spacing: voxel size in millimeters, one value per axis (or one for all).
        case: name of the case, copied into the rows.

    Returns:
        One dict per class, in the order of ``labels``: ``case``, ``label``, ``class``, ``status`` ("ok",
        "empty_prediction", "empty_reference" or "both_empty"), ``dice``, ``jaccard`` in [0, 1], ``hd95_mm``,
        ``asd_mm``, ``assd_mm``, ``hd95_voxel``, ``asd_voxel``, ``volume_ml_prediction`` and ``volume_ml_reference``
        (millilitres; NaN in 2D, where a slice has no volume).

    Raises:
        ValueError: if the shapes differ, an array is not 2D/3D or not integer, no foreground class is named, or
            ``spacing`` does not fit.

    Example:
        >>> mask = np.zeros((8, 8, 8), dtype=np.uint8)
        >>> mask[2:6, 2:6, 2:6] = 1
        >>> row = case_metrics(mask, mask, {1: "cube"}, spacing=(1.0, 1.0, 2.0))[0]
        >>> row["dice"], row["hd95_mm"], row["volume_ml_reference"]
        (1.0, 0.0, 0.128)
    """
    first, second = _label_array("prediction", prediction), _label_array("reference", reference)
    if first.shape != second.shape:
        raise ValueError(f"prediction and reference must have the same shape, got {first.shape} and {second.shape}")
    scale = check_spacing(spacing, first.ndim)
    classes = {int(value): str(name) for value, name in labels.items() if int(value) != 0}
    if not classes:
        raise ValueError(f"labels must name at least one foreground class, got {dict(labels)!r}")
    if len(set(classes.values())) != len(classes):
        raise ValueError(f"labels must give every class a name of its own, got {dict(labels)!r}")

    known = None
    if IGNORE_LABEL not in classes and (ignored := second == IGNORE_LABEL).any():
        first, second, known = np.where(ignored, 0, first), np.where(ignored, 0, second), ~ignored
    voxel_ml = float(np.prod(scale)) / 1000.0 if first.ndim == 3 else float("nan")
    rows: list[Row] = []
    for value, name in classes.items():
        mask, truth = first == value, second == value
        counts = int(mask.sum()), int(truth.sum())
        row: Row = {"case": str(case), "label": value, "class": name, "status": "ok"}
        row["dice"], row["jaccard"] = dice_score(mask, truth), jaccard_score(mask, truth)
        if all(counts):
            voxel = SurfaceDistances(mask, truth, known=known)
            if (scale == scale[0]).all():  # isotropic: millimeters are scaled voxels
                row["hd95_mm"], row["asd_mm"], row["assd_mm"] = (
                    distance * float(scale[0]) for distance in (voxel.hd95(), voxel.asd(), voxel.assd())
                )
            else:
                metric = SurfaceDistances(mask, truth, scale.tolist(), known)
                row["hd95_mm"], row["asd_mm"], row["assd_mm"] = metric.hd95(), metric.asd(), metric.assd()
            row["hd95_voxel"], row["asd_voxel"] = voxel.hd95(), voxel.asd()
        else:
            empty = not any(counts)
            row["status"] = "both_empty" if empty else "empty_reference" if counts[0] else "empty_prediction"
            for key in DISTANCE_METRICS:
                unit = None if key.endswith("_voxel") else scale.tolist()
                row[key] = 0.0 if empty else image_diagonal(first.shape, unit)
        row["volume_ml_prediction"], row["volume_ml_reference"] = counts[0] * voxel_ml, counts[1] * voxel_ml
        rows.append(row)
    return rows


def known_voxels(output: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """What MONAI's metrics take of an evaluator's output: voxels that the label ignores are background in both.

    Args:
        output: items with ``pred`` and ``label``, class indices of one shape, arrays or tensors.

    Returns:
        predictions and labels; the very objects where no voxel is :data:`~monai_ssl.labels.IGNORE_LABEL`.

    Example:
        >>> known_voxels([{"pred": np.array([1, 1, 0]), "label": np.array([1, IGNORE_LABEL, 0])}])
        ([array([1, 0, 0])], [array([1, 0, 0])])
    """
    predictions, labels = [], []
    for item in output:
        prediction, label = item["pred"], item["label"]
        ignored = label == IGNORE_LABEL
        if ignored.any():  # products keep array and tensor types, and their metadata
            prediction, label = prediction * ~ignored, label * ~ignored
        predictions.append(prediction)
        labels.append(label)
    return predictions, labels

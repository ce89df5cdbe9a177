"""A preset for unknown data, from what the data look like, with the reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml

from monai_ssl.data.cases import Entry, case_name, image_files
from monai_ssl.data.reading import read_label, read_volume
from monai_ssl.data.rules import map_advice
from monai_ssl.errors import DataError, dimensions
from monai_ssl.files import write_text
from monai_ssl.labels import IGNORE_LABEL

# scans of which the voxels are read; headers are too few to tell CT from MR
SAMPLE = 24
# voxels per patch that train in memory of about 8 GB with the V-Net and a batch of 2 + 2
# the practical recipe of the shipped presets
RECIPE = {"optimizer": "adamw", "learning_rate": 0.002, "weight_decay": 0.01, "warmup": 0.05, "schedule": "poly"}
BUDGET = {2: 256 * 256, 3: 112 * 112 * 80}


@dataclass
class ScanStatistics:
    """What was seen of one scan, axes as stored.

    Attributes:
        shape, spacing: per axis; spacing None where the format states none.
        order: for every axis after reorientation to RAS, the stored axis that it comes from.
        axial: it can be brought to RAS with the last stored axis, or the plane of a picture, where it is.
        low, high, minimum: 0.5th and 99.5th percentile and minimum of the first channel.
        integer: all values are integers.
        n_channels: in the file or files.
        extent: voxels per axis of the box of all classes, None without label or foreground.
        tissue: percentiles 0.5 and 99.5 under the label, None without.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    order: tuple[int, ...]
    low: float
    high: float
    minimum: float
    integer: bool
    n_channels: int
    axial: bool = True
    extent: tuple[int, ...] | None = None
    tissue: tuple[float, float] | None = None


@dataclass
class Proposal:
    """A preset as a mapping for YAML, and one sentence per decision.

    Attributes:
        preset: readable by :func:`monai_ssl.data.load_preset`.
        reasons: what was decided and why.
    """

    preset: dict[str, Any]
    reasons: list[str] = field(default_factory=list)


def scan_statistics(
    entry: Entry, label_map: Mapping[int, int] | None = None, ignore_label: int | None = None
) -> ScanStatistics:
    """Read one case of a datalist.

    Args:
        entry: the case.
        label_map: stored value of a label -> class.
        ignore_label: stored value of a label that is no class.

    Raises:
        DataError: when a file cannot be read, naming it.
    """
    files = image_files(entry)
    volumes = []
    for file in files:
        try:
            volume, affine = read_volume(file)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        volumes.append(volume)
    image = volumes[0]
    order, spacing, axial = list(range(image.ndim - 1)), None, True
    if affine is not None:
        zooms = nib.affines.voxel_sizes(affine)[: image.ndim - 1]
        codes = nib.io_orientation(affine)[: image.ndim - 1, 0]
        if image.ndim == 3:
            axial = set(codes.tolist()) == {0.0, 1.0}
        if np.isfinite(codes).all() and axial:
            order = [int(i) for i in np.argsort(codes)]
        if image.ndim == 4:
            axial = order[-1] == 2
        spacing = tuple(float(zoom) for zoom in zooms)
    values = image[0]
    found = ScanStatistics(
        shape=tuple(int(side) for side in values.shape),
        spacing=spacing,
        order=tuple(order),
        low=float(np.percentile(values, 0.5)),
        high=float(np.percentile(values, 99.5)),
        minimum=float(values.min()),
        integer=bool(values.dtype.kind in "iu" or np.array_equal(values, np.round(values))),
        n_channels=sum(len(volume) for volume in volumes),
        axial=axial,
    )
    if "label" in entry:
        try:
            label = read_label(entry["label"], label_map, ignore_label)[0][0]
        except DataError as error:
            raise DataError(f"{entry['label']}: {error}") from error
        if ignore_label is not None:
            label = np.where(label == IGNORE_LABEL, 0, label)
        if label.shape == values.shape and label.any():
            boxes = [
                np.flatnonzero(label.any(axis=tuple(a for a in range(label.ndim) if a != i))) for i in range(label.ndim)
            ]
            found.extent = tuple(int(box[-1] - box[0]) + 1 for box in boxes)
            low, high = np.percentile(values[label > 0], [0.5, 99.5])
            found.tissue = (float(low), float(high))
    return found


def propose_preset(
    entries: Sequence[Entry],
    labels: Mapping[int, str],
    channels: Sequence[str] | None = None,
    label_map: Mapping[int, int] | None = None,
    ignore_label: int | None = None,
) -> Proposal:
    """A preset that is a sound start for these data, and why.

    Args:
        entries: cases of a datalist (labeled ones tell most); up to 24, evenly drawn, are read.
        labels: class -> name.
        channels: names of the channels; None names them by number.
        label_map: stored value of a label -> class.
        ignore_label: stored value of a label that is no class.

    Returns:
        Dimensions (2D where slices are thick), spacing, patch size, intensity, batch sizes, iterations, with reasons.

    Raises:
        DataError: when there is no case, a file cannot be read, or cases differ in axes or channels.

    Example:
        >>> proposal = propose_preset(entries, {0: "background", 1: "organ"})  # doctest: +SKIP
    """
    if not entries:
        raise DataError("a preset can only be proposed from cases, got none")
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2:
        raise DataError(f"a preset needs classes 0, 1, 2, ... without gap, got {sorted(labels)}: "
                        f"give --label_map '{{{map_advice(sorted(labels))}}}'")  # fmt: skip
    labeled = [entry for entry in entries if "label" in entry]
    others = [entry for entry in entries if "label" not in entry]
    half = SAMPLE // 2
    drawn = _spread(labeled, max(half, SAMPLE - len(others))) + _spread(others, max(half, SAMPLE - len(labeled)))
    names = [case_name(entry) for entry in drawn]
    found = [scan_statistics(entry, label_map, ignore_label) for entry in drawn]
    for what, values in (("axes", [len(f.shape) for f in found]), ("channels", [f.n_channels for f in found])):
        if len(set(values)) > 1:
            usual = max(set(values), key=values.count)
            odd = next(i for i, value in enumerate(values) if value != usual)
            raise DataError(
                f"cases must have the same number of {what}; {names[odd]} has {values[odd]}, others {usual}"
            )
    reasons = [f"read {len(found)} of {len(entries)} cases"]
    dims = _dims(found, reasons)
    content: dict[str, Any] = {
        "spatial_dims": dims,
        "channels": _channels(found[0].n_channels, channels, reasons),
        "modality": "MR",
        "labels": {int(value): str(name) for value, name in labels.items()},
        **({"label_map": {int(v): int(c) for v, c in label_map.items()}} if label_map else {}),
        **({"ignore_label": int(ignore_label)} if ignore_label is not None else {}),
        "orientation": _orientation(found, dims, reasons),
    }
    if content["orientation"] is not None:  # from here on in the axes of the network
        found = [_turned(f) for f in found]
    spacing = _spacing(found, dims, reasons)
    content["spacing"] = spacing
    content["patch_size"] = _patch(found, dims, spacing, reasons)
    content["intensity"] = _intensity(found, reasons)
    if content["intensity"]["policy"] == "window":
        content["modality"] = "CT"
    said = "values look like Hounsfield units" if content["modality"] == "CT" else "a guess, files do not say"
    reasons.append(f"modality {content['modality']}: {said}; DICOM series of another are warned of")
    content["augmentation"] = {"policy": "practical", "flip_axes": []}
    reasons.append(
        "augmentation.flip_axes []: no mirrored patches; add the axes for which mirrored anatomy is plausible"
    )
    content["window"] = {"overlap": 0.5 if dims == 2 else 0.25, "mode": "gaussian", "batch_size": 8 if dims == 2 else 1}
    content["training"] = _training(content["patch_size"], dims, reasons)
    return Proposal(content, reasons)


def write_preset(path: str | Path, proposal: Proposal) -> None:
    """Write a proposal as YAML, the reasons as comments at its head."""
    text = yaml.safe_dump(proposal.preset, sort_keys=False, allow_unicode=True, default_flow_style=None)
    head = "".join(f"# - {reason}\n" for reason in proposal.reasons)
    write_text(path, f"# Proposed from the data; every line may be edited, see docs/datasets.md.\n{head}{text}")


def _turned(f: ScanStatistics) -> ScanStatistics:
    def turned(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(values[axis] for axis in f.order)

    return replace(f, shape=turned(f.shape) or (), spacing=turned(f.spacing), extent=turned(f.extent))


def _spread(entries: Sequence[Entry], number: int) -> list[Entry]:
    if len(entries) <= number:
        return list(entries)
    return [entries[round(i * (len(entries) - 1) / (number - 1))] for i in range(number)]


def _dims(found: list[ScanStatistics], reasons: list[str]) -> int:
    if len(found[0].shape) == 2:
        reasons.append("spatial_dims 2: the files are 2D")
        return 2

    def across(values: Sequence[float]) -> float:
        """Along the last axis, relative to the smaller of the other two."""
        return values[-1] / min(values[:-1])

    ratio = float(np.median([1.0 if f.spacing is None else across(f.spacing) for f in found]))
    depth = int(np.median([f.shape[-1] for f in found]))
    if depth < 48 and ratio >= 3:
        reasons.append(f"spatial_dims 2: slices are {ratio:.1f} times thicker than pixels are wide, a 2D network goes "
                       f"through the {depth} slices")  # fmt: skip
        return 2
    if depth < 32 and max(across(f.shape) for f in found) <= 1 / 6:
        reasons.append(f"spatial_dims 2: there are only {depth} slices, a 2D network goes through them")
        return 2
    longest = max((max(f.spacing) / min(f.spacing) for f in found if f.spacing is not None), default=1.0)
    text = f"spatial_dims 3: {depth} slices, voxels at most {longest:.1f} times longer than wide"
    if longest >= 3:
        text += "; for a 2D network, the thick slices would have to be the last axis of every file"
    reasons.append(text)
    return 3


def _channels(number: int, names: Sequence[str] | None, reasons: list[str]) -> list[str]:
    if names is not None and len(names) == number:
        return [str(name) for name in names]
    reasons.append(f"channels: {number} per case; give them their names")
    return ["image"] if number == 1 else [f"channel {index}" for index in range(number)]


def _orientation(found: list[ScanStatistics], dims: int, reasons: list[str]) -> str | None:
    if dims == 3 or all(f.axial for f in found):
        reasons.append("orientation RAS: all files are brought to the same axes")
        return "RAS"
    what = "some pictures do not lie in an axial plane" if len(found[0].shape) == 2 else (
        "in RAS the slices of some files would not be the last axis")  # fmt: skip
    reasons.append(f"orientation null: {what}")
    return None


def _spacing(found: list[ScanStatistics], dims: int, reasons: list[str]) -> list[float] | None:
    known = np.array([f.spacing[:dims] for f in found if f.spacing is not None])
    if len(known) < len(found):
        reasons.append("spacing null: the files do not state their voxel size")
        return None
    median = np.median(known, axis=0)
    spread = float((known.max(axis=0) / known.min(axis=0)).max())
    if spread <= 1.1:
        reasons.append(f"spacing null: all have voxels of about {dimensions(median)} mm, nothing needs resampling")
        return None
    target = [float(f"{value:.3g}") for value in median]
    reasons.append(f"spacing {dimensions(target)} mm, the median: voxel sizes differ by up to a factor of {spread:.2f}")
    return target


def _patch(found: list[ScanStatistics], dims: int, spacing: list[float] | None, reasons: list[str]) -> list[int]:
    def on_grid(sizes: Sequence[int], f: ScanStatistics) -> list[float]:
        if spacing is None or f.spacing is None:
            return [float(size) for size in sizes[:dims]]
        return [sizes[i] * f.spacing[i] / spacing[i] for i in range(dims)]

    sides = np.median([on_grid(f.shape, f) for f in found], axis=0)
    extents = [on_grid(f.extent, f) for f in found if f.extent is not None]
    # an axis that is shorter is padded: no larger than the median, but for a voxel
    limit = [max(16, 16 * math.floor((side + 1) / 16)) for side in sides]
    if extents:
        organ = np.percentile(extents, 90, axis=0)
        wish = [max(32, 16 * math.ceil(1.5 * size / 16)) for size in organ]
        why = f"1.5 times the labeled structures (90th percentile {dimensions(organ)} voxels)"
    else:
        wish, why = limit, "the image, as there is no label to tell the size of the structure"
    patch = [min(a, b) for a, b in zip(limit, wish, strict=True)]
    full = list(patch)
    while math.prod(patch) > BUDGET[dims] and max(patch) > 32:
        axis = max(range(dims), key=lambda i: (patch[i] / full[i], patch[i]))
        patch[axis] -= 16
    text = f"patch_size {dimensions(patch)}: {why}, at most the median image ({dimensions(sides)})"
    reasons.append(text + (", reduced to fit into memory" if patch != full else ""))
    return patch


def _intensity(found: list[ScanStatistics], reasons: list[str]) -> dict[str, Any]:
    hounsfield = sum(f.integer and f.minimum <= -500 and f.high < 4000 for f in found)
    if 2 * hounsfield > len(found):
        tissue = [f.tissue for f in found if f.tissue is not None]
        if tissue:
            low, high = np.median(tissue, axis=0)
            margin = 0.5 * (high - low) or 100.0
            window = [10 * math.floor((low - margin) / 10), 10 * math.ceil((high + margin) / 10)]
            why = f"twice the range of the labeled structures ({low:.0f} to {high:.0f})"
        else:
            window, why = [-160, 240], "soft tissue, as there is no label"
        reasons.append(
            f"intensity window {window}: values look like Hounsfield units (minimum {found[0].minimum:g}); {why}"
        )
        return {"policy": "window", "window": [float(value) for value in window]}
    highs = [f.high for f in found]
    reasons.append(f"intensity robust: each scan by itself, as the gray values have no unit (99.5th percentile from "
                   f"{min(highs):.3g} to {max(highs):.3g})")  # fmt: skip
    return {"policy": "robust"}


def _training(patch: Sequence[int], dims: int, reasons: list[str]) -> dict[str, Any]:
    voxels = math.prod(patch)
    batch = 2 if dims == 3 else max(2, min(12, 6 * 128 * 128 // voxels))
    if dims == 3 and voxels <= 64**3:
        batch = 4
    reasons.append(
        f"training: {batch} labeled + {batch} unlabeled patches of {voxels} voxels, 6000 iterations of AdamW"
    )
    return {"max_iterations": 6000, "labeled_batch_size": batch, "unlabeled_batch_size": batch, **RECIPE}

"""What one case must be to be trained on or segmented."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from monai_ssl.data.formats.promise import check_memory
from monai_ssl.data.placement import placement
from monai_ssl.data.preset import Intensity, Preset
from monai_ssl.data.scan import AFFINE_RULE, affine_difference, same_affine, valid_affine
from monai_ssl.errors import DataError, dimensions, figure, plural
from monai_ssl.labels import IGNORE_LABEL

Severity = Literal["error", "warning"]
# of the voxels of a label; more of them without a class is worth a word
MOST_IGNORED = 0.9


@dataclass(frozen=True)
class Finding:
    """What is wrong with a case, or worth knowing about it.

    Attributes:
        rule: short key, for programs.
        severity: "error": the case cannot be used.
        message: rule, value found, next step.
        about: the file that it is about.
    """

    rule: str
    severity: Severity
    message: str
    about: Literal["image", "label"] = "image"


_Add = Callable[[str, Severity, str], None]


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if not value.dtype.is_floating_point or value.dtype.itemsize >= 4:
            return value.numpy()
        return value.float().numpy()
    return np.asarray(value)


def case_findings(
    image: Any,
    label: Any,
    preset: Preset,
    affine: np.ndarray | None = None,
    label_affine: np.ndarray | None = None,
) -> list[Finding]:
    """What is wrong with one loaded case. The rules are here, once, for every command that reads scans.

    Args:
        image: array or tensor, channel first, (C, X, Y[, Z]).
        label: label map, (1, X, Y[, Z]) or (X, Y[, Z]); None for an unlabeled case.
        preset: the dataset preset.
        affine, label_affine: (4, 4) of the two files, None where they state none. The image's tells the size that the
            network will see, which is compared with ``preset.patch_size``.

    Returns:
        the findings; empty where all is well.

    Example:
        >>> preset = Preset(name="x", spatial_dims=2, labels={0: "background", 1: "organ"}, patch_size=(16, 16))
        >>> image = np.arange(256.0).reshape(1, 16, 16)
        >>> case_findings(image, np.eye(16, dtype=int), preset)
        []
        >>> case_findings(image, 2 * np.eye(16, dtype=int), preset)[0].message[:61]
        "label values must be among the preset's classes [0, 1], got 2"
    """
    found: list[Finding] = []

    def add(rule: str, severity: Severity, message: str) -> None:
        found.append(Finding(rule, severity, message))

    def add_label(rule: str, severity: Severity, message: str) -> None:
        found.append(Finding(rule, severity, message, "label"))

    if affine is not None and not valid_affine(affine):
        add("affine", "error", AFFINE_RULE)
        affine = None
    elif affine is None and (preset.spacing is not None or preset.center_crop is not None):
        what = "resamples" if preset.spacing is not None else "crops"
        text = f"image states no voxel size, and the preset {what} in millimeters"
        add("no_size", "warning", f"{text}: 1 mm is taken; use 'resize', or remove it from the preset")
    image = _to_numpy(image)
    seen = None if affine is None else placement(affine, image.shape[1:], preset)
    if seen is not None:
        try:
            needed = 4.0 * image.shape[0] * math.prod(seen.resampled)
            check_memory(needed, f"it is resampled to {dimensions(seen.resampled)} voxels")
        except DataError as error:
            add("memory", "error", str(error))
    if affine is not None and image.ndim == 3 and preset.orientation is not None:
        import nibabel as nib

        codes = nib.orientations.aff2axcodes(affine)[:2]
        if not {str(code) for code in codes} <= set("RLAP"):
            text = f"a picture in space must lie in the plane of R/L and A/P to be brought to {preset.orientation}"
            told = "".join(code or "?" for code in codes)
            add("plane", "error", f"{text}, got the axes {told}: set 'orientation: null' in the preset")
    if not _image_findings(image, preset, None if seen is None else seen.shape, add):
        return found
    if label is not None:
        _label_findings(_to_numpy(label), image.shape[1:], preset, add_label)
        if label_affine is None and affine is not None:
            text = "label states no place in space, and its image does"
            add_label("no_affine", "warning", f"{text}: its axes are taken to be the image's; is it so?")
        if label_affine is not None and affine is None and valid_affine(label_affine):
            text = "label states a place in space, and its image does not"
            add_label("no_affine", "warning", f"{text}: its axes are taken to be the image's as stored; is it so?")
        if not same_affine(label_affine, affine):
            text = "label must be on its image's grid, got an affine that differs"
            advice = "resample the label to the image, or copy the image's header if only the header is wrong"
            add_label("affine", "error", f"{text} ({affine_difference(label_affine, affine)}): {advice}")
    return found


def _image_findings(image: np.ndarray, preset: Preset, shape: Sequence[float] | None, add: _Add) -> bool:
    """Rules of the image; False where its axes make further ones meaningless."""
    dims, channels = preset.spatial_dims, list(preset.channels)
    spatial = image.shape[1:]
    # a 2D network goes through a volume slice by slice
    if len(spatial) not in ((3,) if dims == 3 else (2, 3)):
        allowed = "3" if dims == 3 else "2 or 3"
        text = f"image must have {allowed} spatial axes, got shape {spatial}"
        add("dims", "error", f"{text}: write one file per time frame and channel, or choose another preset")
        return False
    if image.shape[0] != len(channels):
        add(
            "channels",
            "error",
            f"image must have {len(channels)} channel(s) ({', '.join(channels)}), got {image.shape[0]} with shape "
            f"{spatial}: give one {dims}D file per channel, or correct 'channels' in the preset",
        )
    if 0 in image.shape:
        add("empty_image", "error", f"image must have voxels, got shape {spatial}: export it again")
        return False
    if image.dtype.kind == "f" and (bad := int(image.size - np.isfinite(image).sum())):
        add(
            "finite",
            "error",
            f"image must be finite, got {bad} NaN or infinite voxels: replace them or leave the case out",
        )
    else:
        constant = [index for index in range(image.shape[0]) if image[index].min() == image[index].max()]
        value = image[constant[0]].flat[0] if constant else 0
        if len(constant) == image.shape[0]:
            add("constant", "error", f"image must show something, got {value:g} in every voxel: leave the case out")
        elif constant:
            add("constant", "warning", f"channel {constant[0]} has {value:g} in every voxel: is the channel missing?")
        _intensity_findings(image, preset.intensity, add)
    effective = tuple(spatial if shape is None else shape)[:dims]
    if any(round(size) < patch for size, patch in zip(effective, preset.patch_size, strict=True)):
        sizes = tuple(round(size) for size in effective)
        what = "volume" if dims == 3 else "slice"
        text = f"{what} {sizes} is smaller than the patch {tuple(preset.patch_size)} and will be padded"
        add("patch", "warning", f"{text}: choose a smaller patch_size if most cases are so small")
    return True


def _intensity_findings(image: np.ndarray, intensity: Intensity, add: _Add) -> None:
    """Gray values that the preset's intensity policy cannot be meant for."""
    policy, window = intensity.policy, intensity.window
    low, high = float(image.min()), float(image.max())
    if window is not None and (high <= window[0] or low >= window[1]):
        text = f"image must have voxels within the window {list(window)}, got {low:g} to {high:g}"
        add("intensity", "error", f"{text}: is it a CT in Hounsfield units? Else choose another intensity policy")
    if policy == "as_stored" and high - low > 500:
        # z-scores and values in [0, 1] span far less
        text = f"gray values from {low:g} to {high:g} go into the network as stored"
        add("intensity", "warning", f"{text}: normalize the files, or choose another flavor or intensity policy")


def _label_findings(label: np.ndarray, spatial: tuple[int, ...], preset: Preset, add: _Add) -> None:
    if label.ndim == len(spatial) + 1:
        if label.shape[0] != 1:
            text = f"label must hold one value per voxel, got {label.shape[0]} channels"
            add("label_channels", "error", f"{text}: merge them into one label map")
            return
        label = label[0]
    if label.shape != spatial:
        text = f"label must have the shape of its image, {spatial}, got {label.shape}"
        add("shape", "error", f"{text}: resample the label to the image's grid")
        return
    _value_findings(label, preset, add)


def label_findings(label: Any, preset: Preset) -> list[Finding]:
    """:func:`case_findings` of the values of a label alone.

    Args:
        label: label map of any shape.
        preset: the dataset preset.

    Example:
        >>> preset = Preset(name="x", spatial_dims=2, labels={0: "background", 1: "organ"}, patch_size=(16, 16))
        >>> [finding.rule for finding in label_findings(np.array([[0, 7]]), preset)]
        ['values']
    """
    found: list[Finding] = []
    _value_findings(_to_numpy(label), preset, lambda rule, severity, message: found.append(
        Finding(rule, severity, message, "label")))  # fmt: skip
    return found


def _value_findings(label: np.ndarray, preset: Preset, add: _Add) -> None:
    values = np.unique(label)
    allowed = sorted(int(value) for value in preset.labels)
    if preset.ignore_label is not None:
        values = values[values != IGNORE_LABEL]
        if _ignored_finding(label, preset.ignore_label, add):
            return
    if label.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(values, np.round(values))):
        odd = [float(value) for value in values if not (np.isfinite(value) and value == np.round(value))]
        text = f"label must hold integers, got {', '.join(f'{value:g}' for value in odd[:5])}"
        more = f" and {len(odd) - 5} more values" if len(odd) > 5 else ""
        add("integer", "error", f"{text}{more}: was it interpolated? Resample it with nearest neighbor")
        return
    outside = [int(value) for value in values if int(value) not in allowed]
    if outside:
        shown = ", ".join(map(str, outside[:8])) + (f" and {len(outside) - 8} more" if len(outside) > 8 else "")
        text = f"label values must be among the preset's classes {allowed}, got {shown}"
        found = [int(value) for value in values]
        advice = f", or set label_map: {{{map_advice(found)}}}" if len(found) == len(allowed) else ""
        if preset.ignore_label is None and len(outside) == 1:
            advice += f", or, if nobody knows the class of these voxels, ignore_label: {outside[0]}"
        add("values", "error", f"{text}: correct 'labels' in the preset{advice}, or remap the label")
    elif len(values) == 1 and int(values[0]) == 0:
        add("empty_label", "warning", "label is empty, background only: is the structure really absent?")


def _ignored_finding(label: np.ndarray, ignore_label: int, add: _Add) -> bool:
    """Rules of voxels that nobody knows; True where there are no others."""
    share = ignored_share(label)
    if share == 1.0:
        text = f"label must know the class of some voxel, got ignore_label {ignore_label} in every one"
        add("all_ignored", "error", f"{text}: label some, or move the case to 'unlabeled'")
    elif share > MOST_IGNORED:
        text = f"{_percent(share)} of the voxels are ignored"
        add("most_ignored", "warning", f"{text}: is ignore_label {ignore_label} the right value?")
    return share == 1.0


def ignored_share(label: np.ndarray) -> float:
    """Share of the voxels of a label, as it was read, whose class nobody knows.

    Example:
        >>> ignored_share(np.array([0, 1, IGNORE_LABEL, IGNORE_LABEL]))
        0.5
    """
    return float(np.count_nonzero(label == IGNORE_LABEL)) / max(label.size, 1)


def ignored_sentence(ignored: Mapping[str, tuple[int, int]]) -> str:
    """How much of some labels is ignored; empty where nothing is.

    Args:
        ignored: case -> ignored voxels and all voxels, of every label that has ignored ones.

    Example:
        >>> ignored_sentence({"a.nii": (100, 1000), "b.nii": (800, 1000)})
        'ignored: 900 voxels of 2 labels, 45 % of theirs (10 to 80 %)'
    """
    if not ignored:
        return ""
    shares = sorted(100 * few / max(every, 1) for few, every in ignored.values())
    some, every = (sum(pair[k] for pair in ignored.values()) for k in (0, 1))
    low, high = figure(shares[0]), figure(shares[-1])
    span = f" ({low} to {high} %)" if low != high else ""
    return f"ignored: {some:,} voxels of {plural(len(shares), 'label')}, {figure(100 * some / every)} % of theirs{span}"


def _percent(share: float) -> str:
    """Never 100 % of what is not all."""
    return f"{min(100 * share, 99.9):.1f} %"


def map_advice(values: Sequence[int]) -> str:
    """Stored values of a label, numbered as classes without gap.

    Example:
        >>> map_advice([0, 255])
        '255: 1'
    """
    return ", ".join(f"{value}: {index}" for index, value in enumerate(sorted(values)) if value != index)

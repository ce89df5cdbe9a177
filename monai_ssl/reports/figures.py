"""Pictures of results, drawn with matplotlib's object interface: no display, no global state, safe in any thread."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from monai_ssl.files import write_atomically
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.metrics.overlap import to_array
from monai_ssl.metrics.surface import check_spacing
from monai_ssl.reports.letters import choose_fonts

__all__ = [
    "CLASS_COLORS",
    "REFERENCE_COLOR",
    "class_color",
    "comparison_figure",
    "draw_outline",
    "draw_slice",
    "figure_png",
    "largest_slice",
    "new_figure",
    "overlay_figure",
    "upright",
]

# Okabe and Ito's palette: apart for every common form of color blindness
CLASS_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2")
REFERENCE_COLOR = "#F0E442"
# pictures in a row
PANELS = 6
# of the PNG files: more than a screen has, for those that show two dots where a page counts one
DPI = 160
INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e7eb"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` × ``height`` inches on an Agg canvas."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Figure, dpi: int = DPI) -> bytes:
    """Render ``figure`` as PNG.

    Args:
        figure: a matplotlib figure.
        dpi: dots per inch.

    Returns:
        The bytes of a PNG file.

    Example:
        >>> figure_png(new_figure(1, 1))[:4]
        b'\\x89PNG'
    """
    choose_fonts(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.06)  # tight: long titles stay whole
    return buffer.getvalue()


def style_axes(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Give a plot the quiet look of the report."""
    axes.set_title(plain_text(title), loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel(plain_text(xlabel), fontsize=9, color=MUTED)
    axes.set_ylabel(plain_text(ylabel), fontsize=9, color=MUTED)
    axes.tick_params(which="both", labelsize=8.5, colors=MUTED, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color("#c3cad2")


def plain_text(value: str) -> str:
    """Keep matplotlib from reading ``$`` in a name as the start of a formula."""
    return str(value).replace("$", r"\$")


def _spatial(name: str, value: Any) -> np.ndarray:
    """Drop leading axes of size 1 (channel, batch) until the array is 2D or 3D."""
    array = to_array(value)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must have shape (X, Y) or (X, Y, Z), got shape {to_array(value).shape}")
    return array


def largest_slice(masks: Sequence[np.ndarray], axis: int = -1) -> int:
    """Index along ``axis`` of the slice with most foreground, by the first mask that has any; else the middle one.

    Where several slices are equally full, the middle one of them is taken.

    Example:
        >>> mask = np.zeros((4, 4, 9), int)
        >>> mask[1:3, 1:3, 2:7] = 1
        >>> largest_slice([mask])
        4
    """
    axis = axis % masks[0].ndim
    for mask in masks:
        area = (mask != 0).sum(axis=tuple(other for other in range(mask.ndim) if other != axis))
        if area.any():
            best = np.flatnonzero(area == area.max())
            return int(best[len(best) // 2])
    return masks[0].shape[axis] // 2


def _crop(masks: Sequence[np.ndarray], aspect: tuple[float, float]) -> tuple[slice, slice]:
    """A window around all outlines, near square in millimeters and at least half of the slice."""
    shape = masks[0].shape
    union = np.any([mask != 0 for mask in masks], axis=0)
    if not union.any():
        return slice(0, shape[0]), slice(0, shape[1])
    bounds = [np.flatnonzero(union.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    half_mm = max(
        *((high - low + 1) * step * 0.75 for (low, high), step in zip(bounds, aspect, strict=True)),
        0.25 * max(size * step for size, step in zip(shape, aspect, strict=True)),
    )
    window = []
    for (low, high), step, size in zip(bounds, aspect, shape, strict=True):
        center, half = (low + high + 1) / 2, half_mm / step
        start = int(np.clip(round(center - half), 0, max(0, size - round(2 * half))))
        window.append(slice(start, min(size, start + max(1, round(2 * half)))))
    return window[0], window[1]


def upright(array: np.ndarray, affine: np.ndarray | None) -> tuple[np.ndarray, list[float] | None, tuple[str, ...]]:
    """Turn a volume so that its axes run to the patient's right, front and head, as nearly as whole turns allow.

    A picture, which states no place in space, is turned as viewers show it: :func:`draw_slice` draws from below.

    Args:
        array: shape (X, Y) or (X, Y, Z).
        affine: of the file; None where the format states no place in space.

    Returns:
        The array; its spacing, one value per axis (None without affine); and the directions of its axes, low end
        before high end ("LR", "PA", "IS"): empty in 2D and without affine.

    Example:
        >>> mask = np.zeros((4, 3, 2))
        >>> mask[0] = 1
        >>> turned, spacing, directions = upright(mask, np.diag([-1.0, 1.0, 2.5, 1.0]))
        >>> bool(turned[3].all()), spacing, directions
        (True, [1.0, 1.0, 2.5], ('LR', 'PA', 'IS'))
    """
    if affine is None:
        return array[:, ::-1] if array.ndim == 2 else array, None, ()
    if array.ndim != 3:
        return array, [float(step) for step in nib.affines.voxel_sizes(affine)[: array.ndim]], ()
    orientation = nib.orientations.io_orientation(affine)
    steps = nib.affines.voxel_sizes(affine)
    spacing = [float(steps[int(axis)]) for axis in np.argsort(orientation[:, 0])]
    return nib.orientations.apply_orientation(array, orientation), spacing, ("LR", "PA", "IS")


def draw_slice(
    axes: Axes, image: np.ndarray, aspect: tuple[float, float], title: str = "", directions: Sequence[str] = ()
) -> None:
    """Show one 2D slice in gray, first array axis to the right and second one up.

    Args:
        axes: to draw on.
        image: shape (X, Y).
        aspect: size of a pixel along both axes.
        title: over the picture.
        directions: letters of the ends of both axes, e.g. ("LR", "PA"); written at the edges.
    """
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [1, 99.5]) if finite.size else (0.0, 1.0)
    axes.imshow(
        image.T.astype(np.float64),
        cmap="gray",
        vmin=low,
        vmax=high if high > low else low + 1,
        origin="lower",
        aspect=aspect[1] / aspect[0],
        interpolation="nearest",
    )
    axes.set_axis_off()
    if directions:
        places = ((0.04, 0.5), (0.96, 0.5), (0.5, 0.05), (0.5, 0.95))
        for letter, (x, y) in zip("".join(directions), places, strict=True):
            halo = [patheffects.Stroke(linewidth=2, foreground="#000000b0"), patheffects.Normal()]
            axes.text(x, y, letter, transform=axes.transAxes, ha="center", va="center", fontsize=8, color="white",
                      path_effects=halo)  # fmt: skip
    if title:
        axes.set_title(plain_text(title), fontsize=9.5, color=INK)


def draw_outline(axes: Axes, mask: np.ndarray, color: str, dashed: bool = False, level: float = 0.5) -> None:
    """Draw the outline of a 2D mask with a dark halo, so that it reads on any gray; a higher level draws it inside."""
    if not mask.any():
        return
    padded = np.pad(mask.astype(float), 1)  # closes the outline of a structure that the border cuts
    positions = [np.arange(-1, size + 1) for size in mask.shape]
    contours = axes.contour(
        *positions,
        padded.T,
        levels=[level],
        colors=[color],
        linewidths=1.7 if level == 0.5 else 1.3,
        linestyles="dashed" if dashed else "solid",
    )
    contours.set_path_effects(
        [patheffects.Stroke(linewidth=3.0 if level == 0.5 else 2.2, foreground="#000000b0"), patheffects.Normal()]
    )
    axes.set_xlim(-0.5, mask.shape[0] - 0.5)  # drawing a contour widens the view
    axes.set_ylim(-0.5, mask.shape[1] - 0.5)


def shade_ignored(axes: Axes, ignored: np.ndarray) -> Patch:
    """Hatch the voxels of a slice whose class nobody knows; what a legend needs to say so.

    Args:
        axes: to draw on.
        ignored: mask, shape (X, Y).
    """
    style: dict[str, Any] = {"facecolor": "#00000000", "edgecolor": "#c3cad2", "hatch": "///", "linewidth": 0}
    if ignored.any():
        positions = [np.arange(-1, size + 1) for size in ignored.shape]
        padded = np.pad(ignored.astype(float), 1)
        drawn = axes.contourf(*positions, padded.T, levels=[0.5, 1.5], colors=["#00000030"], hatches=["///"])
        drawn.set_edgecolor("#c3cad2")
        drawn.set_linewidth(0)
        axes.set_xlim(-0.5, ignored.shape[0] - 0.5)  # as after a contour
        axes.set_ylim(-0.5, ignored.shape[1] - 0.5)
    return Patch(label="not labeled, ignored", **style)


def classes_in(*masks: np.ndarray | None) -> list[int]:
    """Foreground values that occur in the masks."""
    return sorted({int(value) for mask in masks if mask is not None for value in np.unique(mask)} - {0})


def class_color(value: int) -> str:
    """Outline color of a class: the same in every picture."""
    return CLASS_COLORS[(value - 1) % len(CLASS_COLORS)]


def outline_pair(axes: Axes, label: np.ndarray | None, prediction: np.ndarray | None, values: Sequence[int]) -> None:
    """Outline label and prediction: by color for one class, by dash (label) and color (class) for several."""
    level = 0.5 if len(values) == 1 else 0.75  # classes that touch keep two lines between them
    union = (
        label if prediction is None else prediction if label is None else np.where(prediction > 0, prediction, label)
    )
    if union is None:
        return
    # large classes first: the outline of an inner one stays on top of that around it
    for value in sorted(values, key=lambda item: -int((union == item).sum())):
        if label is not None:
            color = REFERENCE_COLOR if len(values) == 1 else class_color(value)
            draw_outline(axes, label == value, color, dashed=len(values) > 1, level=level)
        if prediction is not None:
            color = CLASS_COLORS[0] if len(values) == 1 else class_color(value)
            draw_outline(axes, prediction == value, color, level=level)


def outline_legend(values: Sequence[int], labels: Mapping[int, str] | None, has_label: bool = True) -> list[Line2D]:
    """Legend entries that go with :func:`outline_pair`."""
    entries: list[tuple[str, str, Literal["-", "--"]]]
    if len(values) <= 1:
        entries = [("reference label", REFERENCE_COLOR, "-")] if has_label else []
        entries.append(("prediction", CLASS_COLORS[0], "-"))
    else:
        entries = [("reference label", MUTED, "--")] if has_label else []
        entries.append(("prediction", MUTED, "-"))
        entries += [(str((labels or {}).get(value, f"class {value}")), class_color(value), "-") for value in values]
    return [
        Line2D(
            [], [], color=color, linestyle=style, linewidth=2.2, label=plain_text(text),
            path_effects=[patheffects.Stroke(linewidth=3.4, foreground="#000000b0"), patheffects.Normal()],
        )
        for text, color, style in entries
    ]  # fmt: skip


def comparison_figure(
    image: Any,
    label: Any | None,
    predictions: Mapping[str, Any],
    spacing: Sequence[float] | None = None,
    labels: Mapping[int, str] | None = None,
    directions: Sequence[str] = (),
) -> Figure:
    """The image, then label and prediction outlines of each run, side by side on one slice.

    Args:
        image: shape (X, Y) or (X, Y, Z); leading axes of size 1 are dropped, and of several channels (one axis more
            than the masks) the first is shown.
        label: integer label map of the image's shape, or None. Voxels of value
            :data:`~monai_ssl.labels.IGNORE_LABEL`, unless ``labels`` names it, are hatched.
        predictions: integer label maps by panel title.
        spacing: voxel size, one value per axis; sets the aspect of the picture.
        labels: class names by value, for the legend.
        directions: letters of the ends of every axis, see :func:`upright`.

    Returns:
        The figure; in 3D, of the slice along the last axis with the largest label.

    Raises:
        ValueError: if shapes differ or are neither 2D nor 3D.

    Example:
        >>> len(comparison_figure(np.zeros((8, 8)), None, {"run": np.eye(8, dtype=int)}).axes)
        2
    """
    truth = None if label is None else _spatial("label", label)
    masks = {name: _spatial("prediction", value) for name, value in predictions.items()}
    every = ([] if truth is None else [truth]) + list(masks.values())
    picture = to_array(image)
    if every:
        while picture.ndim > every[0].ndim:  # leading batch and channel axes: the first of each is shown
            picture = picture[0]
    picture = _spatial("image", picture)
    for array in every:
        if array.shape != picture.shape:
            raise ValueError(f"image and masks must have the same shape, got {picture.shape} and {array.shape}")
    unknown = None
    if truth is not None and IGNORE_LABEL not in (labels or {}) and (truth == IGNORE_LABEL).any():
        unknown, truth = truth == IGNORE_LABEL, np.where(truth == IGNORE_LABEL, 0, truth)
        every[0] = truth
    values = classes_in(*every)
    steps = check_spacing(spacing, picture.ndim).tolist()
    if picture.ndim == 3:
        index = largest_slice(every or [np.zeros(picture.shape, dtype=int)])
        picture = picture[..., index]
        truth = None if truth is None else truth[..., index]
        unknown = None if unknown is None else unknown[..., index]
        masks = {name: mask[..., index] for name, mask in masks.items()}
    aspect = (steps[0], steps[1])
    every = ([] if truth is None else [truth]) + list(masks.values())
    window = _crop(every, aspect) if every else (slice(None), slice(None))
    picture = picture[window]
    ratio = picture.shape[1] * aspect[1] / (picture.shape[0] * aspect[0])
    size = 2.7
    lines = max((name.count("\n") + 1 for name in masks), default=1)
    columns = min(1 + len(masks), PANELS)
    rows = -(-(1 + len(masks)) // columns)
    height = rows * (min(6.0, max(1.2, size * ratio)) + 0.2 * lines) + (0.45 if masks else 0.1)
    figure = new_figure(size * columns, height)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    shaded: list[Patch] = []
    draw_slice(panels[0], picture, aspect, "image", directions[:2])
    for axes, (name, mask) in zip(panels[1:], masks.items(), strict=False):
        draw_slice(axes, picture, aspect, name, directions[:2])
        if unknown is not None:
            shaded = [shade_ignored(axes, unknown[window])]
        outline_pair(axes, None if truth is None else truth[window], mask[window], values)
    for axes in panels[1 + len(masks) :]:
        axes.set_visible(False)
    if masks:
        handles = [*outline_legend(values, labels, truth is not None), *shaded]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8.5, frameon=False
        )
    return figure


def overlay_figure(
    image: Any,
    label: Any | None,
    prediction: Any | None,
    path: str | os.PathLike[str] | None = None,
    spacing: Sequence[float] | None = None,
    labels: Mapping[int, str] | None = None,
    directions: Sequence[str] = (),
) -> Figure:
    """Picture one case: the image, and next to it the outlines of label and prediction on it.

    In 3D the slice with the largest label (else the largest prediction) is shown. One class: label yellow, prediction
    blue. Several: one color per class, label dashed. Color-blind readers can tell the colors apart. Works on
    tensors straight from a training batch, for previews while training.

    Args:
        image: shape (X, Y) or (X, Y, Z), after an optional channel axis (the first channel is shown).
        label: integer label map, or None (an unlabeled case).
        prediction: integer label map (not logits), or None.
        path: PNG file to write; its folder is created.
        spacing: voxel size, one value per axis; sets the aspect of the picture.
        labels: class names by value, for the legend.
        directions: letters of the ends of every axis, see :func:`upright`.

    Returns:
        The matplotlib figure (an ``SummaryWriter.add_figure`` takes it as it is).

    Raises:
        ValueError: if shapes differ or are neither 2D nor 3D.

    Example:
        >>> mask = np.zeros((16, 16, 8), dtype=int)
        >>> mask[4:12, 4:12, 2:6] = 1
        >>> figure = overlay_figure(np.random.rand(16, 16, 8), mask, mask)
    """
    panel = "label and prediction" if label is not None else "prediction"
    if prediction is None and label is not None:
        panel, predictions = "label", {"label": np.zeros_like(to_array(label))}
    else:
        predictions = {} if prediction is None else {panel: prediction}
    figure = comparison_figure(image, label, predictions, spacing, labels, directions)
    if path is not None:
        write_atomically({Path(path): figure_png(figure)})
    return figure

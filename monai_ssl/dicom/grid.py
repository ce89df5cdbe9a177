"""From places of slices to one regular grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_ssl.dicom.slices import Slice
from monai_ssl.errors import DataError

# DICOM's axes run to the left and the back, NIfTI's to the right and the front
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# of a step: how far a slice may lie from its place on the regular grid
DEVIATION = 0.1
# mm: what rounding to 0.1 mm does, as long as it is little of a step
ROUNDED, OF_A_STEP = 0.06, 0.2
# tangent of the angle between the slices' axis and their normal: 0.57 degrees
SHEAR = 0.01
EXACT = 1e-4


def arrange(root: Path, slices: list[Slice], tolerance: float) -> tuple[list[Slice], np.ndarray, list[str]]:
    """Slices in the order of their places, the affine (4, 4) from indices to RAS millimeters, and what was evened out.

    Args:
        root: names the series in messages.
        slices: of one series.
        tolerance: by how much of a step the distance of two slices may differ from the others'.

    Raises:
        DataError: for slices that differ, lie at one place, have gaps, or are shifted against each other.
    """
    x, y = _plane(root, slices)
    normal = np.cross(x, y)
    if len(slices) < 2:
        raise DataError(f"dicom: {root} holds 1 slice; a volume needs at least 2")
    positions = np.array([item.position for item in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[k] for k in order], positions[order]
    notes = _regular(root, positions @ normal, tolerance)
    along, origin, shift = _axis(positions, normal)
    notes += shift
    spacing = slices[0].spacing
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = x * spacing[1], y * spacing[0], along, origin
    return slices, LPS_TO_RAS @ lps, notes


def _plane(root: Path, slices: list[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """The two directions that all slices share."""
    first = slices[0]
    for item in slices[1:]:
        equal = {
            "size": item.shape == first.shape,
            "ImageOrientationPatient": np.allclose(item.orientation, first.orientation, atol=1e-3),
            "PixelSpacing": np.allclose(item.spacing, first.spacing, rtol=1e-3),
        }
        for what, same in equal.items():
            if not same:
                raise DataError(f"dicom: slices of {root} differ in {what}; is a localizer among them? Remove it")
    x, y = first.orientation[:3], first.orientation[3:]
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(x @ y) > 1e-2:
        raise DataError(
            "dicom: ImageOrientationPatient must hold two perpendicular unit vectors; export the series again"
        )
    if abs(x @ y) > EXACT or not np.allclose(lengths, 1, atol=EXACT):  # rounded in the header
        x = x / lengths[0]
        y = y - (x @ y) * x
        y = y / np.linalg.norm(y)
    return x, y


def _regular(root: Path, places: np.ndarray, tolerance: float) -> list[str]:
    """A gap is a whole step; headers round, tables tremble."""
    steps = np.diff(places)
    if steps.min() < 1e-3:
        raise DataError(
            f"dicom: {root} holds several slices at one place (phases, echoes, time points?); choose one volume of them"
        )
    step = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower median: of two steps, the one without a gap
    mean = (places[-1] - places[0]) / len(steps)
    if np.abs(steps - step).max() <= tolerance * step:
        return []
    slope, start = np.polyfit(np.arange(len(places)), places, 1)
    deviation = np.abs(places - (start + slope * np.arange(len(places)))).max()
    if deviation <= min(max(DEVIATION * mean, ROUNDED), OF_A_STEP * mean):
        return [f"slices lie up to {deviation:.2g} mm beside a regular grid of {mean:.4g} mm: taken as regular"]
    wide = int(steps.argmax())
    if steps[wide] > 1.5 * step:
        raise DataError(
            f"dicom: {root} is incomplete: slices are {step:g} mm apart, but {steps[wide]:g} mm between the slices "
            f"{wide + 1} and {wide + 2} of {len(places)}; export the whole series"
        )
    raise DataError(
        f"dicom: {root} must have slices at equal distances, but they are {steps.min():.4g} to {steps.max():.4g} mm "
        "apart; resample the series first"
    )


def _axis(positions: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The step from slice to slice, the first one's place, and a note where the slices were pushed straight.

    From the first to the last one: that evens out what the header rounds.
    """
    count = len(positions) - 1
    along = (positions[-1] - positions[0]) / count
    normal = normal / np.linalg.norm(normal)
    straight = (along @ normal) * normal
    shear = float(np.linalg.norm(along - straight) / np.linalg.norm(straight))
    degrees = np.degrees(np.arctan(shear))
    if shear > SHEAR:
        raise DataError(
            f"dicom: slices are shifted against each other by {degrees:.3g} degrees (tilted gantry); resample the "
            "series first"
        )
    if shear <= EXACT:
        return along, positions[0], []
    # a sheared grid is no image for most readers; straight through the middle no slice is off by more than half
    shift = float(np.linalg.norm(along - straight)) * count / 2
    origin = positions[0] + (along - straight) * count / 2
    note = f"slices are shifted against each other by {degrees:.2g} degrees (up to {shift:.2g} mm): taken as straight"
    return straight, origin, [note]

"""Check a dataset before training: every file, header and label, and whether the lists leak into each other."""

from __future__ import annotations

import gzip
import hashlib
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import nibabel as nib
import numpy as np
from tqdm import tqdm

from .datalist import SECTIONS, DataError, Datalist, Entry, image_files

__all__ = ["PresetLike", "Problem", "Severity", "case_problems", "read_volume", "verify"]

Severity = Literal["error", "warning"]

AFFINE_TOLERANCE = 1e-3
# equal warnings beyond this many become one line
MAX_EQUAL_WARNINGS = 5


class PresetLike(Protocol):
    """What a check needs to know of a dataset preset."""

    @property
    def spatial_dims(self) -> int: ...
    @property
    def channels(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Mapping[int, str]: ...
    @property
    def patch_size(self) -> Sequence[int]: ...
    @property
    def orientation(self) -> str | None: ...
    @property
    def spacing(self) -> Sequence[float] | None: ...


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or worth knowing, about one case or the whole dataset.

    Attributes:
        severity: "error" (training would fail or mislead) or "warning".
        section: list of the case, or "dataset".
        file: the file concerned.
        message: the rule, the value found and the next step.
        rule: short key of the rule, for programs.

    Example:
        >>> str(Problem("error", "training", "/d/a.nii.gz", "file must exist: check the path"))
        'error: training: /d/a.nii.gz: file must exist: check the path'
    """

    severity: Severity
    section: str
    file: str
    message: str
    rule: str = ""

    def __str__(self) -> str:
        text = f"{self.severity}: {self.section}: {self.file}: {self.message}"
        return text.translate({10: " ", 13: " "})


# ------------------------------------------------------------------------------------------------- reading one file


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read one image file to the end, with its checksum, as MONAI's ``LoadImage`` would.

    Args:
        path: a NIfTI file, or anything that ``LoadImage`` reads.

    Returns:
        The voxels, channel first (C, X, Y[, Z]), and the affine (4, 4), None where the format has none.

    Raises:
        DataError: if the file is missing, empty, truncated, corrupt, of an unknown format, or has more than 4 axes.

    Example:
        >>> array, affine = read_volume("scan.nii.gz")  # doctest: +SKIP
    """
    file = Path(path)
    if not file.exists():
        raise DataError("file must exist, but there is none: check the path in the datalist")
    if file.is_file() and file.stat().st_size == 0:
        raise DataError("file must not be empty, got 0 bytes: copy or export it again")
    try:
        if file.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img")):
            return _read_nifti(file)
        return _read_other(file)
    except DataError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"file must be complete, but it is truncated or corrupt ({_line(error)}): copy it again"
        ) from error
    except PermissionError as error:
        raise DataError("file must be readable, but access is denied: check its permissions") from error
    except Exception as error:  # readers raise whatever they like
        text = _line(error)
        if ("Expected" in text and "bytes" in text) or "buffer is" in text or "unpack requires" in text:
            raise DataError(f"file must be complete, but it is truncated ({text}): copy it again") from error
        raise DataError(
            f"file must be an image that MONAI reads, got: {text}; convert it to NIfTI (.nii.gz)"
        ) from error


def _line(error: BaseException, limit: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _read_nifti(file: Path) -> tuple[np.ndarray, np.ndarray]:
    if file.name.lower().endswith(".nii.gz"):
        with open(file, "rb") as stream:
            if stream.read(2) != b"\x1f\x8b":
                raise DataError(
                    "file must be gzip-compressed as .nii.gz says, got other bytes: rename or export it again"
                )
        # nibabel stops at the last voxel and never sees the checksum behind it
        with gzip.open(file) as stream:
            content = stream.read()
        kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else nib.Nifti1Image
        try:
            image: Any = kind.from_bytes(content)
        except nib.filebasedimages.ImageFileError as error:
            raise DataError(f"file must be NIfTI as its name says, got: {_line(error)}; export it again") from error
    else:
        image = nib.load(file)
    shape = image.shape
    if len(shape) > 4:
        raise DataError(f"image must have at most 4 axes (x, y, z, channel), got shape {shape}: split it into files")
    array = np.asarray(image.dataobj)
    if array.dtype.fields or array.dtype.kind not in "biuf":
        raise DataError(f"image must hold real numbers, got {array.dtype}: export grey values, one file per channel")
    affine = np.asarray(image.affine, dtype=np.float64)
    return (np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]), affine


def _read_other(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    from monai.transforms import LoadImage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = LoadImage(image_only=True, dtype=None, ensure_channel_first=True)(str(file))
        except RuntimeError as error:
            reason = "no installed reader takes it" if "cannot find a suitable reader" in str(error) else _line(error)
            raise DataError(
                f"file must be an image that MONAI reads, but {reason}: is it complete? Else convert it to NIfTI"
            ) from error
    # images such as PNG state no place in space
    stated = file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy", ".npz")
    affine = np.asarray(image.affine, dtype=np.float64) if stated else None
    return np.asarray(image.cpu().numpy()), affine


# ------------------------------------------------------------------------------------------------- the rules, once


@dataclass(frozen=True)
class _Finding:
    rule: str
    severity: Severity
    message: str


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if not value.dtype.is_floating_point or value.dtype.itemsize >= 4:
            return value.numpy()
        return value.float().numpy()
    return np.asarray(value)


def _findings(image: Any, label: Any, preset: PresetLike, shape: Sequence[float] | None = None) -> list[_Finding]:
    image = _to_numpy(image)
    found: list[_Finding] = []

    def add(rule: str, severity: Severity, message: str) -> None:
        found.append(_Finding(rule, severity, message))

    dims, channels = preset.spatial_dims, list(preset.channels)
    spatial = image.shape[1:]
    # a 2D network goes through a volume slice by slice
    if len(spatial) not in ((3,) if dims == 3 else (2, 3)):
        allowed = "3" if dims == 3 else "2 or 3"
        text = f"image must have {allowed} spatial axes, got shape {spatial}"
        add("dims", "error", f"{text}: write one file per time frame and channel, or choose another preset")
        return found
    if image.shape[0] != len(channels):
        add(
            "channels",
            "error",
            f"image must have {len(channels)} channel(s) ({', '.join(channels)}), got {image.shape[0]} with shape "
            f"{spatial}: give one 3D file per channel, or correct 'channels' in the preset",
        )
    if 0 in image.shape:
        add("empty_image", "error", f"image must have voxels, got shape {spatial}: export it again")
        return found
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
        _intensity_findings(image, getattr(preset, "intensity", None), add)
    effective = tuple(spatial if shape is None else shape)[:dims]
    if any(round(size) < patch for size, patch in zip(effective, preset.patch_size, strict=True)):
        sizes = tuple(round(size) for size in effective)
        what = "volume" if dims == 3 else "slice"
        text = f"{what} {sizes} is smaller than the patch {tuple(preset.patch_size)} and will be padded"
        add("patch", "warning", f"{text}: choose a smaller patch_size if most cases are so small")
    if label is not None:
        _label_findings(_to_numpy(label), spatial, preset, add)
    return found


def _intensity_findings(image: np.ndarray, intensity: Any, add: Callable[[str, Severity, str], None]) -> None:
    """Grey values that the preset's intensity policy cannot be meant for."""
    policy, window = getattr(intensity, "policy", None), getattr(intensity, "window", None)
    low, high = float(image.min()), float(image.max())
    if window is not None and (high <= window[0] or low >= window[1]):
        text = f"image must have voxels within the window {list(window)}, got {low:g} to {high:g}"
        add("intensity", "error", f"{text}: is it a CT in Hounsfield units? Else choose another intensity policy")
    if policy == "as_stored" and high - low > 500:
        # z-scores and values in [0, 1] span far less
        text = f"grey values from {low:g} to {high:g} go into the network as stored"
        add("intensity", "warning", f"{text}: normalise the files, or choose another flavour or intensity policy")


def _label_findings(
    label: np.ndarray, spatial: tuple[int, ...], preset: PresetLike, add: Callable[[str, Severity, str], None]
) -> None:
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
    values = np.unique(label)
    allowed = sorted(int(value) for value in preset.labels)
    if label.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(values, np.round(values))):
        odd = [float(value) for value in values if not (np.isfinite(value) and value == np.round(value))]
        text = f"label must hold integers, got {', '.join(f'{value:g}' for value in odd[:5])}"
        more = f" and {len(odd) - 5} more values" if len(odd) > 5 else ""
        add("integer", "error", f"{text}{more}: was it interpolated? Resample it with nearest neighbour")
        return
    outside = [int(value) for value in values if int(value) not in allowed]
    if outside:
        shown = ", ".join(map(str, outside[:8])) + (f" and {len(outside) - 8} more" if len(outside) > 8 else "")
        text = f"label values must be among the preset's classes {allowed}, got {shown}"
        add("values", "error", f"{text}: remap the label or correct 'labels' in the preset")
    elif len(values) == 1 and int(values[0]) == 0:
        add("empty_label", "warning", "label is empty, background only: is the structure really absent?")


def case_problems(
    image: Any, label: Any, preset: PresetLike, shape: Sequence[float] | None = None
) -> list[tuple[Severity, str]]:
    """What is wrong with one loaded case. The rules live here once, for :func:`verify` and for the training cache.

    Args:
        image: array or tensor, channel first, (C, X, Y[, Z]).
        label: label map, (1, X, Y[, Z]) or (X, Y[, Z]); None for an unlabelled case.
        preset: the dataset preset.
        shape: spatial shape after reorientation and resampling, where ``image`` is not there yet; compared with
            ``preset.patch_size``. None takes the image's.

    Returns:
        (severity, message) pairs: rule, value found, next step. Empty where all is well.

    Example:
        >>> from types import SimpleNamespace
        >>> preset = SimpleNamespace(spatial_dims=2, channels=["MR"], labels={0: "background", 1: "organ"},
        ...                          patch_size=(2, 2), orientation=None, spacing=None)
        >>> image = np.arange(16.0).reshape(1, 4, 4)
        >>> case_problems(image, np.eye(4, dtype=int), preset)
        []
        >>> case_problems(image, 2 * np.eye(4, dtype=int), preset)[0][1][:66]
        "label values must be among the preset's classes [0, 1], got 2: rem"
    """
    return [(finding.severity, finding.message) for finding in _findings(image, label, preset, shape)]


# --------------------------------------------------------------------------------------------------- a whole dataset


@dataclass
class _Case:
    """What remains of a case after its voxels are let go."""

    section: str
    file: str
    problems: list[Problem] = field(default_factory=list)
    digest: str | None = None
    spacing: tuple[float, ...] | None = None
    orientation: str | None = None
    classes: frozenset[int] = frozenset()
    labelled: bool = False

    def add(self, rule: str, severity: Severity, message: str, file: str | None = None) -> None:
        self.problems.append(Problem(severity, self.section, file or self.file, message, rule))


def verify(
    datalist: Datalist,
    preset: PresetLike,
    sections: Sequence[str] = SECTIONS,
    workers: int | None = None,
    progress: bool = True,
) -> list[Problem]:
    """Read every scan of a datalist once and report all problems, never stopping at the first.

    Checked per case: the file exists, is complete and readable; axes, channels, finite and non-constant values; label
    shape, affine (within 1e-3) and values; size against the patch. Over all cases: duplicates by path and by voxels,
    voxel spacing far from the rest, orientations where the preset does not reorient, classes without any training
    label, an empty training list or pool. One case per worker is in memory. **The label file of an unlabelled case is
    never opened**, even where the entry names one.

    Args:
        datalist: the cases.
        preset: the dataset preset.
        sections: lists to check.
        workers: threads; None takes up to 4.
        progress: show a progress bar (on a terminal only).

    Returns:
        The problems in the order of the lists, those of the whole dataset last. More than five equal warnings of a
        list become one line. ``any(p.severity == "error" for p in problems)`` means: do not train.

    Raises:
        ValueError: if a section is unknown or ``workers`` is below 1.

    Example:
        >>> from types import SimpleNamespace
        >>> preset = SimpleNamespace(spatial_dims=3, channels=["MR"], labels={0: "background", 1: "organ"},
        ...                          patch_size=(16, 16, 16), orientation="RAS", spacing=None)
        >>> print(verify(Datalist(), preset)[0])
        error: dataset: datalist: there must be at least one labelled training case, got 0: add cases to 'training'
    """
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise ValueError(f"sections must be among {', '.join(SECTIONS)}, got {unknown[0]!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    workers = workers or min(4, os.cpu_count() or 1)
    jobs = [(name, entry) for name in dict.fromkeys(sections) for entry in datalist.section(name)]
    with ThreadPoolExecutor(workers) as pool:
        bar = tqdm(total=len(jobs), desc="verify", unit="case", disable=None if progress else True)
        cases = []
        for case in pool.map(lambda job: _check_case(job[0], job[1], preset), jobs):
            cases.append(case)
            bar.update()
        bar.close()

    problems = _merge_equal([problem for case in cases for problem in case.problems], len(cases))
    problems += _check_paths(jobs)
    problems += _check_contents(cases)
    problems += _check_spacing(cases, preset)
    problems += _check_orientation(cases, preset)
    problems += _check_lists(datalist, cases, preset, sections)
    return problems


def _check_case(section: str, entry: Entry, preset: PresetLike) -> _Case:
    files = image_files(entry)
    case = _Case(section, files[0])
    try:
        _check_files(case, files, None if section == "unlabeled" else entry.get("label"), preset)
    except Exception as error:
        case.add(
            "check", "error", f"case cannot be checked ({type(error).__name__}: {_line(error)}): look at its files"
        )
    return case


def _check_files(case: _Case, files: list[str], label_file: str | None, preset: PresetLike) -> None:
    volumes: list[np.ndarray] = []
    affine: np.ndarray | None = None
    for file in files:
        try:
            volume, volume_affine = read_volume(file)
        except DataError as error:
            case.add("read", "error", str(error), file)
            continue
        if volumes and volume.shape[1:] != volumes[0].shape[1:]:
            text = f"channels must have one shape, got {volume.shape[1:]} beside {volumes[0].shape[1:]} of {files[0]}"
            case.add("shape", "error", f"{text}: resample them to one grid", file)
        elif volumes and not _same_affine(volume_affine, affine):
            text = f"channels must lie on one grid, got an affine that differs from {files[0]}"
            case.add(
                "affine", "error", f"{text} ({_difference(volume_affine, affine)}): resample them to one grid", file
            )
        if not volumes:
            affine = volume_affine
        volumes.append(volume)
    label = label_affine = None
    if label_file is not None:
        case.labelled = True
        try:
            label, label_affine = read_volume(label_file)
        except DataError as error:
            case.add("read", "error", str(error), label_file)
    if any(problem.severity == "error" and problem.file != label_file for problem in case.problems):
        return
    image = volumes[0] if len(volumes) == 1 else np.concatenate(volumes)
    volumes.clear()
    if affine is not None and (not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12):
        case.add(
            "affine", "error", "header must state a valid affine, got one without volume or not finite: export it again"
        )
        affine = None
    effective: tuple[float, ...] | None = None
    if affine is not None:
        effective = _geometry(case, affine, image.shape[1:], preset)
    for finding in _findings(image, label, preset, effective):
        about_label = finding.rule in ("shape", "label_channels", "integer", "values", "empty_label")
        case.add(finding.rule, finding.severity, finding.message, label_file if about_label else None)
    if label is not None:
        if not _same_affine(label_affine, affine):
            text = "label must lie on its image's grid, got an affine that differs"
            advice = "resample the label to the image, or copy the image's header if only the header is wrong"
            case.add("affine", "error", f"{text} ({_difference(label_affine, affine)}): {advice}", label_file)
        if not any(problem.file == label_file and problem.severity == "error" for problem in case.problems):
            case.classes = frozenset(int(value) for value in np.unique(label))
    if not any(
        problem.rule in ("constant", "empty_image") and problem.severity == "error" for problem in case.problems
    ):
        case.digest = _digest(image)


def _geometry(
    case: _Case, affine: np.ndarray, spatial: tuple[int, ...], preset: PresetLike
) -> tuple[float, ...] | None:
    """Note spacing and orientation; return the shape that the network will see, or None where it cannot be said."""
    dims = preset.spatial_dims
    if len(spatial) not in ((3,) if dims == 3 else (2, 3)):
        return None
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))[: len(spatial)]
    shape: np.ndarray = np.asarray(spatial, dtype=float)
    if len(spatial) == 3:
        case.orientation = "".join(code or "?" for code in nib.aff2axcodes(affine))
        if preset.orientation is not None and "?" not in case.orientation:
            start = nib.orientations.axcodes2ornt(case.orientation)
            end = nib.orientations.axcodes2ornt(preset.orientation)
            order = nib.orientations.ornt_transform(start, end)[:, 0].astype(int)
            zooms, shape = zooms[np.argsort(order)], shape[np.argsort(order)]
    zooms, shape = zooms[:dims], shape[:dims]  # of the slices, for a 2D network
    case.spacing = tuple(float(zoom) for zoom in zooms)
    if preset.spacing is not None:
        shape = shape * zooms / np.asarray(preset.spacing, dtype=float)
        zooms = np.asarray(preset.spacing, dtype=float)
    for axis, size in enumerate((getattr(preset, "centre_crop", None) or ())[:dims]):
        if size is not None:
            shape[axis] = min(shape[axis], size / zooms[axis])
    if (resize := getattr(preset, "resize", None)) is not None:
        shape = np.asarray(resize, dtype=float)
    return tuple(float(size) for size in shape)


def _same_affine(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    if first is None or second is None:
        return True
    return bool(np.allclose(first, second, rtol=0, atol=AFFINE_TOLERANCE))


def _difference(first: np.ndarray | None, second: np.ndarray | None) -> str:
    assert first is not None
    assert second is not None
    return f"by up to {np.abs(first - second).max():.4g}"


def _digest(image: np.ndarray) -> str:
    # in one number type: a scan that was stored once as integers and once as floats is the same scan
    # (and -0.0 + 0.0 is 0.0)
    values = np.ascontiguousarray(image, dtype=np.float32) + np.float32(0)
    return hashlib.blake2b(values.data, digest_size=16).hexdigest() + str(image.shape)


def _merge_equal(problems: list[Problem], n_cases: int) -> list[Problem]:
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        if problem.severity == "warning":
            groups.setdefault((problem.section, problem.rule), []).append(problem)
    merged = []
    for problem in problems:
        group = groups.get((problem.section, problem.rule), [])
        if problem.severity == "error" or len(group) <= MAX_EQUAL_WARNINGS:
            merged.append(problem)
        elif problem is group[0]:
            text = f"{problem.message} (and {len(group) - 1} more cases of this list)"
            merged.append(Problem("warning", problem.section, problem.file, text, problem.rule))
    return merged


def _check_paths(jobs: Iterable[tuple[str, Entry]]) -> list[Problem]:
    places: dict[str, list[str]] = {}
    for section, entry in jobs:
        for file in image_files(entry):
            places.setdefault(os.path.realpath(file), []).append(section)
    return [
        Problem(
            "error",
            "dataset",
            file,
            f"a scan may stand in one place only, got {' and '.join(found)}: keep one entry",
            "duplicate",
        )
        for file, found in places.items()
        if len(found) > 1
    ]


def _check_contents(cases: Iterable[_Case]) -> list[Problem]:
    groups: dict[str, list[_Case]] = {}
    for case in cases:
        if case.digest is not None:
            groups.setdefault(case.digest, []).append(case)
    problems = []
    learnt = ("training", "unlabeled")
    for group in groups.values():
        # the same file named twice is reported by its path
        group = list({os.path.realpath(case.file): case for case in group}.values())
        for index, second in enumerate(group[1:], start=1):
            # one line per copy, about the worst of its twins
            leaks = [
                first
                for first in group[:index]
                if first.section != second.section and not (first.section in learnt and second.section in learnt)
            ]
            first = leaks[0] if leaks else group[0]
            pair = f"the same voxels as {first.file} ({first.section})"
            text = f"image must be a scan of its own, got {pair}: it counts twice; remove one"
            severity: Severity = "warning"
            if leaks:
                text = f"a scan must not be in {first.section} and {second.section} (a leak), got {pair}: remove one"
                severity = "error"
            problems.append(Problem(severity, second.section, second.file, text, "duplicate"))
    return problems


def _check_spacing(cases: Iterable[_Case], preset: PresetLike) -> list[Problem]:
    known = [case for case in cases if case.spacing is not None]
    if len(known) < 3:
        return []
    median = np.median([case.spacing for case in known], axis=0)
    # without resampling the network meets voxels: a quarter more or less is another size of organ
    limit = 2.0 if preset.spacing is not None else 1.25
    problems = []
    for case in known:
        ratio = np.asarray(case.spacing) / median
        if max(ratio.max(), 1 / ratio.min()) > limit + 1e-6:
            text = f"voxel spacing {_numbers(case.spacing or ())} mm is far from the others' {_numbers(median)} mm"
            advice = (
                "is the header right?" if preset.spacing else "is the header right? Else set 'spacing' in the preset"
            )
            problems.append(Problem("warning", case.section, case.file, f"{text}: {advice}", "spacing"))
    return _merge_equal(problems, len(known))


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _check_orientation(cases: Iterable[_Case], preset: PresetLike) -> list[Problem]:
    if preset.orientation is not None:
        return []
    groups: dict[str, list[_Case]] = {}
    known = [case for case in cases if case.orientation is not None]
    for case in known:
        groups.setdefault(case.orientation or "", []).append(case)
    problems = []
    for code, group in sorted(groups.items()):
        if code != "RAS":
            text = f"{len(group)} of {len(known)} cases are stored as {code} and the preset does not reorient"
            advice = (
                "the network would see some cases mirrored or turned; set 'orientation: RAS' in the preset"
                if len(groups) > 1
                else "scans of another orientation would fail at inference; consider 'orientation: RAS' in the preset"
            )
            problems.append(Problem("warning", group[0].section, group[0].file, f"{text}: {advice}", "orientation"))
    return problems


def _check_lists(
    datalist: Datalist, cases: Iterable[_Case], preset: PresetLike, sections: Sequence[str]
) -> list[Problem]:
    where = str(datalist.path) if datalist.path else "datalist"
    problems = []

    def add(rule: str, severity: Severity, message: str) -> None:
        problems.append(Problem(severity, "dataset", where, message, rule))

    if "training" in sections and not datalist.training:
        text = "there must be at least one labelled training case, got 0"
        add("no_training", "error", f"{text}: add cases to 'training'")
    if "unlabeled" in sections and not datalist.unlabeled:
        text = "there are no unlabelled cases, so that every method trains as supervised"
        add("no_unlabeled", "warning", f"{text}: add images to 'unlabeled' to gain from them")
    if datalist.labels and set(datalist.labels) != {int(value) for value in preset.labels}:
        text = f"'labels' names the classes {sorted(datalist.labels)}, the preset {sorted(preset.labels)}"
        add("classes", "warning", f"{text}: is it the right preset?")
    checked = [case for case in cases if case.section == "training" and case.labelled]
    if checked and all(case.classes for case in checked):
        present = frozenset().union(*(case.classes for case in checked))
        for value, name in preset.labels.items():
            if int(value) != 0 and int(value) not in present:
                text = f"class {value} ({name}) is in no training label and cannot be learnt"
                add("absent_class", "warning", f"{text}: label it in at least one training case")
    return problems

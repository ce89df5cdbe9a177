"""Check a dataset before training: every file, header and label, and whether the lists leak into each other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from tqdm import tqdm

from monai_ssl.data.cases import Entry, image_files
from monai_ssl.data.datalist import SECTIONS, Datalist
from monai_ssl.data.reading import _line, read_volume
from monai_ssl.data.rules import PresetLike, Severity, _findings, case_problems
from monai_ssl.errors import DataError

__all__ = ["PresetLike", "Problem", "Severity", "case_problems", "read_volume", "verify"]


AFFINE_TOLERANCE = 1e-3
# equal warnings beyond this many become one line
MAX_EQUAL_WARNINGS = 5


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


# ------------------------------------------------------------------------------------------------- the rules, once


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
    labeled: bool = False

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
    label, an empty training list or pool. One case per worker is in memory. **The label file of an unlabeled case is
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
        error: dataset: datalist: there must be at least one labeled training case, got 0: add cases to 'training'
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
        case.labeled = True
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
    for axis, size in enumerate((getattr(preset, "center_crop", None) or ())[:dims]):
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
    learned = ("training", "unlabeled")
    for group in groups.values():
        # the same file named twice is reported by its path
        group = list({os.path.realpath(case.file): case for case in group}.values())
        for index, second in enumerate(group[1:], start=1):
            # one line per copy, about the worst of its twins
            leaks = [
                first
                for first in group[:index]
                if first.section != second.section and not (first.section in learned and second.section in learned)
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
        text = "there must be at least one labeled training case, got 0"
        add("no_training", "error", f"{text}: add cases to 'training'")
    if "unlabeled" in sections and not datalist.unlabeled:
        text = "there are no unlabeled cases, so that every method trains as supervised"
        add("no_unlabeled", "warning", f"{text}: add images to 'unlabeled' to gain from them")
    if datalist.labels and set(datalist.labels) != {int(value) for value in preset.labels}:
        text = f"'labels' names the classes {sorted(datalist.labels)}, the preset {sorted(preset.labels)}"
        add("classes", "warning", f"{text}: is it the right preset?")
    checked = [case for case in cases if case.section == "training" and case.labeled]
    if checked and all(case.classes for case in checked):
        present = frozenset().union(*(case.classes for case in checked))
        for value, name in preset.labels.items():
            if int(value) != 0 and int(value) not in present:
                text = f"class {value} ({name}) is in no training label and cannot be learned"
                add("absent_class", "warning", f"{text}: label it in at least one training case")
    return problems

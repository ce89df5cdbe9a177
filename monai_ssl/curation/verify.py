"""Check a dataset before training: every file, header and label, and whether the lists leak into each other."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from monai_ssl.data.cases import Entry, image_files, real_path
from monai_ssl.data.datalist import SECTIONS, Datalist
from monai_ssl.data.partial import Annotated, sparse_finding
from monai_ssl.data.patients import visit_names, visits
from monai_ssl.data.placement import placement
from monai_ssl.data.preset import Preset
from monai_ssl.data.reading import ScanMemory, read_scan, rounded, with_classes
from monai_ssl.data.rules import Finding, Severity, case_findings
from monai_ssl.data.scan import Scan, grid_difference
from monai_ssl.errors import DataError, dimensions, enumerated, plural, without_quotes
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.progress import followed

__all__ = ["Problem", "verify"]

# equal warnings beyond this many become one line
MAX_EQUAL_WARNINGS = 5
# share of the annotated voxels below which a coarser grid has lost too much of them
LOST = 0.5
# told once per list: of a preset that `split` proposes, up to half of all scans may be smaller than the patch
TOLD_ONCE = ("patch",)


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
    ignored: int = 0
    voxels: int = 0
    labeled: bool = False

    def add(self, rule: str, severity: Severity, message: str, file: str | None = None) -> None:
        self.problems.append(Problem(severity, self.section, file or self.file, message, rule))


def verify(
    datalist: Datalist,
    preset: Preset,
    sections: Sequence[str] = SECTIONS,
    workers: int | None = None,
    progress: bool = True,
    memory: ScanMemory | None = None,
    ignored: dict[str, tuple[int, int]] | None = None,
    drawn: Sequence[Entry] = (),
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
        progress: say how far it has come.
        memory: keeps what was read for the training's cache, see :func:`monai_ssl.data.reading.handed_over`.
        ignored: gets image file -> ignored voxels and all voxels, of every label that has ignored ones.
        drawn: unlabeled cases with the label map that a network or another tool drew, see
            :func:`monai_ssl.data.pseudo_labeled`; it is checked like a label.

    Returns:
        The problems in the order of the lists, those of the whole dataset last. More than five equal warnings of a
        list become one line. ``any(p.severity == "error" for p in problems)`` means: do not train.

    Raises:
        ValueError: if a section is unknown or ``workers`` is below 1.

    Example:
        >>> preset = Preset(name="mine", labels={0: "background", 1: "organ"}, patch_size=(16, 16, 16))
        >>> print(verify(Datalist(), preset)[0])
        error: dataset: datalist: there must be at least one labeled training case, got 0: add cases to 'training'
    """
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise ValueError(f"sections must be among {', '.join(SECTIONS)}, got {unknown[0]!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    workers = workers or min(4, os.cpu_count() or 1)
    jobs = [(name, entry) for name in dict.fromkeys(sections) for entry in datalist.section(name)]
    if drawn:
        from monai_ssl.data.pseudo_labels import pseudo_label_preset

        of_pool = pseudo_label_preset(preset)
    else:
        of_pool = preset
    maps = {tuple(image_files(entry)): str(entry["label"]) for entry in drawn}

    def checked(job: tuple[str, Entry]) -> _Case:
        section, entry = job
        if section == "unlabeled":
            return _check_case(section, entry, maps.get(tuple(image_files(entry))), of_pool, memory)
        # no training reads test cases: they would only take the room of others
        return _check_case(section, entry, entry.get("label"), preset, None if section == "testing" else memory)

    with ThreadPoolExecutor(workers) as pool:
        cases = list(followed(pool.map(checked, jobs), "verify", len(jobs), shown=progress))

    if ignored is not None:
        ignored.update({case.file: (case.ignored, case.voxels) for case in cases
                        if case.ignored and case.section != "unlabeled"})  # fmt: skip
    problems = _merge_equal([problem for case in cases for problem in case.problems], len(cases))
    problems += _check_paths(jobs)
    problems += _check_patients(jobs, datalist.patients)
    problems += _check_contents(cases)
    problems += _check_spacing(cases, preset)
    problems += _check_orientation(cases, preset)
    problems += _check_lists(datalist, cases, preset, sections)
    return problems


def _check_case(section: str, entry: Entry, label: str | None, preset: Preset, memory: ScanMemory | None) -> _Case:
    files = image_files(entry)
    case = _Case(section, files[0])
    try:
        _check_files(case, entry, label, preset, memory)
    except Exception as error:
        case.add(
            "check",
            "error",
            f"case cannot be checked ({type(error).__name__}: {without_quotes(error)}): look at its files",
        )
    if section == "unlabeled":  # with a label map that was drawn
        case.problems = [replace(known, message=_of_pool(known.message)) for known in case.problems]
    return case


def _of_pool(message: str) -> str:
    """Advice about a label, for a label map that was drawn: the preset's ``label_map`` is not for those."""
    message = message.replace("move the case to 'unlabeled'", "remove the file")
    remapped = "write it with the preset's classes (guide to self-training: labels of another tool)"
    return re.sub(r": correct 'labels' in the preset.*, or remap the label", f": {remapped}", message)


def _check_files(case: _Case, entry: Entry, label_file: str | None, preset: Preset, memory: ScanMemory | None) -> None:
    files = image_files(entry)

    def read(file: str, label: bool = False) -> Scan | None:
        try:
            stored = read_scan(file, label)
            scan = with_classes(rounded(stored), preset.label_map, preset.ignore_label) if label else stored
        except DataError as error:
            case.add("read", "error", str(error), file)
            return None
        if memory is not None:
            memory.keep(file, stored)
        for note in scan.notes:
            case.add("header", "warning", note, file)
        return scan

    # every file is read, whatever is wrong with the others: one round of mending should be enough
    scans: list[Scan] = []
    for file in files:
        scan = read(file)
        if scan is not None and scans and (text := grid_difference(scan, scans[0], files[0])):
            case.add("shape" if "one shape" in text else "affine", "error", text, file)
        if scan is not None:
            scans.append(scan)
    label = None
    if label_file is not None:
        case.labeled = True
        label = read(label_file, label=True)
    if any(problem.severity == "error" and problem.file != label_file for problem in case.problems):
        return

    # the rules that training applies, with the size that the network will see after reorientation and resampling
    affine = scans[0].affine
    image = scans[0].channel_first if len(scans) == 1 else np.concatenate([scan.channel_first for scan in scans])
    scans.clear()
    seen = None if affine is None else placement(affine, image.shape[1:], preset)
    if seen is not None:
        case.spacing, case.orientation = seen.spacing, seen.orientation
    voxels, label_affine = (None, None) if label is None else (label.channel_first, label.affine)
    for finding in case_findings(image, voxels, preset, affine, label_affine):
        case.add(finding.rule, finding.severity, finding.message, label_file if finding.about == "label" else None)

    # what the comparison of all cases needs
    if voxels is not None and not any(p.file == label_file and p.severity == "error" for p in case.problems):
        if case.section != "unlabeled":
            case.problems += [Problem(f.severity, case.section, label_file or "", f.message, f.rule)
                          for f in _partial_findings(entry, voxels, preset)]  # fmt: skip
        marked = Annotated.of(entry).marked(voxels, preset)
        if case.section in ("training", "unlabeled") and not any(p.severity == "error" for p in case.problems):
            case.problems += [Problem(f.severity, case.section, label_file or "", f.message, f.rule)
                              for f in _grid_findings(marked, affine, preset, case.section == "unlabeled")]  # fmt: skip
        values, counts = np.unique(marked, return_counts=True)
        found = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
        case.voxels, case.ignored = voxels.size, found.pop(IGNORE_LABEL, 0)
        case.classes = frozenset(found)
    if not any(p.rule in ("constant", "empty_image") and p.severity == "error" for p in case.problems):
        case.digest = _digest(image)


def _partial_findings(entry: Entry, label: np.ndarray, preset: Preset) -> list[Finding]:
    annotated = Annotated.of(entry)
    sparse = sparse_finding(label) if annotated.slices is None else None
    return annotated.findings(label, preset) + ([] if sparse is None else [sparse])


def _grid_findings(label: np.ndarray, affine: np.ndarray | None, preset: Preset, drawn: bool) -> list[Finding]:
    """What a label of which parts are ignored loses on the network's grid."""
    known = float(np.mean(label != IGNORE_LABEL))
    if known in (0.0, 1.0) or not (preset.spacing or preset.center_crop or preset.resize):
        return []
    import torch
    from monai.data import MetaTensor

    from monai_ssl.data.guard import nothing_left
    from monai_ssl.data.pipelines import resampled_label

    place = torch.as_tensor(np.eye(4) if affine is None else affine)
    stored = MetaTensor(torch.as_tensor(np.ascontiguousarray(label)), affine=place)
    left = float((resampled_label(stored, preset) != IGNORE_LABEL).float().mean())
    if left == 0 and drawn:
        text = "label map says nothing on the grid of the preset, where all of it is ignored: the scan teaches nothing"
        return [Finding("unknown_grid", "warning", text, "label")]
    if left == 0:
        return [Finding("unknown_grid", "error", nothing_left(preset), "label")]
    if left < LOST * known:
        text = (f"label keeps {100 * left:.2g} % of its voxels known on the grid of the preset, {100 * known:.2g} % "
                "as stored: the rest lies between its voxels, or outside")  # fmt: skip
        return [Finding("unknown_grid", "warning", text, "label")]
    return []


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
        if problem.severity == "error" or len(group) <= (1 if problem.rule in TOLD_ONCE else MAX_EQUAL_WARNINGS):
            merged.append(problem)
        elif problem is group[0]:
            text = f"{problem.message} (and {plural(len(group) - 1, 'more case')} of this list)"
            merged.append(Problem("warning", problem.section, problem.file, text, problem.rule))
    return merged


def _check_paths(jobs: Iterable[tuple[str, Entry]]) -> list[Problem]:
    places: dict[str, list[str]] = {}
    for section, entry in jobs:
        for file in image_files(entry):
            places.setdefault(real_path(file), []).append(section)
    return [
        Problem(
            "error",
            "dataset",
            file,
            f"a scan may be in one place only, got {' and '.join(found)}: keep one entry",
            "duplicate",
        )
        for file, found in places.items()
        if len(found) > 1
    ]


def _check_patients(jobs: Iterable[tuple[str, Entry]], declared: Mapping[str, str]) -> list[Problem]:
    """Scans of one patient on two sides, as far as names tell; what the list itself says of two is right."""
    sides: dict[str, str] = {}
    files: dict[str, str] = {}
    jobs = list(jobs)
    for (section, entry), name in zip(jobs, visit_names([entry for _, entry in jobs]), strict=True):
        sides[name] = "training" if section == "unlabeled" else section
        files[name] = image_files(entry)[0]
    problems = []
    for patient, names in visits(list(sides)).items():
        if len({sides[name] for name in names}) > 1 and not all(files[name] in declared for name in names):
            shown = enumerated([f"{name} ({sides[name]})" for name in names], 3)
            text = f"scans of one patient ({patient}) seem to be on two sides, {shown}: a leak; split by patient"
            problems.append(Problem("warning", "dataset", files[names[0]], f"{text} (--patient_pattern)", "patient"))
    return _merge_equal(problems, len(sides))


def _check_contents(cases: Iterable[_Case]) -> list[Problem]:
    """Scans with the same voxels under different names: a leak between lists, or a case that counts twice."""
    groups: dict[str, list[_Case]] = {}
    for case in cases:
        if case.digest is not None:
            groups.setdefault(case.digest, []).append(case)

    problems = []
    learned = ("training", "unlabeled")
    for group in groups.values():
        # the same file named twice is reported by its path
        group = list({real_path(case.file): case for case in group}.values())
        for index, second in enumerate(group[1:], start=1):
            # one line per copy, about the worst of its twins: one from a list that must not share scans with this one
            leaks = [
                first
                for first in group[:index]
                if first.section != second.section and not (first.section in learned and second.section in learned)
            ]
            first = leaks[0] if leaks else group[0]
            pair = f"the same voxels as {first.file} ({first.section})"
            if leaks:
                text = f"a scan must not be in {first.section} and {second.section} (a leak), got {pair}: remove one"
                problems.append(Problem("error", second.section, second.file, text, "duplicate"))
            else:
                text = f"image must be a different scan in every case, got {pair}: it counts twice; remove one"
                problems.append(Problem("warning", second.section, second.file, text, "duplicate"))
    return problems


def _check_spacing(cases: Iterable[_Case], preset: Preset) -> list[Problem]:
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
            text = f"voxel spacing {dimensions(case.spacing or ())} mm is far from the others' {dimensions(median)} mm"
            advice = (
                "is the header right?" if preset.spacing else "is the header right? Else set 'spacing' in the preset"
            )
            problems.append(Problem("warning", case.section, case.file, f"{text}: {advice}", "spacing"))
    return _merge_equal(problems, len(known))


LONE = "scans of another orientation would fail at inference; consider 'orientation: RAS' in the preset"


def _check_orientation(cases: Iterable[_Case], preset: Preset) -> list[Problem]:
    groups: dict[str, list[_Case]] = {}
    known = [case for case in cases if case.orientation is not None]
    for case in known:
        groups.setdefault(case.orientation or "", []).append(case)
    problems = []
    if preset.spatial_dims == 2:
        for code, group in sorted(groups.items()):
            text = ""
            if preset.orientation is not None and _axis(code[-1]) != _axis(preset.orientation[-1]):
                text = (f"{len(group)} of {len(known)} cases are stored as {code}, and 'orientation: "
                        f"{preset.orientation}' takes their slices along another axis than the last one: set "
                        f"'orientation: {code}', or null, unless that is meant")  # fmt: skip
            elif preset.orientation is None and len(groups) > 1:
                text = (f"{len(group)} of {len(known)} cases are stored as {code} and the preset does not reorient: "
                        "the network would see some slices mirrored, turned or in another plane; set one 'orientation' "
                        "for scans whose slices lie in the same plane")  # fmt: skip
            elif preset.orientation is None and code != "RAS" and code[-1] in "SI":
                text = (
                    f"{len(group)} of {len(known)} cases are stored as {code} and the preset does not reorient: {LONE}"
                )
            if text:
                problems.append(Problem("warning", group[0].section, group[0].file, text, "orientation"))
        return problems
    if preset.orientation is not None:
        return []
    for code, group in sorted(groups.items()):
        if code != "RAS":
            text = f"{len(group)} of {len(known)} cases are stored as {code} and the preset does not reorient"
            advice = (
                "the network would see some cases mirrored or turned; set 'orientation: RAS' in the preset"
                if len(groups) > 1
                else LONE
            )
            problems.append(Problem("warning", group[0].section, group[0].file, f"{text}: {advice}", "orientation"))
    return problems


def _axis(code: str) -> str:
    """The axis of a direction: of R and L the same."""
    return next((pair for pair in ("RL", "AP", "SI") if code in pair), code)


def _check_lists(datalist: Datalist, cases: Iterable[_Case], preset: Preset, sections: Sequence[str]) -> list[Problem]:
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
            elif int(value) not in present and any(case.ignored for case in checked):
                text = (
                    f"class 0 ({name}) is known in no training label, so that nothing would be learned not to be drawn"
                )
                add("absent_class", "error", f"{text}: label some of it, also between and beside the structures")
    return problems

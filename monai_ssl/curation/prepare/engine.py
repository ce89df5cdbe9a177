"""What all data sets share: discover -> convert every case in parallel -> manifest -> datalist -> check."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import monai_ssl
from monai_ssl.curation.prepare.files import check_image, checksum
from monai_ssl.curation.prepare.published_splits import Split, load_split, sections, seeded_split
from monai_ssl.curation.verify import Problem, verify
from monai_ssl.data.loading import load_datalist
from monai_ssl.data.writing import write_nifti
from monai_ssl.errors import DataError, enumerated
from monai_ssl.files import write_text
from monai_ssl.progress import followed

JOURNAL, MANIFEST, DATALIST = "prepare.jsonl", "manifest.json", "datalist.json"


@dataclass(frozen=True)
class RawCase:
    """One case as it is distributed.

    Attributes:
        name: unique; names the files that are written.
        patient: what the split's lists name; several cases (frames) may belong to one.
        images: one file per channel, or one folder of a DICOM series.
        label: file of the label, None where there is none.
        details: whatever the recipe found out and needs for converting.
    """

    name: str
    patient: str
    images: tuple[str, ...]
    label: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Every file that the case is read from."""
        found = []
        for path in (*self.images, *([self.label] if self.label else [])):
            if os.path.isdir(path):
                found += sorted(entry.path for entry in os.scandir(path) if entry.is_file())
            else:
                found.append(path)
        return found


@dataclass
class Volume:
    """What a recipe makes of a case: one array per channel, the label, on one grid.

    Attributes:
        images: channel name (empty for a single channel) -> ``(X, Y, Z)``.
        affine: (4, 4) to RAS millimeters.
        label: ``(X, Y, Z)`` uint8, None without label.
        remarks: what a reader of the manifest should know about this case.
    """

    images: dict[str, np.ndarray]
    affine: np.ndarray
    label: np.ndarray | None = None
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetRecipe(ABC):
    """How one data set is found and converted. A subclass's fields are the options of ``monai-ssl prepare``.

    Attributes:
        name: of the data set.
        version: raised whenever the files that are written change.
        layout: what the source folder must look like, for error messages.
        where: one gets the download.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    layout: ClassVar[str]
    where: ClassVar[str]

    @property
    @abstractmethod
    def labels(self) -> dict[int, str]:
        """Class -> name, 0 = background."""

    @property
    @abstractmethod
    def preset(self) -> tuple[str, str | None]:
        """Name and flavor of the preset that fits what is written."""

    @abstractmethod
    def discover(self, source: Path) -> tuple[list[RawCase], list[str]]:
        """The cases below ``source`` and remarks on what was ignored. Opens no image."""

    @abstractmethod
    def convert(self, case: RawCase) -> Volume:
        """Read one case. Raises :class:`DataError` with the reason when it cannot be used."""

    def published_split(self, patients: list[str], seed: int | None, n_testing: int | None) -> Split:
        """The division of the literature; ``seed`` redraws it with the same sizes."""
        split = load_split(self.name)
        if n_testing is not None:
            raise DataError(f"n_testing: {self.name} has a published list of test cases; leave it out, or give --split")
        if seed is None:
            return split
        return seeded_split(patients, len(split.testing), len(split.validation), split.n_labeled, seed)

    def options(self) -> dict[str, Any]:
        """The options in use, as they are in the manifest."""
        return {key: getattr(self, key) for key in option_names(type(self))}

    def at(self, source: Path) -> DatasetRecipe:
        """The recipe with what a description inside ``source`` says (classes, channels); by default as it is."""
        return self

    def finish(self, target: Path, lists: Mapping[str, list[dict[str, Any]]]) -> list[str]:
        """Write what else belongs to the data set, once all cases are there; returns what the user should know."""
        return []

    def download(self, source: Path) -> None:
        """Fetch the data set into ``source``.

        Raises:
            DataError: when that is not possible, with the place where one gets it.
        """
        raise DataError(f"--download: {self.name} must be downloaded by hand (registration): {self.where}")


def option_names(recipe: type[DatasetRecipe]) -> list[str]:
    """Options of ``monai-ssl prepare`` that belong to one data set."""
    return [entry.name for entry in fields(recipe) if not entry.metadata.get("internal")]


@dataclass
class Prepared:
    """What :func:`prepare` did.

    Attributes:
        datalist: the JSON that was written.
        counts: cases per list.
        converted, reused: cases converted now, and cases whose files of a previous run are still good.
        skipped: case -> reason.
        remarks: everything else that is suspicious, a line each.
        problems: what the final check of all written files found.
        preset, flavor: what to train with.
    """

    datalist: Path
    counts: dict[str, int]
    converted: int
    reused: int
    skipped: dict[str, str]
    remarks: list[str]
    problems: list[Problem]
    preset: str
    flavor: str | None


def build_recipe(recipe: type[DatasetRecipe], options: Mapping[str, Any]) -> DatasetRecipe:
    """The recipe with its options.

    Raises:
        DataError: for an unknown option or a wrong value.
    """
    known = option_names(recipe)
    if unknown := [key for key in options if key not in known]:
        offered = f"offers {', '.join('--' + key for key in known)}" if known else "has no options"
        raise DataError(f"--{unknown[0]}: is no option of {recipe.name}, which {offered}")
    return recipe(**options)


def choice(option: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise :class:`DataError` unless ``value`` is allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise DataError(f"--{option}: must be one of {', '.join(allowed)}, got {value!r}")


def prepare(
    recipe: DatasetRecipe,
    source: str | Path,
    output: str | Path,
    n_labeled: int | None = None,
    n_validation: int | None = None,
    n_testing: int | None = None,
    split: str | Path | None = None,
    seed: int | None = None,
    workers: int | None = None,
    check: bool = True,
    download: bool = False,
) -> Prepared:
    """Convert a data set from its official download to NIfTI and a checked datalist.

    Writes ``images/``, ``labels/``, ``datalist.json`` and ``manifest.json`` (source and result checksums, options,
    versions, every skipped or suspicious file with the reason). Run again, it converts only what is missing or whose
    source has changed; the result is the same byte for byte. One case per worker is in memory.

    Args:
        recipe: the data set with its options.
        source: folder of the download, searched with its subfolders; nothing is written there.
        output: folder for the result.
        n_labeled: labeled patients, "the first N" of the training list; None takes the published number.
        n_validation: validation patients, the last of the training list, where the published split has none.
        n_testing: test patients, where no list is published.
        split: name of a shipped list or path of your own; None takes the published one.
        seed: redraw the split with the published sizes.
        workers: processes; None takes one per core, up to 8; 1 converts in this process.
        check: read every written file again with all rules of ``monai-ssl check``.
        download: fetch the data set into ``source`` first, where that is possible.

    Raises:
        DataError: when there is no case, an option is wrong, or ``output`` holds another preparation.
    """
    from monai_ssl.data.preset import load_preset

    folder, target = _source(source, download), Path(output).expanduser().absolute()
    if target.is_relative_to(folder) or (target.exists() and not target.is_dir()):
        raise DataError(f"output: must be a separate folder outside of the source {folder}, got {target}")
    if workers is not None and workers < 1:
        raise DataError(f"workers: must be at least 1, got {workers}")
    if split is not None and seed is not None:
        raise DataError("--split and --seed: a list is not redrawn; give one of the two")
    if split is not None and n_testing is not None:
        raise DataError("--split and --n_testing: the list says who is for testing; give one of the two")
    if download:
        recipe.download(folder)
    recipe = recipe.at(folder)
    identity = {"dataset": recipe.name, "version": recipe.version, "options": recipe.options()}
    cases, remarks = recipe.discover(folder)
    if not cases:
        raise DataError(
            f"{folder}: no case of {recipe.name} found; expected {recipe.layout}; get it from {recipe.where}"
        )
    cases, doubled = _unique(cases)
    remarks += doubled
    known = _read_journal(target, identity)
    records: dict[str, dict[str, Any]] = {}
    todo = []
    for case in cases:
        record = known.get(case.name)
        if record is not None and _fresh(record, case, folder, target):
            records[case.name] = record
        else:
            todo.append(case)
    reused = len(records)
    skipped: dict[str, str] = {}
    target.mkdir(parents=True, exist_ok=True)
    _write_journal(target, identity, records.values())
    with open(target / JOURNAL, "a", encoding="utf-8") as journal:
        results = _run(recipe, todo, folder, target, workers)
        for record in followed(results, f"prepare {recipe.name}", len(todo)):
            if "skipped" in record:
                skipped[record["name"]] = record["skipped"]
                continue
            records[record["name"]] = record
            journal.write(json.dumps(record, ensure_ascii=False) + "\n")
            journal.flush()
    if not records:
        raise DataError(f"{folder}: none of {len(cases)} cases can be used: {enumerated(list(skipped.values()), 3)}")

    patients = {case.patient for case in cases}
    named = recipe.published_split(sorted(patients), seed, n_testing) if split is None else load_split(split)
    entries: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        if case.name in records:
            entries.setdefault(case.patient, []).append(records[case.name]["entry"])
    lists, about_split = sections(named, entries, n_labeled, n_validation)
    ordered = {case.name: records[case.name] for case in cases if case.name in records}
    remarks += about_split + _same_labels(ordered)
    datalist = target / DATALIST
    n_patients = {name: len(_patients(lists[name], cases, records)) for name in lists}
    content = {
        "description": f"{recipe.name}, prepared by monai-ssl {monai_ssl.__version__}; {named.origin}, "
        f"{n_patients['training']} labeled",
        "labels": {str(value): name for value, name in recipe.labels.items()},
        "numClasses": len(recipe.labels),
        "prepared": {**identity, "split": named.origin, "patients": n_patients},
        **lists,
    }
    write_text(datalist, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    notes = recipe.finish(target, lists)
    name, flavor = recipe.preset
    preset = target / name if name.endswith(".yaml") else name
    problems = verify(load_datalist(datalist, target), load_preset(preset, flavor)) if check else []
    manifest = {
        **identity,
        "software": _versions(),
        "cases": {key: _without_times(record) for key, record in ordered.items()},
        "skipped": skipped,
        "remarks": remarks,
        "check": [_relative(str(problem), target) for problem in problems],
    }
    write_text(target / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    _write_journal(target, identity, ordered.values())
    for case_name, record in ordered.items():
        remarks += [f"{case_name}: {remark}" for remark in record["remarks"]]
    remarks += notes
    return Prepared(
        datalist, {key: len(value) for key, value in lists.items()}, len(records) - reused, reused, skipped, remarks,
        problems, str(preset), flavor,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ one case, anywhere


def _convert(recipe: DatasetRecipe, case: RawCase, source: str, target: str) -> dict[str, Any]:
    """Convert one case; runs in a worker. A case that cannot be used gives its reason instead of an exception."""
    try:
        files = case.files
        before = {_inside(file, source): _stamp(file) for file in files}
        volume = recipe.convert(case)
        for array in volume.images.values():
            check_image(array)
        entry: dict[str, Any] = {"image": []}
        written = {}
        remarks = list(volume.remarks)
        for channel, array in volume.images.items():
            relative = f"images/{case.name}{'_' * bool(channel)}{channel}.nii.gz"
            write_nifti(Path(target) / relative, array, volume.affine)
            entry["image"].append(relative)
            written[relative] = _result(Path(target) / relative)
        if len(entry["image"]) == 1:
            entry["image"] = entry["image"][0]
        if volume.label is not None:
            if not volume.label.any():
                remarks.append("label is empty, background only")
            relative = f"labels/{case.name}.nii.gz"
            write_nifti(Path(target) / relative, volume.label, volume.affine)
            entry["label"] = relative
            written[relative] = _result(Path(target) / relative)
        sources = {name: {**stamp, "sha256": checksum(Path(source) / name)} for name, stamp in before.items()}
        shape = list(next(iter(volume.images.values())).shape)
        return {"name": case.name, "patient": case.patient, "entry": entry, "shape": shape, "source": sources,
                "written": written, "remarks": remarks}  # fmt: skip
    except DataError as error:
        return {"name": case.name, "skipped": f"{_place(case, source)}: {error}"}
    except Exception as error:  # whatever a reader raises on a file that it cannot read
        text = " ".join(str(error).split())[-300:] or type(error).__name__
        return {
            "name": case.name,
            "skipped": f"{_place(case, source)}: cannot be read ({text}); copy or download it again",
        }


def _place(case: RawCase, source: str) -> str:
    return _inside(case.images[0], source)


def _inside(file: str, folder: str | Path) -> str:
    return os.path.relpath(file, folder).replace(os.sep, "/")


def _stamp(file: str) -> dict[str, int]:
    status = os.stat(file)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _result(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def _run(
    recipe: DatasetRecipe, cases: list[RawCase], source: Path, target: Path, workers: int | None
) -> Iterator[dict[str, Any]]:
    workers = min(workers or min(8, os.cpu_count() or 1), max(1, len(cases)))
    if workers == 1:
        for case in cases:
            yield _convert(recipe, case, str(source), str(target))
        return
    # as PyTorch's own loaders: a fork is there at once, where a new process imports PyTorch first
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(workers, mp_context=get_context(method)) as pool:
        waiting: dict[Future[dict[str, Any]], str] = {}
        queue = iter(cases)
        try:
            while True:
                # few at a time: results do not pile up, and Ctrl-C ends soon
                for case in itertools.islice(queue, 2 * workers - len(waiting)):
                    waiting[pool.submit(_convert, recipe, case, str(source), str(target))] = case.name
                if not waiting:
                    return
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    del waiting[future]
        except BrokenProcessPool:
            raise DataError(
                f"a worker process was killed, while at {enumerated(list(waiting.values()))}: is there enough memory? "
                "Run the command again with fewer --workers; finished cases are kept"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


# -------------------------------------------------------------------------------------------------------- bookkeeping


def _source(source: str | Path, download: bool) -> Path:
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir() and not (download and not folder.exists()):
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"source: must be the folder of the download, but {folder} {what}")
    return folder


def _unique(cases: list[RawCase]) -> tuple[list[RawCase], list[str]]:
    """One case per name. Equal copies are ignored; of different ones nobody can say which is right."""
    groups: dict[str, list[RawCase]] = {}
    for case in cases:
        groups.setdefault(case.name, []).append(case)
    chosen, remarks = [], []
    for name, group in groups.items():
        if len(group) > 1:
            places = enumerated([case.images[0] for case in group])
            # different amounts of files are different data, too
            contents = {tuple(sorted(checksum(file) for file in case.files)) for case in group}
            if len(contents) > 1:
                raise DataError(
                    f"{name}: is in {len(group)} places with different contents ({places}): remove all but one"
                )
            remarks.append(f"{name}: is in {len(group)} places with equal contents ({places}); the first is used")
        chosen.append(group[0])
    return chosen, remarks


def _read_journal(target: Path, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    path = target / JOURNAL
    if not path.is_file():
        if target.is_dir() and (target / DATALIST).exists():
            raise DataError(
                f"output: {target} holds a {DATALIST} that is not from `monai-ssl prepare`; choose another folder"
            )
        return {}
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if number == 0:
            if record != json.loads(json.dumps(identity)):
                raise DataError(
                    f"output: {target} was prepared as {_shown(record)}, not as {_shown(identity)}; choose another "
                    "folder (or delete this one)"
                )
        else:
            found[record["name"]] = record
    return found


def _shown(identity: Mapping[str, Any]) -> str:
    options = identity.get("options") or {}
    return " ".join([str(identity.get("dataset")), *(f"--{key} {value}" for key, value in options.items())])


def _write_journal(target: Path, identity: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
    lines = [json.dumps(entry, ensure_ascii=False) for entry in (identity, *records)]
    write_text(target / JOURNAL, "\n".join(lines) + "\n")


def _fresh(record: Mapping[str, Any], case: RawCase, source: Path, target: Path) -> bool:
    """True when sources are as they were, and all results are there."""
    try:
        now = {_inside(file, source): _stamp(file) for file in case.files}
        then = {name: {k: entry[k] for k in ("bytes", "mtime_ns")} for name, entry in record["source"].items()}
        return now == then and all(
            (target / name).stat().st_size == entry["bytes"] for name, entry in record["written"].items()
        )
    except (OSError, KeyError):
        return False


def _same_labels(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Labels of two cases that are byte for byte the same (images are compared by the check)."""
    groups: dict[str, list[str]] = {}
    for name, record in records.items():
        for path, entry in record["written"].items():
            if path.startswith("labels/") and "label is empty, background only" not in record["remarks"]:
                groups.setdefault(entry["sha256"], []).append(name)
    return [f"{enumerated(names)}: the very same label" for names in groups.values() if len(names) > 1]


def _patients(
    entries: list[dict[str, Any]], cases: list[RawCase], records: Mapping[str, Mapping[str, Any]]
) -> set[str]:
    by_image = {
        json.dumps(records[case.name]["entry"]["image"]): case.patient for case in cases if case.name in records
    }
    return {by_image[json.dumps(entry["image"])] for entry in entries}


def _relative(text: str, target: Path) -> str:
    return re.sub(re.escape(str(target)) + r"[/\\]?", "", text)


def _without_times(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for the manifest: the same for the same data, whenever they were copied."""
    sources = {name: {k: v for k, v in entry.items() if k != "mtime_ns"} for name, entry in record["source"].items()}
    return {**{key: value for key, value in record.items() if key != "name"}, "source": sources}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"monai_ssl": monai_ssl.__version__, **{name: version(name) for name in ("nibabel", "numpy", "SimpleITK")}}

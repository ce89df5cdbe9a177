"""What is done with data before a training: split, prepare, check, describe, adapt a preset."""

from __future__ import annotations

import difflib
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from monai_ssl.errors import OVERWRITE, PROGRAM, DataError, UsageError, counted, plural

if TYPE_CHECKING:
    from monai_ssl.curation.prepare import Prepared
    from monai_ssl.curation.verify import Problem
    from monai_ssl.data.datalist import Datalist
    from monai_ssl.data.footprint import Footprint


@dataclass(frozen=True)
class DataCheck(Sequence["Problem"]):
    """The problems that :func:`check` found, errors and warnings, in the order of the lists.

    Attributes:
        problems: each with severity, section, file, message and rule.
        datalist: the cases that were read.
        prepared: memory that the prepared scans of each list take in a training, by the headers of their files.
        ignored: image file -> ignored voxels and all voxels, of every label that has ignored ones.

    Example:
        >>> found = check("scans", dataset="left_atrium")  # doctest: +SKIP
        >>> found.ok, len(found.warnings)  # doctest: +SKIP
        (True, 2)
    """

    problems: tuple[Problem, ...]
    datalist: Datalist
    prepared: Mapping[str, Footprint] = field(default_factory=dict)
    ignored: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        """Problems with which training would fail or mislead."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems that are worth knowing."""
        return [problem for problem in self.problems if problem.severity == "warning"]

    @property
    def ok(self) -> bool:
        """Whether the data can be trained on."""
        return not self.errors

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Problem, ...]: ...
    def __getitem__(self, index: int | slice) -> Problem | tuple[Problem, ...]:
        return self.problems[index]

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def __str__(self) -> str:
        return (
            f"{self.datalist.path}: {counted(self.datalist.counts())}; {plural(len(self.errors), 'error')}, "
            f"{plural(len(self.warnings), 'warning')}"
        )

    @property
    def known(self) -> str:
        """How much of the labels is ignored, as a sentence; empty where nothing is."""
        from monai_ssl.data.rules import ignored_sentence

        return ignored_sentence(self.ignored)

    @property
    def memory(self) -> str:
        """What a training needs for the scans, as a sentence."""
        from monai_ssl.data.cache import memory_sentence

        return memory_sentence(self.prepared)

    def __repr__(self) -> str:
        return f"DataCheck({self})"

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{html.escape(str(problem))}</li>" for problem in self.problems)
        return f"<p>{html.escape(str(self))}</p><ul>{lines}</ul>"


@dataclass(frozen=True)
class Split:
    """What :func:`split` wrote.

    Attributes:
        datalist: the cases of the new datalist, or of the first fold's; ``datalist.path`` is the file.
        preset: YAML of the proposed preset, or of the one that was there already; None where none could be proposed.
        reasons: why each value of the proposal was chosen; empty where an existing preset was kept.
        remark: why there is no proposal; empty otherwise.
        folds: of a cross-validation, the cases of every fold; empty otherwise.
        index: of a cross-validation, the file that names its datalists.
    """

    datalist: Datalist
    preset: Path | None
    reasons: tuple[str, ...] = ()
    remark: str = ""
    folds: tuple[Datalist, ...] = ()
    index: Path | None = None

    @property
    def path(self) -> Path:
        """The JSON file."""
        assert self.datalist.path is not None
        return self.datalist.path

    def __repr__(self) -> str:
        preset = None if self.preset is None else str(self.preset)
        if self.index is not None:
            return f"Split({str(self.index)!r}, {len(self.folds)} folds, preset={preset!r})"
        return f"Split({str(self.path)!r}, {counted(self.datalist.counts())}, preset={preset!r})"


def split(
    source: str | Path | None = None,
    output: str | Path | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    n_labeled: int | None = None,
    n_validation: int | None = None,
    n_testing: int = 0,
    folds: int | None = None,
    seed: int = 0,
    patient_pattern: str | None = None,
    patients: str | Path | None = None,
    label_names: dict[int, str] | None = None,
    label_map: dict[int, int] | None = None,
    ignore_label: int | None = None,
    slices: str | None = None,
    preset: str | Path | None = None,
    overwrite: bool = False,
) -> Split:
    """Choose which cases of a folder are labeled, unlabeled, for validation and testing; propose a preset.

    Images and labels are paired by their names; images without label are unlabeled. The preset is a start: it says why
    each value was chosen.

    Args:
        source: folder with images and labels, or a Decathlon dataset.json.
        output: the datalist to write; default: datalist.json in the folder of the data; `folds` adds -fold1 and so on.
        images: folder of the images, instead of SOURCE.
        labels: folder of the labels, where it is not found by its name.
        n_labeled: labeled training cases; the other labeled cases become unlabeled.
        n_validation: validation cases; default: a fifth of the labeled ones; with `folds` those of every fold,
            together all labeled ones.
        n_testing: test cases.
        folds: cross-validation: write this many datalists, in each of which other cases validate, and the index
            datalist-folds.json; the test cases are the same in all.
        seed: the same seed gives the same split on every machine.
        patient_pattern: regular expression that finds the patient in a case's name, so that no patient is on two
            sides; the numbers then count patients.
        patients: instead of a pattern, a CSV file with the columns case and patient.
        label_names: names of the classes: "{1: left atrium}"; default: as in dataset.json, else from the labels.
        label_map: value in the label files -> class, where they hold other numbers: "{255: 1}" for masks of 0 and 255;
            goes into the preset.
        ignore_label: value in the label files of voxels whose class nobody knows, 255 or -1; goes into the preset.
        slices: "drawn" where only the slices that hold a label were annotated, in every label; goes into the datalist.
        preset: the preset to write; default: preset.yaml next to the datalist. One that exists is kept.
        overwrite: replace an existing datalist (and a preset that is named with `preset`).

    Returns:
        the datalist and the preset.

    Raises:
        DataError: when images and labels do not pair, or a file exists already.

    Example:
        >>> split("scans", n_labeled=10, n_testing=20)  # doctest: +SKIP
        Split('scans/datalist.json', 10 training, 83 unlabeled, 4 validation, 20 testing, preset='scans/preset.yaml')
    """
    if (source is None) == (images is None):
        raise UsageError("split: give either SOURCE or --images DIR")
    target = None if preset is None else Path(preset).expanduser()
    if target is not None and target.suffix.lower() not in {".yaml", ".yml"}:
        raise DataError(f"preset: must be a .yaml file, got {os.fspath(target)!r}")
    if target is not None and target.exists() and not overwrite:
        raise DataError(f"preset: {target} exists already; choose another name, or replace it with {OVERWRITE}")

    from monai_ssl.curation.layouts import described
    from monai_ssl.curation.propose import propose_preset, write_preset
    from monai_ssl.curation.split import make_split
    from monai_ssl.data.loading import fold_datalists, load_datalist

    if ignore_label is not None and (isinstance(ignore_label, bool) or not isinstance(ignore_label, int)):
        raise UsageError(f"--ignore_label: must be a whole number, got {ignore_label!r}")
    if ignore_label is not None and ignore_label in (_whole(label_map) or {}):
        raise UsageError(f"--ignore_label: must be a value that label_map does not name, got {ignore_label}")
    if ignore_label is None and labels is None and (told := described(Path(source or images or "").expanduser())):
        ignore_label = told.ignore_label
    path = make_split(
        str(source or images),
        labels=labels,
        output=output,
        n_labeled=n_labeled,
        n_validation=n_validation,
        n_testing=n_testing,
        folds=folds,
        seed=seed,
        patient_pattern=patient_pattern,
        patients=patients,
        label_names=label_names,
        label_map=_whole(label_map),
        ignore_label=ignore_label,
        slices=slices,
        overwrite=overwrite,
    )
    index = path if folds is not None else None
    lists = tuple(map(load_datalist, fold_datalists(path))) if folds is not None else ()
    cases = lists[0] if lists else load_datalist(path)
    proposed = target or path.parent / "preset.yaml"
    if target is None and proposed.exists():
        return Split(cases, proposed, folds=lists, index=index)
    try:
        entries = cases.training + cases.unlabeled
        channels = cases.channels or None
        proposal = propose_preset(entries, cases.labels, channels, _whole(label_map), ignore_label)
    except DataError as error:
        return Split(cases, None, remark=str(error), folds=lists, index=index)
    write_preset(proposed, proposal)
    return Split(cases, proposed, tuple(proposal.reasons), folds=lists, index=index)


def _whole(label_map: Mapping[Any, Any] | None) -> dict[int, int] | None:
    """
    Raises:
        UsageError: when values or classes are no whole numbers >= 0.
    """
    if label_map is None:
        return None
    for value, target in label_map.items():
        if any(isinstance(part, bool) or not str(part).isdigit() for part in (value, target)):
            raise UsageError(f"--label_map: must map values to classes like {{255: 1}}, got {value!r}: {target!r}")
    return {int(value): int(target) for value, target in label_map.items()}


def prepare(
    dataset: str,
    source: str | Path,
    output: str | Path | None = None,
    n_labeled: int | None = None,
    n_validation: int | None = None,
    n_testing: int | None = None,
    split: str | Path | None = None,
    seed: int | None = None,
    workers: int | None = None,
    check: bool = True,
    download: bool = False,
    **options: Any,
) -> Prepared:
    """From the official download of a public data set to a checked datalist with the published split.

    Repeat it to continue after an interruption: what is done is kept. docs/datasets.md has a section per data set.

    Args:
        dataset: left_atrium, pancreas_ct, brats2019, acdc, mscmrseg2019, hippocampus, msd for any task of the
            Decathlon, or phantom, which needs no download: `prepare phantom OUTPUT` makes synthetic scans.
        source: folder of the download, searched with its subfolders.
        output: new folder for images, labels, datalist.json and manifest.json.
        n_labeled: labeled patients, the first of the training list; default: as published.
        n_validation: validation patients, the last of the training list, where the published split has none.
        n_testing: test patients, where no list is published.
        split: name of another shipped list, or path of your own .yaml.
        seed: draw the split anew, with the published sizes.
        workers: processes; default: one per core, up to 8.
        check: read all written files again with the rules of `monai-ssl check`; False skips it.
        download: fetch hippocampus or an msd task into SOURCE first.
        **options: of the data set: crop literature, label_free or none (left_atrium; pancreas_ct without label_free),
            spacing (pancreas_ct), target whole_tumor, whole_tumor_all or multi_class (brats2019), task (msd).

    Returns:
        what was written, skipped and found.

    Raises:
        DataError: when there is no case, an option is wrong, or `output` holds another preparation.

    Example:
        >>> prepare("acdc", "downloads/ACDC", "acdc")  # doctest: +SKIP
    """
    from monai_ssl.curation.prepare import RECIPES, build_recipe
    from monai_ssl.curation.prepare import prepare as run_recipe

    if dataset == "phantom":
        typed = {"workers": workers, "split": split, "download": download or None, **options}
        if unused := [key for key, value in typed.items() if value is not None]:
            raise UsageError(f"--{unused[0]}: has no meaning for phantom, whose scans are made, not prepared")
        return _make_phantom(Path(output or source).expanduser(), n_labeled, n_validation, n_testing, seed)
    if dataset not in RECIPES:
        near = difflib.get_close_matches(dataset, [*RECIPES, "phantom"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(RECIPES)}, phantom"
        raise DataError(
            f"dataset: {dataset!r} is not a data set that can be prepared, {hint}; your own data: {PROGRAM} split"
        )
    if output is None:
        raise UsageError(f"prepare: missing OUTPUT; usage: {PROGRAM} prepare {dataset} SOURCE OUTPUT")
    recipe = build_recipe(RECIPES[dataset], options)
    return run_recipe(
        recipe, source, output, n_labeled, n_validation, n_testing, split, seed, workers, check, download
    )  # fmt: skip


def _make_phantom(
    output: Path, n_labeled: int | None, n_validation: int | None, n_testing: int | None, seed: int | None
) -> Prepared:
    from monai_ssl.curation.phantom.dataset import write_phantom
    from monai_ssl.curation.prepare import Prepared
    from monai_ssl.data.loading import load_datalist

    typed: dict[str, Any] = {"n_labeled": n_labeled, "n_validation": n_validation, "n_testing": n_testing, "seed": seed}
    try:
        path = write_phantom(output, **{key: value for key, value in typed.items() if value is not None})
    except DataError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from None
    counts = load_datalist(path).counts()
    return Prepared(path, counts, sum(counts.values()), 0, {}, [], [], "phantom", None)


def check(
    dataset_dir: str | Path,
    datalist: str | Path | None = None,
    dataset: str | Path = "left_atrium",
    flavor: str | None = None,
) -> DataCheck:
    """Verify datalist and files before a long run: one line per problem, exit status 1 when there is an error.

    Args:
        dataset_dir: folder of the data.
        datalist: JSON inside it or path; default: the datalist found there.
        dataset: preset that says what the data must be: a name, or the path of your own YAML.
        flavor: of the preset: literature or practical.

    Returns:
        the problems, and the cases that were read.

    Raises:
        DataError: when preset or datalist cannot be read.

    Example:
        >>> for problem in check("scans").errors:  # doctest: +SKIP
        ...     print(problem)
    """
    from monai_ssl.data.loading import load_datalist
    from monai_ssl.data.preset import load_preset

    preset = load_preset(dataset, flavor)
    cases = load_datalist(datalist, dataset_dir)

    from monai_ssl.curation.verify import verify
    from monai_ssl.data.cache import prepared_footprints

    ignored: dict[str, tuple[int, int]] = {}
    problems = tuple(verify(cases, preset, ignored=ignored))
    return DataCheck(problems, cases, prepared_footprints(cases, preset), ignored)


def describe(
    source: str | Path,
    datalist: str | Path | None = None,
    output: str | Path | None = None,
    title: str | None = None,
    dataset: str | Path | None = None,
) -> Path:
    """Write an HTML page that shows the data: sizes, spacings, intensities, class volumes, pictures with labels.

    Args:
        source: a datalist, or the folder of the data.
        datalist: JSON inside the folder; default: the datalist found there.
        output: the page; default: NAME-OF-THE-DATALIST.html next to the datalist.
        title: heading; default: name of the folder.
        dataset: preset that says what the values of label files mean (label_map, ignore_label); default: preset.yaml
            next to the datalist, where there is one.

    Returns:
        path of the page.

    Raises:
        DataError: when there is no case, or `output` is no .html file.

    Example:
        >>> describe("scans")  # doctest: +SKIP
        PosixPath('scans/datalist.html')
    """
    from monai_ssl.data.loading import load_datalist
    from monai_ssl.data.preset import load_preset

    is_list = str(source).lower().endswith(".json")
    cases = load_datalist(source) if is_list else load_datalist(datalist, source)
    assert cases.path is not None  # strict

    from monai_ssl.reports.dataset import describe as write_page

    beside = cases.path.with_name("preset.yaml")
    named = dataset if dataset is not None else beside if beside.is_file() else None
    preset = None if named is None else load_preset(named)
    return write_page(cases, output or cases.path.with_suffix(".html"), title, preset=preset)


def copy_preset(name: str | Path, output: str | Path, flavor: str | None = None) -> Path:
    """Write a dataset preset to a YAML file, to adapt it to your data.

    Args:
        name: left_atrium, hippocampus, ... (`monai-ssl list`): the one whose data are most like yours.
        output: new YAML file; give it to check and train as `dataset`.
        flavor: literature (as published) or practical (for your own scans).

    Returns:
        path of the file.

    Raises:
        DataError: for an unknown preset, or a file that exists.

    Example:
        >>> copy_preset("left_atrium", "my_data.yaml", "practical")  # doctest: +SKIP
        PosixPath('my_data.yaml')
    """
    import yaml

    from monai_ssl.data.preset import dump_preset, load_preset
    from monai_ssl.files import write_text

    chosen = load_preset(name, flavor)
    target = Path(output).expanduser()
    if target.suffix.lower() not in {".yaml", ".yml"}:
        raise DataError(f"output: must be a .yaml file, got {os.fspath(output)!r}")
    if target.exists():
        raise DataError(f"output: {target} exists already; choose another name")
    content = yaml.safe_load(dump_preset(chosen))
    del content["name"], content["published"]  # the file's own name counts, and the numbers that it states
    content["labels"] = {int(value): label for value, label in content["labels"].items()}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(target, f"# A copy of {chosen.name} ({chosen.flavor}); see docs/datasets.md for the keys.\n{text}")
    return target

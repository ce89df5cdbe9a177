"""Training a bundle: from the user's data to a finished run folder."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.errors import PROGRAM, DataError, counted, plural
from monai_ssl.runs.folder import Run

if TYPE_CHECKING:
    from monai_ssl.curation.verify import Problem
    from monai_ssl.data.datalist import Datalist
    from monai_ssl.data.preset import Preset
    from monai_ssl.data.reading import ScanMemory

WARNINGS_SHOWN = 5
console = logging.getLogger("monai_ssl.console")


def train(
    bundle: str | Path,
    dataset_dir: str | Path,
    datalist: str | Path = "datalist.json",
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    init: str | Path | Run | None = None,
    check: bool = True,
    gpus: int = 1,
    **overrides: Any,
) -> Run:
    """Train a method (a bundle) on labeled and unlabeled scans. Repeat the call to resume an interrupted run.

    A thin wrapper around `python -m monai.bundle run`: it checks the data, notes in run.json what is trained, and lets
    nobody else write to the run's folder meanwhile.

    Args:
        bundle: dtc, supervised, ... (`monai-ssl list`), or the folder of your own bundle. On the command line it may be
            left out: `monai-ssl train DATASET_DIR` is `monai-ssl self-train`.
        dataset_dir: folder of the data.
        datalist: JSON inside it (or a path); `monai-ssl split` writes one.
        dataset: preset: left_atrium, hippocampus, phantom, ..., or the path of your own YAML; default: what the
            bundle names (left_atrium), or carries in it (a packaged one).
        output: folder of the run; default: runs/BUNDLE-PRESET-FOLDER-seedSEED, with your own preset
            runs/BUNDLE-FOLDER-seedSEED; a fold's datalist adds -fold1 to the folder.
        init: warm start: the network begins with the weights of this run (its folder) or file, as far as they fit.
        check: read all scans first and stop at bad data (seconds); False skips it.
        gpus: that train together, a process each; batch sizes are those of one process.
        **overrides: any id of the bundle's configs/train.yaml: flavor, seed, max_iterations, labeled_batch_size, amp,
            device, method#unsupervised_weight, ...

    Returns:
        the run: its folder, record and weights.

    Raises:
        DataError: for an unknown bundle, preset, id or file, for data that cannot be trained on, and when another
            training writes to the folder.

    Example:
        >>> run = train("dtc", "scans", dataset="left_atrium", seed=1, max_iterations=3000)  # doctest: +SKIP
        >>> floor = train("dtc", "scans", output="runs/floor", **{"method#unsupervised_weight": 0})  # doctest: +SKIP
    """
    from monai_ssl.bundle.library import find_bundle, is_shipped, own_dataset, run_bundle
    from monai_ssl.bundle.overrides import check_overrides, handed_on, literal, merged_config

    home = find_bundle(bundle)
    overrides = american_overrides(overrides)
    if init is not None:
        from monai_ssl.runs.warm_start import weights_file

        overrides["init"] = str(weights_file(init.folder if isinstance(init, Run) else init))
    refuse_preset_keys(overrides)
    check_overrides(home, ["train.yaml"], overrides)
    if gpus != 1:
        from monai_ssl.runs.together import check_gpus

        check_gpus(gpus, home, overrides.get("device"))

    from monai_ssl.data.loading import load_datalist
    from monai_ssl.data.preset import load_preset
    from monai_ssl.runs.record import Record, training_command

    source = dataset if dataset is not None else own_dataset(home)
    if isinstance(source, (str, Path)) and str(source).endswith((".yaml", ".yml")):
        source = str(Path(source).expanduser().resolve())
    known = merged_config(home, ["train.yaml"], overrides)
    literature = known.get("literature")
    preset = load_preset(source, overrides.get("flavor"), literature if isinstance(literature, dict) else None)
    if preset.name == "phantom" and not Path(dataset_dir).expanduser().exists():
        raise DataError(
            f"dataset_dir: must be an existing folder, got {dataset_dir}; `{PROGRAM} prepare phantom {dataset_dir}` "
            "writes one"
        )
    cases = load_datalist(datalist, dataset_dir)
    cases.require("training")
    folder = Path(dataset_dir).expanduser().resolve()
    run = Run(output or default_folder(home.name, preset, folder, overrides.get("seed", 0), cases.path))
    settings: dict[str, Any] = {
        "dataset": literal(source) if isinstance(source, str) else source,
        "dataset_dir": literal(folder),
        "datalist": literal(str(cases.path)),
        "output_dir": literal(run.folder),
    }
    if overrides.get("init") == str(run.model):
        raise DataError(f"init: must be another run than the one that begins, got {run.folder}; give another --output")
    for key in settings.keys() & overrides.keys():
        raise DataError(f"--{key}: give it as --output" if key == "output_dir" else f"--{key}: given twice")
    run.refuse_foreign(folder)
    if output is None:
        run.refuse_other_data(folder)
    from monai_ssl.data.reading import handed_over

    console.info("%s: %s (%s), %s, output %s", home.name, preset.name, preset.flavor, counted(cases.counts()),
                 run.folder)  # fmt: skip
    pseudo = _pseudo_labels(known, overrides)
    if pseudo is not None:
        overrides["pseudo_labels"] = literal(pseudo)
    budget = _cache_budget(known)
    # a scan is read once: the cache takes over what the check has read, as far as a quarter of its budget allows
    with run.locked(), handed_over(budget / 4) as memory:
        if check:
            cases = verified(cases, preset, memory, pool=_reads_the_pool(known), pseudo_labels=pseudo)
        # what is loaded and checked is handed on, so that the configs need not load it again
        loaded = handed_on(known, preset=preset, cases=cases)
        settings |= loaded | overrides
        if init is not None:
            settings["init"] = literal(overrides["init"])
        if isinstance(overrides.get("cache_dir"), (str, Path)):
            settings["cache_dir"] = literal(Path(overrides["cache_dir"]).expanduser().resolve())
        name = home.name if is_shipped(home) else str(home)
        named = source if dataset is not None else None  # a file by its whole path: the command works from anywhere
        places = {"dataset_dir": folder, "datalist": cases.path, "dataset": named, "output": run.folder}
        typed = {key: value for key, value in places.items() if value is not None}
        if gpus > 1:
            typed["gpus"] = gpus
        record = Record(bundle=name, overrides=overrides, dataset=preset.name, flavor=preset.flavor,
                        dataset_dir=str(folder), datalist=str(cases.path), max_iterations=_iterations(known, settings),
                        command=training_command(name, typed | overrides), **_environment())  # fmt: skip
        run.announce(record, preset)
        try:
            if gpus > 1:
                from monai_ssl.runs.together import train_together

                plain = {key: value for key, value in settings.items() if key in overrides or key not in loaded}
                run.release()  # its first process takes the folder
                try:
                    train_together(home, plain, run.folder, gpus)
                finally:
                    run.acquire()
            else:
                run_bundle(home, ["train.yaml"], settings)
        finally:
            run.settle()
        run.finish(record)
    return run


def refuse_preset_keys(overrides: Mapping[str, Any]) -> None:
    """A patch size, a window, ... belong to the data: every command must find them in one place, the preset.

    Raises:
        DataError: for the first option that is such a key.
    """
    from monai_ssl.bundle.overrides import root_id
    from monai_ssl.data.preset import Augmentation, Intensity, Preset, Window

    keys = {name for model in (Preset, Augmentation, Intensity, Window) for name in model.model_fields} - {"flavor"}
    for key in overrides:
        if root_id(key) in keys - {"labels", "training"}:
            raise DataError(
                f"--{key}: is a key of the preset, not an option: `{PROGRAM} preset NAME my.yaml` copies one; change "
                "it there and give --dataset my.yaml"
            )


def american_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with today's spelling; the old one is read with a warning.

    Raises:
        DataError: when an id is given in both spellings.
    """
    renamed = dict(overrides)
    if "flavour" in renamed:
        if "flavor" in renamed:
            raise DataError("--flavour: is the old spelling of --flavor, which is given, too; leave one out")
        warnings.warn("flavour is now spelled flavor", stacklevel=3)
        renamed["flavor"] = renamed.pop("flavour")
    return renamed


def verified(
    cases: Datalist,
    preset: Preset,
    memory: ScanMemory | None = None,
    pool: bool = True,
    pseudo_labels: Path | None = None,
) -> Datalist:
    """The cases, once every scan has been read and found fit; ``memory`` keeps what was read and training reads again.

    The test cases are checked, too: what is wrong with them (a class that no preset names, a label on another grid)
    would show after the training only. Nothing of them is kept.

    Args:
        cases: of the training.
        preset: what they must be.
        memory: keeps what was read.
        pool: whether the training reads unlabeled images.
        pseudo_labels: folder of label maps of the pool; they are checked like labels.

    Raises:
        DataError: when one is not; all errors are said before, a line each.
    """
    from monai_ssl.curation.verify import verify
    from monai_ssl.data.rules import ignored_sentence

    drawn: list[Any] = []
    if pseudo_labels is not None:
        from monai_ssl.data.pseudo_labels import pseudo_labeled

        drawn = pseudo_labeled(cases.unlabeled, pseudo_labels)
    ignored: dict[str, tuple[int, int]] = {}
    sections = ("training", *["unlabeled"] * (pool or bool(drawn)), "validation", "testing")
    problems = verify(cases, preset, sections, memory=memory, ignored=ignored, drawn=drawn)
    if ignored:
        console.info("%s", ignored_sentence(ignored))
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        if problem.severity == "warning":
            groups.setdefault(problem.rule, []).append(problem)
    for group in list(groups.values())[:WARNINGS_SHOWN]:
        # verify() has merged long lists of equal warnings already
        merged = [re.search(r" \(and (\d+) more cases? of this list\)$", str(problem)) for problem in group]
        n = len(group) - 1 + sum(int(match[1]) for match in merged if match)
        text = str(group[0])[: merged[0].start()] if merged[0] else str(group[0])
        console.warning("%s", f"{text} (and {n} more like this)" if n else text)
    if len(groups) > WARNINGS_SHOWN:
        rest = len(groups) - WARNINGS_SHOWN
        console.warning("warning: %d more kinds of warning; `%s check` shows all", rest, PROGRAM)
    errors = [problem for problem in problems if problem.severity == "error"]
    for problem in errors:
        console.error("%s", problem)
    if errors:
        raise DataError(f"data: {plural(len(errors), 'error')}, nothing was trained; correct them, then train again")
    return cases


def default_folder(bundle: str, preset: Preset, data: Path, seed: Any, datalist: Path | None = None) -> Path:
    """``runs/dtc-left_atrium-scans-seed0``: what tells trainings apart, folder and fold of the data among it."""
    from monai_ssl.data.preset import available_presets

    names = [name for name in (preset.name, data.name) if name in available_presets() or name == data.name]
    fold = re.search(r"-(fold\d+)$", "" if datalist is None else datalist.stem)
    return Path("runs") / "-".join([bundle, *dict.fromkeys(names), *([fold[1]] if fold else []), f"seed{seed}"])


def _pseudo_labels(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Path | None:
    """The folder of label maps of the pool, for a method that learns from some.

    Raises:
        DataError: when such a method gets none.
    """
    given = overrides.get("pseudo_labels")
    if "pseudo_labels" not in config or (isinstance(given, str) and given.startswith(("$", "@"))):
        return None
    if given is not None:
        return Path(str(given)).expanduser().resolve()
    method = config.get("method")
    weight = method.get("unsupervised_weight") if isinstance(method, Mapping) else None
    if weight == 0 or config.get("pseudo_labels") is not None:
        return None
    raise DataError(
        f"pseudo_labels: the method learns label maps of the pool: `{PROGRAM} self-train` makes them and trains it, "
        "--pseudo_labels DIR names yours; --method#unsupervised_weight 0 goes without, as its matched floor"
    )


def _reads_the_pool(config: Mapping[str, Any]) -> bool:
    """Whether the method of a config looks at unlabeled images."""
    import pydoc

    block = config.get("method")
    target = block.get("_target_") if isinstance(block, Mapping) else None
    method = pydoc.locate(target) if isinstance(target, str) else None
    return bool(getattr(method, "uses_unlabeled", True)) and config.get("unlabeled_batch_size") != 0


def _cache_budget(config: Mapping[str, Any]) -> float:
    """Bytes that a config allows for prepared scans, as far as there are so many."""
    from monai.bundle import ConfigParser

    from monai_ssl.data.cache import budget_bytes, default_budget
    from monai_ssl.machine import available_memory

    wanted = ConfigParser(dict(config)).get_parsed_content("cache_gb") if "cache_gb" in config else None
    budget = budget_bytes(wanted)
    return default_budget() if budget is None else min(budget, available_memory())


def _iterations(config: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    """How many iterations the bundle's config asks for."""
    from monai.bundle import ConfigParser

    if "max_iterations" not in config:
        return None
    parser = ConfigParser(dict(config))
    parser.update(dict(settings))
    value = parser.get_parsed_content("max_iterations")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"--max_iterations: must be an integer >= 1, got {value!r}")
    return value


def _environment() -> dict[str, Any]:
    from monai_ssl.metrics import environment

    return environment()

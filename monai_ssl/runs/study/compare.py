"""``monai-ssl compare``: many trainings, one table."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monai_ssl.errors import PROGRAM, DataError, UsageError, enumerated

if TYPE_CHECKING:
    from monai_ssl.runs.study.plan import Plan
    from monai_ssl.runs.study.settings import StudySettings

console = logging.getLogger("monai_ssl.console")

STUDY = "study.yaml"
# methods that are compared where nobody names any
METHODS = ("self_training",)


@dataclass
class Comparison:
    """What :func:`compare` made.

    Attributes:
        folder: of the study: ``study.yaml``, ``runs/``, ``results/``, the report.
        page: the HTML report; None where no run is done yet.
        failed: run -> why it failed, and where its log is.
        left: runs that are not done.
        total: runs in all, each counted once.
        next: what to type next; empty where everything is done.
    """

    folder: Path
    page: Path | None = None
    failed: dict[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    total: int = 0
    next: str = ""

    def __repr__(self) -> str:
        return f"Comparison({str(self.folder)!r}, {self.total - len(self.left)} of {self.total} runs done)"


def compare(
    source: str | Path,
    dataset: str | Path | None = None,
    datalist: str | Path | None = None,
    output: str | Path | None = None,
    methods: str | Sequence[str] | None = None,
    references: str | Sequence[str] | None = None,
    labels: str | Sequence[int] | None = None,
    seeds: str | Sequence[int] | None = None,
    splits: int | None = None,
    n_testing: int | None = None,
    folds: int | None = None,
    flavors: str | Sequence[str] | None = None,
    section: Literal["testing", "validation", "training"] | None = None,
    weights: Literal["last", "best"] | None = None,
    all_labels: str | Path | None = None,
    quoted: str | Path | None = None,
    title: str | None = None,
    engine: Literal["local", "ray", "slurm"] = "local",
    jobs: int | None = None,
    threads: int = 1,
    gpus: int | None = None,
    check: bool = True,
    dry_run: bool = False,
    **overrides: Any,
) -> Comparison:
    """Train methods and their references side by side, score them, write one report. Repeat the call to go on.

    Methods x numbers of labels x seeds or splits; what two of them share is trained once. Every run is a process and an
    ordinary run folder of its own. A finished run is never repeated, a killed one goes on, a failed one is reported and
    the rest goes on.

    Args:
        source: folder of the scans, or a STUDY.yaml, or the folder of a former study.
        dataset: preset, or the path of your own YAML; default: preset.yaml among the scans, which `monai-ssl split`
            writes.
        datalist: JSON among the scans, or an index of folds; default: datalist.json.
        output: folder of the study; default: studies/SCANS, or studies/STUDY.
        methods: bundles, comma-separated, or all; default: self_training.
        references: of floor, matched_floor, ceiling, no_pool, oracle; all; none; default: the first three.
        labels: numbers of labels, comma-separated: the first N of the list, the others join the pool without their
            labels; default: all of the list.
        seeds: comma-separated; default: 0.
        splits: this many random splits of all labeled scans, test set drawn first, instead of the datalist's.
        n_testing: test scans of a random split.
        folds: this many folds of the labeled scans, each scored once.
        flavors: of the preset, comma-separated; default: the preset's own.
        section: list that is scored: testing, validation or training; default: testing, else validation.
        weights: last (default) or best: the iterate that validation likes best. Test scans never pick.
        all_labels: datalist whose labels the ceiling and the oracle may know; default: what lies beside the scans.
        quoted: YAML of published figures, shown as quoted.
        title: of the report.
        engine: local: several at once on this machine; ray: on a Ray cluster; slurm: write a script of array jobs.
        jobs: runs at once; 0: train nothing, write the report of what is done; default: one per GPU or core.
        threads: of each run.
        gpus: that train each run together.
        check: read all scans first and stop at bad data (seconds); False skips it.
        dry_run: tell how many runs there are, which are shared or done, and by a few steps of each how long it takes.
        **overrides: ids of the bundles' configs for all runs whose bundle knows them: max_iterations, device,
            network_def#base_channels, ...

    Returns:
        folder, page, and which runs failed or are left.

    Raises:
        DataError: for mistakes in the study, all of them before the first training.

    Example:
        >>> compare("scans", dataset="my_data.yaml", methods="all", seeds="0,1,2")  # doctest: +SKIP
        Comparison('studies/scans', 54 of 54 runs done)
    """
    if jobs is not None and (isinstance(jobs, bool) or jobs < 0):
        raise UsageError(f"--jobs: must be an integer >= 0, got {jobs!r}")
    if isinstance(threads, bool) or threads < 1:
        raise UsageError(f"--threads: must be an integer >= 1, got {threads!r}")
    given = {
        "methods": methods, "references": references, "labels": labels, "seeds": seeds, "folds": folds,
        "flavors": flavors, "section": section, "weights": weights, "quoted": quoted, "title": title, "gpus": gpus,
    }  # fmt: skip
    data = {"dataset": dataset, "datalist": datalist, "all_labels": all_labels}
    study, folder = _study(Path(source).expanduser(), given, data, output, splits, n_testing, overrides)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"output: must be a folder, new or a study's, got the file {folder}; give another --output")
    if folder.is_dir() and (foreign := _foreign(folder)):
        raise DataError(
            f"output: must be a new folder or a study's, got {folder}, which holds {enumerated(foreign, 3)}; give "
            "another --output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with _only_here(folder):
        return _compare(study, folder, engine, jobs, threads, check, dry_run)


def _compare(
    study: StudySettings, folder: Path, engine: str, jobs: int | None, threads: int, check: bool, dry_run: bool
) -> Comparison:
    from monai_ssl.files import write_text
    from monai_ssl.runs.study.collect import collect, summary
    from monai_ssl.runs.study.local import run_here, share
    from monai_ssl.runs.study.plan import make_plan, told
    from monai_ssl.runs.study.tasks import done, settle, write_plan

    study = _with_precision(study, folder)
    plan = make_plan(study, folder)
    if check and jobs != 0:
        _check_data(plan, folder)
    tasks = list(plan.tasks.values())
    if not dry_run:
        if (folder / STUDY).is_file() and (folder / STUDY).read_text(encoding="utf-8") != study.text():
            console.info("the study has changed: only runs that are new or different are trained")
        write_text(folder / STUDY, study.text())
        settle(tasks, folder)
    finished = [task.name for task in tasks if done(task, folder)]
    for line in told(plan, finished):
        console.info("%s", line)
    command = shlex.join([PROGRAM, "compare", str(folder)])
    result = Comparison(folder, total=len(tasks))
    left = [task for task in tasks if task.name not in finished]
    if dry_run:
        from monai_ssl.runs.study.probe import estimate

        given = share(jobs or None, threads, study.gpus, study.options.get("device"))
        write_plan(tasks, folder)
        for line in estimate(left, folder, given):
            console.info("%s", line)
        result.left, result.next = tuple(task.name for task in left), "the same command without --dry_run"
        return result
    write_plan(tasks, folder)
    if left and jobs != 0:
        if engine == "slurm":
            from monai_ssl.runs.study.slurm import write_scripts

            result.next = write_scripts(left, folder, study.gpus, threads, study.options.get("device"))
        elif engine == "ray":
            from monai_ssl.runs.study.ray_cluster import run_on_ray

            result.failed = run_on_ray(left, tasks, folder, threads, study.gpus, study.options.get("device"))
        else:
            given = share(jobs, threads, study.gpus, study.options.get("device"))
            start = time.monotonic()
            result.failed = run_here(tasks, folder, given).failed
            console.info("%.1f minutes", (time.monotonic() - start) / 60)
    result.left = tuple(task.name for task in tasks if not done(task, folder))
    result.page = collect(study, plan, folder, command)
    for line in summary(plan, folder):
        console.info("%s", line)
    if result.left and not result.next:
        result.next = f"{len(result.left)} of {len(tasks)} runs are left: run the same command again"
    return result


# ----------------------------------------------------------------------------------------------------- the study


def _study(
    source: Path,
    given: dict[str, Any],
    data: dict[str, Any],
    output: str | Path | None,
    splits: int | None,
    n_testing: int | None,
    overrides: dict[str, Any],
) -> tuple[StudySettings, Path]:
    """Settings and folder, from a file with what the command changes of it, or from the command alone."""
    from monai_ssl.runs.study.settings import checked, read_study

    file = source / STUDY if (source / STUDY).is_file() else source
    given = {key: value for key, value in given.items() if value is not None}
    if file.is_file() and file.suffix.lower() in (".yaml", ".yml"):
        content = read_study(file)
        if data_given := [key for key, value in data.items() if value is not None]:
            raise UsageError(f"--{data_given[0]}: is said in {file}, for each data set")
        folder = Path(output).expanduser() if output else source if source != file else Path("studies") / file.stem
        where = str(file)
    elif source.is_dir():
        content, where = _of_folder(source, data), "compare"
        folder = Path(output).expanduser() if output else Path("studies") / source.resolve().name
        given.setdefault("methods", list(METHODS))
    else:
        raise DataError(f"source: must be a folder of scans, a study's folder or a STUDY.yaml, got {source}")
    content |= {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    _make_whole(content, given)
    if splits is not None:
        content["splits"] = {"number": splits, "n_testing": n_testing or 0}
    elif n_testing is not None:
        raise UsageError("--n_testing: goes with --splits")
    if overrides:
        options = content.get("options") or {}
        content["options"] = {**options, **overrides} if isinstance(options, dict) else options
    if "section" not in content:
        content["section"] = _section(content)
    return checked(content, where), folder.resolve()


def _foreign(folder: Path) -> list[str]:
    """What lies in a folder that is no study's; one that was planned only, or whose plan was refused, is one."""
    names = sorted(path.name for path in folder.iterdir())
    return [] if {STUDY, "lists", ".lock"} & set(names) else names


def _make_whole(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Paths that the command names, made absolute: the study's folder keeps them, and may be called from elsewhere."""
    if given.get("quoted") is not None:
        content["quoted"] = str(Path(str(given["quoted"])).expanduser().resolve())
    if given.get("methods") is not None:
        named = given["methods"]
        words = [word.strip() for word in named.split(",")] if isinstance(named, str) else named
        if isinstance(words, (list, tuple)):
            content["methods"] = [_own_folder(str(word)) for word in words if str(word).strip()]


def _own_folder(name: str) -> str:
    """A bundle's folder as an absolute path; the name of a shipped bundle as it is."""
    own = Path(name).expanduser()
    return str(own.resolve()) if (own / "configs" / "train.yaml").is_file() else name


def _of_folder(scans: Path, data: dict[str, Any]) -> dict[str, Any]:
    """A study of one data set."""
    found: dict[str, Any] = {"scans": str(scans.resolve())}
    for key, value in data.items():
        if value is not None:
            path = Path(value).expanduser()
            named = str(value).endswith((".yaml", ".yml")) if key == "dataset" else _is_elsewhere(path, scans)
            found[key] = str(path.resolve()) if named else str(value)
    if "dataset" not in found and (scans / "preset.yaml").is_file():
        found["dataset"] = str((scans / "preset.yaml").resolve())
        console.info("preset: %s; --dataset names another", found["dataset"])
    name = scans.resolve().name
    name = "".join(letter if letter.isalnum() or letter in "_.+-" else "_" for letter in name).lstrip("_.+-")
    return {"data": {name or "scans": found}}


def _is_elsewhere(path: Path, scans: Path) -> bool:
    """Whether a datalist lies outside of the folder of the scans, by a path from here."""
    return path.is_file() and not (scans / path).is_file()


def _section(content: dict[str, Any]) -> str:
    """The held-out list that there is: test cases where there are some."""
    from monai_ssl.data.loading import load_datalist

    if content.get("splits") is not None:
        return "testing"
    if content.get("folds") is not None:
        return "validation"
    data = content.get("data")
    for part in data.values() if isinstance(data, dict) else ():
        if isinstance(part, dict) and isinstance(part.get("scans"), str) and not part.get("folds"):
            try:
                cases = load_datalist(str(part.get("datalist", "datalist.json")), part["scans"])
            except DataError:
                continue  # told with the other mistakes
            if cases.validation and not all("label" in entry for entry in cases.testing or [{}]):
                return "validation"
    return "testing"


def _with_precision(study: StudySettings, folder: Path) -> StudySettings:
    """One precision for all runs: on a CPU each would measure what is fastest, on a busy machine, and rows could
    differ.

    What the first start decided holds for later ones, on other machines as well.
    """
    from monai_ssl.runs.study.settings import read_study

    if study.precision or "amp" in study.options:
        return study
    former = read_study(folder / STUDY).get("precision") if (folder / STUDY).is_file() else None
    if not isinstance(former, dict) or not former:
        import torch

        from monai_ssl.engines.precision import cpu_gains_from_bfloat16, prefers_channels_last

        device = str(study.options.get("device", "cuda" if torch.cuda.is_available() else "cpu"))
        if device != "cpu":
            return study
        half = cpu_gains_from_bfloat16()
        last = prefers_channels_last("cpu", torch.bfloat16 if half else None)
        former = {"amp": "bf16" if half else "off", "layout": "channels_last" if last else "contiguous"}
    return study.model_copy(update={"precision": former})


def _check_data(plan: Plan, folder: Path) -> None:
    """Read every scan once, before the first training; what was found fit is not read again.

    Raises:
        DataError: when a scan cannot be trained on.
    """
    import json

    from monai_ssl.files import write_text
    from monai_ssl.runs.study.identity import Contents, digest
    from monai_ssl.runs.study.tasks import done
    from monai_ssl.runs.train import verified

    path = folder / "lists" / ".checked.json"
    if all(done(task, folder) for task in plan.tasks.values()):
        return
    try:
        known = set(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = set()
    contents = Contents(folder / "lists" / ".digests.json")
    once = _Once()
    console.addFilter(once)
    try:
        for preset, cases in plan.lists:
            sections = ("training", "unlabeled", "validation", "testing")
            key = digest([contents.of_list(cases, sections), preset.model_dump(mode="json")])
            if key not in known:
                verified(cases, preset, pool=bool(cases.unlabeled))  # a method without a pool is refused before
                known.add(key)
                write_text(path, json.dumps(sorted(known)) + "\n")
    finally:
        console.removeFilter(once)
    contents.keep()


class _Once(logging.Filter):
    """Folds share most of their scans, and what is to be said of these is the same: it is said once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self._said
        self._said.add(text)
        return new


class _only_here:  # noqa: N801
    """Nobody else works in the study's folder meanwhile."""

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.folder, self.lock = folder, FileLock(str(folder / ".lock"), timeout=0)

    def __enter__(self) -> None:
        from filelock import Timeout

        try:
            self.lock.acquire()
        except Timeout:
            raise DataError(
                f"output: another `{PROGRAM} compare` works in {self.folder} just now; wait for it, or give another "
                "--output"
            ) from None
        except NotImplementedError:  # a file system without locks
            pass

    def __exit__(self, *_: object) -> None:
        if self.lock.is_locked:
            self.lock.release()

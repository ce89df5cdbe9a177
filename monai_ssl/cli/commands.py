"""The commands: each is a function of the Python API, and a way to print what it returns."""

from __future__ import annotations

import importlib
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.errors import PROGRAM, counted, plural

if TYPE_CHECKING:
    from monai_ssl.curation.prepare import Prepared
    from monai_ssl.deploy.predict import Predictions
    from monai_ssl.deploy.rank import Ranking
    from monai_ssl.runs.datasets import DataCheck, Split
    from monai_ssl.runs.evaluation import Evaluation
    from monai_ssl.runs.folder import Run
    from monai_ssl.runs.self_training import SelfTraining
    from monai_ssl.runs.study.compare import Comparison

Given = Mapping[str, Any]


def _show_nothing(result: Any, given: Given) -> None:
    """The function has said everything."""


@dataclass(frozen=True)
class Command:
    """A command of ``monai-ssl``.

    Attributes:
        name: as it is typed.
        home: ``module:function``; the module must import neither PyTorch nor MONAI when it is loaded, since ``--help``
            and typing errors are answered from the function's signature and docstring.
        show: prints the result and returns the exit status (None: 0); gets the arguments that were typed, too.
        optional: positional arguments that usage shows although they have defaults.
        several: the first positional argument may be several folders of runs, one after the other.
        example: for ``--help``.
    """

    name: str
    home: str
    show: Callable[[Any, Given], int | None] = _show_nothing
    optional: tuple[str, ...] = ()
    several: bool = False
    example: str = ""

    @property
    def function(self) -> Callable[..., Any]:
        """The function of the API."""
        module, _, name = self.home.partition(":")
        return getattr(importlib.import_module(module), name)

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Names on the command line -> parameters of the function."""
        return dict(inspect.signature(self.function).parameters)

    @property
    def usage(self) -> str:
        """``monai-ssl COMMAND ARGUMENTS``."""
        required = [
            name.upper() for name, p in self.parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
        ]
        words = [PROGRAM, self.name, *required, *(f"[{name}]" for name in self.optional)]
        if self.several:
            words[2] += " ..." if required else ""
            words[2] = words[2].replace("]", " ...]")
        return " ".join(words + ["[OPTIONS]"] * (len(self.parameters) > len(required) + len(self.optional)))


def list_all() -> tuple[list[str], list[str]]:
    """Show the shipped bundles and dataset presets."""
    from monai_ssl.bundle.library import available_bundles
    from monai_ssl.data.preset import available_presets

    return available_bundles(), available_presets()


# ------------------------------------------------------------------------------------------------ what is printed


def _show(text: str) -> Callable[[Any, Given], None]:
    """Print a result (``{}``) in a text."""
    return lambda result, given: print(text.format(result))


def _show_list(result: tuple[list[str], list[str]], given: Given) -> None:
    print("bundles: ", *result[0])
    print("datasets:", *result[1])


def _show_split(result: Split, given: Given) -> None:
    cases, path = result.datalist, result.path
    for fold in result.folds:
        print(f"{fold.path}: {counted(fold.counts())}")
    print(f"{path}: {counted(cases.counts())}" if result.index is None else f"index of the folds: {result.index}")
    print("classes:", ", ".join(f"{value} {name}" for value, name in cases.labels.items()))
    if result.preset is None:
        print(f"no preset is proposed: {result.remark}", file=sys.stderr)
    elif not result.reasons:
        print(f"{result.preset}: exists already and is kept; --preset FILE proposes a new one")
    else:
        print(f"{result.preset}: a proposal, from the data:")
        for reason in result.reasons:
            print(f"  - {reason}")
        words = ["check", str(path.parent), "--datalist", path.name, "--dataset", str(result.preset)]
        print(f"next: {PROGRAM} {shlex.join(words)}")


def _show_prepared(done: Prepared, given: Given) -> int:
    for remark in done.remarks:
        print(f"note: {remark}")
    for name, reason in done.skipped.items():
        print(f"skipped: {name}: {reason}")
    for problem in done.problems:
        print(problem)
    errors = sum(problem.severity == "error" for problem in done.problems)
    print(f"{done.datalist}: {counted(done.counts)}; {done.converted} converted, {done.reused} from before, "
          f"{len(done.skipped)} skipped; {plural(errors, 'error')}")  # fmt: skip
    from monai_ssl.curation.prepare import RECIPES
    from monai_ssl.curation.prepare.engine import option_names

    recipe = RECIPES.get(given["dataset"])  # none makes the phantom
    cropped = recipe is not None and "crop" in option_names(recipe)
    if cropped and given.get("crop", "literature") == "literature":
        print("ATTENTION: images are cropped around their LABELS, as in the literature. The crop tells where the "
              "organ is, also in unlabeled and test cases: results do not carry over to whole scans.")  # fmt: skip
    flavor = f" --flavor {done.flavor}" if done.flavor else ""
    print(f"next: {PROGRAM} train dtc {shlex.quote(str(done.datalist.parent))} --dataset {done.preset}{flavor}")
    return int(errors > 0)


def _show_preset(path: Path, given: Given) -> None:
    print(f"{path}: edit channels, labels, patch_size, spacing; then: {PROGRAM} check DIR --dataset {given['output']}")


def _show_check(found: DataCheck, given: Given) -> int:
    for problem in found:
        print(problem)
    if found.known:
        print(found.known)
    print(found.memory)
    print(found)
    return int(not found.ok)


def _show_train(run: Run, given: Given) -> None:
    from monai_ssl.data.loading import load_datalist

    record = run.record
    section = "validation" if load_datalist(record.datalist, record.dataset_dir).validation else "testing"
    print(f"weights: {run.model}\nnext: {PROGRAM} evaluate {shlex.quote(str(run.folder))} --section {section}")


def _show_self_training(done: SelfTraining, given: Given) -> None:
    if done.page is not None:
        print(f"pseudo-labels: {done.page}")
    _show_train(done.run, given)


def _show_evaluation(result: Evaluation, given: Given) -> None:
    print("\n".join(result.lines()))
    print(f"report: {result.page}")


def _show_predictions(result: Predictions, given: Given) -> None:
    print("\n".join(map(str, result.files)) if result.files else result)


def _show_comparison(result: Comparison, given: Given) -> int:
    for name, why in result.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if result.page is not None:
        print(f"report: {result.page}")
    if result.next:
        print(f"next: {result.next}")
    return int(bool(result.failed))


def _show_ranking(result: Ranking, given: Given) -> None:
    for row in result.rows[:10]:
        twin = f" of {row['near_duplicate_of']}" if row["near_duplicate_of"] else ""
        mark = row["mark"].replace("near-duplicate", f"near-duplicate{twin}")
        print(f"{row['rank']:>3}. {row['case']}: score {row['score']}{f' ({mark})' if mark else ''}")
    if len(result.rows) > 10:
        print(f"     and {len(result.rows) - 10} more")
    print(f"table: {result.table}\npage: {result.page}")


def _show_package(folder: Path, given: Given) -> None:
    print(f"bundle: {folder}\nmodel card: {folder / 'docs' / 'README.md'}")


def _show_app(folder: Path, given: Given) -> None:
    start = f"monailabel start_server --app {folder} --studies SCANS --host 127.0.0.1"
    print(f"app: {folder}\nin the environment of MONAI Label: {start}")


def _show_new_method(files: list[Path], given: Given) -> None:
    print("yours to edit:", *files, sep="\n  ")
    print("then render the bundle (the first line of bundle.yaml says how) and run the tests")


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("demo", "monai_ssl.runs.demo:demo"),
        Command("split", "monai_ssl.runs.datasets:split", _show_split, optional=("SOURCE",)),
        Command("prepare", "monai_ssl.runs.datasets:prepare", _show_prepared),
        Command("preset", "monai_ssl.runs.datasets:copy_preset", _show_preset),
        Command("check", "monai_ssl.runs.datasets:check", _show_check),
        Command("describe", "monai_ssl.runs.datasets:describe", _show("{}")),
        Command(
            "train",
            "monai_ssl.runs.train:train",
            _show_train,
            example="train dtc SCANS --flavor practical --seed 1 --max_iterations 3000 --method#unsupervised_weight 0",
        ),
        Command(
            "self-train",
            "monai_ssl.runs.self_training:self_train",
            _show_self_training,
            example="self-train SCANS --dataset my_data.yaml --max_iterations 3000",
        ),
        Command(
            "compare",
            "monai_ssl.runs.study.compare:compare",
            _show_comparison,
            example="compare SCANS --dataset my_data.yaml --methods dtc,self_training --labels 4,8 --seeds 0,1,2",
        ),
        Command("evaluate", "monai_ssl.runs.evaluation:evaluate", _show_evaluation, optional=("RUN",), several=True),
        Command(
            "predict", "monai_ssl.deploy.predict:predict", _show_predictions, optional=("RUN", "IMAGES"), several=True
        ),
        Command("rank", "monai_ssl.deploy.rank:rank", _show_ranking, optional=("IMAGES",), several=True),
        Command("report", "monai_ssl.runs.evaluation:report", _show("{}")),
        Command("package", "monai_ssl.deploy.release:package", _show_package, several=True),
        Command("bundle", "monai_ssl.bundle.library:copy_bundle", _show("{}")),
        Command(
            "label-app", "monai_ssl.deploy.release:label_app", _show_app,
            example="label-app APP --bundles dtc,caml --labeled_batch_size 4",
        ),
        Command("new-method", "monai_ssl.bundle.new_method:new_method", _show_new_method),
        Command("list", "monai_ssl.cli.commands:list_all", _show_list),
        Command("completion", "monai_ssl.cli.completion:completion", _show("{}")),
    )
}  # fmt: skip

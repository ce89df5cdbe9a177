"""The rows of a study's tables and the trainings behind them; what two rows share is trained once."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.errors import DataError, enumerated, plural
from monai_ssl.reports.study import StudyRow
from monai_ssl.runs.study.cases import (
    COPIES,
    LISTS,
    TRUE_LABELS,
    Deal,
    deals,
    labeled_as_pool,
    pool_has_labels,
    true_labels,
    write_list,
)
from monai_ssl.runs.study.identity import Contents, at_weight_zero, cannot_build, digest, resolved
from monai_ssl.runs.study.settings import DataSettings, MethodSettings, StudySettings
from monai_ssl.runs.study.tasks import Task

if TYPE_CHECKING:
    from monai_ssl.data.datalist import Datalist
    from monai_ssl.data.preset import Preset

console = logging.getLogger("monai_ssl.console")

SUPERVISED, SELF_TRAINING = "supervised", "self_training"
# options of `monai_ssl.self_train` that no config knows
ROUNDS = {"rounds": 1, "networks": 1, "tta": "auto", "drop": 0.1, "sure": 0.0, "largest_component": "auto",
          "warm_start": True, "fine_tune": 0.0}  # fmt: skip
REMARK = re.compile(r"(no [a-z ]+ for )([\w.+-]+)(: its? .*)")
WEIGHT = "method#unsupervised_weight"
# scored scans below which a difference is hardly ever told from chance
FEW = 8


@dataclass(frozen=True)
class Planned:
    """One run of a row: which training, with which seed and split."""

    row: str
    seed: int
    split: str
    task: str


@dataclass
class Plan:
    """All of a study.

    Attributes:
        rows: of the tables.
        runs: of the rows; two may name one task.
        tasks: what is trained and scored, each once.
        remarks: what was left out, and why.
        lists: data set, flavor and list of every set of cases, for the check of the data.
    """

    rows: list[StudyRow] = field(default_factory=list)
    runs: list[Planned] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    lists: list[tuple[Preset, Datalist]] = field(default_factory=list)

    @cached_property
    def shared(self) -> int:
        """Runs of rows that are the training of another one."""
        return len(self.runs) - len({run.task for run in self.runs})

    def remark(self, text: str) -> None:
        """Note what is left out, once."""
        if text not in self.remarks:
            self.remarks.append(text)


def make_plan(study: StudySettings, folder: Path) -> Plan:
    """Plan a study: read its lists and presets, write the lists of its runs into its folder.

    Args:
        study: what is asked for.
        folder: of the study.

    Returns:
        rows, runs and trainings.

    Raises:
        DataError: for unknown methods, options, presets and files, all of them in one line; nothing has been trained.
    """
    check_options(study)
    contents = Contents(folder / LISTS / ".digests.json")
    planner = _Planner(study, folder, contents)
    mistakes = []
    for name, data in study.data.items():
        for flavor in study.flavors or (None,):
            try:
                planner.data_set(name, data, flavor)
            except DataError as error:
                mistakes.append(str(error))
    contents.keep()
    if not mistakes and (idle := [name for name in study.methods if name not in planner.used]):
        mistakes.append(
            f"methods.{idle[0]}: none of its labels and flavors is one of the study, so nothing of it would be trained"
        )
    if mistakes:
        raise DataError("; ".join(dict.fromkeys(mistakes)))
    return planner.plan


# ------------------------------------------------------------------------------------------------------- options


def check_options(study: StudySettings) -> None:
    """Methods and options exist: those of a method in its bundle, those of the study in one bundle at least.

    Raises:
        DataError: with all mistakes in one line.
    """
    from monai_ssl.bundle.library import find_bundle
    from monai_ssl.bundle.overrides import check_overrides
    from monai_ssl.reports.study.quoted import read_quoted
    from monai_ssl.runs.self_training import check_rounds
    from monai_ssl.runs.train import refuse_preset_keys

    mistakes, homes = [], {}
    for name, method in study.methods.items():
        try:
            homes[name] = find_bundle(method.method)
            own = {key: value for key, value in method.options.items() if key not in _rounds_of(method)}
            refuse_preset_keys(own)
            check_overrides(homes[name], ["train.yaml"], own)
        except DataError as error:
            mistakes.append(f"methods.{name}: {error}")
    for place, options in study.option_places():
        try:
            check_rounds(**{key: value for key, value in options.items() if key in ROUNDS})
        except DataError as error:
            mistakes.append(f"{place}: {error}")
    if study.quoted is not None:
        try:
            read_quoted(Path(study.quoted))
        except DataError as error:
            mistakes.append(f"quoted: {error}")
    # the methods first: what none knows is told of one that was named
    for key, value in study.precision.items():
        if text := _problem(find_bundle(SUPERVISED), key, value, {}):
            mistakes.append(f"precision: {text}")
    bundles = dict.fromkeys((*homes.values(), find_bundle(SUPERVISED)))
    for place, options in study.option_places()[: 1 + len(study.variants)]:
        for key, value in options.items():
            if key in ROUNDS and any(method.method == SELF_TRAINING for method in study.methods.values()):
                continue
            problems = [text for home in bundles if (text := _problem(home, key, value, options))]
            bad = [text for text in problems if not _is_unknown(text)]
            if bad or len(problems) == len(bundles):
                mistakes.append(f"{place}: {(bad or problems)[0]}")
    if mistakes:
        head = f"{plural(len(mistakes), 'mistake')}: " if len(mistakes) > 1 else ""
        raise DataError(head + "; ".join(mistakes))


def _rounds_of(method: MethodSettings) -> Mapping[str, Any]:
    return ROUNDS if method.method == SELF_TRAINING else {}


def _problem(home: Path, key: str, value: Any, joint: Mapping[str, Any]) -> str:
    """What speaks against an option of a bundle, beside others that may put another class in place; "" for nothing."""
    from monai_ssl.bundle.overrides import check_overrides
    from monai_ssl.runs.train import refuse_preset_keys

    targets = {other: given for other, given in joint.items() if other.endswith("_target_")}
    try:
        refuse_preset_keys({key: value})
        check_overrides(home, ["train.yaml"], {**targets, key: value})
    except DataError as error:
        return str(error)
    return ""


def _is_unknown(problem: str) -> bool:
    """Whether an option is refused because a bundle has nothing of that name; another bundle may."""
    return "no such id" in problem or "is no argument" in problem


@functools.cache
def _title(method: str) -> str:
    from monai_ssl.bundle.library import find_bundle
    from monai_ssl.bundle.spec import SPEC, read_spec

    home = find_bundle(method)
    return read_spec(home).title if (home / SPEC).is_file() else home.name


# ------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Situation:
    """What the runs of a row share: data set, flavor, variant, split and the cases of one number of labels."""

    data: str
    settings: DataSettings
    flavor: str | None
    preset: Preset
    variant: str
    deal: Deal
    cases: Datalist


class _Planner:
    def __init__(self, study: StudySettings, folder: Path, contents: Contents) -> None:
        self.study, self.folder, self.contents = study, folder, contents
        self.plan = Plan()
        self._by_digest: dict[str, str] = {}
        self._variants = dict(study.variants) or {"": {}}
        self._configs: dict[str, dict[str, Any]] = {}
        self.used: set[str] = set()
        self._tried: set[str] = set()
        self._known: dict[tuple[int, int, bool], dict[str, Any]] = {}

    def data_set(self, name: str, data: DataSettings, flavor: str | None) -> None:
        """Rows and runs of one data set with one flavor."""
        from monai_ssl.bundle.library import find_bundle, own_dataset
        from monai_ssl.data.preset import load_preset

        source = data.dataset if data.dataset is not None else own_dataset(find_bundle(SUPERVISED))
        preset = load_preset(source, flavor)
        found = deals(name, data, self.study, self.folder)
        for deal in found:
            told = self._anyone_wants("ceiling", flavor) or self._anyone_wants("oracle", flavor)
            self.plan.lists.append((preset, deal.everything() if told else deal.cases))
        judges = [patient for deal in found for patient in deal.judges(self.study.section)]
        scored = len(set(judges))
        if scored < FEW and len(found) == 1:
            unit = "scan" if scored == len(judges) else "patient"
            self.plan.remark(
                f"{name}: scores of {plural(scored, unit)} ({self.study.section}) are too few to tell methods apart; "
                "--folds 5 scores every labeled scan once"
            )
        counts = data.labels or self.study.labels or (len(found[0].cases.training),)
        for deal in found:
            if self.study.weights == "best" and not deal.cases.validation:
                raise DataError(
                    f"weights: best are picked by validation, and {deal.cases.path} has no validation case; use last, "
                    "or split again"
                )
            if max(counts) > len(deal.cases.training):
                have = len(deal.cases.training)
                raise DataError(
                    f"labels: {deal.cases.path} has {plural(have, 'labeled scan')} for training, got {max(counts)}; "
                    "ask for fewer, or split again"
                )
        several = len(data.labels or self.study.labels) > 1
        for variant in self._variants:
            for n in counts:
                situations = [
                    _Situation(name, data, flavor, preset, variant, deal, deal.with_labels(n)) for deal in found
                ]
                suffix = self._suffix(name, flavor, variant, n if several else None)
                self._floors(situations, suffix)
                for method_name, method in self.study.methods.items():
                    if _applies(method, flavor, n):
                        self._method(method_name, method, situations, suffix)
            whole = [_Situation(name, data, flavor, preset, variant, deal, deal.all_labels()) for deal in found]
            self._ceiling(whole, min(counts), self._suffix(name, flavor, variant, None))

    def _suffix(self, data: str, flavor: str | None, variant: str, n: int | None) -> str:
        """What tells the rows of one method apart."""
        parts = [
            str(flavor) if len(self.study.flavors) > 1 else "",
            variant if len(self._variants) > 1 else "",
            f"n{n}" if n is not None else "",
            data if len(self.study.data) > 1 else "",
        ]
        return "".join(f"-{part}" for part in parts if part)

    def _floors(self, situations: Sequence[_Situation], suffix: str) -> None:
        if self._anyone_wants("floor", situations[0].flavor, len(situations[0].cases.training)):
            name = f"floor{suffix}"
            self._row(name, "Supervised, these labels (floor)", "floor", "", situations,
                      MethodSettings(method=SUPERVISED), self.study.seeds, situations)  # fmt: skip

    def _ceiling(self, situations: Sequence[_Situation], fewest: int, suffix: str) -> None:
        if not self._anyone_wants("ceiling", situations[0].flavor):
            return
        if all(len(situation.cases.training) <= fewest for situation in situations):
            self.plan.remark(
                f"no ceiling for {situations[0].data}: no label beyond the {fewest} is known; name a datalist with all "
                "labels (all_labels) if there is one"
            )
            return
        self._row(f"ceiling{suffix}", "Supervised, all labels (ceiling)", "ceiling", "", situations,
                  MethodSettings(method=SUPERVISED), self.study.seeds, situations)  # fmt: skip

    def _anyone_wants(self, reference: str, flavor: str | None, n: int | None = None) -> bool:
        methods = [method for method in self.study.methods.values() if _applies(method, flavor, n)]
        return any(reference in self._references(method) for method in methods)

    def _references(self, method: MethodSettings) -> Sequence[str]:
        return self.study.references if method.references is None else method.references

    def _method(self, name: str, method: MethodSettings, situations: Sequence[_Situation], suffix: str) -> None:
        """A method and its controls."""
        self.used.add(name)
        row, seeds = f"{name}{suffix}", method.seeds or self.study.seeds
        title = method.title or (_title(method.method) if name == Path(method.method).name else name)
        wanted = self._references(method)
        pool = self._reads_pool(method, situations[0])
        if pool and not all(situation.cases.unlabeled for situation in situations):
            raise DataError(
                f"methods.{name}: {situations[0].deal.cases.path} has no unlabeled image to learn from; give fewer "
                "labels, or add scans"
            )
        self._row(row, title, "method", "", situations, method, seeds, situations)
        config = self._config(method.method, {})
        if "matched_floor" in wanted and pool:
            if "unsupervised_weight" in config.get("method", {}):
                self._row(f"{row}-matched_floor", f"{title}, weight 0 (matched floor)", "matched_floor", row,
                          situations, method, seeds, situations)  # fmt: skip
            else:
                self.plan.remark(f"no matched floor for {name}: its bundle has no {WEIGHT}")
        if "no_pool" in wanted and pool:
            copies = [self._without_pool(situation) for situation in situations]
            self._row(f"{row}-no_pool", f"{title}, labeled scans as pool", "no_pool", row, copies, method, seeds,
                      situations)  # fmt: skip
        if "oracle" in wanted and pool:
            if "pseudo_labels" not in config:
                self.plan.remark(f"no oracle for {name}: it learns no pseudo-labels")
            elif not all(pool_has_labels(s.deal, s.cases.unlabeled) for s in situations):
                self.plan.remark(f"no oracle for {name}: the true labels of the pool are not known; name a datalist "
                                 "with all labels (all_labels) if there is one")  # fmt: skip
            else:
                self._row(f"{row}-oracle", f"{title}, true labels of the pool", "oracle", row, situations, method,
                          seeds, situations)  # fmt: skip

    def _without_pool(self, situation: _Situation) -> _Situation:
        from dataclasses import replace

        return replace(situation, cases=labeled_as_pool(situation.cases, self.folder / COPIES / situation.data))

    def _reads_pool(self, method: MethodSettings, situation: _Situation) -> bool:
        from monai_ssl.runs.train import _reads_the_pool

        return _reads_the_pool(self._config(method.method, self._options(method, situation.variant, "method")))

    def _row(
        self,
        name: str,
        title: str,
        role: Any,
        of: str,
        situations: Sequence[_Situation],
        method: MethodSettings,
        seeds: Sequence[int],
        counted: Sequence[_Situation],
    ) -> None:
        variant = situations[0].variant
        if len(self._variants) > 1 and variant:
            title = f"{title} [{variant}]"
        if name in [row.name for row in self.plan.rows]:
            raise DataError(f"methods: two rows are called {name}; give one of them another name")
        first = counted[0]
        tasks = [
            self._task(f"{name}-seed{seed}{f'-{s.deal.name}' if s.deal.name else ''}", role, method, s, seed)
            for s in situations
            for seed in seeds
        ]
        keys = [(s.deal.name, seed) for s in situations for seed in seeds]
        options = self._options(method, variant, role)
        row = StudyRow(
            name=name,
            title=title,
            role=role,
            of=of,
            dataset=first.data,
            flavor=first.preset.flavor or "",
            n_labeled=len(first.cases.training),
            n_unlabeled=len(first.cases.unlabeled) if role not in ("floor", "ceiling", "no_pool") else 0,
            section=self.study.section,
            settings=self._settings(method, options, first.preset),
        )
        self.plan.rows.append(row)
        for (split, seed), task in zip(keys, tasks, strict=True):
            self.plan.runs.append(Planned(name, seed, split, task))

    def _settings(self, method: MethodSettings, options: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
        """What must not differ between rows unnoticed."""
        values = self._resolved(self._config(method.method, options), preset)
        network = {key.partition("#")[2]: value for key, value in values.items() if key.startswith("network_def#")}
        kind = str(network.pop("_target_", "")).rpartition(".")[2]
        plain = {k: v for k, v in network.items() if not (isinstance(v, str) and v.startswith(("$", "@")))}
        return {
            "preset": digest(values["preset"])[:8],
            "iterations": values.get("max_iterations"),
            "precision": values.get("amp"),
            "network": " ".join([kind, *(f"{key} {value}" for key, value in sorted(plain.items()))]),
            "labeled_batch_size": values.get("labeled_batch_size"),
            "unlabeled_batch_size": values.get("unlabeled_batch_size"),
        }

    # --------------------------------------------------------------------------------------------------- trainings

    def _config(self, bundle: str, options: Mapping[str, Any]) -> dict[str, Any]:
        from monai_ssl.bundle.library import find_bundle
        from monai_ssl.bundle.overrides import merged_config

        key = json.dumps([bundle, {k: str(v) for k, v in options.items()}], sort_keys=True)
        if key not in self._configs:
            self._configs[key] = merged_config(find_bundle(bundle), ["train.yaml"], options)
        return self._configs[key]

    def _resolved(self, config: dict[str, Any], preset: Preset, picking: bool = False) -> dict[str, Any]:
        key = (id(config), id(preset), picking)  # both are kept
        if key not in self._known:
            self._known[key] = resolved(config, preset, picking)
        return self._known[key]

    def _options(self, method: MethodSettings, variant: str, role: str) -> dict[str, Any]:
        """Options of a training, in the bundle's own ids."""
        from monai_ssl.bundle.library import find_bundle
        from monai_ssl.bundle.overrides import root_id

        home = find_bundle(method.method)
        joint = {**self.study.options, **self._variants[variant]}
        known = {key: v for key, v in joint.items() if key not in ROUNDS and not _problem(home, key, v, joint)}
        if role in ("floor", "ceiling"):
            known = {key: value for key, value in known.items() if root_id(key) != "method"}
        own = {key: value for key, value in method.options.items() if key not in _rounds_of(method)}
        precision = {key: v for key, v in self.study.precision.items() if not _problem(home, key, v, {})}
        found = {**precision, **known, **own}
        if role == "matched_floor":
            found[WEIGHT] = 0
        if self.study.weights == "best":
            found["keep_best"] = True
        return found

    def _rounds(self, method: MethodSettings, variant: str) -> dict[str, Any]:
        joint = {**self.study.options, **self._variants[variant], **method.options}
        return {key: value for key, value in joint.items() if key in ROUNDS}

    def _task(self, name: str, role: str, method: MethodSettings, situation: _Situation, seed: int) -> str:
        """The name of the task that makes a run; a new one where no other does."""
        task = self._made(name, role, method, situation, seed)
        known = self._by_digest.setdefault(f"{task.digest} {task.scores}", task.name)
        if known == task.name:
            self.plan.tasks[task.name] = task
        return known

    def _made(self, name: str, role: str, method: MethodSettings, situation: _Situation, seed: int) -> Task:
        cases, preset, study = situation.cases, situation.preset, self.study
        kind = {"ceiling": "-all", "no_pool": f"-n{len(cases.training)}-no_pool"}.get(role, f"-n{len(cases.training)}")
        split = f"-{situation.deal.name}" if situation.deal.name else ""
        listed = write_list(cases, self.folder / LISTS / f"{situation.data}{split}{kind}.json")
        options = self._options(method, situation.variant, role)
        arguments: dict[str, Any] = {"dataset_dir": str(cases.dataset_dir), "datalist": str(listed), "seed": seed}
        if situation.settings.dataset is not None:
            arguments["dataset"] = situation.settings.dataset
        if situation.flavor is not None:
            arguments["flavor"] = situation.flavor
        self._try_out(method, options, situation)
        content = self._content(method.method, options, situation) | {"seed": seed}
        scores = digest([self.contents.of(cases.section(study.section)), study.section, study.weights])
        iterations = _number(content["config"].get("max_iterations"))
        whole: dict[str, Any] = {
            "section": study.section,
            "weights": study.weights,
            "scores": scores,
            "gpus": study.gpus,
        }
        if method.method == SELF_TRAINING and role in ("method", "no_pool"):
            rounds = {**ROUNDS, **self._rounds(method, situation.variant)}
            if role == "no_pool":  # a share of so few would drop one of the labels
                rounds["drop"] = 0.0
            base = self._content(SUPERVISED, _floors_options(options), situation)
            # former versions knew no other way: what they trained counts where it is asked for
            told = {key: value for key, value in rounds.items() if key != "warm_start" or value}
            content |= {"self_training": told, "floor": base["config"]}
            shared = ""
            if rounds["networks"] == 1:
                if role == "method" and {"matched_floor", "oracle"} & set(self._references(method)):
                    self._begun_with(name, "matched_floor", method, options, situation, seed)
                shared = self._by_digest.get(f"{digest(base | {'seed': seed})} {scores}", "")
            total = iterations * (rounds["networks"] * (not shared) + rounds["rounds"])
            total += round(rounds["fine_tune"] * iterations)
            given = {key: value for key, value in rounds.items() if value != ROUNDS[key]}
            return Task(name, "self_train", {**arguments, **given, **options}, digest(content), iterations=total,
                        floor=shared, **whole)  # fmt: skip
        begun = self._begun_with(name, role, method, options, situation, seed)
        if begun:
            content["init"] = self.plan.tasks[begun].digest
        if role == "oracle":
            place = self.folder / TRUE_LABELS / f"{situation.data}{split}{kind}"
            arguments["pseudo_labels"] = str(true_labels(situation.deal, cases.unlabeled, place, preset))
            content["pseudo_labels"] = self.contents.of_folder(place)
        if role == "matched_floor":
            content["config"] = at_weight_zero(content["config"])
        arguments = {"bundle": method.method, **arguments, **options}
        return Task(name, "train", arguments, digest(content), iterations=iterations, floor=begun, **whole)

    def _begun_with(
        self, name: str, role: str, method: MethodSettings, options: Mapping[str, Any], situation: _Situation, seed: int
    ) -> str:
        """The floor with whose weights a control of a self-training begins, as the rounds do; "" for none."""
        rounds = {**ROUNDS, **self._rounds(method, situation.variant)}
        controls = method.method == SELF_TRAINING and role in ("matched_floor", "oracle")
        if not controls or not rounds["warm_start"] or "pseudo_labels" in options:
            return ""
        if rounds["rounds"] > 1 or rounds["fine_tune"]:
            self.plan.remark(
                f"matched floor and oracle of {SELF_TRAINING} make one round of steps after the floor; it makes more"
            )
        floor = MethodSettings(method=SUPERVISED, options=_floors_options(options))
        return self._task(f"{name}-floor", "floor", floor, situation, seed)

    def _try_out(self, method: MethodSettings, options: Mapping[str, Any], situation: _Situation) -> None:
        """Build network and method once where options change them, or the bundle is one's own: only the classes know
        which words and numbers they take.

        Raises:
            DataError: when they cannot be built.
        """
        from monai_ssl.bundle.library import find_bundle, is_shipped
        from monai_ssl.bundle.overrides import root_id

        told = {key: str(value) for key, value in options.items() if root_id(key) in ("network_def", "method")}
        told.pop(WEIGHT, None)
        if not told and is_shipped(find_bundle(method.method)):
            return
        key = json.dumps([method.method, told, id(situation.preset)], sort_keys=True)
        if key in self._tried:
            return
        self._tried.add(key)
        if problem := cannot_build(method.method, options, situation.preset, situation.cases):
            name = next((name for name, known in self.study.methods.items() if known is method), "floor")
            raise DataError(f"methods.{name}: {problem}")

    def _content(self, bundle: str, options: Mapping[str, Any], situation: _Situation) -> dict[str, Any]:
        """What decides a training, but for its seed."""
        from monai_ssl.bundle.library import find_bundle, is_shipped
        from monai_ssl.runs.train import _reads_the_pool

        config, cases, best = self._config(bundle, options), situation.cases, self.study.weights == "best"
        home = find_bundle(bundle)
        found: dict[str, Any] = {
            "config": self._resolved(config, situation.preset, best),
            "labeled": self.contents.of(cases.training),
            "unlabeled": self.contents.of(cases.unlabeled) if _reads_the_pool(config) else [],
        }
        if best:
            found |= {"validation": self.contents.of(cases.validation), "weights": "best"}
        if self.study.gpus > 1:
            found["processes"] = self.study.gpus
        if not is_shipped(home):
            found["code"] = {path.name: path.read_text(encoding="utf-8") for path in sorted(home.glob("*.py"))}
        return found


def _applies(method: MethodSettings, flavor: str | None, n: int | None = None) -> bool:
    """Whether a method is trained with a flavor, and with so many labels."""
    flavors = method.flavors is None or flavor in method.flavors
    return flavors and (n is None or method.labels is None or n in method.labels)


def _is_floors(key: str, value: Any, joint: Mapping[str, Any]) -> bool:
    from monai_ssl.bundle.library import find_bundle
    from monai_ssl.bundle.overrides import root_id

    return root_id(key) != "method" and not _problem(find_bundle(SUPERVISED), key, value, joint)


def _floors_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a self-training that its floor takes, too."""
    return {key: value for key, value in options.items() if key != "keep_best" and _is_floors(key, value, options)}


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def told(plan: Plan, finished: Sequence[str]) -> Iterator[str]:
    """The plan in a few lines: rows, runs, what is shared and what is done."""
    left = [task for name, task in plan.tasks.items() if name not in finished]
    yield (
        f"{plural(len(plan.rows), 'row')}, {plural(len(plan.runs), 'run')}: {plural(len(plan.tasks), 'training')}"
        + (f" ({plan.shared} shared)" if plan.shared else "")
        + f", {len(finished)} done, {len(left)} to do, {sum(task.iterations for task in left)} iterations"
    )
    width = max((len(row.name) for row in plan.rows), default=0)
    for row in plan.rows:
        runs = [run for run in plan.runs if run.row == row.name]
        others = sorted({run.task for run in runs if not run.task.startswith(f"{row.name}-seed")})
        ready = sum(run.task in finished for run in runs)
        note = f", trained as {enumerated(others, 2)}" if others else ""
        scans = f"{row.n_labeled:>4} + {row.n_unlabeled:<4}"
        yield f"  {row.name:<{width}} {row.role:<13} {scans} {ready} of {len(runs)} done{note}"
    for remark in _gathered(plan.remarks):
        yield f"note: {remark}"


def _gathered(remarks: Sequence[str]) -> list[str]:
    """Remarks about several methods that say the same, as one.

    Example:
        >>> _gathered(["no oracle for dtc: it learns none", "few scans", "no oracle for tac: it learns none"])
        ['no oracle for dtc, tac: it learns none', 'few scans']
    """
    names: dict[tuple[str, str], list[str]] = {}
    for remark in remarks:
        found = REMARK.fullmatch(remark)
        names.setdefault((found[1], found[3]) if found else (remark, ""), []).append(found[2] if found else "")
    return [f"{head}{', '.join(who)}{tail}" for (head, tail), who in names.items()]

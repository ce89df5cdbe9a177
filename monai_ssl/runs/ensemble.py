"""Several runs as one network: the mean of their class probabilities."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.errors import PROGRAM, DataError, UsageError, enumerated, shortened
from monai_ssl.runs.folder import MODEL, Run

if TYPE_CHECKING:
    from monai_ssl.data.cases import Entry

CONFIG = "inference.yaml"
# ids of an inference config that do not say how an image is segmented, or that members may have of their own
FREE = ("imports", "bundle_root", "dataset", "flavor", "flavour", "dataset_dir", "datalist", "section", "output_dir",
        "ckpt", "amp", "device", "probabilities", "uncertainty", "tta", "overwrite", "jobs", "num_workers", "memory_gb",
        "network_def", "handlers", "initialize", "run")  # fmt: skip
# keys of a preset that do not say how an image is segmented
FREE_KEYS = ("name", "flavor", "description", "training", "published")
NAME_LENGTH = 100
ENSEMBLE = "monai_ssl.networks.Ensemble"


@dataclass(frozen=True)
class Members:
    """Trained runs that segment together.

    Attributes:
        runs: at least two, in the order in which they were given.

    Example:
        >>> members = Members.of(["runs/dtc-phantom-seed0", "runs/dtc-phantom-seed1"])  # doctest: +SKIP
        >>> members.folder  # doctest: +SKIP
        PosixPath('runs/ensemble-dtc-phantom-seed0+seed1')
    """

    runs: tuple[Run, ...]

    @classmethod
    def of(cls, runs: Sequence[str | os.PathLike[str] | Run]) -> Members:
        """The members, once they are known to agree.

        Args:
            runs: folders that ``monai-ssl train`` wrote.

        Raises:
            DataError: when there are fewer than two, one is given twice, one is no run, or they differ in what decides
                how an image is segmented: preset, classes, preprocessing, windows; the difference is named.
        """
        for run in runs:
            folder = None if isinstance(run, Run) else Path(run).expanduser()
            if folder is not None and (folder / "configs" / CONFIG).is_file() and not (folder / "run.json").is_file():
                raise DataError(f"run: {folder} is a packaged bundle; an ensemble is made of runs of `{PROGRAM} train`")
        members = cls(tuple(Run.open(run) for run in runs))
        if len(members.runs) < 2:
            raise DataError(f"run: an ensemble needs at least two runs, got {len(members.runs)}")
        folders = [run.folder for run in members.runs]
        if repeated := sorted({str(folder) for folder in folders if folders.count(folder) > 1}):
            raise DataError(f"run: a run may be a member once, got {enumerated(repeated)} twice")
        members._check_presets()
        members._check_configs()
        return members

    # ------------------------------------------------------------------------------------------------ do they agree

    def _check_presets(self) -> None:
        from monai_ssl.data.preset import load_preset

        contents = [load_preset(run.preset).model_dump(mode="json") for run in self.runs]
        values = [{key: value for key, value in content.items() if key not in FREE_KEYS} for content in contents]
        self._refuse_differences([_flat(content) for content in values], "the preset", "train them with one preset")

    def _check_configs(self) -> None:
        values = []
        for number in range(len(self.runs)):
            config = self._config(number)
            values.append(_flat({key: value for key, value in config.items() if key not in FREE}))
        self._refuse_differences(values, "configs/inference.yaml", "give them the same options")

    def _refuse_differences(self, values: Sequence[Mapping[str, Any]], where: str, advice: str) -> None:
        first = values[0]
        for run, other in zip(self.runs[1:], values[1:], strict=True):
            for key in dict.fromkeys((*first, *other)):
                if first.get(key) != other.get(key):
                    raise DataError(
                        f"run: the members of an ensemble must agree in {where}, but {key} is "
                        f"{shortened(first.get(key))} in {self.runs[0].folder} and {shortened(other.get(key))} in "
                        f"{run.folder}; {advice}"
                    )

    def _config(self, number: int) -> dict[str, Any]:
        """A member's inference config, with what its training was given."""
        from monai_ssl.bundle.overrides import merged_config, with_fitting_arguments

        folder, settings = self.runs[number].settings([CONFIG], {})
        config = merged_config(folder, [CONFIG])
        return merged_config(folder, [CONFIG], with_fitting_arguments(config, settings))

    # ----------------------------------------------------------------------------------------------- the one network

    def network_def(self) -> dict[str, Any]:
        """The config block that builds the network: an :class:`~monai_ssl.networks.Ensemble` of the members'.

        Raises:
            DataError: when a member's network refers to an id that the first member's bundle does not have.
        """
        known = self._config(0)
        blocks = []
        for number, run in enumerate(self.runs):
            block = self._config(number).get("network_def")
            for text in (text for text in _flat({"network_def": block}).values() if isinstance(text, str)):
                for key in re.findall(r"@(\w+)", text):
                    if key not in known:
                        raise DataError(
                            f"run: network_def of {run.record.bundle} refers to @{key}, which the bundle of the first "
                            f"member, {self.runs[0].record.bundle}, does not have; give runs of one bundle"
                        )
            blocks.append(block)
        return {"_target_": ENSEMBLE, "members": blocks}

    def weights(self) -> dict[str, Any]:
        """The state dict of the network; says so where a member is unfinished.

        Raises:
            DataError: when a member has no weights, or they are no state dict.
        """
        from monai_ssl.networks.ensemble import ensemble_state
        from monai_ssl.weights import load

        return ensemble_state([load(run.weights()) for run in self.runs])

    def settings(self, configs: Sequence[str], overrides: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
        """The first member's bundle, and settings with which it segments by all members; as :meth:`Run.settings`.

        Raises:
            DataError: for an unknown id, or one of the members' networks.
        """
        from monai_ssl.bundle.library import find_bundle, is_shipped
        from monai_ssl.bundle.overrides import root_id

        if own := [key for key in overrides if root_id(key) == "network_def"]:
            raise DataError(f"--{own[0]}: every member of an ensemble has the network that it was trained with")
        for run in self.runs[1:]:  # networks of your own are next to their configs
            folder = find_bundle(run.record.bundle)
            if not is_shipped(folder) and str(folder) not in sys.path:
                sys.path.append(str(folder))
        folder, settings = self.runs[0].settings(configs, overrides)
        settings = {key: value for key, value in settings.items() if root_id(key) != "network_def"}
        return folder, settings | {"network_def": self.network_def()}

    @contextmanager
    def weights_file(self) -> Iterator[Path]:
        """The weights of all members, in a file that lasts as long as the block."""
        from monai_ssl.weights import save

        with tempfile.TemporaryDirectory(prefix="monai_ssl-") as place:
            save(self.weights(), Path(place) / MODEL)
            yield Path(place) / MODEL

    # -------------------------------------------------------------------------------------------------- names, facts

    @property
    def folder(self) -> Path:
        """Where results of the ensemble go by themselves: beside the members, with a name made of theirs."""
        common = Path(os.path.commonpath([run.folder.parent for run in self.runs]))
        names = [run.folder.relative_to(common).as_posix().replace("/", "-") for run in self.runs]
        shared = _shared_start(names)
        rests = [name[len(shared) :] for name in names]
        end = _shared_start([rest[::-1] for rest in rests])[::-1]
        name = f"ensemble-{shared}" + "+".join(rest[: len(rest) - len(end)] for rest in rests) + end
        if len(name) > NAME_LENGTH:
            digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
            name = f"ensemble-{shared[:60]}{len(names)}-{digest}"
        return common / name

    def contents(self) -> list[str]:
        """Short hashes of the members' weights, which tell whether scores are of these members."""
        from monai_ssl.weights import content_digest, load

        return [content_digest(load(run.model)) for run in self.runs]

    def facts(self) -> list[dict[str, Any]]:
        """A line per member for cards and records: bundle, seed, iterations of the weights."""
        found = []
        for run in self.runs:
            record = run.record
            found.append({
                "bundle": Path(record.bundle).name,
                "seed": record.overrides.get("seed", 0),
                "iteration": run.iteration or record.max_iterations,
                "max_iterations": record.max_iterations,
            })  # fmt: skip
        return found

    def training(self) -> dict[str, Any]:
        """What a reader of results must know of the trainings: what they share, and the values of what they do not.

        A setting in which the members differ is a text with all its values (``seed``: ``"0, 1, 2"``). If a training is
        unfinished, so is the ensemble.
        """
        from monai_ssl.runs.scoring import training_facts

        each = [training_facts(run) for run in self.runs]
        unfinished = [facts for facts in each if None not in (facts.get("iteration"), facts.get("max_iterations"))
                      and facts["iteration"] != facts["max_iterations"]]  # fmt: skip
        first = (unfinished or each)[0]
        length = {key: first.get(key) for key in ("iteration", "max_iterations", "status") if key in first}
        names = {key: " + ".join(dict.fromkeys(Path(str(facts[key])).name for facts in each))
                 for key in ("bundle", "datalist") if len({facts[key] for facts in each}) > 1}  # fmt: skip
        counts = {_n_labeled(run) for run in self.runs}
        n_labeled = counts.pop() if len(counts) == 1 else None
        alarms = [f"{run.folder.name}: {text}" for run in self.runs for text in run.alarms]
        found = _shared([{key: value for key, value in facts.items() if key != "alarms"} for facts in each])
        return found | length | names | {"members": self.facts(), "n_labeled": n_labeled, "alarms": alarms}

    def refuse_known_cases(self, entries: Sequence[Entry], section: str, known: Mapping[str, str]) -> None:
        """Stop before scores are of patients that a member has learned from, as with members of several folds.

        Args:
            entries: scored cases.
            section: whose list that is.
            known: first image file of a case -> patient, of the scored datalist (:meth:`Datalist.known_patients`).

        Raises:
            DataError: naming case and member.
        """
        from monai_ssl.data.cases import case_name, image_files, real_path
        from monai_ssl.data.loading import load_datalist

        for run in self.runs:
            try:
                cases = load_datalist(run.record.datalist, run.record.dataset_dir)
            except DataError:  # moved since: nothing can be said
                continue
            seen = cases.training + cases.unlabeled
            learned = {real_path(f) for entry in seen for f in image_files(entry)}
            patients = {whose for entry in seen if (whose := known.get(image_files(entry)[0]))}
            found = [
                case_name(entry) for entry in entries
                if learned & {real_path(f) for f in image_files(entry)} or known.get(image_files(entry)[0]) in patients
            ]  # fmt: skip
            if found:
                whose_cases = " (or other scans of their patients)" if patients else ""
                raise DataError(
                    f"section: {len(found)} of the {len(entries)} cases of {section}{whose_cases} were among the "
                    f"training cases or in the pool of {run.folder.name} ({enumerated(found)}), so their scores would "
                    "say nothing; give a list that no member has learned from, such as --section testing"
                )


def _shared_start(names: Sequence[str]) -> str:
    """What all names begin with, up to a hyphen or underscore."""
    pairs = zip(min(names), max(names), strict=False)
    equal = "".join(character for character, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return equal[: max(equal.rfind("-"), equal.rfind("_")) + 1]


def is_ensemble(bundle: Path) -> bool:
    """Whether a bundle segments by the mean of several networks, of which its training could train one only."""
    from monai_ssl.bundle.overrides import read_config

    block = read_config(bundle / "configs" / CONFIG).get("network_def")
    return isinstance(block, Mapping) and block.get("_target_") == ENSEMBLE


def _n_labeled(run: Run) -> int | None:
    from monai_ssl.data.loading import load_datalist

    try:
        return load_datalist(run.record.datalist, run.record.dataset_dir).counts()["training"]
    except DataError:
        return None


def members_of(run: Any) -> Members | None:
    """The ensemble that an argument ``run`` names; None where it names one run, or none.

    Args:
        run: a folder or run, or a sequence of them.

    Raises:
        DataError: see :meth:`Members.of`.
    """
    if not isinstance(run, (list, tuple)):
        return None
    if len(run) == 1:
        raise UsageError("run: give one run by itself, not in a list")
    return Members.of(run)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of nested mappings and lists under its path."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{name}#")
        elif isinstance(value, list) and any(isinstance(part, (Mapping, list)) for part in value):
            found |= _flat({str(number): part for number, part in enumerate(value)}, f"{name}#")
        else:
            found[name] = value
    return found


def _shared(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One mapping for several: equal values as they are, others as a text that holds all of them."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for facts in each for key in facts):
        values = [facts.get(key) for facts in each]
        if all(value == values[0] for value in values):
            found[key] = values[0]
        elif all(isinstance(value, Mapping) for value in values):
            found[key] = _shared([value for value in values if isinstance(value, Mapping)])
        else:
            texts = ["default" if value is None else str(value) for value in values]
            found[key] = ", ".join(dict.fromkeys(texts))
    return found

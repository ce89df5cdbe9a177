"""What a study file may say: read strictly, every mistake told at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from monai_ssl.data.yaml_mapping import read_mapping
from monai_ssl.errors import DataError, UsageError, one_line, plural

Reference = Literal["floor", "matched_floor", "ceiling", "no_pool", "oracle"]
REFERENCES: tuple[Reference, ...] = ("floor", "matched_floor", "ceiling", "no_pool", "oracle")
DEFAULT_REFERENCES: tuple[Reference, ...] = ("floor", "matched_floor", "ceiling")
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class DataSettings(_Strict):
    """One data set of a study.

    Attributes:
        scans: folder of the data; ``~`` and ``$VARIABLES`` are replaced, other paths are relative to the study file.
        datalist: JSON in that folder, or a path.
        dataset: preset, or the path of a YAML file.
        all_labels: datalist whose labels the ceiling and the oracle may know; default: those of the datalist and those
            that lie beside the images.
        labels: numbers of labels, where they differ from those of the study.
        folds: datalists, one for each fold.
    """

    scans: str
    datalist: str = "datalist.json"
    dataset: str | None = None
    all_labels: str | None = None
    labels: tuple[int, ...] | None = None
    folds: tuple[str, ...] = ()

    @field_validator("labels", mode="before")
    @classmethod
    def _labels(cls, value: Any) -> Any:
        return _numbers(value)


class SplitSettings(_Strict):
    """Random splits of a folder: the test set is drawn first, then validation, then labels.

    Attributes:
        number: of splits.
        n_testing, n_validation: cases (or patients) of each.
        patient_pattern, patients: as of `monai-ssl split`.
        seed: of the first split; the next has the next.
    """

    number: int = Field(ge=1, le=1000)
    n_testing: int = Field(ge=0)
    n_validation: int = Field(default=0, ge=0)
    patient_pattern: str | None = None
    patients: str | None = None
    seed: int = Field(default=0, ge=0)


class MethodSettings(_Strict):
    """One method of a study, perhaps the same bundle as another with other options.

    Attributes:
        method: bundle, or the folder of your own.
        title: what readers see.
        options: ids of the bundle's configs, beside those of the study.
        flavors, labels, seeds, references: where they differ from those of the study.
    """

    method: str
    title: str | None = None
    options: dict[str, Any] = {}
    flavors: tuple[str | None, ...] | None = None
    labels: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    references: tuple[Reference, ...] | None = None

    @field_validator("labels", "seeds", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return _numbers(value)

    @field_validator("flavors", "references", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _words(value)


class StudySettings(_Strict):
    """A study: methods x numbers of labels x seeds and splits x data sets x flavors x variants.

    Attributes:
        title, description: of the report.
        data: name -> data set.
        methods: name of a row -> method.
        references: of floor, matched_floor, ceiling, no_pool, oracle.
        labels: numbers of labels: the first N of the datalist; the others join the pool without their labels. Empty:
            all of the list.
        seeds: of the trainings.
        splits: random splits, instead of those of the datalist.
        folds: this many folds of the labeled cases, instead of the scored section of the datalist.
        flavors: of the presets; empty: the preset's own.
        variants: name -> options of every training, references included.
        options: ids of the bundles' configs, for every training whose bundle knows them.
        section: list that is scored.
        weights: ``last`` iterate, or the ``best`` by validation.
        gpus: of one run; more than one train together.
        precision: as the first start decided it, for all runs.
        quoted: YAML of published figures, for the report.
    """

    title: str = ""
    description: str = ""
    data: dict[str, DataSettings] = Field(min_length=1)
    methods: dict[str, MethodSettings] = Field(min_length=1)
    references: tuple[Reference, ...] = DEFAULT_REFERENCES
    labels: tuple[int, ...] = ()
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    splits: SplitSettings | None = None
    folds: int | None = Field(default=None, ge=2, le=100)
    flavors: tuple[str, ...] = ()
    variants: dict[str, dict[str, Any]] = {}
    options: dict[str, Any] = {}
    section: Literal["validation", "testing", "training"] = "testing"
    weights: Literal["last", "best"] = "last"
    gpus: int = Field(default=1, ge=1, le=64)
    precision: dict[str, str] = {}
    quoted: str | None = None

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return _named_methods(value)

    @field_validator("labels", "seeds", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return () if value == "all" else _numbers(value)

    @field_validator("references", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        words = _words(value)
        return REFERENCES if words == ("all",) else () if words == ("none",) else words

    @field_validator("flavors", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _words(value)

    @model_validator(mode="after")
    def _consistent(self) -> StudySettings:
        for kind, names in (("data", self.data), ("methods", self.methods), ("variants", self.variants)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(f"{kind}: a name must be letters, digits, . _ + -, got {name!r}")
        for name in self.methods:
            if name in ("floor", "ceiling"):
                raise ValueError(f"methods: {name} is the name of a reference; call the row otherwise")
        for key, values in self._lists():
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: must differ, got {', '.join(map(str, values))}")
            if key.endswith("labels") and (low := [n for n in values if n < 1]):
                raise ValueError(f"{key}: must be at least 1, got {low[0]}")
            if key.endswith("seeds") and [s for s in values if not 0 <= s < 2**32]:
                raise ValueError(f"{key}: must be from 0 to 4294967295, got {', '.join(map(str, values))}")
        self._methods_choose()
        if sum([self.splits is not None, self.folds is not None, any(d.folds for d in self.data.values())]) > 1:
            raise ValueError("splits, folds: give one of the two")
        if self.splits is not None and not self.labels:
            raise ValueError("splits: need labels, the number of labeled scans of a split")
        scored = {"testing": "n_testing", "validation": "n_validation"}.get(self.section)
        if self.splits is not None and scored and not getattr(self.splits, scored):
            raise ValueError(f"splits: {scored} must be at least 1, since section {self.section} is scored")
        if self.weights == "best" and self.section == "validation":
            raise ValueError(
                "weights: best are picked by validation, so they cannot be scored on it; use section testing"
            )
        for place, options in self.option_places():
            for key in options:
                if key in RESERVED:
                    raise ValueError(f"{place}: {key}: {RESERVED[key]}")
        return self

    def _lists(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Every list of the file whose values must differ, with its place."""
        found: list[tuple[str, tuple[Any, ...] | None]] = [
            ("seeds", self.seeds), ("labels", self.labels), ("flavors", self.flavors)
        ]  # fmt: skip
        found += [(f"data.{name}.labels", data.labels) for name, data in self.data.items()]
        for name, method in self.methods.items():
            found += [(f"methods.{name}.{key}", getattr(method, key)) for key in ("seeds", "labels", "flavors")]
        return [(key, values) for key, values in found if values is not None]

    def _methods_choose(self) -> None:
        """A method is trained with labels and flavors of the study: what the study lacks would be left out unsaid."""
        studied = {
            "labels": {n for data in self.data.values() for n in data.labels or self.labels},
            "flavors": set(self.flavors),
        }
        for name, method in self.methods.items():
            for key, known in studied.items():
                absent = [value for value in getattr(method, key) or () if value not in known]
                if absent and known:
                    those = ", ".join(map(str, sorted(known)))
                    raise ValueError(
                        f"methods.{name}.{key}: must be among those of the study ({those}), got {absent[0]}"
                    )

    def option_places(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Every mapping of options, with its place in the file."""
        places: list[tuple[str, Mapping[str, Any]]] = [("options", self.options)]
        places += [(f"variants.{name}", options) for name, options in self.variants.items()]
        places += [(f"methods.{name}.options", method.options) for name, method in self.methods.items()]
        return places

    def text(self) -> str:
        """The study as YAML, everything said."""
        import yaml

        content = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


# options that the study itself decides
RESERVED = {
    "seed": "give seeds",
    "output": "every run has its own folder",
    "output_dir": "every run has its own folder",
    "datalist": "is a key of the data set",
    "dataset": "is a key of the data set",
    "dataset_dir": "give scans, a key of the data set",
    "flavor": "give flavors",
    "flavour": "give flavors",
    "cases": "is made of the datalist",
    "preset": "give dataset, a key of the data set",
    "pseudo_labels": "self-training draws its own, and the reference oracle gives the true ones",
}


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return tuple(int(part) if re.fullmatch(r"\d+", part) else part for part in parts)
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


def _words(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _named_methods(value: Any) -> Any:
    """``all``, ``dtc,tac``, ``[dtc, tac]`` or ``{name: {method: ...}}`` as the last of them."""
    if isinstance(value, str):
        value = _words(value)
    if isinstance(value, (list, tuple)):
        if [*value] == ["all"]:
            from monai_ssl.bundle.library import available_bundles

            value = [name for name in available_bundles() if name != "supervised"]
        if all(isinstance(name, str) for name in value):
            if len(set(value)) < len(value):
                raise ValueError(f"must differ, got {', '.join(value)}")
            return {Path(name).name if "/" in name else name: {"method": name} for name in value}
        return value
    if isinstance(value, Mapping):
        named = {}
        for name, given in value.items():
            given = {} if given is None else {"method": given} if isinstance(given, str) else given
            named[str(name)] = {"method": str(name), **given} if isinstance(given, Mapping) else given
        return named
    return value


# ------------------------------------------------------------------------------------------------------- reading


def read_study(path: Path) -> dict[str, Any]:
    """The content of a study file, its paths made whole; not yet checked.

    Raises:
        DataError: when it is no readable YAML mapping.
    """
    content = read_mapping(path, "a study")
    base = path.resolve().parent
    data = content.get("data")
    for part in data.values() if isinstance(data, dict) else ():
        if isinstance(part, dict):
            _whole_paths(part, base, path)
    if isinstance(content.get("quoted"), str):
        content["quoted"] = str(_place(content["quoted"], base, path))
    methods = content.get("methods")
    for part in methods.values() if isinstance(methods, dict) else ():
        if isinstance(part, dict) and isinstance(part.get("method"), str) and "/" in part["method"]:
            part["method"] = str(_place(part["method"], base, path))
    if isinstance(methods, list):
        content["methods"] = [
            str(_place(name, base, path)) if isinstance(name, str) and "/" in name else name for name in methods
        ]
    return content


def _whole_paths(part: dict[str, Any], base: Path, file: Path) -> None:
    if isinstance(part.get("scans"), str):
        part["scans"] = str(_place(part["scans"], base, file))
    if isinstance(part.get("dataset"), str) and part["dataset"].endswith((".yaml", ".yml")):
        part["dataset"] = str(_place(part["dataset"], base, file))


def _place(text: str, base: Path, file: Path) -> Path:
    whole = os.path.expandvars(os.path.expanduser(text))
    if missing := re.search(r"\$\{?(\w+)\}?", whole):
        raise DataError(f"{file}: {text}: the environment variable {missing[1]} is not set; export {missing[1]}=DIR")
    return Path(os.path.normpath(base / whole))


def checked(content: Mapping[str, Any], where: str) -> StudySettings:
    """Settings of a study.

    Args:
        content: of a study file, or of a command.
        where: the file, or "compare", for messages.

    Raises:
        DataError: with all mistakes in one line, unknown keys with what was probably meant.

    Example:
        >>> checked({"data": {"a": {"scans": "x"}}, "methods": ["dtc"], "sedes": [1]}, "study.yaml")
        Traceback (most recent call last):
        ...
        monai_ssl.errors.DataError: study.yaml: sedes: unknown key; did you mean seeds?
    """
    try:
        return StudySettings.model_validate(dict(content))
    except ValidationError as error:
        problems = error.errors()
        places = [problem["loc"] for problem in problems]
        # a list whose items are refused is not empty as well
        problems = [p for p in problems if p["type"] != "too_short" or not _is_above(p["loc"], places)]
        told = list(dict.fromkeys(_told(problem) for problem in problems))
        kind = UsageError if where == "compare" else DataError
        head = f"{where}: " if len(told) == 1 else f"{where}: {plural(len(told), 'mistake')}: "
        raise kind(head + "; ".join(told)) from None


def _is_above(place: Sequence[Any], others: Sequence[Sequence[Any]]) -> bool:
    return any(len(other) > len(place) and tuple(other[: len(place)]) == tuple(place) for other in others)


# what pydantic calls a mistake -> the rule, in words of a study file
PLAIN_RULES = {
    "int_parsing": "must be an integer",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "string_type": "must be text",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of names to values",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "greater_than_equal": "must be at least {}",
    "less_than_equal": "must be at most {}",
}


def _shown(value: Any) -> str:
    return "none" if value in ((), [], {}) else one_line(repr(value), 60)


def _told(problem: Any) -> str:
    place = [str(part) for part in problem["loc"]]
    where = ".".join(place)
    if problem["type"] == "extra_forbidden":
        known = list(_model(place).model_fields)
        near = difflib.get_close_matches(place[-1], known, n=1)
        return f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else f" (known: {', '.join(known)})")
    if problem["type"] == "missing":
        return f"{where}: must be given"
    if problem["type"] == "literal_error":
        allowed = [word.strip(" '") for word in re.split(",| or ", problem["ctx"]["expected"])]
        near = difflib.get_close_matches(str(problem["input"]), allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{where}: must be of {', '.join(allowed)}, got {problem['input']!r}{hint}"
    if rule := PLAIN_RULES.get(problem["type"]):
        bound = next(iter((problem.get("ctx") or {}).values()), "")
        return f"{where}: {rule.format(bound)}, got {_shown(problem['input'])}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {text}" if where else text
    return f"{where}: {text[:1].lower()}{text[1:]}, got {problem['input']!r}"


def _model(place: Sequence[str]) -> type[BaseModel]:
    kinds: dict[str, type[BaseModel]] = {"data": DataSettings, "methods": MethodSettings}
    if len(place) > 2 and place[0] in kinds:
        return kinds[place[0]]
    return SplitSettings if len(place) > 1 and place[0] == "splits" else StudySettings

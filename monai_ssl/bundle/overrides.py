"""Ids and values that a user gives for a bundle's configs: checked before MONAI, and before PyTorch, is loaded."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import logging
import pydoc
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from monai_ssl.bundle.ranges import CHOICES, ROOTS, check_numbers, number_problems, parameter_problem
from monai_ssl.errors import DataError, enumerated, one_line

logger = logging.getLogger(__name__)

# characters that MONAI's config language reads as ids, references, expressions and macros
_SPECIAL = "#@%$:"


def root_id(key: str) -> str:
    """
    Example:
        >>> root_id("method#variant"), root_id("train::trainer::amp")
        ('method', 'train')
    """
    return re.split("#|::", key)[0]


def literal(path: str | Path) -> str:
    """A path as an override that reaches the code as it was typed.

    MONAI rewrites ``#`` in every text of a config and takes ``@`` for a reference. A path with such characters is given
    as an expression in which they are spelled by number.

    Example:
        >>> literal("/runs/a"), literal("/runs/a#1")
        ('/runs/a', "$'/runs/a\\\\x231'")
    """
    text = str(path)
    if not any(character in text for character in _SPECIAL):
        return text
    return "$" + "".join(f"\\x{ord(c):02x}" if c in _SPECIAL else c for c in repr(text))


# How the shipped configs load preset and datalist. Where a config says just this, a program that has loaded and checked
# them hands them on; a config that loads them in its own way is left alone.
_LOADED_BY = {
    "preset": (
        "$monai_ssl.data.load_preset(@dataset, @flavor, @literature)",
        "$monai_ssl.data.load_preset(@dataset, @flavor)",
    ),
    "cases": ("$monai_ssl.data.load_datalist(@datalist, @dataset_dir, strict=False)",),
}
# the loader in C, where PyYAML has it, is safe as well and ten times as quick
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.lru_cache(maxsize=32)
def _parsed(path: str, stamp: tuple[int, int]) -> Any:
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None


def read_config(path: Path) -> dict[str, Any]:
    """A config file's content; a file is parsed once as long as it does not change.

    Raises:
        DataError: when it is missing, no YAML, or no mapping.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot read the config ({error.strerror}); check the path") from None
    content = _parsed(str(path), (state.st_mtime_ns, state.st_size))
    if not isinstance(content, dict):
        raise DataError(f"{path}: must be a mapping of ids to values, got {type(content).__name__}")
    return copy.deepcopy(content)


def merged_config(bundle: Path, configs: Sequence[str], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configs of a bundle, later files over earlier ones, as ``monai.bundle`` merges them; then the overrides.

    Raises:
        DataError: when a file is missing.
    """
    merged: dict[str, Any] = {}
    for name in configs:
        file = bundle / "configs" / name
        if not file.is_file():
            raise DataError(f"bundle: {bundle} has no configs/{name}; is it a whole bundle?")
        for key, value in read_config(file).items():
            _merge(merged, str(key), value)
    for key, value in (overrides or {}).items():
        _merge(merged, key, value)
    return merged


def _merge(config: dict[str, Any], key: str, value: Any) -> None:
    add, key = key.startswith("+"), key.removeprefix("+")
    *path, last = re.split("#|::", key)
    block: Any = config
    for part in path:
        block = block[int(part)] if isinstance(block, list) else block.setdefault(part, {})
    index: Any = int(last) if isinstance(block, list) else last
    if add and isinstance(block, dict) and isinstance(block.get(index), dict) and isinstance(value, dict):
        block[index].update(value)
    elif add and isinstance(block, dict) and isinstance(block.get(index), list) and isinstance(value, list):
        block[index].extend(value)
    else:
        block[index] = value


def handed_on(config: Mapping[str, Any], **loaded: Any) -> dict[str, Any]:
    """Overrides by which a config takes ``preset`` and ``cases`` that are loaded already.

    Example:
        >>> handed_on({"preset": "$my.own(@dataset)"}, preset=object())
        {}
    """
    return {key: value for key, value in loaded.items() if config.get(key) in _LOADED_BY[key]}


def check_ids(bundle: Path, configs: Sequence[str], ids: Iterable[str]) -> None:
    """Every id must be in the bundle's configs, so that a misspelled override is never ignored.

    Args:
        bundle: its folder.
        configs: file names in ``configs/``.
        ids: ``max_iterations``, ``method#unsupervised_weight``, ``train::trainer::amp``, ...

    Raises:
        DataError: for an id that no config knows, or a config that is missing.
    """
    config = merged_config(bundle, configs)
    for key in ids:
        _find(config, key)


def check_overrides(bundle: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """:func:`check_ids`, and: where a boolean is wanted, anything else is refused, and a boolean for a number.

    A boolean is wanted where the config holds one, or where the parameter of the block's ``_target_`` is one. Numbers
    must be in the ranges of :mod:`monai_ssl.bundle.ranges`, those of the config itself as well.

    Raises:
        DataError: for an unknown id or such a value.

    Example:
        >>> from monai_ssl.bundle.library import find_bundle
        >>> check_overrides(find_bundle("dtc"), ["train.yaml"], {"resume": "perhaps"})
        Traceback (most recent call last):
        ...
        monai_ssl.errors.DataError: --resume: must be true or false, got 'perhaps'
    """
    config = merged_config(bundle, configs)
    check_numbers(config, f"{bundle.name}/configs/{configs[-1]}")
    for key, value in overrides.items():
        block, name = _find(config, key)
        if key == "device":
            check_device(value)
        if key in CHOICES:
            _check_choice(key, value)
        if not isinstance(value, bool):
            _check_number(config, block, key, name, value)
        present = block.get(name) if isinstance(block, dict) else None
        if isinstance(value, bool) and isinstance(present, (int, float)) and not isinstance(present, bool):
            raise DataError(f"--{key}: must be a number, got {value!r}")
        if isinstance(value, str) and value.startswith(("$", "@")):
            continue
        if isinstance(present, bool) and not isinstance(value, bool):
            raise DataError(f"--{key}: must be true or false, got {value!r}")
        if isinstance(present, dict) and key in BLOCKS and not isinstance(value, dict):
            raise DataError(f"--{key}: is a block of settings, give one of them: --{key}#ID VALUE, got {value!r}")
        if problem := _argument_problem(_target(key, block, overrides), name, value):
            raise DataError(f"--{key}: {problem}")


def check_device(device: Any) -> None:
    """A device that this machine has.

    Raises:
        DataError: naming what there is.

    Example:
        >>> check_device("cpu")
        >>> check_device("gpu")
        Traceback (most recent call last):
        ...
        monai_ssl.errors.DataError: --device: must be cpu, cuda, cuda:0, ... or mps, got 'gpu'
    """
    if not isinstance(device, str) or device.startswith(("$", "@")):
        return
    found = re.fullmatch(r"(cpu|mps|cuda(?::(\d+))?)", device)
    if not found:
        raise DataError(f"--device: must be cpu, cuda, cuda:0, ... or mps, got {device!r}")
    import torch

    if device == "mps" and not torch.backends.mps.is_available():
        raise DataError("--device: this machine has no MPS device (Apple's GPUs), got 'mps'; use cpu")
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            built = "" if torch.version.cuda else ", and this build of PyTorch could use none"
            raise DataError(f"--device: no CUDA GPU is to be seen here{built}, got {device!r}; use cpu")
        if int(found[2] or 0) >= count:
            raise DataError(f"--device: the GPUs here are cuda:0 to cuda:{count - 1}, got {device!r}")


def _check_choice(key: str, value: Any) -> None:
    known = CHOICES[key]
    if value is None or isinstance(value, bool) or value in (*known, "true", "false"):
        return
    if isinstance(value, str) and value.startswith(("$", "@")):
        return
    raise DataError(f"--{key}: must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")


def _check_number(config: Mapping[str, Any], block: Any, key: str, name: str, value: Any) -> None:
    if value is None:
        if block is config and key in ROOTS and config.get(key) is not None:
            raise DataError(f"--{key}: {ROOTS[key].problem(None)}, got null; leave it away for the default")
        return
    problems = dict(number_problems({key: value}))
    problem = problems.get(key) or parameter_problem(block, name, value)
    if problem:
        raise DataError(f"--{key}: {problem}")
    for inner, text in problems.items():
        raise DataError(f"--{inner}: {text}")


# without which nothing runs
BLOCKS = ("method", "network_def", "optimizer", "train", "validate", "unlabeled", "initialize", "run")


def _target(key: str, block: Any, overrides: Mapping[str, Any]) -> str | None:
    """What a block will build, where the overrides leave that as it is or name another; None where nobody knows."""
    if not isinstance(block, dict) or "_target_" not in block:
        return None
    given = {other.replace("::", "#"): value for other, value in overrides.items()}
    parts = key.replace("::", "#").split("#")[:-1]
    if any("#".join(parts[: depth + 1]) in given for depth in range(len(parts))):
        return None  # the whole block is replaced
    target = given.get("#".join([*parts, "_target_"]), block["_target_"])
    return target if isinstance(target, str) and "." in target else None


def with_fitting_arguments(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in which a block that is to build something else keeps only arguments which that takes.

    Another class has other arguments: AdamW knows no ``momentum``, a network of MONAI no ``base_channels``. Those of
    the config that it does not take are left out, with a word in the log; what was given is passed on as it is.

    Example:
        >>> config = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}}
        >>> with_fitting_arguments(config, {"optimizer#_target_": "torch.optim.AdamW", "optimizer#lr": 0.002})
        {'optimizer': {'_target_': 'torch.optim.AdamW', 'lr': 0.002}}
    """
    given = {key.replace("::", "#"): value for key, value in overrides.items()}
    blocks: dict[str, Any] = {}
    for key, target in given.items():
        name, _, last = key.rpartition("#")
        block = config.get(name)
        if last != "_target_" or not isinstance(block, Mapping) or not isinstance(target, str) or name in given:
            continue
        own = {k.rpartition("#")[2]: v for k, v in given.items() if k.rpartition("#")[0] == name}
        foreign = [k for k in block if k not in own and _argument_problem(target, k, 0).startswith("is no argument")]
        if foreign:
            logger.info("%s: %s takes no %s; left out", name, target, enumerated(foreign))
            blocks[name] = {**{k: v for k, v in block.items() if k not in foreign}, **own}
    replaced = tuple(f"{name}#" for name in blocks)
    rest = {
        key: value
        for key, value in overrides.items()
        if not (key.replace("::", "#").startswith(replaced) and key.replace("::", "#").count("#") == 1)
    }
    return {**blocks, **rest}


def _argument_problem(target: str | None, name: str, value: Any) -> str:
    """Why a class or function cannot take an argument of that name, or of that kind; nothing where nobody knows."""
    if target is None or name.startswith("_"):
        return ""
    try:
        parameters = inspect.signature(pydoc.locate(target)).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError, pydoc.ErrorDuringImport):
        return ""
    parameter = parameters.get(name)
    if parameter is None:
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return ""
        near = difflib.get_close_matches(name, parameters, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(parameters)}"
        return f"is no argument of {target.rpartition('.')[2]}; {hint}"
    text = str(getattr(parameter.annotation, "__name__", parameter.annotation))
    kinds = {kind.strip() for kind in text.split("|")}
    if parameter.annotation is parameter.empty or "Optional" in text or "Union" in text:
        return ""
    if value is None and "None" not in kinds and kinds != {"bool"}:
        return "" if parameter.default is None else "must not be null; leave it away for the default"
    if kinds <= {"bool", "None"} and not isinstance(value, bool) and not (value is None and "None" in kinds):
        return f"must be true or false, got {value!r}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kinds <= {"int", "float", "None"} and not number and value is not None:
        return f"must be a number, got {one_line(repr(value), 60)}"
    return ""


def _find(config: dict[str, Any], key: str) -> tuple[Any, str]:
    """The block that holds an id's last part, and that part.

    Below a ``_target_`` any argument may be added, the class itself checks it.
    """
    path = re.split("#|::", key)
    block: Any = config
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(block, dict) and (part in block or (last and "_target_" in block)):
            if last:
                return block, part
            block = block[part]
        elif isinstance(block, list) and part.isdigit() and int(part) < len(block):
            if last:
                return block, part
            block = block[int(part)]
        else:
            known = (
                [k for k in block if isinstance(k, str) and not k.startswith("_")] if isinstance(block, dict) else []
            )
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f" (known: {enumerated(known, 30)})"
            raise DataError(f"--{key}: no such id in the bundle's configs{hint}")
    raise DataError(f"--{key}: no such id in the bundle's configs")

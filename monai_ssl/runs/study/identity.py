"""What makes two trainings of a study the same: what their configs come to, and their scans by content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.data.cases import Entry, image_files
from monai_ssl.files import write_text

if TYPE_CHECKING:
    from monai_ssl.data.datalist import Datalist
    from monai_ssl.data.preset import Preset

# ids that only plain values hang on: they are resolved, so that `--max_iterations 800` is what a preset of 800 says
PLAIN = ("preset", "protocol", "literature", "dataset", "flavor", "flavour", "seed", "max_iterations",
         "ramp_iterations", "labeled_batch_size", "unlabeled_batch_size", "learning_rate", "amp", "layout",
         "accumulation_steps", "epoch_length", "epochs", "labels")  # fmt: skip
# what may differ between two trainings with the same result
FREE = ("imports", "bundle_root", "dataset", "flavor", "flavour", "dataset_dir", "datalist", "cases", "output_dir",
        "protocol", "literature", "preset", "num_workers", "resume", "cache", "cache_gb", "cache_dir",
        "checkpoint_interval", "checkpoint_minutes", "device", "run", "initialize", "finalize", "validate",
        "val_interval", "epochs", "epoch_length", "unlabeled_datalist", "pseudo_labels", "train", "unlabeled",
        "keep_best")  # fmt: skip
# these decide which iterate is the best by validation
PICKING = ("val_interval", "epochs", "epoch_length")


def resolved(config: Mapping[str, Any], preset: Preset, picking: bool = False) -> dict[str, Any]:
    """What a bundle's config comes to with a preset: id -> plain value, or the text of what is no plain value.

    Args:
        config: merged with its overrides.
        preset: of the data.
        picking: whether the intervals of validation count.
    """
    from monai.bundle import ConfigParser

    from monai_ssl.data.protocol import training_protocol

    literature = config.get("literature")
    protocol = training_protocol(preset, literature if isinstance(literature, Mapping) else None)
    parser = ConfigParser({**config, "preset": preset, "protocol": protocol})
    found: dict[str, Any] = {}
    free = [key for key in FREE if not (picking and key in PICKING)]
    for root, node in config.items():
        if root in free and not (root in ("train", "unlabeled") and _is_own(node)):
            continue
        for key, leaf in _leaves(str(root), node):
            found[key] = _plain(parser, config, key, leaf)
    if picking:
        found["val_interval"] = _plain(parser, config, "val_interval", config.get("val_interval"))
    found["preset"] = preset.model_dump(mode="json", exclude={"description", "codes", "training", "dicom"})
    for key, value in protocol.preset.items():  # in which the method's paper differs from the others
        mapping = isinstance(value, Mapping) and isinstance(found["preset"].get(key), Mapping)
        found["preset"][key] = {**found["preset"][key], **value} if mapping else value
    return found


def at_weight_zero(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a matched floor: equal for methods that train the same network at weight 0.

    Args:
        config: as :func:`resolved` gives it. Its method's options are replaced by what the method says of itself at
            weight 0, see :meth:`monai_ssl.methods.SemiSupervisedMethod.matched_floor`; where that is None, nothing
            changes.
    """
    import inspect
    import pydoc

    options = {key.partition("#")[2]: value for key, value in config.items() if key.startswith("method#")}
    method = pydoc.locate(str(options.get("_target_")))
    floor = getattr(method, "matched_floor", lambda options: None)(options)
    if floor is None or not str(options["_target_"]).startswith("monai_ssl.methods."):
        return dict(config)
    found = {key: value for key, value in config.items() if not key.startswith("method#")}
    if callable(network := pydoc.locate(str(config.get("network_def#_target_")))):
        for name, parameter in inspect.signature(network).parameters.items():  # an option left out is its default
            if parameter.default is not parameter.empty:
                found.setdefault(f"network_def#{name}", parameter.default)
    return {**found, "matched_floor": floor}


def cannot_build(bundle: str, options: Mapping[str, Any], preset: Preset, cases: Datalist) -> str:
    """Why a bundle's network and method cannot be built with some options; "" where they can.

    Args:
        bundle: name, or a bundle's folder.
        options: id -> value, as `monai-ssl train` takes them.
        preset: of the data.
        cases: of the data.
    """
    import sys

    import torch
    from monai.bundle import ConfigParser

    from monai_ssl.bundle.library import find_bundle, is_shipped
    from monai_ssl.bundle.overrides import merged_config, with_fitting_arguments
    from monai_ssl.data.protocol import training_protocol
    from monai_ssl.mistakes import users_mistake

    home = find_bundle(bundle)
    if not is_shipped(home) and str(home) not in sys.path:
        sys.path.append(str(home))  # as for its training
    config = merged_config(home, ["train.yaml"], with_fitting_arguments(merged_config(home, ["train.yaml"]), options))
    literature = config.get("literature")
    protocol = training_protocol(preset, literature if isinstance(literature, Mapping) else None)
    here = {"preset": preset, "protocol": protocol, "cases": cases, "device": torch.device("cpu"), "init": None}
    try:
        with torch.random.fork_rng([]):
            ConfigParser({**config, **here}).get_parsed_content("method")
    except Exception as error:
        return users_mistake(error) or ""  # another error is told by the training
    return ""


def _is_own(node: Any) -> bool:
    """A block that an override has put in place of the template's; what is in the template follows from the rest."""
    return not isinstance(node, Mapping)


def _leaves(key: str, node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        return [leaf for name, part in node.items() for leaf in _leaves(f"{key}#{name}", part)]
    return [(key, node)]


def _plain(parser: Any, config: Mapping[str, Any], key: str, leaf: Any) -> Any:
    if not isinstance(leaf, str) or not leaf.startswith(("$", "@")):
        return leaf
    if not _only_plain(config, leaf, set()):
        return leaf
    try:
        value = parser.get_parsed_content(key)
    except Exception:  # an expression that needs more than is here; its text says what it is
        return leaf
    return value if isinstance(value, (bool, int, float, str, type(None))) else json.loads(_text(value))


def _only_plain(config: Mapping[str, Any], text: str, seen: set[str]) -> bool:
    """Whether everything that a text refers to is plain."""
    for name in re.findall(r"@([\w]+)", text):
        if name in seen:
            continue
        seen.add(name)
        if name not in PLAIN and not isinstance(config.get(name), (int, float, str)):
            return False
        value = config.get(name)
        if name not in ("preset", "protocol") and isinstance(value, str) and not _only_plain(config, value, seen):
            return False
    return "torch." not in text


def digest(content: Any) -> str:
    """16 hexadecimal digits of a plain value; 1 and 1.0 are the same number.

    Example:
        >>> digest({"a": 1, "b": [2]}) == digest({"b": [2.0], "a": 1})
        True
    """
    return hashlib.sha256(_text(_unified(content)).encode()).hexdigest()[:16]


def _unified(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _unified(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unified(part) for part in value]
    return value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


class Contents:
    """Digests of scans and labels, each file read once as long as its size and times stay.

    Args:
        path: where what is known is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: list[list[Any]] = []
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            self._files = known if isinstance(known, list) else []
        except (OSError, ValueError):
            pass
        self._found: dict[str, list[str]] = {}

    def of(self, entries: Sequence[Entry]) -> list[list[str]]:
        """Digests of image and label of each case."""
        from monai_ssl.runs.identity import digests

        new = [entry for entry in entries if _name(entry) not in self._found]
        if new:
            found, files = digests({"": new}, self._files)
            self._found |= {_name(entry): value for entry, value in zip(new, found[""], strict=True)}
            self._files += [file for file in files if file not in self._files]
        return [self._found[_name(entry)] for entry in entries]

    def of_list(self, cases: Datalist, sections: Sequence[str]) -> dict[str, list[list[str]]]:
        """Digests of the cases of some lists."""
        return {section: self.of(cases.section(section)) for section in sections}

    def of_folder(self, folder: Path) -> list[list[str]]:
        """Digests of the label maps in a folder."""
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        return [[file.name, *self.of([{"image": str(file)}])[0][:1]] for file in files]

    def keep(self) -> None:
        """Write down what is known."""
        write_text(self.path, json.dumps(self._files) + "\n")


def _name(entry: Mapping[str, Any]) -> str:
    return json.dumps([image_files(entry), {k: str(v) for k, v in entry.items() if k != "image"}])

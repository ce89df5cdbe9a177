"""Requests to an annotation server: what they may say. A request is data; nothing of it is ever evaluated.

A bundle's config is code: MONAI evaluates a text that begins with ``$``, follows one that begins with ``@`` and reads
the file behind one that begins with ``%``. What a client sends must not get there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SPECIAL = ("$", "@", "%")
MOST_ITERATIONS = 10**7
# names of images, labels and tags become names of files
NAME = re.compile(r"[^\W_](?:[\w .,+=()\[\]-]*[\w)\]])?")
# sent by clients of MONAI Label, without meaning here; tracking would send names to a server that the client chooses
SILENT = ("model", "local_rank", "name", "client_id", "bundle_path", "run_id")


class RequestError(ValueError):
    """A request asks for something that there is not, or that it may not ask for."""


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _device(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"\w[\w .:()+/-]{0,100}", value))  # also names, as GPUs have


# key -> (what the value must be, in words; whether it is)
TRAINING: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_epochs": ("an integer in [1, 10000000]", _integer(1, MOST_ITERATIONS)),
    "max_iterations": ("an integer in [0, 10000000]; 0: as many as max_epochs says", _integer(0, MOST_ITERATIONS)),
    "max_unlabeled": ("an integer >= 0; 0: the server's default", _integer(0, MOST_ITERATIONS)),
    "val_split": (
        "a number in [-1, 1)",
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and -1 <= value < 1,
    ),
    "pretrained": ("true or false", lambda value: isinstance(value, bool)),
    "multi_gpu": ("true or false", lambda value: isinstance(value, bool)),
    "force_multi_gpu": ("true or false", lambda value: isinstance(value, bool)),
    "gpus": ("'all', or numbers separated by commas", lambda v: bool(re.fullmatch(r"all|\d+(,\d+)*", str(v)))),
    "device": ("a device such as cpu, cuda or cuda:0", _device),
}


def training_request(request: Mapping[str, Any], extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """The part of a request that a training may know.

    Args:
        request: as the client sent it.
        extra: further keys that the bundle itself offers (its ``displayable_configs``).

    Returns:
        a new dictionary: ``model`` and the options that are known. ``tracking`` and all keys that nobody here knows
        are left out, with a line in the log.

    Raises:
        RequestError: for a value that its key cannot have, and for any text that MONAI would evaluate.

    Example:
        >>> training_request({"model": "dtc", "max_epochs": 2, "tracking_uri": "$print('hello')"})
        {'model': 'dtc', 'max_epochs': 2}
        >>> training_request({"model": "dtc", "device": "$exit()"})
        Traceback (most recent call last):
        ...
        monai_ssl.deploy.annotation.requests.RequestError: device: must be a device such as cpu, cuda or cuda:0
    """
    kept: dict[str, Any] = {"model": request.get("model")}
    dropped = []
    for key, value in request.items():
        if key in TRAINING:
            # forms send the list of what could be chosen where nothing was
            chosen = value[0] if isinstance(value, list) and value else value
            if isinstance(chosen, float) and chosen.is_integer() and key != "val_split":
                chosen = int(chosen)
            rule, holds = TRAINING[key]
            if not holds(chosen):
                raise RequestError(f"{key}: must be {rule}")
            kept[key] = chosen
        elif key == "model_filename":
            kept[key] = _weights_name(value)
        elif key in extra:
            refuse_special(value, key)
            kept[key] = value
        elif key not in SILENT:
            dropped.append(str(key))
    refuse_special(kept, "request")
    told = [key for key in dropped if not _unset(request[key])]
    if told:
        logger.warning("monai_ssl: left out of the request, since a training takes no such option: %s",
                       ", ".join(repr(key[:40]) for key in sorted(told)[:10]))  # fmt: skip
    return kept


def _unset(value: Any) -> bool:
    """Whether a form sent a field that nobody filled in."""
    return value in (None, "", "None", False) or (isinstance(value, list) and "None" in value)


def _weights_name(value: Any) -> str:
    """File name of weights in the bundle's own folder.

    Raises:
        RequestError: when it is more than a name.
    """
    name = value[0] if isinstance(value, list) and value else value
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.(pt|ts)", name) or ".." in name:
        raise RequestError("model_filename: must be the name of a .pt file in the bundle's models/, without a folder")
    return name


INFERENCE: dict[str, tuple[str, str]] = {
    "device": (r".{0,200}", "a device"),
    "result_extension": (r"(?:\.[A-Za-z0-9]{1,8}){1,3}", "a file's ending such as .nii.gz"),
    "result_dtype": (r"\w{1,20}", "a number type such as uint8"),
    "label_tag": (r"\w[\w-]{0,60}", "a word"),
    "output": (r"\w{1,20}", "image, json, all or dicom_seg"),
}


def inference_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a segmentation, without what would name files or code.

    Raises:
        RequestError: for such a value.

    Example:
        >>> inference_request({"model": "dtc", "image": "scan1", "result_extension": "/../../etc/cron.d/x"})
        Traceback (most recent call last):
        ...
        monai_ssl.deploy.annotation.requests.RequestError: result_extension: must be a file's ending such as .nii.gz
    """
    for key, (pattern, rule) in INFERENCE.items():
        value = request.get(key)
        if value is not None and not (isinstance(value, str) and re.fullmatch(pattern, value)):
            raise RequestError(f"{key}: must be {rule}")
    refuse_special(
        {key: value for key, value in request.items() if key not in ("image", "label", "session")}, "request"
    )
    return dict(request)


def refuse_special(value: Any, where: str) -> None:
    """
    Raises:
        RequestError: where a text, however deep inside, is one that MONAI's configs evaluate.
    """
    for place, text in _texts(value, where):
        if text.lstrip().startswith(SPECIAL):
            raise RequestError(f"{place}: a text of a request must not begin with $, @ or %")


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{where}: key", str(key)
            yield from _texts(inner, str(key)[:40])
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, where)


def plain_name(name: Any, what: str = "name") -> str:
    """A name that stays a name when it becomes that of a file.

    Raises:
        RequestError: for folders, dots at its ends, control characters.

    Example:
        >>> plain_name("scan_01.a")
        'scan_01.a'
        >>> plain_name("../x", "tag")
        Traceback (most recent call last):
        ...
        monai_ssl.deploy.annotation.requests.RequestError: tag: must be a plain name: letters, digits, _ . , + = ( ) -
    """
    text = str(name)
    if not NAME.fullmatch(text.lstrip("_")) or ".." in text or len(text) > 200:
        raise RequestError(f"{what}: must be a plain name: letters, digits, _ . , + = ( ) -")
    return text


def inside(path: str | Path, *folders: str | Path) -> bool:
    """Whether a path, with all links followed, lies in one of the folders."""
    real = Path(path).resolve()
    return any(real.is_relative_to(Path(folder).resolve()) for folder in folders if str(folder))

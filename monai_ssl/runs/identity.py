"""What makes two trainings the same run: everything that decides the result, and nothing else."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import monai_ssl
from monai_ssl.bundle.resolved import ResolvedConfig, plain
from monai_ssl.data.cases import image_files
from monai_ssl.data.partial import Annotated
from monai_ssl.distributed import in_group
from monai_ssl.engines.precision import FORMATS, LAYOUTS, Precision, prefers_channels_last
from monai_ssl.errors import enumerated, shortened

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

# Ids of a config that may change from one start of a run to the next. Preset, cases and the weights of a warm start
# count by their content; the precision, which `amp` and `layout` ask for, counts as it came out.
PLACES = ("bundle_root", "dataset", "flavor", "flavour", "dataset_dir", "datalist", "cases", "output_dir",
          "init", "pseudo_labels")  # fmt: skip
LENGTH = ("max_iterations", "epochs", "epoch_length", "val_interval", "checkpoint_interval", "checkpoint_minutes")
MACHINE = ("device", "local_rank", "num_workers", "amp", "layout", "resume", "keep_best", "run", "finalize")
TRACKING = ("tracking_uri", "experiment_name", "run_name", "is_not_rank0", "save_execute_config")
FREE = (*PLACES, *LENGTH, *MACHINE, *TRACKING)
# the same inside blocks
FREE_PARTS = ("num_workers", "pin_memory", "prefetch_factor", "persistent_workers", "device", "output_dir", "amp",
              "channels_last_weights")  # fmt: skip
FREE_IDS = (
    "train#trainer#max_iterations", "train#trainer#max_epochs", "train#dataloader#epoch_length", "preset#description",
    *(f"preset#training#{key}" for key in ("max_iterations", "epoch_length", "val_interval")),
)  # fmt: skip
ABSENT = "(not there)"
# images whose voxels are in another file
HEADERS = (".mhd", ".nhdr", ".hdr")


def settings(parser: ConfigParser) -> tuple[dict[str, Any], dict[str, str]]:
    """Everything in a config that decides the result, id -> value, and which ids merely repeat another one."""
    config = ResolvedConfig(parser, FREE, contents=("preset",))
    values = {
        key: value
        for key, value in config.values().items()
        if key not in FREE_IDS and key.rpartition("#")[2] not in FREE_PARTS and not _is_memory(key)
    }
    return values, config.aliases()


def _is_memory(key: str) -> bool:
    """Where cases are kept while they wait is not what they are."""
    return any(part.startswith("cache") for part in key.split("#"))


def facts(engine: Any, precision: Precision | None = None) -> dict[str, Any]:
    """What a trainer itself knows that decides the result, whoever built it.

    Args:
        engine: the trainer.
        precision: what it will step with; None: what it has decided, or what the rule takes.
    """
    streams = engine.data_loader
    started = getattr(engine.plain_method.network, "started_from", None)
    return {
        **({} if started is None else {"init": started.content}),
        "seed": engine.seed,
        "labeled_batch_size": streams.labeled_batch_size,
        "unlabeled_batch_size": streams.unlabeled_batch_size,
        "accumulation_steps": engine.accumulation_steps,
        **precision_facts(precision or engine.precision or engine.choice[0]),
        "method": type(engine.plain_method).__name__,
        "processes": torch.distributed.get_world_size() if in_group() else 1,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn": [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32],
        "matrix products": torch.get_float32_matmul_precision(),
    }


def precision_facts(precision: Precision) -> dict[str, str]:
    """How a precision stands in an identity."""
    return {"precision": precision.format, "layout": precision.layout}


def precision_of(former: Mapping[str, Any], engine: Any) -> Precision | None:
    """The precision of a checkpoint's training, where the trainer may take it up; None where its options forbid it."""
    name, layout = former.get("precision"), former.get("layout")
    if name not in FORMATS:
        return None
    if layout is None:  # version 0.1 had the rule alone
        layout = LAYOUTS[prefers_channels_last(engine.state.device, FORMATS[name])]
    allowed = any(choice.format == name for choice in engine.choice) and any(
        choice.layout == layout for choice in engine.choice
    )
    return Precision(name, layout, "checkpoint") if allowed else None


def parts(engine: Any) -> dict[str, Any]:
    """What is to be seen of the parts of a trainer that no config describes."""
    method = engine.plain_method
    found = {"clip_gradient_norm": engine.clip_gradient_norm}
    found |= {f"method#{key}": value for key, value in vars(method).items()
              if not key.startswith("_") and key not in ("training", "iteration", "max_iterations")
              and isinstance(value, (bool, int, float, str, type(None)))}  # fmt: skip
    found["modules"] = hashlib.sha256(str(method).encode()).hexdigest()[:12]
    optimizers = {"optimizer": engine.optimizer, **{name: a.optimizer for name, a in engine.adversaries.items()}}
    for name, optimizer in optimizers.items():
        found[name] = type(optimizer).__name__
        for number, group in enumerate(optimizer.param_groups):
            values = {key: plain(value) for key, value in group.items() if key not in ("params", "lr", "initial_lr")}
            values["lr"] = group.get("initial_lr", group["lr"])  # before the schedule
            found |= {
                f"{name}#{number}#{key}": v for key, v in values.items() if isinstance(v, (bool, int, float, str, list))
            }
    return found


def notes(engine: Any) -> dict[str, Any]:
    """What may change, though the last bits may change with it."""
    return {
        "threads": torch.get_num_threads(),
        "device": torch.device(engine.state.device).type,
        "torch": str(torch.__version__),
        "monai_ssl": monai_ssl.__version__,
    }


# ------------------------------------------------------------------------------------------------- files by content


def digests(
    lists: Mapping[str, Sequence[Mapping[str, Any]]], known: Sequence[Sequence[Any]] = ()
) -> tuple[dict[str, list[list[str]]], list[list[Any]]]:
    """Content of the files of cases.

    Args:
        lists: name of a list -> its cases, ``{"image": ..., "label": ...}``.
        known: what the second result was last time. An image whose size and times of change are among them has its
            former content, and is not read; one that was copied elsewhere has other times, and is. Labels are always
            read: they are small, and they are what people edit.

    Returns:
        name of a list -> digests of image and label per case, in the order of the list; and digest, size and times of
        every image file.
    """
    stamps: dict[tuple[int, ...], str] = {}
    for digest, *stamp in known:
        stamps[tuple(stamp)] = "" if tuple(stamp) in stamps else digest  # two files with one stamp: read both
    files = {str(file) for cases in lists.values() for case in cases for file in image_files(case)}
    labels = {str(case["label"]) for cases in lists.values() for case in cases if case.get("label") is not None}

    def content(file: str) -> tuple[str, list[int]]:
        stamp = _stamp(file)
        return (file not in labels and stamps.get(tuple(stamp))) or _digest(file), stamp

    ordered = sorted(files | labels)
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(ordered, pool.map(content, ordered), strict=True))
    result = {
        name: [
            ["".join(found[str(file)][0] for file in image_files(case)),
             "" if case.get("label") is None else found[str(case["label"])][0] + Annotated.of(case).text()]
            for case in cases
        ]
        for name, cases in lists.items()
    }  # fmt: skip
    return result, [[found[file][0], *found[file][1]] for file in sorted(files) if found[file][1]]


def _stamp(file: str) -> list[int]:
    """Size and times of a file. The time of the last change of its state cannot be set, so that a file put in place
    of another has another stamp, whatever a copying program did to the other time."""
    try:
        state = os.stat(file)
    except OSError:
        return []
    if os.path.isdir(file) or file.lower().endswith(HEADERS):
        return []
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _digest(file: str) -> str:
    """Short hash of a file's content, of all files of a folder, or of the name where there is no file."""
    digest = hashlib.sha256()
    if os.path.isdir(file):
        for path in sorted(path for path in Path(file).rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(file).as_posix()} {_digest(str(path))}".encode())
    elif os.path.isfile(file):
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
        for path in _voxels_of(Path(file)):
            digest.update(_digest(str(path)).encode())
    else:
        digest.update(os.path.basename(file).encode())
    return digest.hexdigest()[:16]


def _voxels_of(header: Path) -> list[Path]:
    """Files that hold the voxels of an image whose header is a file of its own."""
    if not header.name.lower().endswith(HEADERS):
        return []
    beside = [path for path in header.parent.iterdir() if path.name.startswith(f"{header.stem}.") and path != header]
    text = header.read_bytes()[:100_000].decode("latin-1")
    named = [
        header.parent / name.strip() for name in re.findall(r"(?im)^(?:ElementDataFile *=|data ?file *:)(.*)$", text)
    ]
    return sorted({path for path in (*beside, *named) if path.is_file() and path.suffix.lower() not in HEADERS})


# ------------------------------------------------------------------------------------------------- what differs


def differences(
    former: Mapping[str, Any], now: Mapping[str, Any], aliases: Mapping[str, str], names: Mapping[str, Sequence[str]]
) -> list[str]:
    """What makes two identities different, a text each: ``learning_rate: 0.01 -> 0.5``.

    Args:
        former: the identity in a checkpoint.
        now: the one of this training.
        aliases: ids that repeat another one are not told twice.
        names: key of a list of cases -> names of the cases now.
    """
    keys = [key for key in {**former, **now} if not same(former.get(key, ABSENT), now.get(key, ABSENT))]
    keys = [key for key in keys if not (key in aliases and key in former and aliases[key] in keys)]
    told = []
    for key in sorted(keys, key=lambda key: (key.count("#"), list({**now, **former}).index(key))):
        if key in names and isinstance(former.get(key), list):
            told.append(f"{key}: {_changed_cases(former[key], now.get(key, []), names[key])}")
        else:
            told.append(f"{key}: {_value(former.get(key, ABSENT))} -> {_value(now.get(key, ABSENT))}")
    return told


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal; 1 and 1.0 are, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool(a == b)


def _value(value: Any) -> str:
    return value if value is ABSENT else shortened(value)


def _changed_cases(former: list[Any], now: Sequence[Any], names: Sequence[str]) -> str:
    if len(former) != len(now):
        return f"{len(former)} cases -> {len(now)}"
    if sorted(former) == sorted(now):
        return "another order of the same cases"
    changed = [number for number, case in enumerate(now) if case not in former]
    where = enumerated([names[number] for number in changed], 3)
    images = {case[0] for case in former}
    what = "label" if all(now[number][0] in images for number in changed) else "image"
    return f"the {what} of {where} has changed"

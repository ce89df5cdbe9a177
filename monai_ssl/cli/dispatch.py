"""Entry point: which command, and how it ends."""

from __future__ import annotations

import difflib
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import monai_ssl
from monai_ssl.cli.commands import COMMANDS, PROGRAM, Command
from monai_ssl.cli.console import quiet
from monai_ssl.cli.help import command_help, overview
from monai_ssl.cli.parsing import parse, separated
from monai_ssl.errors import DataError, TrainingInterrupted, UsageError
from monai_ssl.mistakes import users_mistake

# labeled scans from which on self-training gained nothing that could be measured (docs/results/label_fraction)
MANY_LABELS = 8

console = logging.getLogger("monai_ssl.console")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line and exit status 2, not in a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # loader processes
    # Large tensors in large pages (Linux): without, a tenth to a quarter of a training step on a CPU goes into page
    # faults. PyTorch reads it at its first allocation, once, and is not loaded yet; 0 switches it off.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        with quiet():
            status = _dispatch(words)
    except TrainingInterrupted:  # the training has said how to go on
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        hint = (
            "; run the same command again to resume"
            if words[:1] in (["train"], ["self-train"], ["demo"], ["prepare"], ["compare"])
            else ""
        )
        print(f"\ninterrupted{hint}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        mistake = None if os.environ.get("MONAI_SSL_DEBUG") else users_mistake(error)
        if mistake is None:
            raise
        print(f"{PROGRAM}: error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None
    if status:
        raise SystemExit(status)


def _only_word(words: Sequence[str]) -> str:
    """The word after `train` that is no option, where it is the only one, and no option names method or data."""
    positions, options = separated(words)
    named = {name.replace("-", "_") for _, name, _ in options} & {"bundle", "dataset_dir"}
    return positions[0] if len(positions) == 1 and not named else ""


def _names_no_method(words: Sequence[str]) -> bool:
    """Whether `train` is followed by a folder of scans alone: then the method is ours to choose."""
    place = os.path.expanduser(_only_word(words))
    return os.path.isdir(place) and not os.path.isfile(os.path.join(place, "configs", "train.yaml"))


def _names_nothing(words: Sequence[str]) -> bool:
    """Whether `train` is followed by a single word that is neither a method nor a folder."""
    word = _only_word(words)
    if not word or {"-h", "--help"} & set(words):
        return False
    from monai_ssl.bundle.library import available_bundles

    return word not in available_bundles() and not os.path.isdir(os.path.expanduser(word))


def _tell_of_many_labels(given: Mapping[str, Any]) -> None:
    """Say what is trained, though it has not been shown to be worth it, and how to train without the pool."""
    from monai_ssl.data.loading import load_datalist

    if given.get("pseudo_labels") is not None:  # of another tool: nothing was measured
        return
    try:
        cases = load_datalist(given.get("datalist", "datalist.json"), given["dataset_dir"])
    except DataError:  # the training says it
        return
    if (n_labeled := cases.counts()["training"]) < MANY_LABELS:
        return
    words = ["train", "supervised", str(given["dataset_dir"])]
    words += [word for key in ("datalist", "dataset", "flavor") if key in given for word in (f"--{key}", given[key])]
    console.info("note: self-training is trained, on %d labeled scans; from %d on, no gain over training on the labels "
                 "alone could be measured, and that takes less than half of the time: %s %s", n_labeled, MANY_LABELS,
                 PROGRAM, shlex.join(map(str, words)))  # fmt: skip


def _dispatch(words: list[str]) -> int:
    """Run the command that the words name; returns its exit status."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(command_help(_command(words[1])) if words[:1] == ["help"] and len(words) > 1 else overview())
        return 0
    if words[0] in ("--version", "version"):
        print(f"{PROGRAM} {monai_ssl.__version__}")
        return 0
    name, *rest = words
    chosen = name == "train" and _names_no_method(rest)
    if chosen:
        print(f"no method is named: self-training, which pays with few labels (`{PROGRAM} list` shows all)",
              file=sys.stderr)  # fmt: skip
        name = "self-train"
    command = _command(name)
    if name == "train" and _names_nothing(rest):
        raise UsageError(f"train: must be followed by a method (`{PROGRAM} list`) and a folder of scans, or by "
                         f"such a folder alone, got {_only_word(rest)!r}, which is neither; usage: {command.usage}"
                         )  # fmt: skip
    if any(word in ("-h", "--help") for word in rest):
        print(command_help(command))
        return 0
    given = parse(command, rest)
    if chosen:
        _tell_of_many_labels(given)
    return command.show(command.function(**given), given) or 0


def _command(name: str) -> Command:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name!r}: {hint} (see {PROGRAM} --help)")
    return COMMANDS[name]

"""Whether scores in the folder of a run are still those of the weights that lie there."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_ssl.errors import PROGRAM
from monai_ssl.runs.folder import BEST, MODEL, RECORD, Run, trained_in

SUMMARY = "summary.json"


def outdated(results: Path, quick: bool = False) -> str:
    """What is wrong with scores of weights that have changed since, and the command that makes them anew.

    An evaluation notes the content of the weights that it scored. A run that is trained on, or anew, has others, and
    scores beside them would be taken for theirs. Results that lie elsewhere are a record of what was, and are left
    alone, as are those that say nothing (of former versions) and those of runs whose weights are gone.

    Args:
        results: folder that an evaluation wrote.
        quick: read the weights only where their file is younger than the scores.

    Returns:
        a sentence; nothing where the scores are right, or nobody can tell.

    Example:
        >>> outdated(Path("/does/not/exist"))
        ''
    """
    meta = _meta(results)
    place = results.expanduser().resolve()
    if meta.get("ensemble"):
        return _outdated_ensemble(place, meta, quick)
    told, run = meta.get("weights"), trained_in(place.parent)
    if not isinstance(told, str) or not (run / RECORD).is_file():
        return ""
    files = [file for file in _scored_files(run, meta) if file.is_file()]
    if not files or any(_is(file, told, place, quick) for file in files):
        return ""
    section = str(meta.get("section", "testing"))
    words = ["evaluate", str(run), *([] if section == "testing" else ["--section", section])]
    words += [] if files[0].name == MODEL else ["--ckpt", str(files[0])]
    words += [] if place == run.resolve() / f"evaluation-{section}" else ["--output", str(results)]
    return (f"{results} holds scores of other weights than {files[0]} has now: the run was trained on, or anew; score "
            f"it again: {PROGRAM} {shlex.join(words)}")  # fmt: skip


def _outdated_ensemble(place: Path, meta: Mapping[str, Any], quick: bool) -> str:
    from monai_ssl.runs.ensemble import Members

    told = meta["ensemble"] if isinstance(meta["ensemble"], Mapping) else {}
    runs = [Run(str(folder)) for folder in told.get("members") or ()]
    if len(runs) < 2 or Members(tuple(runs)).folder != place.parent:
        return ""
    for run, content in zip(runs, told.get("weights") or (), strict=False):
        if run.model.is_file() and not _is(run.model, str(content), place, quick):
            section = str(meta.get("section", "testing"))
            words = ["evaluate", *(str(run.folder) for run in runs), "--section", section, "--output", str(place)]
            return (f"{place} holds scores of an ensemble with other weights than {run.model} has now: the run was "
                    f"trained on, or anew; score it again: {PROGRAM} {shlex.join(words)}")  # fmt: skip
    return ""


def _scored_files(run: Path, meta: Mapping[str, Any]) -> Iterator[Path]:
    """Files that may hold the weights that were scored: by its name in the run, wherever that lies by now."""
    ckpt = Path(str(meta.get("ckpt") or MODEL))
    training = meta.get("training")
    if isinstance(training, Mapping) and training.get("status") == "unknown":  # --ckpt has named them
        yield ckpt
        if ckpt.name != BEST:  # another run's model.pt, perhaps, which has moved: its name says nothing
            return
    yield run / ckpt.name


def _meta(results: Path) -> dict[str, Any]:
    """Where scores come from; nothing where that cannot be read."""
    try:
        meta = json.loads((results / SUMMARY).read_text(encoding="utf-8"))["meta"]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _is(file: Path, content: str, results: Path, quick: bool) -> bool:
    state = file.stat()
    if quick and state.st_mtime_ns <= (results / SUMMARY).stat().st_mtime_ns:
        return True
    return _content(str(file), state.st_mtime_ns, state.st_size) == content


@functools.lru_cache(maxsize=1024)
def _content(file: str, *stamp: int) -> str:
    from monai_ssl.weights import content_digest, load

    return content_digest(load(file))

"""Finding, copying and running the bundles that ship with the package."""

from __future__ import annotations

import difflib
import json
import logging
import lzma
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import monai_ssl
from monai_ssl.bundle.overrides import (
    check_ids,
    check_overrides,
    literal,
    merged_config,
    read_config,
    with_fitting_arguments,
)
from monai_ssl.errors import DataError, ResourceError, TrainingDivergedError, enumerated, one_line

__all__ = [
    "available_bundles",
    "bundles_root",
    "check_ids",
    "copy_bundle",
    "copy_files",
    "find_bundle",
    "is_shipped",
    "opened",
    "own_dataset",
    "read_json",
    "run_bundle",
    "unpack",
]

console = logging.getLogger("monai_ssl.console")


def bundles_root() -> Path:
    """Folder of the shipped bundles: inside the installed package, or next to it in a clone."""
    package = Path(monai_ssl.__file__).parent
    for folder in (package / "bundles", package.parent / "bundles"):
        if folder.is_dir():
            return folder
    raise DataError(f"bundles: not found next to {package}; reinstall monai_ssl")


def available_bundles() -> list[str]:
    """Names of the shipped bundles."""
    return sorted(path.parent.name for path in bundles_root().glob("*/bundle.yaml"))


def find_bundle(name: str | Path) -> Path:
    """Folder of a shipped bundle, or of your own (a path that has ``configs/train.yaml``).

    Raises:
        DataError: when there is no such bundle.
    """
    own = Path(str(name)).expanduser()
    if (own / "configs" / "train.yaml").is_file():
        return own.resolve()
    folder = bundles_root() / str(name)
    if not (folder / "configs" / "train.yaml").is_file():
        names = available_bundles()
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"bundle: must be one of {', '.join(names)} or a bundle's folder, got {str(name)!r}{hint}")
    return folder


def is_shipped(folder: Path) -> bool:
    """Whether a bundle's folder is the package's own, which nobody edits."""
    return folder.parent == bundles_root()


def own_dataset(folder: Path) -> Any:
    """Name, path or content of the preset that a bundle trains with unless another is asked for."""
    return read_config(folder / "configs" / "train.yaml").get("dataset", "left_atrium")


def copy_bundle(name: str, output: str | Path) -> Path:
    """Write a bundle to a folder, complete, to edit it or to load it in MONAI Label.

    Args:
        name: dtc, supervised, ... (`monai-ssl list`).
        output: new folder.

    Returns:
        the folder; weights are not copied (none are shipped).

    Raises:
        DataError: when the folder exists and is not empty.
    """
    source, target = find_bundle(name), Path(output).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"output: {target} exists and is not an empty folder; give a new one")
    head = f"A copy of the bundle {source.name} of monai_ssl {monai_ssl.__version__}: yours to edit."
    copy_files(source, target, head)
    return target


def copy_files(source: Path, target: Path, head: str, weights: bool = False) -> None:
    """Write the files of a bundle into another folder: those that belong to a bundle, and nothing else.

    What lies beside them (a run's pictures and tables, notes, scans, links) may show patients; it stays, and a line
    names it.

    Args:
        source: the bundle. One that is rendered is rendered anew, without its sources.
        target: folder, new or empty.
        head: first line of every rendered file that can carry a comment.
        weights: also copy ``models/model.pt``.

    Raises:
        DataError: when the weights that should be copied are a link.
    """
    from monai_ssl.bundle.render import write_bundle
    from monai_ssl.bundle.spec import PAGE, SPEC

    if weights and (source / "models" / "model.pt").is_symlink():
        raise DataError(f"bundle: {source / 'models' / 'model.pt'} must be a file, got a link: put the weights there")
    left_out = []
    for folder, folders, names in os.walk(source):
        here = Path(folder).relative_to(source)
        for name in [name for name in folders if (Path(folder) / name).is_symlink()]:
            left_out.append((here / name).as_posix())
        folders[:] = sorted(name for name in folders if name not in REMADE and not name.startswith("."))
        for name in sorted(names):
            part = here / name
            if (source / part).is_symlink() or not _belongs(part, weights):
                if not _remade(part):
                    left_out.append(part.as_posix())
                continue
            (target / here).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / part, target / part)
    target.mkdir(parents=True, exist_ok=True)
    if (source / SPEC).is_file():
        write_bundle(source, target, head)
    for name in (SPEC, PAGE):
        (target / name).unlink(missing_ok=True)
    (target / "models").mkdir(exist_ok=True)
    if left_out:
        console.info("left out of %s, as no part of a bundle: %s", target.name, enumerated(left_out))


# of a package: spacing and shape of the training images, with which prediction compares a series
TRAINING_IMAGES = "configs/training_images.json"
# folders that no copy needs
REMADE = ("__pycache__", "eval", "data")


def _belongs(part: Path, weights: bool) -> bool:
    """Whether a file is one that bundles are made of: configs, pages, scores, licence, code of its own, weights."""
    folder, suffix = part.parts[0], part.suffix.lower()
    if len(part.parts) == 1:
        return suffix == ".py" or part.stem.upper() in ("LICENSE", "LICENCE", "NOTICE", "README", "CITATION")
    if folder == "configs":
        return len(part.parts) == 2 and suffix in (".yaml", ".yml", ".json", ".conf")
    if folder == "docs":
        scores = part.parts[1] == "results" and part.name in ("summary.json", "per_case.csv")
        return suffix == ".md" or scores or part.name in ("LICENSE", "license.txt", "data_license.txt")
    if folder == "models":
        return weights and part.as_posix() == "models/model.pt"
    return suffix == ".py"


def _remade(part: Path) -> bool:
    """Whether it is missed by nobody: exported again, or a sign for git."""
    from monai_ssl.bundle.spec import PAGE, SPEC

    exported = part.parts[0] == "models" and part.name.startswith(("model.", "checkpoint."))
    return exported or part.name in (".gitkeep", SPEC, PAGE)


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A bundle's folder; a ``.zip`` is unpacked for the time of the block.

    Raises:
        DataError: when the archive is damaged, holds no bundle, or names a file outside itself.
    """
    if path.suffix.lower() != ".zip":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="monai_ssl-") as folder:
        unpack(path, Path(folder))
        inside = [config.parent.parent for config in Path(folder).glob("**/configs/metadata.json")]
        if len(inside) != 1:
            raise DataError(f"bundle: {path} must hold one bundle (configs/metadata.json), got {len(inside)}")
        yield inside[0]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file that may come from anybody.

    Raises:
        DataError: for a damaged or encrypted archive, a member whose path leads out of it (``..``, absolute), lies more
            than 32 folders deep or stands twice, a link, or more than 4 GB of content.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = source.infolist()
            for member in members:
                path = PurePosixPath(member.filename.replace("\\", "/"))
                name = one_line(member.filename, 60)
                if path.is_absolute() or ".." in path.parts or ":" in member.filename:
                    raise DataError(f"bundle: {archive} names a file outside itself ({name!r}); not unpacked")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise DataError(f"bundle: {archive} holds a link ({name!r}); not unpacked")
                if len(path.parts) > 32:
                    raise DataError(f"bundle: {archive} has folders {len(path.parts)} deep; not unpacked")
                if member.flag_bits & 1:
                    raise DataError(
                        f"bundle: {archive} is encrypted ({name!r}); unpack it yourself, then name its folder"
                    )
            names = [member.filename for member in members]
            if len(set(names)) < len(names):
                raise DataError(f"bundle: {archive} holds a file twice; not unpacked")
            if sum(member.file_size for member in members) > 4e9:
                raise DataError(f"bundle: {archive} would take more than 4 GB; not unpacked")
            source.extractall(folder)
    except FileNotFoundError:
        raise DataError(f"bundle: {archive} does not exist; check the path") from None
    except DataError:
        raise
    # the library raises what it comes across: unknown compression, broken streams, names that are none
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError, struct.error,
            OverflowError, MemoryError) as error:  # fmt: skip
        raise DataError(f"bundle: {archive} is no readable zip file ({one_line(error)})") from None


def run_bundle(bundle: Path, configs: Sequence[str], overrides: dict[str, Any]) -> Any:
    """``python -m monai.bundle run`` with the bundle's own folder as ``bundle_root``.

    The ``logging.conf`` of your own bundle is applied. For a shipped bundle, log records go wherever the calling
    program sends them.

    Args:
        bundle: its folder.
        configs: file names in ``configs/``, later ones override earlier ones.
        overrides: id -> value; ids are checked against the configs first.

    Returns:
        MONAI's ``ConfigParser``, whose objects are those that ran.

    Raises:
        DataError: for an id that no config knows, and whatever the configs' components raise: MONAI's wrapping of it
            is taken off.
    """
    from monai.bundle import create_workflow

    if not is_shipped(bundle) and str(bundle) not in sys.path:
        sys.path.append(str(bundle))  # a method of your own may be next to its configs, see `monai-ssl new-method`
    check_overrides(bundle, configs, overrides)
    files = [str(bundle / "configs" / name) for name in configs]
    logging_file = bundle / "configs" / "logging.conf"
    # MONAI takes None for "not given"
    fitting = with_fitting_arguments(merged_config(bundle, configs), overrides)
    given = {key: "$None" if value is None else value for key, value in fitting.items()}
    log: Any = str(logging_file) if logging_file.is_file() and not is_shipped(bundle) else False
    with warnings.catch_warnings(), _without_summary() if is_shipped(bundle) else nullcontext():
        if is_shipped(bundle):  # MONAI warns of configs from strangers
            warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        try:
            workflow = create_workflow(
                config_file=files,
                meta_file={},  # MONAI would evaluate what the metadata say: they are data here
                logging_file=log,
                bundle_root=literal(bundle),
                **given,
            )
            workflow.run()
            workflow.finalize()
        except RuntimeError as error:
            if (cause := _unwrapped(error)) is error:
                raise
            raise cause from cause.__cause__
    return workflow.parser


def _unwrapped(error: BaseException) -> BaseException:
    """What went wrong inside a config, without MONAI's wrapping; in a line where the code is somebody else's."""
    cause: BaseException | None = error
    text = ""
    while type(cause) is RuntimeError and re.match(r"Failed to (instantiate|evaluate)", str(cause)):
        text, cause = str(cause), cause.__cause__
    if cause is None or cause is error:
        return error
    if isinstance(cause, (DataError, TrainingDivergedError, ResourceError, OSError, MemoryError)):
        return cause
    frames = traceback.extract_tb(cause.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(monai_ssl.__file__).parent)
    if ours and isinstance(cause, (ValueError, TypeError)):
        return cause
    if (
        ours or ".run()" in text or type(cause).__name__ == "OutOfMemoryError"
    ):  # a bug, or nothing that is written there
        return error
    hint = "MONAI_SSL_DEBUG=1 shows the traceback"
    mistake = DataError(f"{one_line(cause)} ({type(cause).__name__} in the bundle's config; {hint})")
    mistake.__cause__ = cause
    return mistake


@contextmanager
def _without_summary() -> Iterator[None]:
    """MONAI lists its arguments before a run; the run's own record and log say what counts."""
    loggers = [logging.getLogger(f"monai.bundle.{name}") for name in ("scripts", "workflows")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DataError: when the file is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a run folder is written by `monai-ssl train`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not a readable JSON file ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: must be a JSON object, got {type(content).__name__}")
    return content

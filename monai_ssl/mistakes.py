"""Whose mistake an exception is."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from pathlib import Path

import monai_ssl
from monai_ssl.errors import DataError, ResourceError, TrainingDivergedError, one_line, out_of_resources
from monai_ssl.files import FULL, FULL_ERRORS

# characters of what somebody else's code says
LONGEST = 500
# how PyTorch refuses to normalize a batch of one voxel
ONE_VALUE = "Expected more than 1 value per channel when training"


def users_mistake(error: BaseException) -> str | None:
    """One line for an error that a user can act on; None for a bug of ours, which deserves its traceback.

    MONAI wraps what goes wrong inside a config into RuntimeErrors: the chain of causes is searched.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    torch = sys.modules.get("torch")  # not loaded for its errors alone
    for link in chain:
        if isinstance(link, (DataError, TrainingDivergedError, ResourceError)):
            return _line(link)
        if torch is not None and isinstance(link, torch.OutOfMemoryError):
            return (
                f"out of GPU memory ({_line(link)[:80]}...); try --accumulation_steps 2, smaller --labeled_batch_size "
                "and --unlabeled_batch_size, or a smaller patch_size in the preset"
            )
        if isinstance(link, ValueError) and ONE_VALUE in str(link):
            return (
                "patch_size: is so small that the network's deepest level holds one voxel, and batch normalization "
                "needs more than one value; use a patch of twice the size in the preset, or --labeled_batch_size 2 and "
                "--unlabeled_batch_size 2 or more"
            )
    for link in chain:
        if isinstance(link, (MemoryError, RuntimeError)) and (known := out_of_resources(link)):
            return _line(known)
        if isinstance(link, OSError):
            if link.errno in FULL_ERRORS and FULL not in str(link):
                return f"{link.filename or 'a file'}: {link.strerror}{FULL}"
            if not link.filename or not link.strerror:
                return _line(link)
            return f"{_target(link.filename)}: {link.strerror}{_elsewhere(link)}"
    root = chain[-1]
    frames = traceback.extract_tb(root.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(monai_ssl.__file__).parent)
    if isinstance(root, (ValueError, TypeError)) and ours:
        return _line(root)
    wrapped = any(
        type(link) is RuntimeError and re.match(r"Failed to (instantiate|evaluate)", str(link)) for link in chain
    )
    if wrapped:
        told = one_line(_line(root), LONGEST)
        return f"{told} ({type(root).__name__} in the bundle's config; MONAI_SSL_DEBUG=1 shows the traceback)"
    return None


def _target(filename: str | bytes) -> str:
    """The file that was to be written, where a temporary one beside it could not."""
    path = Path(os.fsdecode(filename))
    return str(path.with_name(path.name.removeprefix(f".{os.getpid()}-")))


def _elsewhere(error: OSError) -> str:
    """The next step where a file or folder could not be made."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    made = "cannot write" in str(error) or any(frame.name in ("mkdir", "makedirs") for frame in frames)
    denied = error.errno == errno.EROFS or (made and error.errno in (errno.EACCES, errno.EPERM))
    return "; name another --output, where you may write" if denied else ""


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if any("Traceback (most recent call last)" in line for line in lines):  # MONAI's, of all that it has tried
        lines = [lines[0], lines[-1]]
    return " ".join(" ".join(lines).split()) or type(error).__name__

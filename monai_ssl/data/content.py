"""What the prepared content of a case depends on, as a name: two cases with one name are equal to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_ssl.data.cases import image_files
from monai_ssl.data.partial import KEYS, Annotated

# images whose voxels are in another file: their own times say nothing about it
HEADERS = (".mhd", ".nhdr", ".hdr", ".img")


def case_keys(entries: Sequence[Mapping[str, Any]], preparation: str | None) -> list[str | None]:
    """What the prepared content of each case depends on, as a name: preparation, files, versions and processor.

    Args:
        entries: of a datalist.
        preparation: text that says how they are prepared; None where nobody knows.

    Returns:
        32 hexadecimal digits per case; None where it cannot be known whether a file will be the same.
    """
    if preparation is None:
        return [None] * len(entries)
    common = [preparation, _maker()]
    return [_case_key(entry, common) for entry in entries]


def _case_key(entry: Mapping[str, Any], common: list[Any]) -> str | None:
    if not set(entry) <= {"image", "label", *KEYS}:
        return None
    files: list[Any] = [Annotated.of(entry).text()]
    for role, names in (("image", image_files(entry)), ("label", [entry["label"]] if entry.get("label") else [])):
        for name in names:
            stamp = _stamp(str(name))
            if stamp is None:
                return None
            files.append([role, os.path.abspath(name), *stamp])
    return hashlib.blake2b(json.dumps([*common, files]).encode(), digest_size=16).hexdigest()


def _stamp(file: str) -> list[int] | None:
    """What changes with a file's content. The time of its last change cannot be set by a program that copies."""
    if file.lower().endswith(HEADERS) or not os.path.isfile(file):
        return None
    state = os.stat(file)
    return [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _maker() -> list[Any]:
    """What may change the last bits of a preparation."""
    import monai
    import nibabel
    import numpy
    import scipy

    import monai_ssl

    versions = [monai_ssl.__version__, *(str(m.__version__) for m in (torch, monai, numpy, scipy, nibabel))]
    return [*versions, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), platform.machine()]

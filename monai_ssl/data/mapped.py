"""Cases on disk as plain NumPy arrays, which are mapped into memory and read where a patch is cut out.

Nothing is pickled. A file of facts beside the arrays is written last and holds their checksums: what is not whole is
not used.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_ssl.files import atomic_paths, write_text

FORMAT = 1
_NAME = re.compile(r"\w+")
_OURS = re.compile(r"\.?(\d+-)?[0-9a-f]{32}(-\w+\.npy|\.json)")


@dataclass(frozen=True)
class Mapped:
    """A case on disk: name of a tensor -> its file."""

    files: Mapping[str, Path]

    def open(self) -> dict[str, torch.Tensor]:
        """The tensors, mapped: what is changed in them is changed in memory only, and forgotten with them.

        Raises:
            OSError: when a file is not there any more.
            ValueError: when one is not what was written.
        """
        # numpy refuses arrays of objects here, so that nothing is unpickled
        return {name: torch.from_numpy(np.lib.format.open_memmap(file, mode="c")) for name, file in self.files.items()}


def read_mapped(folder: Path, key: str) -> Mapped | None:
    """What :func:`write_mapped` has written under a name, if it is whole."""
    try:
        content = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        files = {}
        for name, facts in content["tensors"].items():
            file = folder / f"{key}-{name}.npy"
            if not _NAME.fullmatch(name):
                return None
            if file.stat().st_size != facts["bytes"] or _checksum(file) != facts["crc32"]:
                return None
            files[str(name)] = file
        if content["format"] != FORMAT or not files:
            return None
        case = Mapped(files)
        case.open()
        return case
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or not whole
        return None


def write_mapped(folder: Path, key: str, tensors: Mapping[str, np.ndarray], slices: bool = False) -> Mapped:
    """Write a case.

    Args:
        folder: created if need be, readable by its owner only: it holds scans.
        key: 32 hexadecimal digits.
        tensors: name -> array.
        slices: arrays of four axes will be read slice by slice along the last one.

    Raises:
        OSError: when a file cannot be written; nothing is left of it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    files = [folder / f"{key}-{name}.npy" for name in tensors]
    with atomic_paths(files) as temporary:
        facts = {}
        for file, (name, array) in zip(temporary, tensors.items(), strict=True):
            by_slice = slices and array.ndim == 4  # the last axis is the slowest
            with open(file, "wb") as stream:
                laid = np.asfortranarray(array) if by_slice else np.ascontiguousarray(array)
                np.lib.format.write_array(stream, laid, allow_pickle=False)
            facts[name] = {"bytes": file.stat().st_size, "crc32": _checksum(file)}
    write_text(folder / f"{key}.json", json.dumps({"format": FORMAT, "tensors": facts}))
    return Mapped(dict(zip(tensors, files, strict=True)))


def plain_tensors(item: Any) -> dict[str, np.ndarray] | None:
    """The item as arrays, where it is nothing but named plain tensors."""
    if not isinstance(item, Mapping) or not item:
        return None
    found: dict[str, np.ndarray] = {}
    for name, value in item.items():
        if type(value) is not torch.Tensor or value.is_cuda or not _NAME.fullmatch(str(name)):
            return None
        try:
            found[str(name)] = value.numpy()
        except (TypeError, RuntimeError):  # a type that NumPy does not know, a tensor that learns
            return None
    return found


def _checksum(file: Path) -> int:
    value = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def our_files(folder: Path) -> Iterator[Path]:
    """Every file that was written here, whole or not."""
    if folder.is_dir() and not folder.is_symlink():
        yield from [file for file in folder.iterdir() if _OURS.fullmatch(file.name)]


def remove_empty(folder: Path) -> None:
    """Remove the folder unless somebody put something else into it."""
    with contextlib.suppress(OSError):
        folder.rmdir()

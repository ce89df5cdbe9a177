"""NumPy's .npy and .npz, by NumPy; pickles inside are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.formats.promise import check_promise
from monai_ssl.data.scan import Scan
from monai_ssl.errors import DataError


def shape_of(file: Path) -> tuple[int, ...]:
    """Shape from the header."""
    return tuple(_header(file)[0])


def read(file: Path, label: bool = False) -> Scan:
    """The one array of the file; its axes are x, y and z.

    Raises:
        DataError: for several arrays, and for a header that promises more than there is.
    """
    shape, dtype, stored = _header(file)
    check_promise(shape, dtype.itemsize, None if dtype.hasobject else stored)
    content = np.load(file, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return Scan(content, None)
    with content:
        return Scan(content[content.files[0]], None)


def _header(file: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, number type, and the bytes that follow."""
    with open(file, "rb") as stream:
        zipped = stream.read(2) == b"PK"
        stream.seek(0)
        if not zipped:
            shape, dtype = _array_header(stream)
            return shape, dtype, file.stat().st_size - stream.tell()
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if len(members) != 1:
                raise DataError(f"file must hold one array, got {len(members)}: write one file per channel")
            with archive.open(members[0]) as member:
                shape, dtype = _array_header(member)
                return shape, dtype, members[0].file_size - member.tell()


def _array_header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    return shape, dtype

"""Weights on disk."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.errors import DataError
from monai_ssl.files import atomic_path


def save(content: Any, path: str | Path) -> None:
    """``torch.save`` that never leaves a half-written file.

    Raises:
        OSError: when the disk is full or the folder not writable, naming the file.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's zip writer keeps to itself why it failed
            _try_to_write(temporary)
            raise OSError(errno.EIO, " ".join(str(error).split())[:120], str(path)) from error


def _try_to_write(path: Path) -> None:
    """Fails as a write of PyTorch's has just failed, with the system's own reason."""
    with open(path, "ab") as file:
        for _ in range(16):
            file.write(bytes(1 << 20))
            file.flush()
        os.fsync(file.fileno())


def load(path: str | Path, map_location: Any = "cpu") -> Any:
    """``torch.load`` of tensors and plain containers; never unpickles objects.

    Checksums are compared first: PyTorch writes them, but does not look at them.

    Raises:
        DataError: when the file is missing, truncated, changed by as little as a bit, or holds anything but tensors and
            plain containers.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of its part {damaged} is wrong: a damaged disk or copy")
        else:
            _refuse_other_content(path)
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `monai-ssl train` writes it") from None
    except Exception as error:  # torch raises many types here: UnpicklingError, RuntimeError, EOFError, ...
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error):
            # PyTorch's own text tells how to open the file all the same
            raise DataError(
                f"{path}: not a readable file of weights (it holds Python objects, not tensors alone, and opening such "
                "a file may run any program); save the tensors where you trust it: torch.save(net.state_dict(), FILE)"
            ) from None
        raise DataError(f"{path}: not a readable file of weights ({reason})") from None


def _refuse_other_content(path: str | Path) -> None:
    """
    Raises:
        ValueError: for a file that is no archive of PyTorch's, and no pickle either, as which it wrote tensors once.
    """
    with open(path, "rb") as file:
        head = file.read(2)
    if not head:
        raise ValueError("it is empty: copy or save it again")
    if head == b"PK":
        raise ValueError("it is cut off: copy or save it again")
    if head[:1] != b"\x80":
        raise ValueError(
            "PyTorch has not written it: name a file of torch.save(net.state_dict(), FILE), or a run's folder"
        )


def content_digest(content: Any) -> str:
    """Sixteen hexadecimal digits that are equal for equal tensors and containers.

    Not those of the file: the same weights, saved again, make a file with other bytes.

    Args:
        content: what :func:`load` returns.

    Example:
        >>> content_digest({"a": torch.ones(2)}) == content_digest({"a": torch.ones(2)})
        True
    """
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                digest.update(str(key).encode() + b"\0")
                add(value[key])
        elif isinstance(value, (list, tuple)):
            digest.update(f"{len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(content)
    return digest.hexdigest()[:16]


def load_network(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a deployed network's weights (``model.pt``) strictly.

    Raises:
        DataError: when the file is missing, unsafe, or does not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"ckpt: {path} does not exist; no weights are shipped: train first (`monai-ssl train` or the bundle's "
            "train config) or give --ckpt"
        )
    state = load(path)
    if isinstance(state, dict) and "model" in state and not isinstance(state["model"], Tensor):
        state = state["model"]
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: does not fit the network of this bundle and dataset ({' '.join(str(error).split())[:240]})"
        ) from None
    return network

"""Where prepared cases are kept while a training draws patches from them: in memory up to a budget, then on disk."""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_ssl.data.datalist import Datalist
from monai_ssl.data.footprint import GB, Footprint, footprint, gigabytes
from monai_ssl.data.mapped import Mapped, our_files, plain_tensors, read_mapped, remove_empty, write_mapped
from monai_ssl.data.preset import Preset
from monai_ssl.data.reading import held_bytes
from monai_ssl.distributed import from_first, in_group
from monai_ssl.errors import DataError, shortened
from monai_ssl.files import FULL_ERRORS
from monai_ssl.machine import available_memory, free_space

logger = logging.getLogger(__name__)

# hidden: no walk through a folder of images takes what is in it for images
FOLDER = ".prepared"
# what is not written: these cases must find the way back to the grid of their files
REREAD = "validation"


class DiskFullError(DataError):
    """There is no room for prepared cases."""


class CaseCache:
    """Keeps prepared cases for as long as a training runs.

    Cases stay in memory as long as the budget lasts, in the order in which they come; the others are written to a
    folder and mapped. A case that cannot be written (it is more than plain tensors, as those for validation are, which
    must find the way back to their grid) is prepared anew each time. All three give the same bits.

    Args:
        gb: budget in GB (10^9 bytes) for prepared cases, and for the scans that a check hands over; 0: nothing in
            memory. None: half of the memory that is available when the first case is prepared, divided by the number
            of processes of this machine that train together.
        folder: where the others are kept for good, for this training and later ones; several may share it.
        run_folder: where they are kept until the training is complete, if there is no ``folder``. None: in a temporary
            folder of the system.

    Attributes:
        budget: in bytes.
        used: bytes that cases in memory take.

    Raises:
        DataError: for a budget that is no number >= 0, or a folder that is none.

    Example:
        >>> CaseCache(gb=1.5).budget
        1500000000
    """

    def __init__(
        self, gb: float | None = None, folder: str | Path | None = None, run_folder: str | Path | None = None
    ) -> None:
        self.budget = budget_bytes(gb)
        if folder is not None and (not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder)):
            raise DataError(f"cache_dir: must be a folder, or null for the run's own, got {folder!r}")
        self.lasting = None if folder is None else Path(folder).expanduser().absolute() / FOLDER
        self._scratch = None if run_folder is None else Path(run_folder).expanduser().absolute() / FOLDER
        self._lock = threading.Lock()
        self.used = 0  # bytes in memory
        self._swept = False

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}  # a loader process needs none

    @property
    def scratch(self) -> Path:
        """Folder that is removed when the training is complete."""
        if self._scratch is None:
            root = Path(tempfile.mkdtemp(prefix="monai_ssl-"))
            atexit.register(_remove, root, os.getpid())
            self._scratch = root / FOLDER
        return self._scratch

    @property
    def folder(self) -> Path:
        """Where cases beyond the budget are written."""
        return self.lasting or self.scratch

    # ---------------------------------------------------------------------------------------------- before the work

    def plan(self, needs: Mapping[str, Footprint], keys: Collection[str | None] = ()) -> None:
        """Say what the cases need and where they will be; make sure that there is room.

        Args:
            needs: what is prepared, in order: name -> estimate.
            keys: of all cases; what else is in the run's own folder is removed.

        Raises:
            DataError: when the disk has no room for what does not fit into memory.
        """
        budget = self._decided()
        if self.lasting is not None and self.lasting.parent.exists() and not self.lasting.parent.is_dir():
            raise DataError(f"cache_dir: must be a folder, got the file {self.lasting.parent}")
        first = not in_group() or torch.distributed.get_rank() == 0
        left, mapped, reread = budget, 0.0, False
        for name, need in needs.items():
            beyond = max(need.bytes - left, 0)
            left -= need.bytes - beyond
            reread |= name == REREAD and beyond > 0
            mapped += beyond if name != REREAD else 0
        problem = ""
        if first:
            self._sweep(keys)
            self._announce(needs, mapped, reread)
            missing = mapped - self._written(keys) if mapped > 0 else 0
            if missing > 0 and missing > (free := free_space(self.folder)):
                problem = (
                    f"cache_gb: {gigabytes(budget)} of memory leave {gigabytes(missing)} for the disk, and "
                    f"{self.folder.parent} has {gigabytes(free)} free; free some space, name a folder with more by "
                    "--cache_dir, or give more memory by --cache_gb"
                )
        if problem := from_first(problem):  # nobody writes before the folder is swept
            raise DiskFullError(problem)

    def _decided(self) -> float:
        if self.budget is None:
            self.budget = default_budget()
        return self.budget

    def _announce(self, needs: Mapping[str, Footprint], mapped: float, reread: bool) -> None:
        budget = self._decided()
        parts = [f"{name}: {need.cases:,} scan{'s' * (need.cases != 1)}, {need}" for name, need in needs.items()
                 if need.cases]  # fmt: skip
        where = f"all in memory, of which they may take {gigabytes(budget)} (cache_gb)"
        if mapped > 0:
            where = f"{gigabytes(budget)} in memory (cache_gb), the rest memory-mapped in {self.folder}"
        elif reread:
            where = f"{gigabytes(budget)} in memory (cache_gb)"
        again = ", scans for validation read again each time" if reread else ""
        logger.info("%s after preparation; %s%s", "; ".join(parts), where, again)
        wanted, available = min(budget, sum(need.bytes for need in needs.values())), available_memory()
        if wanted > available:
            logger.warning(
                "cache_gb: prepared scans may take %s of memory, and %s are available now",
                gigabytes(wanted), gigabytes(available),
            )  # fmt: skip

    def _written(self, keys: Collection[str | None]) -> int:
        """Bytes that an earlier start, or another training, has left of these cases."""
        return sum(file.stat().st_size for file in our_files(self.folder) if file.name[:32] in keys)

    # --------------------------------------------------------------------------------------------------- the work

    def find(self, key: str | None) -> Mapped | None:
        """What an earlier start, or another training that shares the folder, has written of a case, if it is whole."""
        if key is None or (self.lasting is None and self._scratch is None):
            return None
        return read_mapped(self.folder, key)

    def keep(self, item: Any, key: str | None, slices: bool = False, stored: Mapped | None = None) -> Any:
        """Take a prepared case: the item where memory is left, a :class:`Mapped`, or None where it cannot be kept.

        Args:
            item: the case.
            key: what its content depends on, see :mod:`monai_ssl.data.content`; None: nobody knows, so that it is
                not used again.
            slices: it will be read slice by slice along the last axis.
            stored: it is on disk already.

        Raises:
            DataError: when it cannot be written.
        """
        size = _bytes(item)
        with self._lock:
            if self.used + size + held_bytes() <= self._decided():
                self.used += size
                # of a mapped tensor a copy, which no longer depends on the file
                return item if stored is None else {name: tensor.clone() for name, tensor in item.items()}
        if stored is not None:
            return stored
        tensors = plain_tensors(item)
        if tensors is None:
            return None
        return self._write(tensors, key, slices)

    def _write(self, tensors: Mapping[str, np.ndarray], key: str | None, slices: bool) -> Mapped:
        folder = self.scratch if key is None else self.folder
        try:
            return write_mapped(folder, key or secrets.token_hex(16), tensors, slices)
        except OSError as error:
            text = f"cache: {error.filename or folder}: {error.strerror or error}"
            if error.errno in FULL_ERRORS:
                raise DiskFullError(
                    f"{text}; or name a folder with more room by --cache_dir, or give more memory by --cache_gb"
                ) from error
            raise DataError(f"{text}; name another folder by --cache_dir") from error

    # ------------------------------------------------------------------------------------------------- after the work

    def close(self) -> None:
        """The training is complete: remove what only it needed."""
        self.used, self._swept = 0, False
        if in_group():
            torch.distributed.barrier()  # the others may still read
            if torch.distributed.get_rank() != 0:
                return
        self.discard()

    def discard(self) -> None:
        """Remove what was written into the run's own folder."""
        if self._scratch is not None:
            for file in our_files(self._scratch):
                file.unlink(missing_ok=True)
            remove_empty(self._scratch)

    def _sweep(self, keys: Collection[str | None]) -> None:
        """Remove from the run's own folder what other data, another preset or a kill have left there."""
        if self._scratch is None or self._swept:
            return
        self._swept = True
        for file in our_files(self._scratch):
            if file.name[:32] not in keys:
                file.unlink(missing_ok=True)
        remove_empty(self._scratch)


def budget_bytes(gb: Any) -> float | None:
    """``cache_gb`` in bytes; None stays None.

    Raises:
        DataError: for anything but a number >= 0.
    """
    if gb is None:
        return None
    if isinstance(gb, bool) or not isinstance(gb, (int, float)) or not gb >= 0:
        shown = shortened(gb) if isinstance(gb, (str, int, bool)) else repr(gb)
        raise DataError(
            f"cache_gb: must be a number of gigabytes >= 0, or null for half of the available memory, got {shown}"
        )
    return gb if math.isinf(gb) else round(gb * GB)


def default_budget() -> int:
    """Bytes that prepared cases of this process may take where nobody says how much."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1") if in_group() else "1"  # torchrun's
    return available_memory() // 2 // max(int(processes) if processes.isdigit() else 1, 1)


def _bytes(item: Any) -> int:
    if isinstance(item, torch.Tensor):
        return item.element_size() * item.nelement()
    if isinstance(item, Mapping):
        return sum(_bytes(value) for value in item.values())
    return sum(_bytes(value) for value in item) if isinstance(item, (list, tuple)) else 0


def _remove(root: Path, process: int) -> None:
    if os.getpid() == process:  # a loader process that ends removes nothing
        shutil.rmtree(root, ignore_errors=True)


def plan_together(needs: Mapping[str, Any]) -> None:
    """Plan the caches of several data sets, each cache once; data sets that are ready already are left out.

    Args:
        needs: name -> :class:`monai_ssl.data.CaseDataset`, in the order in which they will be prepared.
    """
    waiting = {name: cases for name, cases in needs.items() if not cases.ready and cases.cache is not None}
    caches: list[CaseCache] = list({id(cases.cache): cases.cache for cases in waiting.values()}.values())
    for cache in caches:
        mine = {name: cases for name, cases in waiting.items() if cases.cache is cache}
        keys = {key for name, cases in mine.items() if name != REREAD for key in cases.content_keys}
        cache.plan({name: cases.footprint() for name, cases in mine.items()}, keys)


def prepared_footprints(cases: Datalist, preset: Preset) -> dict[str, Footprint]:
    """What a training keeps of the lists that it prepares: labeled, validation, pool; empty lists are left out."""
    lists = {"labeled": (cases.training, True), REREAD: (cases.validation, False), "pool": (cases.unlabeled, True)}
    return {name: footprint(entries, preset, padded) for name, (entries, padded) in lists.items() if entries}


def memory_sentence(needs: Mapping[str, Footprint]) -> str:
    """What prepared scans take, and what of it does not fit into memory as it is now.

    Example:
        >>> memory_sentence({"labeled": Footprint(4, 10 * GB // 1000), "pool": Footprint(500, 0, 500)})
        'prepared for training: labeled 10 MB, pool of a size that is not known yet'
    """
    sizes = ", ".join(f"{name} {need}" for name, need in needs.items())
    total, budget = sum(need.bytes for need in needs.values()), default_budget()
    beyond = f"; {gigabytes(budget)} of it in memory, half of what is available, and the rest on disk (cache_gb)"
    return f"prepared for training: {sizes or '0 GB'}{beyond * (total > budget)}"

"""Writing images."""

from __future__ import annotations

from typing import Any

from monai.data import NibabelWriter

from monai_ssl.files import atomic_path


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer; the file appears under its name only when it is complete."""

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        with atomic_path(filename) as temporary:
            super().write(temporary, verbose=verbose, **kwargs)

"""What is different where MONAI's own command runs a bundle: ``python -m monai.bundle run``."""

from __future__ import annotations

import os
import sys
from types import TracebackType

from monai_ssl.mistakes import users_mistake


def say_mistakes_in_a_line() -> None:
    """Where ``python -m monai.bundle`` is the program, a user's mistake ends it in one line, not in three tracebacks.

    Anywhere else nothing changes: who calls a bundle from Python gets the exception.
    """
    if not _is_monai_bundle() or os.environ.get("MONAI_SSL_DEBUG"):
        return
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mistake = None if issubclass(kind, KeyboardInterrupt) else users_mistake(error)
        if mistake is None:
            former(kind, error, trace)
        else:
            print(f"error: {mistake}", file=sys.stderr)

    sys.excepthook = hook


def _is_monai_bundle() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", "") in ("monai.bundle.__main__", "monai.bundle")

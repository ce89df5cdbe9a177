"""What a user sees while a command runs."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# They report every engine run. MONAI gives some of its loggers a level and a handler when it is imported, which may be
# while a command runs: a filter outlives that.
NOISY = (
    "monai.bundle.scripts",
    "monai.bundle.workflows",
    "monai.data.image_writer",
    "monai.inferers.inferer",
    "monai.transforms.compose",
    "monai_ssl.engines.trainer.SemiSupervisedTrainer",
    "monai.engines.evaluator.SupervisedEvaluator",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Show what the user asked for, and MONAI's and Ignite's records only where something fails.

    What the functions of the API tell people (the logger ``monai_ssl.console``) goes to the standard output, and from
    warnings on to the standard error, as it is. Our other records follow a time.
    """
    ours, console = logging.getLogger("monai_ssl"), logging.getLogger("monai_ssl.console")
    timed = logging.StreamHandler(sys.stderr)
    timed.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    said, warned = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    said.addFilter(lambda record: record.levelno < logging.WARNING)
    warned.setLevel(logging.WARNING)
    existing = [name for name in logging.root.manager.loggerDict if name.startswith(("monai.", "ignite."))]
    levels = {name: logging.getLogger(name).level for name in ("monai_ssl", "monai", "ignite", *existing, *NOISY)}
    root_handlers = list(logging.root.handlers)
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in NOISY:
        logging.getLogger(name).addFilter(_is_error)
    ours.setLevel(logging.INFO)
    # on the root, so that the logging.conf of a user's own bundle takes its place
    logging.root.addHandler(timed)
    console.handlers[:] = [said, warned]
    console.propagate = False
    try:
        with _warnings_as_lines():
            yield
    finally:
        console.handlers.clear()
        console.propagate = True
        logging.root.handlers[:] = root_handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name in NOISY:
            logging.getLogger(name).removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Our own warnings, each once, as a line."""
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, *args: Any, **kwargs: Any) -> None:
        text = " ".join(str(message).split())
        if text not in seen:
            seen.add(text)
            print(f"warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"monai_ssl(\.|$)", category=UserWarning)
        warnings.showwarning = show
        yield

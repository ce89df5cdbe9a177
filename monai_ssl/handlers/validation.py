"""Validation during training."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler


class Validation(ValidationHandler):
    """MONAI's ``ValidationHandler`` that also validates the last iterate of a run, wherever the run ends.

    MONAI's validates only every ``interval`` epochs; a run whose length is no multiple of that would end with weights
    that nobody has looked at. Attach it to a :class:`~monai_ssl.engines.SemiSupervisedTrainer`.

    Args:
        interval: epochs (``epoch_level``) or iterations between validations.
        validator: the evaluator.
        epoch_level, exec_at_start: as in MONAI.

    Example:
        >>> from monai_ssl.handlers import Validation
        >>> Validation(interval=2).interval
        2
    """

    _validated = 0

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def __call__(self, engine: Engine) -> None:
        super().__call__(engine)
        self._validated = engine.state.iteration

    def _finish(self, engine: Any) -> None:
        # a finished run that is started again makes no step, and its validation is in the log
        if engine.data_loader.start < engine.state.iteration == engine.total_iterations > self._validated:
            self(engine)

"""Validation during training."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler

from monai_ssl.engines import SemiSupervisedTrainer, WindowInferer
from monai_ssl.engines.trainer import RunEvents


class Validation(ValidationHandler):
    """MONAI's ``ValidationHandler`` that also validates the last iterate of a run, wherever the run ends.

    MONAI's validates only every ``interval`` epochs; a run whose length is no multiple of that would end with weights
    that nobody has looked at. Attach it to a :class:`~monai_ssl.engines.SemiSupervisedTrainer`. A validator whose
    inferer is a :class:`~monai_ssl.engines.WindowInferer` with ``amp="auto"`` takes the precision of the training.

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

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        if isinstance(engine, SemiSupervisedTrainer):
            engine.add_event_handler(RunEvents.SETTLED, self._follow)
        if self.validator is not None:
            self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._stop, engine)

    def _follow(self, engine: Any) -> None:
        inferer = getattr(self.validator, "inferer", None)
        if isinstance(inferer, WindowInferer):
            inferer.follow(engine.precision)

    def _stop(self, validator: Engine, engine: Any) -> None:
        """Whoever asked a training to stop does not want to wait for the other cases."""
        engine.stop_now()
        if engine.stopping:
            validator.terminate()  # the log leaves out what was not finished

    def __call__(self, engine: Any) -> None:
        super().__call__(engine)
        if not engine.stopping:
            self._validated = engine.state.iteration

    def _finish(self, engine: Any) -> None:
        # a finished run that is started again makes no step, and its validation is in the log
        begun = engine.data_loader.start < engine.state.iteration or engine.unsettled
        if begun and not engine.stopping and engine.state.iteration == engine.total_iterations > self._validated:
            self(engine)

"""Events of a training run: what follows an update, decided once, from the intervals of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from automodel_cli.assembly.training_length import Interval, due
from automodel_cli.config.schema.pretrain import PretrainConfig


@dataclass(frozen=True)
class Events:
    """What happens after an update, in this order."""

    log: bool = False
    validate: bool = False
    evaluate: bool = False
    save: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Intervals:
    """How often each event happens in a run of ``last`` updates; every interval includes the last update."""

    last: int
    log: Interval = 1
    validate: Interval = None
    evaluate: Interval = None
    save: Interval = None  # None also where checkpoints are off
    saves: bool = True
    save_at_epoch_end: bool = False  # also save when a pass over the data ends
    # Validate before a save that falls due, so that the best checkpoint can be told
    validate_on_save: bool = False
    validate_at_start: bool = False  # before the first update of a run that begins

    @classmethod
    def of(cls, cfg: PretrainConfig, last: int) -> Intervals:
        """As the configuration says, for a run of ``last`` updates."""
        every = cfg.step_scheduler
        return cls(
            last=last,
            log=every.log_every_steps,
            validate=every.val_every_steps,
            evaluate=cfg.evaluation.every_steps if cfg.evaluation is not None else None,
            save=every.ckpt_every_steps,
            saves=cfg.checkpoint.enabled,
            save_at_epoch_end=every.save_checkpoint_every_epoch,
            validate_on_save=every.validate_on_checkpoint,
            validate_at_start=every.val_on_start and every.val_every_steps is not None,
        )

    def before_the_first(self, step: int) -> Events:
        """What comes before the first update of a run that is at ``step``."""
        return Events(validate=self.validate_at_start and step == 0 < self.last)

    def after(self, step: int, *, stopping: bool = False, epoch_ended: bool = False, save_owed: bool = False) -> Events:
        """What follows update ``step`` (from 1).

        Args:
            stopping: a signal has come: the run is saved and left, and nothing else is done.
            epoch_ended: this update was the first to reach the end of a pass over the data.
            save_owed: a save that could not be made when it fell due can be made now.
        """
        log = due(step, every=self.log, last=self.last)
        if stopping:
            return Events(log=log, save=self.saves, stop=True)
        falls_due = due(step, every=self.save, last=self.last) or (self.save_at_epoch_end and epoch_ended)
        save = self.saves and (falls_due or save_owed)
        evaluate = due(step, every=self.evaluate, last=self.last)
        validate = evaluate or (save and self.validate_on_save) or due(step, every=self.validate, last=self.last)
        return Events(log, validate, evaluate, save)

    def at_the_end_of_the_data(self) -> Events:
        """What follows the last update where the data ended before the run did."""
        return Events(validate=self.validate is not None, save=self.saves and self.save is not None)

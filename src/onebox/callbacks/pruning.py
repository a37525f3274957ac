"""Ends a fit that its search gives up."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from onebox.callbacks.epoch_csv import EpochCsvLogger


class Pruning(Checkpoint):  # as Lightning calls these when the module has logged its epoch
    """Shows the search what each epoch reached, and ends the fit when it is not worth going on.

    Args:
        tag: of the objective.
        is_hopeless: is given the objective by epoch (from 0), of all epochs until now, and decides.
    """

    def __init__(self, tag: str, is_hopeless: Callable[[Mapping[int, float]], bool]) -> None:
        self._tag, self._is_hopeless = tag, is_hopeless
        self._reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Whether it was pruned: a process that is killed between the fit and its record must not forget it."""
        return {} if self._reason is None else {"reason": self._reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._reason = state_dict["reason"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, is_hopeless = trainer.current_epoch, False
        if trainer.is_global_zero:
            rows = next(logger.rows for logger in trainer.loggers if isinstance(logger, EpochCsvLogger))
            values = {number: row[self._tag] for number, row in rows.items() if self._tag in row}
            if self._tag.startswith("train/"):  # which is not logged yet
                values[epoch] = trainer.callback_metrics[self._tag].item()
            is_hopeless = epoch in values and self._is_hopeless(values)
        is_over = trainer.should_stop or epoch + 1 == trainer.max_epochs  # nothing would be saved
        is_early = epoch + 1 < (trainer.min_epochs or 0)
        if trainer.strategy.broadcast(is_hopeless) and not is_over and not is_early:
            self._reason = f"after epoch {epoch + 1} of {trainer.max_epochs}"
            trainer.should_stop = True

    def outcome(self, module: LightningModule) -> dict[str, str]:
        return {} if self._reason is None else {"pruned": self._reason}

"""Stops a fit that no longer improves, and says why."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from onebox.callbacks.freeze import Freeze
from onebox.module import LocalizationModule


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, which counts each value once: a `val/` tag is passed over in epochs that do not validate."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the epoch's value, if it is new."""
        has_validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        if has_validated or self.monitor.startswith("train/"):
            super().on_train_epoch_end(trainer, pl_module)


def stopped_early(trainer: Any, module: LocalizationModule) -> str | None:
    """The line that says when and why early stopping ended a fit, and what of the backbone it left untrained.

    None when all epochs were trained. A fit that resumed from a checkpoint of its end says the same again.
    """
    num_epochs, stopping = trainer.current_epoch, trainer.early_stopping_callback
    not_stopped = stopping is None or stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    if not_stopped or num_epochs == trainer.max_epochs:
        return None
    reason = {
        EarlyStoppingReason.PATIENCE_EXHAUSTED: f"has not improved within patience={stopping.patience}",
        EarlyStoppingReason.NON_FINITE_METRIC: "is no longer a finite number",
        EarlyStoppingReason.STOPPING_THRESHOLD: f"has reached stopping_threshold={stopping.stopping_threshold}",
        EarlyStoppingReason.DIVERGENCE_THRESHOLD: f"is beyond divergence_threshold={stopping.divergence_threshold}",
    }[stopping.stopping_reason]
    line = f"stopped after epoch {num_epochs} of {trainer.max_epochs}: {stopping.monitor} {reason}"
    freezes = [callback for callback in trainer.callbacks if isinstance(callback, Freeze)]
    missed = freezes[0].missed(module.localizer.backbone.stages, num_epochs) if freezes else None
    return line if missed is None else f"{line}; callbacks.freeze.unfreeze came too late for {missed}"

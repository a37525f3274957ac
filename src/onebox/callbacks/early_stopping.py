"""Stops a fit that no longer improves, and says why."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from onebox.callbacks.freeze import Freeze
from onebox.module import LocalizationModule


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, which counts each value once: a `val/` tag is passed over in epochs that do not validate."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the epoch's value, if it is new."""
        if (
            self.monitor.startswith("train/")
            or (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        ):
            super().on_train_epoch_end(trainer, pl_module)


def stopped_early(trainer: Trainer, module: LocalizationModule) -> str | None:
    """The line that says when and why early stopping ended a fit, and what of the backbone it left untrained.

    None when all epochs were trained. A fit that resumed from a checkpoint of its end says the same again.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    num_epochs, max_epochs = trainer.current_epoch, trainer.max_epochs
    stopping = next((item for item in callbacks if isinstance(item, LightningEarlyStopping)), None)
    if stopping is None or stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED or num_epochs == max_epochs:
        return None
    every = stopping._check_on_train_epoch_end and (
        trainer.check_val_every_n_epoch == 1 or "train/" in stopping.monitor
    )
    unit = f"{'epoch' if every else 'validation'}{'s' if stopping.wait_count != 1 else ''}"
    reason = {
        EarlyStoppingReason.NON_FINITE_METRIC: "is no longer a finite number",
        EarlyStoppingReason.STOPPING_THRESHOLD: f"has reached stopping_threshold={stopping.stopping_threshold}",
        EarlyStoppingReason.DIVERGENCE_THRESHOLD: f"is beyond divergence_threshold={stopping.divergence_threshold}",
    }.get(stopping.stopping_reason, f"has not improved for {stopping.wait_count} {unit}")
    freeze = next((item for item in callbacks if isinstance(item, Freeze)), None)
    missed = freeze.missed(module.localizer.backbone.stages, num_epochs) if freeze else None
    late = "" if missed is None else f"; callbacks.freeze.unfreeze came too late for {missed}"
    return f"stopped after epoch {num_epochs} of {max_epochs}: {stopping.monitor} {reason}{late}"

"""Says why a fit ended before its last epoch."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from onebox.callbacks.freeze import Freeze
from onebox.module import LocalizationModule


def stopped_early(trainer: Trainer, module: LocalizationModule) -> str | None:
    """The line that says when and why early stopping ended a fit, and what of the backbone it left untrained.

    None when all epochs were trained. A fit that went on from a checkpoint of its end says the same again.
    """
    num_epochs, max_epochs = trainer.current_epoch, trainer.max_epochs
    stopping = [
        callback
        for callback in trainer.early_stopping_callbacks
        if isinstance(callback, EarlyStopping) and callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
    ]
    if not stopping or max_epochs is None or num_epochs >= max_epochs:
        return None
    line = f"stopped after epoch {num_epochs} of {max_epochs}: {_reason(stopping[0])}"
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    freeze = next((callback for callback in callbacks if isinstance(callback, Freeze)), None)
    missed = freeze.missed(module.localizer.backbone.stages, num_epochs) if freeze else None
    return line if missed is None else f"{line}; callbacks.freeze.unfreeze came too late for {missed}"


def _reason(stopping: EarlyStopping) -> str:
    if stopping.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC:
        return f"{stopping.monitor} is no number any more"
    if stopping.stopping_reason is EarlyStoppingReason.STOPPING_THRESHOLD:
        return f"{stopping.monitor} has reached stopping_threshold={stopping.stopping_threshold}"
    if stopping.stopping_reason is EarlyStoppingReason.DIVERGENCE_THRESHOLD:
        return f"{stopping.monitor} is beyond divergence_threshold={stopping.divergence_threshold}"
    count = stopping.wait_count
    unit = "epoch" if stopping._check_on_train_epoch_end else "validation"
    return f"{stopping.monitor} has not improved for {count} {unit}{'s' if count != 1 else ''}"

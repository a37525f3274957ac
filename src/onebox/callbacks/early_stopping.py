"""Stops a fit that no longer improves."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, which counts each value once: a `val/` tag is passed over in epochs that do not validate."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        if has_validated or self.monitor.startswith("train/"):
            super().on_train_epoch_end(trainer, pl_module)

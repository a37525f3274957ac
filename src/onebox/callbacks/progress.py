"""How far a fit is: a bar, or a line an epoch."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class EpochBar(RichProgressBar):
    """Lightning's bar, with epochs counted as elsewhere: `Epoch 2/2` in the last of two, not `Epoch 1/1`."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return f"{text:{len(self.validation_description)}}"  # of one width, or the bars would flicker


class EpochLines(Callback):
    """Prints `Epoch 1/30 loss_loc 0.42393 loss_cls 3.05736` after each epoch.

    Args:
        tags: tags to print, by the last part of their name; those that were not logged are left out.
    """

    def __init__(self, tags: list[str]) -> None:
        self._tags = list(tags)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before, whose values were not there yet at its end."""
        if trainer.current_epoch > 0:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            logged = [tag for tag in self._tags if tag in trainer.callback_metrics]
            values = [f"{tag.rpartition('/')[2]} {trainer.callback_metrics[tag]:.5f}" for tag in logged]
            print(" ".join([f"Epoch {trainer.current_epoch}/{trainer.max_epochs}", *values]))

"""One printed line an epoch."""

from lightning.pytorch import Callback, LightningModule, Trainer


class EpochLines(Callback):
    """Prints `Epoch 1/30 loss_loc 0.42393 loss_cls 3.05736` after each epoch.

    Args:
        tags: logged tags to print, by the last part of their name.
    """

    def __init__(self, tags: list[str]) -> None:
        self._tags = list(tags)
        self._epoch = 0  # finished epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch is over; its values are there only after this hook."""
        self._epoch = trainer.current_epoch + 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before."""
        if trainer.current_epoch > 0:
            self._epoch = trainer.current_epoch  # a run that goes on has seen no epoch end
            self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            values = " ".join(f"{tag.split('/')[-1]} {trainer.callback_metrics[tag]:.5f}" for tag in self._tags)
            print(f"Epoch {self._epoch}/{trainer.max_epochs} {values}")

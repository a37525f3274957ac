"""One printed line an epoch."""

from lightning.pytorch import Callback, LightningModule, Trainer


class EpochLines(Callback):
    """Prints `Epoch 1/30 loss_loc 0.42393 loss_cls 3.05736` after each epoch.

    Args:
        tags: logged tags to print, by the last part of their name.
    """

    def __init__(self, tags: list[str]) -> None:
        self._tags = list(tags)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the epoch's line is due: its values are logged right after this hook."""
        self._due = trainer.current_epoch + 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before."""
        self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if getattr(self, "_due", None) is None or not trainer.is_global_zero:
            return
        values = " ".join(f"{tag.split('/')[-1]} {trainer.callback_metrics[tag]:.5f}" for tag in self._tags)
        print(f"Epoch {self._due}/{trainer.max_epochs} {values}")
        self._due = None

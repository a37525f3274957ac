"""The progress bar."""

from lightning.pytorch.callbacks import RichProgressBar


class EpochBar(RichProgressBar):
    """Lightning's bar, with epochs counted as elsewhere: `Epoch 2/2` in the last of two, not `Epoch 1/1`.

    Args:
        refresh_rate: batches between two looks.
        leave: whether the bar of each epoch stays.
    """

    def __init__(self, refresh_rate: int, leave: bool) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return f"{text:{len(self.validation_description)}}"  # of one width, or the bars would flicker

"""What a run is, in TensorBoard's TEXT tab."""

from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer

from onebox.callbacks.events import writers


class Texts(Callback):
    """Shows Markdown texts, those of before the fit when it begins."""

    def __init__(self) -> None:
        self._before: Mapping[str, str] = {}

    def show(self, trainer: Trainer, texts: Mapping[str, str]) -> None:
        if trainer.state.fn is None:
            self._before = texts
            return
        for writer in writers(trainer):
            for tag, text in texts.items():
                writer.add_text(tag, text, trainer.global_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:  # else they are there
            self.show(trainer, self._before)

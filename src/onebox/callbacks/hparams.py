"""TensorBoard's HPARAMS tab."""

from collections.abc import Mapping, Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams


class HParams(Callback):
    """Tells TensorBoard once, at the start, this run's hyper-parameters and which tags are its results.

    TensorBoard then takes each result from the last scalar of that tag, so that a run shows up while it runs.

    Args:
        values: hyper-parameters, by name.
        metrics: tags of the results.
    """

    def __init__(self, values: Mapping[str, bool | float | str], metrics: Sequence[str]) -> None:
        self._values = dict(values)
        self._metrics = list(metrics)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summaries."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                writer = logger.experiment._get_file_writer()
                for summary in hparams(self._values, dict.fromkeys(self._metrics, 0.0)):
                    writer.add_summary(summary)

"""The layout of the CUSTOM SCALARS tab, and the best epoch until now as curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule

from onebox.callbacks.epoch_csv import EpochCsvLogger, best_row
from onebox.callbacks.events import writers


class Scalars(Callback):
    """Groups TensorBoard's scalars in charts, and adds to them what the best epoch until now reached (`best/...`).

    Args:
        layout: section -> chart -> tags that the chart shows.
        best: names of metrics whose value in the best epoch is shown.
        monitor: tag that says which epoch is the best.
        mode: max or min.
    """

    def __init__(
        self, layout: Mapping[str, Mapping[str, Sequence[str]]], best: Sequence[str], monitor: str, mode: str
    ) -> None:
        self._layout = {  # a tag is a pattern, which matches what begins so
            section: {chart: ["Multiline", [f"{tag}$" for tag in tags]] for chart, tags in charts.items()}
            for section, charts in layout.items()
        }
        self._best, self._monitor, self._mode = list(best), monitor, mode

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        for writer in writers(trainer) if trainer.global_step == 0 else ():
            writer.add_custom_scalars(self._layout)

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            rows = next(logger.rows for logger in trainer.loggers if isinstance(logger, EpochCsvLogger))
            best = best_row(rows, self._monitor, self._mode)
            for name in self._best:
                for writer in writers(trainer) if f"val/{name}" in best else ():
                    writer.add_scalar(f"best/{name}", best[f"val/{name}"], trainer.global_step - 1)

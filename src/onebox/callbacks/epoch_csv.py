"""metrics.csv: one row an epoch."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from onebox.files import write_text


class EpochCsvLogger(Logger):
    """Collects what is logged at the end of epochs, and keeps `path` up to date after each.

    What is logged by step, and the results of a test, belong to no epoch and are passed over.

    Args:
        path: the CSV file; columns are `epoch` and the logged tags. None keeps the rows in memory only.
    """

    name, version = "csv", ""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        self._path = path
        self.rows: dict[int, dict[str, float]] = {}  # by epoch

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {tag: value for tag, value in metrics.items() if tag.startswith(("train/", "val/"))}
        if "epoch" in metrics and values:
            self.rows.setdefault(int(metrics["epoch"]), {}).update(values)

    @rank_zero_only
    def save(self) -> None:
        if self._path is None or not self.rows:
            return
        text = io.StringIO()
        tags = sorted({tag for row in self.rows.values() for tag in row})
        writer = csv.DictWriter(text, ["epoch", *tags], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"epoch": epoch, **row} for epoch, row in sorted(self.rows.items()))
        write_text(self._path, text.getvalue())


def best_row(rows: Mapping[int, Mapping[str, float]], monitor: str, mode: str) -> dict[str, float]:
    """The epoch whose checkpoint was kept as the best: its tags, and its number (from 0) as `epoch`.

    Empty when no epoch logged `monitor` as a number.
    """
    sign = 1 if mode == "max" else -1
    values = {epoch: sign * row[monitor] for epoch, row in sorted(rows.items()) if monitor in row}
    values = {epoch: value for epoch, value in values.items() if value == value}  # NaN is not equal to itself
    if not values:
        return {}
    best = max(values, key=values.__getitem__)  # the first of equals, as the checkpoint
    return {**rows[best], "epoch": best}

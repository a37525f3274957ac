"""What a sweep says while it runs: on a terminal a line for each job that runs, otherwise when one starts or ends."""

import csv
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from onebox.text import duration

REFRESH_S = 0.5
COLOURS = {"done": "green", "failed": "red", "stopped": "yellow"}


class RunningJob(NamedTuple):
    """What is shown of a job that runs.

    Attributes:
        number: as the sweep counts.
        label: what is varied.
        folder: run directory.
        max_epochs: of its fit; None when it has no such limit.
        monitor: tag of the metric to show.
        seconds: since it was started.
    """

    number: int
    label: str
    folder: Path
    max_epochs: int | None
    monitor: str
    seconds: float


class View:
    """Says how far a sweep is.

    Args:
        console: where.
        total: number of jobs.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._ended: Counter[str] = Counter()
        self._refreshed = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str, style: str = "") -> None:
        """Print one line that stays."""
        self._console.print(Text(text, style), soft_wrap=True, highlight=False)

    def started(self, number: int, label: str, attempt: int) -> None:
        """A job begins, or begins once more."""
        if self._live is None:
            again = f" (attempt {attempt})" if attempt > 1 else ""
            self.note(f"#{number} {label}: started{again}")

    def retried(self, number: int, label: str, reason: str) -> None:
        """A job failed and will be tried again."""
        self.note(f"#{number} {label}: {reason}; will be tried again", COLOURS["stopped"])

    def ended(self, number: int, label: str, status: str, seconds: float, told: str) -> None:
        """A job is over.

        Args:
            number: of the job.
            label: what is varied.
            status: `done`, `failed` or `stopped`.
            seconds: that it took.
            told: its result, or why it has none.
        """
        self._ended[status] += 1
        line = f"#{number} {label}: {status} after {duration(seconds)}{told and f', {told}'}"
        if self._live is None and self._ended.total() < self._total:
            line += f" ({self._ended.total()}/{self._total})"
        self.note(line, COLOURS[status])

    def refresh(self, running: Sequence[RunningJob]) -> None:
        """Draw what runs, when the last drawing is old enough."""
        if self._live is None or time.monotonic() - self._refreshed < REFRESH_S:
            return
        self._refreshed = time.monotonic()
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for _ in range(4):
            table.add_column(no_wrap=True, justify="right")
        for job in running:
            progress = read_progress(job.folder, job.monitor)
            epochs = f"epoch {progress.epochs}/{'?' if job.max_epochs is None else job.max_epochs}"
            values = [
                f"loss {_number(progress.loss)}",
                f"{job.monitor} {_number(progress.metric)}",
                duration(job.seconds),
            ]
            table.add_row(f"#{job.number}", job.label, epochs, *values)
        counts = {**self._ended, "running": len(running)}
        counts["pending"] = self._total - sum(counts.values())
        text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        self._live.update(Group(table, Text(text, "bold")), refresh=True)


class Progress(NamedTuple):
    """How far a fit is.

    Attributes:
        epochs: that are done.
        loss: train/loss of the last one.
        metric: the monitored metric of the last one that has it.
    """

    epochs: int
    loss: str | None
    metric: str | None


def read_progress(folder: Path, monitor: str) -> Progress:
    """What metrics.csv of a run directory says so far."""
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:  # not yet
        rows = []
    last = rows[-1] if rows else {}
    return Progress(
        epochs=int(last.get("epoch", -1)) + 1,
        loss=last.get("train/loss"),
        metric=next((row[monitor] for row in reversed(rows) if row.get(monitor)), None),
    )


def _number(value: str | None) -> str:
    return f"{float(value):.3f}" if value else "-"

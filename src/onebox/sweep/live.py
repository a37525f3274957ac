"""What a sweep says while it runs: a bar for each running job on a terminal, and a line when a job starts or ends."""

import contextlib
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from onebox.errors import duration, print_lines, printable
from onebox.files import MAX_LONG, read_bytes

COLOURS = {"done": "green", "pruned": "blue", "failed": "red", "stopped": "yellow", "retried": "yellow"}


class View:
    """Says how far a sweep of `total` jobs is.

    Attributes:
        bar: what a terminal shows, as a context manager; elsewhere nothing.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self.bar = Progress(
            TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal,
        )
        self.total = total
        self._jobs = self.bar.add_task("all", total=total, unit="jobs")
        self._running: dict[int, tuple[TaskID, Path]] = {}
        self._ended: Counter[str] = Counter()

    def say(self, text: str, style: str = "") -> None:
        """Print one line that stays."""
        print_lines([[(text, style)]], self._console)

    def start(self, number: int, label: str, attempt: int, folder: Path, max_epochs: int | None) -> None:
        """A job starts, or is started again; its progress is read from metrics.csv in its `folder`."""
        if not self._console.is_terminal:
            self.say(f"#{number} {label}: started{f' (attempt {attempt})' if attempt > 1 else ''}")
        bar = self.bar.add_task(printable(f"#{number} {label}"), total=max_epochs, unit="epochs")
        self._running[number] = bar, folder

    def end(self, number: int, label: str, status: str, seconds: float, detail: str = "") -> None:
        """An attempt at a job is over; `status` is one of `COLOURS`, `detail` its result, or why it has none."""
        if number in self._running:
            self.bar.remove_task(self._running.pop(number)[0])
        if status == "retried":
            return self.say(f"#{number} {label}: {detail}; will be retried", COLOURS[status])
        self._ended[status] += 1
        self.bar.advance(self._jobs)
        line = f"#{number} {label}: {status} after {duration(seconds)}{detail and f', {detail}'}"
        if not self._console.is_terminal and self._ended.total() < self.total:
            line += f" ({self._ended.total()}/{self.total})"
        return self.say(line, COLOURS[status])

    def refresh(self) -> None:
        """Read how far the running jobs are."""
        for bar, folder in self._running.values() if self._console.is_terminal else ():
            with contextlib.suppress(OSError):  # there is no metrics.csv before the first epoch has ended
                self.bar.update(bar, completed=read_bytes(folder / "metrics.csv", MAX_LONG).count(b"\n") - 1)

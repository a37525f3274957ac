"""A progress bar for people, on standard error; a log file gets none."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, total: int, description: str) -> Iterator[Item]:
    """The same items; while they are taken, a terminal shows how many of `total` there were."""
    from rich.console import Console
    from rich.progress import track  # slow to import, and the processes that parse need none

    console = Console(stderr=True)
    hidden = not console.is_terminal
    yield from track(items, total=total, description=description, console=console, transient=True, disable=hidden)

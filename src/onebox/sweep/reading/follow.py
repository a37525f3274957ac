"""Looking at a sweep until all of its jobs have ended."""

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from onebox.errors import printable, say
from onebox.runs.reading.table import Listing
from onebox.sweep.reading.sweep import WAITED_FOR, Sweep

PAUSE_S = 2.0


def follow(read: Callable[[], Sweep], listing: Callable[[Sweep], Listing], *, on_terminal: bool) -> Listing:
    """The table when all jobs have ended; until then it is drawn on the terminal again and again.

    Elsewhere a line on standard error says of each job what has become of it. Ctrl-C disturbs no job.
    """
    console = Console(highlight=False, quiet=not on_terminal)
    before: dict[int, str] = {}
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                start = time.monotonic()
                sweep = read()
                found, now = listing(sweep), dict(zip(sweep.jobs.index, sweep.jobs["status"], strict=True))
                for number in now if not on_terminal else ():
                    if now[number] != before.get(number, "pending"):
                        say(f"#{number} {sweep.name(number)}: {now[number]}")
                if not set(WAITED_FOR) & set(now.values()):
                    return found
                last = Text(printable("".join(text for text, _ in found.notes[-1])) + "; Ctrl-C stops looking")
                live.update(Group(last, *found.parts(console.width)), refresh=True)  # cut off at the end of the screen
                before = now
                time.sleep(max(PAUSE_S, 5 * (time.monotonic() - start)))  # thousands of jobs take a while to read
    except KeyboardInterrupt:
        if on_terminal:
            found.show(console)
        raise

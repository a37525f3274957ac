"""What a sweep shows of its results: its page while jobs run, the table and the page when they have ended."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from onebox.errors import SweepFailed
from onebox.sweep.job import PLAN
from onebox.sweep.process import start

log = logging.getLogger(__name__)

PAUSE_S = 10.0  # between two looks at what has ended
SHARE = 100  # the page is written in at most this part of the time: on two cores the jobs have them all
NICENESS = 5  # the jobs go first; of 19 and a busy machine nothing would be left for it


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Keep the page of the sweep in `folder` up to date while the block runs; then print the table of all jobs.

    The sweep is as good without its page: an error in writing it is a warning.
    """
    is_over = threading.Event()
    keeper = threading.Thread(target=_keep_page, args=(folder, is_over), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        is_over.set()
        keeper.join()
        if (folder / PLAN).exists() or any(folder.glob("*/run.json")):  # a search has no plan before its first run
            _report(folder)


def _keep_page(folder: Path, is_over: threading.Event) -> None:
    """Have the page written, by another process, whenever more jobs have ended."""
    num_written, pause = 0, PAUSE_S
    while not is_over.wait(pause):
        num_ended = sum(1 for _ in folder.glob("*/metrics.json"))
        if num_ended == num_written:
            continue
        begun = time.monotonic()
        with suppress(SweepFailed):
            writer = start(_write_page, (folder,))
            while writer.is_alive() and not is_over.wait(0.1):
                pass
            writer.kill()
            writer.join()
        num_written, pause = num_ended, max(PAUSE_S, SHARE * (time.monotonic() - begun))


def _write_page(folder: Path) -> None:
    os.nice(NICENESS)
    with suppress(Exception):  # the end tries again, and says what is wrong
        from onebox.sweep.reading.page import write_page
        from onebox.sweep.reading.table import read_sweep

        write_page(read_sweep(folder))


def _report(folder: Path) -> None:
    from onebox.sweep.reading.table import list_sweep, read_sweep

    sweep = read_sweep(folder)
    list_sweep(sweep).show(Console(highlight=False))
    try:
        from onebox.sweep.reading.page import write_page

        log.info("%s", write_page(sweep))
    except Exception as error:  # of drawing libraries, of the disk
        log.warning("the sweep's page could not be written: %s", " ".join(f"{type(error).__name__}: {error}".split()))

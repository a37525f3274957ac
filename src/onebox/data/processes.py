"""A function over many items, in processes of their own: for work that holds the interpreter, such as parsing."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 250  # items that travel together
WORTH_IT = 2000  # items; below, starting processes takes longer than the work


def process_map(function: Callable[[Item], Result], items: Sequence[Item], *, description: str) -> Iterator[Result]:
    """`map(function, items)` with a progress bar, on all cores that this process may use.

    The processes are new interpreters, not forks: safe beside threads.

    Args:
        function: of the top level of a module, so that it has a name everywhere.
        items: what it is called with; items and results are pickled.
        description: what the progress bar says.
    """
    workers = min(num_cores(), len(items) // (WORTH_IT // 2))
    if workers < 2:
        yield from progress(map(function, items), total=len(items), description=description)
        return
    yield from progress(_in_pool(function, items, workers), total=len(items), description=description)


def check_is_main() -> None:
    """End an interpreter that only helps, and runs a script without `if __name__ == "__main__"` a second time.

    It would wait for what its parent holds while that waits for it.
    """
    # Set while a new interpreter imports the main module, which is how multiprocessing tells this itself.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError('put what the script does below `if __name__ == "__main__":`')


def _in_pool(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    done = 0
    try:
        for result in pool.map(function, items, chunksize=CHUNK):
            done += 1
            yield result
    except BrokenProcessPool:
        # A script without `if __name__ == "__main__"` runs again in each new interpreter, which then gives up.
        log.warning("worker processes cannot be started; this process reads alone")
        yield from map(function, items[done:])
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it has been killed: a pool's process would wait for it forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def num_cores() -> int:
    """Cores that this process may use, at least 1: of its affinity, or as much time as its control group is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no Linux, an older kind of group, or `max`
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # of a container
        cores = min(cores, round(int(quota) / int(period)))
    return max(1, cores)


def progress(items: Iterable[Item], *, total: int, description: str) -> Iterator[Item]:
    """The same items; while they are taken, a terminal shows how many of `total` there were; a log file gets none."""
    from rich.console import Console
    from rich.progress import track  # slow to import, and the processes that parse need none

    console = Console(stderr=True)
    if console.is_terminal:
        items = track(items, total=total, description=description, console=console, transient=True)
    yield from items
